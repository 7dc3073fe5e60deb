"""The IDX format of MNIST: a magic number, one big-endian size an axis, then the values.

    0x00 0x00  type (0x08: uint8)  axes  |  4 bytes an axis: its size  |  the values, row-major

Source: LeCun, Cortes and Burges, "The MNIST database", section "File formats". Files may be
compressed by gzip, which is told from their first bytes and not from their names.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib

import numpy as np
from numpy.typing import NDArray

from asyncdni.errors import DataError

__all__ = ["decompress", "parse"]

_GZIP_MAGIC = b"\x1f\x8b"
_UINT8 = 0x08


def decompress(content: bytes, source: str, bytes_max: int) -> bytes:
    """`content` as it is, or unpacked where it is gzip.

    Raises `DataError` naming `source` for damaged gzip and for more than `bytes_max` bytes.
    """
    raw = content
    if content.startswith(_GZIP_MAGIC):
        try:
            # One byte beyond the limit tells "too long" without unpacking all of a hostile file.
            raw = gzip.GzipFile(fileobj=io.BytesIO(content)).read(bytes_max + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{source}: damaged gzip file ({error})") from None
    if len(raw) > bytes_max:
        raise DataError(f"{source}: longer than the {bytes_max} bytes that were expected")
    return raw


def parse(raw: bytes, source: str, axes: int) -> NDArray[np.uint8]:
    """The uint8 array of `axes` axes in an IDX file, as a read-only view of `raw`.

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
