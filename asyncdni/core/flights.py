"""Batches in flight at one stage: forwarded, their forward state kept until nothing needs it."""

from __future__ import annotations

from collections import deque
from typing import Any

from asyncdni.schedules.base import Flight, Op, OpKind, Source

__all__ = ["Flights"]


class Flights:
    """What has been done with each batch, whose gradient is here, and how stale it was.

    Staleness is counted in updates of this stage: between a batch's forward and the moment at
    which its true gradient is learned from, or fitted to.
    """

    def __init__(self, consumers: tuple[str, ...]) -> None:
        self._consumers = consumers
        self._gradients: dict[int, dict[str, Any]] = {}  # by batch, then consumer
        self._skipped: set[int] = set()  # some consumer's gradient will not come
        self.by_batch: dict[int, Flight] = {}
        self.newest: Flight | None = None
        self.arrived: deque[int] = deque()
        self.version = 0  # updates so far
        self.unapplied = 0
        self.staleness_sum = 0
        self.staleness_max = 0
        self.staleness_count = 0

    def __len__(self) -> int:
        return len(self.by_batch)

    def forwarded(self, batch: int, samples: int) -> None:
        """A forward is done. Without consumers the true gradient is here at once: the loss."""
        flight = Flight(batch, samples, self.version, arrived=not self._consumers)
        self.by_batch[batch] = self.newest = flight

    def gradient(self, batch: int, consumer: str, tensors: Any) -> bool:
        """One consumer's gradient is here; False where nobody waits for it any more."""
        flight = self.by_batch.get(batch)
        if flight is None:
            return False
        parts = self._gradients.setdefault(batch, {})
        parts[consumer] = tensors
        if len(parts) == len(self._consumers) and not flight.arrived:
            flight.arrived = True
            self.arrived.append(batch)
        return True

    def gave(self, batch: int, consumer: str) -> bool:
        """This consumer's gradient is here, of a batch still in flight."""
        return consumer in self._gradients.get(batch, ())

    def skip(self, batch: int, consumer: str) -> None:
        """No gradient will come from this consumer, beside the one that may be here already."""
        if not self.gave(batch, consumer):
            self._skipped.add(batch)

    def hopeless(self) -> list[int]:
        """Batches to be dropped: skipped, and their own update is done."""
        if not self._skipped:
            return []
        self._skipped.intersection_update(self.by_batch)
        return [batch for batch in sorted(self._skipped) if "U" in self.by_batch[batch].done]

    def gradients(self, batch: int) -> dict[str, Any]:
        """{consuming declared stage: gradient}, worker by worker in declared order."""
        parts = self._gradients.get(batch, {})
        return {
            stage: tensor
            for consumer in self._consumers
            for stage, tensor in parts.get(consumer, {}).items()
        }

    def done(self, op: Op) -> None:
        """An op on a batch in flight is done (or an Update on behalf of none)."""
        flight, kind = self.by_batch.get(op.batch), op.kind
        if flight is not None:
            flight.done += op.letter
        if kind is OpKind.UPDATE:
            self.version += 1
            self.unapplied = 0
        elif kind is OpKind.LEARN or (kind is OpKind.BACKWARD and op.learn):
            self.unapplied += 1
        if flight is not None and _uses_true_gradient(op):
            staleness = self.version - flight.version
            self.staleness_sum += staleness
            self.staleness_count += 1
            self.staleness_max = max(self.staleness_max, staleness)

    def release(self, batch: int) -> None:
        """Forget a batch."""
        del self.by_batch[batch]
        self._gradients.pop(batch, None)
        if batch in self.arrived:
            self.arrived.remove(batch)
        if self.newest is not None and self.newest.batch == batch:
            self.newest = None

    def counters(self) -> dict[str, float | int | None]:
        """For reports."""
        count = self.staleness_count
        return {
            "updates": self.version,
            "in_flight": len(self),
            "staleness_mean": self.staleness_sum / count if count else None,
            "staleness_max": self.staleness_max if count else None,
        }

    def check(self) -> None:
        assert set(self.arrived) <= set(self.by_batch)
        assert set(self._gradients) <= set(self.by_batch)
        for flight in self.by_batch.values():
            assert flight.version <= self.version
            assert flight.done.count("T") <= 1 and flight.done.count("b") <= 1, flight


def _uses_true_gradient(op: Op) -> bool:
    if op.kind is OpKind.FIT or op.kind is OpKind.LEARN:
        return True
    return op.kind is OpKind.BACKWARD and op.learn and op.source is Source.TRUE
