"""Training state on disk: cuts of the whole run, and rolling snapshots of single stages.

```
DIR/checkpoints/000012/STAGE.safetensors    all state of one declared stage, at a drained barrier
DIR/checkpoints/000012/manifest.json        written last: without it there is no cut
DIR/snapshots/STAGE.{0,1}.safetensors       the last two snapshots, overwritten in turn
```

A cut is durable: it is flushed to the disk. A snapshot is cheap, and survives a kill of the process
but not a power cut. All functions work on folders and keep nothing in memory; every error is a
`CheckpointError` with one line of text.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from asyncdni.core.counts import farthest_first
from asyncdni.errors import CheckpointError
from asyncdni.files import check_file, open_file, read_file
from asyncdni.store.claims import Claim, Order
from asyncdni.store.manifest import Manifest, manifest_file, read_manifest, write_manifest
from asyncdni.store.tensors import (
    LENGTH_BYTES,
    Array,
    Piece,
    decode,
    digest_of,
    encode,
    header_length,
    metadata_of,
    sync_folder,
    write_atomically,
)

__all__ = [
    "commit",
    "cut_folder",
    "cuts_until",
    "discard_snapshots",
    "latest",
    "newest_slots",
    "next_cut",
    "read_newest",
    "read_state",
    "slots",
    "stage_file",
    "write_state",
]

State = dict[str, dict[str, Array]]

#: Arrays and metadata of one file.
_Content = tuple[dict[str, Array], dict[str, str]]

#: The larger one is newer: term and incarnation of the writing process, and its serial, from 1.
_Age = tuple[int, int, int]
_NONE: _Age = (0, 0, 0)

_NUMBERED = re.compile(r"[0-9]{6,18}")


def stage_file(folder: Path, stage: str) -> Path:
    """The file of a declared stage in a cut."""
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
            it is missing, but `DIR` is not: a run whose folder was removed must fail.
        state: as `Stage.snapshot` gives it.
        counts: what the worker has done so far, such as `batches`.
        durable: replace each file atomically and flush it to the disk. Otherwise overwrite the
            older of each stage's two snapshots, which survives a kill but not a power cut.
        claim: that of the writing process; None where there can be no other process.

    Returns:
        The SHA-256 of each file by stage, for the manifest; empty for snapshots.

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
            _write_snapshots(folder, state, noted, claim.order if claim is not None else (0, 0))
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
        digests[stage] = digest_of(pieces)
    for touched in (folder, folder.parent):
        sync_folder(touched)
    return digests


def read_state(
    folder: Path, stages: Sequence[str], digests: Mapping[str, str] | None
) -> tuple[State, dict[str, int]]:
    """The state of `stages`, and the counts of the worker that wrote it.

    With `digests` (SHA-256 by stage, from the manifest) the files of a cut are checked against
    them. Without, the checksums in the files are trusted, and `folder` may hold snapshots: the
    newest that is whole for all of `stages` is read.

    Where several workers wrote the stages, the counts are those of the worker that learned from
    the fewest batches. Raises `CheckpointError` that names the missing or damaged file.
    """
    if digests is None and any(path.exists() for stage in stages for path in slots(folder, stage)):
        found = _read_snapshots(folder, stages)
    else:
        found = {stage: _read(folder, stage, digests) for stage in stages}
    state = {stage: arrays for stage, (arrays, _) in found.items()}
    counts = [_counts(stage_file(folder, stage), noted) for stage, (_, noted) in found.items()]
    return state, min(counts, key=lambda one: one.get("batches", 0), default={})


def read_newest(
    run: Path, stages: Sequence[str], snapshots: str, cuts: Sequence[str]
) -> tuple[str, State, dict[str, int], list[str]]:
    """The state from which stages that learn by themselves resume.

    Of their snapshots and their states in `cuts` (folders of the run, the newest first), it is the
    whole one that is farthest ahead. Returns its folder, the state, the counts of its worker, and
    what is wrong with those that were skipped. Raises `CheckpointError` where none is whole.
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
    """The counts in the file of the first of `stages`, unchecked; empty if it can't be read."""
    path = stage_file(folder, stages[0])
    try:
        with path.open("rb") as file:
            header = file.read(header_length(file.read(LENGTH_BYTES)))
        return _counts(path, metadata_of(header))
    except (OSError, CheckpointError):
        return {}


