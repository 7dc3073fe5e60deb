"""The control: a generator that knows nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncdni.nn.base import Array, Slot, Streams
from asyncdni.nn.layers.slots import rows

__all__ = ["ZeroGenerator"]


class ZeroGenerator:
    """Always predicts zero, so its stage does not learn: shows what another generator is worth."""

    def __init__(self) -> None:
        self.params: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}

    def build(
        self, width: int, outputs: int, loss: str, dtype: np.dtype[Any], streams: Streams
    ) -> None:
        """Nothing to make."""

    def predict(self, h: Array, y: Array, slot: Slot, rate_scale: float) -> Array:
        """Zeros (B, D); written each time, as a backward may have used the array as scratch."""
        prediction = rows(slot, "prediction", h.shape, h.dtype)
        prediction.fill(0)
        return prediction

    def fit(self, grad: Array, slot: Slot, rate_scale: float) -> None:
        """Nothing to learn."""
