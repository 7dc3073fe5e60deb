"""Rectified linear units: y = max(x, 0)."""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncdni.nn.base import Array, Slot, Streams
from asyncdni.nn.layers.elementwise import Elementwise
from asyncdni.nn.layers.slots import forwarded, gradient, rows

__all__ = ["Relu"]


class Relu(Elementwise):
    """y = max(x, 0), of any shape; the slope at 0 is 0."""

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        # NumPy's maximum of two arrays is twice as fast as that of an array and a number.
        self._zeros = np.zeros(shape, dtype)
        return super().build(shape, dtype, streams)

    def forward(self, x: Array, slot: Slot) -> Array:
        forwarded(slot)
        slot["output"] = y = rows(slot, "y", x.shape, x.dtype)
        return np.maximum(x, self._zeros, out=y)

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        self.fresh = self.fresh and not learn
        if not send:
            return None
        y: Array = slot["output"]
        passes = np.greater(y, 0, out=rows(slot, "passes", y.shape, np.dtype(bool)))
        return np.multiply(grad_y, passes, out=gradient(slot, y.shape, y.dtype))

    def evaluate(self, x: Array) -> Array:
        y: Array = np.maximum(x, self._zeros)
        return y
