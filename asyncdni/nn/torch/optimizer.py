"""An optimizer of `torch.optim`, or a class of the user's, on the parameters in a stage's flat
vector."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from asyncdni.errors import ConfigError
from asyncdni.imports import Allowed, import_named
from asyncdni.nn.base import Array
from asyncdni.nn.torch.compiler import optimizer_without_compiler
from asyncdni.nn.torch.layer import first_line, tensor_of

__all__ = ["OPTIMIZERS", "TorchOptimizer", "check_class"]

#: Those whose state is made of tensors that begin at zero, but for `_BEGINS_AT_ONE`.
OPTIMIZERS = (
    *("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "RMSprop"),
    *("Adafactor", "Muon", "SOAP"),
)
_BEGINS_AT_ONE = "mu_product"
#: Those that PyTorch can compute in one pass over weights, gradients and state, and therefore does
#: here unless an option says otherwise. A step takes a third to a half of the time.
_FUSED = "SGD", "Adam", "AdamW", "Adagrad"
_WAYS = "fused", "foreach"  # options that say how an optimizer computes
#: The number of steps that some classes keep with the options, in their groups of parameters.
_STEP = "step"


class TorchOptimizer:
    """`torch.optim.KIND` with `options`, one tensor a parameter, as in a plain PyTorch loop that
    says `fused=True` where this optimizer does: the same gradients give the same weights to the
    last bit. KIND may also be a class of the user's: "package.module:Class".

    State: "0.momentum_buffer", … by the parameter's position; the arrays are on the optimizer's own
    memory, so what is copied into them is restored. "step" (): the number of steps, where the class
    keeps it in its groups of parameters.
    """

    def __init__(
        self,
        kind: str,
        options: Mapping[str, Any],
        shapes: Sequence[tuple[int, ...]],
        *,
        allow_import: Allowed = False,
    ) -> None:
        """`shapes` are those of the parameters, in the order of the vector; `allow_import` says
        which classes of the user's may be imported. Raises `ConfigError` for an optimizer or option
        that PyTorch does not have, and for a class that can't be imported or is no optimizer."""
        self.state: dict[str, Array] = {}
        self._shapes = shapes
        self._grads: Array | None = None  # the vector that the gradients are views of
        if ":" not in kind and kind not in OPTIMIZERS:
            raise ConfigError(
                f"optimizer.kind: {kind!r} is not among {', '.join(OPTIMIZERS)}, the optimizers of "
                'torch.optim that can be used, and is no class "package.module:Class"'
            )
        if "lr" in options:
            raise ConfigError("optimizer.options: lr is given by optimizer.learning_rate")
        if options.get("dampening"):  # PyTorch's first step leaves it out, a restored one would not
            raise ConfigError("optimizer.options: dampening is not supported; leave it out")
        if kind in _FUSED and not any(way in options for way in _WAYS):
            options = {**options, "fused": True}
        self._fused = bool(options.get("fused"))
        make = _class(kind, allow_import)
        try:
            self._optimizer: Any = make([torch.zeros(1, 1)], **options)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"optimizer.options: {kind} refuses them: {first_line(error)}"
            ) from error
        self._make: Callable[[list[torch.Tensor]], Any] = partial(make, **options)

    def start(self, params: Array) -> None:
        """Allocate all state for `params` (N,), so that a checkpoint can be copied into it."""
        if not self._shapes:
            return
        self._begin(params)
        self._allocate()

    def _begin(self, params: Array) -> None:
        """Make the optimizer, which has no state yet."""
        self._tensors = _views(params, self._shapes)
        self._optimizer = self._make(self._tensors)

    def step(self, params: Array, grads: Array, rate: float, scale: float = 1.0) -> None:
        """Move `params` at learning rate `rate` by the gradient scale * `grads`, overwritten."""
        divisor = _divisor(scale, grads.dtype)
        if self._fused:
            # Where automatic mixed precision puts its scale: it is applied in the same pass.
            self._optimizer.grad_scale = divisor
        elif scale != 1.0:
            grads /= divisor.numpy()
        if self._grads is not grads:
            self._grads = grads
            for tensor, grad in zip(self._tensors, _views(grads, self._shapes), strict=True):
                tensor.grad = grad
        count = self.state.get(_STEP)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
            if count is not None:
                group[_STEP] = int(count)
        with torch.no_grad():
            self._optimizer.step()
        if count is not None:
            count[...] = self._optimizer.param_groups[0][_STEP]

    def _allocate(self) -> None:
        """PyTorch makes most of an optimizer's state at its first step. So this makes one of rate
        0, and puts back what it has changed. It takes memory of the parameter twice more, so it is
        made for one after the other where there is one group, as in all optimizers of PyTorch."""
        groups = self._optimizer.param_groups
        changed = [
            {name: group[name] for name in ("lr", "weight_decay") if name in group}
            for group in groups
        ]
        for group, own in zip(groups, changed, strict=True):
            group.update(dict.fromkeys(own, 0.0))
        at_first = [self._tensors_in_state(tensor, copy=True) for tensor in self._tensors]
        if len(groups) == 1:
            for tensor in self._tensors:
                groups[0]["params"] = [tensor]
                self._step_of_nothing([tensor])
            groups[0]["params"] = self._tensors
        else:
            self._step_of_nothing(self._tensors)
        for group, own in zip(groups, changed, strict=True):
            group.update(own)
        if isinstance(groups[0].get(_STEP), int):
            self.state[_STEP] = np.zeros((), np.int64)
        for index, tensor in enumerate(self._tensors):
            for name, value in self._tensors_in_state(tensor).items():
                begins_at = 1.0 if name == _BEGINS_AT_ONE else 0.0
                value.copy_(at_first[index].get(name, torch.tensor(begins_at)))
                self.state[f"{index}.{name}"] = value.numpy()

    def _step_of_nothing(self, tensors: Sequence[torch.Tensor]) -> None:
        before = [tensor.clone() for tensor in tensors]
        for tensor in tensors:
            tensor.zero_()
            tensor.grad = torch.zeros_like(tensor)
        try:
            with torch.no_grad():
                self._optimizer.step()
        except RuntimeError as error:
            raise ConfigError(f"optimizer: {first_line(error)}") from error
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(old)
            tensor.grad = None

    def _tensors_in_state(
        self, parameter: torch.Tensor, *, copy: bool = False
    ) -> dict[str, torch.Tensor]:
        state = self._optimizer.state[parameter]
        found = {name: one for name, one in state.items() if isinstance(one, torch.Tensor)}
        return {name: one.clone() for name, one in found.items()} if copy else found


