"""MNIST (LeCun, Cortes, Burges): 60,000 training and 10,000 test images of handwritten digits, 28
by 28 pixels.

There are four IDX files, gzip or plain, found by name in the folders of `download.data_folders`.
Sizes and checksums are compared for the uncompressed bytes, however they have been compressed.

    IDX: 0x00 0x00  type (0x08: uint8)  axes  |  4 bytes per axis: its size  |  the values

Sizes are big-endian, values row-major. Source: LeCun, Cortes and Burges, "The MNIST database",
section "File formats". Gzip is recognised by its first bytes, not by the name of the file.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from asyncdni import config
from asyncdni.data.base import Dataset
from asyncdni.data.download import Progress, base_folder, data_folders, listed, receive, write
from asyncdni.data.meta import Array, Meta
from asyncdni.errors import DataError
from asyncdni.files import read_file

__all__ = [
    "FILES",
    "META",
    "MIRRORS",
    "File",
    "Progress",
    "as_planes",
    "checked",
    "decompress",
    "default_folder",
    "describe",
    "described_as",
    "fetch",
    "find",
    "held",
    "is_gzip",
    "load",
    "parse",
    "read",
]

# --- IDX files -----------------------------------------------------------------------------------

_GZIP_MAGIC = b"\x1f\x8b"
_UINT8 = 0x08


def is_gzip(start: bytes) -> bool:
    """Return whether a file that begins with these bytes is gzip; two are enough."""
    return start.startswith(_GZIP_MAGIC)


def decompress(content: bytes, source: str, bytes_max: int) -> bytes:
    """Return the bytes of a file, unpacked where they are gzip.

    Raises `DataError` naming `source` for damaged gzip and for more than `bytes_max` bytes.
    """
    raw = content
    if is_gzip(content):
        try:
            # One byte beyond the limit shows "too long" without unpacking all of a hostile file.
            raw = gzip.GzipFile(fileobj=io.BytesIO(content)).read(bytes_max + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{source}: damaged gzip file ({error})") from None
    if len(raw) > bytes_max:
        raise DataError(f"{source}: longer than the {bytes_max} bytes that were expected")
    return raw


def parse(raw: bytes, source: str, axes: int) -> NDArray[np.uint8]:
    """Return the uint8 array of `axes` axes in an IDX file, as a read-only view of `raw`.

    Raises `DataError` naming `source` for another magic number or length.
    """
    magic, expected = raw[:4], bytes([0, 0, _UINT8, axes])
    if magic != expected:
        raise DataError(
            f"{source}: starts with 0x{magic.hex()}; expected 0x{expected.hex()}, "
            f"an IDX file of uint8 with {axes} axes"
        )
    head = 4 + 4 * axes
    if len(raw) < head:
        raise DataError(f"{source}: has {len(raw)} bytes; expected a header of {head}")
    shape = tuple(int(size) for size in np.frombuffer(raw[4:head], dtype=">u4"))
    if len(raw) != head + math.prod(shape):
        raise DataError(
            f"{source}: has {len(raw)} bytes; expected {head + math.prod(shape)} for shape {shape}"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=head).reshape(shape)


# --- data set ------------------------------------------------------------------------------------


class File(NamedTuple):
    """One of the four files, as it is uncompressed."""

    name: str
    axes: int
    size: int  # bytes
    sha256: str


#: Training images and labels, test images and labels.
FILES = (
    File(
        "train-images-idx3-ubyte",
        3,
        47_040_016,
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    File(
        "train-labels-idx1-ubyte",
        1,
        60_008,
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    File(
        "t10k-images-idx3-ubyte",
        3,
        7_840_016,
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    File(
        "t10k-labels-idx1-ubyte",
        1,
        10_008,
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)

#: Inputs are the pixels row by row; numbers from 0 (paper) to 255 (ink) are scaled to [0, 1].
META = Meta(
    input_shape=(784,), targets="classes", outputs=10, train_samples=60_000, test_samples=10_000
)

#: The shape of an image with `planes`: channels, rows, columns.
_PLANES = (1, 28, 28)

_CURE = "`asyncdni data mnist`, or set ASYNCDNI_DATA to their folder"


def describe(data: config.Mnist) -> Meta:
    """Return the shapes and counts: `META`, or the same for image planes; reads no file."""
    return described_as(META, planes=data.planes)


def load(data: config.Mnist, seed: int) -> Dataset:
    """Load all of MNIST; nothing in it depends on the seed.

    Raises `DataError` where a file is missing, damaged or not the published one.
    """
    folders = data_folders(data.path, "mnist")
    cure = f"`asyncdni data mnist --folder {data.path}`, or mend data.path" if data.path else _CURE
    return as_planes(read(folders, cure), planes=data.planes)


def described_as(meta: Meta, *, planes: bool) -> Meta:
    """Return `meta` for images that come as pixels (784,) or, with `planes`, as (1, 28, 28)."""
    return msgspec.structs.replace(meta, input_shape=_PLANES) if planes else meta


def as_planes(dataset: Dataset, *, planes: bool) -> Dataset:
    """Return the images in the shape that `described_as` gives, as views of the same memory."""
    if not planes:
        return dataset
    return Dataset(
        dataset.source,
        dataset.x_train[:].reshape(-1, *_PLANES),
        dataset.y_train,
        dataset.x_test[:].reshape(-1, *_PLANES),
        dataset.y_test,
        dataset.classes,
    )


def read(folders: Sequence[Path], cure: str = _CURE) -> Dataset:
    """Read MNIST, each file from the first of `folders` that has it.

    Raises `DataError`; where files are missing, its message ends in `cure`.
    """
    paths = [find(file, folders) for file in FILES]
    missing = [file.name for file, path in zip(FILES, paths, strict=True) if path is None]
    if missing:
        raise DataError(
            f"MNIST is incomplete: no {', '.join(missing)} (plain or .gz) in any of "
            f"{listed(folders)}; fetch the four files with {cure}"
        )
    arrays = [_read(file, path) for file, path in zip(FILES, paths, strict=True) if path]
    x_train, y_train, x_test, y_test = arrays
    return Dataset("mnist", _flat(x_train), y_train, _flat(x_test), y_test, classes=META.outputs)


def find(file: File, folders: Sequence[Path]) -> Path | None:
    """Return the first existing path of `file`; None where there is none.

    A file may also be plain or carry the dotted name of some mirrors, `train-images.idx3-ubyte`.
    """
    # Compressed first: a fresh fetch, which writes these names, then wins over damaged leftovers.
    dotted = file.name.replace("-idx", ".idx")
    names = [f"{name}{end}" for name in (file.name, dotted) for end in (".gz", "")]
    paths = (folder / name for folder in folders for name in names)
    return next((path for path in paths if path.is_file()), None)


def checked(file: File, content: bytes, source: str) -> bytes:
    """Return the uncompressed bytes of `content`, if it is a right copy of `file`.

    Raises `DataError` naming `source`, what was given and what was expected, unless they are the
    published ones.
    """
    raw = decompress(content, source, file.size)
    found = parse(raw, source, file.axes)
    if len(raw) != file.size:
        raise DataError(
            f"{source}: holds an array of shape {found.shape}, {len(raw)} bytes; expected "
            f"{file.size}, those of MNIST's {file.name}"
        )
    given = hashlib.sha256(raw).hexdigest()
    if given != file.sha256:
        raise DataError(
            f"{source}: sha256 of the uncompressed bytes is {given}; expected {file.sha256}"
        )
    return raw


def _read(file: File, path: Path) -> Array:
    try:
        raw = checked(file, read_file(path), str(path))
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from None
    except DataError as error:
        raise DataError(
            f"{error}; fetch it again with `asyncdni data mnist --folder {path.parent}`"
        ) from None
    return parse(raw, str(path), file.axes)


def _flat(images: Array) -> Array:
    return images.reshape(len(images), -1)


# --- download ------------------------------------------------------------------------------------

#: Folders of the gzip files, which are tried in order.
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://raw.githubusercontent.com/fgnt/mnist/master/",
    "https://azureopendatastorage.blob.core.windows.net/mnist/",
)


def default_folder() -> Path:
    """Return the folder for downloaded files: in $ASYNCDNI_DATA, or else in the user's cache
    folder.

    It is the subfolder `mnist`, unless some of the files already are in the folder itself.
    """
    base = base_folder()
    return base if any(find(file, [base]) for file in FILES) else base / "mnist"


def held(file: File, folder: Path) -> Path | None:
    """Return the path of `file` in `folder` if it is there and has the published bytes, else
    None."""
    path = find(file, [folder])
    if path is None:
        return None
    try:
        checked(file, read_file(path), str(path))
    except (OSError, DataError):
        return None
    return path


def fetch(file: File, folder: Path, mirrors: Sequence[str], progress: Progress) -> str:
    """Download `file` into `folder` as gzip; returns the mirror that had it.

    Raises `DataError` if no mirror gives the published bytes (saying why, for each), or the folder
    can't be written to.
    """
    names = ", ".join(f"{each.name}.gz" for each in FILES)
    cure = f"check the network and try again, or put {names} from any copy of MNIST into {folder}"
    content, mirror = receive(
        f"{file.name}.gz",
        mirrors,
        lambda content, source: checked(file, content, source),
        bytes_max=file.size,
        progress=progress,
        cure=cure,
    )
    write(folder / f"{file.name}.gz", content)
    return mirror
