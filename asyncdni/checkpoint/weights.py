"""Weights of the whole network by name, `best` or `final`: all of one moment, or not at all.

```
DIR/best.new/STAGE.safetensors    as the workers write them
DIR/best.new/manifest.json        once all have: the two folders change places, and
DIR/best.old/…                    what was there before is removed
```

A kill at any moment leaves those of before, or the new ones. Where the system can let two folders
change places in one step, nobody ever sees none; elsewhere a reader finds them under one of the
other names. Folders of early versions have no manifest: they are read as they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from asyncdni.checkpoint.claims import Claim
from asyncdni.checkpoint.encoding import Array
from asyncdni.checkpoint.manifest import (
    WeightsManifest,
    manifest_file,
    read_manifest,
    write_manifest,
)
from asyncdni.errors import CheckpointError
from asyncdni.weights import load_stage, save_stages, sync_folder

__all__ = ["commit_weights", "read_weights", "settle_weights", "weights_manifest", "write_weights"]

#: Of renameat2(2): relative to the current folder; atomically exchange.
_HERE, _EXCHANGE = -100, 2

Weights = dict[str, dict[str, Array]]


def write_weights(
    folder: Path, state: Mapping[str, Mapping[str, Array]], claim: Claim | None, *, shared: bool
) -> dict[str, str]:
    """Write those of some stages, to be committed as `folder`; returns their SHA-256 by stage.

    Where the folder is not `shared` with the coordinator, nobody will commit them: they are written
    where they belong. Raises `CheckpointError`; what was committed is as it was.
    """
    into = _new(folder) if shared else folder
    try:
        if shared:  # of an attempt that was cut short just before its end
            manifest_file(into).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"can't write to {into}: {error.strerror}") from error
    digests: dict[str, str] = {}
    for stage, arrays in state.items():
        if claim is not None:
            claim.check()
        digests |= save_stages(into, {stage: arrays})
    return digests


def weights_manifest(
    tag: str, files: Mapping[str, str], result: Mapping[str, Any], **belongs: Any
) -> WeightsManifest:
    """Of the weights `tag` with the SHA-256 of their `files` by stage, and the `result` of their
    evaluation; what they belong to: `identity`, and `experiment`."""
    return WeightsManifest(tag=tag, files=dict(files), **result, **belongs)


def commit_weights(folder: Path, manifest: WeightsManifest) -> None:
    """What workers have written takes the place of what is in `folder`. Files that are on the disk
    of another host may be missing. Raises `CheckpointError`."""
    new = _new(folder)
    write_manifest(new, manifest)
    sync_folder(new)
    _swap(folder)


def settle_weights(folder: Path) -> None:
    """End what a coordinator that was killed had begun. Raises `CheckpointError`."""
    new, old = _new(folder), _old(folder)
    place = _present(folder)
    if place != folder:
        with _writing(folder):
            os.rename(place, folder)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)


def read_weights(folder: Path, stages: Iterable[str]) -> tuple[Weights, WeightsManifest | None]:
    """Those of `stages` in `folder`, each held against the manifest; None where there is none.

    Raises `CheckpointError` naming the file that is missing, damaged, or not of these weights.
    """
    for attempt in (1, 2):
        place = _present(folder)
        manifest = None
        try:
            if manifest_file(place).exists():
                manifest = read_manifest(place, WeightsManifest)
            return {stage: _load(place, stage, manifest) for stage in stages}, manifest
        except CheckpointError:
            # Others may have been put in their place meanwhile, by a run that goes on.
            if attempt == 2 or not _has_changed(folder, place, manifest):
                raise
    raise AssertionError("unreachable")


def _load(folder: Path, stage: str, manifest: WeightsManifest | None) -> dict[str, Array]:
    if manifest is None:
        return load_stage(folder, stage)
    digest = manifest.files.get(stage)
    if digest is None:
        raise CheckpointError(f"{manifest_file(folder)} knows no stage {stage}")
    return load_stage(folder, stage, digest)


def _has_changed(folder: Path, place: Path, manifest: WeightsManifest | None) -> bool:
    try:
        return _present(folder) != place or read_manifest(place, WeightsManifest) != manifest
    except CheckpointError:
        return False


def _present(folder: Path) -> Path:
    """Where the weights are: a kill may have come while folders took each other's place."""
    if folder.exists():
        return folder
    if _is_committed(_new(folder)):
        return _new(folder)
    return _old(folder) if _old(folder).exists() else folder


def _is_committed(new: Path) -> bool:
    try:
        read_manifest(new, WeightsManifest)
    except CheckpointError:
        return False
    return True


def _swap(folder: Path) -> None:
    new, old = _new(folder), _old(folder)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"can't write {folder}: it is there and no folder; move it away")
    with _writing(folder):
        shutil.rmtree(old, ignore_errors=True)
        if not folder.exists():
            os.rename(new, folder)
        elif _exchange(new, folder):
            os.rename(new, old)  # by its name no longer what is to come
        else:
            os.rename(folder, old)
            os.rename(new, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False where the system or the disk can't."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:  # Linux has it
        return False
    paths = os.fsencode(one), os.fsencode(other)
    return bool(rename(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"can't write {folder}: {error.strerror}") from error


def _new(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.new")


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")
