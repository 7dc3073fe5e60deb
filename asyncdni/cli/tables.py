"""Tables on a terminal, made with rich: their common look, and the tables of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from asyncdni.launch.compare import BASELINE, ZERO
from asyncdni.report.columns import (
    COLUMNS,
    SHARES,
    SOONER,
    SPEED_UP,
    Column,
    Form,
    Row,
    accuracy_words,
    as_estimate,
    columns,
    counted,
)
from asyncdni.report.statistics import at_latency, latencies_of, latency_words
from asyncdni.report.verdict import BASELINES, SINGLE

__all__ = ["make_tables", "notes", "plain_table", "say_wrapped"]

#: Consoles of at least this width show an interval beside its mean, narrower ones below it.
_WIDE = 100
#: The most columns of ratios that fit beside other columns.
_RATIOS_MAX = 2
#: How many columns of latencies fit beside the names, by the width of each in characters.
_NAME, _COLUMN = 17, 12

#: An interval is shown as ± its longer half if that is at most so many times the shorter one.
_EVEN = 1.1

Cells = Mapping[str, Sequence[str]]  # of each column, by heading


def plain_table(first: str, headings: Iterable[str] = (), *, fold: bool = False) -> Table:
    """Make a table without lines: a column of words, which may `fold`, and columns of numbers."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=not fold, overflow="fold" if fold else "ellipsis")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def say_wrapped(console: Console, text: str) -> None:
    """Print a text, wrapped to the width of the console."""
    console.print(text, markup=False)


@dataclass(frozen=True)
class _Style:
    wide: bool
    ascii_only: bool

    @property
    def joint(self) -> str:
        """The separator between a mean and its interval."""
        return " " if self.wide else "\n"

    def cell(self, form: Form, value: Any, runs: int | None = None) -> str:
        """Format a value as `97.25 ± 0.21 %` or `1.45 (1.38 to 1.52)`, as `form` says. An uneven
        interval is always shown by its ends.

        `runs` is the greatest possible number of pairs of a ratio; a ratio of fewer pairs says so.
        """
        if value is None:
            return "-"
        one = as_estimate(value) if not isinstance(value, str) else None
        if one is None:
            return str(value)
        text, mean = form.text(one.mean), form.scale * one.mean
        if form.spread == "half" and one.high is not None and one.low is not None:
            if one.high - one.mean > _EVEN * (one.mean - one.low):  # on logarithms, and wide
                ends = form.ends(one).replace(" to ", f"{self.joint}to ")
                return f"{text}{self.joint}({ends})"
            half = form.text(one.high - one.mean, size=mean)
            text = text.removesuffix(form.unit) if self.wide else text
            return f"{text}{self.joint}{'+-' if self.ascii_only else '±'} {half}"
        if form.spread == "ends" and (ends := form.ends(one)):
            text += f"{self.joint}({ends})"
        if form.pairs and one.n != runs:
            text += f"{self.joint}of {counted(one.n, 'pair')}"
        return text


def make_tables(found: Mapping[str, Any], width: int, *, ascii_only: bool = False) -> list[Table]:
    """Make the tables of a comparison's `document`, for a console of `width` columns.

    They show speed and accuracy, the time to each target, and where CPU and time went. With several
    latencies there is a table for each measure, with a column for each latency.
    """
    if latencies_of(found):
        return _latency_tables(found, width, _Style(False, ascii_only))
    rows, style = found["rows"], _Style(width >= _WIDE, ascii_only)
    scored = any(row["test_accuracy"] for row in rows)
    names = ("samples_per_s", "test_accuracy" if scored else "test_loss", "train_s")
    tables = _beside("", rows, _cells(rows, columns(*names), style), _ratios(rows, style, SPEED_UP))
    for index in range(len(found["targets"])):
        tables += _target_tables(rows, index, style)
    return tables + _breakdown(rows, style)


