"""Generators that regress the gradient on activation and targets, and the one that predicts zero.

A network z = [h, targets] -> ĝ of ordinary layers is trained by Adam on the squared distance to the
gradient that came back. A fit runs the batch's z through the network again, with the weights of
now, because the prediction may be many updates old and then says little about the present error.

Source: the feed-forward synthetic-gradient models of Jaderberg et al., 2017 (arXiv 1608.05343),
with labels joined to the input (their "conditional" DNI). Dividing targets by their running root
mean square is this project's addition: gradients shrink by orders of magnitude as training goes
on, and Adam's steps do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, ClassVar

import numpy as np

from asyncdni import tables
from asyncdni.errors import NumericalError
from asyncdni.nn.base import Array, Layer, Slot, Streams, rows
from asyncdni.nn.generators.base import join
from asyncdni.nn.layers.activations import Relu
from asyncdni.nn.layers.convolution import Conv2d
from asyncdni.nn.layers.correlation import planes
from asyncdni.nn.layers.dense import Dense
from asyncdni.nn.layers.normalisation import BatchNorm, BatchNorm2d
from asyncdni.nn.layers.reshape import Flatten, Reshape
from asyncdni.nn.running import RunningRms
from asyncdni.nn.sequential import Sequential

__all__ = [
    "ConvolutionalGenerator",
    "LinearGenerator",
    "LowRankGenerator",
    "MlpGenerator",
    "Regression",
    "ZeroGenerator",
]


class Regression:
    """A generator whose network is `hidden` layers and then a dense one that starts at zero.

    Its input z (B, D + K) is h beside one-hot classes, or beside the K values of other targets as
    they are; without `labels` it is h alone. `params` and `buffers` are restored by writing into
    the arrays.
    """

    def __init__(
        self,
        *,
        hidden: Sequence[Layer],
        labels: bool,
        learning_rate: float,
        scale_targets: bool,
    ) -> None:
        """`learning_rate` is Adam's; `scale_targets` divides targets by their running root mean
        square."""
        self._hidden = hidden
        self.labels = labels
        self.learning_rate = learning_rate
        self.scale_targets = scale_targets
        self.params: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}

    def build(
        self, width: int, outputs: int, loss: str, dtype: np.dtype[Any], streams: Streams
    ) -> None:
        """See `Generator`; hidden layers draw from streams of their own, named after their
        position."""
        self._inputs = width + outputs * self.labels
        self._make([*self._hidden, Dense(width, init="zeros")], loss, dtype, streams)

    def _make(
        self, layers: Sequence[Layer], loss: str, dtype: np.dtype[Any], streams: Streams
    ) -> None:
        """Build the network of `layers` for its inputs z (B, self._inputs), and what a fit needs
        beside it."""
        self._classes = loss == "cross_entropy"
        self._dtype = np.dtype(dtype)
        self.network = Sequential(layers, self.learning_rate)
        self.network.build(self._inputs, self._dtype, streams, "generator")
        self.params = self.network.params
        self._rms = RunningRms()  # of the targets
        self.buffers = {**self.network.buffers, "target_square": self._rms.sums}
        self._slots = self.network.slots()
        self._scratch: Slot = {}

    def predict(self, h: Array, y: Array, slot: Slot, rate_scale: float) -> Array:
        """Return the network's answer (B, D) to activations h (B, D), in the targets' own scale."""
        output = self.forward(self._join(h, y, slot))
        prediction = rows(slot, "prediction", h.shape, self._dtype)
        return np.multiply(output, self._rms.value(), out=prediction)

    def fit(self, grad: Array, slot: Slot, rate_scale: float) -> None:
        """Make one step of Adam on Σ|ĝ - g / scale|² / 2B, for the gradient g (B, D)."""
        if self.scale_targets:
            self._observe(grad)
        output = self.forward(slot["inputs"])
        residual = rows(self._scratch, "residual", grad.shape, self._dtype)
        np.multiply(grad, -1 / self._rms.value(), out=residual)
        residual += output
        self.network.backward(residual, self._slots, send=False)
        self.network.step(len(grad), rate_scale)

    def forward(self, z: Array) -> Array:
        """Return the network's output for z, with batch statistics; valid until the next call."""
        return self.network.forward(z, self._slots)

    def _join(self, h: Array, y: Array, slot: Slot) -> Array:
        """Return the network's input z (B, D + K), which is kept in the slot for the fit."""
        z = self._inputs_of(h, slot)
        if self.labels:
            join(h, y, self._classes, z)
        else:
            z[...] = h
        return z

    def _inputs_of(self, h: Array, slot: Slot) -> Array:
        """Return the slot's array for the inputs z of the samples h, to be written."""
        slot["inputs"] = z = rows(slot, "inputs_rows", (len(h), self._inputs), self._dtype)
        return z

    def _observe(self, grad: Array) -> None:
        """Let a batch of targets (B, D) enter their running mean square.

        Raises `NumericalError`, and leaves the mean as it is, where it would not stay finite."""
        flat = grad.reshape(-1)
        square = float(flat @ flat) / flat.size
        if not isfinite(square + self._rms.sums[0]):
            raise NumericalError("the running mean square of its targets is no longer finite")
        self._rms.add(square)


