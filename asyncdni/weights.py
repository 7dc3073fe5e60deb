"""Weights on disk: one safetensors file a declared stage, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_bytes
from safetensors.numpy import save as to_bytes

from asyncdni.errors import CheckpointError
from asyncdni.files import read_file, replaced

__all__ = [
    "Array",
    "decode_arrays",
    "encoded",
    "load_stage",
    "save_stages",
    "sync_folder",
    "write_atomically",
]

Array = NDArray[Any]


def save_stages(folder: Path, state: Mapping[str, Mapping[str, Array]]) -> dict[str, str]:
    """Write `{stage: {"0.weight": array}}` as folder/stage.safetensors; returns their sha256.

    Raises `CheckpointError` where the folder can't be written; a file is then as it was before.
    """
    digests = {}
    for stage, arrays in state.items():
        content = encoded(arrays)
        write_atomically(folder / f"{stage}.safetensors", content)
        digests[stage] = hashlib.sha256(content).hexdigest()
    return digests


def encoded(arrays: Mapping[str, Array]) -> bytes:
    """The bytes of a safetensors file with these arrays."""
    return to_bytes({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def load_stage(folder: Path, stage: str, digest: str | None = None) -> dict[str, Array]:
    """The weights of one declared stage; `digest`: the SHA-256 of the file, where it is known.

    Raises `CheckpointError` for a file that is missing, torn, or another one."""
    path = folder / f"{stage}.safetensors"
    try:
        content = read_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"no weights of stage {stage} at {path}") from None
    except OSError as error:
        raise CheckpointError(f"can't read {path}: {error.strerror}") from error
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise CheckpointError(
            f"{path} is damaged, or of other weights: its sha256 is not that in manifest.json "
            "beside it"
        )
    return decode_arrays(content, str(path))


def decode_arrays(content: bytes, name: str) -> dict[str, Array]:
    """From the bytes of a safetensors file called `name`. Raises `CheckpointError`."""
    try:
        return load_bytes(content)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{name} is not a whole safetensors file: {error}") from error


def write_atomically(path: Path, *content: bytes | memoryview) -> None:
    """Write the pieces of it through a temporary file beside it. Raises `CheckpointError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as file:
            for piece in content:
                file.write(piece)
    except OSError as error:
        raise CheckpointError(f"can't write {path}: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Make the names in it last: without this a power cut may undo a rename. Raises
    `CheckpointError`."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise CheckpointError(f"can't write {folder}: {error.strerror}") from error
