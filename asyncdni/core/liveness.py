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
from collections.abc import Mapping
from enum import Enum

__all__ = ["Liveness", "Sight", "Standstill"]

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
    UNSEEN = "it is out of sight: on another host, or started by somebody else"


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
        """It has said something."""
        silence_s = now - self._heard.get(name, now)
        self._longest[name] = max(silence_s, _MEMORY * self._longest.get(name, 0.0))
        self.lives(name, now)

    def lives(self, name: str, now: float) -> None:
        """It is known to live, though it has said nothing."""
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
        """The silence of this one that counts as death."""
        return min(self.longest_s, max(self._silence_s, _MARGIN * self._longest[name]))

    @property
    def longest_s(self) -> float:
        """The silence of anybody that counts as death."""
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
        """Something is done about its silence: name it again in a while, and at its limit."""
        limit_s = self.limit_s(name)
        ends, next_s = self._heard[name] + limit_s, now + limit_s / _LOOKS
        self._again[name] = min(ends, next_s) if now < ends else next_s

    def is_death(self, name: str, sight: Sight, now: float) -> bool:
        """What has been seen of a silent one: whether it is dead, or as good as that."""
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
        """Since its last sign of life."""
        return now - self._heard[name]

    def _ends(self, name: str) -> float:
        ends = self._heard[name] + self._doubt * self.limit_s(name)
        return max(ends, self._again.get(name, ends))


# --- standstill ----------------------------------------------------------------------------------
#
# Nothing moves anywhere though every worker shows signs of life: a message has been lost.
#
# ZeroMQ keeps what is sent as long as a connection lasts. Where one breaks, what was on its way is
# gone, and whoever waits for it would wait for ever. Nobody can see which message that was, but all
# can see that no op is done any more.


class Standstill:
    """Watches the count of ops of each worker, and the steps of barriers."""

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
        """All are at a barrier: nobody has to do anything there, and what is done is no progress.
        Those for checkpoints come by the clock, whether anything moves between them or not."""
        self._stood_s = 0.0 if self._moved is None else now - self._moved
        self._moved = now

    def go_on(self, now: float) -> None:
        """The barrier is behind them."""
        self._moved, self._stood_s = now - self._stood_s, 0.0

    def deadline(self) -> float | None:
        return None if self._moved is None else self._moved + self._limit_s

    def noticed(self, positions: Mapping[str, int], now: float) -> None:
        """Something is done about it; `positions` of the workers in the data."""
        position = min(positions.values(), default=0)
        self.in_a_row = 1 if position > self._position else self.in_a_row + 1
        self._position = max(self._position, position)
        self._moved = now
