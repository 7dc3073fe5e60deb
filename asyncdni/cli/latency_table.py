"""What `asyncdni compare` prints of several latencies: a table a measure, a column a latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from asyncdni.metrics.latencies import at_latency, latencies_of, latency_words
from asyncdni.metrics.phrases import accuracy_words

__all__ = ["make_latency_tables"]

Row = Mapping[str, Any]  # one of a comparison's `document`
Cell = Callable[[Row], str]
#: Columns that fit beside the names, by the characters that each takes.
_NAME, _COLUMN = 17, 12


def make_latency_tables(
    found: Mapping[str, Any], width: int, *, ascii_only: bool = False
) -> list[Table]:
    """Of a `document` of several latencies: speed, accuracy and the time to each target.

    Means with half of their 95 % intervals below. Where the latencies don't fit the console beside
    each other, they go on in a further table.
    """
    sign = "+-" if ascii_only else "±"
    measures: dict[str, Cell] = {
        "samples/s": lambda row: _estimate(row["samples_per_s"], "{:,.0f}", 1.0, sign),
        "without drains": lambda row: _estimate(row["stream_samples_per_s"], "{:,.0f}", 1.0, sign),
        "kept": lambda row: _percent(row["kept_stream_samples_per_s"] or row["kept_samples_per_s"]),
        "accuracy, %": lambda row: _estimate(row["test_accuracy"], "{:.2f}", 100.0, sign),
    }
    for index, accuracy in enumerate(found["targets"]):
        measures[f"s to {accuracy_words(accuracy)}"] = _time(index, sign)
    measures["of the ceiling"] = lambda row: _percent(row["efficiency"])
    fitting = max(1, (width - _NAME) // _COLUMN)
    every = latencies_of(found)
    return [
        table
        for heading, cell in measures.items()
        for first in range(0, len(every), fitting)
        for table in _table(heading, found, every[first : first + fitting], cell)
    ]


def _table(
    heading: str, found: Mapping[str, Any], latencies: Sequence[float], cell: Cell
) -> list[Table]:
    """None at all where no row has such a number."""
    columns = [
        {row["name"]: cell(row) for row in at_latency(found, one)["rows"]} for one in latencies
    ]
    names = [name for name in columns[0] if any(column[name] != "-" for column in columns)]
    if not names:
        return []
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column(heading, no_wrap=True)
    for one in latencies:
        table.add_column(latency_words(one), justify="right", no_wrap=True)
    for name in names:
        table.add_row(name, *(column[name] for column in columns))
    return [table]


def _time(index: int, sign: str) -> Cell:
    """Where not every run is there, how many are."""

    def cell(row: Row) -> str:
        target = row["targets"][index]
        if target["time_s"] is not None:
            return _estimate(target["time_s"], "{:.2f}", 1.0, sign)
        return f"{target['reached']} of {row['runs']}" if row["runs"] else "-"

    return cell


def _estimate(one: Mapping[str, Any] | None, form: str, scale: float, sign: str) -> str:
    if one is None:
        return "-"
    mean = form.format(scale * one["mean"])
    if one["high"] is None:
        return mean
    return f"{mean}\n{sign} {form.format(scale * (one['high'] - one['mean']))}"


def _percent(one: Mapping[str, Any] | None) -> str:
    return "-" if one is None else f"{100 * one['mean']:.3g} %"
