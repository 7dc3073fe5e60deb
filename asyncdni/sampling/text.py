"""A text, continued character by character by a network that has learnt to tell the next one."""

from __future__ import annotations

import math

import numpy as np

from asyncdni.datasets.meta import Array
from asyncdni.datasets.text import decode, encode
from asyncdni.errors import ConfigError
from asyncdni.nn.streams import stream
from asyncdni.run import Result
from asyncdni.sampling.stepping import Stepper

__all__ = ["continue_text", "tells_characters"]


def tells_characters(run: Result) -> bool:
    """Whether the run was trained on the characters of a text."""
    return bool(run.meta.vocabulary)


def continue_text(
    run: Result,
    *,
    length: int = 500,
    prompt: str = "",
    temperature: float = 1.0,
    seed: int = 0,
    allow_import: bool = False,
) -> str:
    """`length` characters that follow the `prompt`, each drawn from softmax(logits / temperature).

    A `temperature` of 0 takes the likeliest character each time. An empty prompt stands for the
    end of a line, where texts begin.

    Raises `ConfigError` for a length below 0 or a temperature that is none, and `DataError` for
    characters in the prompt that the network has never seen.
    """
    if length < 0:
        raise ConfigError(f"length {length}: expected a number of characters, 0 or more")
    if not 0 <= temperature < math.inf:
        raise ConfigError(f"temperature {temperature}: expected a finite number, 0 or more")
    vocabulary = run.meta.vocabulary
    start = prompt or ("\n" if "\n" in vocabulary else vocabulary[0])
    given = [int(one) for one in encode(start, vocabulary)]
    stepper = Stepper(run, allow_import=allow_import)
    rng = stream(seed, "sample", "text")
    inputs = _inputs(run)
    for one in given[:-1]:
        stepper.step(inputs[one : one + 1])
    last, drawn = given[-1], list[int]()
    for _ in range(length):
        logits = stepper.step(inputs[last : last + 1])[0]
        last = _draw(logits, temperature, rng)
        drawn.append(last)
    return decode(drawn, vocabulary)


def _inputs(run: Result) -> Array:
    """What each id looks like to the network: a row of one-hot vectors, or the id itself."""
    count = len(run.meta.vocabulary)
    return np.eye(count) if len(run.meta.input_shape) == 2 else np.arange(count, dtype=np.float64)


def _draw(logits: Array, temperature: float, rng: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    # Gumbel's trick: the largest of logits + noise is drawn from their softmax, without overflow.
    return int((logits / temperature + rng.gumbel(size=len(logits))).argmax())
