"""An optimizer of `torch.optim` on the parameters in a stage's flat vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array
from asyncdni.nn.torch.compiler import optimizer_without_compiler
from asyncdni.nn.torch.layer import first_line, tensor_of

__all__ = ["OPTIMIZERS", "TorchOptimizer"]

#: Those whose state is made of tensors that begin at zero, but for `_BEGINS_AT_ONE`.
OPTIMIZERS = (
    *("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "RMSprop"),
    "Adafactor",
)
_BEGINS_AT_ONE = "mu_product"
#: Those that PyTorch can compute in one pass over weights, gradients and state, and therefore does
#: here unless an option says otherwise. A step takes a third to a half of the time.
_FUSED = "SGD", "Adam", "AdamW", "Adagrad"
_WAYS = "fused", "foreach"  # options that say how an optimizer computes


class TorchOptimizer:
    """`torch.optim.KIND` with `options`, one tensor a parameter, as in a plain PyTorch loop that
    says `fused=True` where this optimizer does: the same gradients give the same weights to the
    last bit.

    State: "0.momentum_buffer", … by the parameter's position; the arrays are on the optimizer's own
    memory, so what is copied into them is restored.
    """

    def __init__(
        self, kind: str, options: Mapping[str, Any], shapes: Sequence[tuple[int, ...]]
    ) -> None:
        """`shapes` are those of the parameters, in the order of the vector. Raises `ConfigError`
        for an optimizer or option that PyTorch does not have."""
        self.state: dict[str, Array] = {}
        self._shapes = shapes
        self._grads: Array | None = None  # the vector that the gradients are views of
        if kind not in OPTIMIZERS:
            raise ConfigError(
                f"optimizer.kind: {kind!r} is not among {', '.join(OPTIMIZERS)}, the optimizers of "
                "torch.optim that can be used"
            )
        if "lr" in options:
            raise ConfigError("optimizer.options: lr is given by optimizer.learning_rate")
        if options.get("dampening"):  # PyTorch's first step leaves it out, a restored one would not
            raise ConfigError("optimizer.options: dampening is not supported; leave it out")
        if kind in _FUSED and not any(way in options for way in _WAYS):
            options = {**options, "fused": True}
        self._fused = bool(options.get("fused"))
        make: Callable[..., Any] = optimizer_without_compiler(getattr(torch.optim, kind))
        try:
            self._optimizer: Any = make([torch.zeros(1)], **options)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"optimizer.options: {kind} refuses them: {first_line(error)}"
            ) from error
        self._make: Callable[[list[torch.Tensor]], Any] = partial(make, **options)

    def start(self, params: Array) -> None:
        """Allocate all state for `params` (N,), so that a checkpoint can be copied into it."""
        if not self._shapes:
            return
        self._tensors = _views(params, self._shapes)
        self._optimizer = self._make(self._tensors)
        self._allocate()

    def step(self, params: Array, grads: Array, rate: float, scale: float = 1.0) -> None:
        """Move `params` at learning rate `rate` by the gradient scale * `grads`, overwritten."""
        divisor = torch.tensor(1.0 / scale, dtype=tensor_of(grads).dtype)
        if self._fused:
            # Where automatic mixed precision puts its scale: it is applied in the same pass.
            self._optimizer.grad_scale = divisor
        elif scale != 1.0:
            grads /= divisor.numpy()
        if self._grads is not grads:
            self._grads = grads
            for tensor, grad in zip(self._tensors, _views(grads, self._shapes), strict=True):
                tensor.grad = grad
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with torch.no_grad():
            self._optimizer.step()

    def _allocate(self) -> None:
        """PyTorch makes most of an optimizer's state at its first step. So this makes one of rate
        0, and puts back what it has changed; for one parameter after the other, as it needs the
        memory of the parameter twice more."""
        group = self._optimizer.param_groups[0]
        changed = {name: group[name] for name in ("lr", "weight_decay") if name in group}
        group.update(dict.fromkeys(changed, 0.0))
        for index, tensor in enumerate(self._tensors):
            at_first = self._tensors_in_state(tensor, copy=True)
            group["params"] = [tensor]
            self._step_of_nothing(tensor)
            for name, value in self._tensors_in_state(tensor).items():
                begins_at = 1.0 if name == _BEGINS_AT_ONE else 0.0
                value.copy_(at_first.get(name, torch.tensor(begins_at)))
                self.state[f"{index}.{name}"] = value.numpy()
        group["params"] = self._tensors
        group.update(changed)

    def _step_of_nothing(self, tensor: torch.Tensor) -> None:
        before = tensor.clone()
        tensor.zero_()
        tensor.grad = torch.zeros_like(tensor)
        try:
            with torch.no_grad():
                self._optimizer.step()
        except RuntimeError as error:
            raise ConfigError(f"optimizer: {first_line(error)}") from error
        tensor.copy_(before)
        tensor.grad = None

    def _tensors_in_state(
        self, parameter: torch.Tensor, *, copy: bool = False
    ) -> dict[str, torch.Tensor]:
        state = self._optimizer.state[parameter]
        found = {name: one for name, one in state.items() if isinstance(one, torch.Tensor)}
        return {name: one.clone() for name, one in found.items()} if copy else found


def _views(vector: Array, shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    found, start = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        found.append(tensor_of(vector[start : start + size].reshape(shape)))
        start += size
    return found
