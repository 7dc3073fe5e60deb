"""Numbers gone wrong: how a stage notices a loss or gradient that is not finite, or explodes.

The squared norm of a vector is one product with itself, and not finite as soon as one element is
not; so it tells all that must be known of an update before a weight has moved. It also overflows
for finite elements that no training gets over (1.8e19 in float32): they count as infinite.
"""

from __future__ import annotations

import math

import numpy as np

from asyncdni import config
from asyncdni.errors import NumericalError
from asyncdni.nn.base import Array

__all__ = ["Watch"]

#: Values before the running mean says anything, and the weight of a new one from then on.
_WARM_UP = 100
_SHARE = 0.01
_CURE = "lower optimizer.learning_rate or set optimizer.clip_norm"


class Watch:
    """Over the numbers of one declared stage, as `[numbers]` asks.

    `means` has for each quantity its running mean and how many values have gone into it, (2,)
    float64; empty where explosions are not watched for. The mean is that of all of the first
    `_WARM_UP` values and forgets from then on; zeros, which generators start with, are left out.
    """

    def __init__(self, options: config.Numbers, stage: str) -> None:
        self.updates_left_out = 0
        self.fits_left_out = 0
        self._options = options
        self._stage = stage
        self._in_a_row = 0
        watched = ("loss", "gradient", "true_gradient") if options.explode is not None else ()
        self.means: dict[str, Array] = {name: np.zeros(2) for name in watched}

    def fault(self, quantity: str, value: float) -> str | None:
        """What is wrong with a value (a loss a sample, a norm), or None, and then it has been
        taken into its running mean."""
        if not math.isfinite(value):
            return f"is {value}"
        running = self.means.get(quantity)
        if running is None or value == 0.0:
            return None
        mean, seen = running.tolist()
        explode = self._options.explode
        if seen >= _WARM_UP and explode is not None and value > explode * mean:
            return (
                f"is {value:.4g}, more than {explode:g} (numbers.explode) times its running mean "
                f"of {mean:.4g}"
            )
        running += (value - mean) * max(1.0 / (seen + 1.0), _SHARE), 1.0
        return None

    def leave_out(self, what: str) -> None:
        """Under `skip`, go on without it. Raises `NumericalError` under the other policies."""
        if self._options.policy != "skip":
            raise NumericalError(
                f'{what}: {_CURE}, or leave such updates out with numbers.policy = "skip"'
            )

    def update_left_out(self, what: str) -> None:
        """Count it. Raises `NumericalError` like `leave_out`, and after too many in a row."""
        self.leave_out(what)
        self.updates_left_out += 1
        self._in_a_row += 1
        if self._in_a_row >= self._options.skips_max:
            raise NumericalError(
                f"stage {self._stage} has left out {self._in_a_row} updates in a row "
                f"(numbers.skips_max), so skipping does not help: {_CURE}; the last time {what}"
            )

    def fit_left_out(self, what: str) -> None:
        """Count it. Raises `NumericalError` like `leave_out`."""
        self.leave_out(what)
        self.fits_left_out += 1

    def updated(self) -> None:
        """An update was made."""
        self._in_a_row = 0
