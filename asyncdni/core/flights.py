"""Batches in flight at one stage: forwarded, their forward state kept until nothing needs it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from math import isfinite
from typing import Any

from asyncdni.core.counts import Counts
from asyncdni.schedules.base import Flight, Op, OpKind, Source

__all__ = ["AHEAD_MAX", "Copies", "Flights", "Guard", "Lag", "Shares"]

#: Ops that learn from a gradient; the weights do, or the generator (Fit).
_LEARNING = frozenset({OpKind.BACKWARD, OpKind.LEARN, OpKind.FIT})
#: How far a consumer that predicts its own inputs may be ahead of the stage that sends them: what
#: comes for later batches is let go of.
AHEAD_MAX = 4096


class Flights:
    """What has been done with each batch, whose gradient is here, and how stale it was.

    Staleness is counted in updates of this stage, lag in batches, age in time: each between a
    batch's forward and the moment at which its true gradient is learned from, or fitted to.
    """

    def __init__(self, consumers: tuple[str, ...], counts: Counts | None = None) -> None:
        self._consumers = consumers
        self._counts = counts or Counts()
        self._gradients: dict[int, dict[str, Any]] = {}  # by batch, then consumer
        self._skipped: dict[int, set[str]] = {}  # by batch, consumers whose gradient will not come
        self._forwarded_at: dict[int, tuple[float, int]] = {}  # when, and the last batch then
        self.by_batch: dict[int, Flight] = {}
        self.newest: Flight | None = None
        self.arrived: deque[int] = deque()
        self.last = -1  # the batch forwarded last, or known not to come
        self.last_forwarded = -1
        self.unapplied = 0

    @property
    def version(self) -> int:
        """Updates so far."""
        return self._counts.updates

    def begin(self, start: int) -> None:
        """This batch is the first to come."""
        self.last = self.last_forwarded = start - 1

    def __len__(self) -> int:
        return len(self.by_batch)

    def forwarded(self, batch: int, samples: int, now: float) -> None:
        """A forward is done. Without consumers the true gradient is here at once: the loss."""
        flight = Flight(batch, samples, self.version, arrived=not self._consumers)
        self.by_batch[batch] = self.newest = flight
        if batch > self.last:  # and not a replay
            self.last = self.last_forwarded = batch
            if batch in self._gradients:
                self._note_arrival(flight)
        self._forwarded_at[batch] = now, self.last_forwarded

    def missed(self, batch: int) -> None:
        """A batch does not come to this stage: let go of gradients that are here already."""
        self.last = batch
        self._gradients.pop(batch, None)
        self._skipped.pop(batch, None)

    def gradient(self, batch: int, consumer: str, tensors: Any) -> bool:
        """One consumer's gradient is here, for a batch in flight or still to come; False where
        nobody waits for it any more."""
        flight = self.by_batch.get(batch)
        if flight is None and not self.last < batch <= self.last + AHEAD_MAX:
            return False
        self._gradients.setdefault(batch, {})[consumer] = tensors
        if flight is not None:
            self._note_arrival(flight)
        return True

    def gave(self, batch: int, consumer: str) -> bool:
        """This consumer's gradient is here, of a batch still in flight or to come."""
        return consumer in self._gradients.get(batch, ())

    def skip(self, batch: int, consumer: str) -> None:
        """No gradient will come from this consumer, beside the one that may be here already."""
        waited_for = batch in self.by_batch or self.last < batch <= self.last + AHEAD_MAX
        if waited_for and not self.gave(batch, consumer):
            self._skipped.setdefault(batch, set()).add(consumer)

    @property
    def hopeless(self) -> list[int]:
        """Batches in flight whose true gradient will not come whole."""
        if not self._skipped:
            return []
        return [batch for batch in sorted(self._skipped) if batch in self.by_batch]

    def oldest_owed(self, consumer: str) -> int | None:
        """The oldest batch in flight whose gradient this consumer still has to send."""
        for batch, flight in self.by_batch.items():
            if not flight.arrived and not self.gave(batch, consumer):
                return batch
        return None

    def gradients(self, batch: int) -> dict[str, Any]:
        """{consuming declared stage: gradient}, worker by worker in declared order."""
        parts = self._gradients.get(batch)
        if not parts:
            return {}
        return {
            stage: tensor
            for consumer in self._consumers
            for stage, tensor in parts.get(consumer, {}).items()
        }

    def done(self, op: Op, now: float) -> None:
        """Take note that an op on a batch in flight is done, or an Update on behalf of none."""
        flight, kind = self.by_batch.get(op.batch), op.kind
        if flight is not None:
            flight.done += op.letter
        if kind is OpKind.UPDATE:
            self._counts.updates += 1
            self.unapplied = 0
        elif op.learn and kind in _LEARNING:
            self.unapplied += kind is not OpKind.FIT
            if flight is not None and op.source is Source.TRUE:
                self._note_age(flight, now)

    def _note_age(self, flight: Flight, now: float) -> None:
        """Count how stale a true gradient is that is being learned from."""
        counts = self._counts
        counts.staleness.add(counts.updates - flight.version)
        then, last = self._forwarded_at[flight.batch]
        counts.lag.add(self.last_forwarded - last)
        counts.age_ms.add((now - then) * 1e3)

    def release(self, batch: int) -> None:
        """Forget a batch."""
        del self.by_batch[batch], self._forwarded_at[batch]
        self._gradients.pop(batch, None)
        if self._skipped:
            self._skipped.pop(batch, None)
        if batch in self.arrived:
            self.arrived.remove(batch)
        if self.newest is not None and self.newest.batch == batch:
            self.newest = None

    def lose(self, consumer: str) -> None:
        """A consumer is dead: gradients that it has not sent will not come."""
        for batch, flight in self.by_batch.items():
            if not flight.arrived:
                self.skip(batch, consumer)

    def check(self) -> None:
        assert set(self.arrived) <= set(self.by_batch)
        for early in (*self._gradients, *self._skipped):
            assert early in self.by_batch or self.last < early <= self.last + AHEAD_MAX, early
        for flight in self.by_batch.values():
            assert flight.version <= self.version
            assert flight.done.count("T") <= 1 and flight.done.count("b") <= 1, flight

    def _note_arrival(self, flight: Flight) -> None:
        parts = self._gradients[flight.batch]
        if len(parts) == len(self._consumers) and not flight.arrived:
            flight.arrived = True
            self.arrived.append(flight.batch)


