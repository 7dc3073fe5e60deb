"""Keep a comparison within a time budget, on any machine: fewer seeds, then fewer epochs, then a
part of an epoch.

The first seed's runs are limited to a quarter of the budget together (`trial_s`). If all of them
end in time, the budget is ample and they count. Otherwise what they cost tells how many seeds and
epochs fit (`fit`), and the comparison begins anew with those. A run that would go beyond the end of
the budget is stopped by a `Deadline`, so on a very slow machine the table has fewer rows.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncdni.errors import ConfigError
from asyncdni.plan.build import Design
from asyncdni.report.columns import counted
from asyncdni.report.records import Recorder

__all__ = ["Budget", "Cost", "Deadline", "OutOfTime", "fit", "parse_budget", "shortened_sentence"]

#: The share of the budget for the first seed's runs. What is lost if they are stopped is then small
#: enough, and four times the work of one seed still fits if they are not.
_TRIAL = 0.25
#: The share of the time that is left which is planned for. The rest is for repeats of disturbed
#: runs, for a machine that gets slower, and for drawing the report.
_PLANNED = 0.75
#: Once the trial runs have used this share of the budget, no other is begun: the rest is for runs
#: that count.
_TRIALS_MOST = 0.5
#: A run is not stopped before it has trained for so many seconds: its first batches touch memory
#: for the first time, and tell little of what the others cost.
_TRAINED_S = 2.0
#: Fewer seeds than this have no interval, or none that says anything: epochs are dropped first.
_SEEDS_MIN = 2

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def parse_budget(text: str) -> float:
    """Return the seconds that `90s`, `2min` or `1.5h` mean. Raises `ConfigError` for anything
    else."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(s|min|h)", text.strip())
    found_s = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not found_s > 0.0:
        raise ConfigError(f"--budget {text}: expected a time such as 90s, 2min or 1h")
    return found_s


class OutOfTime(Exception):
    """A run was stopped, since its time was over."""


@dataclass(frozen=True)
class Cost:
    """How long a run takes, in seconds: a fixed part, and so much for each epoch."""

    fixed_s: float
    epoch_s: float

    def seconds(self, epochs: float) -> float:
        """Return how long a run of so many epochs takes."""
        return self.fixed_s + epochs * self.epoch_s


class Deadline:
    """An observer that stops a run, and measures what it costs.

    The run is stopped after `limit_s`, but not before it has trained for a while: else it would not
    tell its cost. It is stopped at `end_s` (`time.monotonic()`) in any case.
    """

    def __init__(self, end_s: float, limit_s: float | None = None) -> None:
        self._end_s = end_s
        self._limit_s = limit_s
        self._began_s = time.monotonic()
        self._started_s: float | None = None  # when the first batch was read
        self._epochs = 0.0
        self._counted_s = 0.0  # when `_epochs` was reported

    def __call__(
        self, design: Design, recorder: Recorder, kind: str, values: Mapping[str, Any]
    ) -> None:
        now = time.monotonic()
        if kind == "start" and self._started_s is None:
            self._started_s = now
        epochs = recorder.loss_samples / design.meta.train_samples
        if epochs > self._epochs:
            self._epochs, self._counted_s = epochs, now
        if now >= self._end_s or self._has_told(now):
            raise OutOfTime

    def _has_told(self, now: float) -> bool:
        """Tell whether the limit is over, and the run has trained for long enough."""
        if self._limit_s is None or self._started_s is None or not self._epochs:
            return False
        return now - self._began_s >= self._limit_s and now - self._started_s >= _TRAINED_S

    def cost(self) -> Cost | None:
        """Return what the run has cost up to now; None if it has trained on nothing."""
        if self._started_s is None or not self._epochs:
            return None
        epoch_s = (self._counted_s - self._started_s) / self._epochs
        ending_s = time.monotonic() - self._counted_s
        return Cost(self._started_s - self._began_s + ending_s, epoch_s)


@dataclass(frozen=True)
class Budget:
    """A time budget, and when it ends."""

    text: str  # as the user gave it
    seconds: float
    began_s: float  # time.monotonic()

    @property
    def end_s(self) -> float:
        """When the budget ends, as `time.monotonic()` tells it."""
        return self.began_s + self.seconds

    @property
    def left_s(self) -> float:
        """The seconds that are left; below 0 after the end."""
        return self.end_s - time.monotonic()

    def trial_s(self, runs: int) -> float:
        """Return how long each of the first seed's `runs` runs may take."""
        return _TRIAL * self.seconds / runs

    @property
    def tries(self) -> bool:
        """Whether there is time for another trial run."""
        return self.left_s > (1.0 - _TRIALS_MOST) * self.seconds

    def shortened(
        self, costs: Sequence[Cost], seeds: int, epochs: float, *, whole: bool
    ) -> tuple[int, float]:
        """Return how many seeds and epochs the budget allows; 0.0 epochs stands for one update.

        `costs` has one entry for each run of a seed; `whole` tells that the first seed's runs have
        ended in time, and count. Otherwise they are made again. Raises `ConfigError` if the first
        run can't even begin and end in the time that is left.
        """
        planned_s = _PLANNED * self.left_s
        if whole:
            total_s = sum(one.seconds(epochs) for one in costs)
            return min(seeds, 1 + max(0, int(planned_s / total_s))), epochs
        least_s = costs[0].fixed_s
        if least_s >= self.left_s:
            asked_s = (self.seconds - self.left_s) + sum(one.fixed_s for one in costs) / _PLANNED
            raise ConfigError(
                f"--budget {self.text}: a run takes {least_s:,.0f} s here to begin and end, and "
                f"only {max(0.0, self.left_s):,.0f} s are left; give at least {asked_s:,.0f}s"
            )
        return fit(costs, seeds, epochs, planned_s)


def fit(costs: Sequence[Cost], seeds: int, epochs: float, left_s: float) -> tuple[int, float]:
    """Return (seeds, epochs), at most those given, whose runs take up to `left_s` seconds together.

    Seeds are dropped first, but for two: an interval needs them. Then epochs are dropped, then the
    second seed, and then a part of the only epoch; 0.0 epochs are left if the fixed parts alone
    take longer.
    """
    fixed_s, epoch_s = sum(one.fixed_s for one in costs), sum(one.epoch_s for one in costs)
    few = min(seeds, _SEEDS_MIN)
    for number in range(seeds, few - 1, -1):
        if number * (fixed_s + epochs * epoch_s) <= left_s:
            return number, epochs
    for number in range(few, 0, -1):
        possible = int((left_s / number - fixed_s) / epoch_s)
        if possible >= 1:
            return number, min(epochs, possible)
    return 1, min(epochs, max(0.0, (left_s - fixed_s) / epoch_s))


def shortened_sentence(text: str, asked: tuple[int, float], given: tuple[int, float]) -> str:
    """Say how many seeds and epochs a budget allows in place of those asked for; empty if it allows
    all."""
    if given == asked:
        return ""
    words = [f"{counted(seeds, 'seed')} of {_length(epochs)}" for seeds, epochs in (given, asked)]
    shorter = ": accuracies are those of shorter training" if given[1] < asked[1] else ""
    return f"The time budget of {text} allows {words[0]} in place of {words[1]}{shorter}."


def _length(epochs: float) -> str:
    """Write a number of epochs: `1 epoch`, `3 epochs`, `0.12 epochs`."""
    return counted(int(epochs), "epoch") if epochs == int(epochs) else f"{epochs:.2g} epochs"
