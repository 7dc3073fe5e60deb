"""A user's own data: one .npz file with the arrays x_train, y_train, x_test and y_test.

x is (N, …): floating, taken as it is, or uint8, scaled by 1/255. y is (N,) whole numbers from 0
(classes: as many as the largest label of both parts, plus one), or floating (values): (N, K), and
(N,) is read as (N, 1).

Written by `numpy.savez` or `numpy.savez_compressed`. Objects in such a file are pickles, which run
code when they are loaded: they are never read.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from asyncdni import config
from asyncdni.datasets.base import ARRAYS, Array, Dataset, Meta
from asyncdni.datasets.checks import check_forms
from asyncdni.errors import DataError
from asyncdni.files import open_file

__all__ = ["describe", "load", "read"]


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def describe(data: config.Npz) -> Meta:
    """Shapes, from the headers of the arrays; of the contents only whole-number labels are read.

    Raises `DataError` for a file that is missing, damaged or of another form.
    """
    path = Path(data.path)
    with _opened(path) as archive:
        forms = {name: _column_form(_header(archive, name), name) for name in ARRAYS}
    values = forms["y_train"].dtype.kind == "f"
    check_forms(data.path, forms, values=values)
    outputs = forms["y_train"].shape[1] if values else _classes(_labels(path))
    return Meta(
        input_shape=forms["x_train"].shape[1:],
        targets="values" if values else "classes",
        outputs=outputs,
        train_samples=forms["x_train"].shape[0],
        test_samples=forms["x_test"].shape[0],
    )


def load(data: config.Npz, seed: int) -> Dataset:
    """The whole file; nothing in it depends on the seed. Raises `DataError` as `describe` does."""
    arrays = read(Path(data.path))
    values = arrays["y_train"].dtype.kind == "f"
    check_forms(data.path, arrays, values=values)
    classes = None if values else _classes([arrays["y_train"], arrays["y_test"]])
    return Dataset(data.path, **arrays, classes=classes)


def read(path: Path) -> dict[str, Array]:
    """The four arrays of an .npz file, (N,) values as (N, 1). Raises `DataError`."""
    with _opened(path) as archive:
        return {name: _column(_array(archive, name), name) for name in ARRAYS}


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; expected an .npz file with {', '.join(ARRAYS)}"
        ) from None
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{path}: damaged, or no .npz file at all ({error}); "
            "expected what numpy.savez or numpy.savez_compressed writes"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from None
    # NotImplementedError, RuntimeError: zip members that are encrypted or packed in other ways.
    except (EOFError, ValueError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path}: can't be read ({error}); write it anew") from None


def _header(archive: zipfile.ZipFile, name: str) -> _Header:
    with _member(archive, name) as stream:
        header = _read_header(stream, name)
        claimed = stream.tell() + math.prod(header.shape) * header.dtype.itemsize
    held = archive.getinfo(f"{name}.npy").file_size
    if claimed != held:
        raise DataError(f"{name} is damaged: its header claims {claimed} bytes, it has {held}")
    return header


def _read_header(stream: IO[bytes], name: str) -> _Header:
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(stream)
    else:
        raise DataError(f"{name} is in .npy format {version}; expected (1, 0) or (2, 0)")
    if dtype.hasobject:
        raise DataError(
            f"{name} holds Python objects, a pickle, which is never loaded; "
            "expected an array of numbers"
        )
    return _Header(shape, dtype)


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    try:
        return archive.open(f"{name}.npy")
    except KeyError:
        found = ", ".join(sorted(entry.removesuffix(".npy") for entry in archive.namelist()))
        raise DataError(
            f"no array {name}; expected {', '.join(ARRAYS)}, found {found or 'nothing'}"
        ) from None


def _array(archive: zipfile.ZipFile, name: str) -> Array:
    _header(archive, name)  # refuses objects, and sizes that the file does not have
    with _member(archive, name) as stream:
        array: Array = npy.read_array(stream, allow_pickle=False)
        return array


def _labels(path: Path) -> list[Array]:
    with _opened(path) as archive:
        return [_array(archive, name) for name in ("y_train", "y_test")]


def _classes(labels: list[Array]) -> int:
    # At least one, so that labels below 0 are refused as such, by `check_contents`.
    return max(1, *(int(part.max()) + 1 for part in labels))


def _is_column(name: str, form: _Header | Array) -> bool:
    return name.startswith("y") and form.dtype.kind == "f" and len(form.shape) == 1


def _column_form(header: _Header, name: str) -> _Header:
    return header._replace(shape=(*header.shape, 1)) if _is_column(name, header) else header


def _column(array: Array, name: str) -> Array:
    return array[:, None] if _is_column(name, array) else array
