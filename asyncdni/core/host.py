"""The data as a node of the graph: what its host reads next, and where it sets barriers."""

from __future__ import annotations

from asyncdni.core.barriers import CHECKPOINT, EVALUATE, FINAL
from asyncdni.core.counts import Counts
from asyncdni.core.position import Position
from asyncdni.schedules.base import Op, OpKind

__all__ = ["Host"]


class Host:
    """Position in the data: training batches in order, the test set after each barrier."""

    def __init__(self, position: Position, counts: Counts) -> None:
        self._stops = [
            (batch, _kind(number, position)) for number, batch in enumerate(position.barriers)
        ]
        self._group_ends = position.group_end
        self._test_batches = position.test_batches
        self._tested: int | None = None  # test batches read; None: not testing
        self._reading = False  # a training batch, at this moment
        self._counts = counts

    @property
    def read(self) -> int:
        """Training batches read; ids are never reused."""
        return self._counts.read

    def begin(self, planned: int) -> None:
        """So many barriers of the plan have been lifted; after the last one nothing is read."""
        self._stops = self._stops[planned:] or [(self.read, FINAL)]

    def at_barrier(self) -> bool:
        """The plan has a barrier here."""
        return bool(self._stops) and self.read >= self._stops[0][0]

    def set_barrier(self) -> str:
        """Take the barrier off the plan; its kind."""
        return self._stops.pop(0)[1]

    def close(self, kind: str) -> None:
        """Have a barrier of that kind where the current group of microbatches ends; after a final
        one comes no other."""
        stop = self._group_ends(self.read + self._reading)
        if kind == FINAL:
            self._stops = [(stop, FINAL)]
        elif self._stops and stop < self._stops[0][0]:  # otherwise the plan's does as well
            self._stops.insert(0, (stop, kind))

    def begin_test(self) -> None:
        self._tested = 0 if self._test_batches else None

    @property
    def testing(self) -> bool:
        return self._tested is not None

    def next_read(self) -> Op:
        """Read the next training batch."""
        self._reading = True
        return Op(OpKind.READ, self.read)

    def next_test_read(self) -> Op:
        """Read the next test batch."""
        assert self._tested is not None
        last = self._tested + 1 == self._test_batches
        return Op(OpKind.READ, self._tested, evaluate=True, last=last)

    def has_read(self, op: Op) -> None:
        if not op.evaluate:
            self._counts.read += 1
            self._reading = False
        elif op.last:
            self._tested = None
        else:
            self._tested = op.batch + 1


def _kind(number: int, position: Position) -> str:
    if number == len(position.barriers) - 1:
        return FINAL
    return CHECKPOINT if position.barriers[number] in position.cuts else EVALUATE
