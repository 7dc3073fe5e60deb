"""GPipe: a synchronous pipeline that flushes (Huang et al. 2019, arXiv 1811.06965, section 2.2).

A batch is cut into microbatches. A stage forwards them all, then goes back through them all, then
updates once on the sum: the result is that of gradient accumulation in one process, to the last
bit. Backwards are in order of the ids and in two halves (see `backward`); W waits until there is
nothing to send. Two batches of three microbatches:

```
stage 0  F0 F1 F2 .  .  .  .  B0 B1 B2 U2 F3 F4 F5 .  .  .  .  .  B3 B4 B5 U5 .  .
stage 1  .  F0 F1 F2 .  .  b0 b1 b2 W0 W1 W2 U2 F3 F4 F5 .  .  b3 b4 b5 W3 W4 W5 U5
stage 2  .  .  F0 F1 F2 b0 b1 b2 W0 W1 W2 U2 .  .  F3 F4 F5 b3 b4 b5 W3 W4 W5 U5 .
```

A column is a unit of time, `.` is waiting. With one microbatch this is `locked`, but for reading
ahead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from asyncdni.schedules.base import Groups, Op, OpKind, View, pushed_back
from asyncdni.schedules.options import Cycle, Options, Role
from asyncdni.tables import Count

__all__ = ["WAITS_FOR_GROUP", "Gpipe", "GpipeOptions", "back", "rest"]

WAITS_FOR_GROUP = (
    "no stage begins a batch before it has updated on the microbatches of the one before"
)


class GpipeOptions(Options, frozen=True, kw_only=True, tag="gpipe"):
    """Synchronous pipeline: all forwards of a batch's microbatches, then all backwards, flush."""

    repeatable: ClassVar[bool] = True
    synchronous: ClassVar[bool] = True
    decoupled: ClassVar[bool] = False
    cycle: ClassVar[Cycle | None] = Cycle(group=True)
    waits_for: ClassVar[str] = WAITS_FOR_GROUP

    # parts that a batch is cut into; data.batch_size must be a multiple of it
    microbatches: Count = 4
    split_backward: bool = True

    def rule(self, role: Role) -> Gpipe:
        return Gpipe(role.groups, split_backward=self.split_backward)

    def lag_needed(self, depth: int) -> int:
        return self.microbatches - 1


@dataclass(frozen=True, slots=True)
class Gpipe:
    """All forwards of a group, all backwards, one update."""

    groups: Groups
    split_backward: bool = True

    def next_op(self, view: View) -> Op | None:
        under_way = view.flights or view.unapplied
        if under_way and self.groups.forwarded(view):
            return back(view, split=self.split_backward) or rest(view)
        return Op(OpKind.FORWARD, view.ready[0]) if view.ready else None

    def may_read(self, view: View) -> bool:
        return True


def back(view: View, *, split: bool) -> Op | None:
    """Push the next gradient back, if it is here."""
    for flight in view.flights.values():
        if not pushed_back(flight):
            send = view.has_producers
            whole = not (split and send)
            op = Op(OpKind.BACKWARD, flight.batch, learn=whole, send=send, last=whole)
            return op if flight.arrived else None
    return None


def rest(view: View) -> Op | None:
    """The second half of the oldest backward; the update once there are none."""
    for flight in view.flights.values():
        return Op(OpKind.LEARN, flight.batch, last=True) if pushed_back(flight) else None
    return Op(OpKind.UPDATE, view.last)
