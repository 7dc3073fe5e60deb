"""Virtual time: what is to happen, in the order of its moments."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from asyncdni.core.events import Machine

__all__ = ["Agenda", "Alarm", "Clock"]


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
        self.working = 0  # entries to come that are not idle

    @property
    def next_at(self) -> float | None:
        """The moment of the next entry; None: there is none."""
        return self._heap[0][0] if self._heap else None

    def at(self, time_s: float, what: Callable[[], None], *, idle: bool = False) -> None:
        assert time_s >= self.now, (time_s, self.now)
        self._sequence += 1
        self.working += not idle
        heapq.heappush(self._heap, (time_s, self._sequence, idle, what))

    def after(self, delay_s: float, what: Callable[[], None], *, idle: bool = False) -> None:
        assert delay_s >= 0.0, delay_s
        self._sequence += 1
        self.working += not idle
        heapq.heappush(self._heap, (self.now + delay_s, self._sequence, idle, what))

    def step(self) -> None:
        """Go to the next entry's moment and let it happen."""
        self.now, _, idle, what = heapq.heappop(self._heap)
        self.entries += 1
        if not idle:
            self.working -= 1
            self.progress_at = self.now
        what()


# --- clock ---------------------------------------------------------------------------------------

#: A real clock moves on between a deadline and the next look at it.
_TICK_S = 1e-6


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds since whenever, and by how much too fast they go."""

    offset_s: float = 0.0
    drift: float = 0.0  # 0.01: 1.01 seconds a second

    def reading(self, now: float) -> float:
        """What it shows at `now` of the agenda."""
        return self.offset_s + now * (1.0 + self.drift)

    def moment(self, reading: float) -> float:
        """When, in the agenda's time, it shows that."""
        return (reading - self.offset_s) / (1.0 + self.drift)


class Alarm:
    """A driver's fourth duty: wake a machine once its deadline has passed on its clock."""

    def __init__(
        self, agenda: Agenda, machine: Machine, wake: Callable[[], None], clock: Clock
    ) -> None:
        self._agenda = agenda
        self._machine = machine
        self._wake = wake
        self._clock = clock
        self._set_for: float | None = None

    def reset(self) -> None:
        """After each event: the deadline may have come closer. One further off is seen later."""
        deadline = self._machine.deadline()
        if deadline is None:
            return
        moment = self._clock.moment(deadline)
        if self._set_for is None or moment < self._set_for:
            self._set(max(moment, self._agenda.now + _TICK_S))

    def _set(self, moment: float) -> None:
        self._set_for = moment
        self._agenda.at(moment, partial(self._ring, moment), idle=True)

    def _ring(self, moment: float) -> None:
        if moment != self._set_for:
            return  # an earlier one has been set since
        self._set_for = None
        deadline = self._machine.deadline()
        if deadline is not None and self._clock.reading(self._agenda.now) >= deadline:
            self._wake()
        else:
            self.reset()
