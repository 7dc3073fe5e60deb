"""The conclusions of a comparison, in sentences. The same rules hold whoever wins.

Where too many runs of a row were disturbed by other programs, there is none on speed.

`verdict` is for a comparison at one latency: the fastest against each other row; which row first
reaches the target accuracy; where accuracies differ by more than chance; what controls show.
Controls don't compete. `latency_sentence` and `kept_sentence` are for comparisons at several
latencies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from asyncdni.report.columns import accuracy_words
from asyncdni.report.load import is_busy
from asyncdni.report.statistics import Comparison, Estimate, latency_words, ratio, time_to
from asyncdni.schedules import SCHEDULES

__all__ = [
    "BASELINES",
    "SINGLE",
    "accuracy_clause",
    "busy_clause",
    "control_clause",
    "joined",
    "kept",
    "kept_sentence",
    "latency_sentence",
    "speed_clause",
    "target_clause",
    "verdict",
]


def _interval_words(one: Estimate, scale: float = 1.0, *, said: bool = False) -> str:
    """Return ` (95 % interval 1.23 to 2.94)`, or ` (1.23 to 2.94)` if an earlier bracket has
    explained it; empty without an interval."""
    if one.low is None or one.high is None:
        return ""
    ends = (scale * one.low, scale * one.high)
    low, high = (f"{end:.2f}" if abs(end) < 100 else f"{end:.3g}" for end in ends)
    return f" ({'' if said else '95 % interval '}{low} to {high})"


def joined(parts: Sequence[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`; empty for no parts."""
    if not parts:
        return ""
    *head, last = parts
    return f"{', '.join(head)} and {last}" if head else last


def verdict(comparison: Comparison) -> str:
    """Return the conclusion of the comparison in one sentence; empty while there is nothing to
    compare."""
    busy = busy_clause(comparison)
    speeds = [busy] if busy else [speed_clause(comparison), target_clause(comparison)]
    found = (*speeds, accuracy_clause(comparison), control_clause(comparison))
    clauses = [clause for clause in found if clause]
    if not clauses:
        return ""
    if max(len(comparison.of(name)) for name in comparison.names) == 1:
        clauses.append("one seed shows no spread: compare over more (--seeds 5)")
    text = "; ".join(clauses)
    return f"{text[0].upper()}{text[1:]}."


def busy_clause(comparison: Comparison) -> str:
    """Say that there is no verdict on speed since too many runs were disturbed; empty if there can
    be one. Rows with enough undisturbed runs are not named, nor are controls."""
    names = [name for name in comparison.names if name not in comparison.controls]
    found = {name: comparison.disturbed(name) for name in names}
    busy = {name: runs for name, runs in found.items() if is_busy(runs)}
    if not busy:
        return ""
    counts = [f"{sum(runs)} of {len(runs)} of {name}" for name, runs in busy.items()]
    return (
        f"the machine was busy: no verdict on speed (disturbed runs: {joined(counts)}; compare "
        "again when nothing else runs)"
    )


def speed_clause(comparison: Comparison) -> str:
    """Say how much faster the fastest is than each other row, and where that may be chance."""
    ranking = [name for name in comparison.ranking() if name not in comparison.controls]
    if len(ranking) < 2:
        return ""
    best, others = ranking[0], ranking[1:]
    found = {other: comparison.ratio(best, other) for other in others}
    return _against(
        found, f"fastest: {best}, ", f"none is clearly the fastest: {best} was ", "as fast as"
    )


def target_clause(comparison: Comparison) -> str:
    """Say which row first reaches the highest target that any row reaches in every run, and by how
    much.

    It is compared with the rows that also reach the target in every run. For the others the clause
    only gives the number of runs that did: a ratio would have to leave runs out.
    """
    for accuracy in reversed(comparison.targets):
        counts = _reached_counts(comparison, accuracy)
        there = [name for name, (reached, runs) in counts.items() if reached == runs]
        if there:
            return _first(comparison, accuracy, there, counts)
    if not comparison.targets or not comparison.results:
        return ""
    lowest = comparison.targets[0]
    failed = _failed_words(_reached_counts(comparison, lowest))
    return f"none reached {accuracy_words(lowest)} in every run{failed}"


