"""Windows that slide over the planes of a feature map: their options, and how many fit."""

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
    """Windows of `kernel` elements, `stride` apart, over planes with borders of zeros (or of what
    a layer says) `before` the first and `after` the last element of each axis."""

    kernel: Pair
    stride: Pair
    before: Pair
    after: Pair

    def counts(self, size: Pair, *, where: str) -> Pair:
        """How many fit into planes of `size`, by axis. Raises `ConfigError` where none does."""
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
    """Of a correlation: what is laid on what."""

    channels: int  # C
    size: Pair  # (H, W) of x
    filters: int  # O
    outputs: Pair  # (Ho, Wo)
    kernel: Pair  # (kh, kw)
    stride: Pair = (1, 1)  # (sh, sw)
    corner: Pair = (0, 0)  # (top, left): the first window begins so far outside x

    @property
    def row(self) -> int:
        """Numbers in one row of a window, of all channels."""
        return self.kernel[1] * self.channels

    def span(self, axis: int) -> int:
        """Elements from the first to the last that any window sees, the border among them."""
        return (self.outputs[axis] - 1) * self.stride[axis] + self.kernel[axis]

    def overlap(self, axis: int) -> tuple[slice, slice]:
        """Which elements of that span are x's, and which of x they are."""
        before = self.corner[axis]
        first = max(0, before)
        last = max(first, min(self.span(axis), self.size[axis] + before))
        return slice(first, last), slice(first - before, last - before)


def pair(name: str, value: object, *, least: int) -> Pair:
    """An option given as one whole number for both axes, or as [vertical, horizontal]."""
    given = value if isinstance(value, list | tuple) else [value, value]
    whole = [one for one in given if isinstance(one, int) and not isinstance(one, bool)]
    if len(given) != 2 or len(whole) != 2 or min(whole) < least:
        raise ConfigError(
            f"{name} {value!r}: expected a whole number of at least {least}, or two as "
            "[vertical, horizontal]"
        )
    return whole[0], whole[1]


def planes(shape: tuple[int, ...], *, where: str) -> tuple[int, int, int]:
    """(C, H, W) of a feature map. Raises `ConfigError` for inputs of another shape."""
    if len(shape) != 3 or min(shape) < 1:
        raise ConfigError(
            f"{where} takes inputs of shape (C, H, W), not {shape}: a reshape layer makes them so"
        )
    channels, height, width = shape
    return channels, height, width


def filled_rows(
    slot: Slot, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], value: float
) -> Array:
    """As `rows`, and filled with `value` when it is made: a border that nobody writes keeps it."""
    before = slot.get(name)
    found = rows(slot, name, shape, dtype)
    if slot[name] is not before:
        slot[name].fill(value)
    return found


def _shown(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"


# --- channels last -------------------------------------------------------------------------------
#
# Feature maps turned from channels first to channels last, and what that costs the caches.
#
# The turn reads one number of each channel in turn, a plane apart. Where planes lie a large power
# of two bytes apart, all of these reads compete for a few sets of the cache, and each line is
# fetched again for every number in it: planes of 32 x 32 took five times as long as planes of 28 x
# 28. Such planes are first moved apart by one line more.

#: Planes that lie a multiple of this apart meet in a few sets of the cache.
_CLASH_BYTES = 1024
#: Of a cache, at least.
_LINE_BYTES = 64
#: With fewer, one line of each fits into a set.
_CHANNELS = 8


def apart(x: Array, scratch: Slot) -> Array:
    """x (n, C, H, W), or a copy in `scratch` whose planes do not clash, until the next call."""
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
