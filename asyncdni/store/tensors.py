"""Weights on disk: one safetensors file a declared stage, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as load_bytes
from safetensors.numpy import save as to_bytes

from asyncdni.errors import CheckpointError
from asyncdni.files import check_file, read_file, replaced

__all__ = [
    "LENGTH_BYTES",
    "Array",
    "Piece",
    "StoredStage",
    "decode",
    "decode_arrays",
    "digest_of",
    "encode",
    "encoded",
    "header_length",
    "load_stage",
    "metadata_of",
    "save_stages",
    "sync_folder",
    "write_atomically",
]

Array = NDArray[Any]

#: What the safetensors package raises for a file that is no such file, or cut off.
_NOT_WHOLE = SafetensorError, ValueError, KeyError, TypeError, OverflowError


def save_stages(folder: Path, state: Mapping[str, Mapping[str, Array]]) -> dict[str, str]:
    """Write `{stage: {"0.weight": array}}` as folder/stage.safetensors; returns their sha256.

    Raises `CheckpointError` where the folder can't be written; a file is then as it was before.
    """
    digests = {}
    for stage, arrays in state.items():
        # The largest items first, so that all are aligned, as some readers want them to be.
        ordered = sorted(arrays.items(), key=lambda one: -one[1].itemsize)
        pieces = encode(dict(ordered), {})
        write_atomically(folder / f"{stage}.safetensors", *pieces)
        digests[stage] = digest_of(pieces)
    return digests


def digest_of(pieces: Iterable[Piece]) -> str:
    """The SHA-256 of a file that is made of these pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def encoded(arrays: Mapping[str, Array]) -> bytes:
    """The bytes of a safetensors file with these arrays."""
    return to_bytes({name: np.asarray(array, order="C") for name, array in arrays.items()})


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


class StoredStage(Mapping[str, Array]):
    """The weights of one declared stage in their file folder/stage.safetensors. An array is read
    each time that it is asked for, so that no more than one of them needs memory.

    All of its methods raise `CheckpointError` for a file that is missing or not whole."""

    def __init__(self, folder: Path, stage: str) -> None:
        self._stage = stage
        self._path = folder / f"{stage}.safetensors"
        with self._opened() as file:
            self._names = list(file.keys())

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        with self._opened() as file:
            found: Array = file.get_tensor(name)
            return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            check_file(self._path)
            with safe_open(self._path, framework="np") as file:
                yield file
        except FileNotFoundError:
            raise CheckpointError(f"no weights of stage {self._stage} at {self._path}") from None
        except OSError as error:
            why = error.strerror or error
            raise CheckpointError(f"can't read {self._path}: {why}") from error
        except _NOT_WHOLE as error:
            raise _not_whole(str(self._path), error) from error


def decode_arrays(content: bytes, name: str) -> dict[str, Array]:
    """Decode the bytes of a safetensors file called `name`. Raises `CheckpointError`."""
    try:
        return load_bytes(content)
    except _NOT_WHOLE as error:
        raise _not_whole(name, error) from error


def _not_whole(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(f"{name} is not a whole safetensors file: {error}")


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


# --- encoding ------------------------------------------------------------------------------------

#: Of a file, in order.
Piece = bytes | memoryview

LENGTH_BYTES = 8
_HEADER_MAX = 100_000_000  # of the format
_METADATA = "__metadata__"
#: As it stands in the header, before the sum is known. No string in JSON contains a bare quote, so
#: nothing else in a header looks like it.
_BLANK = b'"crc32": "00000000"'

_TYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


def encode(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> list[Piece]:
    """One stage's state as a safetensors file that knows whether it is whole. The pieces of the
    file come in order: the header, and the arrays' bytes, not copied.

    The metadata hold a CRC-32 of header and data, so that a file without a manifest (a snapshot)
    can't be taken for what it is not. The safetensors package does not write such files here, as it
    copies all arrays twice: 7 ms for the 12.6 MB of a layer of 1024 x 1024 with Adam, of 10 ms in
    all. Format: https://github.com/huggingface/safetensors (8 bytes of the header's length,
    little-endian; the header, JSON; the data).

    Raises `CheckpointError` for an array whose dtype no such file can hold.
    """
    data, header, start = [], {}, 0
    for name, given in arrays.items():
        kind = _TYPES.get(given.dtype.name)
        if kind is None:
            raise CheckpointError(
                f"{name} is {given.dtype}, which can't be saved; expected one of "
                f"{', '.join(_TYPES)}"
            )
        array = np.asarray(given, given.dtype.newbyteorder("<"), order="C")
        end = start + array.nbytes
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": (start, end)}
        data.append(array.reshape(-1).view(np.uint8).data)
        start = end
    text = json.dumps({_METADATA: {**metadata, "crc32": "00000000"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    summed = text.replace(_BLANK, b'"crc32": "%08x"' % _sum(text, *data), 1)
    return [len(text).to_bytes(LENGTH_BYTES, "little") + summed, *data]


def decode(content: bytes, name: str) -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays and metadata of a file of `encode`'s; `name` is the file's, for messages.

    Raises `CheckpointError` for anything else, and for a file that has changed since.
    """
    length = header_length(content[:LENGTH_BYTES])
    text = content[LENGTH_BYTES : LENGTH_BYTES + length]
    if not length or len(text) < length:
        raise CheckpointError(f"{name} is cut off, or was never written to its end")
    metadata = metadata_of(text)
    found = metadata.get("crc32", "")
    blank = text.replace(b'"crc32": "%b"' % found.encode(), _BLANK, 1)
    data = memoryview(content)[LENGTH_BYTES + length :]
    if found != f"{_sum(blank, data):08x}":
        raise CheckpointError(f"{name} is damaged: its content is not what was written")
    return decode_arrays(content, name), metadata


def header_length(first: bytes) -> int:
    """Read the header's length from the first 8 bytes of a file; 0 where no header is so long."""
    length = int.from_bytes(first, "little")
    return length if len(first) == LENGTH_BYTES and length <= _HEADER_MAX else 0


def metadata_of(text: bytes) -> dict[str, str]:
    """Read the metadata from the header `text`; empty where it is no header."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    metadata = header.get(_METADATA) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        return {}
    return {name: value for name, value in metadata.items() if isinstance(value, str)}


def _sum(*pieces: Piece) -> int:
    total = 0
    for piece in pieces:
        total = zlib.crc32(piece, total)
    return total
