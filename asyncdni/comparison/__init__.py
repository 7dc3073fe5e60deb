"""Compare schedules by running them: the same network, data and seeds, turn by turn.

Runs are interleaved, seed by seed, and the order rotates from seed to seed, so that a machine that
grows slower or faster with time does so for all alike. The statistics are `metrics.comparison`.
`rows` says what is compared, `entries` plans the runs and trains one; `document` makes of their
results what is written and shown; `networks` refuses what can't be compared; `resume` goes on with
a comparison that was interrupted.
"""

from __future__ import annotations

from asyncdni.comparison.document import document
from asyncdni.comparison.entries import Entry, order, plan_runs, run_entry
from asyncdni.comparison.networks import check_same_network
from asyncdni.comparison.resume import COMPARISON, discard_unfinished, finished_runs
from asyncdni.comparison.rows import BASELINE, ZERO, check_schedules

__all__ = [
    "BASELINE",
    "COMPARISON",
    "ZERO",
    "Entry",
    "check_same_network",
    "check_schedules",
    "discard_unfinished",
    "document",
    "finished_runs",
    "order",
    "plan_runs",
    "run_entry",
]
