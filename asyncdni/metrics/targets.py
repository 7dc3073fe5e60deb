"""When a run has reached an accuracy: what decides whether more samples a second are worth it.

A run is there at the first of two consecutive evaluations that are at or above the target: one
alone may be luck, and the last evaluation of a run has no other after it. Evaluations take no
training time, so the finer they are spaced, the finer the time is known.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from asyncdni.metrics.comparison import Measure

__all__ = ["crossing", "samples_to", "time_to"]


def crossing(history: Sequence[Mapping[str, Any]], accuracy: float) -> Mapping[str, Any] | None:
    """The evaluation of a summary's `history` at which `accuracy` (0 to 1) is reached, or None.

    What counts is the first of two in a row; one whose accuracy is unknown is below.
    """
    for one, after in itertools.pairwise(history):
        if _is_there(one, accuracy) and _is_there(after, accuracy):
            return one
    return None


def time_to(accuracy: float) -> Measure:
    """Seconds of training until a run has reached `accuracy`; None for one that has not."""
    return _at(accuracy, "train_s")


def samples_to(accuracy: float) -> Measure:
    """Samples until a run has reached `accuracy`; None for one that has not."""
    return _at(accuracy, "samples")


def _at(accuracy: float, field: str) -> Measure:
    def measure(summary: Mapping[str, Any]) -> float | None:
        found = crossing(summary.get("history") or (), accuracy)
        return None if found is None else float(found[field])

    return measure


def _is_there(evaluation: Mapping[str, Any], accuracy: float) -> bool:
    return evaluation["accuracy"] is not None and evaluation["accuracy"] >= accuracy
