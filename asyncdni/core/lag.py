"""The contract on staleness: how far a stage may be ahead of the gradients that it awaits.

The lag of a link is counted in batches: the one forwarded last minus the oldest one whose gradient
this consumer still owes. It never exceeds the link's bound; `check` asserts it.

```
forwarded  0 1 2 3 4        bound 3: batch 5 would be 4 ahead of batch 1
owed         1   3 4        "wait": 5 is not forwarded;  "drop": 1 is given up first
```
"""

from __future__ import annotations

from collections.abc import Mapping

from asyncdni.core.flights import Flights

__all__ = ["Lag"]


class Lag:
    """Bounds by consumer; no bound where there is none."""

    def __init__(self, bounds: Mapping[str, int] | None = None, *, drop: bool = False) -> None:
        self.drop = drop  # the oldest batch is given up at the bound; otherwise forwards wait
        self._bounds = dict(bounds or {})
        self.greatest = dict.fromkeys(self._bounds, 0)  # that has been, by consumer

    def carry(self, greatest: dict[str, int]) -> None:
        """Note the greatest lags there, on top of those of earlier rounds."""
        for consumer in self._bounds:
            greatest.setdefault(consumer, 0)
        self.greatest = greatest

    def overdue(self, batch: int, flights: Flights) -> int | None:
        """The batch whose gradient keeps `batch` from being forwarded, if there is one."""
        for consumer, bound in self._bounds.items():
            owed = flights.oldest_owed(consumer)
            if owed is not None and batch - owed > bound:
                return owed
        return None

    def forwarded(self, batch: int, flights: Flights) -> None:
        """Take note of the lag that this forward makes."""
        for consumer in self._bounds:
            owed = flights.oldest_owed(consumer)
            if owed is not None and batch - owed > self.greatest[consumer]:
                self.greatest[consumer] = batch - owed

    def check(self, flights: Flights) -> None:
        """Assert that no link is beyond its bound."""
        last = flights.last_forwarded
        overdue = self.overdue(last, flights)
        assert overdue is None, f"batch {last} is too far ahead of batch {overdue}: {self._bounds}"
