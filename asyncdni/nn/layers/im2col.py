"""Correlation of maps of few channels, such as images: whole windows as columns of a matrix.

This computes the same as `correlation`, in the textbook's way (Chellapilla, Puri and Simard 2006,
"High performance convolutional neural networks for document processing"). Every number is copied
kh kw times, but with few channels there are few numbers. In return the output needs no
transposition, which would take most of the time when filters are many and channels are few.

    y = [w, bias] columns,  columns (n, C kh kw + 1, Ho Wo) with a last row of ones for the bias
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import as_strided

from asyncdni.nn.base import Array, Slot, rows
from asyncdni.nn.layers.windows import Geometry, filled_rows

__all__ = ["Im2colCorrelation", "Im2colKernelGradient"]

#: About so many bytes of columns are made at a time.
_CHUNK_BYTES = 1 << 20


class _Columns:
    """The windows of a few samples at a time."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = g = geometry
        self.height = g.channels * g.kernel[0] * g.kernel[1] + 1
        self.places = g.outputs[0] * g.outputs[1]
        self._inner, self._seen = zip(g.overlap(0), g.overlap(1), strict=True)
        self._scratch: Slot = {}

    def chunks(self, x: Array) -> Iterator[slice]:
        step = max(1, _CHUNK_BYTES // (self.height * self.places * x.itemsize))
        return (slice(i, min(i + step, len(x))) for i in range(0, len(x), step))

    def of(self, x: Array) -> Array:
        """The columns (n, C kh kw + 1, Ho Wo) of x (n, C, H, W), valid until the next call."""
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
    """Computes y (B, O, Ho, Wo) of x (B, C, H, W) and w (kh, kw, C, O) by im2col."""

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
        """The gradients of w (kh, kw, C, O) and of the bias (O,)."""
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
