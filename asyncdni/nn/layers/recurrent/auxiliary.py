"""The auxiliary task of recurrent synthetic gradients: foretell the next window's prediction.

From the state s(k) at a window's end a linear map A guesses what the generator will say at the end
of the next one, ĝ(k + 1). The error is a loss of its own, w |A s(k) - ĝ(k + 1)|^2 / 2 in units of
the targets' root mean square, and asks the state to keep what matters more than one window ahead.
It is known one window late, so its gradient with respect to s(k) joins the target of the generator
at s(k), and reaches the layer through the generator as all loss of the future does.

Source of the task: Jaderberg et al. 2017 (arXiv 1608.05343), section 3.2 (DNI + Aux), which pushes
the error back at once instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncdni.nn.base import Array
from asyncdni.nn.optimizers import Adam

__all__ = ["Auxiliary"]


class Auxiliary:
    """ "weight" A (S, S + 1), zero at the start; its Adam's moments are in `buffers` beside it."""

    def __init__(self, weight: float, learning_rate: float) -> None:
        """`weight` w of the task in the loss; `learning_rate` of A's own Adam."""
        self.weight = weight
        self.learning_rate = learning_rate
        self.buffers: dict[str, Array] = {}

    def build(self, state: int, dtype: np.dtype[Any]) -> None:
        """For states (B, state)."""
        self._map = np.zeros((state, state + 1), dtype)
        self._optimizer = Adam()
        self._optimizer.start(self._map.reshape(-1))
        self.buffers = {"weight": self._map, **self._optimizer.state}

    def gradient(self, state: Array, foretold: Array, goes_on: Array, rate_scale: float) -> Array:
        """∂(its loss)/∂state (B, S), zero where the sequence does not go on (goes_on (B,) bool);
        then one step of A. `foretold` ĝ(k + 1) (B, S) is in units of the targets' RMS."""
        ones = np.ones((len(state), 1), state.dtype)
        inputs = np.concatenate((state, ones), axis=1)
        error = inputs @ self._map.T - foretold
        error[~goes_on] = 0
        grad: Array = error @ self._map[:, :-1]
        grad *= self.weight
        change = error.T @ inputs
        change /= len(state)
        if np.isfinite(change).all():
            rate = self.learning_rate * rate_scale
            self._optimizer.step(self._map.reshape(-1), change.reshape(-1), rate)
        return grad
