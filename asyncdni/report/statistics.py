"""Statistics over runs of the same training by several schedules. Nothing is run or printed here.

Runs with the same seed belong together: they see the same batches in the same order, and they ran
one after the other. So two schedules are compared seed by seed, and the spread between seeds drops
out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from asyncdni.report.load import Load, disturbance, fastest

__all__ = [
    "CONFIDENCE",
    "MEASURES",
    "RATES",
    "Comparison",
    "Estimate",
    "Key",
    "Measure",
    "Result",
    "at",
    "at_latency",
    "crossing",
    "difference",
    "estimate",
    "judged",
    "latencies_of",
    "latency_words",
    "rate",
    "ratio",
    "samples_to",
    "slices",
    "student_t",
    "suffix",
    "time_to",
]

CONFIDENCE = 0.95

#: Name, latency in seconds (or None), seed.
Key = tuple[str, float | None, int]
#: A function that finds a number in a run's summary, or None.
Measure = Callable[[Mapping[str, Any]], float | None]


@dataclass(frozen=True)
class Result:
    """One finished run: its name in the comparison, and its summary.

    Runs of other programs may stand beside ours. Their summaries need only the fields that are to
    be compared (`MEASURES`, `history`, `workers`, `threads`).
    """

    name: str
    seed: int
    summary: Mapping[str, Any]
    #: One-way latency of the links, in seconds; None if all runs share it or the run has no links.
    latency_s: float | None = None
    #: What else the machine did meanwhile; None if it was not measured.
    load: Load | None = None
    #: What disturbed the run (see `judged`); empty if nothing did.
    disturbed: str = ""

    @property
    def key(self) -> Key:
        """What identifies the run in the comparison."""
        return self.name, self.latency_s, self.seed


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds with its 95 % interval, which is None for a single seed."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def excludes(self, value: float) -> bool:
        """Tell whether the interval lies wholly on one side of `value`; False without an
        interval."""
        if self.low is None or self.high is None:
            return False
        return value < self.low or value > self.high


def _field(name: str) -> Measure:
    return lambda summary: summary.get(name)


#: What is measured on every run, by its name in tables and JSON.
MEASURES: dict[str, Measure] = {
    name: _field(name)
    for name in (
        "samples_per_s",
        "stream_samples_per_s",  # the same with the filling and draining of the pipe left out
        "test_accuracy",
        "test_loss",
        "train_s",
        "cpu_s",
    )
}


#: The measures that are speeds and times, whose intervals are computed on logarithms.
RATES = ("samples_per_s", "stream_samples_per_s", "train_s", "cpu_s")


def judged(results: Sequence[Result]) -> list[Result]:
    """Return the results with what disturbed each of them, judged by the fastest matrix products
    of all."""
    best = fastest(one.load for one in results)
    return [replace(one, disturbed=disturbance(one.load, best)) for one in results]


def at(latency_s: float | None, results: Iterable[Result]) -> tuple[Result, ...]:
    """Return the results at that latency and those without links, which count for every latency."""
    return tuple(one for one in results if one.latency_s in (None, latency_s))


def student_t(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Return the half-width, in standard errors, of the two-sided interval: the quantile of
    Student's t."""
    if degrees < 1 or not 0 < confidence < 1:
        raise ValueError(f"degrees {degrees}, confidence {confidence}: expected >= 1, and 0 to 1")
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(degrees)
    for _ in range(60):
        middle = (low + high) / 2
        if _within(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _within(angle: float, degrees: int) -> float:
    """Return P(|T| < sqrt(degrees) tan(angle)): Abramowitz & Stegun, 26.7.3 and 26.7.4."""
    odd, cosine = degrees % 2, math.cos(angle)
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate | None:
    """Return mean and interval of a normally distributed quantity; None for no values."""
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = student_t(n - 1, confidence) * math.sqrt(variance / n)
    return Estimate(mean, mean - half, mean + half, n)


def ratio(pairs: Sequence[tuple[float, float]]) -> Estimate | None:
    """Return the geometric mean of a / b over pairs (a, b), all above 0, and its interval, computed
    on logarithms."""
    logs = estimate([math.log(a / b) for a, b in pairs])
    if logs is None:
        return None
    low, high = (None if one is None else math.exp(one) for one in (logs.low, logs.high))
    return Estimate(math.exp(logs.mean), low, high, logs.n)


def rate(values: Sequence[float]) -> Estimate | None:
    """Return the geometric mean of speeds or times, and its interval, computed on logarithms: it
    never reaches below 0.

    None for no values. A 0 has no logarithm: with one the result is that of `estimate`.
    """
    if len(set(values)) < 2 or not all(values):
        return estimate(values)
    return ratio([(value, 1.0) for value in values])


def difference(pairs: Sequence[tuple[float, float]]) -> Estimate | None:
    """Return the mean of a - b over pairs (a, b)."""
    return estimate([a - b for a, b in pairs])


@dataclass(frozen=True)
class Comparison:
    """Results of several rows, by name, over the same seeds and at one latency (see `at`).

    Some results may still be missing. A measure is the name of one of `MEASURES`, or any other
    function of a summary.
    """

    names: tuple[str, ...]  # in the order of the table
    results: tuple[Result, ...]
    targets: tuple[float, ...] = ()  # test accuracies (0 to 1) to measure the time to, rising
    controls: Mapping[str, str] = field(default_factory=dict)  # control -> the row it controls

    def estimate(self, name: str, measure: str | Measure) -> Estimate | None:
        """Return the mean over the seeds that have been run; None without any."""
        return estimate(list(self.values(name, measure).values()))

    def rate(self, name: str, measure: str | Measure) -> Estimate | None:
        """Return the geometric mean of a speed or a time, which is above 0, over the seeds that
        have been run; None without any."""
        return rate(list(self.values(name, measure).values()))

    def ratio(
        self, name: str, other: str, measure: str | Measure = "samples_per_s"
    ) -> Estimate | None:
        """Return `name` divided by `other`, paired over the seeds that both have."""
        return ratio(self._pairs(name, other, measure))

    def difference(self, name: str, other: str, measure: str | Measure) -> Estimate | None:
        """Return `name` minus `other`, paired over the seeds that both have."""
        return difference(self._pairs(name, other, measure))

    def ranking(self, measure: str | Measure = "samples_per_s") -> list[str]:
        """Return names by the geometric mean of `measure`, the largest first; names without are
        left out.

        If two names have the same seeds, the former's `ratio` to the latter is at least 1.
        """
        values = {name: self.values(name, measure).values() for name in self.names}
        logs = {name: math.fsum(map(math.log, v)) / len(v) for name, v in values.items() if v}
        return sorted(logs, key=logs.__getitem__, reverse=True)

    def values(self, name: str, measure: str | Measure) -> dict[int, float]:
        """Return the measure by seed, for the runs that have it."""
        found = MEASURES[measure] if isinstance(measure, str) else measure
        values = {one.seed: found(one.summary) for one in self.of(name)}
        return {seed: value for seed, value in values.items() if value is not None}

    def of(self, name: str) -> list[Result]:
        """Return the runs of `name`, in the order of `results`."""
        return [one for one in self.results if one.name == name]

    def disturbed(self, name: str) -> list[bool]:
        """Tell of each run of `name` whether it was disturbed."""
        return [bool(one.disturbed) for one in self.of(name)]

    def _pairs(self, name: str, other: str, measure: str | Measure) -> list[tuple[float, float]]:
        a, b = self.values(name, measure), self.values(other, measure)
        return [(a[seed], b[seed]) for seed in a if seed in b]


# --- targets -------------------------------------------------------------------------------------


def crossing(history: Sequence[Mapping[str, Any]], accuracy: float) -> Mapping[str, Any] | None:
    """Return the evaluation of a summary's `history` at which `accuracy` (0 to 1) is reached, or
    None.

    It is the first of two consecutive evaluations at or above the accuracy: a single one may be
    luck, so the last evaluation alone does not count. An unknown accuracy counts as below.
    Evaluations take no training time, so the closer they are, the better the time is known.
    """
    for one, after in itertools.pairwise(history):
        if _is_there(one, accuracy) and _is_there(after, accuracy):
            return one
    return None


def time_to(accuracy: float) -> Measure:
    """Return a measure: seconds of training until a run has reached `accuracy`; None if it has
    not."""
    return _at(accuracy, "train_s")


def samples_to(accuracy: float) -> Measure:
    """Return a measure: samples until a run has reached `accuracy`; None if it has not."""
    return _at(accuracy, "samples")


def _at(accuracy: float, field: str) -> Measure:
    def measure(summary: Mapping[str, Any]) -> float | None:
        found = crossing(summary.get("history") or (), accuracy)
        return None if found is None else float(found[field])

    return measure


def _is_there(evaluation: Mapping[str, Any], accuracy: float) -> bool:
    return evaluation["accuracy"] is not None and evaluation["accuracy"] >= accuracy


# --- latencies -----------------------------------------------------------------------------------
#
# The document of a comparison at several latencies has `latencies` (seconds, rising), a row for
# each name at each latency, and in each row and run a `latency_s`. That is None for runs without
# links, which count for every latency. In any other document it is None everywhere.

Found = Mapping[str, Any]


def latencies_of(found: Found) -> list[float]:
    """Return the compared latencies in seconds; none if all runs have the same."""
    return list(found.get("latencies") or ())


def latency_words(latency_s: float) -> str:
    """Format a latency as `10 ms`."""
    return f"{1000 * latency_s:g} ms"


def suffix(latency_s: float | None) -> str:
    """Return the end of a file's name: `-10ms`, or nothing."""
    return "" if latency_s is None else f"-{1000 * latency_s:g}ms"


def slices(found: Found) -> list[tuple[float | None, Found]]:
    """Return (latency, the document at that latency) for each latency.

    A document of one latency is its own only slice.
    """
    every = latencies_of(found)
    return [(one, at_latency(found, one)) for one in every] if every else [(None, found)]


def at_latency(found: Found, latency_s: float) -> Found:
    """Return the rows and runs at one latency, as a document of that latency only, without a
    verdict."""
    return {
        **found,
        "latencies": [],
        "verdict": "",
        "rows": [row for row in found["rows"] if row["latency_s"] == latency_s],
        "runs": [run for run in found["runs"] if run["latency_s"] in (None, latency_s)],
    }
