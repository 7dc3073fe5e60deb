"""The running root mean square of numbers such as the targets of a generator."""

from __future__ import annotations

from math import sqrt

import numpy as np

__all__ = ["RunningRms"]

#: The factor of the older sums when a batch is added, by which some hundred batches count.
DECAY = 0.99


class RunningRms:
    """The square root of an exponentially decaying mean of mean squares.

    `sums` (2,), float64, holds the decayed sum of the mean squares and that of as many ones, by
    which it is divided. A checkpoint is restored by writing into it.
    """

    def __init__(self) -> None:
        self.sums = np.zeros(2)

    def add(self, square: float) -> None:
        """Let the mean square of one batch enter."""
        self.sums *= DECAY
        self.sums += (1 - DECAY) * square, 1 - DECAY

    def value(self) -> float:
        """Return the root mean square; 1 before the first batch, and while all were zero."""
        total, weight = self.sums.tolist()
        return sqrt(total / weight) if total > 0 else 1.0
