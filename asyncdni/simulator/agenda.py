"""Virtual time: what is to happen, in the order of its moments."""

from __future__ import annotations

import heapq
from collections.abc import Callable

__all__ = ["Agenda"]


class Agenda:
    """A heap of (time, sequence, what). What is set for the same moment happens as it was set.

    Entries marked `idle` (beats, wake-ups) are no progress: with nothing else left, a run hangs.
    """

    def __init__(self) -> None:
        self.now = 0.0  # seconds
        self.progress_at = 0.0  # moment of the last entry that was not idle
        self.entries = 0  # that have happened
        self._heap: list[tuple[float, int, bool, Callable[[], None]]] = []
        self._sequence = 0
        self._working = 0  # entries to come that are not idle

    @property
    def next_at(self) -> float | None:
        """The moment of the next entry; None: there is none."""
        return self._heap[0][0] if self._heap else None

    @property
    def only_idle(self) -> bool:
        return not self._working

    def at(self, time_s: float, what: Callable[[], None], *, idle: bool = False) -> None:
        assert time_s >= self.now, (time_s, self.now)
        self._sequence += 1
        self._working += not idle
        heapq.heappush(self._heap, (time_s, self._sequence, idle, what))

    def after(self, delay_s: float, what: Callable[[], None], *, idle: bool = False) -> None:
        assert delay_s >= 0.0, delay_s
        self._sequence += 1
        self._working += not idle
        heapq.heappush(self._heap, (self.now + delay_s, self._sequence, idle, what))

    def step(self) -> None:
        """Go to the next entry's moment and let it happen."""
        self.now, _, idle, what = heapq.heappop(self._heap)
        self.entries += 1
        if not idle:
            self._working -= 1
            self.progress_at = self.now
        what()
