"""A comparison as plain tables, fit for JSON: what is written, drawn, and shown.

```
complete   whether every planned run is in it        targets      accuracies, rising
machine    what it was measured on                   verdict      one sentence
seeds      of all runs                               experiment   tables of the first run
schedules  tables by name
rows       one a name: see `_row`                    runs         name, seed, folder, summary
```

An estimate is {mean, low, high, n}: over n seeds, with a 95 % interval (None for one seed). Ratios
are paired by seed; they and their intervals are of logarithms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from asyncdni import experiment
from asyncdni.comparison.entries import BASELINE, SINGLE, ZERO, Entry
from asyncdni.metrics.breakdown import (
    SHARES,
    ceiling_samples_per_s,
    overhead_cpu,
    shares,
)
from asyncdni.metrics.comparison import MEASURES, Comparison, Estimate, Measure, Result
from asyncdni.metrics.machine import cores, describe_machine
from asyncdni.metrics.targets import samples_to, time_to
from asyncdni.metrics.verdict import verdict

__all__ = ["document"]

#: The control, and whose.
_CONTROLS = {ZERO: "synthetic"}
_OVER = (BASELINE, SINGLE)


def document(
    entries: Sequence[Entry], results: Sequence[Result], targets: Sequence[float] = ()
) -> dict[str, Any]:
    """The comparison so far; `results` may be of further names than those of `entries`.

    So runs of other programs get rows of their own, after ours; see `metrics.comparison.Result`
    for what their summaries need. `targets` are test accuracies from 0 to 1.
    """
    planned = {(entry.name, entry.seed): entry for entry in entries}
    names = tuple(dict.fromkeys([*(e.name for e in entries), *(r.name for r in results)]))
    controls = {control: of for control, of in _CONTROLS.items() if control in names}
    comparison = Comparison(names, tuple(results), tuple(sorted(set(targets))), controls)
    ceilings = {entry.name: _ceiling(entry) for entry in entries}
    return {
        "complete": planned.keys() <= {(one.name, one.seed) for one in results},
        "machine": describe_machine(),
        "seeds": sorted({seed for _, seed in planned} or {one.seed for one in results}),
        "targets": list(comparison.targets),
        "experiment": experiment.tables(entries[0].experiment) if entries else None,
        "schedules": {
            entry.name: experiment.tables(entry.experiment)["schedule"] for entry in entries
        },
        "rows": [_row(comparison, name, ceilings.get(name, _unknown)) for name in names],
        "verdict": verdict(comparison),
        "runs": [_run(one, planned.get((one.name, one.seed))) for one in results],
    }


def _run(one: Result, entry: Entry | None) -> dict[str, Any]:
    return {
        "name": one.name,
        "seed": one.seed,
        "folder": entry.folder if entry else None,
        "summary": dict(one.summary),
    }


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
        **{f"speedup_over_{other}": _plain(comparison.ratio(name, other)) for other in _OVER},
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
        **{f"speedup_over_{other}": _plain(comparison.ratio(other, name, time)) for other in _OVER},
    }


def _shares(comparison: Comparison, name: str) -> dict[str, float] | None:
    """Means over runs, which sum to 1 as those of each run do."""
    known = [one for one in (shares(run.summary) for run in comparison.of(name)) if one]
    if not known:
        return None
    return {part: sum(one[part] for one in known) / len(known) for part in SHARES}


def _ceiling(entry: Entry) -> Measure:
    return lambda summary: ceiling_samples_per_s(summary, entry.producers, cores())


def _unknown(summary: Mapping[str, Any]) -> float | None:
    """The ceiling of another program's run."""
    return None


def _plain(one: Estimate | None) -> dict[str, Any] | None:
    return None if one is None else asdict(one)
