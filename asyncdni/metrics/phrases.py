"""Parts of sentences about estimates."""

from __future__ import annotations

from collections.abc import Sequence

from asyncdni.metrics.comparison import Estimate

__all__ = ["accuracy_words", "interval_words", "joined"]


def interval_words(one: Estimate, scale: float = 1.0, *, said: bool = False) -> str:
    """` (95 % interval 1.23 to 2.94)`; empty where there is none.

    ` (1.23 to 2.94)` where it is `said` already what is in brackets.
    """
    if one.low is None or one.high is None:
        return ""
    ends = (scale * one.low, scale * one.high)
    low, high = (f"{end:.2f}" if abs(end) < 100 else f"{end:.3g}" for end in ends)
    return f" ({'' if said else '95 % interval '}{low} to {high})"


def accuracy_words(accuracy: float) -> str:
    """`97.5 %` of 0.975."""
    return f"{100 * accuracy:.6g} %"


def joined(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; nothing for none."""
    if not parts:
        return ""
    *head, last = parts
    return f"{', '.join(head)} and {last}" if head else last
