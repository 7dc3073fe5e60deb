"""Layers that change the shape and keep the numbers: flatten and reshape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array, Slot, Streams
from asyncdni.nn.layers.activations import Elementwise
from asyncdni.nn.options import is_whole

__all__ = ["Flatten", "Reshape"]


class Reshape(Elementwise):
    """x (B, …) as (B, *shape): the same numbers in the same order and the same memory."""

    def __init__(
        self,
        shape: Sequence[int],  # without the batch axis; one number may be -1: what is left over
    ) -> None:
        super().__init__()
        given = list(shape) if isinstance(shape, list | tuple) else []
        if not all(map(is_whole, given)) or not given or given.count(-1) > 1 or _wrong(given):
            raise ConfigError(
                f"shape {shape!r}: expected a list of positive whole numbers, without the batch "
                "axis; one of them may be -1"
            )
        self.shape = tuple(given)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        numbers, known = math.prod(shape), math.prod(one for one in self.shape if one > 0)
        fits = numbers % known == 0 if -1 in self.shape else numbers == known
        if not fits or not numbers:
            raise ConfigError(
                f"a reshape layer to {self.shape} takes inputs of "
                f"{'a multiple of ' if -1 in self.shape else ''}{known} numbers, not {numbers} of "
                f"shape {shape}"
            )
        return tuple(numbers // known if one < 0 else one for one in self.shape)

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        self.fresh = True
        self._from, self._to = shape, self.output_shape(shape)
        return self._to

    def forward(self, x: Array, slot: Slot) -> Array:
        """Return x in its new shape, as a view."""
        return x.reshape(len(x), *self._to)

    def _input_gradient(self, grad_y: Array, slot: Slot) -> Array:
        """Return `grad_y` in the shape of x, as a view."""
        return grad_y.reshape(len(grad_y), *self._from)

    def evaluate(self, x: Array) -> Array:
        return x.reshape(len(x), *self._to)


class Flatten(Reshape):
    """x (B, …) as (B, D)."""

    def __init__(self) -> None:
        super().__init__([-1])


def _wrong(given: list[int]) -> bool:
    return any(one < 1 and one != -1 for one in given)
