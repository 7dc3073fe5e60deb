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

Gradients of `accumulate` batches may make one update (PACI: arXiv 2606.07881). A gradient then
meets fewer updates on its way: of a stage that is ahead by `lag` batches, at most
ceil(lag / accumulate) lie between a batch's forward and its backward. In a pipeline of N stages
that is ceil((N - 1) / accumulate); with two batches an update, as here, 1 where it was 2:

```
stage 0  F0 F1 F2 .  .  B0 F3 .  B1 U1 F4 .  B2 F5 .  B3 U3 .  .  B4 .  .  B5 U5
stage 1  .  F0 F1 .  b0 W0 F2 b1 W1 U1 F3 b2 W2 F4 b3 W3 U3 F5 b4 W4 .  b5 W5 U5
stage 2  .  .  F0 b0 W0 F1 b1 W1 U1 F2 b2 W2 F3 b3 W3 U3 F4 b4 W4 F5 b5 W5 U5 .
```

(An epoch's last update may have fewer batches, and then adds one to the bound where no barrier is
there.)

PipeDream-2BW's double buffer (Narayanan et al. 2021, arXiv 2006.09503, section 3.1), `weights =
"double"`: forward and backward of all batches of an update go through the weights before the last
update, at every stage, W(t+1) = W(t) - rate * gradient(W(t-1)). So each stage keeps two versions of
its weights, however many stages there are, and results do not depend on when messages arrive. A
stage waits before it forwards a batch while the update before the last one is still to be made;
with no fewer batches an update than there are stages below, that never happens in an even pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from asyncdni.schedules.base import Flight, Groups, Op, OpKind, View, step_back
from asyncdni.schedules.options import Cycle, Late, Options, Role, Weights
from asyncdni.tables import Count, NonNegative

__all__ = ["Delayed", "DelayedOptions"]


class DelayedOptions(Options, frozen=True, kw_only=True, tag="delayed"):
    """Asynchronous pipeline without a flush: true gradients, late."""

    repeatable: ClassVar[bool] = True
    repeatable_if: ClassVar[str] = 'with weights = "double", while no worker dies'
    synchronous: ClassVar[bool] = False
    decoupled: ClassVar[bool] = False
    cycle: ClassVar[Cycle | None] = Cycle(lag=True)
    waits_for: ClassVar[str] = "no stage may be farther ahead of the gradients that it awaits"
    ahead: ClassVar[bool] = True
    one_by_one: ClassVar[Mapping[str, object]] = {"anneal_epochs": 0, "accumulate": 1}

    # which weights a backward goes through: those of the batch's own forward, today's, or the older
    # of two versions; see `options.Weights`
    weights: Weights = "stash"
    accumulate: Count = 1  # batches whose gradients make one update
    # [updates] run the forward with weights moved on by this many times the last update
    look_ahead: NonNegative = 0.0
    # divide learning rates by the staleness, with an effect that fades over these epochs
    anneal_epochs: NonNegative = 0.0
    split_backward: bool = True

    def rule(self, role: Role) -> Delayed:
        return Delayed(
            role.groups, split_backward=self.split_backward, double=self.weights == "double"
        )

    def lag_usual(self, depth: int) -> int:
        return depth

    def late(self, ahead: bool) -> Late:
        # Where no stage is ahead, weights need not be kept, unless all go through older ones.
        weights = self.weights if ahead or self.weights == "double" else "current"
        return Late(weights, self.look_ahead, self.anneal_epochs)

    @property
    def repeats(self) -> bool:
        return self.weights == "double"  # else what an update sees goes by when messages arrive

    def conflicts(self) -> Iterator[str]:
        if self.weights != "double":
            return
        if self.accumulate == 1:
            yield (
                'schedule.weights: "double" keeps two versions of the weights, which suffice only '
                "where several batches make one update; expected schedule.accumulate of 2 or more, "
                "best as many as there are stages below the first"
            )
        if self.look_ahead:
            yield (
                f'schedule.look_ahead: {self.look_ahead:g} with weights = "double", whose forwards '
                "go through the weights before the last update; expected 0"
            )


_EACH = Groups(1, 0)  # each batch makes an update


@dataclass(frozen=True, slots=True)
class Delayed:
    """One backward for each gradient that comes, in the order in which they come; one update behind
    that of each group's last batch."""

    groups: Groups = _EACH
    split_backward: bool = True
    double: bool = False  # wait for the weights that two versions have room for

    def next_op(self, view: View) -> Op | None:
        flight = _returned(view)
        if flight is not None:
            return self._back(flight, view.has_producers)
        for batch in view.hopeless:
            return Op(OpKind.DROP, batch, last=True)
        if view.ready and self._may_forward(view.ready[0], view):
            return Op(OpKind.FORWARD, view.ready[0])
        if view.unapplied and view.closed and not view.flights and not view.queued:
            return Op(OpKind.UPDATE, view.last)  # the group's last gradient was a hopeless one
        return None

    def may_read(self, view: View) -> bool:
        return True

    def _back(self, flight: Flight, send: bool) -> Op:
        op = step_back(flight, split=self.split_backward, send=send)
        if self.groups.ends(flight.batch):
            return op
        learns = op.kind is OpKind.LEARN or op.learn
        return op._replace(last=learns)  # its part of the sum is all that is still needed

    def _may_forward(self, batch: int, view: View) -> bool:
        """Whether the updates up to the one before the last, from the batch's point of view, are
        made. Each is made with the last flight of its group."""
        if not self.double or not view.flights:
            return True
        oldest = next(iter(view.flights))
        return self.groups.index(oldest) >= self.groups.index(batch) - 1


def _returned(view: View) -> Flight | None:
    """The batch in flight whose gradient came first; that of a loss is here with the forward."""
    if view.arrived:
        return view.flights[view.arrived[0]]
    return None if view.has_consumers else view.newest
