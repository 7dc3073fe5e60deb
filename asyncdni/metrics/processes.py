"""The reports of a worker over all of its processes: one that is started again counts from zero.

Seconds, bytes and how often something was done add up over processes. Batches, samples and updates
do not: they go with the state that a new process begins from. All else (means, distributions,
lengths of queues) is that of the last process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Processes"]

_ADDED = (
    *("skipped", "dropped", "late", "replays", "fallbacks"),
    *("stream_samples", "bytes_sent", "bytes_received", "messages"),
    *("snapshots", "skipped_updates", "skipped_fits", "rejected_messages"),
)


class Processes:
    """The sums of one worker."""

    def __init__(self) -> None:
        self._earlier: dict[str, float] = {}  # of processes that have ended
        self._last: Mapping[str, Any] = {}

    def joined(self) -> None:
        """A new process takes the worker's place."""
        for key, value in self._last.items():
            if _adds_up(key) and isinstance(value, int | float):
                self._earlier[key] = self._earlier.get(key, 0) + value
        self._last = {}

    def reported(self, counters: Mapping[str, Any]) -> dict[str, Any]:
        """A report of the process that is there, with what earlier ones have done."""
        self._last = counters
        total = dict(counters)
        for key, value in self._earlier.items():
            total[key] = (total.get(key) or 0) + value
        return total


def _adds_up(key: str) -> bool:
    return key in _ADDED or key.endswith("_s") or (key.startswith("op_") and key.endswith("_count"))