def accuracy_clause(comparison: Comparison) -> str:
    """Say how much better the most accurate is than those that are clearly worse; empty without
    any."""
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
    """Say whether a row is clearly more accurate than its control, which lacks what is tested."""
    found = []
    for control, name in comparison.controls.items():
        one = comparison.difference(name, control, "test_accuracy")
        if one is None or one.low is None:
            continue
        clear = one.mean > 0 and one.excludes(0.0)
        said = "is more accurate than" if clear else "is not clearly more accurate than"
        points = f"{100 * one.mean:.2f} points{_interval_words(one, 100.0)}"
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
    failed = _failed_words(counts)
    if not others:
        return f"only {best} reached {goal} in every run{failed}"
    found = {other: comparison.ratio(other, best, measure) for other in others}
    clear, none = f"first at {goal}: {best}, ", f"none is clearly first at {goal}: {best} was "
    return _against(found, clear, none, "sooner than") + failed


def _reached_counts(comparison: Comparison, accuracy: float) -> dict[str, tuple[int, int]]:
    """Return (runs that reached it, runs) by name, for all rows that compete and have been run."""
    measure = time_to(accuracy)
    return {
        name: (len(comparison.values(name, measure)), len(comparison.of(name)))
        for name in comparison.names
        if name not in comparison.controls and comparison.of(name)
    }


def _failed_words(counts: Mapping[str, tuple[int, int]]) -> str:
    """Return ` (locked in 2 of 3)`: the rows that did not reach it in every run."""
    parts = [f"{name} in {n} of {runs}" for name, (n, runs) in counts.items() if n < runs]
    return f" ({', '.join(parts)})" if parts else ""


def _against(ratios: Mapping[str, Estimate | None], clear: str, none_clear: str, what: str) -> str:
    """Compare the best with all others, as so many times `what` ("as fast as").

    It begins with `clear`, or with `none_clear` if the best is not clearly ahead of any.
    """

    def told(ones: Mapping[str, Estimate]) -> str:
        return joined(
            [f"{o.mean:.2f} times {what} {name}{_interval_words(o)}" for name, o in ones.items()]
        )

    found = {other: one for other, one in ratios.items() if one is not None}
    if not found:
        return ""
    known = [one for one in found.values() if one.low is not None]
    ahead = {other: one for other, one in found.items() if not known or one.excludes(1.0)}
    close = {other: one for other, one in found.items() if other not in ahead}
    if not ahead:
        return none_clear + told(close)
    rest = f", not clearly ahead of the rest: {told(close)}" if close else ""
    return clear + told(ahead) + rest


def _points(name: str, one: Estimate) -> str:
    return f"{100 * one.mean:.2f} points than {name}{_interval_words(one, 100.0)}"


# --- at several latencies ------------------------------------------------------------------------
#
# `verdict` says which row is ahead. These sentences compare each other schedule with every baseline
# (one process, and the synchronous schedules), whichever is ahead.

#: The row of one process with all stages and no links.
SINGLE = "single"
BASELINES = (*(name for name, one in SCHEDULES.items() if one.synchronous), SINGLE)

#: A function that returns how many times better one row is than another; None if unknown.
Gain = Callable[[str, str], Estimate | None]
Words = Callable[[str, Estimate], tuple[str, Estimate]]
_SPEEDS = {
    "stream_samples_per_s": "samples/s, fills and drains left out,",
    "samples_per_s": "samples/s",
}


def latency_sentence(comparison: Comparison, latency_s: float) -> str:
    """Return the conclusion at this latency; empty while there is nothing to compare.

    It gives the speed of the fastest compared with every baseline, and how much sooner than each of
    them the highest target was reached. If there are only baselines, it says what `verdict` would.
    """
    rivals = [name for name in comparison.ranking() if _competes(name, comparison)]
    busy = busy_clause(comparison)
    if busy:
        found = [busy]
    elif rivals:
        found = [*_speeds(comparison, rivals), *_time_ratios(comparison, rivals)]
    else:
        found = [speed_clause(comparison), target_clause(comparison)]
    found += [accuracy_clause(comparison), control_clause(comparison)]
    clauses = [clause for clause in found if clause]
    return f"At {latency_words(latency_s)} links {'; '.join(clauses)}." if clauses else ""


def kept(
    comparisons: Mapping[float, Comparison], latency_s: float, name: str, measure: str
) -> Estimate | None:
    """Return `measure` at this latency as a multiple of that at the least latency, paired by seed.

    None if it is unknown, and for a row without links.
    """
    if not _has_links(name, comparisons[latency_s]):
        return None
    least = comparisons[min(comparisons)].values(name, measure)
    here = comparisons[latency_s].values(name, measure)
    return ratio([(here[seed], least[seed]) for seed in here if seed in least])


