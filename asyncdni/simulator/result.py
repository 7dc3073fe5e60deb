"""What a simulated run has shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from asyncdni.backends.base import Array
from asyncdni.core.events import Fail, Finish
from asyncdni.simulator.round import TimedOp

__all__ = ["Result", "training_s"]

Records = list[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Result:
    """Times are virtual seconds; what is by worker goes by its name, in the network's order."""

    seed: int
    end: Finish | Fail | None  # None: stopped at the moment that was asked for
    digest: str  # sha256 over every event and the final weights: equal means the same run
    events: int  # that the machines have handled
    virtual_s: float  # from the first process to the last one's end
    train_s: float  # drains included; evaluation and saving not
    samples: int  # forwarded by the worker that has forwarded least
    ops: dict[str, list[TimedOp]]  # of training, in order: (letter, batch, start, end)
    busy: dict[str, float]  # share of the training time spent in ops
    counters: dict[str, dict[str, float | int | None]]  # see `core.worker.Worker.counters`
    records: Records  # of the coordinators, in order: (kind, values)
    history: list[dict[str, Any]]  # each that counts: samples, train_s, accuracy, loss
    weights: dict[str, dict[str, Array]]  # by declared stage; empty without the maths
    cpu_s: dict[str, float]  # by worker, of all it did; empty where none shares a core
    mishaps: dict[str, int]  # faults that have happened, by kind

    @property
    def failure(self) -> Fail | None:
        return self.end if isinstance(self.end, Fail) else None

    @property
    def samples_per_s(self) -> float:
        """In virtual time; 0 where nothing was trained."""
        return self.samples / self.train_s if self.train_s > 0 else 0.0


def training_s(records: Records, now: float) -> float:
    """From each start or resume to its drain, or to `now` where that has not come."""
    total, since = 0.0, None
    for kind, values in records:
        if kind in ("start", "resume"):
            since = values["time_s"]
        elif kind == "drained" and since is not None:
            total += values["time_s"] - since
            since = None
    return total if since is None else total + now - since
