"""Pooling: each window of a feature map becomes its maximum or its mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array, Slot, Streams
from asyncdni.nn.layers.elementwise import Elementwise
from asyncdni.nn.layers.slots import forwarded, gradient, rows
from asyncdni.nn.layers.windows import Windows, filled_rows, pair, planes

__all__ = ["AveragePool", "MaxPool"]

#: Of padded samples that are worked on at a time, about: what is made of them stays in the cache.
_CHUNK_BYTES = 1 << 20


class _Pool(Elementwise):
    """Base of pooling layers, x (B, C, H, W) to y (B, C, Ho, Wo).

    Works channels last, a few samples at a time: there, neighbouring windows are far apart and the
    same element of all of them is one strided array with long runs.
    """

    _name: str  # in messages
    _border: float  # value of the elements outside of x

    def __init__(
        self,
        kernel: int | Sequence[int],
        *,
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
    ) -> None:
        """One number for both axes or [vertical, horizontal]; the stride is the kernel's size where
        it is not given; padding is at most half of the kernel. Rows and columns that are left over
        after the last whole window are not seen, as in PyTorch without `ceil_mode`."""
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
        return self.output_shape(shape)

    def forward(self, x: Array, slot: Slot) -> Array:
        """Keeps references to x and to y, which must stay as they are until the backward."""
        forwarded(slot)
        slot["x"] = x
        shape = (len(x), *self.output_shape(x.shape[1:]))
        slot["output"] = y = rows(slot, "y", shape, x.dtype)
        return self._apply(x, y)

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        self.fresh = self.fresh and not learn
        if not send:
            return None
        x: Array = slot["x"]
        grad_x = gradient(slot, x.shape, x.dtype)
        for part in self._chunks(x):
            found = self._pull(part, grad_y, slot)
            np.copyto(grad_x[part], self._inner(found, x).transpose(0, 3, 1, 2))
        return grad_x

    def evaluate(self, x: Array) -> Array:
        return self._apply(x, np.empty((len(x), *self.output_shape(x.shape[1:])), x.dtype))

    def _apply(self, x: Array, y: Array) -> Array:
        for part in self._chunks(x):
            found = self._reduce(self._padded(x[part]), y.shape[2:])
            np.copyto(y[part], found.transpose(0, 3, 1, 2))
        return y

    def _reduce(self, padded: Array, counts: tuple[int, ...]) -> Array:
        """(n, H', W', C) to (n, Ho, Wo, C)."""
        raise NotImplementedError

    def _pull(self, part: slice, grad_y: Array, slot: Slot) -> Array:
        """The gradient (n, H', W', C) of the padded samples of `part`."""
        raise NotImplementedError

    def _chunks(self, x: Array) -> Iterator[slice]:
        each = int(np.prod(self._padded_shape(x)[1:])) * x.itemsize
        step = max(1, _CHUNK_BYTES // each)
        return (slice(i, min(i + step, len(x))) for i in range(0, len(x), step))

    def _padded_shape(self, x: Array) -> tuple[int, ...]:
        (above, left), (below, right) = self.windows.before, self.windows.after
        samples, channels, height, width = x.shape
        return samples, above + height + below, left + width + right, channels

    def _padded(self, x: Array) -> Array:
        """x (n, C, H, W) as (n, H', W', C), with its border."""
        shape = self._padded_shape(x)
        padded = filled_rows(self._scratch, "padded", shape, x.dtype, self._border)
        np.copyto(self._inner(padded, x), x.transpose(0, 2, 3, 1))
        return padded

    def _inner(self, padded: Array, x: Array) -> Array:
        """Without the border."""
        above, left = self.windows.before
        return padded[:, above : above + x.shape[2], left : left + x.shape[3]]

    def _last(self, name: str, y: Array) -> Array:
        """y (n, C, Ho, Wo) as (n, Ho, Wo, C)."""
        samples, channels, down, across = y.shape
        last = rows(self._scratch, name, (samples, down, across, channels), y.dtype)
        np.copyto(last, y.transpose(0, 2, 3, 1))
        return last

    def _taps(self, axis: int, count: int) -> Iterator[slice]:
        """Where the first, second, … elements along `axis` of all windows are."""
        size, step = self.windows.kernel[axis], self.windows.stride[axis]
        return (slice(k, k + (count - 1) * step + 1, step) for k in range(size))


class MaxPool(_Pool):
    """y = the largest element of each window, as torch.nn.MaxPool2d; the border never wins.

    The gradient goes to the largest element: of equal ones to the first, in rows from the top and
    from the left, as in PyTorch. A window with NaN in it gives NaN, and no gradient.
    """

    _name = "max_pool"
    _border = -np.inf

    def _reduce(self, padded: Array, counts: tuple[int, ...]) -> Array:
        samples, _, width, channels = padded.shape
        shape = (samples, counts[0], width, channels)
        tall = rows(self._scratch, "tall", shape, padded.dtype)
        _largest([padded[:, tap] for tap in self._taps(0, counts[0])], tall)
        found = rows(self._scratch, "found", (samples, *counts, channels), padded.dtype)
        return _largest([tall[:, :, tap] for tap in self._taps(1, counts[1])], found)

    def _pull(self, part: slice, grad_y: Array, slot: Slot) -> Array:
        padded = self._padded(slot["x"][part])
        y, grads = self._last("y", slot["output"][part]), self._last("grads", grad_y[part])
        pulled = rows(self._scratch, "pulled", padded.shape, padded.dtype)
        pulled.fill(0)
        wins, free = (
            rows(self._scratch, name, y.shape, np.dtype(bool)) for name in ("wins", "free")
        )
        free.fill(True)
        share = rows(self._scratch, "share", y.shape, y.dtype)
        for down in self._taps(0, y.shape[1]):
            for across in self._taps(1, y.shape[2]):
                np.equal(padded[:, down, across], y, out=wins)
                np.logical_and(wins, free, out=wins)
                np.logical_xor(free, wins, out=free)
                pulled[:, down, across] += np.multiply(grads, wins, out=share)
        return pulled


class AveragePool(_Pool):
    """y = the mean of each window, as torch.nn.AvgPool2d: zeros of the border count."""

    _name = "average_pool"
    _border = 0.0

    def _reduce(self, padded: Array, counts: tuple[int, ...]) -> Array:
        samples, _, width, channels = padded.shape
        shape = (samples, counts[0], width, channels)
        tall = rows(self._scratch, "tall", shape, padded.dtype)
        _total([padded[:, tap] for tap in self._taps(0, counts[0])], tall)
        found = rows(self._scratch, "found", (samples, *counts, channels), padded.dtype)
        _total([tall[:, :, tap] for tap in self._taps(1, counts[1])], found)
        found *= self._share
        return found

    def _pull(self, part: slice, grad_y: Array, slot: Slot) -> Array:
        x: Array = slot["x"][part]
        grads = self._last("grads", grad_y[part])
        grads *= self._share
        samples, down, across, channels = grads.shape
        shape = self._padded_shape(x)
        tall = rows(self._scratch, "tall", (samples, down, shape[2], channels), x.dtype)
        pulled = rows(self._scratch, "pulled", shape, x.dtype)
        _spread(grads, tall, [tall[:, :, tap] for tap in self._taps(1, across)])
        return _spread(tall, pulled, [pulled[:, tap] for tap in self._taps(0, down)])

    @property
    def _share(self) -> float:
        return 1 / (self.windows.kernel[0] * self.windows.kernel[1])


def _largest(taps: list[Array], out: Array) -> Array:
    np.copyto(out, taps[0])
    for tap in taps[1:]:
        np.maximum(out, tap, out=out)
    return out


def _total(taps: list[Array], out: Array) -> Array:
    np.copyto(out, taps[0])
    for tap in taps[1:]:
        out += tap
    return out


def _spread(grads: Array, out: Array, taps: list[Array]) -> Array:
    """Adds `grads` to each of `taps`, views of `out`, which is zero elsewhere."""
    out.fill(0)
    for tap in taps:
        tap += grads
    return out
