"""Where a run goes on whose coordinator has died: as `--resume` does, from what is on the disk."""

from __future__ import annotations

from typing import Any

from asyncdni.build import Design, make_roster
from asyncdni.core.ledger import Ledger
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
    positions = [one.counts["batches"] + one.counts["missed"] for one in saved.values()]
    if min(positions) > ledger.start:
        first = max(*positions, *(one.counts["read"] for one in saved.values()))
        ledger.go_on(history)
        ledger.resumed((min(positions), first), design.plan.barriers, SNAPSHOTS)
    return ledger
