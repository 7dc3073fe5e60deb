"""Inputs that a stage keeps to learn from once more while no new one is here."""

from __future__ import annotations

from asyncdni.core.inbox import Arrival

__all__ = ["Replay"]


class Replay:
    """The last `size` inputs, each used at most `uses_max` times, its first use included.

    The least used comes first, the freshest among them (Belilovsky et al. 2019, section 4).
    """

    def __init__(self, size: int, uses_max: int) -> None:
        self._size = size
        self._uses_max = uses_max
        self._kept: dict[int, Arrival] = {}  # oldest first
        self._uses: dict[int, int] = {}

    def keep(self, batch: int, arrival: Arrival) -> None:
        """A new input is being used for the first time."""
        if self._size == 0:
            return
        if len(self._kept) == self._size:
            self._forget(next(iter(self._kept)))
        self._kept[batch] = arrival
        self._uses[batch] = 1

    @property
    def preferred(self) -> tuple[int, ...]:
        """The next one to use, if any is left."""
        if not self._kept:
            return ()
        return (min(self._kept, key=lambda batch: (self._uses[batch], -batch)),)

    def use(self, batch: int) -> Arrival:
        """Once more."""
        arrival = self._kept[batch]
        self._uses[batch] += 1
        if self._uses[batch] >= self._uses_max:
            self._forget(batch)
        return arrival

    def clear(self) -> None:
        """After a barrier old inputs are too old."""
        self._kept.clear()
        self._uses.clear()

    def check(self) -> None:
        assert len(self._kept) <= self._size
        assert self._kept.keys() == self._uses.keys()
        assert all(1 <= uses < self._uses_max for uses in self._uses.values())

    def _forget(self, batch: int) -> None:
        del self._kept[batch], self._uses[batch]
