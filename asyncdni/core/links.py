"""All links of one worker: flow control by credit.

Credit says how many activations a producer may send ahead on one link. Counts are cumulative, so
duplicates do no harm and `taken` doubles as the acknowledgement. A consumer counts an activation as
taken when its forward starts, and then allows `window` more:

```
producer  sent 1 2 3 4 │ out of credit │ 5 6 │ …
consumer               taken 2: allowed 6 ──► taken 4: allowed 8 ──►
```

`window = "auto"` is round trip x rate + 2: too small starves a long link, too large only adds
staleness. The round trip is measured from a grant to the arrival of the first activation that had
to wait for it; the smallest of the last few, since noise only adds to it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator

from asyncdni.core.position import Position
from asyncdni.messages import DATA

__all__ = ["Incoming", "Links", "Outgoing", "initial_window"]

_INITIAL_WINDOW = 4
_ROUND_TRIPS_KEPT = 16
_RATE_MEMORY = 0.9


def initial_window(window: int | str, window_max: int) -> int:
    """What both ends start from, before anything has been measured."""
    return window if isinstance(window, int) else min(_INITIAL_WINDOW, window_max)


class Outgoing:
    """The producing end of a link."""

    __slots__ = ("allowed", "sent", "taken", "waited", "widest")

    def __init__(self, window: int | str, window_max: int) -> None:
        self.widest = window if isinstance(window, int) else window_max
        self.sent = 0
        self.taken = 0
        self.allowed = initial_window(window, window_max)
        self.waited = False  # had nothing else to do while out of credit, since the last send

    def may_send(self) -> bool:
        return self.sent < self.allowed

    def idle(self) -> None:
        """The producer has nothing to do: without credit, that is what it waits for."""
        self.waited = self.waited or not self.may_send()

    def fits(self, taken: int, allowed: int) -> bool:
        """The other end can have taken so many, and allow so many more."""
        return 0 <= taken <= self.sent and allowed <= taken + self.widest

    def granted(self, taken: int, allowed: int) -> None:
        self.taken = max(self.taken, taken)
        self.allowed = max(self.allowed, allowed)

    def check(self) -> None:
        assert self.taken <= self.sent <= self.allowed, (self.taken, self.sent, self.allowed)


class Incoming:
    """The consuming end of a link."""

    __slots__ = (
        "_auto",
        "_grants",
        "_interval_s",
        "_round_trips",
        "_taken_at",
        "_window_max",
        "allowed",
        "received",
        "taken",
        "window",
    )

    def __init__(self, window: int | str, window_max: int) -> None:
        self._auto = not isinstance(window, int)
        self.window = initial_window(window, window_max)
        self._window_max = window_max
        self.received = 0
        self.taken = 0
        self.allowed = self.window
        self._grants: deque[tuple[int, float]] = deque()  # (allowed, when)
        self._round_trips: deque[float] = deque(maxlen=_ROUND_TRIPS_KEPT)
        self._interval_s = 0.0  # between forwards, smoothed
        self._taken_at: float | None = None

    def arrived(self, waited: bool, now: float) -> None:
        """One more activation is here; `waited`: its sender had been out of credit."""
        self.received += 1
        granted_at = None
        while self._grants and self._grants[0][0] < self.received:
            self._grants.popleft()
        if self._grants:
            granted_at = self._grants[0][1]
        if self._auto and waited and granted_at is not None:
            self._round_trips.append(now - granted_at)
            self._resize()

    def take(self, now: float) -> bool:
        """A forward starts; True where it is time to tell the producer."""
        self.taken += 1
        if self._auto and self._taken_at is not None:
            interval_s = now - self._taken_at
            memory = _RATE_MEMORY if self._interval_s else 0.0
            self._interval_s = memory * self._interval_s + (1 - memory) * interval_s
        self._taken_at = now
        due = self.taken + self.window
        if due - self.allowed < _held_back(self.window):
            return False
        self.allowed = due
        self._grants.append((due, now))
        return True

    def pause(self) -> None:
        """The gap before the next forward (a barrier, a test) says nothing about the rate."""
        self._taken_at = None

    def check(self) -> None:
        assert self.taken <= self.received <= self.allowed, (
            self.taken,
            self.received,
            self.allowed,
        )

    def _resize(self) -> None:
        if self._interval_s > 0:
            needed = math.ceil(min(self._round_trips) / self._interval_s) + 2
            needed += _held_back(needed)
            self.window = max(self.window, min(self._window_max, needed))


def _held_back(window: int) -> int:
    """Grants are given this many at a time, so that not every batch costs a message."""
    return max(1, min(window // 2, 2 + window // 8))


class Links:
    """Credit by link, from a producing node (a worker's stage, or the data) to a worker."""

    def __init__(self, position: Position, window: int | str, window_max: int) -> None:
        """Where tests flow among training batches they have a credit of their own: one that waits
        for the other could not let it pass."""
        everyone = (*position.feeds, *position.train_feeds)
        self._consumers = {position.name: position.consumers, DATA: everyone}
        self._testers = {position.name: position.consumers, DATA: position.feeds}
        self._lost: set[str] = set()
        self.incoming = {node: Incoming(window, window_max) for node in position.inputs}
        self.outgoing = {
            (node, to): Outgoing(window, window_max)
            for node, consumers in self._consumers.items()
            for to in consumers
        }
        self.tests_in, self.tests_out = self.incoming, self.outgoing
        if position.marks:
            first = initial_window(window, window_max)
            self.tests_in = {node: Incoming(first, first) for node in self.incoming}
            self.tests_out = {link: Outgoing(first, first) for link in self.outgoing}

    def consumers(self, node: str, *, evaluate: bool = False) -> tuple[str, ...]:
        """The workers that take what this node of ours produces."""
        return (self._testers if evaluate else self._consumers)[node]

    def may_send(self, node: str, *, evaluate: bool = False) -> bool:
        """Every consumer of the node grants credit."""
        consumers = self.consumers(node, evaluate=evaluate)
        links = self.tests_out if evaluate else self.outgoing
        return all([links[node, to].may_send() or to in self._lost for to in consumers])

    def takes(self, node: str, to: str, *, waits: bool) -> bool:
        """This consumer lives, and grants credit (`waits`: as it must, for what is sent)."""
        return to not in self._lost and (waits or self.outgoing[node, to].may_send())

    def lose(self, worker: str) -> None:
        """A consumer is dead: send it nothing, and do not wait for its credit."""
        self._lost.add(worker)

    def is_lost(self, worker: str) -> bool:
        return worker in self._lost

    def idle(self) -> None:
        """The worker has nothing to do: if links have no credit, it waits for that."""
        for link in self.outgoing.values():
            link.idle()

    def sent(self, node: str, to: str, *, evaluate: bool = False) -> bool:
        """Count one activation; True where its sending had to wait for credit."""
        link = (self.tests_out if evaluate else self.outgoing)[node, to]
        link.sent += 1
        waited, link.waited = link.waited, False
        return waited

    def take(
        self, now: float, nodes: Iterable[str], *, evaluate: bool = False
    ) -> Iterator[tuple[str, Incoming]]:
        """An op starts on what these nodes have sent; the links whose producer is due a grant."""
        links = self.tests_in if evaluate else self.incoming
        for node in nodes:
            link = links[node]
            if link.take(now):
                yield node, link

    def pause(self) -> None:
        """Leave the gap before the next op out of the measured rate of training."""
        for link in self.incoming.values():
            link.pause()

    def window(self) -> int | None:
        """The widest window granted."""
        return max((link.window for link in self.incoming.values()), default=None)

    def check(self) -> None:
        for incoming in (*self.incoming.values(), *self.tests_in.values()):
            incoming.check()
        for outgoing in (*self.outgoing.values(), *self.tests_out.values()):
            outgoing.check()