def _target_tables(rows: Sequence[Row], index: int, style: _Style) -> list[Table]:
    """Make the tables of times to a target. If runs are missing, ratios say how many pairs they
    cover."""
    lines = [{**row["targets"][index], "name": row["name"], "runs": row["runs"]} for row in rows]
    cells = _cells(lines, columns("reached", "time_s", "samples"), style)
    title = f"to {accuracy_words(lines[0]['accuracy'])}"
    return _beside(title, lines, cells, _ratios(lines, style, SOONER))


def _breakdown(rows: Sequence[Row], style: _Style) -> list[Table]:
    names = ["cpu_s", "overhead_cpu", "ceiling_samples_per_s", "efficiency"]
    if any(row.get("of_roofline") for row in rows):
        names += ["roofline_samples_per_s", "of_roofline"]
    if any(row.get("disturbed") for row in rows):
        names.insert(0, "disturbed_runs")
    cells, shares = _cells(rows, columns(*names), style), _cells(rows, SHARES, style)
    if style.wide:
        return [_table("", rows, {**cells, **shares})]
    return [_table("", rows, cells), _table("", rows, shares)]


def _beside(title: str, rows: Sequence[Row], cells: Cells, ratios: Cells) -> list[Table]:
    """Make one table, or a further one for the ratios if there are many."""
    if len(ratios) <= _RATIOS_MAX:
        return [_table(title, rows, {**cells, **ratios})]
    return [_table(title, rows, cells), _table(title, rows, ratios)]


def _table(title: str, rows: Sequence[Row], cells: Cells) -> Table:
    table = plain_table(title, cells)
    for index, row in enumerate(rows):
        table.add_row(row["name"], *(values[index] for values in cells.values()))
    return table


def _cells(rows: Sequence[Row], every: Iterable[Column], style: _Style) -> dict[str, list[str]]:
    return {
        one.console.heading: [style.cell(one.console, one.of_row(row)) for row in rows]
        for one in every
        if one.console
    }


def _ratios(rows: Sequence[Row], style: _Style, column: Column) -> dict[str, list[str]]:
    """Return the columns of ratios to rows that exist."""
    form = column.console
    assert form is not None
    found = {name: [row.get(f"{column.name}{name}") for row in rows] for name in BASELINES}
    return {
        f"{form.heading}{style.joint}{name}": [
            style.cell(form, one, row["runs"]) for one, row in zip(ones, rows, strict=True)
        ]
        for name, ones in found.items()
        if any(ones)
    }


