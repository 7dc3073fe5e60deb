"""Whether all links of a worker carry something, before anybody trains: greetings, both ways.

Each worker of a round greets all its neighbours until the round starts. One that has heard them all
is ready; so once all are ready, every link has been proven in each direction, to the very process
that is meant. A worker that has waited for too long tells the coordinator whom it has not heard.

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

from asyncdni.core.post import Post

__all__ = ["PATIENCE_S", "Greetings"]

#: How long a neighbour may take before the coordinator is told that it is not heard.
PATIENCE_S = 5.0
#: Seconds between two greetings: one is lost with the connection that it was sent over.
_AGAIN_S = 1.0


class Greetings:
    """Whom a worker has heard in this round, and when it has to say something about that."""

    def __init__(self, post: Post, patience_s: float) -> None:
        """`patience_s`: after so long the coordinator is told of those who have not been heard."""
        self._post = post
        self._patience_s = patience_s
        self._neighbours: tuple[str, ...] = ()
        self._unheard: set[str] = set()
        self._due = -math.inf  # when to greet next
        self._patient_until: float | None = None  # None: nobody has been greeted yet
        self._ready = False  # the coordinator has been told
        self._told: list[str] = []  # neighbours of whom the coordinator knows that they are unheard

    def begin(self, neighbours: Iterable[str]) -> None:
        """These are to be greeted, and heard."""
        self._neighbours = tuple(neighbours)
        self._unheard = set(self._neighbours)

    def heard(self, worker: str) -> None:
        """A neighbour's greeting has come."""
        self._unheard.discard(worker)
        self._say_if_ready()

    def go_on(self, now: float) -> None:
        """Greet all neighbours if it is time, and tell the coordinator what is new."""
        if now >= self._due:
            if self._patient_until is None:
                self._patient_until = now + self._patience_s
            self._due = now + _AGAIN_S
            self._post.greetings(self._neighbours)
        self._say_if_ready()
        if self._patient_until is not None and now >= self._patient_until:
            self._tell_unheard()

    def deadline(self) -> float:
        return self._due

    def _say_if_ready(self) -> None:
        """Once: when all have been heard, and greeted."""
        if not self._ready and not self._unheard and self._patient_until is not None:
            self._ready = True
            self._post.ready()

    def _tell_unheard(self) -> None:
        unheard = [name for name in self._neighbours if name in self._unheard]
        told, self._told = self._told, unheard
        if unheard and unheard != told:
            self._post.unheard(unheard)
