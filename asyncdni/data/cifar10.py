"""CIFAR-10 (Krizhevsky 2009), binary version: 50,000 training and 10,000 test images in colour, 32
by 32 pixels.

There are six files of records. A record is one byte for the class, 0 to 9, then the red, the green
and the blue plane, row by row. Source: "The CIFAR-10 dataset", section "Binary version". The files
are found by name in the folders of `download.data_folders` and in `cifar-10-batches-bin` there,
where the published archive puts them. Files may have fewer or more records than the published ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from asyncdni.config import Cifar10
from asyncdni.data.base import Dataset
from asyncdni.data.download import data_folders, listed
from asyncdni.data.meta import Array, Meta
from asyncdni.errors import DataError

__all__ = [
    "FILES",
    "IMAGE_SHAPE",
    "PACKED_FOLDER",
    "RECORD_BYTES",
    "TEST_FILE",
    "checksums",
    "describe",
    "find",
    "load",
]

#: The files of the training images.
FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
#: The folder of the files in the published archive.
PACKED_FOLDER = "cifar-10-batches-bin"

#: Channels (red, green, blue), rows, columns; numbers from 0 to 255 are scaled to [0, 1].
IMAGE_SHAPE = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32
_CLASSES = 10


def describe(data: Cifar10) -> Meta:
    """Return the shapes, and the counts computed from the sizes of the files.

    Raises `DataError` for files that are missing or of a wrong size."""
    *train, test = find(data.path)
    return Meta(
        input_shape=IMAGE_SHAPE,
        targets="classes",
        outputs=_CLASSES,
        train_samples=sum(map(_records, train)),
        test_samples=_records(test),
    )


def load(data: Cifar10, seed: int) -> Dataset:
    """Return all images; nothing in them depends on the seed. Raises `DataError` as `describe`
    does."""
    *train, test = find(data.path)
    x_train, y_train = _read(train)
    x_test, y_test = _read([test])
    return Dataset("cifar10", x_train, y_train, x_test, y_test, classes=_CLASSES)


def checksums(data: Cifar10) -> dict[str, str]:
    """Return the SHA-256 of each of the six files, by name. Raises `DataError` as `describe`
    does."""
    return {path.name: _sha256(path) for path in find(data.path)}


def find(path: str) -> list[Path]:
    """Return the five training files and the test file: in the folder `path` or, where that is
    empty, in the data folders. Raises `DataError` where one is missing."""
    folders = [
        place
        for folder in data_folders(path, "cifar10")
        for place in (folder, folder / PACKED_FOLDER)
    ]
    found = [_first(name, folders) for name in (*FILES, TEST_FILE)]
    missing = [name for name, file in zip((*FILES, TEST_FILE), found, strict=True) if file is None]
    if missing:
        cure = f" --folder {path}`, or mend data.path" if path else "`, or set ASYNCDNI_DATA"
        raise DataError(
            f"CIFAR-10 is incomplete: no {', '.join(missing)} in any of "
            f"{listed(folders)}; fetch it with `asyncdni data cifar10{cure}"
        )
    return [file for file in found if file is not None]


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from None


def _first(name: str, folders: Sequence[Path]) -> Path | None:
    paths = (folder / name for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def _records(path: Path) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from None
    return _counted(path, size)


def _counted(path: Path, size: int) -> int:
    if size == 0 or size % RECORD_BYTES:
        raise DataError(
            f"{path}: has {size} bytes; expected a multiple of {RECORD_BYTES}, a label and a "
            f"{' x '.join(map(str, IMAGE_SHAPE))} image each; fetch it again with "
            "`asyncdni data cifar10`"
        )
    return size // RECORD_BYTES


def _read(paths: Sequence[Path]) -> tuple[Array, Array]:
    """Return images (N, 3, 32, 32) and labels (N,) of all files, uint8; labels in range."""
    counts = [_records(path) for path in paths]
    images = np.empty((sum(counts), *IMAGE_SHAPE), np.uint8)
    labels = np.empty(sum(counts), np.uint8)
    start = 0
    for path, count in zip(paths, counts, strict=True):
        records = _records_of(path, count)
        rows = slice(start, start + count)
        labels[rows] = records[:, 0]
        images[rows] = records[:, 1:].reshape(-1, *IMAGE_SHAPE)
        start += count
    return images, labels


def _records_of(path: Path, count: int) -> Array:
    """Return the records of a file, (count, RECORD_BYTES) uint8. Raises `DataError` for wrong
    labels, and for a file that has changed."""
    try:
        raw = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from None
    if _counted(path, raw.size) != count:
        raise DataError(f"{path}: has changed while it was read; try again")
    records = raw.reshape(count, RECORD_BYTES)
    wrong = np.flatnonzero(records[:, 0] >= _CLASSES)
    if wrong.size:
        raise DataError(
            f"{path}: has label {records[wrong[0], 0]} in record {wrong[0]}; expected 0 to "
            f"{_CLASSES - 1}: no file of CIFAR-10's binary version"
        )
    return records
