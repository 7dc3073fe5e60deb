"""Pooling: each window of a feature map becomes its maximum or its mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array, Slot, Streams, forwarded, gradient, rows, slices
from asyncdni.nn.layers.activations import Elementwise
from asyncdni.nn.layers.correlation import Windows, apart, filled_rows, pair, planes

__all__ = ["AveragePool", "MaxPool"]

#: How many bytes of padded samples, about, are worked on at a time, so that results stay in the
#: cache.
_CHUNK_BYTES = 1 << 20


class _Pool(Elementwise):
    """Base of pooling layers, x (B, C, H, W) to y (B, C, Ho, Wo).

    These layers work channels last, a few samples at a time. In that layout the same element of all
    windows is one strided array with long contiguous runs.
    """

    _name: str  # the layer's name in messages
    _border: float  # the value of elements outside x
    _combine: np.ufunc  # what makes one number of a window's: the maximum, or the sum

    def __init__(
        self,
        # [pixels] one number for both axes, or [vertical, horizontal]; rows and columns left over
        # after the last whole window are not seen, as in PyTorch without `ceil_mode`
        kernel: int | Sequence[int],
        *,
        stride: int | Sequence[int] | None = None,  # [pixels] None: the kernel's size
        padding: int | Sequence[int] = 0,  # [pixels] of border, at most half of the kernel
    ) -> None:
        super().__init__()
        size = pair("kernel", kernel, least=1)
        step = size if stride is None else pair("stride", stride, least=1)
        border = pair("padding", padding, least=0)
        if any(2 * border[axis] > size[axis] for axis in (0, 1)):
            raise ConfigError(
                f"padding {padding!r}: expected at most half of the kernel {kernel!r}, or windows "
                "would see nothing else"
            )
        self.windows = Windows(size, step, border, border)
        self._scratch: Slot = {}

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        where = f"a {self._name} layer"
        channels, height, width = planes(shape, where=where)
        return (channels, *self.windows.counts((height, width), where=where))

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        self.fresh = True
        self._scratch = {}
        return self.output_shape(shape)

    def forward(self, x: Array, slot: Slot) -> Array:
        """Pool x (B, C, H, W) to y (B, C, Ho, Wo). The backward needs only the shape of x."""
        forwarded(slot)
        slot["shape"] = x.shape
        return self._apply(x, rows(slot, "y", self._y_shape(x), x.dtype))

    def _input_gradient(self, grad_y: Array, slot: Slot) -> Array:
        grad_x = gradient(slot, slot["shape"], grad_y.dtype)
        self._pull(grad_y, slot, grad_x)
        return grad_x

    def evaluate(self, x: Array) -> Array:
        return self._apply(x, np.empty(self._y_shape(x), x.dtype))

    def _y_shape(self, x: Array) -> tuple[int, ...]:
        return (len(x), *self.output_shape(x.shape[1:]))

    def _apply(self, x: Array, y: Array) -> Array:
        for part in self._chunks(x):
            found = self._reduce(self._padded(x[part]), y.shape[2:])
            np.copyto(y[part], found.transpose(0, 3, 1, 2))
        return y

    def _reduce(self, padded: Array, counts: tuple[int, ...]) -> Array:
        """Pool padded samples (n, H', W', C) to (n, Ho, Wo, C): first the rows of each window, then
        the columns."""
        samples, _, width, channels = padded.shape
        shape = (samples, counts[0], width, channels)
        tall = rows(self._scratch, "tall", shape, padded.dtype)
        self._combined([padded[:, tap] for tap in self._taps(0, counts[0])], tall)
        found = rows(self._scratch, "found", (samples, *counts, channels), padded.dtype)
        return self._combined([tall[:, :, tap] for tap in self._taps(1, counts[1])], found)

    def _combined(self, taps: list[Array], out: Array) -> Array:
        """Write the maximum, or the sum, of all `taps` into `out` and return it."""
        np.copyto(out, taps[0])
        for tap in taps[1:]:
            self._combine(out, tap, out=out)
        return out

    def _pull(self, grad_y: Array, slot: Slot, grad_x: Array) -> None:
        """Write the gradient of x into grad_x (B, C, H, W)."""
        raise NotImplementedError

    def _chunks(self, x: Array) -> Iterator[slice]:
        return slices(len(x), self._chunk(x.shape, x.itemsize))

    def _chunk(self, shape: tuple[int, ...], itemsize: int) -> int:
        """Return how many samples of a batch (B, C, H, W) are worked on at a time."""
        each = int(np.prod(self._padded_shape(shape)[1:])) * itemsize
        return max(1, _CHUNK_BYTES // each)

    def _padded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        (above, left), (below, right) = self.windows.before, self.windows.after
        samples, channels, height, width = shape
        return samples, above + height + below, left + width + right, channels

    def _padded(self, x: Array) -> Array:
        """Return a copy of x (n, C, H, W) as (n, H', W', C), with its border."""
        shape = self._padded_shape(x.shape)
        padded = filled_rows(self._scratch, "padded", shape, x.dtype, self._border)
        np.copyto(self._inner(padded, x), apart(x, self._scratch).transpose(0, 2, 3, 1))
        return padded

    def _inner(self, padded: Array, x: Array) -> Array:
        """Return the view of `padded` without the border."""
        above, left = self.windows.before
        return padded[:, above : above + x.shape[2], left : left + x.shape[3]]

    def _taps(self, axis: int, count: int) -> Iterator[slice]:
        """Return the places of the first, second, … elements along `axis` of all windows."""
        size, step = self.windows.kernel[axis], self.windows.stride[axis]
        return (slice(k, k + (count - 1) * step + 1, step) for k in range(size))


class MaxPool(_Pool):
    """y = the largest element of each window, as torch.nn.MaxPool2d; it is never one of the border.

    The gradient goes to the largest element: of equal ones to the first, in rows from the top and
    from the left, as in PyTorch. The forward keeps which one that is. A window with NaN in it gives
    NaN, and its gradient goes to any of its elements, or to none.
    """

    _name = "max_pool"
    _border = -np.inf
    _combine = np.maximum

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        output = super().build(shape, dtype, streams)
        kernel, stride, border = self.windows.kernel, self.windows.stride, self.windows.before
        channels, height, width = shape
        # The places of a window's elements relative to its corner, by code: 1 is the first element.
        within = (np.arange(kernel[0])[:, None] * width + np.arange(kernel[1])).reshape(-1)
        self._within = np.concatenate(([0], within)).astype(np.intp)
        self._code = np.min_scalar_type(len(within))
        # The corners of all windows in the flat maps of the samples that are worked on at a time.
        samples = self._chunk((1, *shape), np.dtype(dtype).itemsize)
        plane = np.arange(samples * channels).reshape(samples, channels, 1, 1) * (height * width)
        down = (np.arange(output[1])[:, None] * stride[0] - border[0]) * width
        across = np.arange(output[2]) * stride[1] - border[1]
        self._corners = (plane + down + across).astype(np.intp)
        return output

    def forward(self, x: Array, slot: Slot) -> Array:
        forwarded(slot)
        slot["shape"] = x.shape
        y = rows(slot, "y", self._y_shape(x), x.dtype)
        codes = slot["winners"] = rows(slot, "codes", y.shape, self._code)
        for part in self._chunks(x):
            found, winners = self._search(self._padded(x[part]), y.shape[2:])
            np.copyto(y[part], found.transpose(0, 3, 1, 2))
            np.copyto(codes[part], winners.transpose(0, 3, 1, 2))
        return y

    def _search(self, padded: Array, counts: tuple[int, ...]) -> tuple[Array, Array]:
        """Return the largest elements (n, Ho, Wo, C) and their codes; the code is 0 where all
        elements of the window are -inf."""
        shape = (len(padded), *counts, padded.shape[3])
        found = rows(self._scratch, "found", shape, padded.dtype)
        winners = rows(self._scratch, "winners", shape, self._code)
        codes = rows(self._scratch, "codes", shape, self._code)
        larger = rows(self._scratch, "larger", shape, np.dtype(bool))
        found.fill(-np.inf)
        winners.fill(0)
        taps = product(self._taps(0, counts[0]), self._taps(1, counts[1]))
        for code, (down, across) in enumerate(taps, 1):
            tap = padded[:, down, across]
            np.greater(tap, found, out=larger)
            np.maximum(tap, found, out=found)
            # The winner is the last element that was larger than all before: it has the highest
            # code. A masked copy would take 50 times as long.
            np.multiply(larger.view(np.uint8), self._code.type(code), out=codes)
            np.maximum(winners, codes, out=winners)
        return found, winners

    def _pull(self, grad_y: Array, slot: Slot, grad_x: Array) -> None:
        grad_x.fill(0)
        for part in self._chunks(grad_x):
            codes, grads = slot["winners"][part], grad_y[part]
            places = rows(self._scratch, "places", codes.shape, self._corners.dtype)
            np.take(self._within, codes, out=places, mode="clip")
            places += self._corners[: len(codes)]
            if not codes.all():
                grads = np.where(codes, grads, 0)
                places[codes == 0] = 0
            np.add.at(grad_x[part].reshape(-1), places.reshape(-1), grads.reshape(-1))


class AveragePool(_Pool):
    """y = the mean of each window, as torch.nn.AvgPool2d; zeros of the border are counted."""

    _name = "average_pool"
    _border = 0.0
    _combine = np.add

    def _reduce(self, padded: Array, counts: tuple[int, ...]) -> Array:
        found = super()._reduce(padded, counts)
        found *= self._share
        return found

    def _pull(self, grad_y: Array, slot: Slot, grad_x: Array) -> None:
        for part in self._chunks(grad_x):
            found = self._spread(grad_y[part], grad_x[part].shape)
            np.copyto(grad_x[part], self._inner(found, grad_x).transpose(0, 3, 1, 2))

    def _spread(self, grad_y: Array, shape: tuple[int, ...]) -> Array:
        """Return the gradient (n, H', W', C) of the padded samples, from grad_y (n, C, Ho, Wo)."""
        samples, channels, down, across = grad_y.shape
        last = (samples, down, across, channels)
        grads = rows(self._scratch, "grads", last, grad_y.dtype)
        np.multiply(apart(grad_y, self._scratch).transpose(0, 2, 3, 1), self._share, out=grads)
        padded = self._padded_shape(shape)
        tall = rows(self._scratch, "tall", (samples, down, *padded[2:]), grads.dtype)
        pulled = rows(self._scratch, "pulled", padded, grads.dtype)
        _spread(grads, tall, [tall[:, :, tap] for tap in self._taps(1, across)])
        return _spread(tall, pulled, [pulled[:, tap] for tap in self._taps(0, down)])

    @property
    def _share(self) -> float:
        return 1 / (self.windows.kernel[0] * self.windows.kernel[1])


def _spread(grads: Array, out: Array, taps: list[Array]) -> Array:
    """Set `out` to zero, and add `grads` to each of `taps`, which are views of it."""
    out.fill(0)
    for tap in taps:
        tap += grads
    return out
