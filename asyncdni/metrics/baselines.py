"""What schedules are held against at each latency: one process, and the synchronous schedules.

Where `verdict` says who is ahead of whom, this says what every other schedule is worth beside every
baseline, whichever of them is ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from asyncdni.metrics.comparison import Comparison, Estimate, ratio
from asyncdni.metrics.latencies import latency_words
from asyncdni.metrics.phrases import accuracy_words, interval_words, joined
from asyncdni.metrics.targets import time_to
from asyncdni.metrics.verdict import (
    accuracy_clause,
    control_clause,
    failed_words,
    reached_counts,
    speed_clause,
    target_clause,
)

__all__ = ["BASELINES", "SINGLE", "kept", "kept_sentence", "latency_sentence"]

#: One process that has all stages, and no links.
SINGLE = "single"
BASELINES = ("locked", "gpipe", "1f1b", SINGLE)

#: How many times better a name is than another; None where that can't be told.
Gain = Callable[[str, str], Estimate | None]
Words = Callable[[str, Estimate], tuple[str, Estimate]]
_SPEEDS = {
    "stream_samples_per_s": "samples/s, fills and drains left out,",
    "samples_per_s": "samples/s",
}


def latency_sentence(comparison: Comparison, latency_s: float) -> str:
    """What comes of a comparison at this latency; empty where there is nothing to compare yet.

    The speed of the fastest beside every baseline, and who reaches the highest target how much
    sooner than each of them; of baselines alone, what `verdict` says of them.
    """
    rivals = [name for name in comparison.ranking() if _competes(name, comparison)]
    if rivals:
        found = [*_speeds(comparison, rivals), *_times(comparison, rivals)]
    else:
        found = [speed_clause(comparison), target_clause(comparison)]
    found += [accuracy_clause(comparison), control_clause(comparison)]
    clauses = [clause for clause in found if clause]
    return f"At {latency_words(latency_s)} links {'; '.join(clauses)}." if clauses else ""


def kept(
    comparisons: Mapping[float, Comparison], latency_s: float, name: str, measure: str
) -> Estimate | None:
    """`measure` at this latency in units of that at the least one, paired by seed.

    None where that can't be told, and for what has no links.
    """
    if not _has_links(name, comparisons[latency_s]):
        return None
    least = comparisons[min(comparisons)].values(name, measure)
    here = comparisons[latency_s].values(name, measure)
    return ratio([(here[seed], least[seed]) for seed in here if seed in least])


def kept_sentence(comparisons: Mapping[float, Comparison]) -> str:
    """How much of its speed each schedule keeps at the highest latency; empty where none is known.

    With fills and drains left out where all of them are measured so.
    """
    least, most = min(comparisons), max(comparisons)
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
    """Of the fastest; of all where no target says what their speed is worth."""
    others = [name for name in comparison.names if _is_baseline(name)]
    found = []
    for name in rivals[:1] if comparison.targets else rivals:
        parts = _parts(name, others, comparison.ratio, _faster)
        if parts:
            place = f" (the fastest of {joined(rivals)})" if name == rivals[0] else ""
            found.append(f"{name}{place if rivals[1:] else ''} is {joined(parts)}")
    return found


def _times(comparison: Comparison, rivals: Sequence[str]) -> list[str]:
    """To the highest target that any of `rivals` reaches in every run, the first of them first."""
    for accuracy in reversed(comparison.targets):
        counts = reached_counts(comparison, accuracy)
        there = {name for name, (reached, runs) in counts.items() if reached == runs}
        measure = time_to(accuracy)
        able = [n for n in reversed(comparison.ranking(measure)) if n in there and n in rivals]
        if able:
            others = [n for n in comparison.names if n in there and _is_baseline(n)]
            found = [_time(comparison, name, others, accuracy) for name in able]
            return [*found[:-1], found[-1] + failed_words(counts)]
    if not comparison.targets:
        return []
    lowest = comparison.targets[0]
    counts = reached_counts(comparison, lowest)
    failed = failed_words({name: counts[name] for name in rivals})
    none = f"none of {joined(rivals)} reaches" if rivals[1:] else f"{rivals[0]} does not reach"
    return [f"{none} {accuracy_words(lowest)} in every run{failed}"]


def _time(comparison: Comparison, name: str, others: Sequence[str], accuracy: float) -> str:
    measure = time_to(accuracy)

    def gain(one: str, other: str) -> Estimate | None:
        return comparison.ratio(other, one, measure)

    goal = f"{name} reaches {accuracy_words(accuracy)}"
    return f"{goal} {joined(_parts(name, others, gain, _sooner))}".rstrip()


def _parts(name: str, others: Sequence[str], gain: Gain, words: Words) -> list[str]:
    """`name` against each of `others` that it can be compared with."""
    found = [(other, gain(name, other)) for other in others]
    known = [words(other, one) for other, one in found if one is not None]
    return [f"{text}{_spread(one, first=k == 0)}" for k, (text, one) in enumerate(known)]


def _faster(other: str, one: Estimate) -> tuple[str, Estimate]:
    return f"{one.mean:.2f} times as fast as {other}", one


def _sooner(other: str, one: Estimate) -> tuple[str, Estimate]:
    """And what is to be told as so many times, which is never less than one."""
    if one.mean >= 1.0:
        return f"{one.mean:.2f} times sooner than {other}", one
    low, high = (None if end is None else 1.0 / end for end in (one.high, one.low))
    later = Estimate(1.0 / one.mean, low, high, one.n)
    return f"{later.mean:.2f} times later than {other}", later


def _spread(one: Estimate, *, first: bool) -> str:
    """The interval, and that it leaves no difference beyond doubt."""
    words = interval_words(one, said=not first)
    return words if one.low is None or one.excludes(1.0) else f"{words[:-1]}: not clear)"


def _kept_parts(found: Sequence[tuple[str, Estimate]]) -> list[str]:
    return [
        f"{name} keeps {100 * one.mean:.3g} %{interval_words(one, 100.0, said=index > 0)}"
        for index, (name, one) in enumerate(found)
    ]
