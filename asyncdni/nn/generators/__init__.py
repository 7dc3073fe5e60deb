"""Generators by name: models of the gradient that will come back."""

from __future__ import annotations

import inspect
from typing import Any

from asyncdni.errors import ConfigError
from asyncdni.nn.generators.base import Generator
from asyncdni.nn.generators.convolutional import ConvolutionalGenerator
from asyncdni.nn.generators.error import ErrorGenerator, FeatureMapErrorGenerator
from asyncdni.nn.generators.regression import (
    LinearGenerator,
    LowRankGenerator,
    MlpGenerator,
    ZeroGenerator,
)

__all__ = ["GENERATORS", "MAP_GENERATORS", "Generator", "make_generator"]

GENERATORS: dict[str, type[Generator]] = {
    "error": ErrorGenerator,
    "linear": LinearGenerator,
    "low_rank": LowRankGenerator,
    "mlp": MlpGenerator,
    "zero": ZeroGenerator,
}

#: Those made for feature maps (C, H, W), whose `build` is told that shape.
MAP_GENERATORS: dict[str, type[ConvolutionalGenerator | FeatureMapErrorGenerator]] = {
    "error": FeatureMapErrorGenerator,
    "convolutional": ConvolutionalGenerator,
}


def make_generator(kind: str, **options: Any) -> Generator:
    """The generator of vectors named `kind`, not yet built; raises `ConfigError` for a name or
    option that it does not know."""
    made = GENERATORS.get(kind)
    if made is None:
        raise ConfigError(f"generator {kind!r} is unknown; choose one of {', '.join(GENERATORS)}")
    known = list(inspect.signature(made).parameters)
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise ConfigError(
            f"generator {kind!r} has no option {', '.join(map(repr, unknown))}; "
            f"it takes {', '.join(known) or 'none'}"
        )
    return made(**options)
