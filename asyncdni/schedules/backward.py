"""The way back of one batch, in two halves or whole: shared by the schedules that wait for it.

Only what others wait for comes first: a stage sends the gradient of its inputs (b) before it works
out those of its weights (W), which overlaps with the backward of the stages below and changes no
result (Rae et al. 2024, "2BP", arXiv 2405.18047; Qi et al. 2023, "Zero bubble pipeline
parallelism", arXiv 2401.10241). A stage that has nothing to send keeps its backward whole (B).
"""

from __future__ import annotations

from asyncdni.schedules.base import Flight, Op, OpKind

__all__ = ["pushed_back", "step_back"]


def pushed_back(flight: Flight) -> bool:
    """The gradient has been through the stage."""
    return "b" in flight.done or "B" in flight.done


def step_back(flight: Flight, *, split: bool, send: bool) -> Op:
    """The next op of a batch whose gradient is here, up to its own update."""
    done = flight.done
    if "B" in done or "W" in done:
        return Op(OpKind.UPDATE, flight.batch, last=True)
    if "b" in done:
        return Op(OpKind.LEARN, flight.batch)
    return Op(OpKind.BACKWARD, flight.batch, learn=not (split and send), send=send)
