"""A local classifier on the activation: its gradient is taken in place of what would come back.

Nothing comes back under the schedule `local_loss`, so there is nothing to fit: the head learns from
its own loss, and the stage from the head (Belilovsky, Eickenberg and Oyallon, 2019, "Greedy
Layerwise Learning Can Scale to ImageNet", arXiv 1812.11446; 2020, "Decoupled Greedy Learning of
CNNs", arXiv 1901.08164).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from asyncdni.nn.base import Array, Layer, Loss, Slot, Streams
from asyncdni.nn.layers import Dense, Relu
from asyncdni.nn.layers.slots import rows
from asyncdni.nn.losses import make_loss
from asyncdni.nn.sequential import Sequential

__all__ = ["LocalHead"]


class LocalHead:
    """h -> (dense, relu) for each of `hidden` -> dense -> the loss of the network; a `Generator`.

    The last layer starts at zero, so the first batch gives the stage a gradient of zero; it moves
    in that very batch, so the second one gives another. Starting there keeps a stage from being
    pushed at first along a map that knows nothing yet.

    `params` and `buffers` are restored by writing into the arrays.
    """

    def __init__(self, *, hidden: Sequence[int] = (), learning_rate: float = 1e-2) -> None:
        """`hidden`: relu units of each hidden layer; `learning_rate` is Adam's."""
        self.hidden = tuple(hidden)
        self.learning_rate = learning_rate
        self.params: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}

    def build(
        self, width: int, outputs: int, loss: str, dtype: np.dtype[Any], streams: Streams
    ) -> None:
        """Hidden layers start as those of a stage do, from streams "head.<position>.init"."""
        self._loss: Loss = make_loss(loss)
        self._outputs = outputs
        self._dtype = np.dtype(dtype)
        layers: list[Layer] = []
        for units in self.hidden:
            layers += Dense(units), Relu()
        self.network = Sequential([*layers, Dense(outputs, init="zeros")], self.learning_rate)
        self.network.build(width, self._dtype, streams, "head")
        self.params, self.buffers = self.network.params, self.network.buffers

    def predict(self, h: Array, y: Array, slot: Slot, rate_scale: float) -> Array:
        """∂(summed local loss)/∂h (B, D) at activations h (B, D) and targets y; then the head's
        step, on the mean over the batch.

        The gradient goes through the head as it is before that step."""
        if "layers" not in slot:
            slot["layers"] = self.network.slots()
        layers: list[Slot] = slot["layers"]
        logits = self.network.forward(h, layers)
        error = rows(slot, "error", (len(h), self._outputs), self._dtype)
        self._loss.error(logits, y, error)
        prediction = self.network.backward(error, layers, send=True)
        assert prediction is not None
        self.network.step(len(h), rate_scale)
        return prediction

    def fit(self, grad: Array, slot: Slot, rate_scale: float) -> None:
        """Nothing to learn from what comes back."""
