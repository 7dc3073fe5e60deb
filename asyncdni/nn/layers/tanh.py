"""The hyperbolic tangent."""

from __future__ import annotations

import numpy as np

from asyncdni.nn.base import Array, Slot
from asyncdni.nn.layers.elementwise import Elementwise
from asyncdni.nn.layers.slots import forwarded, gradient, rows

__all__ = ["Tanh"]


class Tanh(Elementwise):
    """y = tanh(x), of any shape; y' = 1 - y^2."""

    def forward(self, x: Array, slot: Slot) -> Array:
        forwarded(slot)
        slot["output"] = y = rows(slot, "y", x.shape, x.dtype)
        return np.tanh(x, out=y)

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        self.fresh = self.fresh and not learn
        if not send:
            return None
        y: Array = slot["output"]
        grad_x = gradient(slot, y.shape, y.dtype)
        np.multiply(y, y, out=grad_x)
        np.subtract(1, grad_x, out=grad_x)
        grad_x *= grad_y
        return grad_x

    def evaluate(self, x: Array) -> Array:
        y: Array = np.tanh(x)
        return y
