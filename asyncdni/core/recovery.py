"""Deaths of workers: when each is started again, and when it has died too often.

```
died ──► 0 s ──► died again ──► 0.1 s ──► died again ──► 0.2 s ──► …     without learning
  └───── learns: from 0 s again                            `restarts` times at most
```
"""

from __future__ import annotations

__all__ = ["Recovery"]

_FIRST_WAIT_S = 0.1
_WAIT_MAX_S = 5.0
_DOUBLINGS_MAX = 16  # the wait is at its longest by then


class Recovery:
    """Back-off and limit by worker. A worker that has learned since its last death starts anew."""

    def __init__(self, restarts: int) -> None:
        self._restarts = restarts
        self._in_a_row: dict[str, int] = {}
        self._launch_at: dict[str, float] = {}
        self.down_since: dict[str, float] = {}

    @property
    def is_off(self) -> bool:
        """No death is forgiven."""
        return self._restarts == 0

    def died(self, name: str, now: float) -> bool:
        """False where that was once too often."""
        count = self._in_a_row[name] = self._in_a_row.get(name, 0) + 1
        if count > self._restarts:
            return False
        doublings = min(count - 2, _DOUBLINGS_MAX)
        wait_s = 0.0 if count == 1 else min(_WAIT_MAX_S, _FIRST_WAIT_S * 2.0**doublings)
        self._launch_at[name] = now + wait_s
        self.down_since.setdefault(name, now)
        return True

    def is_known_dead(self, name: str) -> bool:
        """Its death has been dealt with, and no new process has been started yet."""
        return name in self._launch_at

    def learned(self, name: str) -> None:
        """It has done what it was started for."""
        self._in_a_row.pop(name, None)

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
        return self._in_a_row.get(name, 0)

    def back(self, name: str, now: float) -> float:
        """It learns again: for how long it has been away, in seconds."""
        return now - self.down_since.pop(name, now)

    def deadline(self) -> float | None:
        return min(self._launch_at.values(), default=None)
