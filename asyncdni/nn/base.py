"""The interfaces of layers, losses and optimizers, and the slots that keep a batch's arrays.

A layer owns its parameters, its running statistics (`buffers`) and the sums of the parameters'
gradients (`grads`). The arrays in `params` and `grads` may be replaced by views of one flat vector
(see `optimizers`), so a layer looks them up by name each time.

What a forward leaves behind for its backward belongs to the batch and is kept in a `Slot`, so that
many batches can be in flight. A slot starts as an empty dict, which the layer fills. It is reused
from batch to batch: its arrays are allocated once, for the largest batch seen, and a smaller last
batch works on views of them. A slot may be given to `backward` several times, so a backward must
not change anything in it that a second backward needs.

Shapes in comments: B samples, D inputs, H outputs. Gradients are of the summed loss, one row a
sample; the optimizer's caller divides by the number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
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
    "accumulate",
    "forwarded",
    "gradient",
    "rows",
    "slices",
]

Array = NDArray[Any]
Rng = np.random.Generator
Slot = dict[str, Any]
#: A layer's random streams by purpose: `streams("init")` is keyed by (seed, layer name, "init").
Streams = Callable[[str], Rng]


class Layer(Protocol):
    """One layer: `build` once, then forward and backward for each batch."""

    params: dict[str, Array]  # named as a PyTorch user would expect: "weight", "bias"
    grads: dict[str, Array]  # same names and shapes
    fresh: bool  # `grads` hold nothing: the next backward with `learn` overwrites them
    buffers: dict[str, Array]  # running statistics: "running_mean", …

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the output's shape for inputs of `shape` (both without the batch axis), without
        allocating anything. Raises `ConfigError` where the shape does not fit, naming what was
        given and expected.

        A layer with possibly large weights also has a method `size(shape)`, which returns their
        number of elements beforehand. A layer that computes products also has a method
        `flops(shape, samples, *, send)`, which returns (forward, backward): the floating-point
        operations of its matrix products and convolutions on `samples` inputs, in a forward and in
        a backward that learns and, if `send`, computes the gradient of x too. A product of (m, k)
        and (k, n) has 2 m k n of them; all else is left out, as PyTorch's FlopCounterMode does. It
        returns None where they are not known.

        A layer whose outputs may be several tensors in one, or whole numbers such as ids, has a
        method `packs()`, which returns whether they are."""

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        """Make parameters, gradients and running statistics; return the output's shape."""

    def forward(self, x: Array, slot: Slot) -> Array:
        """Return the output for x (B, *shape) in training, and keep in `slot` what `backward`
        needs."""

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        """If `learn`, add to `grads`, or overwrite them where `fresh` and clear that flag. Return
        the gradient of x if `send`, else None.

        A layer may overwrite `grad_y` only if its docstring says so."""

    def evaluate(self, x: Array) -> Array:
        """Return the output for x (B, *shape) with running statistics; nothing is kept.

        A layer may also have a method `release(slot)`, which is called once a batch is over."""


class Loss(Protocol):
    """A loss on a stage's output x (B, K), with targets y: (B,) class ids or (B, K) values."""

    def check(self, shape: tuple[int, ...], y: Array) -> None:
        """Raise `DataError` where the shape or range of targets y does not fit outputs of
        `shape`."""

    def forward(self, x: Array, y: Array, slot: Slot) -> tuple[float, int | None]:
        """Return the loss summed over samples, and the number of right answers (None: the loss has
        no such notion), and keep the error in `slot`."""

    def backward(self, slot: Slot) -> Array:
        """Return the gradient of the summed loss, (B, K), which belongs to the slot."""

    def error(self, x: Array, y: Array, out: Array) -> Array:
        """Write the gradient of the summed loss at x into `out` (B, K), and return it."""


class Optimizer(Protocol):
    """Makes steps on one flat vector of parameters. It owns its moments, which are named for
    checkpoints."""

    state: dict[str, Array]

    def start(self, params: Array) -> None:
        """Allocate what `state` lacks, so that a checkpoint can be copied into it."""

    def step(self, params: Array, grads: Array, rate: float, scale: float = 1.0) -> None:
        """Move `params` in place by the gradient scale * `grads` (both (N,)) at learning rate
        `rate`. This may overwrite `grads`."""


def accumulate(layer: Layer, found: Mapping[str, Array]) -> None:
    """Add a batch's gradients `found` to `layer.grads`, or overwrite these where the layer is
    `fresh`, and clear that flag.

    `found` has an array of the parameter's shape for each of `layer.grads`; more are ignored.
    """
    for name, grad in layer.grads.items():
        if layer.fresh:
            grad[...] = found[name]
        else:
            grad += found[name]
    layer.fresh = False


#: Where a slot counts the gradient arrays handed out since its last forward.
_HANDED_OUT = "gradients_handed_out"


def rows(slot: Slot, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return the slot's array `name` of that shape and dtype, with arbitrary contents,
    C-contiguous.

    The first axis is that of samples: after a larger batch these are the first rows of its array.
    """
    kept: Array | None = slot.get(name)
    if kept is not None and kept.shape == shape and kept.dtype is dtype:
        return kept  # the usual case
    if kept is None or len(kept) < shape[0] or kept.shape[1:] != shape[1:] or kept.dtype != dtype:
        kept = slot[name] = np.empty(shape, dtype)
    return kept if len(kept) == shape[0] else kept[: shape[0]]


def fits(shape: tuple[int, ...], expected: tuple[int, ...], varying: bool) -> bool:
    """Return whether a sample may have this shape: the expected one, or with `varying` one of fewer
    steps, but at least one."""
    if not varying or shape == expected:
        return shape == expected
    return len(shape) == len(expected) and shape[1:] == expected[1:] and 0 < shape[0] < expected[0]


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an array with arbitrary contents that begins at a multiple of 64 bytes: the last bits
    of matrix products do not depend on where its memory happens to be then, and PyTorch takes it
    without a copy."""
    count = math.prod(shape) * dtype.itemsize
    room = np.empty(count + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + count].view(dtype).reshape(shape)


def slices(count: int, step: int) -> Iterator[slice]:
    """Return the slices that go through `count` rows, `step` of them at a time; the last may be
    shorter."""
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def forwarded(slot: Slot) -> None:
    """Note that a new batch is in the slot, so that all its gradient arrays are free again."""
    slot[_HANDED_OUT] = 0


def gradient(slot: Slot, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an array for the gradient of x that no earlier backward of this batch has returned.

    Gradients may still be on their way to another worker when the same batch is pushed back a
    second time, so each backward writes into an array of its own.
    """
    count: int = slot[_HANDED_OUT]
    slot[_HANDED_OUT] = count + 1
    return rows(slot, f"grad_x{count}", shape, dtype)