class Lag:
    """The contract on staleness: how far a stage may be ahead of the gradients that it awaits.

    The lag of a link is counted in batches: the one forwarded last minus the oldest one whose
    gradient this consumer still owes. It never exceeds the link's bound; `check` asserts it.

    ```
    forwarded  0 1 2 3 4        bound 3: batch 5 would be 4 ahead of batch 1
    owed         1   3 4        "wait": 5 is not forwarded;  "drop": 1 is given up first
    ```

    `bounds` are by consumer; one that is not among them has no bound.
    """

    def __init__(self, bounds: Mapping[str, int] | None = None, *, drop: bool = False) -> None:
        self.drop = drop  # the oldest batch is given up at the bound; otherwise forwards wait
        self._bounds = dict(bounds or {})
        self.greatest = dict.fromkeys(self._bounds, 0)  # that has been, by consumer

    def carry(self, greatest: dict[str, int]) -> None:
        """Note the greatest lags in this table, which goes on from earlier rounds."""
        for consumer in self._bounds:
            greatest.setdefault(consumer, 0)
        self.greatest = greatest

    def overdue(self, batch: int, flights: Flights) -> int | None:
        """The batch whose gradient keeps `batch` from being forwarded, if there is one."""
        for consumer, bound in self._bounds.items():
            owed = flights.oldest_owed(consumer)
            if owed is not None and batch - owed > bound:
                return owed
        return None

    def forwarded(self, batch: int, flights: Flights) -> None:
        """Take note of the lag that this forward makes."""
        for consumer in self._bounds:
            owed = flights.oldest_owed(consumer)
            if owed is not None and batch - owed > self.greatest[consumer]:
                self.greatest[consumer] = batch - owed

    def check(self, flights: Flights) -> None:
        """Assert that no link is beyond its bound."""
        last = flights.last_forwarded
        overdue = self.overdue(last, flights)
        assert overdue is None, f"batch {last} is too far ahead of batch {overdue}: {self._bounds}"


class Guard:
    """Whether a stage may trust its generator: its mean cosine to the true gradients over a window.

    ```
    above  . . . . . . . . . . . . . . *  . . .     a full window at or over `above`: go on
           *                       *
    below  . . * . . . . . . . * . . . . . . .      a full window under `below`: wait
                   *   *   *
           learns  | waits             | learns at once
    ```

    While `waiting`, the stage learns from true gradients alone. Each change empties the window, so
    that what it was decided by is not used twice.
    """

    def __init__(self, window: int, below: float, above: float) -> None:
        self.waiting = False
        self.mean = 0.0  # of the window that made the last change
        self._below = below
        self._above = above
        self._cosines: deque[float] = deque(maxlen=window)

    def note(self, cosine: float | None) -> bool:
        """One more fit; True where it changes `waiting`. None and NaN agree with nothing."""
        cosines = self._cosines
        cosines.append(cosine if cosine is not None and isfinite(cosine) else 0.0)
        if len(cosines) < (cosines.maxlen or 1):
            return False
        mean = sum(cosines) / len(cosines)
        change = mean >= self._above if self.waiting else mean < self._below
        if change:
            self.waiting = not self.waiting
            self.mean = mean
            cosines.clear()
        return change


