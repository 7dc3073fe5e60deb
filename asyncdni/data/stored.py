"""Arrays that stay in their files (`Stored`): only the rows that are asked for are read.

Rows are read by their places in the file, without a mapping of it into memory. Linux maps up to
2 MB around each place that is looked at: of a file in its cache, 256 rows of 3 kB made 870 MB
resident, and took 0.7 ms where reading takes 0.5 ms; and to look at what is gone of a file that was
cut short ends a process with SIGBUS. The system's cache of files serves in both cases.

Shapes in comments: N rows, the samples; B of them that are read.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from asyncdni.errors import DataError

__all__ = ["Extent", "Header", "Stored", "chunks", "flattened", "is_large", "read_header"]

Array = NDArray[Any]

#: Arrays of fewer bytes are read into memory: reading a batch is faster then, and the files may
#: change.
_LARGE_BYTES = 1 << 26

#: The most rows that are looked at in one go in a pass over an array, and the most bytes of them;
#: this bounds the memory of a check.
_CHUNK_ROWS = 4096
_CHUNK_BYTES = 1 << 23


class Header(NamedTuple):
    """The form of an array in a file, as its .npy header tells it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_columns: bool = False  # whether the array is in Fortran's order

    @property
    def size_bytes(self) -> int:
        """How many bytes the array has, without its header."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """How many bytes one row has."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def read_header(stream: IO[bytes], name: str) -> Header:
    """Read the .npy header of the array `name`; the stream is then at its first number.

    Raises `DataError` for other versions of the format and for Python objects, and `ValueError` for
    what is no .npy header.
    """
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, by_columns, dtype = npy.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, by_columns, dtype = npy.read_array_header_2_0(stream)
    else:
        raise DataError(f"{name} is in .npy format {version}; expected (1, 0) or (2, 0)")
    if dtype.hasobject:
        raise DataError(
            f"{name} holds Python objects, a pickle, which is never loaded; "
            "expected an array of numbers"
        )
    return Header(shape, dtype, by_columns and len(shape) > 1)


def is_large(header: Header) -> bool:
    """Return whether the array is to stay in its file. One in Fortran's order is not: its rows lie
    scattered over the whole file."""
    return header.size_bytes >= _LARGE_BYTES and not header.by_columns


class Extent:
    """The bytes of one array in a file, which is kept open."""

    def __init__(self, file: IO[bytes], name: str, offset: int, header: Header) -> None:
        """
        Args:
            file: an open file; the caller may close it afterwards.
            name: of the file or its member, for error messages.
            offset: where the array's first number is, in bytes from the file's beginning.
            header: the form of the array, in C order.
        """
        self.header = header
        self._name = name
        self._offset = offset
        self._handle = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._handle)

    def read(self, row: int, out: Array) -> None:
        """Read the rows from number `row` on into `out` (B, bytes of a row) uint8.

        Raises `DataError` for a file that can't be read, or has become shorter."""
        content = out.reshape(-1).data
        place = self._offset + row * self.header.row_bytes
        try:
            while len(content):
                count = os.preadv(self._handle, [content], place)
                if not count:
                    raise DataError(
                        f"{self._name} ends before row {row + len(out)}; expected that it stays as "
                        "it is during a run: write a new file and rename it, as mv does"
                    )
                content, place = content[count:], place + count
        except OSError as error:
            raise DataError(f"{self._name} can't be read: {error.strerror}") from None


class Stored:
    """An array (N, …) whose rows lie in one or more files, one file behind the other.

    It has the shape, dtype and length of an array; what is read of it is copied into memory.
    Serves one thread at a time.
    """

    def __init__(
        self,
        files: Sequence[Extent],
        chosen: Array | None = None,
        row_shape: tuple[int, ...] | None = None,
    ) -> None:
        """
        Args:
            files: at least one; all have the same dtype and shape of a row.
            chosen: the numbers (N,) of the rows that the array has; None: all, in their order.
            row_shape: the shape of a row, where it is not that in the files.
        """
        self._files = files
        self._chosen = chosen
        self._starts = np.cumsum([0, *(file.header.shape[0] for file in files)])
        form = files[0].header
        rows = int(self._starts[-1]) if chosen is None else len(chosen)
        self.shape = (rows, *(form.shape[1:] if row_shape is None else row_shape))
        self.dtype = form.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Array) -> Array:
        """Return a new array of the rows in a slice, or with the numbers in `rows` (B,)."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        self.read(rows, out)
        return out

    def read(self, rows: Array, out: Array) -> None:
        """Read the rows with the numbers `rows` (B,), each from 0 to N - 1, into `out` (B, …):
        C-contiguous, of this dtype."""
        if self._chosen is not None:
            rows = self._chosen[rows]
        if not len(rows):
            return
        content = out.reshape(len(out), -1).view(np.uint8)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        places = rows - self._starts[which]
        # Rows that follow each other in a file are read in one piece.
        breaks = np.flatnonzero((np.diff(places) != 1) | (np.diff(which) != 0)) + 1
        starts = np.concatenate([[0], breaks])
        ends = [*breaks.tolist(), len(rows)]
        firsts = zip(which[starts].tolist(), places[starts].tolist(), strict=True)
        for (file, place), start, end in zip(firsts, starts.tolist(), ends, strict=True):
            self._files[file].read(place, content[start:end])

    def choose(self, rows: Array) -> Stored:
        """Return the array of the rows with these numbers, which stay in their files as well."""
        chosen = rows if self._chosen is None else self._chosen[rows]
        return Stored(self._files, chosen, self.shape[1:])

    def flattened(self) -> Stored:
        """Return the array with rows of one axis, (N, numbers of a row)."""
        return Stored(self._files, self._chosen, (math.prod(self.shape[1:]),))


def flattened(array: Array | Stored) -> Array | Stored:
    """Return an array (N, …) with rows of one axis, (N, numbers of a row)."""
    return array.flattened() if isinstance(array, Stored) else array.reshape(len(array), -1)


def chunks(array: Array | Stored) -> Iterator[tuple[int, Array]]:
    """Yield all rows of an array (N, …), some megabytes at a time, each time with the number of the
    first of them."""
    row_bytes = Header(array.shape, array.dtype).row_bytes
    step = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // max(1, row_bytes)))
    for start in range(0, len(array), step):
        yield start, array[start : start + step]