def _read(folder: Path, stage: str, digests: Mapping[str, str] | None) -> _Content:
    path = stage_file(folder, stage)
    try:
        content = read_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"no state of stage {stage}: {path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"can't read {path}: {error.strerror}") from error
    if digests is not None and digests.get(stage) != hashlib.sha256(content).hexdigest():
        raise CheckpointError(
            f"{path} is not the file that its manifest describes; it may be damaged"
        )
    arrays, noted = decode(content, str(path))
    if noted.get("stage") != stage:
        raise CheckpointError(f"{path} holds stage {noted.get('stage')!r}, expected {stage!r}")
    return arrays, noted


def _counts(path: Path, noted: Mapping[str, str]) -> dict[str, int]:
    try:
        return {str(name): int(count) for name, count in json.loads(noted["counts"]).items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} does not say what its worker has done") from None


def slots(folder: Path, stage: str) -> tuple[Path, Path]:
    """The two snapshot files of a declared stage, whose name has no dot."""
    return folder / f"{stage}.0.safetensors", folder / f"{stage}.1.safetensors"


def newest_slots(folder: Path, stages: Sequence[str]) -> list[Path]:
    """Of each stage the file of its newest snapshot; those without one are left out."""
    newest = [max(slots(folder, stage), key=_age) for stage in stages]
    return [path for path in newest if _age(path) > _NONE]


def _write_snapshots(
    folder: Path,
    state: Mapping[str, Mapping[str, Array]],
    noted: Mapping[str, str],
    order: Order,
) -> None:
    """Overwrite the older file of each stage, as the writer with this `order`. Raises `OSError`.

    Overwriting a file costs the copying of its bytes and no more; replacing it by a rename makes
    ext4 write it out at once (20 ms for 12.6 MB against 1). A file in the making begins with a
    length of zero until its last byte is written, so a kill leaves it recognisably torn and the
    other one whole. The stages of a worker share a serial number, and only snapshots of one serial
    are read together. Those of a later process are newer, whatever their serials.
    """
    ages = {stage: [_age(path) for path in slots(folder, stage)] for stage in state}
    whole = set.intersection(*(set(own) for own in ages.values())) - {_NONE} if state else set()
    kept = max(whole, default=_NONE)
    serial = 1 + max((age[2] for own in ages.values() for age in own), default=0)
    term, incarnation = map(str, order)
    named = {"term": term, "incarnation": incarnation, "serial": str(serial), **noted}
    for stage, arrays in state.items():
        own = ages[stage]
        older = min((0, 1), key=lambda i: (own[i] == kept > _NONE, own[i]))
        pieces = encode(arrays, {"stage": stage, **named})
        _overwrite(slots(folder, stage)[older], pieces)


def _overwrite(path: Path, pieces: Sequence[Piece]) -> None:
    """Overwrite a file; until the last write its header says that it is torn."""
    head = pieces[0]
    assert isinstance(head, bytes)
    check_file(path)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        file.write(bytes(LENGTH_BYTES))
        file.flush()
        file.write(head[LENGTH_BYTES:])
        for piece in pieces[1:]:
            file.write(piece)
        file.truncate()
        file.flush()
        file.seek(0)
        file.write(head[:LENGTH_BYTES])


def _age(path: Path) -> _Age:
    """The age of the snapshot in a file; `_NONE` where it is missing, torn or not a snapshot.

    Raises `OSError` where the process can open no more files: the newest snapshot must not be
    mistaken for the one to overwrite.
    """
    try:
        with open_file(path) as file:
            length = header_length(file.read(LENGTH_BYTES))
            return _age_of(metadata_of(file.read(length))) if length else _NONE
    except (ValueError, KeyError):
        return _NONE
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return _NONE


def _age_of(noted: Mapping[str, str]) -> _Age:
    """The age in a file's metadata; early versions did not write term and incarnation."""
    term, incarnation = (int(noted.get(name, "0")) for name in ("term", "incarnation"))
    return term, incarnation, int(noted["serial"])


def _read_snapshots(folder: Path, stages: Sequence[str]) -> dict[str, _Content]:
    """Find the newest whole snapshots with one serial, by stage; `CheckpointError` for none."""
    found: list[dict[_Age, _Content]] = []
    wrong = f"no snapshot of {', '.join(stages)} in {folder}"
    for stage in stages:
        own: dict[_Age, _Content] = {}
        for path in slots(folder, stage):
            try:
                arrays, noted = decode(read_file(path), str(path))
                if noted.get("stage") != stage:
                    raise CheckpointError(f"{path} holds stage {noted.get('stage')!r}")
                own[_age_of(noted)] = arrays, noted
            except FileNotFoundError:
                continue
            except (KeyError, ValueError):
                wrong = f"{path} is no snapshot"
            except OSError as error:
                wrong = f"can't read {path}: {error.strerror}"
            except CheckpointError as error:
                wrong = str(error)
        found.append(own)
    whole = set.intersection(*(set(own) for own in found)) if found else set()
    if not whole:
        raise CheckpointError(f"no whole snapshot: {wrong}")
    newest = max(whole)
    return {stage: own[newest] for stage, own in zip(stages, found, strict=True)}


