"""Locked: plain backpropagation, one batch in the whole network at a time.

Forward, update and backward locking as the DNI paper names them (Jaderberg et al. 2016, section 1):
no stage works on another batch before this one has been through the whole network and back. The
backward is in two halves (see `backward`):

```
stage 0  F0 .  .  .  .  B0 U0 F1 .  .  .  .  B1 U1
stage 1  .  F0 .  .  b0 W0 U0 .  F1 .  .  b1 W1 U1
stage 2  .  .  F0 b0 W0 U0 .  .  .  F1 b1 W1 U1 .
```

A column is a unit of time, `.` is waiting; reading data and messages take none.

It is also what a stage does that is locked to its consumers within a decoupled network (a stage's
own `schedule`): it waits for the gradient that they send.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from asyncdni.schedules.base import ALWAYS, Asked, Op, OpKind, View, step_back
from asyncdni.schedules.options import Cycle, Options, Role

__all__ = ["Locked", "LockedOptions"]


class LockedOptions(Options, frozen=True, kw_only=True, tag="locked"):
    """Forward, update and backward locking: no other batch in flight."""

    repeatable: ClassVar[bool] = True
    synchronous: ClassVar[bool] = True
    decoupled: ClassVar[bool] = False
    cycle: ClassVar[Cycle | None] = Cycle()
    waits_for: ClassVar[str] = "no stage begins a batch before it has updated on the one before"
    locks: ClassVar[bool] = True

    split_backward: bool = True  # send the gradient that others wait for before learning from it

    def rule(self, role: Role) -> Locked:
        return Locked(split_backward=self.split_backward, asked=role.asked)


@dataclass(frozen=True, slots=True)
class Locked:
    """The synchronous baseline; its results equal those of one process to the last bit."""

    split_backward: bool = True  # b and W; False: B, as without the idea above
    asked: Asked = ALWAYS  # for gradients, by its producers

    def next_op(self, view: View) -> Op | None:
        for flight in view.flights.values():  # at most one
            if not flight.arrived:
                gone = flight.batch in view.hopeless
                return Op(OpKind.DROP, flight.batch, last=True) if gone else None
            send = view.has_producers and self.asked.of(flight.batch)
            return step_back(flight, split=self.split_backward, send=send)
        return Op(OpKind.FORWARD, view.ready[0]) if view.ready else None

    def may_read(self, view: View) -> bool:
        # A batch in memory disturbs no one, but one that others get is one that they start on.
        return not (view.has_readers and view.flights)
