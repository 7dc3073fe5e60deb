"""What the state of one worker consists of, and what its schedule may know of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asyncdni.core.counts import Counts
from asyncdni.core.flights import Flights, Guard, Lag
from asyncdni.core.inputs import Inputs
from asyncdni.core.links import Links
from asyncdni.core.position import Barriers, Host, Position
from asyncdni.core.shares import Shares
from asyncdni.messages import Connect
from asyncdni.schedules.base import Flight

__all__ = ["Parts", "StageView"]


@dataclass(slots=True)
class Parts:
    """The state of one worker: each subject has one owner, which everybody else asks."""

    position: Position  # where the worker stands in the network
    counts: Counts  # what has been done, over all rounds
    flights: Flights  # batches forwarded and not yet given up
    inputs: Inputs  # batches on their way in
    links: Links  # credit, both ways
    barriers: Barriers  # the current one and the next
    host: Host | None  # position in the data; None: another worker hosts them
    lag: Lag  # the bound on staleness
    guard: Guard | None  # whether the generator can be trusted; None: it always is
    shares: Shares  # gradients of weights that other workers have as well
    skips: bool  # a consumer without credit is skipped instead of waited for

    def begin(self, connect: Connect) -> None:
        """Take note of where the data and the barriers stand as a round begins."""
        self.counts.begin(connect.start)
        self.flights.begin(connect.start)
        self.inputs.begin(connect.start)
        self.barriers.begin(connect.barrier)
        if self.host is not None:
            self.host.begin(connect.planned)

    def lose(self, worker: str) -> None:
        """Wait for nothing from a dead neighbour, and send it nothing, until a new round."""
        self.links.lose(worker)
        if worker in self.position.consumers:
            self.flights.lose(worker)
        for node in self.position.inputs:
            if self.position.home(node) == worker != self.position.name:
                self.inputs.lose(node)

    @property
    def settled(self) -> bool:
        """No batch is in flight, and every gradient has been applied."""
        flights = self.flights
        return not (flights.by_batch or flights.unapplied or self.shares.pending)

    def counters(self) -> dict[str, float | int | None]:
        """For reports: what has been done, and how long the queues are right now."""
        return {
            **self.counts.counters(),
            "queue": len(self.inputs.train),
            "in_flight": len(self.flights),
            "waiting": int(self.guard is not None and self.guard.waiting),
            "window": self.links.window(),
        }

    def check(self) -> None:
        """Assert every invariant of the parts."""
        for part in (self.flights, self.inputs, self.links):
            part.check()
        self.lag.check(self.flights)
        self.shares.check(self.flights.last_forwarded)
        if self.host is not None:
            assert self.counts.position <= self.host.read


class StageView:
    """What a schedule may know of a worker: see `schedules.base.View`.

    Collections are those of their owners, so that a schedule reads them without a call."""

    def __init__(self, parts: Parts) -> None:
        position = parts.position
        self._name = position.name
        self._parts = parts
        self._flights = parts.flights
        self._inbox = parts.inputs.train
        self._barriers = parts.barriers
        self.has_consumers = bool(position.consumers)
        self.has_producers = bool(position.producers)
        self.has_readers = bool(position.feeds or position.train_feeds)
        self.flights: Mapping[int, Flight] = parts.flights.by_batch
        self.arrived: Sequence[int] = parts.flights.arrived
        self.true_inputs: Sequence[int] = parts.inputs.true.ready

    @property
    def ready(self) -> Sequence[int]:
        ready, parts = self._inbox.ready, self._parts
        if not ready or not (parts.skips or parts.links.may_send(self._name)):
            return ()
        held = not parts.lag.drop and parts.lag.overdue(ready[0], self._flights) is not None
        if held or (parts.shares.pending and parts.shares.hold(ready[0])):
            return ()
        return ready

    @property
    def queued(self) -> int:
        return len(self._inbox)

    @property
    def last(self) -> int:
        return self._flights.last

    @property
    def newest(self) -> Flight | None:
        return self._flights.newest

    @property
    def hopeless(self) -> Sequence[int]:
        return self._flights.hopeless

    @property
    def replayable(self) -> Sequence[int]:
        return self._parts.inputs.replay.preferred

    @property
    def waiting(self) -> bool:
        guard = self._parts.guard
        return guard is not None and guard.waiting

    @property
    def unapplied(self) -> int:
        return self._flights.unapplied

    @property
    def closed(self) -> bool:
        return self._barriers.closed
