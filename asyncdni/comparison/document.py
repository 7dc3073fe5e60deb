"""A comparison as plain tables, fit for JSON: what is written, drawn, and shown.

```
complete   whether every planned run is in it        targets      accuracies, rising
machine    what it was measured on                   verdict      a sentence, or one a latency
seeds      of all runs                               experiment   tables of the first run
schedules  tables by name                            latencies    seconds, rising, if compared
rows       one a name and latency: see `_row`        runs         name, seed, folder, summary, …
```

An estimate is {mean, low, high, n}: over n seeds, with a 95 % interval (None for one seed). Ratios
are paired by seed; they and their intervals are of logarithms. What the latency of rows and runs
means is told by `metrics.latencies`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from asyncdni import config
from asyncdni.comparison.entries import Entry, Key
from asyncdni.comparison.networks import check_same_network, tables_of
from asyncdni.comparison.rows import ZERO
from asyncdni.metrics.baselines import BASELINES, kept, kept_sentence, latency_sentence
from asyncdni.metrics.breakdown import (
    SHARES,
    ceiling_samples_per_s,
    overhead_cpu,
    shares,
)
from asyncdni.metrics.comparison import MEASURES, Comparison, Estimate, Measure, Result, at
from asyncdni.metrics.machine import cores, describe_machine
from asyncdni.metrics.targets import samples_to, time_to
from asyncdni.metrics.verdict import verdict
from asyncdni.quantities import seconds

__all__ = ["document"]

#: The control, and whose.
_CONTROLS = {ZERO: "synthetic"}
_SPEEDS = ("samples_per_s", "stream_samples_per_s")


def document(
    entries: Sequence[Entry], results: Sequence[Result], targets: Sequence[float] = ()
) -> dict[str, Any]:
    """The comparison so far; `results` may be of further names than those of `entries`.

    So runs of other programs get rows of their own, after ours; see `metrics.comparison.Result`
    for what their summaries need. `targets` are test accuracies from 0 to 1. Raises `ConfigError`
    for entries of different networks or data.
    """
    check_same_network(entries)
    planned = {entry.key: entry for entry in entries}
    comparisons = _by_latency(entries, results, targets)
    first = next(iter(comparisons.values()))
    latencies = [latency_s for latency_s in comparisons if latency_s is not None]
    return {
        "complete": planned.keys() <= {_key(one) for one in results},
        "machine": describe_machine(),
        "seeds": sorted({entry.seed for entry in entries} or {one.seed for one in results}),
        "latencies": latencies,
        "targets": list(first.targets),
        "experiment": tables_of(entries[0].experiment) if entries else None,
        "schedules": {entry.name: tables_of(entry.experiment)["schedule"] for entry in entries},
        "rows": _rows(comparisons, entries),
        "verdict": _sentences(comparisons) if latencies else verdict(first),
        "runs": [_run(one, planned.get(_key(one))) for one in results],
    }


def _by_latency(
    entries: Sequence[Entry], results: Sequence[Result], targets: Sequence[float]
) -> dict[float | None, Comparison]:
    """Under None alone where there is one latency."""
    names = tuple(dict.fromkeys([*(e.name for e in entries), *(r.name for r in results)]))
    controls = {control: of for control, of in _CONTROLS.items() if control in names}
    found = {entry.latency_s for entry in entries} | {one.latency_s for one in results}
    latencies = sorted(latency_s for latency_s in found if latency_s is not None)
    goals = tuple(sorted(set(targets)))
    return {
        latency_s: Comparison(names, at(latency_s, results), goals, controls)
        for latency_s in latencies or (None,)
    }


def _sentences(comparisons: Mapping[float | None, Comparison]) -> list[str]:
    known = {latency_s: one for latency_s, one in comparisons.items() if latency_s is not None}
    found = [latency_sentence(one, latency_s) for latency_s, one in known.items()]
    found.append(kept_sentence(known))
    if max(len(one.of(name)) for one in known.values() for name in one.names) == 1:
        found.append("One seed shows no spread: compare over more (--seeds 5).")
    return [sentence for sentence in found if sentence]


def _key(one: Result) -> Key:
    return one.name, one.latency_s, one.seed


def _run(one: Result, entry: Entry | None) -> dict[str, Any]:
    return {
        "name": one.name,
        "latency_s": one.latency_s,
        "seed": one.seed,
        "folder": entry.folder if entry else None,
        "summary": dict(one.summary),
    }


def _rows(
    comparisons: Mapping[float | None, Comparison], entries: Sequence[Entry]
) -> list[dict[str, Any]]:
    ceilings = {(entry.name, entry.latency_s): _ceiling(entry) for entry in entries}
    rows = []
    for latency_s, comparison in comparisons.items():
        for name in comparison.names:
            row = _row(comparison, name, ceilings.get((name, latency_s), _unknown))
            rows.append({**row, "latency_s": latency_s, **_kept(comparisons, latency_s, name)})
    return rows


def _kept(
    comparisons: Mapping[float | None, Comparison], latency_s: float | None, name: str
) -> dict[str, Any]:
    """Of the speed at the least latency; nothing where there is but one."""
    known = {one: comparison for one, comparison in comparisons.items() if one is not None}
    if latency_s is None:
        return {}
    return {f"kept_{measure}": _plain(kept(known, latency_s, name, measure)) for measure in _SPEEDS}


def _row(comparison: Comparison, name: str, ceiling: Measure) -> dict[str, Any]:
    """Ratios are None where there is nothing to pair with."""
    first = next((one.summary for one in comparison.of(name)), {})

    def efficiency(summary: Mapping[str, Any]) -> float | None:
        most, speed = ceiling(summary), summary.get("samples_per_s")
        return speed / most if most and speed else None

    return {
        "name": name,
        "runs": len(comparison.of(name)),
        "workers": first.get("workers"),
        "threads": first.get("threads"),
        "control": name in comparison.controls,
        **{measure: _plain(comparison.estimate(name, measure)) for measure in MEASURES},
        **{f"speedup_over_{other}": _plain(comparison.ratio(name, other)) for other in BASELINES},
        "ceiling_samples_per_s": _plain(comparison.estimate(name, ceiling)),
        "efficiency": _plain(comparison.estimate(name, efficiency)),
        "overhead_cpu": _plain(comparison.estimate(name, overhead_cpu)),
        "shares": _shares(comparison, name),
        "targets": [_target(comparison, name, accuracy) for accuracy in comparison.targets],
    }


def _target(comparison: Comparison, name: str, accuracy: float) -> dict[str, Any]:
    """Means are given where every run is there; ratios over the pairs that are, of which `n` tells.

    A ratio is how many times sooner than the other row.
    """
    time = time_to(accuracy)
    reached = len(comparison.values(name, time))
    whole = reached == len(comparison.of(name))
    return {
        "accuracy": accuracy,
        "reached": reached,
        "time_s": _plain(comparison.estimate(name, time)) if whole else None,
        "samples": _plain(comparison.estimate(name, samples_to(accuracy))) if whole else None,
        **{
            f"speedup_over_{other}": _plain(comparison.ratio(other, name, time))
            for other in BASELINES
        },
    }


def _shares(comparison: Comparison, name: str) -> dict[str, float] | None:
    """Means over runs, which sum to 1 as those of each run do."""
    known = [one for one in (shares(run.summary) for run in comparison.of(name)) if one]
    if not known:
        return None
    return {part: sum(one[part] for one in known) / len(known) for part in SHARES}


def _ceiling(entry: Entry) -> Measure:
    """None is known where stages go by schedules of their own."""
    if any(stage.schedule for stage in entry.experiment.stages):
        return _unknown
    return lambda summary: ceiling_samples_per_s(
        summary,
        entry.producers,
        cores(),
        microbatches=getattr(entry.experiment.schedule, "microbatches", 1),
        lag=_lag(entry),
        latency_s=_least_latency(entry.experiment),
    )


def _lag(entry: Entry) -> int | None:
    """The greatest that any worker may have; None: what the schedule gives each of them."""
    staleness = entry.experiment.staleness
    if not staleness.links:
        return staleness.lag
    usual = len(entry.producers) if staleness.lag is None else staleness.lag
    return max(usual, *staleness.links.values())


def _least_latency(chosen: config.Experiment) -> float:
    """Of all links that are named and those that are not: no ceiling is too low for any of them."""
    links = (chosen.links, *chosen.links.between.values())
    return min(seconds(link.latency, "links.latency") for link in links)


def _unknown(summary: Mapping[str, Any]) -> float | None:
    """The ceiling of another program's run, among others."""
    return None


def _plain(one: Estimate | None) -> dict[str, Any] | None:
    return None if one is None else asdict(one)
