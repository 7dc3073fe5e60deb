"""PyTorch's compiler: kept out of processes that compile nothing, and used where a run asks for it.

PyTorch imports its compiler at the first step of an optimizer and at the first operation on the
meta device, only to tell it to leave these functions alone. That takes 1.4 s and 100 MB in each
process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from inspect import unwrap
from types import ModuleType
from typing import Any

import torch
from torch import nn

__all__ = ["compiled", "optimizer_without_compiler", "without_compiler"]

_COMPILER = "torch._dynamo"
#: The attribute in which PyTorch keeps what the compiler has made of a function.
_KEPT = "__dynamo_disable"


class _StandIn(ModuleType):
    """Stands in the place of the compiler. Who asks for more of it, or imports a part of it, as
    `transformers` does, gets the compiler itself."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]
        return getattr(import_module(_COMPILER), name)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Within this context, which is also a decorator, operations on the meta device do not import
    the compiler. Afterwards, it can be imported as if they had not been computed."""
    if _COMPILER in sys.modules:
        yield
        return
    told: list[Callable[..., Any]] = []

    def disable(function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
        told.append(function)
        return function

    stand_in = _StandIn(_COMPILER)
    stand_in.disable = disable  # type: ignore[attr-defined]
    sys.modules[_COMPILER] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(_COMPILER) is stand_in:
            del sys.modules[_COMPILER]
        for function in told:
            vars(function).pop(_KEPT, None)


def optimizer_without_compiler(kind: type[Any]) -> type[Any]:
    """A subclass of the optimizer `kind`, whose methods do not import the compiler. Its steps are
    not told to PyTorch's profiler either, which for a small stage takes as long as the step."""
    names = "add_param_group", "step"
    methods = {name: unwrap(getattr(kind, name)) for name in names}
    # What wraps the step of each class of optimizers, when the first object of it is made.
    return type(kind.__name__, (kind,), {**methods, "_patch_step_function": lambda self: None})


def compiled(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The module compiled by `torch.compile`: by this process alone, as helpers of its own would
    outlive one that is killed."""
    from torch._inductor import config

    config.compile_threads = 1
    made: Callable[[torch.Tensor], torch.Tensor] = torch.compile(module)
    return made
