"""A loss of windows: of each step that counts, as if it were a sample of its own."""

from __future__ import annotations

import numpy as np

from asyncdni.nn.base import Array, Loss, Slot
from asyncdni.nn.layers.slots import rows

__all__ = ["WindowLoss", "by_step", "counted"]


class WindowLoss:
    """`loss` on outputs x (B, T, K) with targets y (B, T) or (B, T, K), and mask (B, T) bool.

    Value and gradient are sums over the steps that count; a window of which none does has a loss
    of 0, and a gradient of 0.
    """

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    def forward(
        self, x: Array, y: Array, mask: Array | None, slot: Slot
    ) -> tuple[float, int | None, int]:
        """The loss, how many answers are right (None: no such notion), and how many steps count;
        keeps the error in `slot`."""
        inner: Slot = slot.setdefault("steps", {})
        outputs, targets, chosen = by_step(x), by_step(y), counted(mask)
        if chosen is None:
            loss, correct = self._loss.forward(outputs, targets, inner)
            slot["error"] = self._loss.backward(inner).reshape(x.shape)
            return loss, correct, len(outputs)
        loss, correct = self._loss.forward(outputs[chosen], targets[chosen], inner)
        error = rows(slot, "error_rows", outputs.shape, x.dtype)
        error[...] = 0
        error[chosen] = self._loss.backward(inner)
        slot["error"] = error.reshape(x.shape)
        return loss, correct, len(chosen)

    def backward(self, slot: Slot) -> Array:
        """Gradient of the summed loss, (B, T, K); belongs to the slot."""
        error: Array = slot["error"]
        return error


def by_step(windows: Array) -> Array:
    """(B, T, …) as (B T, …): a row a step."""
    return windows.reshape(-1, *windows.shape[2:])


def counted(mask: Array | None) -> Array | None:
    """Which rows of `by_step` count, as numbers; None where all do."""
    return None if mask is None else np.flatnonzero(mask)
