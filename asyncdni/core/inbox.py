"""Batches on their way in: what has come from which producer, and what is complete."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Arrival", "Inbox"]


@dataclass(slots=True)
class Arrival:
    """The inputs of one batch, as far as they are here."""

    samples: int
    last: bool = False  # of the test set
    tensors: dict[str, Any] = field(default_factory=dict)  # by producing node


class Inbox:
    """Joins the activations of several producers by batch id.

    Each producer sends ids in order and leaves none out, so batches complete in order too.
    """

    def __init__(self, producers: tuple[str, ...]) -> None:
        self._producers = producers
        self._due = dict.fromkeys(producers, 0)  # the id that each must send next
        self._partial: dict[int, Arrival] = {}
        self._complete: dict[int, Arrival] = {}
        self.ready: deque[int] = deque()  # complete and not yet taken, oldest first

    def __len__(self) -> int:
        return len(self._partial) + len(self._complete)

    def add(self, batch: int, node: str, samples: int, tensors: Any, last: bool = False) -> bool:
        """One input of a batch is here; False if another was due, or it is unlike its siblings."""
        arrival = self._partial.setdefault(batch, Arrival(samples, last))
        if batch != self._due[node] or (samples, last) != (arrival.samples, arrival.last):
            return False
        self._due[node] = 0 if last else batch + 1
        arrival.tensors[node] = tensors
        if len(arrival.tensors) == len(self._producers):
            del self._partial[batch]
            self._complete[batch] = arrival
            self.ready.append(batch)
        return True

    def take(self, batch: int) -> Arrival:
        """Hand over a complete batch, inputs in declared order of the producers."""
        self.ready.remove(batch)
        arrival = self._complete.pop(batch)
        arrival.tensors = {node: arrival.tensors[node] for node in self._producers}
        return arrival

    def check(self) -> None:
        assert list(self.ready) == sorted(self.ready), self.ready
        assert set(self.ready) == set(self._complete)
