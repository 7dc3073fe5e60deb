"""Compare schedules by running them: the same network, data and seeds, turn by turn.

Runs are interleaved, seed by seed, and the order rotates from seed to seed, so that a machine that
grows slower or faster with time does so for all alike. The statistics are `metrics.comparison`.
`entries` plans the runs and trains one; `document` makes of their results what is written and
shown; `resume` goes on with a comparison that was interrupted.
"""

from __future__ import annotations

from asyncdni.comparison.document import document
from asyncdni.comparison.entries import (
    BASELINE,
    SINGLE,
    ZERO,
    Entry,
    check_schedules,
    order,
    plan_runs,
    run_entry,
)
from asyncdni.comparison.resume import COMPARISON, discard_unfinished, finished_runs

__all__ = [
    "BASELINE",
    "COMPARISON",
    "SINGLE",
    "ZERO",
    "Entry",
    "check_schedules",
    "discard_unfinished",
    "document",
    "finished_runs",
    "order",
    "plan_runs",
    "run_entry",
]
