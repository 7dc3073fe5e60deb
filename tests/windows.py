"""Recurrent layers under test: streams cut into windows, one after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from asyncdni.nn.layers.recurrent import Recurrent
from asyncdni.nn.streams import layer_streams, stream

__all__ = ["INPUTS", "STREAMS", "UNITS", "Run", "built", "numbers", "whole"]

STREAMS, INPUTS, UNITS = 3, 4, 5


def numbers(*shape: int, key: int = 0, dtype: str = "float64") -> np.ndarray:
    """Numbers that nobody may write to, as those that come from another worker."""
    array = stream(1, "numbers", "test", *shape, key).normal(size=shape).astype(dtype)
    array.flags.writeable = False
    return array


def built(layer: Recurrent, steps: int, dtype: str = "float64") -> Recurrent:
    """With parameters that are all different from each other and from 0."""
    layer.build((steps, INPUTS), np.dtype(dtype), layer_streams(0, "recurrent"))
    rng = stream(0, "recurrent", "parameters")
    for value in layer.params.values():
        value[...] = 0.5 * rng.normal(size=value.shape)
    return layer


class Run:
    """Windows of `steps` through one layer, each forwarded with a slot of its own."""

    def __init__(self, layer: Recurrent, x: np.ndarray, grad_y: np.ndarray, steps: int) -> None:
        """x (B, L, D) and grad_y (B, L, H) of whole sequences."""
        self.layer = layer
        self.x, self.grad_y = x, grad_y
        self.starts = range(0, x.shape[1], steps)
        self.steps = steps
        self.slots: list[dict[str, Any]] = [{} for _ in self.starts]
        self.outputs: list[np.ndarray] = []

    def forward(self, k: int, context: Mapping[str, Any] | None = None, batch: int = -1) -> None:
        """Window k; by default the first begins and the last ends all sequences."""
        length = self.x.shape[1]
        streams = len(self.x)
        ends = {
            "first": np.full(streams, k == 0),
            "last": np.full(streams, self.starts[k] + self.steps >= length),
        }
        slot = self.slots[k]
        slot["batch"] = k if batch < 0 else batch
        slot["context"] = {**ends, **(context or {})}
        self.outputs.append(self.layer.forward(self._cut(self.x, k), slot))

    def backward(self, k: int, *, learn: bool = True) -> np.ndarray:
        """The gradient of window k's inputs."""
        grad_x = self.layer.backward(
            self._cut(self.grad_y, k), self.slots[k], learn=learn, send=True
        )
        assert grad_x is not None
        return grad_x

    def all(self, context: Mapping[int, Mapping[str, Any]] | None = None) -> np.ndarray:
        """Forward and backward of each window in turn; the gradients of x (B, L, D)."""
        found = []
        for k in range(len(self.starts)):
            self.forward(k, (context or {}).get(k))
            found.append(self.backward(k))
        return np.concatenate(found, axis=1)

    def _cut(self, sequence: np.ndarray, k: int) -> np.ndarray:
        return np.ascontiguousarray(sequence[:, self.starts[k] : self.starts[k] + self.steps])


def whole(layer: Recurrent, x: np.ndarray, grad_y: np.ndarray) -> Run:
    """One window over everything: full backpropagation through time, its gradient in `grads`."""
    run = Run(built(layer, x.shape[1], str(x.dtype)), x, grad_y, x.shape[1])
    run.all()
    return run
