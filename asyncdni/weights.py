"""Weights on disk: one safetensors file a declared stage, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_bytes
from safetensors.numpy import save as to_bytes

from asyncdni.errors import CheckpointError

__all__ = ["load_stage", "save_stages", "write_atomically"]

Array = NDArray[Any]


def save_stages(folder: Path, state: Mapping[str, Mapping[str, Array]]) -> dict[str, str]:
    """Write `{stage: {"0.weight": array}}` as folder/stage.safetensors; returns their sha256.

    Raises `CheckpointError` where the folder can't be written; a file is then as it was before.
    """
    digests = {}
    for stage, arrays in state.items():
        content = to_bytes({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        write_atomically(folder / f"{stage}.safetensors", content)
        digests[stage] = hashlib.sha256(content).hexdigest()
    return digests


def load_stage(folder: Path, stage: str) -> dict[str, Array]:
    """The weights of one declared stage. Raises `CheckpointError` for a missing or torn file."""
    path = folder / f"{stage}.safetensors"
    try:
        return load_bytes(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"no weights of stage {stage} at {path}") from None
    except OSError as error:
        raise CheckpointError(f"can't read {path}: {error.strerror}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write through a temporary file beside it. Raises `CheckpointError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise CheckpointError(f"can't write {path}: {error.strerror}") from error
