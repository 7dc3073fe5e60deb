"""The logistic function."""

from __future__ import annotations

import numpy as np

from asyncdni.nn.base import Array, Slot
from asyncdni.nn.layers.elementwise import Elementwise
from asyncdni.nn.layers.slots import forwarded, gradient, rows

__all__ = ["Sigmoid", "sigmoid"]


def sigmoid(x: Array, out: Array) -> Array:
    """1 / (1 + exp(-x)) written into `out`, as (1 + tanh(x/2)) / 2: no exp, so no overflow."""
    np.multiply(x, 0.5, out=out)
    np.tanh(out, out=out)
    out += 1
    out *= 0.5
    return out


class Sigmoid(Elementwise):
    """y = 1 / (1 + exp(-x)), of any shape; y' = y (1 - y)."""

    def forward(self, x: Array, slot: Slot) -> Array:
        forwarded(slot)
        slot["output"] = y = rows(slot, "y", x.shape, x.dtype)
        return sigmoid(x, y)

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        self.fresh = self.fresh and not learn
        if not send:
            return None
        y: Array = slot["output"]
        grad_x = gradient(slot, y.shape, y.dtype)
        np.subtract(1, y, out=grad_x)
        grad_x *= y
        grad_x *= grad_y
        return grad_x

    def evaluate(self, x: Array) -> Array:
        return sigmoid(x, np.empty_like(x))
