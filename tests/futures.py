"""Recurrent layers with a future under test: what it was taught, and what it should have been."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gradcheck import numeric_gradient
from windows import INPUTS, STREAMS, UNITS, Run, built, numbers

from asyncdni.nn.layers.recurrent import Lstm, Recurrent, Rnn

__all__ = [
    "LENGTH",
    "STEPS",
    "WINDOWS",
    "Kind",
    "each_kind",
    "gradient_of_window",
    "parts",
    "predicted",
    "run_of",
    "states",
]

STEPS = 3
WINDOWS = 4
LENGTH = WINDOWS * STEPS
Kind = Callable[..., Recurrent]
each_kind = pytest.mark.parametrize("kind", [Rnn, Lstm])


def run_of(kind: Kind, /, *, untaught: bool = False, **future: Any) -> Run:
    """With a generator whose map is not zero; its fits are recorded in `run.fits`, and made
    unless it is `untaught`."""
    layer = built(kind(UNITS, future={"optimizer": "nlms", **future}), STEPS)
    made = layer.future
    assert made is not None
    weight = layer.buffers["future.weight"]
    weight[...] = 0.3 * numbers(*weight.shape, key=3)
    x, grad_y = (numbers(STREAMS, LENGTH, n, key=n) for n in (INPUTS, UNITS))
    run = Run(layer, x, grad_y, STEPS)
    run.fits, fit = [], made.fit

    def record(inputs: np.ndarray, target: np.ndarray, rate_scale: float) -> None:
        run.fits.append((inputs.copy(), target.copy()))
        if not untaught:
            fit(inputs, target, rate_scale)

    made.fit = record  # type: ignore[method-assign]
    return run


def parts(run: Run) -> int:
    """S."""
    return run.layer.PARTS * UNITS


def states(run: Run) -> list[np.ndarray]:
    """At the end of each window."""
    found, state = [], None
    for k in range(WINDOWS):
        _, state = run.layer.continued(run.x[:, k * STEPS : (k + 1) * STEPS], state)
        found.append(state)
    return found


def gradient_of_window(run: Run, k: int, start: np.ndarray, grad_end: np.ndarray) -> np.ndarray:
    """Of window k's loss, and of grad_end · its end state, by its start state; by differences."""
    cut = slice(k * STEPS, (k + 1) * STEPS)
    at = start.copy()

    def value() -> float:
        y, end = run.layer.continued(run.x[:, cut], at)
        return float(np.vdot(y, run.grad_y[:, cut]) + np.vdot(end, grad_end))

    return numeric_gradient(value, at)


def predicted(run: Run, state: np.ndarray) -> np.ndarray:
    ones = np.ones((len(state), 1))
    return np.concatenate((state, ones), axis=1) @ run.layer.buffers["future.weight"].T