def _latency_tables(found: Mapping[str, Any], width: int, style: _Style) -> list[Table]:
    """Make the tables of latencies; latencies that don't fit the console continue in a further
    table."""
    names = ("samples_per_s", "stream_samples_per_s", "kept", "test_accuracy")
    measures: list[tuple[Column, str, int | None]]
    measures = [(column, "", None) for column in columns(*names)]
    for index, accuracy in enumerate(found["targets"]):
        measures.append((COLUMNS["time_or_reached"], accuracy_words(accuracy), index))
    measures.append((COLUMNS["efficiency"], "", None))
    fitting = max(1, (width - _NAME) // _COLUMN)
    every = latencies_of(found)
    made = []
    for column, goal, target in measures:
        for first in range(0, len(every), fitting):
            slices = {
                latency_words(one): at_latency(found, one)["rows"]
                for one in every[first : first + fitting]
            }
            made.append(_latency_table(column, goal, target, slices, style))
    return [table for table in made if table is not None]


def _latency_table(
    column: Column,
    goal: str,
    target: int | None,
    slices: Mapping[str, Sequence[Row]],
    style: _Style,
) -> Table | None:
    """Make the table of one measure. Rows without a number are left out; None if no row is left."""
    form = column.console_by_latency
    assert form is not None, column.name
    cells = []
    for rows in slices.values():
        lines = rows if target is None else [{**row, **row["targets"][target]} for row in rows]
        cells.append({line["name"]: style.cell(form, column.of_row(line)) for line in lines})
    names = [name for name in cells[0] if any(one[name] != "-" for one in cells)]
    table = plain_table(form.heading.format(goal), slices)
    for name in names:
        table.add_row(name, *(one[name] for one in cells))
    return table if names else None


# --- below the tables ----------------------------------------------------------------------------


def notes(found: Mapping[str, Any]) -> list[str]:
    """Return the sentences below the tables; the verdict comes last."""
    machine, seeds = found["machine"], found["seeds"]
    interval = "" if len(seeds) == 1 else ", 95 % intervals of the mean (Student's t)"
    cpu = machine["cpu"] or "unknown CPU"
    lines = [f"{counted(len(seeds), 'seed')}{interval}; {machine['cores']} cores, {cpu}."]
    lines += load_notes(found)
    singles = {row["name"]: row for row in found["rows"] if _is_single(row)}
    lines += map(_single_text, singles.values())
    if any(row["name"] == ZERO for row in found["rows"]):
        lines.append(f"{ZERO}: the control, with gradients of zero in place of its generators'.")
    if found["targets"]:
        lines.append(
            "time to an accuracy: training time only, up to the first of two evaluations in a row "
            "that reach it."
        )
    if latencies_of(found):
        lines += _latency_notes(found)
    elif any(row["overhead_cpu"] or row["efficiency"] for row in found["rows"]):
        lines.append(
            "overhead: CPU time outside ops. ceiling: the samples/s that the CPU times of a run's "
            f"own ops allow on {machine['cores']} cores, and how much of it was reached. roofline: "
            "what products and memory traffic alone would allow, as asyncdni profile says of each "
            "stage. The last table says how workers spent the time of training."
        )
    said = found["verdict"]
    lines += found.get("remarks") or ()
    return [*lines, *([said] if said and isinstance(said, str) else said)]


def load_notes(found: Mapping[str, Any]) -> list[str]:
    """Say of each disturbed run what disturbed it, or how quiet the machine was; nothing for a
    document of an older version."""
    runs = [run for run in found.get("runs") or () if run.get("load")]
    disturbed = [run for run in runs if run.get("disturbed")]
    lines = [f"Disturbed: {_run_title(run)}: {run['disturbed']}." for run in disturbed]
    shares = [run["load"]["others"] for run in runs]
    known = [share for share in shares if share is not None]
    if len(known) < len(runs):
        lines.append("The load of other programs was not measured: this system has no /proc/stat.")
    elif runs and not disturbed:
        most = f"{100 * max(known):.0f} %"
        lines.append(f"No run was disturbed: others took at most {most} of the cores' time.")
    return lines


def _run_title(run: Mapping[str, Any]) -> str:
    latency_s = run.get("latency_s")
    where = "" if latency_s is None else f" at {latency_words(latency_s)}"
    return f"{run['name']}{where}, seed {run['seed']}"


def _latency_notes(found: Mapping[str, Any]) -> list[str]:
    least = latency_words(latencies_of(found)[0])
    return [
        f"latency: one way, of all links between workers; {SINGLE} has none, was run once and "
        "counts for every latency.",
        f"kept: part of the samples/s at {least}, fills and drains of the pipe left out where they "
        "are known. of the ceiling: part of what the CPU times of a run's own ops and the latency "
        f"allow on {found['machine']['cores']} cores.",
    ]


def _is_single(row: Row) -> bool:
    return bool(row["name"] == SINGLE or row["name"].startswith(f"{SINGLE}-"))


def _single_text(row: Row) -> str:
    threads = row["threads"]  # None if no run of the row has ended
    count = "all BLAS threads" if threads is None else counted(threads, "BLAS thread")
    if row["name"] != SINGLE:
        return f"{row['name']}: the same with {count}."
    return (
        f"{SINGLE}: all stages in one worker process with {count}, in strict order (schedule "
        f"{BASELINE}), no other worker running: what training without asyncdni would be."
    )
