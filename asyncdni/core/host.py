"""The data as a node of the graph: what its host reads next, and where it sets barriers."""

from __future__ import annotations

from asyncdni.core.position import Position
from asyncdni.schedules.base import Op, OpKind

__all__ = ["Host"]


class Host:
    """Position in the data: training batches in order, the test set after each barrier."""

    def __init__(self, position: Position) -> None:
        self._stops = list(position.barriers)
        self._test_batches = position.test_batches
        self._tested: int | None = None  # test batches read; None: not testing
        self.read = 0  # training batches read; ids are never reused

    def at_barrier(self) -> bool:
        """The plan has a barrier here."""
        return bool(self._stops) and self.read >= self._stops[0]

    def set_barrier(self) -> bool:
        """Take the barrier off the plan; True where it is the last."""
        self._stops.pop(0)
        return not self._stops

    def interrupt(self) -> None:
        """Make the next barrier the last, and have it now."""
        self._stops = [self.read]

    def begin_test(self) -> None:
        self._tested = 0 if self._test_batches else None

    @property
    def testing(self) -> bool:
        return self._tested is not None

    def next_read(self) -> Op:
        """Read the next training batch."""
        return Op(OpKind.READ, self.read)

    def next_test_read(self) -> Op:
        """Read the next test batch."""
        assert self._tested is not None
        last = self._tested + 1 == self._test_batches
        return Op(OpKind.READ, self._tested, evaluate=True, last=last)

    def has_read(self, op: Op) -> None:
        if not op.evaluate:
            self.read += 1
        elif op.last:
            self._tested = None
        else:
            self._tested = op.batch + 1