class _Muon:
    """`torch.optim.Muon`, which takes matrices alone, and `torch.optim.AdamW` for the other
    parameters. Muon's steps are as long as those of AdamW would be (its `match_rms_adamw`), unless
    an option says otherwise, so that one rate serves both; so does one weight decay."""

    def __init__(self, params: Sequence[torch.Tensor], **options: Any) -> None:
        muon = {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.1, **options}
        adam = {"weight_decay": muon["weight_decay"]}
        self.state: dict[torch.Tensor, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        self._parts: list[Any] = []
        for kind, matrices, own in (
            (torch.optim.Muon, True, muon),
            (torch.optim.AdamW, False, adam),
        ):
            tensors = [one for one in params if (one.ndim == 2) is matrices]
            if tensors:
                part = optimizer_without_compiler(kind)(tensors, **own)
                part.state = self.state
                self.param_groups += part.param_groups
                self._parts.append(part)

    def step(self) -> None:
        for part in self._parts:
            part.step()


class _Soap:
    """SOAP of the package pytorch-optimizer: Adam in the slowly turning eigenbasis of a matrix's
    gradients (Vyas et al. 2024, arXiv 2409.11321). A vector's basis stays as it is.

    The package keeps bases in lists and replaces their tensors. Here each is a tensor of `state`
    with a name of its own, "GG.0", "Q.1", …, that stays in its place. Its first step computes the
    first bases and moves nothing.
    """

    _LISTS = "GG", "Q"

    def __init__(self, params: Sequence[torch.Tensor], **options: Any) -> None:
        from pytorch_optimizer import SOAP

        self._soap = SOAP(params, **options)
        self.param_groups = self._soap.param_groups
        self.state: dict[torch.Tensor, dict[str, Any]] = defaultdict(dict)

    def step(self) -> None:
        for group in self.param_groups:
            begun = group.setdefault(_STEP, 0) > 0
            for tensor in group["params"]:
                known = begun and self.state[tensor]
                self._soap.state[tensor] = self._in_lists(tensor, group) if known else {}
        self._soap.step()
        for group in self.param_groups:
            for tensor in group["params"]:
                self._keep(tensor)

    def _in_lists(self, parameter: torch.Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameter's state as the package wants it."""
        own, beta = self.state[parameter], group["shampoo_beta"]
        bases = {
            name: [own.get(f"{name}.{axis}", []) for axis in range(parameter.ndim)]
            for name in self._LISTS
        }
        return {
            "exp_avg": own["exp_avg"],
            "exp_avg_sq": own["exp_avg_sq"],
            "precondition_frequency": group["precondition_frequency"],
            "shampoo_beta": group["betas"][1] if beta is None else beta,
            **bases,
        }

    def _keep(self, parameter: torch.Tensor) -> None:
        """Copy what the package has computed into the tensors of `state`."""
        found = dict(self._soap.state[parameter])
        for name in self._LISTS:
            found |= {f"{name}.{axis}": one for axis, one in enumerate(found.pop(name))}
        own = self.state[parameter]
        for name, one in found.items():
            if isinstance(one, torch.Tensor):
                own.setdefault(name, torch.empty_like(one)).copy_(one)


def _class(kind: str, allow_import: Allowed) -> Callable[..., Any]:
    """Return the class of that name, of `torch.optim` or of the user's."""
    if kind == "Muon":
        if not hasattr(torch.optim, kind):
            raise ConfigError(
                f'optimizer.kind: "Muon" needs PyTorch 2.9, and this is {torch.__version__}: '
                "update it, or choose another one"
            )
        return _Muon
    if kind == "SOAP":
        if importlib.util.find_spec("pytorch_optimizer") is None:
            raise ConfigError(
                'optimizer.kind: "SOAP" is one of the package pytorch-optimizer, which is not '
                "installed: pip install pytorch-optimizer, or choose another one"
            )
        return _Soap
    if ":" not in kind:
        return optimizer_without_compiler(getattr(torch.optim, kind))
    found = import_named(kind, "optimizer.kind", allow_import=allow_import)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ConfigError(
            f"optimizer.kind: {kind!r} is no class derived from torch.optim.Optimizer"
        )
    return found


def check_class(kind: str, options: Mapping[str, Any], *, allow_import: Allowed) -> None:
    """Check that the steps of a class go on where its state is restored, by a trial on a matrix and
    a vector: three steps, the last in a second object that is given the state of the first, must
    equal those of a plain loop to the last bit.

    Raises `ConfigError` where they do not, as for state that is not made of tensors or does not
    begin at zero, and as `TorchOptimizer` does."""
    shapes = (4, 3), (3,)
    plain, first, second = (
        TorchOptimizer(kind, options, shapes, allow_import=allow_import) for _ in range(3)
    )
    expected, found, resumed = (np.sin(np.arange(15, dtype=np.float32)) for _ in range(3))

    def step(optimizer: TorchOptimizer, params: Array, index: int) -> None:
        optimizer.step(params, np.cos((index + 1) * np.arange(15, dtype=np.float32)), 0.01)

    try:
        plain._begin(expected)
        first.start(found)
        second.start(resumed)
        for index in range(3):
            step(plain, expected, index)
        for index in range(2):
            step(first, found, index)
        np.copyto(resumed, found)
        for name, array in first.state.items():
            np.copyto(second.state[name], array)
        step(second, resumed, 2)
    except Exception as error:  # the user's code may fail in any way
        raise ConfigError(
            f"optimizer.kind: {kind} fails in a trial: {first_line(error)}"
        ) from error
    if not np.array_equal(expected, resumed):
        raise ConfigError(
            f"optimizer.kind: {kind} keeps state that can't be saved, so that its steps do not go "
            "on from a checkpoint; expected tensors in `state` that begin at zero"
        )


@lru_cache(maxsize=4)  # most batches of a run are as long as the last one
def _divisor(scale: float, dtype: np.dtype[Any]) -> torch.Tensor:
    return torch.tensor(1.0 / scale, dtype=getattr(torch, dtype.name))


def _views(vector: Array, shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    found, start = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        found.append(tensor_of(vector[start : start + size].reshape(shape)))
        start += size
    return found
