"""The folder of a simulated run: what is there outlives the processes that wrote it.

In memory; where a real folder is given, cuts and snapshots are written there as well, and read from
there, through the code of real runs. What a process was writing when it died is not there at all,
as files are replaced in one go.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from asyncdni.core.counts import farthest_first
from asyncdni.core.events import Commit
from asyncdni.core.ledger import CUTS, SNAPSHOTS
from asyncdni.errors import CheckpointError
from asyncdni.messages import PART_BYTES, Part
from asyncdni.nn.base import Array
from asyncdni.plan.build import Design
from asyncdni.plan.plan import Group
from asyncdni.store import checkpoint, manifest, tensors, weights

__all__ = ["Disk", "PartDisk", "Saved", "file_of"]

State = Mapping[str, Mapping[str, Array]]


@dataclass(frozen=True)
class Saved:
    """All that decides how one worker goes on."""

    state: State  # by declared stage; empty without arithmetic
    counts: Mapping[str, int]
    learned: frozenset[int] | None  # ids behind `counts`, for the account at the end; None: unknown


class Disk:
    """What has been written, by folder and worker; and the coordinator's state, by cut."""

    def __init__(self, design: Design, folder: Path | None = None) -> None:
        self._cuts: dict[str, str] = {}  # committed, oldest first: the coordinator's state
        self._design = design
        self._folder = folder
        self._keep = design.experiment.checkpoint.keep
        self._saved: dict[str, dict[str, Saved]] = {}
        self._owners: dict[str, tuple[int, int]] = {}  # by worker: see `store.claims`

    def claim(self, group: Group, order: tuple[int, int]) -> None:
        """The worker's stages belong to the process of this term and incarnation from now on.
        Raises `CheckpointError` where they belong to a later one."""
        self._check(group, order)
        self._owners[group.name] = order

    def _check(self, group: Group, order: tuple[int, int]) -> None:
        if order < self._owners.get(group.name, (0, 0)):
            raise CheckpointError(f"a later process has taken over {group.name}")

    def write(
        self, folder: str, group: Group, saved: Saved, order: tuple[int, int]
    ) -> dict[str, str]:
        """The SHA-256 of each declared stage's state. Raises `CheckpointError` for a process that
        has been replaced."""
        self._check(group, order)
        self._saved.setdefault(folder, {})[group.name] = saved
        if self._folder is None:
            return {node.name: _digest(saved.state.get(node.name, {})) for node in group.members}
        return checkpoint.write_state(
            self._folder / folder, saved.state, saved.counts, durable=folder != SNAPSHOTS
        )

    def read(self, folder: str, group: Group) -> Saved | None:
        """Return a worker's state; None where there is none. Raises `CheckpointError`."""
        found = self._saved.get(folder, {}).get(group.name)
        if self._folder is None:
            return found
        names = [node.name for node in group.members]
        try:
            state, counts = checkpoint.read_state(self._folder / folder, names, None)
        except CheckpointError:
            if folder == SNAPSHOTS:
                return None
            raise
        return Saved(state, counts, _learned(counts) if found is None else found.learned)

    def farthest(self, cut: str, group: Group) -> tuple[str, Saved] | None:
        """What a worker that learns by itself goes on from, and the folder that it is in: of its
        snapshot and its state in cuts up to `cut` the one that has come farthest. None where there
        is neither."""
        cuts = [tag for tag in reversed(self._cuts) if tag <= cut]
        found = {place: saved for place in (SNAPSHOTS, *cuts) if (saved := self.read(place, group))}
        order = farthest_first({place: saved.counts for place, saved in found.items()})
        return (order[0], found[order[0]]) if order else None

    def discard_snapshots(self) -> None:
        """Remove the snapshots of all workers: training goes back to before them. Raises
        `CheckpointError`."""
        self._saved.pop(SNAPSHOTS, None)
        if self._folder is not None:
            checkpoint.discard_snapshots(self._folder / SNAPSHOTS)

    def commit(self, cut: Commit) -> None:
        """Make it count, and forget all but the last few. Raises `CheckpointError`."""
        self._cuts[cut.tag] = json.dumps(cut.state)
        for tag in list(self._cuts)[: -self._keep]:
            del self._cuts[tag], self._saved[tag]
        if self._folder is not None:
            checkpoint.commit(self._folder / CUTS, self._manifest(cut), self._keep)

    def commit_weights(self, kept: Commit) -> None:
        """Weights, which only a real folder has. Raises `CheckpointError`."""
        if self._folder is not None and kept.files:
            belongs: dict[str, Any] = {"identity": self._identity(), "experiment": ""}
            files = dict(kept.files)
            made = manifest.WeightsManifest(tag=kept.tag, files=files, **kept.state, **belongs)
            weights.commit_weights(self._folder / kept.tag, made)

    def _identity(self) -> dict[str, Any]:
        return manifest.identity(self._design.experiment, self._design.meta)

    def newest_cut(self) -> tuple[str, dict[str, Any]] | None:
        """Its folder, and the coordinator's state."""
        if not self._cuts:
            return None
        tag, state = list(self._cuts.items())[-1]
        return tag, json.loads(state)

    def content(self, path: str) -> bytes | None:
        """The bytes of a file of this folder (see `file_of`); None where there is none."""
        place, _, name = path.rpartition("/")
        group = self._design.plan.group_of(name.partition(".")[0])
        saved = self._saved.get(place, {}).get(group.name)
        return _encoded(saved) if saved and path == file_of(place, group) else None

    def put(self, path: str, content: bytes, *, fetched: bool) -> None:
        """Put a file in its place that has come from elsewhere; `fetched`: from the run's folder,
        so that a cut has been committed there."""
        place, _, name = path.rpartition("/")
        group = self._design.plan.group_of(name.partition(".")[0])
        self._saved.setdefault(place, {})[group.name] = _decoded(content, path)
        if fetched and place != SNAPSHOTS:
            self._cuts.setdefault(place, "")

    def snapshots(self) -> dict[str, Saved]:
        """The last one of each worker that has left one."""
        return dict(self._saved.get(SNAPSHOTS, {}))

    def _manifest(self, cut: Commit) -> manifest.Manifest:
        state: dict[str, Any] = msgspec.to_builtins(cut.state)
        return manifest.Manifest(
            number=state["cut"],
            files=cut.files,
            start=state["start"],
            planned=state["planned"],
            barrier=state["barrier"],
            identity=self._identity(),
            coordinator=state,
        )


