"""The most batches a second that arithmetic allows: a runtime without any overhead would reach it.

A worker does one op at a time, and an op's result is there when the whole op is done. Memory is
equally fast for all, and up to `cores` workers compute at once. Messages are free, but for the
latency that links are given. Under these rules no order of ops is faster than `ceiling`, and no
runtime makes up for it by clever sending.

Three things hold a schedule back, and the scarcest decides:

- **cores**: a batch needs so many CPU seconds in all workers together, and no more than `cores` of
  them are done in a second;
- **the slowest worker**: each batch takes all of its ops there, one after the other;
- **locking** (but for `synthetic` and `local_loss`): a stage forwards no further before it has
  learned from what it has forwarded. `locking` has the seconds.

A schedule that is decoupled by local gradients updates at once: with enough batches on the way only
its cores and its slowest worker hold it back, and the latency of links does not. (A bound on lag
that is tighter than the way there and back would; it is not counted.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asyncdni.metrics.locking import Ops, locking_period

__all__ = ["SCHEDULES", "ceiling"]

_DECOUPLED = ("local_loss", "synthetic")
#: Those that a ceiling is known for.
SCHEDULES = ("locked", "gpipe", "1f1b", "delayed", *_DECOUPLED)


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
    """The most training batches per second that `schedule` can reach on `cores` cores.

    A batch is what flows through the workers: a microbatch under `gpipe` and `1f1b`.

    Args:
        schedule: one of `SCHEDULES`.
        costs: by worker, in an order in which producers come first: CPU seconds per training batch
            under this schedule, by op (R F P B W U T S b C M). An op that is done on every fourth
            batch counts a quarter, as the one update of four microbatches does; evaluation does not
            belong here.
        producers: by worker, the other workers whose activations it takes; none for those that
            only read data, which may be left out.
        cores: how many workers can compute at the same time.
        microbatches: of a group, under `gpipe` and `1f1b`.
        lag: how many batches a worker may be ahead of the gradients it awaits, under `delayed`; as
            many as there are workers between it and the farthest loss where it is None.
        latency_s: one way, of each message between workers.

    For one worker this is 1 / its total, whatever the schedule and the cores: its ops follow one
    another. Raises `ValueError` for an unknown schedule, for producers that are no earlier worker
    of `costs`, for fewer than one core or microbatch, for a lag or a latency below 0, and for costs
    that are negative or all zero.
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
    if schedule not in _DECOUPLED:
        locked = locking_period(
            schedule, costs, producers, microbatches=microbatches, lag=lag, latency_s=latency_s
        )
        period = max(period, locked)
    return 1.0 / period


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
