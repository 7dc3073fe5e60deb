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

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import as_strided

from asyncdni.nn.base import Array, Slot, rows
from asyncdni.nn.layers.windows import Geometry, apart, filled_rows

__all__ = ["MecCorrelation", "MecKernelGradient"]

#: About so many bytes are lowered or produced at a time: with less the products become small, with
#: more they do not fit into the cache.
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
        return (slice(i, min(i + step, len(x))) for i in range(0, len(x), step))

    def take(self, x: Array) -> None:
        """Keep x (n, C, H, W) with channels last, and with the border to its left and right."""
        g = self._geometry
        shape = (len(x), g.size[0], self._span, g.channels)
        self._last = filled_rows(self._scratch, "last", shape, x.dtype, 0)
        inner = self._last[:, :, self._inner]
        np.copyto(inner, apart(x, self._scratch)[:, :, :, self._seen].transpose(0, 2, 3, 1))

    def columns_first(self) -> Array:
        """The lowered matrix (n Wo, H kw C) of the samples that were taken."""
        g = self._geometry
        lowered = self._lower(slice(None), (0, 2, 1, 3))
        return lowered.reshape(-1, g.size[0] * g.row)

    def rows_first(self, chosen: slice) -> Array:
        """The lowered matrices (H', n Wo, kw C) of the chosen rows of the samples taken."""
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
        """For each output row: its index, the columns of the lowered matrix that it reads, and the
        rows of w that they are multiplied by."""
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
        """The gradients of w (kh, kw, C, O) and of the bias (O,), valid until the next call."""
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
