"""Copy and Repeat Copy as streams of windows (Jaderberg et al. 2017, section 3.2; Graves 2014).

```
step      0 … N-1         N              N+1 … N+NR
input     bit, in = 1     delimiter, R   nothing
target                                   the bits, R times over
```

A sequence is padded to whole windows of T steps; nothing is asked in the padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from asyncdni.nn.base import Array, Rng

__all__ = ["INPUTS", "Curriculum", "Piece", "Sequences", "draw"]

#: Of a step: the bit (-1 or 1), whether one is shown, the delimiter, the number of repeats / 10.
INPUTS = 4


@dataclass(frozen=True)
class Piece:
    """One window of B sequences."""

    x: Array  # (B, T, INPUTS)
    target: Array  # (B, T): -1 or 1; 0 where nothing is asked
    context: dict[str, Array]


@dataclass(frozen=True)
class Sequences:
    """B of one length: x (B, L, INPUTS), target (B, L) of -1, 1, and 0 where nothing is asked."""

    x: Array
    target: Array

    @property
    def asked(self) -> int:
        """How many bits of all sequences are to be recalled."""
        return int(np.count_nonzero(self.target))

    def windows(self, steps: int, ahead: int) -> Iterator[Piece]:
        """In order. "coming" (B, 2 ahead): the next targets after a window, and where there are
        any, as numbers 0 and 1."""
        count, length = self.target.shape
        padded = np.pad(self.target, ((0, 0), (0, ahead)))
        for start in range(0, length, steps):
            end = start + steps
            coming = padded[:, end : end + ahead]
            yield Piece(
                np.ascontiguousarray(self.x[:, start:end]),
                self.target[:, start:end],
                {
                    "first": np.full(count, start == 0),
                    "last": np.full(count, end >= length),
                    "coming": np.concatenate((coming, np.abs(coming)), axis=1),
                },
            )


def draw(rng: Rng, count: int, bits: int, repeats: int, steps: int) -> Sequences:
    """`count` sequences of random bits, float32, padded to a multiple of `steps`."""
    used = bits + 1 + bits * repeats
    length = -(-used // steps) * steps
    x = np.zeros((count, length, INPUTS), np.float32)
    target = np.zeros((count, length), np.float32)
    drawn = rng.integers(0, 2, (count, bits)) * 2 - 1
    x[:, :bits, 0] = drawn
    x[:, :bits, 1] = 1
    x[:, bits, 2] = 1
    x[:, bits, 3] = repeats / 10
    target[:, bits + 1 : used] = np.tile(drawn, repeats)
    return Sequences(x, target)


@dataclass
class Curriculum:
    """Longer sequences once the error is small: the paper's rule.

    The error, in bits a recalled bit, is a running mean that starts anew, at 1, with every step.
    Copy counts its bits N up; Repeat Copy counts R up to N, then N.
    """

    repeat: bool
    below: float = 0.15
    decay: float = 0.9
    bits: int = 1
    repeats: int = 1
    solved: int = 0  # the longest N R whose error was small
    error: float = 1.0

    def see(self, error: float) -> None:
        """The error of one more batch of sequences."""
        self.error = self.decay * self.error + (1 - self.decay) * error
        if self.error >= self.below:
            return
        self.solved = max(self.solved, self.bits * self.repeats)
        if self.repeat and self.repeats < self.bits:
            self.repeats += 1
        else:
            self.bits += 1
        self.error = 1.0
