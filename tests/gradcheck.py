"""Gradients by central differences, in float64, to hold hand-written backwards against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["assert_gradient", "numeric_gradient"]


def numeric_gradient(value: Callable[[], float], at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """d value() / d at, moving one element of `at` at a time in place (and back).

    The error is of the order of step^2 (the third derivative) and 1e-16 / step (rounding).
    """
    assert at.dtype == np.float64, "differences of float32 numbers are mostly rounding"
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        kept = at[index]
        at[index] = kept + step
        above = value()
        at[index] = kept - step
        gradient[index] = (above - value()) / (2 * step)
        at[index] = kept
    return gradient


def assert_gradient(
    found: Any, value: Callable[[], float], at: np.ndarray, tolerance: float = 1e-8
) -> None:
    """`found` is the gradient of value() by `at`, to `tolerance` relative to its largest entry."""
    expected = numeric_gradient(value, at)
    assert found.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)
