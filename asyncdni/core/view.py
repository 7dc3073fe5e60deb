"""What a worker consists of, and what its schedule and its reports may know of that.

The parts: flights (batches in flight), inputs (batches on their way in), links (credit), barriers,
the host of the data, the bound on lag, weights shared with others, the guard. `core.worker` moves
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asyncdni.core.barriers import Barriers
from asyncdni.core.counts import Counts
from asyncdni.core.flights import Flights
from asyncdni.core.guard import Guard
from asyncdni.core.host import Host
from asyncdni.core.inputs import Inputs
from asyncdni.core.lag import Lag
from asyncdni.core.links import Links
from asyncdni.core.position import Position
from asyncdni.core.replay import Replay
from asyncdni.core.shares import Shares
from asyncdni.schedules.base import Flight

__all__ = ["WorkerView"]


class WorkerView:
    """The state of one worker; what the schedule may know of it is its `View`."""

    def __init__(
        self,
        position: Position,
        *,
        window: int | str,
        window_max: int,
        lag: Lag | None,
        skips: bool,
        replay: Replay | None,
        guard: Guard | None,
        shares: Shares | None,
        counts: Counts | None,
    ) -> None:
        self.position = position
        self.has_loss = position.has_loss
        self.has_consumers = bool(position.consumers)
        self.has_producers = bool(position.producers)
        self.has_readers = bool(position.feeds or position.train_feeds)
        self.counts = counts or Counts()
        self._flights = Flights(position.consumers, self.counts)
        self._links = Links(position, window, window_max)
        self._barriers = Barriers(position.inputs)
        self._host = Host(position, self.counts) if position.hosts_data else None
        self._inputs = Inputs(position, replay)
        self._lag = lag or Lag()
        self._lag.carry(self.counts.lags)
        self._guard = guard
        self._shares = shares or Shares()
        self._skips = skips

    @property
    def ready(self) -> Sequence[int]:
        ready = self._inputs.train.ready
        if not ready or not (self._skips or self._links.may_send(self.position.name)):
            return ()
        held = not self._lag.drop and self._lag.overdue(ready[0], self._flights) is not None
        if held or (self._shares.pending and self._shares.hold(ready[0])):
            return ()
        return ready

    @property
    def queued(self) -> int:
        return len(self._inputs.train)

    @property
    def last(self) -> int:
        return self._flights.last

    @property
    def flights(self) -> Mapping[int, Flight]:
        return self._flights.by_batch

    @property
    def newest(self) -> Flight | None:
        return self._flights.newest

    @property
    def arrived(self) -> Sequence[int]:
        return self._flights.arrived

    @property
    def hopeless(self) -> Sequence[int]:
        return self._flights.hopeless

    @property
    def true_inputs(self) -> Sequence[int]:
        return self._inputs.true_ready

    @property
    def replayable(self) -> Sequence[int]:
        return self._inputs.replay.preferred

    @property
    def waiting(self) -> bool:
        return self._guard is not None and self._guard.waiting

    @property
    def unapplied(self) -> int:
        return self._flights.unapplied

    @property
    def closed(self) -> bool:
        return self._barriers.closed

    def counters(self) -> dict[str, float | int | None]:
        """For reports: what has been done, and how long the queues are right now."""
        return {
            **self.counts.counters(),
            "queue": self.queued,
            "in_flight": len(self._flights),
            "waiting": int(self.waiting),
            "window": self._links.window(),
        }

    def check(self) -> None:
        """Assert every invariant of the parts."""
        for part in (self._flights, self._inputs, self._links):
            part.check()
        self._lag.check(self._flights)
        self._shares.check(self._flights.last_forwarded)
        if self._host is not None:
            assert self.counts.position <= self._host.read
