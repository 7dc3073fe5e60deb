"""Layers by name, and the parser of a stage's `layers` list.

A layer is written as its name (`"relu"`), as a table of one name and its options
(`{ dense = { width = 256, bias = false } }`) or, where one option says it all, with that option
alone (`{ dense = 256 }`). A class of the user's own is written `package.module:Class`; it is
imported only where the worker allows that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from asyncdni.errors import ConfigError
from asyncdni.imports import Allowed, import_named
from asyncdni.nn.base import Layer
from asyncdni.nn.layers.activations import Relu, Sigmoid, Tanh
from asyncdni.nn.layers.convolution import Conv2d
from asyncdni.nn.layers.dense import Dense
from asyncdni.nn.layers.embedding import Embedding
from asyncdni.nn.layers.noise import Dropout, Gaussian
from asyncdni.nn.layers.normalisation import BatchNorm, BatchNorm2d, LayerNorm
from asyncdni.nn.layers.pooling import AveragePool, MaxPool
from asyncdni.nn.layers.recurrent import Lstm, Rnn
from asyncdni.nn.layers.reshape import Flatten, Reshape
from asyncdni.nn.layers.unrolled import StepOf, Zeros

__all__ = [
    "LAYERS",
    "AveragePool",
    "BatchNorm",
    "BatchNorm2d",
    "Conv2d",
    "Dense",
    "Dropout",
    "Embedding",
    "Flatten",
    "Gaussian",
    "LayerNorm",
    "Lstm",
    "MaxPool",
    "Relu",
    "Reshape",
    "Rnn",
    "Sigmoid",
    "StepOf",
    "Tanh",
    "Zeros",
    "make_layer",
]

LAYERS: dict[str, type[Any]] = {
    "dense": Dense,
    "batch_norm": BatchNorm2d,  # of vectors too
    "relu": Relu,
    "tanh": Tanh,
    "sigmoid": Sigmoid,
    "conv2d": Conv2d,
    "max_pool": MaxPool,
    "average_pool": AveragePool,
    "flatten": Flatten,
    "reshape": Reshape,
    "dropout": Dropout,
    "layer_norm": LayerNorm,
    "embedding": Embedding,
    "gaussian": Gaussian,
    "rnn": Rnn,
    "lstm": Lstm,
    "step": StepOf,
    "zeros": Zeros,
}

#: Layers that are modules of PyTorch, and who makes them: see `nn.torch.model`.
_MODULES = {"module": "module_maker", "part": "part_maker"}

_METHODS = ("output_shape", "build", "forward", "backward", "evaluate")
_STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_FIELDS = ("params", "grads", "fresh", "buffers")


def make_layer(spec: str | dict[str, Any], *, where: str, allow_import: Allowed = False) -> Layer:
    """The layer that one entry of a stage's `layers` describes, not yet built.

    Args:
        spec: `"relu"`, `{"dense": 256}`, `{"dense": {"width": 256}}` or `{"pkg.mod:Class": {…}}`.
        where: the beginning of error messages, such as "stages[1] (hidden2), layer 0".
        allow_import: whether `pkg.mod:Class` may import the user's code.

    Raises:
        ConfigError: it names `where`, what was given and what is known.
    """
    try:
        name, given = _split(spec)
        kind = _find(name, allow_import)
        options = _options(name, kind, given)
        return _checked(name, _construct(name, kind, options))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error.__cause__


def is_module(spec: object) -> bool:
    """Return whether one entry of a stage's `layers` describes a module of PyTorch."""
    return isinstance(spec, dict) and not _MODULES.keys().isdisjoint(spec)


def _split(spec: object) -> tuple[str, object]:
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, dict) and len(spec) == 1:
        ((name, given),) = spec.items()
        if isinstance(name, str):
            return name, given
    raise ConfigError(
        f'{spec!r} is no layer: expected a name ("relu") or a table of one name and its options '
        "({ dense = 256 })"
    )


def _find(name: str, allow_import: Allowed) -> Callable[..., Any]:
    if name in LAYERS:
        return LAYERS[name]
    if name in _MODULES:
        return _module_maker(name, allow_import)
    if ":" not in name:
        known = ", ".join((*LAYERS, *_MODULES))
        raise ConfigError(
            f"unknown layer {name!r}: expected one of {known}, or a class of your own as "
            '"package.module:Class"'
        )
    kind = import_named(name, "layer", allow_import=allow_import)
    if not isinstance(kind, type):
        raise ConfigError(f"layer {name!r} is a {type(kind).__name__}, expected a class")
    missing = [method for method in _METHODS if not callable(getattr(kind, method, None))]
    if missing:
        raise ConfigError(
            f"layer {name!r} has no {', '.join(missing)}: see asyncdni.nn.base.Layer for what a "
            "layer must have"
        )
    return kind


def _module_maker(name: str, allow_import: Allowed) -> Callable[..., Any]:
    """The function that makes a layer of an `nn.Module`. Raises `ConfigError` without PyTorch."""
    try:
        from asyncdni.nn.torch import model
    except ImportError as error:
        raise ConfigError(
            f"a layer {name!r} needs PyTorch ({error}): pip install 'asyncdni[torch]'"
        ) from None
    maker: Callable[[Allowed], Callable[..., Any]] = getattr(model, _MODULES[name])
    return maker(allow_import)


def _options(name: str, kind: Callable[..., Any], given: object) -> dict[str, Any]:
    known = inspect.signature(kind).parameters
    if not isinstance(given, dict):
        positional = [p.name for p in known.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        if not positional:
            raise ConfigError(f"{name} takes no value on its own, given {given!r}{_listed(known)}")
        given = {positional[0]: given}
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return given
    unknown = [str(key) for key in given if key not in known]
    if unknown:
        raise ConfigError(f"{name} has no option {unknown[0]!r}{_listed(known)}")
    needed = [p.name for p in known.values() if p.default is p.empty and p.kind not in _STARRED]
    missing = [option for option in needed if option not in given]
    if missing:
        raise ConfigError(
            f"{name} needs {missing[0]!r}, as in {{ {name} = {{ {missing[0]} = … }} }}"
        )
    return given


def _listed(known: Any) -> str:
    return f": its options are {', '.join(known)}" if known else ": it takes no options"


def _construct(name: str, kind: Callable[..., Any], options: dict[str, Any]) -> Any:
    try:
        return kind(**options)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} can't be made from {options!r}: {error}") from error


def _checked(name: str, layer: Any) -> Layer:
    missing = [field for field in _FIELDS if not hasattr(layer, field)]
    if missing:
        raise ConfigError(
            f"layer {name!r} sets no {', '.join(missing)}: see asyncdni.nn.base.Layer for what a "
            "layer must have"
        )
    found: Layer = layer
    return found
