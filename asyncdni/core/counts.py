"""What one worker has done so far, over all its rounds: counters and distributions of counts.

Every training batch that the host has read either was forwarded here (`batches`) or has passed
without (`missed`: skipped on its way, or lost with a process that died); so both together are the
worker's position in the data.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

__all__ = [
    "EDGES",
    "EDGE_NAMES",
    "Counts",
    "Distribution",
    "Tally",
    "farthest_first",
    "read_distribution",
]

#: The upper edge of each bin, itself inside: 0, 1, 2, 3-4, 5-8, …; one more bin has all above.
EDGES = (0, *(2**power for power in range(13)))
EDGE_NAMES = (*map(str, EDGES), "inf")


class Tally:
    """A distribution of non-negative values (batches, updates, milliseconds) in a few numbers.

    What is counted ten thousand times a second, such as the staleness of each gradient, can't be
    kept value by value, and a mean hides its tail. So count, sum and greatest are kept exactly, and
    the shape by bins that double in width. The flat counters of a tally travel in a `Report`;
    `read_distribution` makes a `Distribution` of them again, with estimated quantiles.
    """

    __slots__ = ("bins", "count", "max", "sum")

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0.0
        self.max: float = 0
        self.bins = [0] * (len(EDGES) + 1)

    def add(self, value: float) -> None:
        """One more value. Called for every op of a run: it must cost next to nothing."""
        self.count += 1
        self.sum += value
        if value > self.max:
            self.max = value
        self.bins[bisect_left(EDGES, value)] += 1

    @property
    def mean(self) -> float | None:
        return self.sum / self.count if self.count else None

    def counters(self, prefix: str) -> dict[str, float | int | None]:
        """For reports: `{prefix}_mean`, `{prefix}_max`, and a count for each bin with something in.

        `{prefix}_le_8` has the values above the edge before, 4, up to 8; `{prefix}_le_inf` those
        above the last edge. Mean and max are None while nothing has been counted.
        """
        counted: dict[str, float | int | None] = {
            f"{prefix}_mean": self.mean,
            f"{prefix}_max": self.max if self.count else None,
        }
        for name, count in zip(EDGE_NAMES, self.bins, strict=True):
            if count:
                counted[f"{prefix}_le_{name}"] = count
        return counted


@dataclass(frozen=True)
class Distribution:
    """What the counters of a tally say. `bins[i]` is the count up to `EDGES[i]`, the last above."""

    mean: float
    max: float
    bins: tuple[int, ...]

    @property
    def count(self) -> int:
        return sum(self.bins)

    def quantile(self, fraction: float, *, whole: bool = False) -> float:
        """About the value that this fraction (0 to 1) of all values does not exceed.

        Values are taken to lie evenly in their bin, and no higher than the greatest one: the error
        is less than the width of the bin. With `whole` they are whole numbers, and so is this.
        """
        rank, below = max(1.0, fraction * self.count), 0
        for number, count in enumerate(self.bins):
            if count and below + count >= rank:
                low, high = self.limits(number)
                value = min(high, low + (high - low) * (rank - below) / count)
                return ceil(value - 1e-9) if whole else value
            below += count
        return self.max

    def limits(self, number: int) -> tuple[float, float]:
        """The values of `bins[number]` lie above the first and reach at most to the second."""
        low = EDGES[number - 1] if number else 0
        high = EDGES[number] if number < len(EDGES) else self.max
        return min(low, self.max), min(high, self.max)

    def since(self, earlier: Distribution | None) -> Distribution | None:
        """What has been counted after `earlier`, of the same tally; None where that is nothing.

        Its max is that of all: which value was the greatest since is not known.
        """
        if earlier is None:
            return self
        bins = tuple(new - old for new, old in zip(self.bins, earlier.bins, strict=True))
        count = sum(bins)
        if count <= 0:
            return None
        total = self.mean * self.count - earlier.mean * earlier.count
        return Distribution(max(0.0, total / count), self.max, bins)


def read_distribution(
    counters: Mapping[str, float | int | None], prefix: str
) -> Distribution | None:
    """What `Tally.counters(prefix)` put into `counters`; None where it had counted nothing."""
    mean, greatest = counters.get(f"{prefix}_mean"), counters.get(f"{prefix}_max")
    bins = tuple(int(counters.get(f"{prefix}_le_{name}") or 0) for name in EDGE_NAMES)
    if mean is None or greatest is None or not any(bins):
        return None
    return Distribution(mean, greatest, bins)


#: What a stage's state on disk is worth: it counts again from there once it is restored.
_STATE = ("batches", "missed", "samples", "updates", "read")


class Counts:
    """Counters of one worker, changed by its parts; they outlive the `Worker` of each round."""

    def __init__(self) -> None:
        self.batches = 0  # training batches forwarded, replays left out
        self.missed = 0  # that will not be
        self.samples = 0  # forwarded
        self.updates = 0
        self.read = 0  # by the host of the data: ids are never reused
        self.skipped = 0  # batches not sent to some consumer
        self.dropped = 0  # batches whose gradient was given up
        self.late = 0  # gradients that came for a batch given up
        self.replays = 0
        self.fallbacks = 0  # of the guard
        self.ops = 0  # of any kind, tests included
        self.queue = Tally()
        self.staleness = Tally()
        self.lag = Tally()
        self.age_ms = Tally()
        self.lags: dict[str, int] = {}  # the greatest so far, by consumer

    @property
    def position(self) -> int:
        """Training batches that have passed here."""
        return self.batches + self.missed

    def begin(self, start: int) -> None:
        """A round starts with this batch: those before it that have not been here never will."""
        assert start >= self.position, (start, self.position)
        self.missed += start - self.position
        self.read = max(self.read, start)

    def state(self) -> dict[str, int]:
        """The counters that go to disk with the stage's state."""
        return {name: getattr(self, name) for name in _STATE}

    def restore(self, state: Mapping[str, int]) -> None:
        """Count on from what `state` had returned."""
        for name in _STATE:
            setattr(self, name, int(state.get(name, 0)))

    def counters(self) -> dict[str, float | int | None]:
        """For reports."""
        return {
            "batches": self.batches,
            "samples": self.samples,
            "missed": self.missed,
            "skipped": self.skipped,
            "dropped": self.dropped,
            "late": self.late,
            "replays": self.replays,
            "updates": self.updates,
            "fallbacks": self.fallbacks,
            "ops": self.ops,
            **self.queue.counters("queue"),
            **self.staleness.counters("staleness"),
            **self.lag.counters("lag"),
            **self.age_ms.counters("age_ms"),
            "lag_max": max(self.lags.values(), default=0),
            **{f"lag_to_{to}": lag for to, lag in self.lags.items()},
        }


def farthest_first(states: Mapping[str, Mapping[str, int]]) -> list[str]:
    """States of one worker on disk, by where they are and with what it had done by then (see
    `Counts.state`): the one to go on from, and what to try if it is damaged. The first of equals
    comes first."""

    def position(place: str) -> int:
        return states[place].get("batches", 0) + states[place].get("missed", 0)

    return sorted(states, key=position, reverse=True)
