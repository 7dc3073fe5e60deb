"""Weights of the whole network by name, `best` or `final`: all of one moment, or not at all.

```
DIR/best.new/STAGE.safetensors    as the workers write them
DIR/best.new/manifest.json        once all have: the two folders change places, and
DIR/best.old/…                    what was there before is removed
```

A kill at any moment leaves the old weights or the new ones. Where the system can exchange two
folders in one step, a reader always finds one; elsewhere it looks under the other names as well.
Folders of early versions have no manifest and are read without its checks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from asyncdni.errors import CheckpointError
from asyncdni.store.claims import Claim
from asyncdni.store.manifest import WeightsManifest, manifest_file, read_manifest, write_manifest
from asyncdni.store.tensors import Array, load_stage, save_stages, sync_folder

__all__ = [
    "commit_weights",
    "read_weights",
    "settle_weights",
    "unfinished",
    "write_weights",
]

#: AT_FDCWD and RENAME_EXCHANGE of renameat2(2).
_AT_FDCWD, _EXCHANGE = -100, 2

Weights = dict[str, dict[str, Array]]


def write_weights(
    folder: Path, state: Mapping[str, Mapping[str, Array]], claim: Claim | None
) -> dict[str, str]:
    """Write the weights of some stages, to be committed as `folder`; returns SHA-256 by stage.

    Raises `CheckpointError`; committed weights are unchanged then.
    """
    into = unfinished(folder)
    try:  # an earlier attempt may have been cut short just before its end
        manifest_file(into).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"can't write to {into}: {error.strerror}") from error
    digests: dict[str, str] = {}
    for stage, arrays in state.items():
        if claim is not None:
            claim.check()
        digests |= save_stages(into, {stage: arrays})
    return digests


def commit_weights(folder: Path, manifest: WeightsManifest) -> None:
    """Replace the weights in `folder` by those that workers have written.

    Raises `CheckpointError`, also where a file that the manifest names is missing.
    """
    new = unfinished(folder)
    for stage in manifest.files:
        if not (new / f"{stage}.safetensors").is_file():
            raise CheckpointError(f"{new} lacks the weights of {stage}: nothing is committed")
    write_manifest(new, manifest)
    sync_folder(new)
    _swap(folder)


def settle_weights(folder: Path) -> None:
    """Finish the replacement that a killed coordinator had begun. Raises `CheckpointError`."""
    new, old = unfinished(folder), _old(folder)
    place = _present(folder)
    if place != folder:
        with _writing(folder):
            os.rename(place, folder)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)


def read_weights(folder: Path, stages: Iterable[str]) -> tuple[Weights, WeightsManifest | None]:
    """The weights of `stages` in `folder`, checked against the manifest; None without one.

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
            # A running coordinator may have replaced them meanwhile.
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
    """The folder that holds the weights: a kill may have interrupted their replacement."""
    if folder.exists():
        return folder
    if _is_committed(unfinished(folder)):
        return unfinished(folder)
    return _old(folder) if _old(folder).exists() else folder


def _is_committed(new: Path) -> bool:
    try:
        read_manifest(new, WeightsManifest)
    except CheckpointError:
        return False
    return True


def _swap(folder: Path) -> None:
    new, old = unfinished(folder), _old(folder)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"can't write {folder}: it exists and is not a folder; move it away")
    with _writing(folder):
        shutil.rmtree(old, ignore_errors=True)
        if not folder.exists():
            os.rename(new, folder)
        elif _exchange(new, folder):
            os.rename(new, old)  # it now holds the old weights
        else:
            os.rename(folder, old)
            os.rename(new, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or the disk can't."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:  # not Linux
        return False
    paths = os.fsencode(one), os.fsencode(other)
    return bool(rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _EXCHANGE) == 0)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"can't write {folder}: {error.strerror}") from error


def unfinished(folder: Path) -> Path:
    """The folder of weights that are to be committed as `folder`."""
    return folder.with_name(f"{folder.name}.new")


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")
