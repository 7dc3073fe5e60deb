"""1F1B: the same results as GPipe with fewer microbatches in flight.

A stage goes back through a microbatch as soon as its gradient is here, and forwards no more than it
needs to be busy until then: one more than there are stages between it and the farthest loss
(PipeDream-Flush: Narayanan et al. 2021, arXiv 2006.09503, section 2.2; the order within a flush is
that of PipeDream, Narayanan et al. 2019). First a backward that others wait for, then a forward,
then what only concerns the stage itself (W). Two batches of four microbatches:

```
stage 0  F0 F1 F2 .  .  B0 F3 B1 .  .  B2 .  .  B3 U3 F4 F5 F6 .  .  B4 F7 B5 .  .  B6 .  .  B7 U7
stage 1  .  F0 F1 .  b0 F2 b1 W0 F3 b2 W1 W2 b3 W3 U3 .  F4 F5 .  b4 F6 b5 W4 F7 b6 W5 W6 b7 W7 U7
stage 2  .  .  F0 b0 F1 b1 W0 F2 b2 W1 F3 b3 W2 W3 U3 .  .  F4 b4 F5 b5 W4 F6 b6 W5 F7 b7 W6 W7 U7
```

A column is a unit of time, `.` is waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from asyncdni.schedules.base import Groups, Op, OpKind, View, pushed_back
from asyncdni.schedules.gpipe import WAITS_FOR_GROUP, back, rest
from asyncdni.schedules.options import Cycle, Options, Role
from asyncdni.tables import Count

__all__ = ["OneF1B", "OneF1BOptions"]


class OneF1BOptions(Options, frozen=True, kw_only=True, tag="1f1b"):
    """Synchronous pipeline: one forward, one backward, so that fewer microbatches are in flight."""

    repeatable: ClassVar[bool] = True
    synchronous: ClassVar[bool] = True
    decoupled: ClassVar[bool] = False
    cycle: ClassVar[Cycle | None] = Cycle(group=True, narrow=True)
    waits_for: ClassVar[str] = WAITS_FOR_GROUP

    microbatches: Count = 4
    split_backward: bool = True

    def rule(self, role: Role) -> OneF1B:
        return OneF1B(role.groups, warmup=role.depth, split_backward=self.split_backward)

    def lag_needed(self, depth: int) -> int:
        return min(self.microbatches - 1, depth)


@dataclass(frozen=True, slots=True)
class OneF1B:
    """One forward, one backward; one update a group."""

    groups: Groups
    warmup: int  # forwards ahead of the first backward: stages down to the farthest loss
    split_backward: bool = True

    def next_op(self, view: View) -> Op | None:
        op = back(view, split=self.split_backward)
        if op is not None:
            return op
        forwarded = bool(view.flights or view.unapplied) and self.groups.forwarded(view)
        if view.ready and not forwarded and self._in_flight(view) <= self.warmup:
            return Op(OpKind.FORWARD, view.ready[0])
        return rest(view) if forwarded or view.flights else None

    def may_read(self, view: View) -> bool:
        return True

    def _in_flight(self, view: View) -> int:
        return sum(not pushed_back(flight) for flight in view.flights.values())
