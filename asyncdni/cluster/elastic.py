"""Where workers run while machines leave and come back.

```
 home ──► the agent is silent for `away_s` ──► taken over: started elsewhere, from its last state
   ▲                                               │
   └── at the next barrier ◄── the agent is back, and has been for `away_s`
```

Here are decisions alone: `cluster.rendezvous` hears the agents and carries them out. Time is an
argument, in seconds of any clock that does not stand still.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from asyncdni import config
from asyncdni.cluster.placement import Placement, spread

__all__ = ["Elastic", "Host"]

#: Agents are looked after some fifty times a second. Where this process has not done so for longer
#: than this, it was stopped or starved, and may not have heard what agents have said meanwhile.
_GAP_S = 0.5


@dataclass(frozen=True)
class Host:
    """A machine that workers can run on."""

    cores: int
    memory_bytes: int  # 0: not known


@dataclass
class _Presence:
    """Whether the agent of one rank is there."""

    host: Host
    since_s: float  # when it came, or came back
    heard_s: float


class Elastic:
    """Decides which rank runs each worker.

    `home` is the placement of the run, `costs` what each worker costs, in any unit, and `needs` the
    memory in bytes that it needs at least.
    """

    def __init__(
        self,
        options: config.Elastic,
        home: Placement,
        costs: Mapping[str, float],
        needs: Mapping[str, int],
    ) -> None:
        self._options = options
        self._home = dict(home)
        self._costs = costs
        self._needs = needs
        self._ranks: dict[int, _Presence] = {}
        self._looked_s = -math.inf
        self._next: Placement = {}  # of workers that change their rank at the next barrier
        self.where = dict(home)  # the rank of each worker now

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

    def moves(self, now: float) -> Placement:
        """Return the ranks that workers are to change to at the next barrier, each once: those that
        others have taken over go back to their agent, once it has been back for `away_s`."""
        found = {
            name: rank
            for name, rank in self._home.items()
            if {**self.where, **self._next}[name] != rank and self._is_back(rank, now)
        }
        self._next |= found
        return found

    def _is_back(self, rank: int, now: float) -> bool:
        since_s = self._ranks[rank].since_s if self._is_here(rank, now) else now
        return now - since_s >= self._options.away_s

    def starts(self, name: str, now: float) -> int:
        """A worker is about to be started: return the rank that does so."""
        rank = self._next.pop(name, None)
        if rank is not None and self._is_here(rank, now):
            self.where[name] = rank
        return self.where[name]

    def _room(self, now: float) -> dict[int, float]:
        """The memory of each rank that is there, in bytes."""
        return {
            rank: one.host.memory_bytes or math.inf
            for rank, one in self._ranks.items()
            if self._is_here(rank, now)
        }