def kept_sentence(comparisons: Mapping[float, Comparison]) -> str:
    """Say how much of its speed each schedule keeps at the highest latency; empty if none is known.

    Fills and drains of the pipe are left out if they are known for all schedules. Empty also where
    the machine was busy.
    """
    least, most = min(comparisons), max(comparisons)
    if busy_clause(comparisons[least]) or busy_clause(comparisons[most]):
        return ""
    last = comparisons[most]
    names = [n for n in last.names if _has_links(n, last) and n not in last.controls]
    for measure, words in _SPEEDS.items():
        found = [(name, kept(comparisons, most, name, measure)) for name in names]
        known = [(name, one) for name, one in found if one is not None]
        if known and len(known) == len(found):
            there = f"of its {words} at {latency_words(least)}"
            return f"At {latency_words(most)} links, {there}, {joined(_kept_parts(known))}."
    return ""


def _competes(name: str, comparison: Comparison) -> bool:
    return not (_is_baseline(name) or name in comparison.controls)


def _is_baseline(name: str) -> bool:
    return name in BASELINES or name.startswith(f"{SINGLE}-")


def _has_links(name: str, comparison: Comparison) -> bool:
    return any(one.latency_s is not None for one in comparison.of(name))


def _speeds(comparison: Comparison, rivals: Sequence[str]) -> list[str]:
    """Compare the speed of the fastest; of all rivals, if no target says what their speed is
    worth."""
    others = [name for name in comparison.names if _is_baseline(name)]
    found = []
    for name in rivals[:1] if comparison.targets else rivals:
        parts = _parts(name, others, comparison.ratio, _faster)
        if parts:
            place = f" (the fastest of {joined(rivals)})" if name == rivals[0] else ""
            found.append(f"{name}{place if rivals[1:] else ''} is {joined(parts)}")
    return found


def _time_ratios(comparison: Comparison, rivals: Sequence[str]) -> list[str]:
    """Compare the times to the highest target that any of `rivals` reaches in every run, fastest
    first."""
    for accuracy in reversed(comparison.targets):
        counts = _reached_counts(comparison, accuracy)
        there = {name for name, (reached, runs) in counts.items() if reached == runs}
        measure = time_to(accuracy)
        able = [n for n in reversed(comparison.ranking(measure)) if n in there and n in rivals]
        if able:
            others = [n for n in comparison.names if n in there and _is_baseline(n)]
            found = [_time(comparison, name, others, accuracy) for name in able]
            return [*found[:-1], found[-1] + _failed_words(counts)]
    if not comparison.targets:
        return []
    lowest = comparison.targets[0]
    counts = _reached_counts(comparison, lowest)
    failed = _failed_words({name: counts[name] for name in rivals})
    none = f"none of {joined(rivals)} reaches" if rivals[1:] else f"{rivals[0]} does not reach"
    return [f"{none} {accuracy_words(lowest)} in every run{failed}"]


def _time(comparison: Comparison, name: str, others: Sequence[str], accuracy: float) -> str:
    measure = time_to(accuracy)

    def gain(one: str, other: str) -> Estimate | None:
        return comparison.ratio(other, one, measure)

    goal = f"{name} reaches {accuracy_words(accuracy)}"
    return f"{goal} {joined(_parts(name, others, gain, _sooner))}".rstrip()


def _parts(name: str, others: Sequence[str], gain: Gain, words: Words) -> list[str]:
    """Compare `name` with each of `others` that it can be compared with."""
    found = [(other, gain(name, other)) for other in others]
    known = [words(other, one) for other, one in found if one is not None]
    return [f"{text}{_spread(one, first=k == 0)}" for k, (text, one) in enumerate(known)]


def _faster(other: str, one: Estimate) -> tuple[str, Estimate]:
    return f"{one.mean:.2f} times as fast as {other}", one


def _sooner(other: str, one: Estimate) -> tuple[str, Estimate]:
    """Return the words, and the factor in them, which is never below 1: sooner, or later."""
    if one.mean >= 1.0:
        return f"{one.mean:.2f} times sooner than {other}", one
    low, high = (None if end is None else 1.0 / end for end in (one.high, one.low))
    later = Estimate(1.0 / one.mean, low, high, one.n)
    return f"{later.mean:.2f} times later than {other}", later


def _spread(one: Estimate, *, first: bool) -> str:
    """Return the interval, with a remark if it leaves a difference in doubt."""
    words = _interval_words(one, said=not first)
    return words if one.low is None or one.excludes(1.0) else f"{words[:-1]}: may be chance)"


def _kept_parts(found: Sequence[tuple[str, Estimate]]) -> list[str]:
    return [
        f"{name} keeps {100 * one.mean:.3g} %{_interval_words(one, 100.0, said=index > 0)}"
        for index, (name, one) in enumerate(found)
    ]
