"""Initialisers of weights, given by a name ("he_normal") or a name and a number ("normal:0.02").

For n inputs and m outputs the standard deviation of the weights is

    he       sqrt(2 / n)          He et al. 2015, for relu
    glorot   sqrt(2 / (n + m))    Glorot and Bengio 2010, for tanh and sigmoid
    lecun    sqrt(1 / n)          LeCun et al. 1998

and the uniform variants have the same deviation: they draw from [-a, a], a = sqrt(3) times it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array, Rng

__all__ = ["INITIALISERS", "Initialiser", "make_initialiser"]

#: Fills a weight of shape (outputs, inputs) in place.
Initialiser = Callable[[Array, Rng], None]

_DEVIATIONS: dict[str, Callable[[int, int], float]] = {
    "he": lambda inputs, outputs: math.sqrt(2 / inputs),
    "glorot": lambda inputs, outputs: math.sqrt(2 / (inputs + outputs)),
    "lecun": lambda inputs, outputs: math.sqrt(1 / inputs),
}

#: Every form that `make_initialiser` accepts, as the user would write it.
INITIALISERS = (
    *(f"{family}_{shape}" for family in _DEVIATIONS for shape in ("normal", "uniform")),
    "zeros",
    "normal:<deviation>",
    "uniform:<bound>",
)


def make_initialiser(spec: str) -> Initialiser:
    """Return the initialiser that `spec` names. Raises `ConfigError`, which lists the known
    ones."""
    name, colon, number = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    family, _, shape = name.rpartition("_")
    if name == "zeros" and not colon:
        return _zeros
    if name in ("normal", "uniform") and colon:
        return _scaled(name, _fixed(_positive(number, spec), name))
    if family in _DEVIATIONS and shape in ("normal", "uniform") and not colon:
        return _scaled(shape, _DEVIATIONS[family])
    raise ConfigError(f"unknown init {spec!r}: expected one of {', '.join(INITIALISERS)}")


def _scaled(shape: str, deviation: Callable[[int, int], float]) -> Initialiser:
    def fill(weight: Array, rng: Rng) -> None:
        outputs, inputs = weight.shape
        scale = deviation(inputs, outputs)
        # Drawn in float64 whatever the weight's type, so that both start from the same numbers.
        if shape == "normal":
            weight[...] = rng.normal(0.0, scale, weight.shape)
        else:
            bound = math.sqrt(3) * scale
            weight[...] = rng.uniform(-bound, bound, weight.shape)

    return fill


def _zeros(weight: Array, rng: Rng) -> None:
    weight[...] = 0


def _fixed(number: float, shape: str) -> Callable[[int, int], float]:
    deviation = number if shape == "normal" else number / math.sqrt(3)
    return lambda inputs, outputs: deviation


def _positive(text: str, spec: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigError(
            f'init {spec!r}: expected a positive number after the colon, not "{text}"'
        )
    return number
