"""Losses computed by PyTorch, so that a stage in PyTorch has the bits of a plain PyTorch loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from asyncdni.nn.base import Array, Loss, Slot
from asyncdni.nn.torch.layer import aligned, tensor_of

__all__ = ["TorchLoss", "summed_loss"]

#: The sum over samples of each loss of outputs x and targets y; see `nn.losses` for what they are.
_SUMS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cross_entropy": lambda x, y: functional.cross_entropy(x, y, reduction="sum"),
    "sigmoid_cross_entropy": lambda x, y: functional.binary_cross_entropy_with_logits(
        x, y, reduction="sum"
    ),
    "mse": lambda x, y: functional.mse_loss(x, y, reduction="sum") / x.shape[1],
}
#: How many answers are right, for losses that have such a notion.
_RIGHT: dict[str, Callable[[Array, Array], int]] = {
    "cross_entropy": lambda x, y: int(np.count_nonzero(x.argmax(axis=1) == y)),
    "sigmoid_cross_entropy": lambda x, y: int(np.count_nonzero((x > 0) == (y > 0.5))),
}


def summed_loss(name: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss of that name, of outputs (B, K) and targets, as one number: the sum over samples."""
    return _SUMS[name]


class TorchLoss:
    """A loss of `nn.losses`, with its value and gradient computed by PyTorch.

    Targets are checked as for the loss `own`, that of the same name in NumPy.
    """

    def __init__(self, name: str, own: Loss) -> None:
        self._sum = _SUMS[name]
        self._right = _RIGHT.get(name)
        self._own = own

    def check(self, shape: tuple[int, ...], y: Array) -> None:
        self._own.check(shape, y)

    def forward(self, x: Array, y: Array, slot: Slot) -> tuple[float, int | None]:
        loss, slot["error"] = self._value_and_gradient(x, y)
        return loss, self._right(x, y) if self._right else None

    def backward(self, slot: Slot) -> Array:
        error: Array = slot["error"]
        return error

    def error(self, x: Array, y: Array, out: Array) -> Array:
        out[...] = self._value_and_gradient(x, y)[1]
        return out

    def _value_and_gradient(self, x: Array, y: Array) -> tuple[float, Array]:
        outputs = aligned(x).requires_grad_()
        with torch.enable_grad():
            loss = self._sum(outputs, tensor_of(y))
        (gradient,) = torch.autograd.grad(loss, outputs)
        found: Array = gradient.numpy()
        return loss.item(), found
