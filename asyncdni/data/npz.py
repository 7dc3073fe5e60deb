"""A user's own data: the arrays x_train, y_train, x_test and y_test, in one .npz file or in a
folder of .npy files (see `data.folder`).

x is (N, …): floating, taken as it is, or uint8, scaled by 1/255. `data.targets` says what y is:

* "classes": (N,) or (N, 1) whole numbers from 0, of any type, bool among them. There are as many
  classes as the largest label of both parts, plus one.
* "values": (N,) or (N, K) numbers of any type, taken as they are; (N,) is read as (N, 1).
* "inputs": y is ignored, as the targets are x.
* "auto": values where y_train is floating, else classes. In an experiment the losses decide: see
  `experiment.parse`.

An .npz file is written by `numpy.savez` or `numpy.savez_compressed`. Its members lie in it as they
are, or compressed. Of a large one that is not compressed, rows are read when a batch needs them;
all others are read into memory. Python objects in such a file are pickles, which run code when they
are loaded; they are never read.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from numpy.lib import format as npy

from asyncdni import config
from asyncdni.data.base import ARRAYS, Dataset
from asyncdni.data.checks import Form, check_forms, measured, read_labels
from asyncdni.data.folder import Folder
from asyncdni.data.meta import Array, Inputs, Meta
from asyncdni.data.stored import (
    Extent,
    Header,
    Stored,
    chunks,
    flattened,
    is_large,
    read_header,
)
from asyncdni.errors import DataError
from asyncdni.files import open_file

__all__ = ["checksums", "dataset", "describe", "inputs", "load", "read", "read_one"]

_Y = ("y_train", "y_test")

#: How many bytes of x_train are read to find the range of its numbers; this bounds the time that a
#: start takes.
_LOOKED_AT_BYTES = 1 << 27

#: How many bytes are read at a time to compare an array with its checksum.
_CHUNK_BYTES = 1 << 20

#: The most bytes that one byte of a deflated member can unpack to; a stored member is as it is.
_DEFLATE_MAX = 1032

#: Where a member's own header in a zip file says how long its name and what follows it are; the
#: member's content is behind them. Source: PKWARE's APPNOTE.TXT, 4.3.7.
_LENGTHS_AT = 26

_TOO_LARGE = (
    "its arrays take more memory than there is; expected what fits into memory whole, or what can "
    "stay in the file: written by numpy.savez, not compressed and in C order"
)


def describe(data: config.Npz) -> Meta:
    """Return the shapes, from the headers of the arrays; of the contents only y is read.

    Raises `DataError` for a file that is missing, damaged or of another form.
    """
    path = Path(data.path)
    with _opened(path, ARRAYS) as files:
        forms = {name: files.header(name) for name in ARRAYS}
    values = _are_values(data.targets, forms)
    check_forms(data.path, forms, values=values)
    if values:
        outputs = math.prod(forms["y_train"].shape[1:])
    else:
        with _opened(path, ARRAYS) as files:
            labels = [files.array(name) for name in _Y]
        outputs = _classes(data.path, labels)
    return Meta(
        input_shape=forms["x_train"].shape[1:],
        targets="values" if values else "classes",
        outputs=outputs,
        train_samples=forms["x_train"].shape[0],
        test_samples=forms["x_test"].shape[0],
        answers=not values or data.targets == "inputs" or _are_answers(path),
    )


def load(data: config.Npz, seed: int) -> Dataset:
    """Open the arrays, and read those that are to be in memory; nothing in them depends on the
    seed. Raises `DataError` as `describe` does."""
    return dataset(data.path, read(Path(data.path)), data.targets)


def dataset(
    source: str, arrays: Mapping[str, Array | Stored], targets: config.NpzTargets
) -> Dataset:
    """Return the four arrays as a data set; `targets` says what y is.

    Raises `DataError` for arrays that don't fit each other, and for labels that are not whole
    numbers from 0."""
    values = _are_values(targets, arrays)
    check_forms(source, arrays, values=values)
    kept = dict(arrays)
    for name in _Y:
        y = arrays[name]
        kept[name] = flattened(y) if values else read_labels(source, name, y)
    classes = None if values else _classes(source, [kept["y_train"], kept["y_test"]])
    return Dataset(source, **kept, classes=classes)


def read(path: Path) -> dict[str, Array | Stored]:
    """Return the four arrays of a file or folder, as they are: large ones as `Stored` where that is
    possible, others in memory. Raises `DataError`."""
    with _opened(path, ARRAYS) as files:
        return {name: files.array(name) for name in ARRAYS}


def read_one(path: Path, names: Sequence[str]) -> Array:
    """Read the first of `names` that an .npz file has. Raises `DataError` as `read` does."""
    with _opened_archive(path, names) as archive:
        there = [name for name in names if name in archive.names()]
        if not there:
            raise DataError(f"no array {names[0]}; {archive.found(names)}")
        return archive.loaded(there[0])


def checksums(data: config.Npz) -> dict[str, str]:
    """Return the CRC-32 of each array with its header, by name. An .npz file holds these, and
    reading an array checks it; of the files in a folder they are computed. Raises `DataError` for
    what can't be read."""
    with _opened(Path(data.path), ARRAYS) as files:
        return {name: files.checksum(name) for name in ARRAYS}


