"""What goes wrong by chance rather than at a moment: saves, and clocks."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from asyncdni.simulator.clock import Clock

__all__ = ["Mischance", "Save"]


@dataclass(frozen=True)
class Save:
    """How one save goes."""

    extra_s: float = 0.0  # that it takes longer
    fails: bool = False  # with an error: the disk is full
    torn: bool = False  # the process dies while it is writing


@dataclass
class Mischance:
    """Probabilities for each save, each by itself; how far clocks are off at most."""

    slow: float = 0.0
    slow_s: float = 0.0
    fail: float = 0.0
    torn: float = 0.0
    skew_s: float = 0.0
    drift: float = 0.0
    most: int = 0  # saves that are slow, fail or are torn
    counts: Counter[str] = field(default_factory=Counter)  # of what has happened
    source: random.Random = field(default_factory=lambda: random.Random(0))

    def save(self) -> Save:
        """Of the next save."""
        if not (self.slow or self.fail or self.torn) or self.counts.total() >= self.most:
            return Save()
        draw = self.source.random()
        if draw < self.torn:
            self.counts["torn save"] += 1
            return Save(torn=True)
        if draw < self.torn + self.fail:
            self.counts["failed save"] += 1
            return Save(fails=True)
        if draw < self.torn + self.fail + self.slow:
            self.counts["slow save"] += 1
            return Save(extra_s=self.source.uniform(0.0, 2.0 * self.slow_s))
        return Save()

    def clock(self) -> Clock:
        """Of the next process."""
        if not (self.skew_s or self.drift):
            return Clock()
        offset_s = self.source.uniform(-self.skew_s, self.skew_s)
        return Clock(offset_s, self.source.uniform(-self.drift, self.drift))
