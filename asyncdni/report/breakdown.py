"""Where the time of a run went (`shares`), and the speed that the CPU times of its ops allow
(`ceiling`).

All figures come from the summary of one run. A figure is None if the summary lacks what it needs,
as those of other programs do.

The ceiling is the most batches per second that a runtime without any overhead could reach. It
assumes that a worker does one op at a time, that an op's result is there when the whole op is done,
that memory is equally fast for all workers, that up to `cores` of them compute at once, and that
messages cost only the latency of their links. Under these rules no order of ops and no order of
messages is faster than `ceiling`.

Three things limit a schedule, and the scarcest of them decides:

- **cores**: a batch costs the CPU seconds of all workers together, and `cores` workers spend at
  most `cores` CPU seconds per second;
- **the slowest worker**: it does all of its ops on each batch one after the other;
- **locking** (`locking_period`): a stage can't forward the next batch before it has learned from
  earlier ones. Schedules that are decoupled by local gradients (`synthetic`, `local_loss`) update
  at once, so neither locking nor latency limits them. (A bound on lag below the round trip would
  limit them, but is not counted.)

Locking sets the longest circle through the workers of a schedule.

**`locked`**: a stage can't forward the next batch before it has updated on this one. That closes a
circle through every stage, and the period of a batch is at least the longest circle:

```
stage 0  F0 R1 .  B0 B0 U0 F1 R2 .  B1 B1 U1      B: 2 units of time, all others 1
stage 1  .  F0 b0 W0 U0 .  .  F1 b1 W1 U1 .
         |<---- period --->|                      F of 0, F of 1, b of 1, B of 0, U of 0 = 6
```

A batch goes from its forward at stage 0 to a loss and back by the slowest path, then stage 0
updates, and only then can it begin the next batch. The learning and the update of stage 1 (W, U)
are not on that path: they overlap with the backward of stage 0 and with its next forward. So does
the reading of the next batch. The circles through later stages alone (F, b, W and U of stage 1
here) are shorter, unless their updates are very slow. In a network with branches, the way to the
loss may go through one branch and the way back through another: both branches must be done before
the join and the fork go on. Where links have a latency, each step there and each step back takes so
much longer: a chain of n workers loses 2 (n - 1) latencies per batch.

Where other workers read the data too, the runtime's `locked` does not read ahead: it then stays
below its ceiling by one reading.

**`gpipe`, `1f1b`**: the same circle, but for a group of microbatches that end in one update, so it
is divided by their number. Microbatches follow each other to the loss and back, a stage works on
one at a time, and a gradient is sent before W is done. `gpipe` forwards the whole group before the
first backward. In `1f1b` a stage has at most one microbatch more in flight than there are stages
between it and the farthest loss. So `gpipe` pays the latencies of one way there and back per group,
while `1f1b`, which waits for gradients before it sends more, pays them several times.

```
stage 0  F0 F1 F2 .  .  .  .  B0 B0 B1 B1 B2 B2 U
stage 1  .  F0 F1 F2 b0 W0 b1 W1 b2 W2 U  .  .  .       (GPipe; W waits where b can be sent)
```

**`delayed`**: a stage may be `lag` batches ahead of the gradient that it awaits, so `lag` batches
more are on the circle of `locked` at a time. Without latency that is enough to keep it busy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from asyncdni.schedules import SCHEDULES

__all__ = [
    "SHARES",
    "Ops",
    "ceiling",
    "ceiling_samples_per_s",
    "locking_period",
    "overhead_cpu",
    "shares",
]

# --- locking -------------------------------------------------------------------------------------

#: Seconds of one worker for one training batch, by the letter of the op (`schedules.base`).
Ops = Mapping[str, float]
Producers = Mapping[str, Sequence[str]]


def locking_period(
    schedule: str,
    costs: Mapping[str, Ops],
    producers: Producers,
    *,
    microbatches: int = 1,
    lag: int | None = None,
    latency_s: float = 0.0,
) -> float:
    """Return the least seconds between two batches (microbatches) that locking alone allows, on any
    number of cores.

    It is 0 for a `schedule` without a `cycle`, whose stages don't wait for each other. The
    arguments are those of `ceiling`; only F, B, b, W and U count.
    """
    cycle = SCHEDULES[schedule].cycle
    if cycle is None:
        return 0.0
    ahead = _distances(costs, producers)
    longest = 0.0
    for start in costs:
        group = _Group(start, costs, producers, latency_s)
        shared_by = microbatches if cycle.group else 1
        group.go(shared_by, ahead if cycle.narrow else None)
        if cycle.lag:
            shared_by += ahead[start] if lag is None else lag
        longest = max(longest, group.updated() / shared_by)
    return longest


def _distances(costs: Mapping[str, Ops], producers: Producers) -> dict[str, int]:
    """Count the workers after each worker on the longest path to a loss."""
    found = dict.fromkeys(costs, 0)
    for name in reversed(list(costs)):  # consumers come first
        for one in producers.get(name, ()):
            found[one] = max(found[one], found[name] + 1)
    return found


class _Group:
    """The times of a group of microbatches from worker `start` to the losses and back.

    `start` begins its first forward at time 0, and each op is done as early as possible. Workers
    that receive nothing from `start` are left out, as no other waits for them.
    """

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
        """Do all forwards and backwards of `count` microbatches.

        `ahead` is how many microbatches besides one each worker may have in flight; None: all, and
        no backward is done before the last forward.
        """
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
        """Return the time at which `start` has updated: after its last W, and after all of its own
        work."""
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
        """Do the backward of a microbatch once the gradients of all consumers are here, and after
        this worker's forward of microbatch `after`."""
        ops, own, forwarded = self._costs[name], self._pushed_back[name], self._forwarded[name]
        begin = max(forwarded[after], own[-1] if own else 0.0)
        for one in self._consumers[name]:
            begin = max(begin, self._pushed_back[one][index] + self._latency_s)
        # A worker does one op at a time: so many forwards and backwards must have been done.
        first = forwarded[0] - ops.get("F", 0.0)
        busy = first + (index + 1) * (ops.get("F", 0.0) + _back(ops))
        own.append(max(begin + _back(ops), busy))


