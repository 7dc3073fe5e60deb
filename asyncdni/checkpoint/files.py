"""The state of stages on disk: durable for a cut, cheap for a rolling snapshot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from asyncdni.checkpoint.claims import Claim
from asyncdni.checkpoint.encoding import (
    LENGTH_BYTES,
    Array,
    decode,
    encode,
    header_length,
    metadata_of,
)
from asyncdni.checkpoint.snapshots import read_snapshots, slots, write_snapshots
from asyncdni.core.counts import farthest_first
from asyncdni.errors import CheckpointError
from asyncdni.files import read_file
from asyncdni.weights import sync_folder, write_atomically

__all__ = ["read_newest", "read_state", "stage_file", "write_state"]

State = dict[str, dict[str, Array]]


def stage_file(folder: Path, stage: str) -> Path:
    """Of a declared stage in a cut."""
    return folder / f"{stage}.safetensors"


def write_state(
    folder: Path,
    state: Mapping[str, Mapping[str, Array]],
    counts: Mapping[str, int],
    *,
    durable: bool,
    claim: Claim | None = None,
) -> dict[str, str]:
    """Write `{declared stage: {name: array}}`, one file a stage, `counts` in each.

    Args:
        folder: `DIR/checkpoints/000012`, or with `durable=False` `DIR/snapshots`. It is made where
            it is missing, but `DIR` is not: a run whose folder was removed must not go on as if
            nothing had happened.
        state: as `Stage.snapshot` gives it.
        counts: what the worker has done up to here.
        durable: through to the disk, replacing each file in one go. Otherwise the older of each
            stage's last two snapshots is overwritten, which no power cut but any kill survives.
        claim: of the process that writes; None: nobody else can be there.

    Returns:
        The SHA-256 of each file by stage, for the manifest; of snapshots nothing.

    Raises:
        CheckpointError: the folder can't be written, or a later process has taken over a stage.
            What was committed is as it was.
    """
    noted = {"counts": json.dumps(dict(counts))}
    try:
        if not durable:
            if claim is not None:
                claim.check()
            folder.mkdir(exist_ok=True)
            write_snapshots(folder, state, noted, claim.order if claim is not None else (0, 0))
            return {}
        for made in (folder.parent, folder):
            made.mkdir(exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"can't write to {folder}: {error.strerror}") from error
    digests = {}
    for stage, arrays in state.items():
        pieces = encode(arrays, {"stage": stage, **noted})
        if claim is not None:
            claim.check()
        write_atomically(stage_file(folder, stage), *pieces)
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        digests[stage] = digest.hexdigest()
    for touched in (folder, folder.parent):
        sync_folder(touched)
    return digests


def read_state(
    folder: Path, stages: Sequence[str], digests: Mapping[str, str] | None
) -> tuple[State, dict[str, int]]:
    """The state of `stages`, and what the worker that wrote it had done.

    With `digests` (SHA-256 by stage, of the manifest) files of a cut are held against them. Without
    the files' own sums are trusted, and `folder` may be one of snapshots: the newest that is whole
    for all of `stages` is read.

    Where stages come from several workers the counts are those of the one that has learned from the
    fewest batches. Raises `CheckpointError` naming the file that is missing, cut off or damaged.
    """
    if digests is None and any(path.exists() for stage in stages for path in slots(folder, stage)):
        found = read_snapshots(folder, stages)
    else:
        found = {stage: _read(folder, stage, digests) for stage in stages}
    state = {stage: arrays for stage, (arrays, _) in found.items()}
    counts = [_counts(stage_file(folder, stage), noted) for stage, (_, noted) in found.items()]
    return state, min(counts, key=lambda one: one.get("batches", 0), default={})


def read_newest(
    run: Path, stages: Sequence[str], snapshots: str, cuts: Sequence[str]
) -> tuple[str, State, dict[str, int], list[str]]:
    """What stages that learn by themselves go on from: of their snapshots and their states in
    `cuts` (folders in that of the run, the newest first), the whole one that has come farthest.

    Returns the folder that it is from, the state, what its worker had done, and what is wrong with
    those that had to be passed over. Raises `CheckpointError` where none is whole.
    """
    wrong: list[str] = []
    known = {cut: found for cut in cuts if (found := _glance(run / cut, stages))}
    try:
        state, counts = read_state(run / snapshots, stages, None)
        known = {snapshots: counts, **known}
    except CheckpointError as error:
        wrong.append(str(error))
    for place in farthest_first(known):
        if place == snapshots:
            return place, state, counts, wrong
        try:
            return place, *read_state(run / place, stages, None), wrong
        except CheckpointError as error:
            wrong.append(str(error))
    raise CheckpointError("; ".join(wrong))


def _glance(folder: Path, stages: Sequence[str]) -> dict[str, int]:
    """What the first of `stages` has done by its file in a cut, unchecked; empty if that is not to
    be had."""
    path = stage_file(folder, stages[0])
    try:
        with path.open("rb") as file:
            header = file.read(header_length(file.read(LENGTH_BYTES)))
        return _counts(path, metadata_of(header))
    except (OSError, CheckpointError):
        return {}


def _read(
    folder: Path, stage: str, digests: Mapping[str, str] | None
) -> tuple[dict[str, Array], dict[str, str]]:
    path = stage_file(folder, stage)
    try:
        content = read_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"no state of stage {stage}: {path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"can't read {path}: {error.strerror}") from error
    if digests is not None and digests.get(stage) != hashlib.sha256(content).hexdigest():
        raise CheckpointError(f"{path} is not the file that its manifest is about: damaged?")
    arrays, noted = decode(content, str(path))
    if noted.get("stage") != stage:
        raise CheckpointError(f"{path} holds stage {noted.get('stage')!r}, expected {stage!r}")
    return arrays, noted


def _counts(path: Path, noted: Mapping[str, str]) -> dict[str, int]:
    try:
        return {str(name): int(count) for name, count in json.loads(noted["counts"]).items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} does not say what its worker has done") from None
