"""The rows of this benchmark, and of their results the tables and the plot of README.md."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from timed import Runs, comparison, machine_line, plus_minus, table, verdict, with_interval

from asyncdni.errors import AsyncDNIError
from asyncdni.experiment.schema import seconds
from asyncdni.report.plots import row_colours
from asyncdni.report.statistics import Comparison, Estimate, samples_to, time_to

__all__ = [
    "FULL",
    "LATENCIES",
    "ROWS",
    "SINGLE",
    "TARGET",
    "TIMED",
    "draw",
    "key",
    "rows_at",
    "tables_of",
]

LATENCIES = ("0ms", "1ms", "5ms", "10ms", "50ms", "100ms")
TIMED = ("0ms", "1ms", "10ms")  # those at which locked takes seconds, not minutes
TARGET = 0.97

SINGLE, FULL = "single", "delayed, full"
#: Row -> schedule. FULL has a lag that keeps all workers busy; delayed its own, the depth.
ROWS = {
    SINGLE: "locked",
    "locked": "locked",
    "gpipe": "gpipe",
    "1f1b": "1f1b",
    "delayed": "delayed",
    FULL: "delayed",
    "local_loss": "local_loss",
    "synthetic": "synthetic",
}
LINKED = [name for name in ROWS if name != SINGLE]
#: (of, over, latency, least): samples/s, time to TARGET; (of, least latency, latency, least) kept.
SPEED_CLAIM = ("synthetic", "locked", "10ms", 15.0)
TIME_CLAIM = ("synthetic", "locked", "10ms", 12.0)
KEPT_CLAIM = ("synthetic", "0ms", "50ms", 0.95)

#: The whole training time counts; fills and drains of the pipe are left out.
SPEED, STREAM = "samples_per_s", "stream_samples_per_s"


def key(kind: str, row: str, latency: str) -> str:
    """Of results. One process has no links."""
    return f"{kind}: {row}" if row == SINGLE else f"{kind}, {latency}: {row}"


def rows_at(latency: str) -> list[str]:
    """Without latency there is nothing to fill but the pipe itself: FULL is delayed."""
    return [row for row in ROWS if row != FULL or seconds(latency, "--latencies") > 0]


def spaced(latency: str) -> str:
    """`10 ms`."""
    return f"{1000 * seconds(latency, '--latencies'):g} ms"


# --- tables --------------------------------------------------------------------------------------


def tables_of(runs: Runs, target: float = TARGET) -> dict[str, str]:
    """Every table of README.md by its name there; `target` is that of the runs for the time."""
    return {
        "claim": claim(runs, target),
        "speed": speeds(runs, SPEED),
        "ratio": ratios(runs),
        "stream": speeds(runs, STREAM),
        "kept": kept_table(runs),
        "time": times(runs, target),
        "sooner": sooner(runs, target),
        "lag": lags(runs),
        "machine": machine_line(runs),
    }


def at(runs: Runs, kind: str, latency: str) -> Comparison:
    """All rows."""
    return comparison(runs, {row: key(kind, row, latency) for row in ROWS})


def claim(runs: Runs, target: float) -> str:
    """The targets, and what came of them."""
    row, other, latency, least = SPEED_CLAIM
    faster = speed_ratio(runs, row, other, latency)
    rows = [[f"samples/s at {spaced(latency)}, `{row}` / `{other}`", *judged(faster, least)]]
    row, other, latency, least = TIME_CLAIM
    earlier = time_ratio(runs, row, other, latency, target)
    goal = f"time to {100 * target:g} % at {spaced(latency)}"
    rows.append([f"{goal}, `{other}` / `{row}`", *judged(earlier, least)])
    row, near, far, least = KEPT_CLAIM
    left = kept(runs, row, near, far)
    words = f"samples/s of `{row}`, drains left out, at {spaced(far)} / at {spaced(near)}"
    rows.append([words, *judged(left, least)])
    return table(["", "target, at least", "measured", ""], rows)


def judged(found: Estimate | None, least: float) -> list[str]:
    return [f"{least:g}", with_interval(found), verdict(found, least)]


def speed_ratio(runs: Runs, row: str, other: str, latency: str) -> Estimate | None:
    return at(runs, "speed", latency).ratio(row, other, SPEED)


def time_ratio(runs: Runs, row: str, other: str, latency: str, target: float) -> Estimate | None:
    """How many times sooner `row` is."""
    return at(runs, "time", latency).ratio(other, row, time_to(target))


def kept(runs: Runs, row: str, least: str, latency: str) -> Estimate | None:
    """Speed with drains left out, of that at `least`."""
    names = {text: key("speed", row, text) for text in (least, latency)}
    return comparison(runs, names).ratio(latency, least, STREAM)


def speeds(runs: Runs, measure: str) -> str:
    """Of each row at each latency; one process has its speed at all of them."""
    rows = [
        [row, *(plus_minus(at(runs, "speed", text).estimate(row, measure)) for text in LATENCIES)]
        for row in ROWS
    ]
    return table(["samples/s", *map(spaced, LATENCIES)], rows)


def ratios(runs: Runs) -> str:
    """Whole speed in units of locked."""
    rows = [
        [row, *(with_interval(speed_ratio(runs, row, "locked", text), 1) for text in LATENCIES)]
        for row in ROWS
        if row != "locked"
    ]
    return table(["samples/s / those of locked", *map(spaced, LATENCIES)], rows)


def kept_table(runs: Runs) -> str:
    """In percent."""
    least, *others = LATENCIES
    rows = [
        [row, *(with_interval(kept(runs, row, least, text), 1, 100) for text in others)]
        for row in LINKED
        if row != FULL
    ]
    return table(["% of samples/s at 0 ms", *map(spaced, others)], rows)


def times(runs: Runs, target: float) -> str:
    """Seconds and samples to `target`; where not all runs have reached it, how many."""
    rows = []
    for row in ROWS:
        cells = [row]
        for text in TIMED:
            cells += reached(at(runs, "time", text), row, target)
        rows.append(cells)
    heads = [head for text in TIMED for head in (f"{spaced(text)}: s", "samples")]
    return table([f"to {100 * target:g} %", *heads], rows)


def reached(held: Comparison, row: str, target: float) -> list[str]:
    """Of runs that have not, the accuracy that they end with."""
    time, count = held.values(row, time_to(target)), len(held.of(row))
    if len(time) == count:
        samples = held.estimate(row, samples_to(target))
        return [plus_minus(held.estimate(row, time_to(target)), 2), plus_minus(samples)]
    short = [run.summary for run in held.of(row) if run.seed not in time]
    ends = [100 * one["test_accuracy"] for one in short if one.get("test_accuracy") is not None]
    known = f"others end at {min(ends):.2f} % or more" if ends else "others failed"
    return [f"{len(time)} of {count} runs", known]


def sooner(runs: Runs, target: float) -> str:
    """How many times sooner than each baseline."""
    others = ("locked", "gpipe", "1f1b", SINGLE)
    rows = [
        [
            f"{row}, {spaced(text)}",
            *(with_interval(time_ratio(runs, row, o, text, target)) for o in others),
        ]
        for text in TIMED
        for row in rows_at(text)
        if row in ("delayed", FULL, "local_loss", "synthetic")
    ]
    return table([f"to {100 * target:g} %, times sooner than", *others], rows)


def lags(runs: Runs) -> str:
    """What lateness the asynchronous rows had at their first stage, and what they gave up."""
    rows = []
    for text in LATENCIES:
        for row in ("delayed", FULL, "synthetic"):
            found = runs.of(key("speed", row, text))
            firsts = [stages(run)[0] for run in found.values() if stages(run)]
            if firsts:
                rows.append([f"{row}, {spaced(text)}", *first_stage(firsts)])
    head = ["", "batches", "staleness, mean", "largest", "lag in batches, largest", "dropped"]
    return table(head, rows)


def stages(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(run.get("stages", {}).values())


def first_stage(firsts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Means over runs, and the largest of all."""
    stale = mean(one["staleness_mean"] for one in firsts)
    return [
        shown(mean(one["batches"] for one in firsts)),
        "-" if stale is None else f"{stale:.1f}",
        shown(max((one["staleness_max"] or 0 for one in firsts), default=None)),
        shown(max((one["lag_max"] or 0 for one in firsts), default=None)),
        shown(mean(one["dropped"] for one in firsts)),
    ]


def mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


# --- the plot ------------------------------------------------------------------------------------


def draw(runs: Runs, path: Path) -> None:
    """Speed over latency, a line a row. Raises `AsyncDNIError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise AsyncDNIError(
            "the plot needs matplotlib: install it with pip install 'asyncdni[plot]'"
        ) from None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    colours = row_colours([{"name": row} for row in LINKED])
    for row in LINKED:
        points = [(text, at(runs, "speed", text).estimate(row, SPEED)) for text in LATENCIES]
        known = [(1000 * seconds(text, ""), one.mean) for text, one in points if one is not None]
        if known:
            line = "--" if row == FULL else "-"
            style = {"color": colours[row], "linestyle": line, "marker": "o", "markersize": 4}
            axes.plot(*zip(*known, strict=True), label=row, **style)
    alone = at(runs, "speed", LATENCIES[0]).estimate(SINGLE, SPEED)
    if alone is not None:
        axes.axhline(alone.mean, color="#1f2329", linestyle=":", label=f"{SINGLE}, no links")
    axes.set_xscale("symlog", linthresh=1, linscale=0.6)
    axes.set_xlim(-0.2, 125)
    axes.set_yscale("log")
    marks = [1000 * seconds(text, "") for text in LATENCIES]
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.set_xlabel("one-way latency of every link, ms")
    axes.set_ylabel("training samples a second, drains counted")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