class LinearGenerator(Regression):
    """A linear map of activation and targets: ĝ = h A + onehot(y) B + c, one dense layer on
    [h, onehot(y)] that starts at zero."""

    Options: ClassVar[type[tables.Generator]] = tables.LinearGenerator

    def __init__(
        self, *, labels: bool = True, learning_rate: float = 3e-3, scale_targets: bool = True
    ) -> None:
        super().__init__(
            hidden=[], labels=labels, learning_rate=learning_rate, scale_targets=scale_targets
        )


class LowRankGenerator(Regression):
    """A linear map through a few units: [h, onehot(y)] -> `rank` linear units -> ĝ. It takes a
    fraction of the full map's arithmetic.

    Only the second of the two maps starts at zero: if both did, neither would ever move."""

    Options: ClassVar[type[tables.Generator]] = tables.LowRankGenerator

    def __init__(
        self,
        *,
        rank: int = 32,
        labels: bool = True,
        learning_rate: float = 3e-3,
        scale_targets: bool = True,
    ) -> None:
        super().__init__(
            hidden=[Dense(rank)],
            labels=labels,
            learning_rate=learning_rate,
            scale_targets=scale_targets,
        )


class MlpGenerator(Regression):
    """[h, onehot(y)] -> (dense, batch norm, relu) for each of `hidden` -> ĝ: the DNI paper's
    generator for feed-forward networks.

    The running statistics of the batch norms are never used, so they are no part of `buffers`."""

    Options: ClassVar[type[tables.Generator]] = tables.MlpGenerator

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (256,),
        labels: bool = True,
        learning_rate: float = 3e-3,
        scale_targets: bool = True,
    ) -> None:
        layers: list[Layer] = []
        for units in hidden:
            layers += Dense(units), BatchNorm(), Relu()
        super().__init__(
            hidden=layers,
            labels=labels,
            learning_rate=learning_rate,
            scale_targets=scale_targets,
        )


class ZeroGenerator:
    """The control: it always predicts zero, so that its stage does not learn. A comparison with it
    shows what another generator is worth."""

    Options: ClassVar[type[tables.Generator]] = tables.ZeroGenerator

    def __init__(self) -> None:
        self.params: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}

    def build(
        self, width: int, outputs: int, loss: str, dtype: np.dtype[Any], streams: Streams
    ) -> None:
        """Do nothing: there are no weights."""

    def predict(self, h: Array, y: Array, slot: Slot, rate_scale: float) -> Array:
        """Return zeros (B, D). They are written each time, because a backward may have used the
        array as scratch."""
        prediction = rows(slot, "prediction", h.shape, h.dtype)
        prediction.fill(0)
        return prediction

    def fit(self, grad: Array, slot: Slot, rate_scale: float) -> None:
        """Do nothing: there is nothing to learn."""


class ConvolutionalGenerator(Regression):
    """[h, targets as constant planes] -> (conv2d, batch norm, relu) for each of `hidden` -> conv2d:
    the DNI paper's generator for convolutional networks.

    Every convolution keeps height and width; the last one starts at zero. With `labels`, each class
    has a channel, of ones if it is the sample's class and else of zeros; other targets have a
    channel each, filled with their value (Jaderberg et al., 2017, arXiv 1608.05343, appendix).

    Like the paper's, this generator costs as much as the stages themselves. The running statistics
    of its batch norms are never used, so they are no part of `buffers`.
    """

    Options: ClassVar[type[tables.Generator]] = tables.ConvolutionalGenerator

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (64, 64),
        kernel: int | Sequence[int] = 5,
        labels: bool = True,
        learning_rate: float = 3e-3,
        scale_targets: bool = True,
    ) -> None:
        """`hidden` gives the channels of each hidden layer; all layers have the same `kernel`."""
        super().__init__(
            hidden=(), labels=labels, learning_rate=learning_rate, scale_targets=scale_targets
        )
        self.channels = tuple(hidden)
        self.kernel = kernel

    def build(
        self,
        width: int,
        outputs: int,
        loss: str,
        dtype: np.dtype[Any],
        streams: Streams,
        shape: tuple[int, ...] = (),
    ) -> None:
        """Make the network for feature maps h of `shape` (C, H, W), as rows of `width` = C H W.
        Hidden layers draw from streams of their own, named after their position. Raises
        `ConfigError` for activations that are no feature maps."""
        channels, height, across = planes(shape, where="a convolutional generator")
        self._planes = outputs * self.labels, height * across
        self._inputs = width + self._planes[0] * self._planes[1]
        inputs = channels + self._planes[0], height, across
        layers = [Reshape(inputs), *self._hidden_layers(), self._conv(channels, "zeros"), Flatten()]
        self._make(layers, loss, dtype, streams)

    def _hidden_layers(self) -> list[Layer]:
        found: list[Layer] = []
        for channels in self.channels:
            found += self._conv(channels, "he_normal"), BatchNorm2d(), Relu()
        return found

    def _conv(self, channels: int, init: str) -> Conv2d:
        return Conv2d(channels, kernel=self.kernel, padding="same", init=init)

    def _join(self, h: Array, y: Array, slot: Slot) -> Array:
        """Return the network's input z (B, (C + K) H W), h and then the planes of the targets,
        which is kept in the slot for the fit."""
        z = self._inputs_of(h, slot)
        width = h.shape[1]
        z[:, :width] = h
        if self.labels:
            targets = z[:, width:].reshape(len(h), *self._planes)
            if self._classes:
                targets[...] = 0
                targets[np.arange(len(h)), y] = 1
            else:
                targets[...] = y[:, :, None]
            z[:, width:] = targets.reshape(len(h), -1)
        return z
