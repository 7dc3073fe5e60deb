"""What a comparison comes to, in sentences. The same rules whoever wins."""

from __future__ import annotations

from collections.abc import Sequence

from asyncdni.metrics.comparison import Comparison, Estimate

__all__ = ["accuracy_verdict", "speed_verdict", "verdict"]


def verdict(comparison: Comparison) -> list[str]:
    """Which is fastest, then how accuracies differ, where they do; may be empty."""
    sentences = (speed_verdict(comparison), accuracy_verdict(comparison))
    return [sentence for sentence in sentences if sentence]


def speed_verdict(comparison: Comparison) -> str:
    """The fastest against each other one, and where that is no more than chance."""
    ranking = comparison.ranking()
    if len(ranking) < 2:
        return ""
    best, others = ranking[0], ranking[1:]
    ratios = {other: comparison.ratio(best, other) for other in others}
    found = {other: one for other, one in ratios.items() if one is not None}
    if any(one.low is None for one in found.values()):
        times = _joined([_times(other, one) for other, one in found.items()])
        return f"Fastest: {best}, {times}. One seed shows no spread: compare over more (--seeds 3)."
    clear = [_times(other, one) for other, one in found.items() if one.excludes(1.0)]
    close = [_times(other, one) for other, one in found.items() if not one.excludes(1.0)]
    if not clear:
        return f"None is clearly the fastest: {best} was {_joined(close)}."
    sentence = f"Fastest: {best}, {_joined(clear)}"
    return (
        f"{sentence}; not clearly faster than the rest: {_joined(close)}."
        if close
        else (f"{sentence}.")
    )


def accuracy_verdict(comparison: Comparison) -> str:
    """The most accurate against those that are clearly less so; empty where none is."""
    measure = "test_accuracy"
    means = {name: comparison.estimate(name, measure) for name in comparison.names}
    known = {name: one.mean for name, one in means.items() if one is not None}
    if not known:
        return ""
    best = max(known, key=known.__getitem__)
    found = {name: comparison.difference(best, name, measure) for name in known if name != best}
    worse = [_points(name, one) for name, one in found.items() if one and one.excludes(0.0)]
    return f"Test accuracies differ: {best} is better by {_joined(worse)}." if worse else ""


def _times(name: str, one: Estimate) -> str:
    return f"{one.mean:.2f} times as fast as {name}{_interval(one, 1.0)}"


def _points(name: str, one: Estimate) -> str:
    return f"{100 * one.mean:.2f} points than {name}{_interval(one, 100.0)}"


def _interval(one: Estimate, scale: float) -> str:
    if one.low is None or one.high is None:
        return ""
    return f" (95 % interval {scale * one.low:.2f} to {scale * one.high:.2f})"


def _joined(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *head, last = parts
    return f"{', '.join(head)} and {last}" if head else last
