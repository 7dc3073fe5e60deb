"""What a layer is, and what belongs to whom.

A layer owns its parameters, its running statistics (`buffers`) and the sums of the parameters'
gradients (`grads`). The arrays in `params` and `grads` may be replaced by views of one flat vector
(see `optimizers`), so a layer looks them up by name each time. What a forward leaves behind for
its backward belongs to the batch and lives in a `Slot`, so that many batches can be in flight. A
slot starts as an empty dict, which the layer fills; it is reused from batch to batch (its arrays
are allocated once, for the largest batch seen; a smaller last batch works on views of them), and
may be handed to `backward` several times: a backward changes nothing in it that a second backward
needs.

Shapes in comments: B samples, D inputs, H outputs. Gradients are of the summed loss, one row a
sample; dividing by the number of samples is the optimizer step's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Array",
    "Layer",
    "Loss",
    "Optimizer",
    "Rng",
    "Slot",
    "Streams",
    "forwarded",
    "gradient",
    "rows",
]

Array = NDArray[Any]
Rng = np.random.Generator
Slot = dict[str, Any]
#: Random streams by purpose: `streams("init")` is keyed by (seed, layer name, purpose).
Streams = Callable[[str], Rng]


class Layer(Protocol):
    """One layer: `build` once, then forward and backward for each batch."""

    params: dict[str, Array]  # named as a PyTorch user would expect: "weight", "bias"
    grads: dict[str, Array]  # same names and shapes
    fresh: bool  # `grads` hold nothing yet: the next learning backward overwrites them
    buffers: dict[str, Array]  # running statistics: "running_mean", …

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Output shape for inputs of `shape` (both without the batch axis); allocates nothing.
        Raises `ConfigError` where the shape does not fit (given, expected). A layer whose weights
        may be large says so beforehand by `size(shape)`, their elements."""

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        """Make parameters, gradients and running statistics; returns the output shape."""

    def forward(self, x: Array, slot: Slot) -> Array:
        """Training forward of (B, *shape); keeps in `slot` what `backward` needs."""

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        """Adds to `grads` if `learn` (overwrites them where `fresh`, and clears that flag);
        returns the gradient of x if `send`, else None.

        `grad_y` may be overwritten only where the layer's docstring says so."""

    def evaluate(self, x: Array) -> Array:
        """Forward with running statistics, nothing kept."""


class Loss(Protocol):
    """A loss on a stage's output x (B, K), with targets y: (B,) class ids or (B, K) values."""

    def check(self, shape: tuple[int, ...], y: Array) -> None:
        """Raises `DataError` where targets y don't fit outputs of `shape` (shape, range)."""

    def forward(self, x: Array, y: Array, slot: Slot) -> tuple[float, int | None]:
        """Sum over samples of the loss, and how many answers are right (None: no such notion);
        keeps the error in `slot`."""

    def backward(self, slot: Slot) -> Array:
        """Gradient of the summed loss, (B, K); belongs to the slot."""

    def error(self, x: Array, y: Array, out: Array) -> Array:
        """The gradient of the summed loss at x, written into `out` (B, K)."""


class Optimizer(Protocol):
    """A step on one flat vector of parameters; owns its moments, named for checkpoints."""

    state: dict[str, Array]

    def step(self, params: Array, grads: Array, rate: float) -> None:
        """Moves `params` in place by mean gradients `grads` (both (N,)) at learning rate `rate`.
        May overwrite `grads`."""


# --- slots ---------------------------------------------------------------------------------------
#
# Arrays kept in a batch's slot: made once for the largest batch seen, then reused.

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