def inputs(data: config.Npz) -> Inputs:
    """Return the kind and range of x_train, found from its first 128 MiB.

    Raises `DataError` as `describe` does."""
    with _opened(Path(data.path), ARRAYS) as files:
        header = files.header("x_train")
        if header.by_columns:
            return measured(files.array("x_train"))
        count = min(header.shape[0], max(1, _LOOKED_AT_BYTES // max(1, header.row_bytes)))
        return measured(files.first("x_train", count))


class _Files(Protocol):
    """The arrays of a file or folder, by name; see `_Archive` and `data.folder.Folder`."""

    def header(self, name: str) -> Header: ...
    def array(self, name: str) -> Array | Stored: ...
    def first(self, name: str, count: int) -> Array | Stored: ...
    def checksum(self, name: str) -> str: ...


@contextmanager
def _opened(path: Path, expected: Sequence[str]) -> Iterator[_Files]:
    if not path.is_dir():
        with _opened_archive(path, expected) as archive:
            yield archive
        return
    try:
        yield Folder(path)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from None
    except MemoryError:
        raise DataError(f"{path}: {_TOO_LARGE}") from None


@contextmanager
def _opened_archive(path: Path, expected: Sequence[str]) -> Iterator[_Archive]:
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            yield _Archive(file, archive)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; expected an .npz file with {', '.join(expected)}"
        ) from None
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: {_no_zip(path, expected, error)}") from None
    except MemoryError:
        raise DataError(f"{path}: {_TOO_LARGE}") from None
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from None
    # NotImplementedError, RuntimeError: zip members that are encrypted or packed in other ways.
    except (EOFError, ValueError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path}: can't be read ({error}); write it anew") from None


def _no_zip(path: Path, expected: Sequence[str], error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(len(npy.MAGIC_PREFIX))
    if start == npy.MAGIC_PREFIX:
        return (
            "an .npy file, which holds one array without a name; expected an .npz file with "
            f"{', '.join(expected)}, as numpy.savez(path, {expected[0]}=…) writes it"
        )
    return (
        f"damaged, or no .npz file at all ({error}); "
        "expected what numpy.savez or numpy.savez_compressed writes"
    )


class _Archive:
    """The arrays of an .npz file, by name. Methods raise `DataError`, and what `zipfile` does."""

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile) -> None:
        self._file = file
        self._archive = archive

    def names(self) -> list[str]:
        """Return the names of the arrays that are there."""
        return [entry.removesuffix(".npy") for entry in self._archive.namelist()]

    def found(self, expected: Sequence[str]) -> str:
        """Return words for what was expected and what is there."""
        return (
            f"expected {', '.join(expected)}, found {', '.join(sorted(self.names())) or 'nothing'}"
        )

    def header(self, name: str) -> Header:
        """Return the form of an array."""
        with self._member(name) as stream:
            header = read_header(stream, name)
            claimed = stream.tell() + header.size_bytes
        info = self._info(name)
        held = info.file_size
        if claimed != held:
            raise DataError(f"{name} is damaged: its header claims {claimed} bytes, it has {held}")
        bounded = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if bounded and held > info.compress_size * _DEFLATE_MAX + _DEFLATE_MAX:
            raise DataError(
                f"{name} is damaged: {info.compress_size} bytes in the file can't stand for the "
                f"{held} that it claims"
            )
        return header

    def array(self, name: str) -> Array | Stored:
        """Return an array: in the file if it is large and can be, else in memory. In both cases all
        of it is read once, to compare it with its checksum."""
        if not self._stays(name):
            return self.loaded(name)
        with self._member(name) as stream:
            while stream.read(_CHUNK_BYTES):
                pass  # at its end the stream compares the checksum
        return self._stored(name)

    def first(self, name: str, count: int) -> Array | Stored:
        """Return the first `count` rows of an array, which is in C order; its checksum is not
        looked at."""
        if self._stays(name):
            return self._stored(name).choose(np.arange(count))
        with self._member(name) as stream:
            header = read_header(stream, name)
            content = stream.read(count * header.row_bytes)
        return np.frombuffer(content, header.dtype).reshape(count, *header.shape[1:])

    def checksum(self, name: str) -> str:
        """Return the CRC-32 of an array with its header."""
        return f"crc32 {self._info(name).CRC:08x}"

    def loaded(self, name: str) -> Array:
        """Read an array into memory."""
        self.header(name)  # refuses objects, and sizes that the file does not have
        with self._member(name) as stream:
            array: Array = npy.read_array(stream, allow_pickle=False)
            return array

    def _stays(self, name: str) -> bool:
        packed = self._info(name).compress_type != zipfile.ZIP_STORED
        return not packed and is_large(self.header(name))

    def _stored(self, name: str) -> Stored:
        with self._member(name) as stream:
            header = read_header(stream, name)
            header_bytes = stream.tell()
        start = self._info(name).header_offset
        self._file.seek(start + _LENGTHS_AT)
        name_bytes, extra_bytes = struct.unpack("<HH", self._file.read(4))
        member = start + _LENGTHS_AT + 4 + name_bytes + extra_bytes
        where = f"{name} of {self._archive.filename}"
        return Stored([Extent(self._file, where, member + header_bytes, header)])

    def _info(self, name: str) -> zipfile.ZipInfo:
        try:
            return self._archive.getinfo(f"{name}.npy")
        except KeyError:
            raise DataError(f"no array {name}; {self.found(ARRAYS)}") from None

    def _member(self, name: str) -> IO[bytes]:
        return self._archive.open(self._info(name))


def _are_answers(path: Path) -> bool:
    """Return whether all values are 0 or 1, so that an output can be right or wrong."""
    with _opened(path, ARRAYS) as files:
        return all(_is_binary(files.array(name)) for name in _Y)


def _is_binary(array: Array | Stored) -> bool:
    return all(bool(((part == 0) | (part == 1)).all()) for _, part in chunks(array))


def _are_values(targets: config.NpzTargets, forms: Mapping[str, Form]) -> bool:
    """Return whether y is read as values. With "inputs" y is ignored, so values will do: nothing is
    asked of them."""
    if targets == "auto":
        return forms["y_train"].dtype.kind == "f"
    return targets != "classes"


def _classes(source: str, labels: Sequence[Array | Stored]) -> int:
    parts = zip(_Y, labels, strict=True)
    return 1 + max(int(read_labels(source, name, part).max()) for name, part in parts)
