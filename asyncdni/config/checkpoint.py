"""[checkpoint] and [recovery]: what is kept for the day on which something dies, and what then."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from asyncdni.config.base import Count, Table, Whole

__all__ = ["Checkpoint", "Recovery"]


class Checkpoint(Table, frozen=True, kw_only=True):
    """Cuts of the whole run at drained barriers, and rolling snapshots of each stage by itself."""

    # between cuts: a time such as "30s", or epochs as a number; "never": at the end alone
    every: str | Annotated[float, Meta(gt=0)] = "30s"
    keep: Count = 2  # cuts
    # between a worker's own snapshots, at least; "never": none
    snapshot_every: str = "1s"


class Recovery(Table, frozen=True, kw_only=True):
    """Workers that die are started again."""

    # deaths of one worker in a row without having learned in between; 0: the first ends the run
    restarts: Whole = 5
