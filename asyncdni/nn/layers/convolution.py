"""Two-dimensional convolution of feature maps: a correlation, which all frameworks call so."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array, Slot, Streams, accumulate, forwarded, gradient, rows
from asyncdni.nn.initialisers import make_initialiser
from asyncdni.nn.layers.correlation import (
    Geometry,
    Im2colCorrelation,
    Im2colKernelGradient,
    MecCorrelation,
    MecKernelGradient,
    Pair,
    Windows,
    pair,
    planes,
)
from asyncdni.nn.options import check_flags, check_positive

__all__ = ["Conv2d"]

#: The most channels with which lowering whole windows (`im2col`) is faster; with 8 both ways cost
#: the same.
FEW_CHANNELS = 4


class Conv2d:
    """y = w * x + b for x (B, C, H, W): weight (O, C, kh, kw), bias (O,), as torch.nn.Conv2d.

    Inputs and outputs are laid out as in PyTorch, (samples, channels, height, width) in C order.
    Inside the layer, a few samples at a time are turned to channels last, which makes the products
    fastest (see `correlation`); images of few channels are not turned (see `im2col`). Of a batch,
    only x and y are kept.
    """

    def __init__(
        self,
        channels: int,  # [channels] O, of the output
        *,
        # [pixels] one number for both axes, or [vertical, horizontal]
        kernel: int | Sequence[int],
        stride: int | Sequence[int] = 1,  # [pixels] from one output to the next, as the kernel
        # [pixels] of border on each side, as the kernel; "valid": none; "same": height and width
        # stay, and for an even kernel the border is one wider after the map, as in PyTorch
        padding: int | Sequence[int] | str = 0,
        bias: bool = True,  # whether there is one; it starts at 0
        init: str = "he_normal",  # how the weight, of fan-in C kh kw, starts: see `init`
    ) -> None:
        check_positive(channels=channels)
        check_flags(bias=bias)
        self.channels = channels
        self.windows = _windows(kernel, stride, padding)
        self.bias = bias
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self.fresh = True
        self._initialise = make_initialiser(init)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        _, height, width = planes(shape, where="a conv2d layer")
        return (self.channels, *self.windows.counts((height, width), where="a conv2d layer"))

    def size(self, shape: tuple[int, ...]) -> int:
        """Return how many numbers the weights have that `build` makes for inputs of `shape`,
        without making them."""
        return self.channels * shape[0] * math.prod(self.windows.kernel)

    def flops(self, shape: tuple[int, ...], samples: int, *, send: bool) -> tuple[int, int]:
        """Return the floating-point operations of the products in (forward, backward): see
        `nn.base.Layer.output_shape`."""
        _, height, width = self.output_shape(shape)
        product = 2 * samples * height * width * self.size(shape)
        return product, product * (1 + send)

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        output = self.output_shape(shape)
        weight = np.empty((self.channels, shape[0], *self.windows.kernel), dtype)
        self._initialise(weight.reshape(self.channels, -1), streams("init"))
        self.params = {"weight": weight}
        if self.bias:
            self.params["bias"] = np.zeros(self.channels, dtype)
        self.grads = {name: np.zeros_like(value) for name, value in self.params.items()}
        self.fresh = True
        geometry = Geometry(
            channels=shape[0],
            size=(shape[1], shape[2]),
            filters=self.channels,
            outputs=(output[1], output[2]),
            kernel=self.windows.kernel,
            stride=self.windows.stride,
            corner=self.windows.before,
        )
        self._forward = _make_correlation(geometry)
        self._kernel_gradient = _make_gradient(geometry)
        self._phases = list(_phases(geometry))
        return output

    def forward(self, x: Array, slot: Slot) -> Array:
        """Map x (B, C, H, W) to y (B, O, Ho, Wo). The slot keeps a reference to x, which must not
        change until the backward."""
        slot["x"] = x
        forwarded(slot)
        return self._apply(x, rows(slot, "y", self._y_shape(x), x.dtype))

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        x: Array = slot["x"]
        if learn:
            self._learn(grad_y, x)
        if not send:
            return None
        return self._pull(grad_y, gradient(slot, x.shape, x.dtype))

    def evaluate(self, x: Array) -> Array:
        return self._apply(x, np.empty(self._y_shape(x), x.dtype))

    def _y_shape(self, x: Array) -> tuple[int, ...]:
        return (len(x), *self.output_shape(x.shape[1:]))

    def _apply(self, x: Array, y: Array) -> Array:
        kernel = np.ascontiguousarray(self.params["weight"].transpose(2, 3, 1, 0))
        return self._forward.apply(x, kernel, self.params.get("bias"), y)

    def _learn(self, grad_y: Array, x: Array) -> None:
        weight, bias = self._kernel_gradient.apply(x, grad_y)
        accumulate(self, {"weight": weight.transpose(3, 2, 0, 1), "bias": bias})

    def _pull(self, grad_y: Array, grad_x: Array) -> Array:
        weight = self.params["weight"]
        for phase in self._phases:
            phase.pull(grad_y, weight, grad_x)
        return grad_x


class _Phase:
    """Computes every sh-th row and sw-th column of the gradient of x, from `first` on.

    These elements are a correlation of stride 1 of the gradient of y with the same part of the
    kernel, turned around. With a stride of 1 there is one phase, the whole gradient."""

    def __init__(self, geometry: Geometry, first: Pair) -> None:
        g = geometry
        self._places = slice(first[0], None, g.stride[0]), slice(first[1], None, g.stride[1])
        taps, size, corner = [], [], []
        for axis in (0, 1):
            # x[first + u stride] is under kernel element start + m stride of output u + ahead - m
            at, stride = first[axis] + g.corner[axis], g.stride[axis]
            start, ahead = at % stride, at // stride
            count = len(range(start, g.kernel[axis], stride))
            taps.append(range(start, g.kernel[axis], stride)[::-1])
            size.append(len(range(first[axis], g.size[axis], stride)))
            corner.append(count - 1 - ahead)
        self._down, self._across = list(taps[0]), list(taps[1])
        turned = Geometry(
            channels=g.filters,
            size=g.outputs,
            filters=g.channels,
            outputs=(size[0], size[1]),
            kernel=(len(taps[0]), len(taps[1])),
            corner=(corner[0], corner[1]),
        )
        self._correlation = _make_correlation(turned)

    def pull(self, grad_y: Array, weight: Array, grad_x: Array) -> None:
        down, across = self._places
        out = grad_x[:, :, down, across]
        if not (self._down and self._across):
            out.fill(0)  # the stride is larger than the kernel: no window sees these elements
            return
        kernel = weight[:, :, self._down][..., self._across].transpose(2, 3, 0, 1)
        self._correlation.apply(grad_y, np.ascontiguousarray(kernel), None, out)


def _make_correlation(geometry: Geometry) -> MecCorrelation | Im2colCorrelation:
    few = geometry.channels <= FEW_CHANNELS
    return Im2colCorrelation(geometry) if few else MecCorrelation(geometry)


def _make_gradient(geometry: Geometry) -> MecKernelGradient | Im2colKernelGradient:
    few = geometry.channels <= FEW_CHANNELS
    return Im2colKernelGradient(geometry) if few else MecKernelGradient(geometry)


def _phases(geometry: Geometry) -> Iterator[_Phase]:
    for down in range(min(geometry.stride[0], geometry.size[0])):
        for across in range(min(geometry.stride[1], geometry.size[1])):
            yield _Phase(geometry, (down, across))


def _windows(
    kernel: int | Sequence[int], stride: int | Sequence[int], padding: int | Sequence[int] | str
) -> Windows:
    size, step = pair("kernel", kernel, least=1), pair("stride", stride, least=1)
    if padding == "same":
        if step != (1, 1):
            raise ConfigError(f'padding "same" goes with a stride of 1, not {stride!r}')
        before = (size[0] - 1) // 2, (size[1] - 1) // 2
        after = size[0] // 2, size[1] // 2
        return Windows(size, step, before, after)
    if isinstance(padding, str) and padding != "valid":
        raise ConfigError(
            f'padding {padding!r}: expected "same", "valid", a whole number of at least 0, or two '
            "as [vertical, horizontal]"
        )
    border = (0, 0) if padding == "valid" else pair("padding", padding, least=0)
    return Windows(size, step, border, border)
