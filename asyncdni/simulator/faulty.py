"""Links that fail: partitions, and connections that break.

```
partition   sent ─────────────┤ waits ├──► arrives      TCP sends again until it gets through
break       1 2 3 4 5 on the way ──► 1 2 are lost, 3 is sent twice, 4 5
```

A message is addressed to one process; what was on its way from one that has died may be lost, the
last first, as its queues are gone with it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from asyncdni.messages import Message
from asyncdni.simulator.wires import Deliver, Parcel, Wires

__all__ = ["FaultyWires"]


@dataclass(slots=True, eq=False)
class _Sent:
    """One message on its way."""

    copies: int = 1  # that will arrive


@dataclass(frozen=True, slots=True)
class _Partition:
    one: frozenset[str]  # keys of processes
    other: frozenset[str]
    heals_at: float

    def parts(self, ends: tuple[str, str]) -> bool:
        a, b = ends
        return (a in self.one and b in self.other) or (a in self.other and b in self.one)


class FaultyWires(Wires):
    """`Wires`, with what may happen to them."""

    def __init__(self, *args: Any, delay_s: float = 0.0, jitter_s: float = 0.0, **more: Any):
        """`delay_s`, and evenly drawn up to `jitter_s`: more for every message."""
        super().__init__(*args, **more)
        self._delay_s = delay_s
        self._jitter_s = jitter_s
        self._noise = random.Random(f"{self._seed}/faulty wires")
        self._partitions: list[_Partition] = []
        self._flying: dict[tuple[str, str], deque[_Sent]] = {}

    # --- faults ----------------------------------------------------------------------------------

    def part(self, one: Collection[str], other: Collection[str], for_s: float) -> None:
        """Nothing gets from the processes on one side to those on the other for a while."""
        now = self._agenda.now
        self._partitions = [p for p in self._partitions if p.heals_at > now]
        self._partitions.append(_Partition(frozenset(one), frozenset(other), now + for_s))

    def cut(self, sender: str, to: str, *, duplicate: bool = False) -> int:
        """A connection breaks: the first of what is on its way that way is lost, up to all of it;
        how much."""
        flying = self._on_the_way(sender, to)
        lost = self._noise.randint(0 if duplicate else 1, len(flying)) if flying else 0
        for sent in flying[:lost]:
            sent.copies = 0
        if duplicate and lost < len(flying):
            flying[lost].copies = 2
        return lost

    def carries(self, sender: str, to: str) -> bool:
        """Something is on its way."""
        return bool(self._flying.get((sender, to)))

    def died(self, sender: str) -> None:
        """The last of what a process had sent was still in its own queues."""
        for ends in [one for one in self._flying if one[0] == sender]:
            flying = self._on_the_way(*ends)
            for sent in flying[self._noise.randint(0, len(flying)) :]:
                sent.copies = 0

    def apart(self, one: str, other: str) -> bool:
        return self._heals_at((one, other)) is not None

    # --- messages --------------------------------------------------------------------------------

    def send(
        self,
        sender: str,
        to: str,
        message: Message,
        deliver: Deliver,
        *,
        control: bool,
        ends: tuple[str, str] | None = None,
    ) -> Parcel | None:
        sent = _Sent()
        flying = self._flying.setdefault(ends or (sender, to), deque())
        flying.append(sent)
        land = partial(self._land, flying, sent, deliver)
        return super().send(sender, to, message, land, control=control, ends=ends)

    def _land(self, flying: deque[_Sent], sent: _Sent, deliver: Deliver, message: Message) -> None:
        flying.remove(sent)
        for _ in range(sent.copies):
            deliver(message)

    def _arrival(
        self, sender: str, to: str, leaves: float, control: bool, ends: tuple[str, str]
    ) -> float:
        heals_at = self._heals_at(ends)
        if heals_at is not None:
            leaves = max(leaves, heals_at)
        more_s = self._delay_s
        if self._jitter_s:
            more_s += self._noise.uniform(0.0, self._jitter_s)
        return super()._arrival(sender, to, leaves + more_s, control, ends)

    def _heals_at(self, ends: tuple[str, str]) -> float | None:
        """None where nothing is between them."""
        now = self._agenda.now
        between = [p.heals_at for p in self._partitions if p.heals_at > now and p.parts(ends)]
        return max(between, default=None)

    def _on_the_way(self, sender: str, to: str) -> list[_Sent]:
        return list(self._flying.get((sender, to), ()))
