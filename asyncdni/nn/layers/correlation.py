"""Correlation of feature maps with a kernel, as few large matrix products.

    y[b, :, i, j] = Σ_ky,kx  w[ky, kx]ᵀ x[b, :, i sh + ky - top, j sw + kx - left]

and the gradient of w. Elements outside of x are zero.

Lowering a whole window into a row of a matrix (im2col) copies every input kh kw times. This module
lowers less (MEC: Cho and Brand 2017, "MEC: Memory-efficient Convolution", arXiv 1706.06873). Only
the kw columns of a window are laid side by side, channels last, and a row of the lowered matrix
holds them for all heights one below the other. The kh heights of a window are then next to each
other in that row, so the matrix of one output row is a slice of the lowered one, without a copy.
Heights above and below the plane are not multiplied at all.

    lowered (n, Wo, H, kw, C) as a matrix (n Wo, H kw C):  row i reads from column (i sh - top) kw C

Samples are lowered a few at a time, so that the lowered matrix stays in the cache. With few
channels the products become too narrow, and `im2col` is faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array, Slot, rows, slices
from asyncdni.nn.options import is_whole

__all__ = [
    "Geometry",
    "Im2colCorrelation",
    "Im2colKernelGradient",
    "MecCorrelation",
    "MecKernelGradient",
    "Pair",
    "Windows",
    "apart",
    "filled_rows",
    "pair",
    "planes",
]

# --- windows -------------------------------------------------------------------------------------

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
        """Return how many windows fit into planes of `size`, by axis. Raises `ConfigError` where
        none does."""
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
        """Return the count of elements from the first to the last that a window sees, with the
        border."""
        return (self.outputs[axis] - 1) * self.stride[axis] + self.kernel[axis]

    def overlap(self, axis: int) -> tuple[slice, slice]:
        """Return which elements of that span lie inside x, and which elements of x they are."""
        before = self.corner[axis]
        first = max(0, before)
        last = max(first, min(self.span(axis), self.size[axis] + before))
        return slice(first, last), slice(first - before, last - before)


def pair(name: str, value: object, *, least: int) -> Pair:
    """Return the option `name`, given as one whole number for both axes or as [vertical,
    horizontal]. Raises `ConfigError` for anything else, and for numbers below `least`."""
    given = value if isinstance(value, list | tuple) else [value, value]
    whole = [one for one in given if is_whole(one)]
    if len(given) != 2 or len(whole) != 2 or min(whole) < least:
        raise ConfigError(
            f"{name} {value!r}: expected a whole number of at least {least}, or two as "
            "[vertical, horizontal]"
        )
    return whole[0], whole[1]


def planes(shape: tuple[int, ...], *, where: str) -> tuple[int, int, int]:
    """Return the sizes (C, H, W) of a feature map. Raises `ConfigError` for inputs of another
    shape."""
    if len(shape) != 3 or min(shape) < 1:
        raise ConfigError(
            f"{where} takes inputs of shape (C, H, W), not {shape}: a reshape layer makes them so"
        )
    channels, height, width = shape
    return channels, height, width


def filled_rows(
    slot: Slot, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], value: float
) -> Array:
    """Return what `rows` does, but the array is filled with `value` when it is made. A border that
    is never written to keeps that value."""
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
#: The most channels of which a cache line each fits into one set of the cache.
_CHANNELS = 8


def apart(x: Array, scratch: Slot) -> Array:
    """Return x (n, C, H, W), or a copy in `scratch` that is faster to turn to channels last; the
    copy is valid until the next call.

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


#: How many bytes, about, are lowered or produced at a time: with fewer the matrix products become
#: small, with more their operands do not fit into the cache.
_CHUNK_BYTES = 4 << 20


