"""What one worker has done so far, over all its rounds: it outlives the `Worker` of each.

Every training batch that the host has read either was forwarded here (`batches`) or has passed
without (`missed`: skipped on its way, or lost with a process that died); so both together are the
worker's position in the data.
"""

from __future__ import annotations

from collections.abc import Mapping

from asyncdni.core.tally import Tally

__all__ = ["Counts", "farthest_first"]

#: What a stage's state on disk is worth: it counts again from there once it is restored.
_STATE = ("batches", "missed", "samples", "updates", "read")


class Counts:
    """Counters and distributions, changed by the parts of a worker."""

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
        """What goes to disk with the stage's state."""
        return {name: getattr(self, name) for name in _STATE}

    def restore(self, state: Mapping[str, int]) -> None:
        """Count on from what `state` has said."""
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
