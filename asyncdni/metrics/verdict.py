"""What a comparison comes to, in one sentence. The same rules whoever wins.

Its clauses: the fastest against each other one; who reaches the accuracy asked for first; where
accuracies differ beyond chance; what controls show. Controls compete for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from asyncdni.metrics.comparison import Comparison, Estimate
from asyncdni.metrics.phrases import accuracy_words, interval_words, joined
from asyncdni.metrics.targets import time_to

__all__ = [
    "accuracy_clause",
    "control_clause",
    "failed_words",
    "reached_counts",
    "speed_clause",
    "target_clause",
    "verdict",
]

Phrase = Callable[[Estimate], str]


def verdict(comparison: Comparison) -> str:
    """One sentence; empty where there is nothing to compare yet."""
    found = (
        speed_clause(comparison),
        target_clause(comparison),
        accuracy_clause(comparison),
        control_clause(comparison),
    )
    clauses = [clause for clause in found if clause]
    if not clauses:
        return ""
    if max(len(comparison.of(name)) for name in comparison.names) == 1:
        clauses.append("one seed shows no spread: compare over more (--seeds 5)")
    text = "; ".join(clauses)
    return f"{text[0].upper()}{text[1:]}."


def speed_clause(comparison: Comparison) -> str:
    """The fastest against each other one, and where that is no more than chance."""
    ranking = [name for name in comparison.ranking() if name not in comparison.controls]
    if len(ranking) < 2:
        return ""
    best, others = ranking[0], ranking[1:]
    found = {other: comparison.ratio(best, other) for other in others}
    return _against(found, f"fastest: {best}, ", f"none is clearly the fastest: {best} was ", _fast)


def target_clause(comparison: Comparison) -> str:
    """Who is first at the highest target that anyone reaches in every run, and by how much.

    Against those that reach it in every run too: of the others some runs would have to be left out,
    so it is only said in how many they did.
    """
    for accuracy in reversed(comparison.targets):
        counts = reached_counts(comparison, accuracy)
        there = [name for name, (reached, runs) in counts.items() if reached == runs]
        if there:
            return _first(comparison, accuracy, there, counts)
    if not comparison.targets or not comparison.results:
        return ""
    lowest = comparison.targets[0]
    failed = failed_words(reached_counts(comparison, lowest))
    return f"none reached {accuracy_words(lowest)} in every run{failed}"


def accuracy_clause(comparison: Comparison) -> str:
    """The most accurate against those that are clearly less so; empty where none is."""
    measure = "test_accuracy"
    names = [name for name in comparison.names if name not in comparison.controls]
    means = {name: comparison.estimate(name, measure) for name in names}
    known = {name: one.mean for name, one in means.items() if one is not None}
    if not known:
        return ""
    best = max(known, key=known.__getitem__)
    found = {name: comparison.difference(best, name, measure) for name in known if name != best}
    worse = [_points(name, one) for name, one in found.items() if one and one.excludes(0.0)]
    return f"test accuracies differ: {best} is better by {joined(worse)}" if worse else ""


def control_clause(comparison: Comparison) -> str:
    """Whether what a control lacks is worth anything: clearly more accurate than it, or not."""
    found = []
    for control, name in comparison.controls.items():
        one = comparison.difference(name, control, "test_accuracy")
        if one is None or one.low is None:
            continue
        clear = one.mean > 0 and one.excludes(0.0)
        said = "is more accurate than" if clear else "is not clearly more accurate than"
        points = f"{100 * one.mean:.2f} points{interval_words(one, 100.0)}"
        found.append(f"{name} {said} its control {control}, by {points}")
    return "; ".join(found)


def _first(
    comparison: Comparison,
    accuracy: float,
    there: Sequence[str],
    counts: Mapping[str, tuple[int, int]],
) -> str:
    measure, goal = time_to(accuracy), accuracy_words(accuracy)
    best, *others = (name for name in reversed(comparison.ranking(measure)) if name in there)
    failed = failed_words(counts)
    if not others:
        return f"only {best} reached {goal} in every run{failed}"
    found = {other: comparison.ratio(other, best, measure) for other in others}
    clear, none = f"first at {goal}: {best}, ", f"none is clearly first at {goal}: {best} was "
    return _against(found, clear, none, _soon) + failed


def reached_counts(comparison: Comparison, accuracy: float) -> dict[str, tuple[int, int]]:
    """(runs that reached it, runs) by name, of all that compete and have been run."""
    measure = time_to(accuracy)
    return {
        name: (len(comparison.values(name, measure)), len(comparison.of(name)))
        for name in comparison.names
        if name not in comparison.controls and comparison.of(name)
    }


def failed_words(counts: Mapping[str, tuple[int, int]]) -> str:
    """` (locked in 2 of 3)`: those that did not reach it every time."""
    parts = [f"{name} in {n} of {runs}" for name, (n, runs) in counts.items() if n < runs]
    return f" ({', '.join(parts)})" if parts else ""


# --- words ---------------------------------------------------------------------------------------


def _against(
    ratios: Mapping[str, Estimate | None], clear: str, none_clear: str, phrase: Phrase
) -> str:
    """The best against all others: `clear`, or `none_clear`, before what it is better by."""
    found = {other: one for other, one in ratios.items() if one is not None}
    if not found:
        return ""
    known = [one for one in found.values() if one.low is not None]
    ahead = {other: one for other, one in found.items() if not known or one.excludes(1.0)}
    close = {other: one for other, one in found.items() if other not in ahead}
    if not ahead:
        return none_clear + joined([_times(other, one, phrase) for other, one in close.items()])
    text = clear + joined([_times(other, one, phrase) for other, one in ahead.items()])
    if close:
        others = joined([_times(other, one, phrase) for other, one in close.items()])
        text += f", not clearly ahead of the rest: {others}"
    return text


def _times(name: str, one: Estimate, phrase: Phrase) -> str:
    return f"{phrase(one)} {name}{interval_words(one)}"


def _fast(one: Estimate) -> str:
    return f"{one.mean:.2f} times as fast as"


def _soon(one: Estimate) -> str:
    return f"{one.mean:.2f} times sooner than"


def _points(name: str, one: Estimate) -> str:
    return f"{100 * one.mean:.2f} points than {name}{interval_words(one, 100.0)}"
