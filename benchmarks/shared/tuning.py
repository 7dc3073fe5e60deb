"""Learning rates chosen alike for all rules: those beside the best one so far are tried until it
lies between two worse ones.

What a rate may be is the order of a mapping from rates to the runs that try them; the two in its
middle are tried first. Runs are scored on held-out samples or characters, by their "loss".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sweep import Job, Runs, table

__all__ = ["at_rates", "best", "loss_of", "tried", "try_rates"]


def tried(jobs: Mapping[float, Job], runs: Runs) -> tuple[float | None, list[Job]]:
    """The rate with the lowest loss, and the runs that are missing before it is known to lie
    between two worse ones; None before the first has ended."""
    losses = {
        rate: loss_of(runs.found[one.key]) for rate, one in jobs.items() if one.key in runs.found
    }
    rates = list(jobs)
    if not losses:
        middle = len(rates) // 2
        return None, [jobs[rate] for rate in rates[middle - 1 : middle + 1]]
    found = min(losses, key=losses.__getitem__)
    at = rates.index(found)
    beside = rates[max(0, at - 1) : at + 2]
    return found, [jobs[rate] for rate in beside if rate not in losses]


def best(jobs: Mapping[float, Job], runs: Runs) -> float | None:
    """The rate with the lowest loss; None while some are still to try."""
    found, missing = tried(jobs, runs)
    return None if missing else found


def try_rates(
    tunings: Sequence[Mapping[float, Job]], carry_out: Callable[[list[Job]], None], runs: Runs
) -> None:
    """Try rates until the best one of each tuning is known."""
    while missing := {one.key: one for jobs in tunings for one in tried(jobs, runs)[1]}:
        carry_out([*missing.values()])


def loss_of(run: Mapping[str, Any]) -> float:
    """In nats; of a run that failed, infinite."""
    return math.inf if run["loss"] is None else float(run["loss"])


def at_rates(rates: Sequence[float], jobs: Mapping[str, Sequence[Job]], runs: Runs) -> str:
    """A table of losses: a row a rule, a column a rate."""
    found = {rule: [runs.found.get(one.key) for one in own] for rule, own in jobs.items()}
    found = {rule: own for rule, own in found.items() if any(own)}
    used = [at for at in range(len(rates)) if any(own[at] for own in found.values())]
    rows = [
        [rule, *(f"{loss_of(run):.4f}" if (run := own[at]) else "-" for at in used)]
        for rule, own in found.items()
    ]
    return table(["rule", *(f"rate {rates[at]:g}" for at in used)], rows)
