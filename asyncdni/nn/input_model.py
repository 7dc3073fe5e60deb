"""Synthetic inputs: a stage's input activation, predicted from the input of the network.

With an input model a stage waits for nothing: it goes forward from a prediction of what the stages
before it would have sent, and the model is trained when the true activation comes (Jaderberg et
al., 2017, arXiv 1608.05343, sections 2 and 3.3, "complete unlock").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from asyncdni.nn.base import Array, Layer, Slot, Streams, rows
from asyncdni.nn.generators.base import join
from asyncdni.nn.layers.activations import Relu
from asyncdni.nn.layers.dense import Dense
from asyncdni.nn.layers.normalisation import BatchNorm
from asyncdni.nn.sequential import Sequential

__all__ = ["InputModel"]


class InputModel:
    """[x, onehot(y)] -> (dense, batch norm, relu) for each of `hidden` -> dense -> ĥ.

    Without `labels` the model sees x alone. It keeps nothing of a batch: `fit` is given x and y
    again, with the activation that came. `params` and `buffers` are restored by writing into the
    arrays.
    """

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (256,),
        labels: bool = False,
        learning_rate: float = 3e-3,
    ) -> None:
        """`hidden` gives the units of each hidden layer; `learning_rate` is Adam's."""
        self.hidden = tuple(hidden)
        self.labels = labels
        self.learning_rate = learning_rate
        self.params: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}

    def build(
        self,
        inputs: int,
        outputs: int,
        width: int,
        loss: str,
        dtype: np.dtype[Any],
        streams: Streams,
    ) -> None:
        """Make the network from x (B, inputs) to activations (B, width). `loss` and `outputs` (K)
        describe the targets, as for a `Generator`. Layers draw from streams
        "input_model.<position>.<purpose>"."""
        self._outputs = outputs
        self._classes = loss == "cross_entropy"
        self._dtype = np.dtype(dtype)
        layers: list[Layer] = []
        for units in self.hidden:
            layers += Dense(units), BatchNorm(), Relu()
        self.network = Sequential([*layers, Dense(width)], self.learning_rate)
        self.network.build(inputs + outputs * self.labels, self._dtype, streams, "input_model")
        self.params, self.buffers = self.network.params, self.network.buffers
        self._slots = self.network.slots()
        self._scratch: Slot = {}

    def predict(self, x: Array, y: Array | None) -> Array:
        """Return the prediction ĥ (B, D) for inputs x (B, X) and targets y (needed with `labels`
        only), with batch statistics; a new array."""
        return self._forward(x, y).copy()

    def fit(self, x: Array, y: Array | None, h: Array, rate_scale: float) -> float:
        """Make one step of Adam on Σ|ĥ - h|² / 2B towards the activation h (B, D) that came.

        Returns the mean of (ĥ - h)² over samples and units before the step. Raises
        `NumericalError`, with the model as it was, where the step's gradient is not finite."""
        predicted = self._forward(x, y)
        residual = np.subtract(predicted, h, out=rows(self._scratch, "residual", h.shape, h.dtype))
        flat = residual.reshape(-1)
        error = float(flat @ flat) / flat.size
        self.network.backward(residual, self._slots, send=False)
        self.network.step(len(h), rate_scale)
        return error

    def _forward(self, x: Array, y: Array | None) -> Array:
        if self.labels:
            assert y is not None, "an input model with labels was given none"
            z = rows(self._scratch, "z", (len(x), x.shape[1] + self._outputs), self._dtype)
            x = join(x, y, self._classes, z)
        return self.network.forward(x, self._slots)
