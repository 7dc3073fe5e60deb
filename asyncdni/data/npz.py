"""A user's own data: one .npz file with the arrays x_train, y_train, x_test and y_test.

x is (N, …): floating, taken as it is, or uint8, scaled by 1/255. `data.targets` says what y is:

* "classes": (N,) or (N, 1) whole numbers from 0, of any type, bool among them. There are as many
  classes as the largest label of both parts, plus one.
* "values": (N,) or (N, K) numbers of any type, taken as they are; (N,) is read as (N, 1).
* "inputs": y is ignored, as the targets are x.
* "auto": values where y_train is floating, else classes. In an experiment the losses decide: see
  `experiment.parse`.

The file is written by `numpy.savez` or `numpy.savez_compressed`. Python objects in such a file are
pickles, which run code when they are loaded; they are never read.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from asyncdni import config
from asyncdni.data.base import ARRAYS, Dataset
from asyncdni.data.checks import Form, check_forms, measured, read_labels
from asyncdni.data.meta import Array, Inputs, Meta
from asyncdni.errors import DataError
from asyncdni.files import open_file

__all__ = ["checksums", "dataset", "describe", "inputs", "load", "read", "read_one"]

_Y = ("y_train", "y_test")

#: How many bytes of x_train are read to find the range of its numbers; this bounds the time that a
#: start takes.
_LOOKED_AT_BYTES = 1 << 27

#: How many numbers are read at a time.
_CHUNK = 1 << 20

#: The most bytes that one byte of a deflated member can unpack to; a stored member is as it is.
_DEFLATE_MAX = 1032


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_columns: bool = False  # whether the array is in Fortran's order


def describe(data: config.Npz) -> Meta:
    """Return the shapes, from the headers of the arrays; of the contents only y is read.

    Raises `DataError` for a file that is missing, damaged or of another form.
    """
    path = Path(data.path)
    with _opened(path, ARRAYS) as archive:
        forms = {name: _header(archive, name) for name in ARRAYS}
    values = _are_values(data.targets, forms)
    check_forms(data.path, forms, values=values)
    if values:
        outputs = math.prod(forms["y_train"].shape[1:])
    else:
        with _opened(path, ARRAYS) as archive:
            labels = [_array(archive, name) for name in _Y]
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
    """Load the whole file; nothing in it depends on the seed. Raises `DataError` as `describe`
    does."""
    return dataset(data.path, read(Path(data.path)), data.targets)


def dataset(source: str, arrays: Mapping[str, Array], targets: config.NpzTargets) -> Dataset:
    """Return the four arrays as a data set; `targets` says what y is.

    Raises `DataError` for arrays that don't fit each other, and for labels that are not whole
    numbers from 0."""
    values = _are_values(targets, arrays)
    check_forms(source, arrays, values=values)
    kept = dict(arrays)
    for name in _Y:
        y = arrays[name]
        kept[name] = y.reshape(len(y), -1) if values else read_labels(source, name, y)
    classes = None if values else _classes(source, [kept["y_train"], kept["y_test"]])
    return Dataset(source, **kept, classes=classes)


def read(path: Path) -> dict[str, Array]:
    """Read the four arrays of an .npz file, as they are. Raises `DataError`."""
    with _opened(path, ARRAYS) as archive:
        return {name: _array(archive, name) for name in ARRAYS}


def read_one(path: Path, names: Sequence[str]) -> Array:
    """Read the first of `names` that an .npz file has. Raises `DataError` as `read` does."""
    with _opened(path, names) as archive:
        held = [entry.removesuffix(".npy") for entry in archive.namelist()]
        there = [name for name in names if name in held]
        if not there:
            raise DataError(f"no array {names[0]}; {_found(archive, names)}")
        return _array(archive, there[0])


def checksums(data: config.Npz) -> dict[str, str]:
    """Return the CRC-32 of each array with its header, as stored in the file, by name. Reading an
    array checks it. Raises `DataError` for a file that can't be read."""
    with _opened(Path(data.path), ARRAYS) as archive:
        return {name: f"crc32 {_info(archive, name).CRC:08x}" for name in ARRAYS}


