"""Delayed: an asynchronous pipeline without a flush; every true gradient is applied, but late.

PipeDream (Narayanan et al. 2019, arXiv 1806.03377, section 3.2), DDG (Huo et al. 2018, arXiv
1804.10574). A stage goes back through a batch and updates as soon as its gradient is here, and
forwards the next one otherwise. How many it may be ahead is the bound on lag ([staleness] lag), by
default the stages down to the farthest loss, which keeps all busy where links take no time:

```
stage 0  F0 F1 F2 .  .  B0 U0 F3 .  B1 U1 F4 .  B2 U2 .  .  B3 U3 .  .  B4 U4
stage 1  .  F0 F1 .  b0 W0 U0 F2 b1 W1 U1 F3 b2 W2 U2 F4 b3 W3 U3 .  b4 W4 U4
stage 2  .  .  F0 b0 W0 U0 F1 b1 W1 U1 F2 b2 W2 U2 F3 b3 W3 U3 F4 b4 W4 U4 .
```

A column is a unit of time, `.` is waiting. With a lag of 0 this is `locked`. Which weights a
backward goes through (those of the batch's own forward, or today's), whether forwards look ahead,
and how rates follow staleness is the stage's business: see `stages.numpy.block`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from asyncdni.schedules.base import Flight, Op, OpKind, View, step_back
from asyncdni.schedules.options import Cycle, Late, Options, Role
from asyncdni.tables import NonNegative

__all__ = ["Delayed", "DelayedOptions"]


class DelayedOptions(Options, frozen=True, kw_only=True, tag="delayed"):
    """Asynchronous pipeline without a flush: true gradients, late."""

    repeatable: ClassVar[bool] = False  # what an update sees goes by when messages arrive
    synchronous: ClassVar[bool] = False
    decoupled: ClassVar[bool] = False
    cycle: ClassVar[Cycle | None] = Cycle(lag=True)
    waits_for: ClassVar[str] = "no stage may be farther ahead of the gradients that it awaits"
    ahead: ClassVar[bool] = True
    one_by_one: ClassVar[Mapping[str, object]] = {"anneal_epochs": 0}

    # which weights a backward goes through: those of the batch's own forward, or today's
    weights: Literal["stash", "current"] = "stash"
    # [updates] run the forward with weights moved on by this many times the last update
    look_ahead: NonNegative = 0.0
    # divide learning rates by the staleness, with an effect that fades over these epochs
    anneal_epochs: NonNegative = 0.0
    split_backward: bool = True

    def rule(self, role: Role) -> Delayed:
        return Delayed(split_backward=self.split_backward)

    def lag_usual(self, depth: int) -> int:
        return depth

    def late(self, ahead: bool) -> Late:
        weights = self.weights if ahead else "current"  # weights are kept for nobody
        return Late(weights, self.look_ahead, self.anneal_epochs)


@dataclass(frozen=True, slots=True)
class Delayed:
    """One backward and update for each gradient that comes, in the order in which they come."""

    split_backward: bool = True

    def next_op(self, view: View) -> Op | None:
        flight = _returned(view)
        if flight is not None:
            return step_back(flight, split=self.split_backward, send=view.has_producers)
        for batch in view.hopeless:
            return Op(OpKind.DROP, batch, last=True)
        return Op(OpKind.FORWARD, view.ready[0]) if view.ready else None

    def may_read(self, view: View) -> bool:
        return True


def _returned(view: View) -> Flight | None:
    """The batch in flight whose gradient came first; that of a loss is here with the forward."""
    if view.arrived:
        return view.flights[view.arrived[0]]
    return None if view.has_consumers else view.newest
