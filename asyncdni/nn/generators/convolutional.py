"""The DNI paper's generator of convolutional networks: convolutions of the activation, with the
labels as channels beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from asyncdni import tables
from asyncdni.nn.base import Array, Layer, Slot, Streams, rows
from asyncdni.nn.generators.regression import Regression
from asyncdni.nn.layers.activations import Relu
from asyncdni.nn.layers.convolution import Conv2d
from asyncdni.nn.layers.normalisation import BatchNorm2d
from asyncdni.nn.layers.reshape import Flatten, Reshape
from asyncdni.nn.layers.windows import planes
from asyncdni.nn.sequential import Sequential

__all__ = ["ConvolutionalGenerator"]


class ConvolutionalGenerator(Regression):
    """[h, targets as constant planes] -> (conv2d, batch norm, relu) for each of `hidden` -> conv2d.

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
        self._classes = loss == "cross_entropy"
        self._dtype = np.dtype(dtype)
        inputs = channels + self._planes[0], height, across
        layers = [Reshape(inputs), *self._hidden_layers(), self._conv(channels, "zeros"), Flatten()]
        self.network = Sequential(layers, self.learning_rate)
        self.network.build(self._inputs, self._dtype, streams, "generator")
        self.params = self.network.params
        self._square = np.zeros(2)
        self.buffers = {**self.network.buffers, "target_square": self._square}
        self._slots = self.network.slots()
        self._scratch: Slot = {}

    def _hidden_layers(self) -> list[Layer]:
        found: list[Layer] = []
        for channels in self.channels:
            found += self._conv(channels, "he_normal"), BatchNorm2d(), Relu()
        return found

    def _conv(self, channels: int, init: str) -> Conv2d:
        return Conv2d(channels, kernel=self.kernel, padding="same", init=init)

    def _join(self, h: Array, y: Array, slot: Slot) -> Array:
        """The network's input z (B, (C + K) H W), h and then the planes of the targets, which is
        kept in the slot for the fit."""
        z = rows(slot, "inputs_rows", (len(h), self._inputs), self._dtype)
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
        slot["inputs"] = z
        return z
