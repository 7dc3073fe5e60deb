"""Locked: plain backpropagation, one batch in the whole network at a time.

Forward, update and backward locking as the DNI paper names them (Jaderberg et al. 2016, section 1):
no stage works on another batch before this one has been through the whole network and back. A
stage's update overlaps with the backward of the stages above it, which changes no result.

```
stage 0  F0 .  .  .  .  B0 U0 F1 .  .  .  .  B1 U1
stage 1  .  F0 .  .  B0 U0 .  .  F1 .  .  B1 U1 .
stage 2  .  .  F0 B0 U0 .  .  .  .  F1 B1 U1 .  .
```

A column is a unit of time, `.` is waiting; reading data and messages take none.
"""

from __future__ import annotations

from dataclasses import dataclass

from asyncdni.schedules.base import Op, OpKind, View

__all__ = ["Locked"]


@dataclass(frozen=True, slots=True)
class Locked:
    """The synchronous baseline; its results equal those of one process to the last bit."""

    def next_op(self, view: View) -> Op | None:
        for flight in view.flights.values():  # at most one
            if "B" in flight.done:
                return Op(OpKind.UPDATE, flight.batch, last=True)
            if flight.arrived:
                return Op(OpKind.BACKWARD, flight.batch, send=view.has_producers)
            return None
        return Op(OpKind.FORWARD, view.ready[0]) if view.ready else None

    def may_read(self, view: View) -> bool:
        # A batch in memory disturbs no one, but one that others get is one that they start on.
        return not (view.has_readers and view.flights)
