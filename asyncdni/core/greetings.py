"""Whether all links of a worker carry something, before anybody trains: greetings, both ways.

Each worker of a round greets all its neighbours until the round starts. One that has heard them all
is ready; so once all are ready, every link has been proven in each direction, to the very process
that is meant. One that has waited for too long tells whom it has not heard.

```
 A                B                       coordinator
 │ Greeting ─────►│                             │
 │ x◄─── Greeting │ Ready ────────────────────► │
 │ Unheard(B) ────────────────────────────────► │ "B can't reach A at tcp://…"
```
"""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["PATIENCE_S", "Greetings"]

#: How long a neighbour may take before the coordinator is told that it is not heard.
PATIENCE_S = 5.0

#: A greeting is lost with the connection that it was sent over.
_AGAIN_S = 1.0


class Greetings:
    """Whom a worker has heard in this round, and when it has to say something about that."""

    def __init__(self, patience_s: float) -> None:
        """`patience_s`: after so long the coordinator is told of those who have not been heard."""
        self.ready = False
        self._patience_s = patience_s
        self._neighbours: tuple[str, ...] = ()
        self._unheard: set[str] = set()
        self._due = -math.inf  # when to greet next
        self._patient_until: float | None = None
        self._told: list[str] = []

    def begin(self, neighbours: Iterable[str]) -> None:
        """These are to be greeted, and heard."""
        self._neighbours = tuple(neighbours)
        self._unheard = set(self._neighbours)

    def heard(self, worker: str) -> None:
        self._unheard.discard(worker)

    def complete(self) -> bool:
        """True once: when all have been heard, and greeted."""
        if self.ready or self._unheard or self._patient_until is None:
            return False
        self.ready = True
        return True

    def greet(self, now: float) -> tuple[str, ...]:
        """Whom to greet now; nobody before it is time."""
        if now < self._due:
            return ()
        if self._patient_until is None:
            self._patient_until = now + self._patience_s
        self._due = now + _AGAIN_S
        return self._neighbours

    def tell(self, now: float) -> list[str]:
        """Of whom the coordinator is to be told that nothing has come; empty where there is no news
        of that."""
        if self._patient_until is None or now < self._patient_until:
            return []
        unheard = [name for name in self._neighbours if name in self._unheard]
        told, self._told = self._told, unheard
        return unheard if unheard != told else []

    def deadline(self) -> float:
        return self._due
