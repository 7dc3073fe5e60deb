"""What waiting for true gradients costs: the longest circle through the workers of a schedule.

**`locked`**: a stage can't forward the next batch before it has updated on this one. That closes a
circle through every stage, and a batch's period is at least the longest one:

```
stage 0  F0 R1 .  B0 B0 U0 F1 R2 .  B1 B1 U1      B: 2 units of time, all others 1
stage 1  .  F0 b0 W0 U0 .  .  F1 b1 W1 U1 .
         |<---- period --->|                      F of 0, F of 1, b of 1, B of 0, U of 0 = 6
```

From its forward on, a batch goes down to a loss and back by the slowest way, then stage 0 updates:
only then can it begin the next batch. What stage 1 learns and its update (W, U) are off that way,
they overlap with the backward of stage 0 and with the next forward there; so is the reading of the
next batch. The circles through the later stages alone (F, b, W and U of stage 1 here) are shorter
unless their updates are very slow; the longest of all counts. In a network with branches the way
down may go through one branch and the way back through another: both branches must be through
before the join and the fork go on. Where links have a latency, each step down and each step back
takes so much longer: a chain of n workers loses 2 (n - 1) latencies a batch.

Where other workers read the data too, `locked` as it is does not read ahead: it then stays below
its ceiling by one reading.

**`gpipe`, `1f1b`**: the same circle, of a group of microbatches that end in one update; per
microbatch it is as many times shorter. They follow each other down and back, each stage takes one
at a time, and a gradient goes up before W is done. `gpipe` forwards the whole group before the
first backward; in `1f1b` a stage has at most one microbatch more under way than there are stages
between it and the farthest loss. So latency costs `gpipe` one way down and back a group, while
`1f1b`, which waits for gradients before it sends more, pays it several times.

```
stage 0  F0 F1 F2 .  .  .  .  B0 B0 B1 B1 B2 B2 U
stage 1  .  F0 F1 F2 b0 W0 b1 W1 b2 W2 U  .  .  .       (GPipe; W waits where b can be sent)
```

**`delayed`**: a stage may be `lag` batches ahead of the gradient that it awaits: so many more are
on the circle of `locked` at a time. Without latency that is enough to be busy all the time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

__all__ = ["Ops", "locking_period"]

#: Seconds of one worker for one training batch, by the letter of the op (`schedules.base`).
Ops = Mapping[str, float]
Producers = Mapping[str, Sequence[str]]

_GROUPED = ("gpipe", "1f1b")


def locking_period(
    schedule: str,
    costs: Mapping[str, Ops],
    producers: Producers,
    *,
    microbatches: int = 1,
    lag: int | None = None,
    latency_s: float = 0.0,
) -> float:
    """Seconds that locking alone sets between two batches (microbatches), on any number of cores.

    `schedule`: `locked`, `gpipe`, `1f1b` or `delayed`. All else as for `ceilings.ceiling`; only
    F, B, b, W and U count.
    """
    ahead = _distances(costs, producers)
    longest = 0.0
    for start in costs:
        group = _Group(start, costs, producers, latency_s)
        if schedule in _GROUPED:
            group.go(microbatches, None if schedule == "gpipe" else ahead)
            shared_by = microbatches
        else:
            group.go(1)
            own = ahead[start] if lag is None else lag
            shared_by = 1 + own if schedule == "delayed" else 1
        longest = max(longest, group.updated() / shared_by)
    return longest


def _distances(costs: Mapping[str, Ops], producers: Producers) -> dict[str, int]:
    """Workers between each and the farthest loss, that one included."""
    found = dict.fromkeys(costs, 0)
    for name in reversed(list(costs)):  # consumers come first
        for one in producers.get(name, ()):
            found[one] = max(found[one], found[name] + 1)
    return found


class _Group:
    """Microbatches from the first forward of `start`, at time 0, down and back, each op at the
    earliest; workers that get nothing from `start` keep nobody waiting."""

    def __init__(
        self, start: str, costs: Mapping[str, Ops], producers: Producers, latency_s: float
    ) -> None:
        self._start, self._costs, self._latency_s = start, costs, latency_s
        self._below = [start]
        self._producers: dict[str, list[str]] = {start: []}
        self._consumers: defaultdict[str, list[str]] = defaultdict(list)
        for name in costs:  # producers come first
            before = [one for one in producers.get(name, ()) if one in self._producers]
            if before and name != start:
                self._below.append(name)
                self._producers[name] = before
                for one in before:
                    self._consumers[one].append(name)
        self._forwarded: dict[str, list[float]] = {name: [] for name in self._below}
        self._pushed_back: dict[str, list[float]] = {name: [] for name in self._below}

    def go(self, count: int, ahead: Mapping[str, int] | None = None) -> None:
        """`ahead`: how many each may have under way besides one; None: all, and no backward is
        done before the last forward."""
        if ahead is None:
            for _ in range(count):
                self._all_forward(count)
            for index in range(count):
                self._all_back(index, after=count - 1)
            return
        for index in range(count):
            for name in self._below:
                self._forward(name, index, ahead[name])
            self._all_back(index, after=index)

    def updated(self) -> float:
        """When `start` has updated: after its last W, and all of its own work."""
        ops, done = self._costs[self._start], self._pushed_back[self._start]
        learned = done[-1] + ops.get("W", 0.0)
        busy = len(done) * (ops.get("F", 0.0) + _back(ops) + ops.get("W", 0.0))
        return max(learned, busy) + len(done) * ops.get("U", 0.0)

    def _all_forward(self, most: int) -> None:
        for name in self._below:
            self._forward(name, len(self._forwarded[name]), most)

    def _all_back(self, index: int, after: int) -> None:
        for name in reversed(self._below):
            self._push_back(name, index, after)

    def _forward(self, name: str, index: int, ahead: int) -> None:
        own = self._forwarded[name]
        begin = own[-1] if own else 0.0
        for one in self._producers[name]:
            begin = max(begin, self._forwarded[one][index] + self._latency_s)
        if index > ahead:
            begin = max(begin, self._pushed_back[name][index - ahead - 1])
        own.append(begin + self._costs[name].get("F", 0.0))

    def _push_back(self, name: str, index: int, after: int) -> None:
        """After the forward of microbatch `after` here, and its gradient from all consumers."""
        ops, own, forwarded = self._costs[name], self._pushed_back[name], self._forwarded[name]
        begin = max(forwarded[after], own[-1] if own else 0.0)
        for one in self._consumers[name]:
            begin = max(begin, self._pushed_back[one][index] + self._latency_s)
        # One op at a time: as many forwards and backwards have been here since the first began.
        first = forwarded[0] - ops.get("F", 0.0)
        busy = first + (index + 1) * (ops.get("F", 0.0) + _back(ops))
        own.append(max(begin + _back(ops), busy))


def _back(ops: Ops) -> float:
    """Until the producers have their gradient: a whole backward, or the half that they wait for."""
    return ops.get("B", 0.0) + ops.get("b", 0.0)
