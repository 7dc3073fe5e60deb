"""Layers for unrolled recurrences: one time step of a window, and the zero state before the first.

```
 data (T, D) ─┬─► step 0 ──┐
              ├─► zeros H ─┴─► stamp 1 (H) ──┐
              └─► step 1 ────────────────────┴─► stamp 2 (H)   the weights of stamp 1
```

Each time stamp is a stage of dense layers over both its inputs. The recurrence can therefore be
spread over workers, and each stamp can have a generator of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array, Slot, Streams, forwarded, gradient, rows
from asyncdni.nn.layers.activations import Elementwise
from asyncdni.nn.options import check_positive, is_whole

__all__ = ["StepOf", "Zeros"]


class StepOf(Elementwise):
    """x (B, T, …) to its step `index`, (B, …)."""

    def __init__(
        self,
        index: int,  # of the step, from 0; a negative one counts from the end
    ) -> None:
        super().__init__()
        if not is_whole(index):
            raise ConfigError(f"index {index!r}: expected a whole number")
        self.index = index

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) < 2:
            raise ConfigError(f"a step layer takes windows of shape (T, …), not {shape}")
        if not -shape[0] <= self.index < shape[0]:
            raise ConfigError(
                f"step {self.index} of a window of {shape[0]} steps: expected {-shape[0]} to "
                f"{shape[0] - 1}"
            )
        return shape[1:]

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        self.fresh = True
        return self.output_shape(shape)

    def forward(self, x: Array, slot: Slot) -> Array:
        forwarded(slot)
        slot["shape"] = x.shape
        y = rows(slot, "y", (len(x), *x.shape[2:]), x.dtype)
        y[...] = x[:, self.index]
        return y

    def _input_gradient(self, grad_y: Array, slot: Slot) -> Array:
        """Return the gradient of x: grad_y at the step, and zero at all others."""
        grad_x = gradient(slot, slot["shape"], grad_y.dtype)
        grad_x.fill(0)
        grad_x[:, self.index] = grad_y
        return grad_x

    def evaluate(self, x: Array) -> Array:
        return np.ascontiguousarray(x[:, self.index])


class Zeros(Elementwise):
    """x (B, …) to zeros (B, `units`): the state before the first time stamp."""

    def __init__(self, units: int) -> None:
        super().__init__()
        check_positive(units=units)
        self.units = units

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.units,)

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        self.fresh = True
        self._dtype = dtype
        return (self.units,)

    def forward(self, x: Array, slot: Slot) -> Array:
        forwarded(slot)
        slot["shape"] = x.shape
        y = rows(slot, "y", (len(x), self.units), self._dtype)
        y.fill(0)
        return y

    def _input_gradient(self, grad_y: Array, slot: Slot) -> Array:
        grad_x = gradient(slot, slot["shape"], self._dtype)
        grad_x.fill(0)
        return grad_x

    def evaluate(self, x: Array) -> Array:
        return np.zeros((len(x), self.units), self._dtype)
