"""What `asyncdni compare` prints at its end: tables that fit 80 columns, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from asyncdni.cli.latency_table import make_latency_tables
from asyncdni.comparison import BASELINE, ZERO
from asyncdni.metrics.baselines import BASELINES, SINGLE
from asyncdni.metrics.breakdown import SHARES
from asyncdni.metrics.latencies import latencies_of, latency_words
from asyncdni.metrics.phrases import accuracy_words

__all__ = ["make_tables", "notes"]

#: From this width on an interval stands beside its mean, not below it.
_WIDE = 100
#: Beside so many columns of ratios there is room for others.
_RATIOS_MAX = 2

Row = Mapping[str, Any]  # one of `document`'s
Estimate = Mapping[str, Any] | None  # {mean, low, high, n}


@dataclass(frozen=True)
class _Style:
    wide: bool
    ascii_only: bool

    @property
    def joint(self) -> str:
        """Between a mean and its interval."""
        return " " if self.wide else "\n"

    @property
    def sign(self) -> str:
        return "+-" if self.ascii_only else "±"


def make_tables(found: Mapping[str, Any], width: int, *, ascii_only: bool = False) -> list[Table]:
    """Of a `document`, for a console of `width` columns.

    Speed and accuracy; the time to each target; where CPU and time went. Of several latencies, what
    `latency_table` has.
    """
    if latencies_of(found):
        return make_latency_tables(found, width, ascii_only=ascii_only)
    style = _Style(width >= _WIDE, ascii_only)
    tables = _results(found["rows"], style)
    for index in range(len(found["targets"])):
        tables += _target(found["rows"], index, style)
    return tables + _breakdown(found["rows"], style)


def notes(found: Mapping[str, Any]) -> list[str]:
    """Sentences for below the tables, the verdict last."""
    machine, seeds = found["machine"], found["seeds"]
    interval = "" if len(seeds) == 1 else ", 95 % intervals of the mean (Student's t)"
    runs = "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    lines = [f"{runs}{interval}; {machine['cores']} cores, {machine['cpu'] or 'unknown CPU'}."]
    singles = {row["name"]: row for row in found["rows"] if _is_single(row)}
    lines += map(_single_text, singles.values())
    if any(row["name"] == ZERO for row in found["rows"]):
        lines.append(f"{ZERO}: the control, with gradients of zero in place of its generators'.")
    if found["targets"]:
        lines.append(
            "time to an accuracy: training alone, up to the first of two evaluations in a row that "
            "are there."
        )
    if latencies_of(found):
        lines += _latency_notes(found)
    elif any(row["overhead_cpu"] or row["efficiency"] for row in found["rows"]):
        lines.append(
            "overhead: CPU time outside ops. ceiling: the samples/s that the CPU times of a run's "
            f"own ops allow on {machine['cores']} cores, and how much of it was reached. Then how "
            "workers spent the time of training."
        )
    return [*lines, *_said(found)]


def _latency_notes(found: Mapping[str, Any]) -> list[str]:
    least = latency_words(latencies_of(found)[0])
    return [
        f"latency: one way, of all links between workers; {SINGLE} has none, was run once and "
        "stands for every one.",
        f"kept: part of the samples/s at {least}, fills and drains of the pipe left out where they "
        "are known. of the ceiling: part of what the CPU times of a run's own ops and the latency "
        f"allow on {found['machine']['cores']} cores.",
    ]


def _said(found: Mapping[str, Any]) -> list[str]:
    said = found["verdict"]
    return [said] if said and isinstance(said, str) else list(said)


def _is_single(row: Row) -> bool:
    return bool(row["name"] == SINGLE or row["name"].startswith(f"{SINGLE}-"))


def _single_text(row: Row) -> str:
    threads = row["threads"]
    count = "1 BLAS thread" if threads == 1 else f"{threads} BLAS threads"
    if row["name"] != SINGLE:
        return f"{row['name']}: the same with {count}."
    return (
        f"{SINGLE}: all stages in one worker process with {count}, in strict order (schedule "
        f"{BASELINE}), no other worker running: what training without asyncdni would be."
    )


# --- tables --------------------------------------------------------------------------------------


def _results(rows: Sequence[Row], style: _Style) -> list[Table]:
    scored = any(row["test_accuracy"] for row in rows)
    columns = {
        "samples/s": [_estimate(row["samples_per_s"], style) for row in rows],
        "accuracy" if scored else "test loss": [
            _estimate(row["test_accuracy"], style, "{:.2f}", 100.0, " %")
            if scored
            else _estimate(row["test_loss"], style, "{:.4f}")
            for row in rows
        ],
        "training": [_mean(row["train_s"], _seconds(row["train_s"]) + " s") for row in rows],
    }
    return _beside("", rows, columns, _speedups(rows, style, "times"))


def _target(rows: Sequence[Row], index: int, style: _Style) -> list[Table]:
    """Where not all runs are there, how many pairs a ratio is of."""
    targets = [row["targets"][index] for row in rows]
    columns = {
        "reached": [
            f"{target['reached']} of {row['runs']}"
            for target, row in zip(targets, rows, strict=True)
        ],
        "time": [
            _estimate(target["time_s"], style, _seconds(target["time_s"]), 1.0, " s")
            for target in targets
        ],
        "samples": [_estimate(target["samples"], style) for target in targets],
    }
    title = f"to {accuracy_words(targets[0]['accuracy'])}"
    ratios = _speedups(targets, style, "sooner than", [row["runs"] for row in rows])
    return _beside(title, rows, columns, ratios)


def _beside(
    title: str,
    rows: Sequence[Row],
    columns: Mapping[str, Sequence[str]],
    ratios: Mapping[str, Sequence[str]],
) -> list[Table]:
    """One table, or one for the ratios where there are many."""
    if len(ratios) <= _RATIOS_MAX:
        return [_table(title, rows, {**columns, **ratios})]
    return [_table(title, rows, columns), _table(title, rows, ratios)]


def _breakdown(rows: Sequence[Row], style: _Style) -> list[Table]:
    columns = {
        "CPU": [_mean(row["cpu_s"], _seconds(row["cpu_s"]) + " s") for row in rows],
        "overhead": [_mean(row["overhead_cpu"], "{:.0f} %", 100.0) for row in rows],
        "ceiling": [_mean(row["ceiling_samples_per_s"], "{:,.0f}") for row in rows],
        "reached": [_mean(row["efficiency"], "{:.0f} %", 100.0) for row in rows],
    }
    shares = {
        part: [f"{100 * row['shares'][part]:.0f} %" if row["shares"] else "-" for row in rows]
        for part in SHARES
    }
    if style.wide:
        return [_table("", rows, columns | shares)]
    return [_table("", rows, columns), _table("", rows, shares)]


def _table(title: str, rows: Sequence[Row], columns: Mapping[str, Sequence[str]]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column(title, no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        table.add_row(row["name"], *(cells[index] for cells in columns.values()))
    return table


# --- cells ---------------------------------------------------------------------------------------


def _speedups(
    ones: Sequence[Row], style: _Style, heading: str, runs: Sequence[int] | None = None
) -> dict[str, list[str]]:
    """Columns of ratios to rows that are there; `runs` of each, where fewer may be paired."""
    columns: dict[str, list[str]] = {}
    for other in BASELINES:
        found = [one.get(f"speedup_over_{other}") for one in ones]
        if any(found):
            counts = runs or [one["n"] if one else 0 for one in found]
            cells = [_ratio(one, style, n) for one, n in zip(found, counts, strict=True)]
            columns[f"{heading} {other}" if style.wide else f"{heading}\n{other}"] = cells
    return columns


def _mean(one: Estimate, form: str, scale: float = 1.0) -> str:
    return "-" if one is None else form.format(scale * one["mean"])


def _estimate(
    one: Estimate, style: _Style, form: str = "{:,.0f}", scale: float = 1.0, unit: str = ""
) -> str:
    """`97.25 ± 0.21 %`."""
    if one is None:
        return "-"
    mean = form.format(scale * one["mean"])
    if one["high"] is None:
        return mean + unit
    half = form.format(scale * (one["high"] - one["mean"]))
    return f"{mean}{'' if style.wide else unit}{style.joint}{style.sign} {half}{unit}"


def _ratio(one: Estimate, style: _Style, runs: int) -> str:
    """`1.45 (1.38 to 1.52)`, and of how many pairs where that is not all `runs`."""
    if one is None:
        return "-"
    text = _factor(one["mean"])
    if one["low"] not in (None, one["high"]):
        text += f"{style.joint}({_factor(one['low'])} to {_factor(one['high'])})"
    return text if one["n"] == runs else f"{text}{style.joint}of {_pairs(one['n'])}"


def _seconds(one: Estimate) -> str:
    """The format of such times."""
    return "{:.2f}" if one and one["mean"] < 10 else "{:.1f}"


def _factor(value: float) -> str:
    """Two seeds may leave an interval so wide that its ends say no more than this."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else ">99"


def _pairs(count: int) -> str:
    return "1 pair" if count == 1 else f"{count} pairs"
