"""The state that a stage begins a round with, as the coordinator names it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from asyncdni.backends.base import Stage
from asyncdni.checkpoint import (
    cut_folder,
    cuts_until,
    discard_snapshots,
    read_newest,
    read_state,
)
from asyncdni.core.counts import Counts
from asyncdni.errors import CheckpointError
from asyncdni.runtime.snapshots import SNAPSHOTS

__all__ = ["restored_stage"]

_Stage = TypeVar("_Stage", bound=Stage)


def restored_stage(
    build: Callable[[], _Stage],
    begin: Callable[[], _Stage],
    folder: Path,
    restore: str,
    cut: str,
    stages: Sequence[str],
    counts: Counts,
) -> tuple[_Stage, list[str]]:
    """A stage in the state that `restore` names (see `messages.Rejoin`), and what the user should
    know of it; `counts` count on from there. `build` makes one whose state is then replaced,
    `begin` one as it is at the beginning of the run.

    A snapshot that is missing or damaged is told of; then, or where it is newer, the stage goes on
    from its state in `cut` ("checkpoints/000012"; empty: there is none) or one before; without any
    it begins anew. When all go back, snapshots from after that must not be gone on from. Raises
    `CheckpointError` for a cut that all are to go back to and that can't be used, and what `begin`
    raises.
    """
    counts.restore({})
    if restore == "keep":  # in a process that has nothing to keep yet
        return begin(), []
    if restore != SNAPSHOTS:
        discard_snapshots(folder / SNAPSHOTS)  # of all: nobody writes one before all are built
    if restore == "initial":
        return begin(), []
    stage = build()
    if restore != SNAPSHOTS:
        state, found = read_state(folder / restore, stages, None)
        notes = stage.restore(state)
        counts.restore(found)
        return stage, notes
    try:
        place, state, found, wrong = read_newest(folder, stages, SNAPSHOTS, _cuts(folder, cut))
        notes = stage.restore(state)
    except CheckpointError as error:
        return begin(), [f"{error}; {', '.join(stages)} begin anew"]
    counts.restore(found)
    if place != SNAPSHOTS:
        newer = "; ".join(wrong) or "its state there is newer than its last snapshot"
        notes = [f"{newer}; {', '.join(stages)} from {place}, batch {counts.position:,}", *notes]
    return stage, notes


def _cuts(folder: Path, newest: str) -> list[str]:
    """Of the run, the newest first; they need not be whole."""
    parent, _, number = newest.rpartition("/")
    if not number:
        return []
    numbers = cuts_until(folder / parent, int(number))
    return [f"{parent}/{cut_folder(folder, one).name}" for one in numbers]