def discard_snapshots(folder: Path) -> None:
    """Remove all snapshots, since training goes back behind them. Raises `CheckpointError`."""
    try:
        for path in folder.glob("*.[01].safetensors"):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"can't remove snapshots in {folder}: {error.strerror}") from error


def cut_folder(folder: Path, cut: int) -> Path:
    """The folder of cut number `cut` in `DIR/checkpoints`, such as "000012"."""
    return folder / f"{cut:06d}"


def next_cut(folder: Path) -> int:
    """The number after those of all cuts in `folder`, whole or not; from 1.

    Raises `CheckpointError`.
    """
    return max(_numbers(folder), default=0) + 1


def cuts_until(folder: Path, newest: int) -> list[int]:
    """The numbers of all cuts up to `newest`, whole or not, the newest first.

    Raises `CheckpointError`.
    """
    return sorted((n for n in _numbers(folder) if n <= newest), reverse=True)


def commit(folder: Path, manifest: Manifest, keep: int) -> None:
    """Turn the files that workers have written into a cut, and remove older cuts.

    The manifest is written last and flushed to the disk. Then all cuts but the last `keep` are
    removed, and older ones that never became whole; what can't be removed stays. Raises
    `CheckpointError` where the manifest can't be written or a file that it names is missing: then
    the cut does not exist, and earlier cuts are unchanged.
    """
    own = cut_folder(folder, manifest.number)
    for stage in manifest.files:
        if not stage_file(own, stage).is_file():
            raise CheckpointError(f"{stage_file(own, stage)} is missing: no checkpoint is made")
    write_manifest(own, manifest)
    for touched in (own, folder, folder.parent):
        sync_folder(touched)
    _clear(own, manifest)
    kept = 1
    for number in sorted((n for n in _numbers(folder) if n < manifest.number), reverse=True):
        if kept < keep and _has_manifest(cut_folder(folder, number)):
            kept += 1
        else:
            _remove(cut_folder(folder, number))


def latest(folder: Path) -> tuple[Manifest | None, list[str]]:
    """The newest whole cut of `DIR/checkpoints`, and a line about each broken one after it.

    Every file of the cut is checked. None where no cut has been committed. Raises
    `CheckpointError` where cuts have been committed and none is whole.
    """
    passed: list[str] = []
    committed = False
    for number in sorted(_numbers(folder), reverse=True):
        own = cut_folder(folder, number)
        try:
            return _whole(own, number), passed
        except CheckpointError as error:
            passed.append(str(error))
            committed |= manifest_file(own).exists()
    if committed:
        raise CheckpointError(f"no whole checkpoint is left in {folder}: {'; '.join(passed)}")
    return None, passed


def _whole(own: Path, number: int) -> Manifest:
    manifest = read_manifest(own, Manifest)
    if manifest.number != number:
        raise CheckpointError(
            f"{own} holds the manifest of cut {manifest.number}, expected {number}"
        )
    for stage, digest in manifest.files.items():
        path = stage_file(own, stage)
        try:
            with open_file(path) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing") from None
        except OSError as error:
            raise CheckpointError(f"can't read {path}: {error.strerror}") from error
        if found != digest:
            raise CheckpointError(f"{path} is damaged: its sha256 is not that of its manifest")
    return manifest


def _numbers(folder: Path) -> list[int]:
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"can't read {folder}: {error.strerror}") from error
    return [int(name) for name in names if _NUMBERED.fullmatch(name) and name == f"{int(name):06d}"]


def _has_manifest(own: Path) -> bool:
    try:
        read_manifest(own, Manifest)
    except CheckpointError as error:
        return isinstance(error.__cause__, OSError)  # one that can't be read just now may be whole
    return True


def _clear(own: Path, manifest: Manifest) -> None:
    """Remove files that interrupted attempts at the same cut have left."""
    known = {manifest_file(own), *(stage_file(own, stage) for stage in manifest.files)}
    with contextlib.suppress(OSError):
        for path in own.iterdir():
            if path not in known:
                path.unlink()


def _remove(own: Path) -> None:
    """Remove a cut, the manifest first: what is half removed is no cut."""
    with contextlib.suppress(OSError):
        manifest_file(own).unlink(missing_ok=True)
        shutil.rmtree(own, ignore_errors=True)
