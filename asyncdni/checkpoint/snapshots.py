"""Rolling snapshots: the last two of each stage, overwritten in turn.

Overwriting a file that is there costs the copying of its bytes and no more; replacing it by a
rename makes ext4 write them out at once (20 ms for 12.6 MB against 1). The file in the making
begins with a length of zero until its last byte has been written, so a kill at any moment leaves it
recognisably torn and the other one whole. A worker's stages share a serial number, and what is read
is of one serial: never one stage of now and the other of before. Those of a later process are
newer, whatever their numbers: see `claims`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from asyncdni.checkpoint.encoding import (
    LENGTH_BYTES,
    Array,
    Piece,
    decode,
    encode,
    header_length,
    metadata_of,
)
from asyncdni.errors import CheckpointError
from asyncdni.files import check_file, open_file, read_file

__all__ = ["discard_snapshots", "read_snapshots", "slots", "write_snapshots"]

Content = tuple[dict[str, Array], dict[str, str]]

#: Which of two is newer: term and incarnation of the process that wrote it, and its serial, from 1.
Age = tuple[int, int, int]
_NONE: Age = (0, 0, 0)


def slots(folder: Path, stage: str) -> tuple[Path, Path]:
    """The two files of a declared stage. (No stage has a dot in its name.)"""
    return folder / f"{stage}.0.safetensors", folder / f"{stage}.1.safetensors"


def write_snapshots(
    folder: Path,
    state: Mapping[str, Mapping[str, Array]],
    noted: Mapping[str, str],
    order: tuple[int, int] = (0, 0),
) -> None:
    """Overwrite one file of each stage, keeping those that belong together; `order` is the writer's
    (see `claims.Claim`). Raises `OSError`."""
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
    """Torn, to whoever looks, until it is done."""
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


def _age(path: Path) -> Age:
    """`_NONE` for a file that is missing, torn or not a snapshot. Raises `OSError` where no file
    can be opened just now: the newest must not be taken for the one to be overwritten."""
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


def _age_of(noted: Mapping[str, str]) -> Age:
    """Files of early versions do not say who has written them."""
    term, incarnation = (int(noted.get(name, "0")) for name in ("term", "incarnation"))
    return term, incarnation, int(noted["serial"])


def read_snapshots(folder: Path, stages: Sequence[str]) -> dict[str, Content]:
    """By stage, the newest that is whole, all of one moment. Raises `CheckpointError` for none."""
    found: list[dict[Age, Content]] = []
    wrong = f"no snapshot of {', '.join(stages)} in {folder}"
    for stage in stages:
        own: dict[Age, Content] = {}
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
    """Remove all, as when training goes back to before them. Raises `CheckpointError`."""
    try:
        for path in folder.glob("*.[01].safetensors"):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"can't remove snapshots in {folder}: {error.strerror}") from error
