"""What a worker process has learned, and what of it is on disk: snapshots, cuts, weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from asyncdni.backends.base import Array, Stage
from asyncdni.checkpoint import write_weights
from asyncdni.core.counts import Counts
from asyncdni.errors import CheckpointError
from asyncdni.plan import Group, shared_with, snapshot_every_s
from asyncdni.simulator.conditions import Pace
from asyncdni.simulator.disk import CUTS, SNAPSHOTS, Saved
from asyncdni.simulator.process import Process

__all__ = ["Keeping"]

_FULL = "the disk is full (simulated)"
_KILLED = -9


class Keeping:
    """Stage and counts of one process. `build` makes the stage, if there is any arithmetic."""

    def __init__(
        self,
        process: Process,
        group: Group,
        pace: Pace,
        build: Callable[[], Stage] | None,
        folder: Path | None,
        failed: Callable[[CheckpointError], None],
    ) -> None:
        """`folder`: where weights are written; `failed`: called for a save that went wrong."""
        self.counts = Counts()
        self.stage = build() if build is not None else None
        self.ids: set[int] | None = set()  # of the batches behind `counts.batches`, if known
        self._process = process
        self._world = process.world
        self._group = group
        self._pace = pace
        self._build = build
        self._folder = folder
        self._failed = failed
        self._has_state = False
        self._order = (0, 0)
        self._is_new = True  # the stage
        design = self._world.design
        # One whose weights wait for the gradients of others could not go on from its own.
        alone = not shared_with(design.plan.groups, group)
        self._every_s = snapshot_every_s(design.experiment.checkpoint) if alone else None
        self._snapshot_at = self._next_snapshot()

    # --- state -----------------------------------------------------------------------------------

    def claim(self, order: tuple[int, int]) -> None:
        """The stages belong to this process from now on: see `checkpoint.claims`. Raises
        `CheckpointError` where they belong to a later one."""
        self._order = order
        self._world.disk.claim(self._group, order)

    def restore(self, restore: str, cut: str) -> list[str]:
        """Begin a round from what `restore` names (see `messages.Rejoin`), in place of a snapshot
        from `cut` (see `messages.Welcome`) if need be; notes for the user."""
        if restore == "keep" and self._has_state:
            if self.stage is not None:
                self.stage.forget()
            return []
        self._has_state = True
        self.counts.restore({})
        self.ids = set()
        if self._build is not None and not self._is_new:
            self.stage = self._build()
        self._is_new = False
        if restore in ("initial", "keep"):
            return []
        place, saved = self._world.disk.find(restore, cut, self._group)
        if saved is None and restore != SNAPSHOTS:
            raise CheckpointError(f"no state of {self._group.name} in {restore}")
        if saved is None:
            return ["there is no snapshot; it begins anew"]
        self.counts.restore(saved.counts)
        self.ids = None if saved.learned is None else set(saved.learned)
        notes = [] if place == restore else [f"it goes on from {place}"]
        return [*notes, *(self.stage.restore(saved.state) if self.stage is not None else [])]

    def learned(self, batch: int) -> None:
        """One more batch has been forwarded to be learned from."""
        if self.ids is None:
            return
        assert batch not in self.ids, f"{self._process.key} has learned from batch {batch} twice"
        self.ids.add(batch)

    def weights(self) -> dict[str, dict[str, Array]]:
        """By declared stage; none without arithmetic."""
        return self.stage.state() if self.stage is not None else {}

    def _saved(self) -> Saved:
        state = self.stage.snapshot() if self.stage is not None else {}
        ids = None if self.ids is None else frozenset(self.ids)
        return Saved(state, self.counts.state(), ids)

    # --- snapshots -------------------------------------------------------------------------------

    @property
    def snapshot_is_due(self) -> bool:
        return self._snapshot_at is not None and self._world.agenda.now >= self._snapshot_at

    def snapshot(self) -> None:
        """Of the state as it is now; it is on disk a moment later, or never."""
        self._snapshot_at = self._next_snapshot()
        chance, saved = self._world.mischance.save(), self._saved()
        if chance.fails:
            return  # said, and no more: the next one may succeed
        took_s = self._pace.save_s() + chance.extra_s
        if chance.torn:
            self._process.later(took_s / 2, self._die)
            return

        self._process.later(took_s, partial(self._write_snapshot, saved), idle=True)

    def last_snapshot(self) -> None:
        """Before the process leaves because its coordinator is gone."""
        if self._every_s is not None:
            self._write_snapshot(self._saved())

    def _write_snapshot(self, saved: Saved) -> None:
        with contextlib.suppress(CheckpointError):  # of one that has been replaced
            self._world.disk.write(SNAPSHOTS, self._group, saved, self._order)

    def _next_snapshot(self) -> float | None:
        return None if self._every_s is None else self._world.agenda.now + self._every_s

    # --- saves that were ordered -----------------------------------------------------------------

    def save(self, tag: str, done: Callable[[dict[str, str]], None]) -> None:
        """Weights, or for a cut all state; `done` gets the digests by declared stage."""
        chance = self._world.mischance.save()
        took_s = self._pace.save_s() + chance.extra_s

        def finish() -> None:
            if chance.fails:
                self._failed(CheckpointError(f"{self._group.name} can't write {tag}: {_FULL}"))
                return
            try:
                files = self._write(tag)
            except CheckpointError as error:
                self._failed(error)
            else:
                done(files)

        if chance.torn:
            self._process.later(took_s / 2, self._die)
        else:
            self._process.later(took_s, finish)

    def _write(self, tag: str) -> dict[str, str]:
        if tag.startswith(CUTS):
            return self._world.disk.write(tag, self._group, self._saved(), self._order)
        if self._folder is not None and self.stage is not None:
            return write_weights(self._folder / tag, self.weights(), None, shared=True)
        return {}

    def _die(self) -> None:
        self._process.exit(_KILLED)
