"""Where a run goes on whose coordinator has died: as `--resume` does, from what is on the disk."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from asyncdni.build import Design, make_roster
from asyncdni.core.ledger import Ledger
from asyncdni.plan import Plan
from asyncdni.simulator.disk import SNAPSHOTS, Disk

__all__ = ["find_ledger"]


def find_ledger(design: Design, disk: Disk, history: list[dict[str, Any]]) -> Ledger:
    """From the newest cut; from the snapshots, where every stage learns by itself and theirs are
    newer. `history`: all evaluations so far."""
    ledger = Ledger()
    newest = disk.newest_cut()
    if newest is not None:
        tag, state = newest
        ledger = Ledger.restored(state, tag)
    saved = disk.snapshots()
    if len(saved) < len(design.plan.groups) or not make_roster(design).goes_on:
        return ledger
    start = min(one.counts["batches"] + one.counts["missed"] for one in saved.values())
    if start > ledger.start:
        ledger.start, ledger.restore = start, SNAPSHOTS
        ledger.planned = _planned(design.plan, start, len(history))
        evaluated = _evaluations(design.plan, ledger.planned)
        ledger.history += history[len(ledger.history) : evaluated]
    return ledger


def _planned(plan: Plan, start: int, evaluated: int) -> int:
    """Barriers that are done. The last one is had again, so that the run comes to its end."""
    planned = bisect_left(plan.barriers, start)
    if plan.barriers[planned] == start and evaluated > _evaluations(plan, planned):
        planned += 1
    return min(planned, len(plan.barriers) - 1)


def _evaluations(plan: Plan, planned: int) -> int:
    """At that many barriers."""
    return sum(position not in plan.cut_barriers for position in plan.barriers[:planned])
