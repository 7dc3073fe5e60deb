"""Who has shown a sign of life, and since when not.

Signs come at intervals that depend on the machine: a thread on an overloaded host may sleep for
half a second between two. So the limit adapts: silence is death once it has lasted `silence_s` and
is far beyond the longest that this worker has been silent for lately.

And silence is not all that can be known. Busy, starved, hung and dead are different things, which
whoever has started a process can tell apart on its own host:

```
 silent for half the limit ──► Look ─┬─► STARVED: a sign of life as good as a word
   ▲                                 ├─► STILL, twice, and silent for the limit: dead
   └──── an eighth of it later ──────┴─► BUSY or UNSEEN, five times what was asked for: dead
```
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

__all__ = [
    "Liveness",
    "Recovery",
    "Sight",
    "Silence",
    "Standstill",
    "beat_every_s",
    "worker_patience_s",
]

#: A worker sends so many beats in the time after which its silence counts: a few may be lost.
_BEATS = 6

#: Times the longest silence of late that are still no sign of death …
_MARGIN = 3.0
#: … but no more than so many times the limit that was asked for.
_STRETCH_MAX = 5.0
#: How much of the longest silence is remembered with each new sign.
_MEMORY = 0.98
#: Looks at a process in the time of its limit.
_LOOKS = 8.0


class Sight(Enum):
    """What the process of a silent worker looks like from outside."""

    STARVED = "it waits for a core, or for the disk"
    BUSY = "it computes"  # as fast as it can, and all the same its heart does not beat
    STILL = "it is stopped, or waits for something"
    UNSEEN = "it can't be seen: it is on another host, or somebody else started it"


class Liveness:
    """Any message counts as a sign of life; silence beyond the limit counts as death."""

    def __init__(self, silence_s: float, *, doubt: float = 1.0) -> None:
        """`doubt`: the share of its limit after which `silent` names a worker."""
        self._silence_s = silence_s
        self._doubt = doubt
        self._heard: dict[str, float] = {}
        self._longest: dict[str, float] = {}  # silence, fading
        self._again: dict[str, float] = {}  # when to name those again that have been named
        self._still: set[str] = set()  # who was so at the last look
        # Nobody is silent for too long before this: with a thousand workers, to look at each of
        # them after every message would be most of a coordinator's work.
        self._not_before = math.inf

    def heard(self, name: str, now: float) -> None:
        """A worker has said something."""
        silence_s = now - self._heard.get(name, now)
        self._longest[name] = max(silence_s, _MEMORY * self._longest.get(name, 0.0))
        self.lives(name, now)

    def lives(self, name: str, now: float) -> None:
        """A worker is known to live, though it may have said nothing."""
        self._heard[name] = now
        self._again.pop(name, None)
        self._still.discard(name)
        self._not_before = min(self._not_before, now + self._doubt * self._silence_s)

    def forget(self, name: str) -> None:
        for known in (self._heard, self._longest, self._again):
            known.pop(name, None)
        self._still.discard(name)

    def __contains__(self, name: str) -> bool:
        return name in self._heard

    def limit_s(self, name: str) -> float:
        """How long a silence of this worker counts as death."""
        return min(self.longest_s, max(self._silence_s, _MARGIN * self._longest[name]))

    @property
    def longest_s(self) -> float:
        """How long a silence of any worker counts as death."""
        return _STRETCH_MAX * self._silence_s

    def deadline(self) -> float | None:
        """When to ask who is silent: not later than when the next one has been for too long."""
        return self._not_before if self._heard else None

    def silent(self, now: float) -> tuple[str, float] | None:
        """The one whose silence has been too long for the longest, and for how long it was silent;
        None where there is none."""
        if not self._heard or now < self._not_before:
            return None
        name = min(self._heard, key=self._ends)
        self._not_before = self._ends(name)
        return (name, now - self._heard[name]) if now >= self._not_before else None

    def doubted(self, name: str, now: float) -> None:
        """Somebody has a look at a silent worker: name it again in a while, and at its limit."""
        limit_s = self.limit_s(name)
        ends, next_s = self._heard[name] + limit_s, now + limit_s / _LOOKS
        self._again[name] = min(ends, next_s) if now < ends else next_s

    def is_death(self, name: str, sight: Sight, now: float) -> bool:
        """Whether a silent worker is dead, or as good as dead, by what has been seen of it."""
        # One look may fall into the moment between two beats that are on their way.
        twice = name in self._still
        self._still.discard(name)
        match sight:
            case Sight.STARVED:
                self.lives(name, now)
                return False
            case Sight.STILL:
                self._still.add(name)
                return twice and self.silence_s(name, now) >= self.limit_s(name)
            case _:
                return self.silence_s(name, now) >= self.longest_s

    def silence_s(self, name: str, now: float) -> float:
        """How long ago its last sign of life was."""
        return now - self._heard[name]

    def _ends(self, name: str) -> float:
        ends = self._heard[name] + self._doubt * self.limit_s(name)
        return max(ends, self._again.get(name, ends))


#: A worker waits longer for the coordinator than the coordinator waits for a worker: a busy
#: coordinator keeps all workers waiting, and any that gave up would have to be started again.
_PATIENCE = 10.0
_PATIENCE_S_MIN = 3.0


def beat_every_s(silence_s: float) -> float:
    """Return how long a worker waits from one beat to the next, in seconds; `silence_s`: the
    silence that counts as its death."""
    return silence_s / _BEATS


def worker_patience_s(silence_s: float, coordinator_s: float = 0.0) -> float:
    """Return how many seconds a worker waits for a word of a silent coordinator that declares a
    worker dead after `silence_s`: the longest of 3 s, 10 `silence_s` and `coordinator_s`, for which
    it may take another coordinator to come."""
    return max(_PATIENCE_S_MIN, _PATIENCE * silence_s, coordinator_s)


class Silence:
    """Measures for how long a worker has heard nothing from its coordinator, leaving out time in
    which its process could not listen."""

    def __init__(self, limit_s: float, now: float) -> None:
        self._limit_s = limit_s
        self._heard = now
        self._woke = now

    def hear(self, now: float) -> None:
        """Something has come from the coordinator: the silence begins anew."""
        self._heard = now

    def too_long(self, now: float) -> bool:
        """Tell whether the silence is too long. Call it at each wake-up.

        After a long gap between calls the process was stopped (SIGSTOP, a debugger, a laptop's lid)
        or starved of CPU, so the measurement starts anew.
        """
        if now - self._woke > self._limit_s / 2:
            self._heard = now
        self._woke = now
        return now - self._heard > self._limit_s


class Standstill:
    """Whether nothing moves anywhere, though every worker shows signs of life.

    ZeroMQ keeps what is sent as long as a connection lasts. Where one breaks, what was on its way
    is lost, and whoever waits for it would wait for ever. Nobody can see which message that was,
    but all can see that no op is done any more: so this watches the count of ops of each worker,
    and the steps of barriers.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._ops: dict[str, int] = {}
        self._moved: float | None = None
        self._stood_s = 0.0  # before the barrier that they are at
        # Of the worker that was behind all others, at the standstill that was farthest in the data.
        self._position = -1
        self.in_a_row = 0  # standstills without having got farther

    def done(self, name: str, ops: int, now: float) -> None:
        """How many ops a worker says it has done."""
        if self._ops.get(name) != ops:
            self._ops[name] = ops
            self._moved, self._stood_s = now, 0.0

    def moved(self, now: float) -> None:
        """Something else has happened that was waited for."""
        self._moved = now

    def pause(self, now: float) -> None:
        """All are at a barrier, where nobody has to move and where moving is no progress: barriers
        for checkpoints come by the clock, whether anything moves between them or not."""
        self._stood_s = 0.0 if self._moved is None else now - self._moved
        self._moved = now

    def go_on(self, now: float) -> None:
        """The barrier has been lifted."""
        self._moved, self._stood_s = now - self._stood_s, 0.0

    def deadline(self) -> float | None:
        return None if self._moved is None else self._moved + self._limit_s

    def noticed(self, positions: Mapping[str, int], now: float) -> None:
        """Another round is opened because of a standstill; `positions` of workers in the data."""
        position = min(positions.values(), default=0)
        self.in_a_row = 1 if position > self._position else self.in_a_row + 1
        self._position = max(self._position, position)
        self._moved = now


_FIRST_WAIT_S = 0.1
_WAIT_MAX_S = 5.0
_DOUBLINGS_MAX = 16  # the wait is at its longest by then


@dataclass(slots=True)
class _Course:
    """How far one worker has come, over all its processes; by its reports."""

    deaths: int = 0  # without having got farther in between
    farthest: int = -1  # batches behind its weights, at most, when it died; -1: it never has
    learned: int = 0  # batches behind its weights
    position: int = 0  # where it is in the data: batches that it has missed count as well
    stride: int = 0  # batches between two reports of its, at most
    died_at: int = 0  # its last position known before one of those deaths, the farthest one

    def reported(self, learned: int, position: int) -> None:
        self.stride = max(self.stride, position - self.position)
        self.learned, self.position = learned, position
        if learned > self.farthest:
            self.deaths = self.died_at = 0

    def died(self) -> None:
        """Note a death; it may have come as far as its next report would have said."""
        self.deaths += 1
        self.farthest = max(self.farthest, self.learned + self.stride)
        self.died_at = max(self.died_at, self.position)


class Recovery:
    """Deaths of workers: when each is started again, and when it has died too often.

    ```
    died ──► 0 s ──► died again ──► 0.1 s ──► died again ──► 0.2 s ──► …    without getting farther
      └───── gets farther than it ever was: from 0 s again                  `restarts` times at most
    ```

    Farther means: its weights have learned from more batches than they had at any death before.
    A worker that goes back to a checkpoint, or begins from its last snapshot, learns again what had
    been learned before; that alone is no progress, or one that dies at the same batch each time
    would do so for ever.
    """

    def __init__(self, restarts: int) -> None:
        self._restarts = restarts
        self._courses: dict[str, _Course] = defaultdict(_Course)
        self._launch_at: dict[str, float] = {}
        self.down_since: dict[str, float] = {}

    @property
    def is_off(self) -> bool:
        """No death is forgiven."""
        return self._restarts == 0

    def died(self, name: str, now: float) -> bool:
        """Note a death and plan the restart; False if that was one death too many."""
        course = self._courses[name]
        course.died()
        if course.deaths > self._restarts:
            return False
        doublings = min(course.deaths - 2, _DOUBLINGS_MAX)
        wait_s = 0.0 if course.deaths == 1 else min(_WAIT_MAX_S, _FIRST_WAIT_S * 2.0**doublings)
        self._launch_at[name] = now + wait_s
        self.down_since.setdefault(name, now)
        return True

    def left(self, name: str, now: float) -> None:
        """Note that a worker has left in good order, to go on elsewhere; that is no death."""
        self.down_since.setdefault(name, now)

    def is_known_dead(self, name: str) -> bool:
        """Its death has been dealt with, and no new process has been started yet."""
        return name in self._launch_at

    def begins(self, name: str, position: int) -> None:
        """A round starts at this position in the data."""
        self._courses[name].position = position

    def reported(self, name: str, learned: int, position: int) -> None:
        """Note how many batches its weights have learned from, and where it is in the data."""
        self._courses[name].reported(learned, position)

    def due(self, now: float) -> list[str]:
        """Workers to start now; each is named once."""
        due = [name for name, moment in self._launch_at.items() if now >= moment]
        for name in due:
            del self._launch_at[name]
        return due

    def came(self, name: str) -> None:
        """A process for that stage is here, whoever has started it."""
        self._launch_at.pop(name, None)

    def attempt(self, name: str) -> int:
        """Deaths since it has last got farther than before."""
        return self._courses[name].deaths

    def died_at(self, name: str) -> int:
        """The farthest batch that it had reported at one of those deaths; 0: it had not begun."""
        return self._courses[name].died_at

    def back(self, name: str, now: float) -> float:
        """A worker learns again; returns for how long it has been away, in seconds."""
        return now - self.down_since.pop(name, now)

    def deadline(self) -> float | None:
        return min(self._launch_at.values(), default=None)