class _Lowering:
    """Lays the kw columns under each output column side by side, for a few samples at a time."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._span = geometry.span(1)
        self._inner, self._seen = geometry.overlap(1)
        self._scratch: Slot = {}

    def chunks(self, x: Array) -> Iterator[slice]:
        g = self._geometry
        lowered, found = g.size[0] * g.outputs[1] * g.row, g.filters * g.outputs[0] * g.outputs[1]
        step = max(1, _CHUNK_BYTES // (max(lowered, found) * x.itemsize))
        return slices(len(x), step)

    def take(self, x: Array) -> None:
        """Keep x (n, C, H, W) with channels last, and with the border to its left and right."""
        g = self._geometry
        shape = (len(x), g.size[0], self._span, g.channels)
        self._last = filled_rows(self._scratch, "last", shape, x.dtype, 0)
        inner = self._last[:, :, self._inner]
        np.copyto(inner, apart(x, self._scratch)[:, :, :, self._seen].transpose(0, 2, 3, 1))

    def columns_first(self) -> Array:
        """Return the lowered matrix (n Wo, H kw C) of the samples that were taken."""
        g = self._geometry
        lowered = self._lower(slice(None), (0, 2, 1, 3))
        return lowered.reshape(-1, g.size[0] * g.row)

    def rows_first(self, chosen: slice) -> Array:
        """Return the lowered matrices (H', n Wo, kw C) of the chosen rows of the samples taken."""
        lowered = self._lower(chosen, (1, 0, 2, 3))
        return lowered.reshape(len(lowered), -1, self._geometry.row)

    def _lower(self, chosen: slice, order: tuple[int, int, int, int]) -> Array:
        """Copy the windows (n, H', Wo, kw C) of the chosen rows, with the axes in `order`."""
        g, taken = self._geometry, self._last[:, chosen]
        by_sample, by_row, by_column, by_channel = taken.strides
        windows = as_strided(
            taken,
            (*taken.shape[:2], g.outputs[1], g.row),
            (by_sample, by_row, by_column * g.stride[1], by_channel),
            writeable=False,
        ).transpose(order)
        flat = rows(self._scratch, "lowered", (windows.size,), taken.dtype)
        lowered = flat.reshape(windows.shape)
        np.copyto(lowered, windows)
        return lowered


class MecCorrelation:
    """Computes y (B, O, Ho, Wo) of x (B, C, H, W) and w (kh, kw, C, O) by MEC."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._lowering = _Lowering(geometry)
        self._products = list(self._plan())
        self._scratch: Slot = {}

    def _plan(self) -> Iterator[tuple[int, slice, slice]]:
        """Give for each output row its index, the columns of the lowered matrix that it reads, and
        the rows of w that they are multiplied by."""
        g = self._geometry
        for i in range(g.outputs[0]):
            top = i * g.stride[0] - g.corner[0]  # the row of x under the window's first row
            first = min(max(0, -top), g.kernel[0])
            last = max(first, min(g.kernel[0], g.size[0] - top))
            reads = slice((first + top) * g.row, (last + top) * g.row)
            yield i, reads, slice(first * g.row, last * g.row)

    def apply(self, x: Array, w: Array, bias: Array | None, out: Array) -> Array:
        """Write y, plus `bias` (O,), into `out`, which may have any strides, and return it."""
        g = self._geometry
        matrix = w.reshape(-1, g.filters)
        for part in self._lowering.chunks(x):
            self._lowering.take(x[part])
            lowered = self._lowering.columns_first()
            size = g.outputs[0] * len(lowered) * g.filters
            flat = rows(self._scratch, "found", (size,), x.dtype)
            found = flat.reshape(g.outputs[0], len(lowered), g.filters)
            for i, reads, under in self._products:
                np.matmul(lowered[:, reads], matrix[under], out=found[i])
            if bias is not None:
                found += bias
            y = found.reshape(g.outputs[0], -1, g.outputs[1], g.filters)
            np.copyto(out[part], y.transpose(1, 3, 0, 2))
        return out


class MecKernelGradient:
    """Computes the gradient of w (kh, kw, C, O), summed over samples, from x and the gradient of y,
    by MEC."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._lowering = _Lowering(geometry)
        self._scratch: Slot = {}
        self._ones = np.ones(0)  # a product with it sums over samples and places

    def apply(self, x: Array, grad_y: Array) -> tuple[Array, Array]:
        """Return the gradients of w (kh, kw, C, O) and of the bias (O,), valid until the next
        call."""
        g = self._geometry
        shape = (g.kernel[0], g.row, g.filters)
        found = rows(self._scratch, "found", shape, x.dtype)
        bias = rows(self._scratch, "bias", (g.filters,), x.dtype)
        found.fill(0)
        bias.fill(0)
        for part in self._lowering.chunks(x):
            self._lowering.take(x[part])
            grads = self._channels_last(grad_y[part])
            flat = grads.reshape(-1, g.filters)
            bias += np.matmul(self._ones_for(flat), flat)
            for phase in range(min(g.stride[0], g.size[0])):
                self._add(phase, grads, found)
        return found.reshape(*g.kernel, g.channels, g.filters), bias

    def _channels_last(self, grad_y: Array) -> Array:
        """Copy grad_y (n, O, Ho, Wo) as (Ho, n Wo, O)."""
        g = self._geometry
        flat = rows(self._scratch, "grads", (grad_y.size,), grad_y.dtype)
        grads = flat.reshape(g.outputs[0], len(grad_y), g.outputs[1], g.filters)
        np.copyto(grads, apart(grad_y, self._scratch).transpose(2, 0, 3, 1))
        return grads.reshape(g.outputs[0], -1, g.filters)

    def _ones_for(self, flat: Array) -> Array:
        if len(self._ones) < len(flat) or self._ones.dtype != flat.dtype:
            self._ones = np.ones(len(flat), flat.dtype)
        return self._ones[: len(flat)]

    def _add(self, phase: int, grads: Array, found: Array) -> None:
        """Add to `found` what the rows phase, phase + sh, … of x contribute. Each height of w that
        is ever laid on these rows meets them in order, so its contribution is one product over all
        samples and places."""
        g = self._geometry
        down, stride, top = g.outputs[0], g.stride[0], g.corner[0]
        heights = [ky for ky in range(g.kernel[0]) if (ky - top) % stride == phase]
        if not heights:
            return
        lowered = self._lowering.rows_first(slice(phase, None, stride))
        more = rows(self._scratch, "more", (g.row, g.filters), grads.dtype)
        for ky in heights:
            ahead = (ky - top - phase) // stride  # how far this row is ahead of its output row
            first, last = max(0, -ahead), min(down, len(lowered) - ahead)
            if first < last:
                seen = lowered[first + ahead : last + ahead].reshape(-1, g.row)
                np.matmul(seen.T, grads[first:last].reshape(-1, g.filters), out=more)
                found[ky] += more


# --- im2col --------------------------------------------------------------------------------------

#: How many bytes of columns, about, are made at a time.
_COLUMN_BYTES = 1 << 20


class _Columns:
    """The windows of a few samples at a time, each of them a column of a matrix."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = g = geometry
        self.height = g.channels * g.kernel[0] * g.kernel[1] + 1
        self.places = g.outputs[0] * g.outputs[1]
        self._inner, self._seen = zip(g.overlap(0), g.overlap(1), strict=True)
        self._scratch: Slot = {}

    def chunks(self, x: Array) -> Iterator[slice]:
        step = max(1, _COLUMN_BYTES // (self.height * self.places * x.itemsize))
        return slices(len(x), step)

    def of(self, x: Array) -> Array:
        """Return the columns (n, C kh kw + 1, Ho Wo) of x (n, C, H, W), valid until the next
        call."""
        g = self._geometry
        shape = (len(x), g.channels, g.span(0), g.span(1))
        padded = filled_rows(self._scratch, "padded", shape, x.dtype, 0)
        padded[:, :, *self._inner] = x[:, :, *self._seen]
        by_sample, by_channel, by_row, by_column = padded.strides
        windows = as_strided(
            padded,
            (*shape[:2], *g.kernel, *g.outputs),
            (
                *(by_sample, by_channel, by_row, by_column),
                *(by_row * g.stride[0], by_column * g.stride[1]),
            ),
            writeable=False,
        )
        columns = filled_rows(
            self._scratch, "columns", (len(x), self.height, self.places), x.dtype, 1
        )
        np.copyto(columns[:, :-1].reshape(windows.shape), windows)
        return columns


class Im2colCorrelation:
    """Computes y (B, O, Ho, Wo) of x (B, C, H, W) and w (kh, kw, C, O) by im2col.

        y = [w, bias] columns,  columns (n, C kh kw + 1, Ho Wo) with a last row of ones for the bias

    It computes the same as `MecCorrelation` and is faster where channels are few, as in images.
    Every number is copied kh kw times, but there are few of them. In return the output needs no
    transposition, which would take most of the time when filters are many and channels are few.

    Source: Chellapilla, Puri and Simard 2006, "High performance convolutional neural networks for
    document processing".
    """

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._columns = _Columns(geometry)
        self._scratch: Slot = {}

    def apply(self, x: Array, w: Array, bias: Array | None, out: Array) -> Array:
        """Write y, plus `bias` (O,), into `out`, which may have any strides, and return it."""
        g, columns = self._geometry, self._columns
        matrix = rows(self._scratch, "matrix", (g.filters, columns.height), x.dtype)
        matrix[:, :-1] = w.transpose(3, 2, 0, 1).reshape(g.filters, -1)
        matrix[:, -1] = 0 if bias is None else bias
        for part in columns.chunks(x):
            shape = (part.stop - part.start, g.filters, columns.places)
            if out.flags.c_contiguous:
                np.matmul(matrix, columns.of(x[part]), out=out[part].reshape(shape))
            else:
                found = rows(self._scratch, "found", shape, x.dtype)
                np.matmul(matrix, columns.of(x[part]), out=found)
                np.copyto(out[part], found.reshape(len(found), g.filters, *g.outputs))
        return out


class Im2colKernelGradient:
    """Computes the gradient of w (kh, kw, C, O), summed over samples, from x and the gradient of y,
    by im2col."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._columns = _Columns(geometry)
        self._scratch: Slot = {}

    def apply(self, x: Array, grad_y: Array) -> tuple[Array, Array]:
        """Return the gradients of w (kh, kw, C, O) and of the bias (O,)."""
        g, columns = self._geometry, self._columns
        total = np.zeros((g.filters, columns.height), x.dtype)
        for part in columns.chunks(x):
            grads = grad_y[part].reshape(-1, g.filters, columns.places)
            shape = (len(grads), g.filters, columns.height)
            each = rows(self._scratch, "each", shape, x.dtype)
            np.matmul(grads, columns.of(x[part]).transpose(0, 2, 1), out=each)
            total += each.sum(axis=0)
        kernel = total[:, :-1].reshape(g.filters, g.channels, *g.kernel)
        return kernel.transpose(2, 3, 1, 0), total[:, -1]
