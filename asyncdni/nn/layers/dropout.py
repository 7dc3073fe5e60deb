"""Dropout (Srivastava et al. 2014), inverted: nothing is left to scale where it is not used."""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncdni.errors import ConfigError, DataError
from asyncdni.nn.base import Array, Slot, Streams
from asyncdni.nn.layers.elementwise import Elementwise
from asyncdni.nn.layers.slots import forwarded, gradient, rows

__all__ = ["Dropout"]

#: Chances are whole numbers of these: 16 random bits an element are enough, and four times as fast
#: as a random number.
_PARTS = 1 << 16


class Dropout(Elementwise):
    """y = x mask / (1 - p), of any shape, in training; y = x in evaluation.

    An element is dropped with chance `p`, rounded to a multiple of 2^-16. The mask is drawn from a
    stream of the layer's own for each batch id, which the caller puts into `slot["batch"]` before
    the forward: a batch sees the same mask under every split and schedule, and when it is forwarded
    again.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p < 1:
            raise ConfigError(f"p {p!r}: expected a number of at least 0 and below 1")
        self.p = float(p)
        self._kept = max(1, round((1 - self.p) * _PARTS))  # of so many parts

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        self._streams = streams
        return super().build(shape, dtype, streams)

    def forward(self, x: Array, slot: Slot) -> Array:
        """Raises `DataError` where `slot["batch"]` is missing."""
        forwarded(slot)
        batch = slot.get("batch")
        if not isinstance(batch, int):
            raise DataError(
                f'dropout found {batch!r} in slot["batch"]: expected the id of the batch, a whole '
                "number, put there before its forward, as the mask depends on it"
            )
        bits = self._streams(f"mask.{batch}").integers(0, _PARTS, x.shape, np.uint16)
        slot["mask"] = mask = rows(slot, "mask_rows", x.shape, np.dtype(bool))
        np.less(bits, self._kept, out=mask)
        return self._apply(x, mask, rows(slot, "y", x.shape, x.dtype))

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        self.fresh = self.fresh and not learn
        if not send:
            return None
        return self._apply(grad_y, slot["mask"], gradient(slot, grad_y.shape, grad_y.dtype))

    def evaluate(self, x: Array) -> Array:
        return x

    def _apply(self, x: Array, mask: Array, out: Array) -> Array:
        np.multiply(x, mask, out=out)
        out *= _PARTS / self._kept
        return out
