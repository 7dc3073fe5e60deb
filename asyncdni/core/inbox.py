"""Batches on their way in: what has come from which producer, and what is complete."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Arrival", "Inbox"]


@dataclass(slots=True)
class Arrival:
    """The inputs of one batch, as far as they are here."""

    samples: int = 0  # 0: not known, all so far has been skipped
    last: bool = False  # of the test set
    tensors: dict[str, Any] = field(default_factory=dict)  # by producing node
    skipped: int = 0  # producers whose activation will not come


class Inbox:
    """Joins the activations of several producers by batch id.

    Each producer sends ids in order and leaves none out: it says which ones it skips. So batches
    complete in order too, and one that a producer has skipped is void once all have spoken.
    """

    def __init__(self, producers: tuple[str, ...]) -> None:
        self._producers = producers
        self._due = dict.fromkeys(producers, 0)  # the id that each must send next
        self._lost: set[str] = set()  # producers that are dead
        self._partial: dict[int, Arrival] = {}
        self._complete: dict[int, Arrival] = {}
        self.ready: deque[int] = deque()  # complete and not yet taken, oldest first

    def __len__(self) -> int:
        return len(self._partial) + len(self._complete)

    def add(self, batch: int, node: str, samples: int, tensors: Any, last: bool = False) -> bool:
        """One input of a batch is here; False if another was due, or it is unlike its siblings."""
        if batch != self._due[node]:
            return False
        arrival = self._partial.setdefault(batch, Arrival())
        if arrival.samples == 0:
            arrival.samples, arrival.last = samples, last
        elif (samples, last) != (arrival.samples, arrival.last):
            return False
        arrival.tensors[node] = tensors
        self._heard(batch, node, arrival)
        return True

    def skip(self, batch: int, node: str) -> bool:
        """One input of a training batch will not come; False if another was due."""
        if batch != self._due[node]:
            return False
        arrival = self._partial.setdefault(batch, Arrival())
        arrival.skipped += 1
        self._heard(batch, node, arrival)
        return True

    def begin(self, start: int) -> None:
        """This batch is the first to come."""
        self._due = dict.fromkeys(self._due, start)

    def lose(self, node: str) -> None:
        """A producer is dead: what it has not sent, of batches that others have, will not come."""
        self._lost.add(node)
        for batch in sorted(self._partial):
            self._without_lost(batch)

    def take(self, batch: int) -> Arrival:
        """Hand over a complete batch, inputs in declared order of the producers."""
        self.ready.remove(batch)
        arrival = self._complete.pop(batch)
        arrival.tensors = {node: arrival.tensors[node] for node in self._producers}
        return arrival

    def take_void(self) -> tuple[int, tuple[str, ...]] | None:
        """The oldest complete batch, if it is void, and the nodes whose activations came for it."""
        if not self.ready or not self._complete[self.ready[0]].skipped:
            return None
        batch = self.ready.popleft()
        return batch, tuple(self._complete.pop(batch).tensors)

    def check(self) -> None:
        assert list(self.ready) == sorted(self.ready), self.ready
        assert set(self.ready) == set(self._complete)

    def _heard(self, batch: int, node: str, arrival: Arrival) -> None:
        """Of one producer about one batch; `last` ends the test set, whose ids start anew."""
        self._due[node] = 0 if arrival.last else batch + 1
        if len(arrival.tensors) + arrival.skipped == len(self._producers):
            del self._partial[batch]
            self._complete[batch] = arrival
            self.ready.append(batch)
        elif self._lost:
            self._without_lost(batch)

    def _without_lost(self, batch: int) -> None:
        for node in self._lost:
            if batch in self._partial and self._due[node] <= batch:
                arrival = self._partial[batch]
                arrival.skipped += 1
                self._heard(batch, node, arrival)
