"""Generators made of a local classifier: the default ones for vectors and feature maps, and heads.

In the default generators a linear head predicts the targets from the activation. Its error e is all
that the stage can know at once about how wrong the network is. The true gradient g only has to
teach the map U in ĝ = e U. That map changes slowly, so gradients that arrive many batches late are
still useful. Labels enter through e and not directly, because e changes sign where h overshoots; a
push that depends on the class alone does not.

These are synthetic-gradient models in the sense of Jaderberg et al., 2017 (arXiv 1608.05343),
section 2, conditioned on labels; the map is fitted by normalised least mean squares (Nagumo and
Noda, 1967; Haykin, Adaptive Filter Theory).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from asyncdni import tables
from asyncdni.nn.base import Array, Layer, Loss, Slot, Streams, rows
from asyncdni.nn.layers.activations import Relu
from asyncdni.nn.layers.dense import Dense
from asyncdni.nn.losses import make_loss
from asyncdni.nn.optimizers import Adam, finite_norm
from asyncdni.nn.options import check_positive
from asyncdni.nn.sequential import Sequential

__all__ = ["ErrorGenerator", "FeatureMapErrorGenerator", "LocalHead"]

#: The map hardly moves where the head's mean squared error per sample is below this. Without it, a
#: fit would divide by almost zero once the head has become certain of a whole batch.
RIDGE = 1e-6


class ErrorGenerator:
    """ĝ = e U with e = ∂loss/∂logits of a local head: softmax(h Cᵀ + c) - onehot(y) of classes.

    "head.weight" C (K, D) and "head.bias" c (K,) are trained on the local loss, one Adam step a
    batch. They start at zero, which is no saddle point, as the local loss is convex in them. "map"
    U (K, D) is fitted to the true gradients. It is zero until the first of them arrives, so that
    the stage does not move before.

    `params` and `buffers` are restored by writing into the arrays.
    """

    Options: ClassVar[type[tables.Generator]] = tables.ErrorGenerator

    def __init__(self, *, head_learning_rate: float = 1e-2, rate: float = 0.03) -> None:
        """`rate` is the share of the map's error that a fit removes; it is stable below 2."""
        self.head_learning_rate = head_learning_rate
        self.rate = rate
        self.params: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}

    def build(
        self, width: int, outputs: int, loss: str, dtype: np.dtype[Any], streams: Streams
    ) -> None:
        """See `Generator`; all weights start at zero, so nothing is drawn from `streams`."""
        self._make(width, width, outputs, loss, dtype)

    def _make(self, seen: int, width: int, outputs: int, loss: str, dtype: np.dtype[Any]) -> None:
        """Make the weights: a head on (B, `seen`), and a map to gradients (B, `width`)."""
        self._loss: Loss = make_loss(loss)
        self._outputs = outputs
        self._dtype = np.dtype(dtype)
        weights = outputs * seen
        self._head, self._head_grad = np.zeros((2, weights + outputs), dtype)
        self._weight_grad = self._head_grad[:weights].reshape(outputs, seen)
        self._bias_grad = self._head_grad[weights:]
        self.params = {
            "head.weight": self._head[:weights].reshape(outputs, seen),
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
        """Return the prediction e U (B, D) for activations h (B, D) and targets y, and then
        make the head's step.

        The error e is that of the head before this step, so that these labels enter it once."""
        seen = self._seen(h)
        shape = len(h), self._outputs
        logits = rows(self._scratch, "logits", shape, self._dtype)
        np.matmul(seen, self.params["head.weight"].T, out=logits)
        logits += self.params["head.bias"]
        slot["error"] = error = rows(slot, "error_rows", shape, self._dtype)
        self._loss.error(logits, y, error)
        prediction = rows(slot, "prediction", h.shape, self._dtype)
        np.matmul(error, self.params["map"], out=prediction)
        self._step_head(seen, error, rate_scale)
        return prediction

    def _seen(self, h: Array) -> Array:
        """Return what the head sees of activations h (B, D)."""
        return h

    def fit(self, grad: Array, slot: Slot, rate_scale: float) -> None:
        """Make the step U -= rate eᵀ(e U - g) / Σe², with the slot's e and the present U.

        It is computed as (eᵀe) U - eᵀg, (K, K) by (K, D), so that no (B, D) array is made."""
        error = slot["error"]
        gram = error.T @ error
        energy = float(gram.trace()) + RIDGE * len(error)
        change = np.matmul(error.T, grad, out=self._change)
        change -= np.matmul(gram, self.params["map"], out=self._pulled)
        change *= self.rate * rate_scale / energy
        finite_norm(change)
        self.params["map"] += change

    def _step_head(self, h: Array, error: Array, rate_scale: float) -> None:
        """Make one step of Adam on the batch's mean local loss, whose gradient by C is eᵀh / B."""
        if len(self._ones) < len(h):
            self._ones = np.ones(len(h), self._dtype)
        np.matmul(error.T, h, out=self._weight_grad)
        np.matmul(self._ones[: len(h)], error, out=self._bias_grad)
        self._head_grad *= 1 / len(h)
        finite_norm(self._head_grad)
        self.optimizer.step(self._head, self._head_grad, self.head_learning_rate * rate_scale)


class FeatureMapErrorGenerator(ErrorGenerator):
    """ĝ = e U with e of a head on the means of `cells` x `cells` cells of each plane.

    The head sees only those means of a feature map: it has far fewer weights, which learn faster,
    and still knows roughly where things are. The map U has weights for every channel and place:
    (K, C H W) is little beside the convolutions, and a class's gradient differs from place to
    place.

    "head.weight" is (K, C cells cells), "head.bias" (K,), "map" (K, C H W); see `ErrorGenerator`.
    Planes with fewer rows or columns than `cells` have as many cells as those. For activations that
    are no feature maps, this is an `ErrorGenerator`, to the last bit.
    """

    def __init__(
        self, *, cells: int = 4, head_learning_rate: float = 1e-2, rate: float = 0.03
    ) -> None:
        """`rate` is the share of the map's error that a fit removes; it is stable below 2."""
        super().__init__(head_learning_rate=head_learning_rate, rate=rate)
        check_positive(cells=cells)
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
        """Make the weights for feature maps h of `shape` (C, H, W), as rows of `width` = C H W, or
        for activations of another shape. All start at zero, so nothing is drawn from `streams`."""
        self._means: Array | None = None
        if len(shape) != 3:
            self._make(width, width, outputs, loss, dtype)
            return
        channels, height, across = shape
        down, right = _means(height, self.cells), _means(across, self.cells)
        self._means = np.ascontiguousarray(np.kron(down, right).T, dtype)
        self._make(channels * self._means.shape[1], width, outputs, loss, dtype)

    def _seen(self, h: Array) -> Array:
        """Return the means (B, C cells cells) of h (B, C H W), computed as one product; other
        activations as they are."""
        if self._means is None:
            return h
        places, cells = self._means.shape
        each = rows(self._scratch, "pooled", (h.size // places, cells), self._dtype)
        return np.matmul(h.reshape(-1, places), self._means, out=each).reshape(len(h), -1)


def _means(size: int, cells: int) -> Array:
    """Return a matrix (cells, size) whose row i takes the mean of the i-th of `cells` equal parts.
    Parts overlap by one element where they are not equal, as in torch.nn.AdaptiveAvgPool2d."""
    cells = min(cells, size)
    found = np.zeros((cells, size))
    for i in range(cells):
        first, last = i * size // cells, -(-(i + 1) * size // cells)
        found[i, first:last] = 1 / (last - first)
    return found


class LocalHead:
    """A local classifier whose gradient replaces the one that would come back; a `Generator`.

    It is h -> (dense, relu) for each of `hidden` -> dense -> the loss of the network. Under the
    schedule `local_loss` no gradient comes back, so there is nothing to fit: the head learns from
    its own loss, and the stage learns from the head (Belilovsky, Eickenberg and Oyallon, 2019,
    "Greedy Layerwise Learning Can Scale to ImageNet", arXiv 1812.11446; 2020, "Decoupled Greedy
    Learning of CNNs", arXiv 1901.08164).

    The last layer starts at zero, so that an untrained head does not push the stage: the first
    batch's gradient is zero. The head moves in that batch, and later gradients are not zero.

    `params` and `buffers` are restored by writing into the arrays.
    """

    def __init__(self, *, hidden: Sequence[int] = (), learning_rate: float = 1e-2) -> None:
        """`hidden` gives the relu units of each hidden layer; `learning_rate` is Adam's."""
        self.hidden = tuple(hidden)
        self.learning_rate = learning_rate
        self.params: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}

    def build(
        self, width: int, outputs: int, loss: str, dtype: np.dtype[Any], streams: Streams
    ) -> None:
        """See `Generator`; hidden layers start as a stage's do, from streams
        "head.<position>.init"."""
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
        """Return the gradient ∂(summed local loss)/∂h (B, D) at activations h (B, D) and targets y,
        and then make the head's step, on the mean over the batch.

        The gradient goes through the head as it was before that step."""
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
        """Do nothing: a local head does not learn from gradients that come back."""
