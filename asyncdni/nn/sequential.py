"""A small network beside a stage: layers in a row, and the Adam that trains them.

Generators, local heads and input models are made of it. Its gradients serve one step and are then
overwritten: nothing accumulates over batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from asyncdni.nn.base import Array, Layer, Slot, Streams
from asyncdni.nn.layers.normalisation import rectify_in_norms
from asyncdni.nn.optimizers import Adam, finite_norm, flatten

__all__ = ["Sequential"]


class Sequential:
    """x (B, D) -> layers[0] -> … -> layers[-1].

    `params` are named "<position>.<name>" and `buffers` hold Adam's moments; both are restored by
    writing into the arrays. Running statistics of batch norms are never used, so they are no part
    of `buffers`.
    """

    def __init__(self, layers: Sequence[Layer], learning_rate: float) -> None:
        self.layers = layers
        rectify_in_norms(layers)
        self.learning_rate = learning_rate
        self.params: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}

    def build(self, inputs: int, dtype: np.dtype[Any], streams: Streams, name: str) -> None:
        """Build the layers for x (B, inputs). They draw from streams
        "<name>.<position>.<purpose>"."""
        shape: tuple[int, ...] = (inputs,)
        for position, layer in enumerate(self.layers):
            shape = layer.build(shape, dtype, partial(_stream, streams, f"{name}.{position}"))
        self._vector, self._grads = flatten(self.layers)
        self.params = {
            f"{position}.{key}": array
            for position, layer in enumerate(self.layers)
            for key, array in layer.params.items()
        }
        self.optimizer = Adam()
        self.optimizer.start(self._vector)
        self.buffers = dict(self.optimizer.state)

    def slots(self) -> list[Slot]:
        """Return empty slots, one a layer, for what a forward leaves behind for its backward."""
        return [{} for _ in self.layers]

    def forward(self, x: Array, slots: Sequence[Slot]) -> Array:
        """Return the output for x, with batch statistics; it belongs to the slots."""
        for layer, slot in zip(self.layers, slots, strict=True):
            x = layer.forward(x, slot)
        return x

    def backward(self, grad: Array, slots: Sequence[Slot], *, send: bool) -> Array | None:
        """Take the gradients of the weights from `grad`, the output's gradient of the summed loss.
        If `send`, return the gradient of x, which belongs to the slots."""
        sent: Array | None = grad
        for position in reversed(range(len(self.layers))):
            assert sent is not None
            layer = self.layers[position]
            layer.fresh = True
            sent = layer.backward(sent, slots[position], learn=True, send=send or position > 0)
        return sent

    def step(self, samples: int, rate_scale: float) -> None:
        """Make one step of Adam on the gradients of the last `backward`, divided by `samples`.

        Raises `NumericalError`, before any weight moves, for a gradient that is not finite."""
        self._grads *= 1 / samples
        finite_norm(self._grads)
        self.optimizer.step(self._vector, self._grads, self.learning_rate * rate_scale)


def _stream(streams: Streams, name: str, purpose: str) -> np.random.Generator:
    return streams(f"{name}.{purpose}")