def inputs(data: config.Npz) -> Inputs:
    """Return the kind and range of x_train, found from its first 128 MiB.

    Raises `DataError` as `describe` does."""
    with _opened(Path(data.path), ARRAYS) as archive:
        header = _header(archive, "x_train")
        if header.by_columns:
            return measured(_array(archive, "x_train"))
        row_bytes = max(1, math.prod(header.shape[1:]) * header.dtype.itemsize)
        count = min(header.shape[0], max(1, _LOOKED_AT_BYTES // row_bytes))
        with _member(archive, "x_train") as stream:
            _read_header(stream, "x_train")
            content = stream.read(count * row_bytes)
        return measured(np.frombuffer(content, header.dtype).reshape(count, *header.shape[1:]))


@contextmanager
def _opened(path: Path, expected: Sequence[str]) -> Iterator[zipfile.ZipFile]:
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; expected an .npz file with {', '.join(expected)}"
        ) from None
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: {_no_zip(path, expected, error)}") from None
    except MemoryError:
        raise DataError(
            f"{path}: its arrays take more memory than there is; expected what fits into memory "
            "whole: split the file, or keep its numbers as uint8 or float16"
        ) from None
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


def _header(archive: zipfile.ZipFile, name: str) -> _Header:
    with _member(archive, name) as stream:
        header = _read_header(stream, name)
        claimed = stream.tell() + math.prod(header.shape) * header.dtype.itemsize
    info = _info(archive, name)
    held = info.file_size
    if claimed != held:
        raise DataError(f"{name} is damaged: its header claims {claimed} bytes, it has {held}")
    bounded = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if bounded and held > info.compress_size * _DEFLATE_MAX + _DEFLATE_MAX:
        raise DataError(
            f"{name} is damaged: {info.compress_size} bytes in the file can't stand for the {held} "
            "that it claims"
        )
    return header


def _read_header(stream: IO[bytes], name: str) -> _Header:
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
    return _Header(shape, dtype, by_columns and len(shape) > 1)


def _info(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(f"{name}.npy")
    except KeyError:
        raise DataError(f"no array {name}; {_found(archive, ARRAYS)}") from None


def _found(archive: zipfile.ZipFile, expected: Sequence[str]) -> str:
    found = ", ".join(sorted(entry.removesuffix(".npy") for entry in archive.namelist()))
    return f"expected {', '.join(expected)}, found {found or 'nothing'}"


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(_info(archive, name))


def _array(archive: zipfile.ZipFile, name: str) -> Array:
    _header(archive, name)  # refuses objects, and sizes that the file does not have
    with _member(archive, name) as stream:
        array: Array = npy.read_array(stream, allow_pickle=False)
        return array


def _are_answers(path: Path) -> bool:
    """Return whether all values are 0 or 1, so that an output can be right or wrong."""
    with _opened(path, ARRAYS) as archive:
        return all(_is_binary(archive, name) for name in _Y)


def _is_binary(archive: zipfile.ZipFile, name: str) -> bool:
    header = _header(archive, name)
    with _member(archive, name) as stream:
        _read_header(stream, name)
        while content := stream.read(_CHUNK * header.dtype.itemsize):
            part = np.frombuffer(content, header.dtype)
            if not ((part == 0) | (part == 1)).all():
                return False
    return True


def _are_values(targets: config.NpzTargets, forms: Mapping[str, Form]) -> bool:
    """Return whether y is read as values. With "inputs" y is ignored, so values will do: nothing is
    asked of them."""
    if targets == "auto":
        return forms["y_train"].dtype.kind == "f"
    return targets != "classes"


def _classes(source: str, labels: Sequence[Array]) -> int:
    parts = zip(_Y, labels, strict=True)
    return 1 + max(int(read_labels(source, name, part).max()) for name, part in parts)
