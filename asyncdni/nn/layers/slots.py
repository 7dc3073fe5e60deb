"""Arrays kept in a batch's slot: made once for the largest batch seen, then reused."""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncdni.nn.base import Array, Slot

__all__ = ["forwarded", "gradient", "rows"]

#: Counts the gradients handed out since the slot's last forward.
_HANDED_OUT = "gradients_handed_out"


def rows(slot: Slot, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """The slot's array `name` of that shape (first axis: samples), its contents left over.

    Rows of a larger array where a larger batch was here before, so always C-contiguous.
    """
    kept: Array | None = slot.get(name)
    if kept is not None and kept.shape == shape and kept.dtype is dtype:
        return kept  # nearly always
    if kept is None or len(kept) < shape[0] or kept.shape[1:] != shape[1:] or kept.dtype != dtype:
        kept = slot[name] = np.empty(shape, dtype)
    return kept if len(kept) == shape[0] else kept[: shape[0]]


def forwarded(slot: Slot) -> None:
    """A new batch is in the slot: all of its gradient arrays are free again."""
    slot[_HANDED_OUT] = 0


def gradient(slot: Slot, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array for the gradient of x that no earlier backward of this batch has returned.

    Gradients may still be on their way to another worker when the same batch is pushed back a
    second time, so each backward writes into an array of its own.
    """
    count: int = slot[_HANDED_OUT]
    slot[_HANDED_OUT] = count + 1
    return rows(slot, f"grad_x{count}", shape, dtype)
