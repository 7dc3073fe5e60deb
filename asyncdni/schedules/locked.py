"""Locked: plain backpropagation, one batch in the whole network at a time.

Forward, update and backward locking as the DNI paper names them (Jaderberg et al. 2016, section 1):
no stage works on another batch before this one has been through the whole network and back.

Only what others wait for comes first: a stage sends the gradient of its inputs (b) before it works
out those of its weights (W) and updates (U), which overlap with the backward of the stages below
and change no result (the two halves of backward propagation: Rae et al. 2024, "2BP", arXiv
2405.18047; Qi et al. 2023, "Zero bubble pipeline parallelism", arXiv 2401.10241). Stage 0 has
nothing to send, so its backward stays whole (B):

```
stage 0  F0 .  .  .  .  B0 U0 F1 .  .  .  .  B1 U1
stage 1  .  F0 .  .  b0 W0 U0 .  F1 .  .  b1 W1 U1
stage 2  .  .  F0 b0 W0 U0 .  .  .  F1 b1 W1 U1 .
```

A column is a unit of time, `.` is waiting; reading data and messages take none.
"""

from __future__ import annotations

from dataclasses import dataclass

from asyncdni.schedules.base import Flight, Op, OpKind, View

__all__ = ["Locked"]


@dataclass(frozen=True, slots=True)
class Locked:
    """The synchronous baseline; its results equal those of one process to the last bit."""

    split_backward: bool = True  # b and W; False: B, as without the idea above

    def next_op(self, view: View) -> Op | None:
        for flight in view.flights.values():  # at most one
            return self._step_back(flight, view.has_producers) if flight.arrived else None
        return Op(OpKind.FORWARD, view.ready[0]) if view.ready else None

    def may_read(self, view: View) -> bool:
        # A batch in memory disturbs no one, but one that others get is one that they start on.
        return not (view.has_readers and view.flights)

    def _step_back(self, flight: Flight, has_producers: bool) -> Op:
        """The next op of a batch whose gradient is here."""
        done = flight.done
        if "B" in done or "W" in done:
            return Op(OpKind.UPDATE, flight.batch, last=True)
        if "b" in done:
            return Op(OpKind.LEARN, flight.batch)
        learn = not (self.split_backward and has_producers)
        return Op(OpKind.BACKWARD, flight.batch, learn=learn, send=has_producers)
