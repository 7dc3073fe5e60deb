"""Nothing moves anywhere though every worker shows signs of life: a message has been lost.

ZeroMQ keeps what is sent as long as a connection lasts. Where one breaks, what was on its way is
gone, and whoever waits for it would wait for ever. Nobody can see which message that was, but all
can see that no op is done any more.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Standstill"]


class Standstill:
    """Watches the count of ops of each worker, and the steps of barriers."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._ops: dict[str, int] = {}
        self._moved: float | None = None
        self._stood_s = 0.0  # before the barrier that they are at
        # Of the worker that was behind all others, at the standstill that was farthest in the data.
        self._position = -1
        self.in_a_row = 0  # standstills without having got farther

    def done(self, name: str, ops: int, now: float) -> None:
        """How many ops a worker says it has done."""
        if self._ops.get(name) != ops:
            self._ops[name] = ops
            self._moved, self._stood_s = now, 0.0

    def moved(self, now: float) -> None:
        """Something else has happened that was waited for."""
        self._moved = now

    def pause(self, now: float) -> None:
        """All are at a barrier: nobody has to do anything there, and what is done is no progress.
        Those for checkpoints come by the clock, whether anything moves between them or not."""
        self._stood_s = 0.0 if self._moved is None else now - self._moved
        self._moved = now

    def go_on(self, now: float) -> None:
        """The barrier is behind them."""
        self._moved, self._stood_s = now - self._stood_s, 0.0

    def deadline(self) -> float | None:
        return None if self._moved is None else self._moved + self._limit_s

    def noticed(self, positions: Mapping[str, int], now: float) -> None:
        """Something is done about it; `positions` of the workers in the data."""
        position = min(positions.values(), default=0)
        self.in_a_row = 1 if position > self._position else self.in_a_row + 1
        self._position = max(self._position, position)
        self._moved = now
