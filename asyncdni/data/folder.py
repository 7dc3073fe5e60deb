"""A folder of .npy files as the arrays of a data set.

Each array is one file, x_train.npy, or several, whose numbers count up from 0: x_train-0000.npy,
x_train-0001.npy, … The rows of a file come behind those of the file before. Files of other names
are left alone.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from asyncdni.data.meta import Array
from asyncdni.data.stored import Extent, Header, Stored, is_large, read_header
from asyncdni.errors import DataError
from asyncdni.files import open_file

__all__ = ["Folder"]

#: How many bytes are read at a time for a checksum.
_CHUNK_BYTES = 1 << 20


class Folder:
    """The arrays of a folder, by name. All methods raise `DataError`, which names the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def header(self, name: str) -> Header:
        """Return the form of an array, whose rows are those of all its files."""
        paths = self._files(name)
        return _joined(paths, [_form(path) for path in paths])

    def array(self, name: str) -> Array | Stored:
        """Return an array: in its files if it is large, else in memory."""
        paths = self._files(name)
        forms = [_form(path) for path in paths]
        if is_large(_joined(paths, forms)):
            return Stored([_extent(path) for path in paths])
        return np.concatenate([_loaded(path) for path in paths])

    def first(self, name: str, count: int) -> Array | Stored:
        """Return the first `count` rows of an array, as `array` does."""
        array = self.array(name)
        return array.choose(np.arange(count)) if isinstance(array, Stored) else array[:count]

    def checksum(self, name: str) -> str:
        """Return the CRC-32 of an array's files, one behind the other. That of a single file is
        that of the same array in an .npz file."""
        crc = 0
        for path in self._files(name):
            with _opened(path) as file:
                while content := file.read(_CHUNK_BYTES):
                    crc = zlib.crc32(content, crc)
        return f"crc32 {crc:08x}"

    def _files(self, name: str) -> list[Path]:
        """Return the files of an array in the order of their rows."""
        numbered = re.compile(rf"{re.escape(name)}-(\d+)\.npy")
        found = [(numbered.fullmatch(path.name), path) for path in self._path.iterdir()]
        shards = sorted((int(match[1]), path) for match, path in found if match)
        single = self._path / f"{name}.npy"
        if single.exists():
            if shards:
                raise DataError(f"holds both {single.name} and {shards[0][1].name}; remove one")
            return [single]
        if not shards:
            raise DataError(
                f"no array {name}; expected a file {name}.npy, or several: {name}-0000.npy, "
                f"{name}-0001.npy, …"
            )
        for expected, (number, path) in enumerate(shards):
            if number < expected:
                raise DataError(f"holds two files with the number {number}, one is {path.name}")
            if number > expected:
                raise DataError(
                    f"{name}-{expected:04}.npy is missing: there is {path.name}; expected numbers "
                    "without a gap, from 0"
                )
        return [path for _, path in shards]


def _joined(paths: Sequence[Path], forms: Sequence[Header]) -> Header:
    """Return the form of the array whose rows are in several files."""
    first = forms[0]
    for path, form in zip(paths, forms, strict=True):
        if not form.shape or form.shape[1:] != first.shape[1:] or form.dtype != first.dtype:
            raise DataError(
                f"{path.name} has shape {form.shape} and dtype {form.dtype}; expected rows like "
                f"those of {paths[0].name}: {first.shape[1:]} and {first.dtype}"
            )
    rows = sum(form.shape[0] for form in forms)
    by_columns = any(form.by_columns for form in forms)
    return Header((rows, *first.shape[1:]), first.dtype, by_columns)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open one of the files. Raises `DataError` for any error in the block."""
    try:
        with open_file(path) as file:
            yield file
    except OSError as error:
        raise DataError(f"{path.name} can't be read: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise DataError(f"{path.name} is damaged, or no .npy file ({error})") from None


def _form(path: Path) -> Header:
    with _opened(path) as file:
        form = read_header(file, path.name)
        claimed, held = file.tell() + form.size_bytes, os.fstat(file.fileno()).st_size
    if claimed != held:
        raise DataError(f"{path.name} is damaged: its header claims {claimed} bytes, it has {held}")
    return form


def _loaded(path: Path) -> Array:
    with _opened(path) as file:
        array: Array = npy.read_array(file, allow_pickle=False)
        return array


def _extent(path: Path) -> Extent:
    with _opened(path) as file:
        form = read_header(file, path.name)
        return Extent(file, str(path), file.tell(), form)
