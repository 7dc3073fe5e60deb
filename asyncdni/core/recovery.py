"""Deaths of workers: when each is started again, and when it has died too often.

```
died ──► 0 s ──► died again ──► 0.1 s ──► died again ──► 0.2 s ──► …     without getting farther
  └───── gets farther than it ever was: from 0 s again                   `restarts` times at most
```

Farther means: its weights have learned from more batches than they had at any death before.
Whoever goes back to a checkpoint, or begins from its last snapshot, learns again what had been
learned before; that alone is no progress, or one that dies at the same batch each time would do so
for ever.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

__all__ = ["Recovery"]

_FIRST_WAIT_S = 0.1
_WAIT_MAX_S = 5.0
_DOUBLINGS_MAX = 16  # the wait is at its longest by then


@dataclass(slots=True)
class _Course:
    """How far one worker has come, over all its processes; by its reports."""

    deaths: int = 0  # without having got farther in between
    farthest: int = -1  # batches behind its weights, at most, when it died; -1: it never has
    learned: int = 0  # batches behind its weights
    position: int = 0  # where it is in the data: batches that it has missed count as well
    stride: int = 0  # batches between two reports of its, at most
    died_at: int = 0  # its last position known before one of those deaths, the farthest one

    def reported(self, learned: int, position: int) -> None:
        self.stride = max(self.stride, position - self.position)
        self.learned, self.position = learned, position
        if learned > self.farthest:
            self.deaths = self.died_at = 0

    def died(self) -> None:
        """It may have come as far as its next report would have said."""
        self.deaths += 1
        self.farthest = max(self.farthest, self.learned + self.stride)
        self.died_at = max(self.died_at, self.position)


class Recovery:
    """Back-off and limit by worker. A worker that gets farther than ever before starts anew."""

    def __init__(self, restarts: int) -> None:
        self._restarts = restarts
        self._courses: dict[str, _Course] = defaultdict(_Course)
        self._launch_at: dict[str, float] = {}
        self.down_since: dict[str, float] = {}

    @property
    def is_off(self) -> bool:
        """No death is forgiven."""
        return self._restarts == 0

    def died(self, name: str, now: float) -> bool:
        """False where that was once too often."""
        course = self._courses[name]
        course.died()
        if course.deaths > self._restarts:
            return False
        doublings = min(course.deaths - 2, _DOUBLINGS_MAX)
        wait_s = 0.0 if course.deaths == 1 else min(_WAIT_MAX_S, _FIRST_WAIT_S * 2.0**doublings)
        self._launch_at[name] = now + wait_s
        self.down_since.setdefault(name, now)
        return True

    def is_known_dead(self, name: str) -> bool:
        """Its death has been dealt with, and no new process has been started yet."""
        return name in self._launch_at

    def begins(self, name: str, position: int) -> None:
        """A round starts there in the data."""
        self._courses[name].position = position

    def reported(self, name: str, learned: int, position: int) -> None:
        """It says how many batches its weights have learned from, and where it is in the data."""
        self._courses[name].reported(learned, position)

    def due(self, now: float) -> list[str]:
        """Whom to start now; once each."""
        due = [name for name, moment in self._launch_at.items() if now >= moment]
        for name in due:
            del self._launch_at[name]
        return due

    def came(self, name: str) -> None:
        """A process for that stage is here, whoever has started it."""
        self._launch_at.pop(name, None)

    def attempt(self, name: str) -> int:
        """Deaths since it has last got farther than before."""
        return self._courses[name].deaths

    def died_at(self, name: str) -> int:
        """The farthest batch that it had reported at one of those deaths; 0: it had not begun."""
        return self._courses[name].died_at

    def back(self, name: str, now: float) -> float:
        """It learns again: for how long it has been away, in seconds."""
        return now - self.down_since.pop(name, now)

    def deadline(self) -> float | None:
        return min(self._launch_at.values(), default=None)
