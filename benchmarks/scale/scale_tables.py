"""The tables of README.md, from finished runs."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from timed import Runs, machine_line, table

__all__ = ["WITHIN", "tables_of"]

#: How far a prediction may be off.
WITHIN = 0.15
#: Events a second, with codec and check and without, at least.
EVENTS = {"with_codec_and_check": 20_000, "without": 100_000}


def tables_of(runs: Runs, simulated: Path) -> Mapping[str, str]:
    """By the name of the place in README.md; `simulated` is the file that `events.py` writes."""
    names = list(dict.fromkeys(key.rpartition("/")[0] for key in runs.found))
    names.sort(key=_order)
    rows = {name: list(runs.of(name).values()) for name in names}
    return {
        "claim": _claim(rows),
        "machine": machine_line(runs),
        **_simulator(simulated),
        "rates": table(
            ("links, workers: schedule", "measured", "(least to most)", "predicted", "off by", ""),
            [_rate_row(name, found) for name, found in rows.items()],
        ),
        "work": table(
            (
                *("links, workers: schedule", "CPU ms a batch: measured", "predicted"),
                *("idle, mean %: measured", "predicted", "staleness: measured", "predicted"),
            ),
            [_work_row(name, found) for name, found in rows.items()],
        ),
    }


def _simulator(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {"events": "Not measured yet.", "predictions": "Not measured yet."}
    found = json.loads(path.read_text())
    least = {key: min(one[key] for one in found["events"]) for key in EVENTS}
    events = table(
        ("schedule, stages", "with both", "without"),
        [
            [
                f"{one['schedule']}, {one['stages']}",
                *(f"{one[key]:,}" for key in EVENTS),
            ]
            for one in found["events"]
        ],
    )
    verdicts = [
        f"{least[key]:,} at least, target {target:,}: {'met' if least[key] >= target else 'missed'}"
        for key, target in EVENTS.items()
    ]
    stages = sorted({one["stages"] for one in found["predictions"]})
    seconds = {(one["schedule"], one["stages"]): one["seconds"] for one in found["predictions"]}
    predictions = table(
        ("schedule", *(f"{count:,} stages" for count in stages)),
        [
            [schedule, *(f"{seconds[schedule, count]:.1f}" for count in stages)]
            for schedule in dict.fromkeys(one["schedule"] for one in found["predictions"])
        ],
    )
    words = f"With both {verdicts[0]}; without {verdicts[1]}."
    return {"events": f"{words}\n\n{events}", "predictions": predictions}


def _order(name: str) -> tuple[float, int, str]:
    """ "10ms, 4 workers: locked" by latency, then workers."""
    latency, _, rest = name.partition(", ")
    return float(latency.removesuffix("ms")), int(rest.split()[0]), ""


def _claim(rows: Mapping[str, list[dict[str, Any]]]) -> str:
    if not rows:
        return "Not measured yet."
    off = {name: abs(_off(found)) for name, found in rows.items()}
    within = sum(one <= WITHIN for one in off.values())
    worst = max(off, key=lambda name: off[name])
    return (
        f"{within} of {len(off)} settings are predicted within {WITHIN:.0%}; in the middle it is "
        f"{statistics.median(off.values()):.0%}, at worst {off[worst]:.0%} ({worst})."
    )


def _off(found: list[dict[str, Any]]) -> float:
    """Of the medians over seeds: each side has had the same disturbances."""
    return _middle(found, "predicted", "samples_per_s") / _middle(found, "samples_per_s") - 1


def _rate_row(name: str, found: list[dict[str, Any]]) -> list[str]:
    rates = [one["samples_per_s"] for one in found]
    off = _off(found)
    return [
        name,
        f"{statistics.median(rates):,.0f}",
        f"{min(rates):,.0f} to {max(rates):,.0f}",
        f"{_middle(found, 'predicted', 'samples_per_s'):,.0f}",
        f"{off:+.0%}",
        "met" if abs(off) <= WITHIN else "missed",
    ]


def _work_row(name: str, found: list[dict[str, Any]]) -> list[str]:
    return [
        name,
        f"{1e3 * _middle(found, 'cpu_s_per_batch'):.1f}",
        f"{1e3 * _middle(found, 'predicted', 'cpu_s_per_batch'):.1f}",
        f"{_mean(found, 'idle'):.0%}".removesuffix("%"),
        f"{_mean(found, 'predicted', 'idle'):.0%}".removesuffix("%"),
        f"{_largest(found, 'staleness'):.1f}",
        f"{_largest(found, 'predicted', 'staleness'):.1f}",
    ]


def _value(run: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        run = run[key]
    return run


def _middle(found: list[dict[str, Any]], *path: str) -> float:
    return statistics.median(_value(run, path) for run in found)


def _mean(found: list[dict[str, Any]], *path: str) -> float:
    """Over workers, then the median over seeds."""
    return statistics.median(statistics.fmean(_value(run, path).values()) for run in found)


def _largest(found: list[dict[str, Any]], *path: str) -> float:
    """Of the stage whose gradients are the oldest."""
    return statistics.median(max(one or 0.0 for one in _value(run, path).values()) for run in found)
