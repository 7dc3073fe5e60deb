"""Where the time of a run went, and how close it came to what its own arithmetic allows.

All from the summary of one run. What it lacks, as those of other programs do, is None here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asyncdni.metrics.ceilings import ceiling

__all__ = ["SHARES", "ceiling_samples_per_s", "overhead_cpu", "shares"]

#: Parts of a worker's training time, in the order of tables.
SHARES = ("layers", "generator", "transport", "waiting", "other")

Summary = Mapping[str, Any]


def shares(summary: Summary) -> dict[str, float] | None:
    """Parts of the run's training time by what workers did with it: their mean, summing to 1.

    layers and generator: inside ops. transport: sending and receiving. waiting: for something to
    arrive, and, once through with what is before a barrier, for the others. other: the rest.
    """
    workers, train_s = summary.get("stages") or (), summary.get("train_s") or 0.0
    known = [_seconds(one, train_s) for one in workers if one.get("wall_s") is not None]
    if train_s <= 0 or not known or len(known) < len(workers):
        return None
    parts = [{name: one[name] / sum(one.values()) for name in SHARES} for one in known]
    return {name: sum(part[name] for part in parts) / len(parts) for name in SHARES}


def overhead_cpu(summary: Summary) -> float | None:
    """Part of all workers' CPU time that was spent outside ops: messages, the loop, other threads.

    None where ops have several BLAS threads: only one of them is measured.
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
    """What the CPU times of this run's own ops allow at most; see `ceilings`, arguments and all.

    `producers` maps each worker to those whose activations it takes. None for a single worker, for
    workers with several BLAS threads, and where no ceiling is known for the schedule.
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
    except ValueError:  # a schedule without a known one, or times too short to be read
        return None
    return batches_per_s * float(summary["train_samples"]) / batches


def _costs(ops: Mapping[str, Any], batches: int, microbatches: int) -> dict[str, float]:
    """CPU seconds per batch (per microbatch, where an update takes several) by letter."""
    costs = {letter: op["cpu_s"] / batches for letter, op in ops.items()}
    update = ops.get("U")
    if microbatches > 1 and update and update["count"]:
        # Groups that an epoch's end cuts short have updates of their own: no group needs those.
        costs["U"] = update["cpu_s"] / update["count"] / microbatches
    return costs


def _seconds(worker: Mapping[str, Any], train_s: float) -> dict[str, float]:
    """By `SHARES`. A worker's own clock stops at a barrier that others have yet to reach."""
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
