"""Generators by name: models of the gradient that will come back.

Under a name there is a class for activations of any shape, which sees them as vectors, or one for
feature maps, or both. A class's `Options` say which table of the experiment file it is made from.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Protocol

from asyncdni import tables
from asyncdni.errors import ConfigError
from asyncdni.nn.generators.base import Generator
from asyncdni.nn.generators.error import ErrorGenerator, FeatureMapErrorGenerator
from asyncdni.nn.generators.regression import (
    ConvolutionalGenerator,
    LinearGenerator,
    LowRankGenerator,
    MlpGenerator,
    ZeroGenerator,
)

__all__ = [
    "GENERATORS",
    "MAP_GENERATORS",
    "TORCH_GENERATORS",
    "Generator",
    "NamedGenerator",
    "generator_options",
    "make_generator",
]


class NamedGenerator(Generator, Protocol):
    """A generator that an experiment file can name."""

    Options: ClassVar[type[tables.Generator]]


GENERATORS: dict[str, type[NamedGenerator]] = {
    "error": ErrorGenerator,
    "zero": ZeroGenerator,
    "linear": LinearGenerator,
    "low_rank": LowRankGenerator,
    "mlp": MlpGenerator,
}

#: The generators for feature maps (C, H, W); their `build` takes that shape as well.
MAP_GENERATORS: dict[str, type[ConvolutionalGenerator | FeatureMapErrorGenerator]] = {
    "error": FeatureMapErrorGenerator,
    "convolutional": ConvolutionalGenerator,
}

#: The options of generators that may be modules of PyTorch. It is imported only where one is made.
TORCH_GENERATORS: dict[str, type[tables.Generator]] = {
    "module": tables.ModuleGenerator,
    "readout": tables.ReadoutGenerator,
}


def generator_options() -> dict[str, type[tables.Generator]]:
    """Return the option tables of generators that an experiment file may hold, by kind."""
    named = {kind: made.Options for kind, made in {**GENERATORS, **MAP_GENERATORS}.items()}
    return {**named, **TORCH_GENERATORS}


def make_generator(kind: str, **options: Any) -> Generator:
    """Return the generator of vectors named `kind`, not yet built. Raises `ConfigError` for an
    unknown name or option."""
    made = GENERATORS.get(kind)
    if made is None:
        raise ConfigError(
            f"generator {kind!r} is unknown; choose one of {', '.join(sorted(GENERATORS))}"
        )
    known = list(inspect.signature(made).parameters)
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise ConfigError(
            f"generator {kind!r} has no option {', '.join(map(repr, unknown))}; "
            f"it takes {', '.join(known) or 'none'}"
        )
    return made(**options)
