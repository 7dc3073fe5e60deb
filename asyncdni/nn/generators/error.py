"""The default generator: the error of a local classifier, sent through a learned map.

A linear head guesses the targets from the activation, and its error e is what the stage can know
at once about how wrong the network is. The true gradient g only has to teach the map U in ĝ = e U,
which moves slowly, so gradients that arrive many batches late still serve. Labels enter through e
and not raw: e changes sign where h overshoots, a class-wise push does not.

This is a synthetic-gradient model in the sense of Jaderberg et al., 2017 (arXiv 1608.05343),
section 2, conditioned on labels; the map is fitted by normalised least mean squares (Nagumo and
Noda, 1967; Haykin, Adaptive Filter Theory).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from asyncdni import tables
from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array, Layer, Loss, Slot, Streams, rows
from asyncdni.nn.layers.activations import Relu
from asyncdni.nn.layers.dense import Dense
from asyncdni.nn.losses import make_loss
from asyncdni.nn.optimizers import Adam, finite_norm
from asyncdni.nn.sequential import Sequential

__all__ = ["ErrorGenerator", "FeatureMapErrorGenerator", "LocalHead"]

#: Mean squared error a sample below which the map hardly moves: without it a head that has become
#: certain of a whole batch would divide by almost nothing.
RIDGE = 1e-6


class ErrorGenerator:
    """ĝ = e U with e = ∂loss/∂logits of a local head: softmax(h Cᵀ + c) - onehot(y) of classes.

    "head.weight" C (K, D) and "head.bias" c (K,) follow the local loss, one Adam step a batch; they
    start at zero, which is no saddle point, as the local loss is convex in them. "map" U (K, D)
    follows the true gradients; zero until the first of them, so an untaught stage stands still.

    `params` and `buffers` are restored by writing into the arrays.
    """

    Options: ClassVar[type[tables.Generator]] = tables.ErrorGenerator

    def __init__(self, *, head_learning_rate: float = 1e-2, rate: float = 0.03) -> None:
        """`rate`: share of the error in the map that a fit removes, stable below 2."""
        self.head_learning_rate = head_learning_rate
        self.rate = rate
        self.params: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}

    def build(
        self, width: int, outputs: int, loss: str, dtype: np.dtype[Any], streams: Streams
    ) -> None:
        """All zero, so nothing is drawn from `streams`."""
        self._loss: Loss = make_loss(loss)
        self._outputs = outputs
        self._dtype = np.dtype(dtype)
        weights = outputs * width
        self._head, self._head_grad = np.zeros((2, weights + outputs), dtype)
        self._weight_grad = self._head_grad[:weights].reshape(outputs, width)
        self._bias_grad = self._head_grad[weights:]
        self.params = {
            "head.weight": self._head[:weights].reshape(outputs, width),
            "head.bias": self._head[weights:],
            "map": np.zeros((outputs, width), dtype),
        }
        self._scratch: Slot = {}
        self._change, self._pulled = np.empty((2, outputs, width), dtype)
        self._ones = np.ones(0, dtype)  # a product with it sums over samples, faster than np.sum
        self.optimizer = Adam()
        self.optimizer.start(self._head)
        self.buffers = {f"head.{name}": moment for name, moment in self.optimizer.state.items()}

    def predict(self, h: Array, y: Array, slot: Slot, rate_scale: float) -> Array:
        """e U (B, D) for activations h (B, D) and targets y; then the head's step.

        e is of the head before its step, so the prediction does not know its own labels twice."""
        shape = len(h), self._outputs
        logits = rows(self._scratch, "logits", shape, self._dtype)
        np.matmul(h, self.params["head.weight"].T, out=logits)
        logits += self.params["head.bias"]
        slot["error"] = error = rows(slot, "error_rows", shape, self._dtype)
        self._loss.error(logits, y, error)
        prediction = rows(slot, "prediction", h.shape, self._dtype)
        np.matmul(error, self.params["map"], out=prediction)
        self._step_head(h, error, rate_scale)
        return prediction

    def fit(self, grad: Array, slot: Slot, rate_scale: float) -> None:
        """U -= rate eᵀ(e U - g) / Σe², with the slot's e and today's U.

        Multiplied out to (eᵀe) U - eᵀg, (K, K) by (K, D), so no (B, D) array is made."""
        error = slot["error"]
        gram = error.T @ error
        energy = float(gram.trace()) + RIDGE * len(error)
        change = np.matmul(error.T, grad, out=self._change)
        change -= np.matmul(gram, self.params["map"], out=self._pulled)
        change *= self.rate * rate_scale / energy
        finite_norm(change)
        self.params["map"] += change

    def _step_head(self, h: Array, error: Array, rate_scale: float) -> None:
        """Adam on the local loss, mean over the batch, whose gradient by C is eᵀh / B."""
        if len(self._ones) < len(h):
            self._ones = np.ones(len(h), self._dtype)
        np.matmul(error.T, h, out=self._weight_grad)
        np.matmul(self._ones[: len(h)], error, out=self._bias_grad)
        self._head_grad *= 1 / len(h)
        finite_norm(self._head_grad)
        self.optimizer.step(self._head, self._head_grad, self.head_learning_rate * rate_scale)


# --- feature map ---------------------------------------------------------------------------------
#
# The default generator of feature maps: the error of a pooled classifier, through a learned map.
#
# As in `error`, a local head tells e = ∂loss/∂logits at once, and ĝ = e U is fitted to the true
# gradients. Of a feature map the head sees the mean of each channel over a few cells only: far
# fewer weights, which learn faster, and the rough place of things is still told. The map U reaches
# every channel and place of its own: (K, C H W) is little beside the convolutions, and the gradient
# of a class differs from place to place.


class FeatureMapErrorGenerator(ErrorGenerator):
    """ĝ = e U with e of a head on the means of `cells` x `cells` cells of each plane.

    "head.weight" is (K, C cells cells), "head.bias" (K,), "map" (K, C H W); see `ErrorGenerator`.
    Planes with fewer rows or columns than `cells` have as many cells as those. Of activations that
    are no feature maps it is an `ErrorGenerator`, to the last bit.
    """

    def __init__(
        self, *, cells: int = 4, head_learning_rate: float = 1e-2, rate: float = 0.03
    ) -> None:
        """`rate`: share of the error in the map that a fit removes, stable below 2."""
        super().__init__(head_learning_rate=head_learning_rate, rate=rate)
        if not isinstance(cells, int) or isinstance(cells, bool) or cells < 1:
            raise ConfigError(f"cells {cells!r}: expected a positive whole number")
        self.cells = cells

    def build(
        self,
        width: int,
        outputs: int,
        loss: str,
        dtype: np.dtype[Any],
        streams: Streams,
        shape: tuple[int, ...] = (),
    ) -> None:
        """For feature maps h of `shape` (C, H, W), as rows of `width` = C H W, or for activations
        of another shape. All zero, so nothing is drawn from `streams`."""
        self._means: Array | None = None
        if len(shape) != 3:
            super().build(width, outputs, loss, dtype, streams)
            return
        channels, height, across = shape
        down, right = _means(height, self.cells), _means(across, self.cells)
        self._means = np.ascontiguousarray(np.kron(down, right).T, dtype)
        super().build(channels * self._means.shape[1], outputs, loss, dtype, streams)
        self.params["map"] = np.zeros((outputs, width), dtype)
        self._change, self._pulled = np.empty((2, outputs, width), dtype)

    def predict(self, h: Array, y: Array, slot: Slot, rate_scale: float) -> Array:
        """e U (B, C H W) for activations h (B, C H W) and targets y; then the head's step.

        e is of the head before its step, so the prediction does not know its own labels twice."""
        if self._means is None:
            return super().predict(h, y, slot, rate_scale)
        pooled = self._pool(h, self._means)
        shape = len(h), self._outputs
        logits = rows(self._scratch, "logits", shape, self._dtype)
        np.matmul(pooled, self.params["head.weight"].T, out=logits)
        logits += self.params["head.bias"]
        slot["error"] = error = rows(slot, "error_rows", shape, self._dtype)
        self._loss.error(logits, y, error)
        prediction = rows(slot, "prediction", h.shape, self._dtype)
        np.matmul(error, self.params["map"], out=prediction)
        self._step_head(pooled, error, rate_scale)
        return prediction

    def _pool(self, h: Array, means: Array) -> Array:
        """The means (B, C cells cells) of h (B, C H W), as one product with all planes."""
        places, cells = means.shape
        each = rows(self._scratch, "pooled", (h.size // places, cells), self._dtype)
        return np.matmul(h.reshape(-1, places), means, out=each).reshape(len(h), -1)


def _means(size: int, cells: int) -> Array:
    """(cells, size): row i takes the mean of the i-th of `cells` even parts, which overlap by one
    element where they are not even (as torch.nn.AdaptiveAvgPool2d has them)."""
    cells = min(cells, size)
    found = np.zeros((cells, size))
    for i in range(cells):
        first, last = i * size // cells, -(-(i + 1) * size // cells)
        found[i, first:last] = 1 / (last - first)
    return found


# --- head ----------------------------------------------------------------------------------------
#
# A local classifier on the activation: its gradient is taken in place of what would come back.
#
# Nothing comes back under the schedule `local_loss`, so there is nothing to fit: the head learns
# from its own loss, and the stage from the head (Belilovsky, Eickenberg and Oyallon, 2019, "Greedy
# Layerwise Learning Can Scale to ImageNet", arXiv 1812.11446; 2020, "Decoupled Greedy Learning of
# CNNs", arXiv 1901.08164).


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
