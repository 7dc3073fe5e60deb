"""Where workers run while machines leave, come back and become slow.

```
 home ──► the agent is silent for `away_s` ──► taken over: started elsewhere, from its last state
   ▲                                               │
   ├── at the next barrier ◄── the agent is back, has been for `away_s`, and is ready
   │
   ├── slow in two windows in a row ──► as many workers as helps go elsewhere at the next barrier
   └── at the next barrier ◄── the window after that was no faster ── or else that is their home now
```

A machine is slow if its workers take longer for a batch than they did in their best window, and so
do not those of other machines: what they take depends on far more than the operations that the
first placement is made by. Which worker goes where is chosen by the time that a batch is to take
then: that of the slowest machine, whose workers share its cores.

Here are decisions alone: `cluster.rendezvous` hears the agents and carries them out. Time is an
argument, in seconds of any clock that does not stand still.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from asyncdni import config
from asyncdni.cluster.placement import Placement, spread

__all__ = ["Elastic", "Host", "Window"]

#: Agents are looked after some fifty times a second. Where this process has not done so for longer
#: than this, it was stopped or starved, and may not have heard what agents have said meanwhile.
_GAP_S = 0.5
#: How long an agent that is back may need to start processes for its workers: sooner they are not
#: given back, as all others would wait for that.
_READY_S = 5.0
#: A machine is slow if it takes so many times as long as the others, each over its own best.
_SLOW = 1.5
#: In so many windows in a row: what is over sooner is not worth a move.
_WINDOWS = 2
#: A move must promise so many times the pace, and have brought this much, or it is taken back …
_PROMISE, _GAIN = 1.1, 1.05
#: … and nothing is tried again for so many windows.
_QUIET_WINDOWS = 20


@dataclass(frozen=True)
class Host:
    """A machine that workers can run on."""

    cores: int
    memory_bytes: int  # 0: not known
    gpus: int = 0


@dataclass
class _Presence:
    """Whether the agent of one rank is there."""

    host: Host
    since_s: float  # when it came, or came back
    heard_s: float


@dataclass(frozen=True)
class Window:
    """A stretch of training with all workers, as it was measured."""

    took_s: Mapping[str, float]  # by each worker for a batch, waiting left out
    per_s: float  # batches through all workers


@dataclass(frozen=True, slots=True)
class _Count:
    """What one worker has reported so far."""

    trained_s: float  # when: by the time of training, of all workers together
    busy_s: float
    batches: int


class _Windows:
    """Makes windows of the coordinator's records; barriers do not count, and what a death or a move
    disturbs begins anew."""

    def __init__(self, workers: int, length_s: float) -> None:
        self._workers = workers
        self._length_s = length_s
        self._trained_s = 0.0
        self._since_s: float | None = None  # when training began or went on; None: it does not
        self._first: dict[str, _Count] = {}
        self._last: dict[str, _Count] = {}

    def observe(self, kind: str, values: Mapping[str, Any]) -> Window | None:
        """Take note of a record; return a window that it completes."""
        now = values["time_s"]
        if kind in ("start", "resume"):
            self._since_s = now
        elif kind == "drained":
            self._trained_s, self._since_s = self._clock_s(now), None
        elif kind in ("lost", "moved", "round"):
            self._begin()
        elif kind == "report" and self._since_s is not None:
            found = values["values"]
            busy_s = (found.get("compute_s") or 0.0) + (found.get("generator_s") or 0.0)
            batches = found.get("batches") or 0
            self._count(values["stage"], _Count(self._clock_s(now), busy_s, batches))
            return self._completed()
        return None

    def _clock_s(self, now: float) -> float:
        return self._trained_s + (now - self._since_s if self._since_s is not None else 0.0)

    def _begin(self) -> None:
        self._first, self._last = {}, {}

    def _count(self, worker: str, count: _Count) -> None:
        if count.batches < self._last.get(worker, count).batches:
            del self._first[worker]  # it counts anew
        self._first.setdefault(worker, count)
        self._last[worker] = count

    def _completed(self) -> Window | None:
        if len(self._last) < self._workers:
            return None
        took_s, per_s = {}, math.inf
        for name, last in self._last.items():
            first = self._first[name]
            batches, trained_s = last.batches - first.batches, last.trained_s - first.trained_s
            if batches <= 0 or trained_s < self._length_s:
                return None
            took_s[name] = (last.busy_s - first.busy_s) / batches
            per_s = min(per_s, batches / trained_s)
        self._begin()
        return Window(took_s, per_s)


@dataclass(frozen=True)
class _Trial:
    """Workers that have been moved off a slow machine: whether that helps is not known yet."""

    workers: tuple[str, ...]
    rank: int  # where they were
    per_s: float  # batches, then


@dataclass
class _Pace:
    """What is known of how fast the machines are."""

    best_s: dict[str, float] = field(default_factory=dict)  # of each worker, for a batch
    slow: Counter[int] = field(default_factory=Counter)  # windows in a row, by rank
    trial: _Trial | None = None
    quiet_until_s: float = -math.inf  # before this nothing is tried


class Elastic:
    """Decides which rank runs each worker.

    `home` is the placement of the run, `costs` what each worker costs, in any unit, `needs` the
    memory in bytes that it needs at least, and `where` the rank that it is on, if not all are at
    home. With `on_gpus`, only machines with a GPU take workers over.
    """

    def __init__(
        self,
        options: config.Elastic,
        home: Placement,
        costs: Mapping[str, float],
        needs: Mapping[str, int],
        where: Placement | None = None,
        *,
        on_gpus: bool = False,
    ) -> None:
        self._options = options
        self._on_gpus = on_gpus
        self._home = dict(home)
        self._costs = costs
        self._needs = needs
        self._ranks: dict[int, _Presence] = {}
        self._looked_s = -math.inf
        self._next: Placement = {}  # of workers that change their rank at the next barrier
        self._windows = _Windows(len(home), options.window_s)
        self._pace = _Pace()
        self._why: dict[str, str] = {}  # why a worker's home has become another rank
        self.where = dict(where or home)  # the rank of each worker now

    # --- who is there ----------------------------------------------------------------------------

    def stays(self, rank: int, host: Host) -> None:
        """The rank of this very process is there for as long as the run."""
        self._ranks[rank] = _Presence(host, -math.inf, math.inf)

    def came(self, rank: int, host: Host, now: float) -> None:
        """An agent has come, for the first time or in place of one that is gone."""
        self._ranks[rank] = _Presence(host, now, now)

    def heard(self, rank: int, now: float) -> None:
        """An agent that has come has said something; if it was held to be gone, it is back."""
        if not self._is_here(rank, now):
            self._ranks[rank].since_s = now
        self._ranks[rank].heard_s = now

    def looked(self, now: float) -> None:
        """All that has arrived has been heard. A time in which this process did not look is no
        silence of anybody's."""
        gap_s, self._looked_s = now - self._looked_s, now
        if _GAP_S < gap_s < math.inf:
            for one in self._ranks.values():
                one.heard_s = max(one.heard_s, min(now, one.heard_s + gap_s))

    def _is_here(self, rank: int, now: float) -> bool:
        return rank in self._ranks and now - self._ranks[rank].heard_s <= self._options.away_s

    # --- who runs what ---------------------------------------------------------------------------

    def taken_over(self, now: float) -> Placement:
        """Return the ranks that take over workers whose agent has left, by worker; `where` has them
        from now on. A worker that fits nowhere else waits for its agent.

        An agent that has never come has not left.
        """
        gone = {rank for rank in self._ranks if not self._is_here(rank, now)}
        lost = [name for name, rank in self.where.items() if rank in gone]
        if not lost:
            return {}
        room = self._room(now)
        found = spread(lost, self.where, self._costs, self._needs, room)
        self.where.update(found)
        for name in found:
            self._next.pop(name, None)
        return found

    def moves(self, now: float) -> list[tuple[str, str]]:
        """Return the workers that are to change their rank at the next barrier, each once, and why:
        those that others have taken over once their agent has been back for `away_s` and is ready,
        and those of slow machines."""
        found = []
        for name, rank in self._home.items():
            if {**self.where, **self._next}[name] != rank and self._is_back(rank, now):
                self._next[name] = rank
                usual = f"{name} goes back to rank {rank}, whose agent is there again"
                found.append((name, self._why.pop(name, usual)))
        return found

    def absent(self, rank: int) -> list[str]:
        """The workers that are to come back to a rank: others have taken them over."""
        return [name for name, home in self._home.items() if home == rank != self.where[name]]

    def _is_back(self, rank: int, now: float) -> bool:
        since_s = self._ranks[rank].since_s if self._is_here(rank, now) else now
        return now - since_s >= max(self._options.away_s, _READY_S)

    def starts(self, name: str, now: float) -> int:
        """A worker is about to be started: return the rank that does so."""
        rank = self._next.pop(name, None)
        if rank is not None and self._is_here(rank, now):
            self.where[name] = rank
        return self.where[name]

    def _room(self, now: float) -> dict[int, float]:
        """The memory of each rank that is there and can run workers, in bytes."""
        return {
            rank: one.host.memory_bytes or math.inf
            for rank, one in self._ranks.items()
            if self._is_here(rank, now) and (one.host.gpus or not self._on_gpus)
        }

    # --- machines that are slow ------------------------------------------------------------------

    def observe(self, kind: str, values: Mapping[str, Any]) -> None:
        """Take note of a record of the coordinator."""
        window = self._windows.observe(kind, values)
        if window is not None:
            self.measured(window, values["time_s"])

    def measured(self, window: Window, now: float) -> None:
        """Judge a move by the window after it, or see whether one is needed."""
        pace = self._pace
        for name, took_s in window.took_s.items():
            pace.best_s[name] = min(took_s, pace.best_s.get(name, took_s))
        if self.where != self._home or not all(self._is_here(rank, now) for rank in self._ranks):
            pace.slow.clear()
        elif pace.trial is not None:
            self._judge(pace.trial, window, now)
        else:
            self._look_for_slow(window, now)

    def _judge(self, trial: _Trial, window: Window, now: float) -> None:
        """Take back moves that have not helped."""
        pace = self._pace
        pace.trial = None
        if window.per_s >= _GAIN * trial.per_s:
            return
        pace.quiet_until_s = now + _QUIET_WINDOWS * self._options.window_s
        for name in trial.workers:
            self._settle(
                name,
                trial.rank,
                f"{name} goes back to rank {trial.rank}: since it left, the run makes "
                f"{window.per_s:.1f} batches a second; before, it made {trial.per_s:.1f}",
            )

    def _look_for_slow(self, window: Window, now: float) -> None:
        pace = self._pace
        slowness = dict.fromkeys(self._ranks, 1.0)  # of a machine without workers: not known
        for rank in set(self.where.values()):
            here = [name for name, there in self.where.items() if there == rank]
            best_s = sum(pace.best_s[name] for name in here)
            slowness[rank] = sum(window.took_s[name] for name in here) / best_s if best_s else 1.0
        for rank, slow in slowness.items():
            others = [one for other, one in slowness.items() if other != rank]
            is_slow = bool(others) and slow >= _SLOW * statistics.median(others)
            pace.slow[rank] = pace.slow[rank] + 1 if is_slow else 0
        rank, windows = max(pace.slow.items(), key=lambda one: one[1])
        if windows < _WINDOWS or now < pace.quiet_until_s:
            return
        targets = self._best_moves(rank, slowness, now)
        if not targets:
            return
        pace.slow.clear()
        pace.trial = _Trial(tuple(targets), rank, window.per_s)
        for name, target in targets.items():
            self._settle(
                name,
                target,
                f"{name} goes from rank {rank} to rank {target}: rank {rank} has become "
                f"{slowness[rank]:.1f} times as slow as it was",
            )

    def _settle(self, name: str, rank: int, why: str) -> None:
        """Give a worker another home, to which it goes at the next barrier."""
        self._home[name] = rank
        self._why[name] = why

    def _best_moves(self, slow: int, slowness: Mapping[int, float], now: float) -> Placement:
        """Return the workers of a slow rank that are best moved, and to which ranks: one after
        another, for as long as that makes a batch quicker. Empty where that promises too little."""
        now_s = least_s = self._slowest_s(self.where, slowness)
        best: Placement = {}
        moved: Placement = {}
        while (chosen := self._next_move(slow, {**self.where, **moved}, slowness, now)) is not None:
            name, rank, slowest_s = chosen
            moved[name] = rank
            if slowest_s < least_s:
                least_s, best = slowest_s, dict(moved)
        return best if now_s >= _PROMISE * least_s else {}

    def _next_move(
        self, slow: int, where: Placement, slowness: Mapping[int, float], now: float
    ) -> tuple[str, int, float] | None:
        """Return the worker that is the best next one to leave a rank, where to, and how long a
        batch takes then, in seconds. None where none can."""
        found: list[tuple[float, float, str, int]] = []
        room = self._room(now)
        for name in (name for name, rank in where.items() if rank == slow):
            for rank in room.keys() - {slow}:
                if spread([name], where, self._costs, self._needs, {rank: room[rank]}):
                    then = {**where, name: rank}
                    times = self._slowest_s(then, slowness), self._batch_s(rank, then, slowness)
                    found.append((*times, name, rank))
        if not found:
            return None
        slowest_s, _, name, rank = min(found)
        return name, rank, slowest_s

    def _slowest_s(self, where: Placement, slowness: Mapping[int, float]) -> float:
        """How long a batch is to take where workers are placed like that, in seconds."""
        return max(self._batch_s(rank, where, slowness) for rank in self._ranks)

    def _batch_s(self, rank: int, where: Placement, slowness: Mapping[int, float]) -> float:
        """How long one machine is to take for a batch, in seconds."""
        own = [self._pace.best_s[name] for name, there in where.items() if there == rank]
        cores = self._ranks[rank].host.cores
        return slowness[rank] * max(max(own, default=0.0), sum(own) / cores)
