"""The most batches a second that arithmetic allows: a runtime without any overhead would reach it.

A worker does one op at a time, and an op's result is there when the whole op is done. Messages are
free, memory is equally fast for all, and up to `cores` workers compute at once. Under these rules
no order of ops is faster than `ceiling`, and no runtime makes up for it by clever sending.

Three things hold a schedule back, and the scarcest decides:

- **cores**: a batch needs so many CPU seconds in all workers together, and no more than `cores` of
  them are done in a second;
- **the slowest worker**: each batch takes all of its ops there, one after the other;
- **locking** (`locked` only): a stage can't forward the next batch before it has updated on this
  one. That closes a circle through every stage, and a batch's period is at least the longest one:

```
stage 0  F0 R1 .  B0 B0 U0 F1 R2 .  B1 B1 U1      B: 2 units of time, all others 1
stage 1  .  F0 b0 W0 U0 .  .  F1 b1 W1 U1 .
         |<---- period --->|                      F of 0, F of 1, b of 1, B of 0, U of 0 = 6
```

From its forward on, a batch goes down to a loss and back by the slowest way, then stage 0 updates:
only then can it begin the next batch. What stage 1 learns and its update (W, U) are off that way,
they overlap with the backward of stage 0 and with the next forward there; so is the reading of the
next batch. The circles through the later stages alone (F, b, W and U of stage 1 here) are shorter
unless their updates are very slow; `ceiling` takes the longest of all. In a network with branches
the way down may go through one branch and the way back through another: both branches must be
through before the join and the fork go on.

Where other workers read the data too, `locked` as it is does not read ahead: it then stays below
its ceiling by one reading.

A decoupled schedule has no such circle: every stage updates at once from its own generator, so
with enough batches on the way only its cores and its slowest worker hold it back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["ceiling", "locked_period"]

#: Seconds of one worker for one training batch, by the letter of the op (`schedules.base`).
Ops = Mapping[str, float]

_LOCKED = "locked"
_DECOUPLED = ("synthetic",)


def ceiling(
    schedule: str,
    costs: Mapping[str, Ops],
    producers: Mapping[str, Sequence[str]],
    cores: int,
) -> float:
    """The most training batches per second that `schedule` can reach on `cores` cores.

    Args:
        schedule: `locked` or `synthetic`.
        costs: by worker, in an order in which producers come first: CPU seconds per training batch
            under this schedule, by op (R F P B W U T b C). An op that is done on every fourth batch
            counts a quarter; evaluation does not belong here.
        producers: by worker, the other workers whose activations it takes; none for those that
            only read data, which may be left out.
        cores: how many workers can compute at the same time.

    For one worker this is 1 / its total, whatever the schedule and the cores: its ops follow one
    another. Raises `ValueError` for an unknown schedule, for producers that are no earlier worker
    of `costs`, for fewer than one core, and for costs that are negative or all zero.
    """
    if schedule != _LOCKED and schedule not in _DECOUPLED:
        known = ", ".join((_LOCKED, *_DECOUPLED))
        raise ValueError(f"no ceiling is known for the schedule {schedule!r}, expected {known}")
    if cores < 1:
        raise ValueError(f"{cores} cores, expected at least 1")
    _check(costs, producers)
    totals = [sum(ops.values()) for ops in costs.values()]
    period = max(max(totals), sum(totals) / cores)
    if schedule == _LOCKED:
        period = max(period, locked_period(costs, producers))
    return 1.0 / period


def locked_period(costs: Mapping[str, Ops], producers: Mapping[str, Sequence[str]]) -> float:
    """Seconds that locking alone sets between two batches: the longest circle (see above).

    Arguments as for `ceiling`; only F, B, b, W and U count, and any number of cores is at hand.
    """
    return max(_circle(name, costs, producers) for name in costs)


def _circle(start: str, costs: Mapping[str, Ops], producers: Mapping[str, Sequence[str]]) -> float:
    """From the forward of `start`, down to a loss, back, and through its update: longest path."""
    down: dict[str, float] = {start: costs[start].get("F", 0.0)}
    for name in costs:  # producers come first
        before = [down[one] for one in producers.get(name, ()) if one in down]
        if before:
            down[name] = max(before) + costs[name].get("F", 0.0)
    # The moment at which each may begin its backward: after its own forward, after all consumers'.
    begin = dict(down)
    for name in reversed(down):
        done = begin[name] + _back(costs[name])
        for one in producers.get(name, ()):
            if one in down:
                begin[one] = max(begin[one], done)
    own = costs[start]
    return begin[start] + _back(own) + own.get("W", 0.0) + own.get("U", 0.0)


def _back(ops: Ops) -> float:
    """Until the producers have their gradient: a whole backward, or the half that they wait for."""
    return ops.get("B", 0.0) + ops.get("b", 0.0)


def _check(costs: Mapping[str, Ops], producers: Mapping[str, Sequence[str]]) -> None:
    seen: set[str] = set()
    for name, ops in costs.items():
        for letter, seconds in ops.items():
            if not 0.0 <= seconds < float("inf"):
                raise ValueError(f"{letter} of {name} takes {seconds} s, expected 0 or more")
        strange = [one for one in producers.get(name, ()) if one not in seen]
        if strange:
            raise ValueError(f"{name} takes activations of {strange[0]}, which is no worker before")
        seen.add(name)
    if not any(seconds for ops in costs.values() for seconds in ops.values()):
        raise ValueError("no op takes any time, expected costs above 0 of at least one worker")
