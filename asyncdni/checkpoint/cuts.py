"""The cuts of a run, in `DIR/checkpoints`: commit one, find the newest that is whole."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from pathlib import Path

from asyncdni.checkpoint.files import stage_file
from asyncdni.checkpoint.manifest import Manifest, manifest_file, read_manifest, write_manifest
from asyncdni.errors import CheckpointError
from asyncdni.files import open_file
from asyncdni.weights import sync_folder

__all__ = ["commit", "cut_folder", "cuts_until", "latest", "next_cut"]

_NUMBERED = re.compile(r"[0-9]{6,18}")


def cut_folder(folder: Path, cut: int) -> Path:
    """Where cut number `cut` of `DIR/checkpoints` is: "000012"."""
    return folder / f"{cut:06d}"


def next_cut(folder: Path) -> int:
    """A number that no cut in `folder` has had, whole or not; 1 at first. Raises
    `CheckpointError`."""
    return max(_numbers(folder), default=0) + 1


def cuts_until(folder: Path, newest: int) -> list[int]:
    """Numbers of all cuts up to `newest`, whole or not, the newest first. Raises
    `CheckpointError`."""
    return sorted((n for n in _numbers(folder) if n <= newest), reverse=True)


def commit(folder: Path, manifest: Manifest, keep: int) -> None:
    """Make the files that workers have written a cut, and remove older ones.

    The manifest is written last, durably. Then cuts before the last `keep` go, and whatever is left
    of earlier ones that never became whole; what can't be removed stays. Raises `CheckpointError`
    where the manifest can't be written, or a file that it names is missing: then there is no such
    cut, and the ones before it are as they were.
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
    """The newest whole cut of `DIR/checkpoints`, every file of it checked; None where none has been
    committed. And what is wrong with those after it, a line each.

    Raises `CheckpointError` where cuts have been committed and none is whole.
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
    """Of what interrupted attempts at the same cut have left."""
    known = {manifest_file(own), *(stage_file(own, stage) for stage in manifest.files)}
    with contextlib.suppress(OSError):
        for path in own.iterdir():
            if path not in known:
                path.unlink()


def _remove(own: Path) -> None:
    """The manifest first: what is half removed is no cut."""
    with contextlib.suppress(OSError):
        manifest_file(own).unlink(missing_ok=True)
        shutil.rmtree(own, ignore_errors=True)
