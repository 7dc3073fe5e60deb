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

from typing import Any

import numpy as np

from asyncdni.nn.base import Array, Loss, Slot, Streams
from asyncdni.nn.layers.slots import rows
from asyncdni.nn.losses import make_loss
from asyncdni.nn.optimizers import Adam, finite_norm

__all__ = ["ErrorGenerator"]

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
