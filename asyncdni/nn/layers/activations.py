"""Activation functions: layers that keep the shape and have no weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncdni.nn.base import Array, Slot, Streams, forwarded, gradient, rows
from asyncdni.nn.fused import loops_of

__all__ = ["Elementwise", "Relu", "Sigmoid", "Tanh", "sigmoid"]


class Elementwise:
    """Base of layers without weights for inputs of any shape, such as y = f(x) by element."""

    def __init__(self) -> None:
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self.fresh = True

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        self.fresh = True
        return shape

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        """Return the gradient of x if `send`, else None; there are no weights that could learn."""
        self.fresh = self.fresh and not learn
        return self._input_gradient(grad_y, slot) if send else None

    def _input_gradient(self, grad_y: Array, slot: Slot) -> Array:
        """Return the gradient of x from that of y and what the forward has kept in the slot."""
        raise NotImplementedError


class Relu(Elementwise):
    """Rectified linear units: y = max(x, 0), of any shape; the slope at 0 is 0.

    Where `is_done`, the layer before gives rectified outputs in training: see
    `normalisation.rectify_in_norms`.
    """

    is_done = False

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        # NumPy's maximum of two arrays is twice as fast as that of an array and a number.
        self.zeros = np.zeros(shape, dtype)
        return super().build(shape, dtype, streams)

    def forward(self, x: Array, slot: Slot) -> Array:
        forwarded(slot)
        y = x if self.is_done else np.maximum(x, self.zeros, out=rows(slot, "y", x.shape, x.dtype))
        slot["output"] = y
        return y

    def _input_gradient(self, grad_y: Array, slot: Slot) -> Array:
        y: Array = slot["output"]
        loops = loops_of(grad_y, y)
        if loops is not None:
            out = gradient(slot, y.shape, y.dtype)
            loops.relu_back(grad_y.reshape(-1), y.reshape(-1), out.reshape(-1))
            return out
        passes = np.greater(y, 0, out=rows(slot, "passes", y.shape, np.dtype(bool)))
        return np.multiply(grad_y, passes, out=gradient(slot, y.shape, y.dtype))

    def evaluate(self, x: Array) -> Array:
        y: Array = np.maximum(x, self.zeros)
        return y


def sigmoid(x: Array, out: Array) -> Array:
    """Write the logistic function 1 / (1 + exp(-x)) into `out`. It is computed as
    (1 + tanh(x/2)) / 2, which never overflows."""
    np.multiply(x, 0.5, out=out)
    np.tanh(out, out=out)
    out += 1
    out *= 0.5
    return out


class Sigmoid(Elementwise):
    """The logistic function y = 1 / (1 + exp(-x)), of any shape; y' = y (1 - y)."""

    def forward(self, x: Array, slot: Slot) -> Array:
        forwarded(slot)
        slot["output"] = y = rows(slot, "y", x.shape, x.dtype)
        return sigmoid(x, y)

    def _input_gradient(self, grad_y: Array, slot: Slot) -> Array:
        y: Array = slot["output"]
        grad_x = gradient(slot, y.shape, y.dtype)
        np.subtract(1, y, out=grad_x)
        grad_x *= y
        grad_x *= grad_y
        return grad_x

    def evaluate(self, x: Array) -> Array:
        return sigmoid(x, np.empty_like(x))


class Tanh(Elementwise):
    """The hyperbolic tangent y = tanh(x), of any shape; y' = 1 - y^2."""

    def forward(self, x: Array, slot: Slot) -> Array:
        forwarded(slot)
        slot["output"] = y = rows(slot, "y", x.shape, x.dtype)
        return np.tanh(x, out=y)

    def _input_gradient(self, grad_y: Array, slot: Slot) -> Array:
        y: Array = slot["output"]
        grad_x = gradient(slot, y.shape, y.dtype)
        np.multiply(y, y, out=grad_x)
        np.subtract(1, grad_x, out=grad_x)
        grad_x *= grad_y
        return grad_x

    def evaluate(self, x: Array) -> Array:
        y: Array = np.tanh(x)
        return y