class Shares:
    """Gradients of weights that stages of several workers have in common, on their way to one
    update: what this worker has handed over, and what has come from its sharers.

    Each sharer has all of the weights. Its Update hands its own gradients to the others; once
    theirs of the same batch are here as well, an Apply makes the step, the same everywhere. Batches
    are applied in their order. How many a worker may forward beyond the oldest that is not applied
    is bounded; a bound of 0 makes each forward wait for all updates before it.

    ```
                b0      b1      b2                bound 1
     here       U0 ──── U1      F2 waits          handed over: 0, 1
     sharer         U0 ───────────────── U1       came: 0, and later 1
     Apply             A0 F2          … A1
    ```
    """

    def __init__(self, sharers: tuple[str, ...] = (), *, bound: int = 0, ahead: int = 0) -> None:
        """`bound`: see above; `ahead`: the largest bound of any sharer."""
        self.bound = bound
        self.pending: deque[int] = deque()  # batches handed over and not applied, oldest first
        self._ahead = ahead
        self._came: dict[str, dict[int, Any]] = {name: {} for name in sharers}
        self._last = dict.fromkeys(sharers, -1)  # batch that came last, by sharer

    def handed_over(self, batch: int) -> None:
        """This worker's own gradients have been sent to the sharers."""
        assert not self.pending or batch > self.pending[-1], (batch, self.pending)
        self.pending.append(batch)

    def came(self, sharer: str, batch: int, tensors: Any) -> bool:
        """A sharer's gradients; False where it has no part in the weights, comes back to a batch,
        or is further ahead than it can be."""
        held = self._came.get(sharer)
        if held is None or batch <= self._last[sharer]:
            return False
        if len(held) > len(self.pending) + self._ahead:
            return False
        held[batch] = tensors
        self._last[sharer] = batch
        return True

    @property
    def complete(self) -> int | None:
        """The oldest batch handed over, if the gradients of all sharers are here."""
        if not self.pending:
            return None
        batch = self.pending[0]
        return batch if all(batch in held for held in self._came.values()) else None

    def take(self, batch: int) -> dict[str, Any]:
        """What the sharers sent for it: it is being applied."""
        assert batch == self.complete, (batch, self.pending)
        self.pending.popleft()
        return {sharer: held.pop(batch) for sharer, held in self._came.items()}

    def hold(self, batch: int) -> bool:
        """The batch must not be forwarded before older ones have been applied."""
        return bool(self.pending) and batch - self.pending[0] > self.bound

    def check(self, last: int) -> None:
        """`last`: the batch forwarded last."""
        assert list(self.pending) == sorted(set(self.pending)), self.pending
        assert not self.hold(last), f"batch {last} is too far ahead of {self.pending[0]}"
        for sharer, held in self._came.items():
            assert len(held) <= len(self.pending) + self._ahead + 1, (sharer, list(held))
            assert all(batch <= self._last[sharer] for batch in held)


class Copies:
    """Copies of weights that generators of other workers read out through: those that this worker
    owes its readers, and the newest one that has come here.

    Versions are counted in updates of the owner. A reader gets one after every so many, and drops
    what is no newer than what it has.
    """

    def __init__(self, readers: tuple[tuple[str, int], ...] = (), owner: str = "") -> None:
        """`readers`: (worker, every how many updates); `owner`: the worker read from here."""
        self._readers = readers
        self._owner = owner
        self._due = 0  # the version to be copied; 0: none
        self._newest = 0  # the version that came last
        self._came: dict[str, Any] | None = None

    def updated(self, updates: int) -> None:
        """So many updates have been made here."""
        if any(updates % every == 0 for _, every in self._readers):
            self._due = updates

    def copied(self, version: int) -> list[str]:
        """A copy has been taken; return the readers that it is for."""
        self._due = 0
        return [reader for reader, every in self._readers if version % every == 0]

    def came(self, sender: str, version: int, tensors: Any) -> bool:
        """A copy has come; False where the sender has none to give."""
        if not self._owner or sender != self._owner or version < 1:
            return False
        if version > self._newest:
            self._newest, self._came = version, tensors
        return True

    def next_op(self) -> Op | None:
        """What is to be done before anything else, if no op is under way."""
        if self._due:
            return Op(OpKind.COPY, self._due)
        return Op(OpKind.ADOPT, self._newest) if self._came is not None else None

    def take(self) -> dict[str, Any]:
        """Return the copy that came, {owner: tensors}: it is being taken over."""
        assert self._came is not None
        came, self._came = self._came, None
        return {self._owner: came}