def file_of(place: str, group: Group) -> str:
    """The path of a worker's state in `place`: one file stands for those of all its stages."""
    ending = ".0" if place == SNAPSHOTS else ""
    return f"{place}/{group.members[0].name}{ending}.safetensors"


def _encoded(saved: Saved) -> bytes:
    """A worker's state as the bytes of a file."""
    arrays = {f"{stage}.{name}": a for stage, own in saved.state.items() for name, a in own.items()}
    learned = None if saved.learned is None else sorted(saved.learned)
    noted = {"counts": json.dumps(dict(saved.counts)), "learned": json.dumps(learned)}
    noted["stages"] = json.dumps(list(saved.state))
    return b"".join(tensors.encode(arrays, noted))


def _decoded(content: bytes, name: str) -> Saved:
    arrays, noted = tensors.decode(content, name)
    state: dict[str, dict[str, Array]] = {stage: {} for stage in json.loads(noted["stages"])}
    for key, array in arrays.items():
        stage, _, own = key.partition(".")
        state[stage][own] = array
    learned = json.loads(noted["learned"])
    return Saved(
        state, json.loads(noted["counts"]), None if learned is None else frozenset(learned)
    )


class PartDisk:
    """Reads and writes the files of a `Disk` in parts, as `store.parts.PartStore` those of a
    folder."""

    def __init__(self, disk: Disk, *, fetches: bool) -> None:
        """`fetches`: what is written comes from the folder of the run, and does not go there."""
        self._disk = disk
        self._fetches = fetches
        self._reading: dict[str | bytes, bytes] = {}  # by peer
        self._writing: dict[str, bytes] = {}

    def read(self, peer: str | bytes, incarnation: int, path: str, offset: int) -> Part | None:
        """Return the part of a file that begins at `offset`; None where there is no such file."""
        if offset == 0:
            content = self._disk.content(path)
            if content is None:
                return None
            self._reading[peer] = content
        content = self._reading[peer]
        data = content[offset : offset + PART_BYTES]
        is_last = offset + len(data) == len(content)
        digest = hashlib.sha256(content).hexdigest() if is_last else ""
        return Part(incarnation, path, offset, len(content), data, digest)

    def write(self, peer: str, part: Part) -> None:
        """Take a part; the last one puts the file in its place."""
        content = (self._writing.get(peer, b"") if part.offset else b"") + part.data
        self._writing[peer] = content
        if part.sha256:
            assert hashlib.sha256(content).hexdigest() == part.sha256
            self._disk.put(part.path, self._writing.pop(peer), fetched=self._fetches)


def _learned(counts: Mapping[str, int]) -> frozenset[int] | None:
    """What an earlier run has left does not say which batches were missed, if any were."""
    return None if counts["missed"] else frozenset(range(counts["batches"]))


def _digest(arrays: Mapping[str, Array]) -> str:
    whole = hashlib.sha256()
    for name, array in arrays.items():
        whole.update(name.encode())
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()
