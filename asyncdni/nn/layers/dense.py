"""The fully connected layer: y = x W' + b."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array, Slot, Streams, forwarded, gradient, rows
from asyncdni.nn.initialisers import make_initialiser
from asyncdni.nn.options import check_flags, check_positive

__all__ = ["Dense"]


class Dense:
    """y = x W' + b for x (B, D): weight (H, D) and bias (H,), as torch.nn.Linear has them.

    Each step of windows x (B, T, D) is treated so, to (B, T, H).
    """

    def __init__(
        self,
        width: int,  # [units] H
        *,
        bias: bool = True,  # whether there is one; it starts at 0
        init: str = "he_normal",  # how the weight starts: see `init`
    ) -> None:
        check_positive(width=width)
        check_flags(bias=bias)
        self.width = width
        self.bias = bias
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self.fresh = True
        self._initialise = make_initialiser(init)
        self._ones = np.ones(0)  # a product with it sums over samples, faster than np.sum does
        self._more: dict[str, Array] = {}  # gradients of a further batch, before they are added

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) not in (1, 2) or min(shape) < 1:
            raise ConfigError(
                f"a dense layer takes inputs of shape (D,), or windows of shape (T, D), not "
                f"{shape}: flatten them first"
            )
        return (*shape[:-1], self.width)

    def size(self, shape: tuple[int, ...]) -> int:
        """Return how many numbers the weights have that `build` makes for inputs of `shape`,
        without making them."""
        return self.width * shape[-1]

    def flops(self, shape: tuple[int, ...], samples: int, *, send: bool) -> tuple[int, int]:
        """Return the floating-point operations of the products in (forward, backward): see
        `nn.base.Layer.output_shape`."""
        product = 2 * samples * math.prod(shape) * self.width
        return product, product * (1 + send)

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        output = self.output_shape(shape)
        self.params = {"weight": np.empty((self.width, shape[-1]), dtype)}
        self._initialise(self.params["weight"], streams("init"))
        if self.bias:
            self.params["bias"] = np.zeros(self.width, dtype)
        self.grads = {name: np.zeros_like(value) for name, value in self.params.items()}
        self.fresh = True
        self._ones = np.ones(0, dtype)
        self._more = {}
        return output

    def forward(self, x: Array, slot: Slot) -> Array:
        """Map x (B, D) to y (B, H). The slot keeps a reference to x, which must not change until
        the backward."""
        slot["x"] = x
        forwarded(slot)
        y = rows(slot, "y", (*x.shape[:-1], self.width), x.dtype)
        return self._apply(x, y)

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        x: Array = slot["x"]
        if learn:
            self._learn(grad_y.reshape(-1, self.width), x.reshape(-1, x.shape[-1]))
        if not send:
            return None
        grad_x = gradient(slot, x.shape, x.dtype)
        return np.matmul(grad_y, self.params["weight"], out=grad_x)

    def evaluate(self, x: Array) -> Array:
        return self._apply(x, np.empty((*x.shape[:-1], self.width), x.dtype))

    def _apply(self, x: Array, y: Array) -> Array:
        np.matmul(x, self.params["weight"].T, out=y)
        if self.bias:
            y += self.params["bias"]
        return y

    def _learn(self, grad_y: Array, x: Array) -> None:
        if len(self._ones) < len(x):
            self._ones = np.ones(len(x), x.dtype)
        if not self.fresh and not self._more:
            self._more = {name: np.empty_like(value) for name, value in self.grads.items()}
        into = self.grads if self.fresh else self._more
        np.matmul(grad_y.T, x, out=into["weight"])
        if self.bias:
            np.matmul(self._ones[: len(x)], grad_y, out=into["bias"])
        if not self.fresh:
            for name, more in self._more.items():
                self.grads[name] += more
        self.fresh = False