def _back(ops: Ops) -> float:
    """Return the seconds until the producers have their gradient: a whole backward, or its first
    half."""
    return ops.get("B", 0.0) + ops.get("b", 0.0)


# --- ceilings ------------------------------------------------------------------------------------


def ceiling(
    schedule: str,
    costs: Mapping[str, Ops],
    producers: Mapping[str, Sequence[str]],
    cores: int,
    *,
    microbatches: int = 1,
    lag: int | None = None,
    latency_s: float = 0.0,
) -> float:
    """Return the most training batches per second that `schedule` can reach on `cores` cores.

    A batch is what flows through the workers: a microbatch under `gpipe` and `1f1b`.

    Args:
        schedule: a name in `schedules.SCHEDULES`.
        costs: for each worker, producers first, its CPU seconds per training batch under this
            schedule, by op (R F P B W U T S b C M). An op that is done on every fourth batch counts
            a quarter, as the one update of four microbatches does; evaluation does not count.
        producers: for each worker, the other workers whose activations it takes. Workers that only
            read data have none, and may be left out.
        cores: how many workers can compute at the same time.
        microbatches: how many of them, or of batches under `delayed`, make one update.
        lag: how many batches a worker may be ahead of the gradients it awaits, under `delayed`;
            None: as many as there are workers between it and the farthest loss.
        latency_s: the latency of each message between workers, one way.

    For one worker this is 1 / its total cost, whatever the schedule and the cores: its ops follow
    one another. Raises `ValueError` for an unknown schedule, for producers that are no earlier
    worker of `costs`, for fewer than one core or microbatch, for a lag or a latency below 0, and
    for costs that are negative or all zero.
    """
    if schedule not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise ValueError(f"no ceiling is known for the schedule {schedule!r}, expected {known}")
    for count, what in ((cores, "cores"), (microbatches, "microbatches")):
        if count < 1:
            raise ValueError(f"{count} {what}, expected at least 1")
    if not 0.0 <= latency_s < float("inf") or (lag is not None and lag < 0):
        raise ValueError(f"latency {latency_s} s, lag {lag}, expected 0 or more")
    _check(costs, producers)
    totals = [sum(ops.values()) for ops in costs.values()]
    period = max(max(totals), sum(totals) / cores)
    locked = locking_period(
        schedule, costs, producers, microbatches=microbatches, lag=lag, latency_s=latency_s
    )
    return 1.0 / max(period, locked)


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


