"""Losses computed by PyTorch, so that a stage in PyTorch has the bits of a plain PyTorch loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from asyncdni.errors import ConfigError
from asyncdni.imports import Allowed, import_named
from asyncdni.nn.base import Array, Slot
from asyncdni.nn.losses import is_own, make_loss
from asyncdni.nn.torch.layer import aligned, first_line, tensor_of

__all__ = ["OwnLoss", "TorchLoss", "summed_loss", "torch_loss"]

#: The sum over samples of each loss of outputs x and targets y; see `nn.losses` for what they are.
_SUMS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cross_entropy": lambda x, y: functional.cross_entropy(x, y, reduction="sum"),
    "sigmoid_cross_entropy": lambda x, y: functional.binary_cross_entropy_with_logits(
        x, y, reduction="sum"
    ),
    "mse": lambda x, y: functional.mse_loss(x, y, reduction="sum") / x.shape[1],
}
#: How many answers are right, for losses that have such a notion.
_RIGHT: dict[str, Callable[[Array, Array], int | None]] = {
    "cross_entropy": lambda x, y: int(np.count_nonzero(x.argmax(axis=1) == y)),
    "sigmoid_cross_entropy": lambda x, y: int(np.count_nonzero((x > 0) == (y > 0.5))),
}


def summed_loss(
    name: str, allow_import: Allowed = False
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss of that name, or of the user's own, of outputs (B, K) and targets, as one number:
    the sum over samples."""
    return OwnLoss(name, allow_import).summed if is_own(name) else _SUMS[name]


class TorchLoss:
    """A loss whose value and gradient are computed by PyTorch."""

    def __init__(
        self,
        summed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        right: Callable[[Array, Array], int | None],
        check: Callable[[tuple[int, ...], Array], None],
    ) -> None:
        """`summed` gives the sum over samples, of outputs and targets; `right`, of the same, how
        many answers are right, or None; `check` is as in `nn.base.Loss`."""
        self._sum = summed
        self._right = right
        self._check = check

    def check(self, shape: tuple[int, ...], y: Array) -> None:
        self._check(shape, y)

    def forward(self, x: Array, y: Array, slot: Slot) -> tuple[float, int | None]:
        loss, slot["error"] = _value_and_gradient(self._sum, x, y)
        return loss, self._right(x, y)

    def backward(self, slot: Slot) -> Array:
        error: Array = slot["error"]
        return error

    def error(self, x: Array, y: Array, out: Array) -> Array:
        out[...] = _value_and_gradient(self._sum, x, y)[1]
        return out


def torch_loss(name: str, allow_import: Allowed) -> TorchLoss:
    """The loss of that name, whose targets are checked as for the one of `nn.losses`, or the user's
    own, which takes any targets. Raises `ConfigError`."""
    if is_own(name):
        return TorchLoss(OwnLoss(name, allow_import).summed, _right_classes, lambda shape, y: None)
    return TorchLoss(_SUMS[name], _RIGHT.get(name, lambda x, y: None), make_loss(name).check)


def _right_classes(x: Array, y: Array) -> int | None:
    """How many answers are right, for outputs (B, K) and whole numbers (B,) as targets."""
    answers = x.ndim == 2 and y.ndim == 1 and y.dtype.kind == "i"
    return _RIGHT["cross_entropy"](x, y) if answers else None


class OwnLoss:
    """A loss of the user's own, "module:callable": of outputs (B, …) and targets it makes one
    tensor, the mean over samples, as PyTorch's losses do. Where each step of a window has a target,
    it gets the steps that count as rows.

    The mean is taken times the rows, so that gradients are of the sum, as of all losses here.
    """

    def __init__(self, name: str, allow_import: Allowed) -> None:
        """Raises `ConfigError` for what can't be imported, or called."""
        found = import_named(name, "loss", allow_import=allow_import)
        if isinstance(found, type):
            found = found()  # a class of losses, such as torch.nn:SmoothL1Loss
        if not callable(found):
            raise ConfigError(f"loss {name!r} is a {type(found).__name__}, expected a callable")
        self._name = name
        self._mean: Callable[[torch.Tensor, torch.Tensor], Any] = found

    def summed(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The sum over samples. Raises `ConfigError` where the callable fails, or does not return
        one number."""
        try:
            loss = self._mean(x, y)
        except Exception as error:  # the user's code may fail in any way
            raise ConfigError(
                f"loss {self._name!r} does not take outputs {tuple(x.shape)} and targets "
                f"{tuple(y.shape)} of {y.dtype}: {first_line(error)}"
            ) from error
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
            kind = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise ConfigError(
                f"loss {self._name!r} returns {kind}, expected a tensor of one number that depends "
                "on the outputs: the mean over samples"
            )
        return loss.reshape(()) * len(x)

    def try_on(self, shape: tuple[int, ...], targets: tuple[int, ...], *, integers: bool) -> None:
        """Raises `ConfigError` where the loss does not fit outputs and targets of these shapes, of
        one sample."""
        x = np.zeros((2, *shape), np.float32)
        y = np.zeros((2, *targets), np.int64 if integers else np.float32)
        if len(shape) == 2:  # steps as rows, as `WindowLoss` gives them
            x, y = x.reshape(-1, shape[-1]), y.reshape(-1, *targets[1:])
        _value_and_gradient(self.summed, x, y)


def _value_and_gradient(
    summed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], x: Array, y: Array
) -> tuple[float, Array]:
    outputs = aligned(x).requires_grad_()
    with torch.enable_grad():
        loss = summed(outputs, tensor_of(y))
    (gradient,) = torch.autograd.grad(loss, outputs)
    found: Array = gradient.numpy()
    return loss.item(), found
