"""What activation functions share: the shape is kept, and there is nothing to learn."""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncdni.nn.base import Array, Streams

__all__ = ["Elementwise"]


class Elementwise:
    """Base of layers y = f(x), element by element, for inputs of any shape."""

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
