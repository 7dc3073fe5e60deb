"""Windows that slide over the planes of a feature map: their options, how many fit, and how maps
are turned to channels last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array, Slot, rows

__all__ = ["Geometry", "Pair", "Windows", "apart", "filled_rows", "pair", "planes"]

#: (vertical, horizontal)
Pair = tuple[int, int]


@dataclass(frozen=True)
class Windows:
    """Windows of `kernel` elements, `stride` apart, over planes with a border. `before` and `after`
    give the border's width before the first and after the last element of each axis; a layer
    decides what its elements are, usually zeros."""

    kernel: Pair
    stride: Pair
    before: Pair
    after: Pair

    def counts(self, size: Pair, *, where: str) -> Pair:
        """How many windows fit into planes of `size`, by axis. Raises `ConfigError` where none
        does."""
        padded = [size[axis] + self.before[axis] + self.after[axis] for axis in (0, 1)]
        if any(padded[axis] < self.kernel[axis] for axis in (0, 1)):
            raise ConfigError(
                f"{where} has windows of {_shown(self.kernel)}, which do not fit into planes of "
                f"{_shown(size)}, with padding {_shown(padded)}: expected at least as large ones"
            )
        down, across = (
            (padded[axis] - self.kernel[axis]) // self.stride[axis] + 1 for axis in (0, 1)
        )
        return down, across


@dataclass(frozen=True)
class Geometry:
    """The sizes of a correlation of x (B, C, H, W) with a kernel, to y (B, O, Ho, Wo)."""

    channels: int  # C
    size: Pair  # (H, W) of x
    filters: int  # O
    outputs: Pair  # (Ho, Wo)
    kernel: Pair  # (kh, kw)
    stride: Pair = (1, 1)  # (sh, sw)
    corner: Pair = (0, 0)  # (top, left): how far outside x the first window begins

    @property
    def row(self) -> int:
        """The count of numbers in one row of a window, over all channels."""
        return self.kernel[1] * self.channels

    def span(self, axis: int) -> int:
        """The count of elements from the first to the last that a window sees, with the border."""
        return (self.outputs[axis] - 1) * self.stride[axis] + self.kernel[axis]

    def overlap(self, axis: int) -> tuple[slice, slice]:
        """Which elements of that span lie inside x, and which elements of x they are."""
        before = self.corner[axis]
        first = max(0, before)
        last = max(first, min(self.span(axis), self.size[axis] + before))
        return slice(first, last), slice(first - before, last - before)


def pair(name: str, value: object, *, least: int) -> Pair:
    """The option `name`, given as one whole number for both axes or as [vertical, horizontal].
    Raises `ConfigError` for anything else, and for numbers below `least`."""
    given = value if isinstance(value, list | tuple) else [value, value]
    whole = [one for one in given if isinstance(one, int) and not isinstance(one, bool)]
    if len(given) != 2 or len(whole) != 2 or min(whole) < least:
        raise ConfigError(
            f"{name} {value!r}: expected a whole number of at least {least}, or two as "
            "[vertical, horizontal]"
        )
    return whole[0], whole[1]


def planes(shape: tuple[int, ...], *, where: str) -> tuple[int, int, int]:
    """The sizes (C, H, W) of a feature map. Raises `ConfigError` for inputs of another shape."""
    if len(shape) != 3 or min(shape) < 1:
        raise ConfigError(
            f"{where} takes inputs of shape (C, H, W), not {shape}: a reshape layer makes them so"
        )
    channels, height, width = shape
    return channels, height, width


def filled_rows(
    slot: Slot, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], value: float
) -> Array:
    """As `rows`, but the array is filled with `value` when it is made. A border that is never
    written to keeps that value."""
    before = slot.get(name)
    found = rows(slot, name, shape, dtype)
    if slot[name] is not before:
        slot[name].fill(value)
    return found


def _shown(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"


#: Planes whose distance is a multiple of this share a few sets of the cache.
_CLASH_BYTES = 1024
#: The size of a cache line, at least.
_LINE_BYTES = 64
#: Up to so many channels, one line of each fits into a set of the cache.
_CHANNELS = 8


def apart(x: Array, scratch: Slot) -> Array:
    """x (n, C, H, W), or a copy in `scratch` that is faster to turn to channels last; the copy is
    valid until the next call.

    Turning a map to channels last reads one number of each channel after the other, a plane apart.
    Where planes lie a large power of two bytes apart, all these reads compete for a few sets of the
    cache, and each line is fetched again for every number in it: planes of 32 x 32 took five times
    as long as planes of 28 x 28. In the copy, such planes lie one line further apart.
    """
    samples, channels, height, width = x.shape
    clashing = x.strides[1] % _CLASH_BYTES == 0 and channels > _CHANNELS and height * width > 1
    if not (clashing and x.flags.c_contiguous):
        return x
    size = height * width
    stride = size + _LINE_BYTES // x.itemsize
    kept = rows(scratch, "apart", (samples, channels, stride), x.dtype)
    np.copyto(kept[:, :, :size], x.reshape(samples, channels, size))
    by_sample, by_channel, each = kept.strides
    return as_strided(kept, x.shape, (by_sample, by_channel, width * each, each), writeable=False)
