"""Embedding: a learned vector for each token, such as a letter, which is given by its id."""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncdni.errors import DataError
from asyncdni.nn.base import Array, Slot, Streams, forwarded, gradient, rows
from asyncdni.nn.initialisers import make_initialiser
from asyncdni.nn.options import check_positive

__all__ = ["Embedding"]


class Embedding:
    """Rows of weight (tokens, width), as torch.nn.Embedding: ids (B, …) to y (B, …, width).

    Ids are whole numbers from 0 to `tokens` - 1, of any integer type or as floats. The weight's
    gradient has all rows; those of ids that are not in the batch are zero. The gradient of the ids
    is zero, as they are discrete.
    """

    def __init__(
        self,
        tokens: int,  # how many different ids there are
        *,
        width: int,  # size of the vector of an id
        init: str = "normal:1",  # how the weight starts: see `init`
    ) -> None:
        check_positive(tokens=tokens, width=width)
        self.tokens = tokens
        self.width = width
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self.fresh = True
        self._initialise = make_initialiser(init)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape, self.width)

    def size(self, shape: tuple[int, ...]) -> int:
        """Return how many numbers the weights have that `build` makes for inputs of `shape`,
        without making them."""
        return self.tokens * self.width

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        self.params = {"weight": np.empty((self.tokens, self.width), dtype)}
        self._initialise(self.params["weight"], streams("init"))
        self.grads = {"weight": np.zeros_like(self.params["weight"])}
        self.fresh = True
        return self.output_shape(shape)

    def forward(self, x: Array, slot: Slot) -> Array:
        """Return the vectors of the ids x. Raises `DataError` for an id that has no row."""
        forwarded(slot)
        weight = self.params["weight"]
        slot["ids"] = ids = self._checked(x)
        return self._look_up(ids, rows(slot, "y", (*x.shape, self.width), weight.dtype))

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        """Return a gradient of zeros of the ids' shape, if `send`."""
        ids: Array = slot["ids"]
        if learn:
            self._learn(grad_y.reshape(-1, self.width), ids.reshape(-1))
        if not send:
            return None
        grad_x = gradient(slot, ids.shape, grad_y.dtype)
        grad_x.fill(0)
        return grad_x

    def evaluate(self, x: Array) -> Array:
        weight = self.params["weight"]
        return self._look_up(self._checked(x), np.empty((*x.shape, self.width), weight.dtype))

    def _look_up(self, ids: Array, y: Array) -> Array:
        # The ids are in range. Without mode="clip", np.take would write to a copy of `y` first.
        return np.take(self.params["weight"], ids, axis=0, out=y, mode="clip")

    def _checked(self, x: Array) -> Array:
        with np.errstate(invalid="ignore"):  # the comparison below finds NaN
            ids = x.astype(np.int64)
        wrong = x[(ids < 0) | (ids >= self.tokens) | (ids != x)]
        if wrong.size:
            raise DataError(
                f"an embedding layer was given the id {wrong[0]}: expected a whole number from 0 "
                f"to {self.tokens - 1}; recode the data or raise tokens"
            )
        return ids

    def _learn(self, grad_y: Array, ids: Array) -> None:
        """Add the gradients of equal ids up. A stable sort brings these together, in the order of
        the batch."""
        grad = self.grads["weight"]
        if self.fresh:
            grad.fill(0)
        self.fresh = False
        order = np.argsort(ids, kind="stable")
        found, starts = np.unique(ids[order], return_index=True)
        grad[found] += np.add.reduceat(grad_y[order], starts, axis=0)
