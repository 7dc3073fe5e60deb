"""The second key of a comparison's document: the latency of links, where runs differ in it.

Such a document has `latencies` (seconds, rising), a row for each name at each of them, and in each
row and run a `latency_s`: None for runs that have no links, which stand for every latency. Any
other document has one latency, told by its experiment, and None everywhere. What is counted or
drawn at one latency is so in `slices`: documents of one latency each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["at_latency", "latencies_of", "latency_words", "slices", "suffix"]

Found = Mapping[str, Any]


def latencies_of(found: Found) -> list[float]:
    """Those that are compared, in seconds; none where all runs have the same."""
    return list(found.get("latencies") or ())


def latency_words(latency_s: float) -> str:
    """`10 ms`."""
    return f"{1000 * latency_s:g} ms"


def suffix(latency_s: float | None) -> str:
    """For names of files: `-10ms`, or nothing."""
    return "" if latency_s is None else f"-{1000 * latency_s:g}ms"


def slices(found: Found) -> list[tuple[float | None, Found]]:
    """(latency, the document at it) of each; a document of one latency is its own only slice."""
    every = latencies_of(found)
    return [(one, at_latency(found, one)) for one in every] if every else [(None, found)]


def at_latency(found: Found, latency_s: float) -> Found:
    """Rows and runs at one latency, as a document of that latency alone, without a verdict."""
    return {
        **found,
        "latencies": [],
        "verdict": "",
        "rows": [row for row in found["rows"] if row["latency_s"] == latency_s],
        "runs": [run for run in found["runs"] if run["latency_s"] in (None, latency_s)],
    }