# --- shares --------------------------------------------------------------------------------------

#: The parts of a worker's training time, in the order of tables.
SHARES = ("layers", "generator", "transport", "waiting", "other")

Summary = Mapping[str, Any]


def shares(summary: Summary) -> dict[str, float] | None:
    """Return the shares of a run's training time, as means over workers, which sum to 1. None if
    the summary lacks the times.

    layers and generator: time inside ops. transport: sending and receiving. waiting: waiting for
    messages, and at a barrier for the other workers. other: the rest.
    """
    workers, train_s = summary.get("stages") or (), summary.get("train_s") or 0.0
    known = [_seconds(one, train_s) for one in workers if one.get("wall_s") is not None]
    if train_s <= 0 or not known or len(known) < len(workers):
        return None
    parts = [{name: one[name] / sum(one.values()) for name in SHARES} for one in known]
    return {name: sum(part[name] for part in parts) / len(parts) for name in SHARES}


def overhead_cpu(summary: Summary) -> float | None:
    """Return the share of all workers' CPU time that was spent outside of ops: messages, loop,
    other threads.

    None if ops have several BLAS threads: only one of them is measured.
    """
    workers = summary.get("stages") or ()
    if summary.get("threads") != 1 or any(one.get("op_cpu_s") is None for one in workers):
        return None
    cpu_s = sum(one["cpu_s"] for one in workers)
    return (cpu_s - sum(one["op_cpu_s"] for one in workers)) / cpu_s if cpu_s > 0 else None


def ceiling_samples_per_s(
    summary: Summary,
    producers: Mapping[str, Sequence[str]],
    cores: int,
    *,
    microbatches: int = 1,
    lag: int | None = None,
    latency_s: float = 0.0,
) -> float | None:
    """Return the most samples per second that the CPU times of this run's ops allow: see `ceiling`,
    also for the arguments.

    `producers` maps each worker to those whose activations it takes. None for a single worker, for
    workers with several BLAS threads, and for a schedule without a known ceiling.
    """
    workers, batches = summary.get("stages") or (), _batches(summary)
    if len(workers) < 2 or summary.get("threads") != 1 or not batches:
        return None
    costs = {
        one["name"]: _costs(one["ops"], batches, microbatches) for one in workers if one.get("ops")
    }
    if len(costs) < len(workers):
        return None
    try:
        batches_per_s = ceiling(
            *(summary["schedule"], costs, producers, cores),
            microbatches=microbatches,
            lag=lag,
            latency_s=latency_s,
        )
    except ValueError:  # a schedule without a known ceiling, or times too short to be measured
        return None
    return batches_per_s * float(summary["train_samples"]) / batches


def _costs(ops: Mapping[str, Any], batches: int, microbatches: int) -> dict[str, float]:
    """Return CPU seconds by op letter, per batch (per microbatch, if an update takes several)."""
    costs = {letter: op["cpu_s"] / batches for letter, op in ops.items()}
    update = ops.get("U")
    if microbatches > 1 and update and update["count"]:
        # Groups cut short by an epoch's end add updates that whole groups do not need.
        costs["U"] = update["cpu_s"] / update["count"] / microbatches
    return costs


def _seconds(worker: Mapping[str, Any], train_s: float) -> dict[str, float]:
    """Return the seconds of a worker by `SHARES`. A worker's clock stops at a barrier; the rest of
    the training time it waits for the others."""
    wall_s = worker["wall_s"]
    parts = {
        "layers": worker["compute_s"],
        "generator": worker["generator_s"],
        "transport": worker["transport_s"],
        "waiting": worker["wait_s"],
    }
    other = max(0.0, wall_s - sum(parts.values()))
    parts["waiting"] += max(0.0, train_s - wall_s)
    return {**parts, "other": other}


def _batches(summary: Summary) -> int:
    return min((one.get("batches") or 0 for one in summary.get("stages") or ()), default=0)
