"""`asyncdni compare`: the same training by several schedules, and what it comes to."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from asyncdni.cli.common import (
    add_conditions,
    add_experiment,
    add_init,
    check_json,
    new_folder,
    settings,
)
from asyncdni.cli.display import make_display, say
from asyncdni.errors import AsyncDNIError, ConfigError, Interrupted
from asyncdni.files import LOCK, locked
from asyncdni.launch.compare import (
    BASELINE,
    COMPARISON,
    ZERO,
    Entry,
    discard_unfinished,
    document,
    finished_runs,
    plan_runs,
    run_entry,
)
from asyncdni.report.breakdown import SHARES
from asyncdni.report.machine import cores
from asyncdni.report.statistics import Result, at_latency, latencies_of, latency_words
from asyncdni.report.verdict import BASELINES, SINGLE, accuracy_words
from asyncdni.store.tensors import write_atomically

__all__ = ["EXAMPLE", "HELP", "add_arguments", "make_latency_tables", "make_tables", "notes", "run"]

# --- latency table -------------------------------------------------------------------------------
#
# What `asyncdni compare` prints of several latencies: a table a measure, a column a latency.

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
        "samples/s": lambda row: _latency_estimate(row["samples_per_s"], "{:,.0f}", 1.0, sign),
        "without drains": lambda row: _latency_estimate(
            row["stream_samples_per_s"], "{:,.0f}", 1.0, sign
        ),
        "kept": lambda row: _percent(row["kept_stream_samples_per_s"] or row["kept_samples_per_s"]),
        "accuracy, %": lambda row: _latency_estimate(row["test_accuracy"], "{:.2f}", 100.0, sign),
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
        for table in _latency_table(heading, found, every[first : first + fitting], cell)
    ]


def _latency_table(
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
            return _latency_estimate(target["time_s"], "{:.2f}", 1.0, sign)
        return f"{target['reached']} of {row['runs']}" if row["runs"] else "-"

    return cell


def _latency_estimate(one: Mapping[str, Any] | None, form: str, scale: float, sign: str) -> str:
    if one is None:
        return "-"
    mean = form.format(scale * one["mean"])
    if one["high"] is None:
        return mean
    return f"{mean}\n{sign} {form.format(scale * (one['high'] - one['mean']))}"


def _percent(one: Mapping[str, Any] | None) -> str:
    return "-" if one is None else f"{100 * one['mean']:.3g} %"


# --- comparison table ----------------------------------------------------------------------------
#
# What `asyncdni compare` prints at its end: tables that fit 80 columns, and what they mean.

#: From this width on an interval stands beside its mean, not below it.
_WIDE = 100
#: Beside so many columns of ratios there is room for others.
_RATIOS_MAX = 2

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


HELP = "train the same network by several schedules, and in a single process, and compare"
EXAMPLE = """\
  asyncdni compare launch/digits.toml --schedules locked,synthetic --seeds 5
  asyncdni compare launch/mnist.toml --seeds 5 --target-accuracy 97%,97.5% --evaluate-every 10000
  asyncdni compare launch/digits.toml --schedules locked,1f1b,synthetic --latencies 0ms,10ms,50ms
  asyncdni compare launch/digits.toml --set run.epochs=20 --json - --quiet > comparison.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_experiment(parser)
    parser.add_argument(
        "--schedules",
        type=_texts,
        default="locked,synthetic",
        metavar="NAME,NAME",
        help="which to compare with a single process, of locked, gpipe, 1f1b, delayed, local_loss "
        "and synthetic (default: locked,synthetic)",
    )
    parser.add_argument(
        "--latencies",
        "--latency",
        type=_texts,
        default=[],
        metavar="TIME,TIME",
        help="compare at each of these one-way latencies of all links between workers, such as "
        "0ms,10ms (default: as in the file)",
    )
    add_conditions(parser, latency=False)
    add_init(parser)
    parser.add_argument(
        "--seeds",
        type=_count,
        default=2,
        metavar="N",
        help="runs of each, with seeds counted up from the file's (default: 2)",
    )
    _add_rows(parser)
    _add_targets(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="folder of all runs, new or empty (default: under runs/)"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="DIR",
        help="go on with the comparison in that folder (default: the one of --out)",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the comparison there too; -: to standard output"
    )
    parser.add_argument("--quiet", action="store_true", help="show nothing but errors")


def _add_rows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--single-threads",
        type=_counts,
        default=[],
        metavar="N,N",
        help="compare with a single process of N BLAS threads too; one with all cores always is",
    )
    parser.add_argument(
        "--zero-control",
        action="store_true",
        help="run synthetic with generators that always predict zero too, as a control",
    )


def _add_targets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target-accuracy",
        type=_accuracies,
        default=[],
        metavar="A,A",
        help="measure the training time to each of these test accuracies: 0.975 or 97.5%%",
    )
    parser.add_argument(
        "--evaluate-every",
        type=_count,
        metavar="N",
        help="samples between evaluations, which take no training time (default: as in the file)",
    )


def run(args: argparse.Namespace) -> int:
    entries = plan_runs(
        args.file,
        settings(args),
        args.schedules,
        args.seeds,
        cores=cores(),
        single_threads=args.single_threads,
        zero_control=args.zero_control,
        evaluate_every=args.evaluate_every,
        latencies=args.latencies,
        allow_import=args.allow_import,
    )
    check_json(args.json)
    # With `--json -` standard output belongs to the JSON alone.
    console = Console(stderr=args.json == "-", highlight=False)
    with _new_folder(args) if args.resume is None else _old_folder(args, entries) as folder:
        finished = [] if args.resume is None else finished_runs(folder, entries)
        discard_unfinished(folder, entries, finished)
        found = _run_all(args, entries, finished, folder, console)
        _report(args, found, folder, console)
    return 0


def _run_all(
    args: argparse.Namespace,
    entries: Sequence[Entry],
    finished: Sequence[Result],
    folder: Path,
    console: Console,
) -> dict[str, Any]:
    """The document of all runs; DIR/compare.json holds that of the runs so far at any time."""
    results = list(finished)
    found = _write(entries, results, args.target_accuracy, folder)
    kept = {(one.name, one.latency_s, one.seed) for one in finished}
    if kept and not args.quiet:
        say(console, f"{len(kept)} of {len(entries)} runs are finished already, in {folder}")
    for number, entry in enumerate(entries, 1):
        if entry.key in kept:
            continue
        title = f"run {number} of {len(entries)}: {entry.title}"
        with make_display(args.quiet, console, title=title) as display:
            try:
                result = run_entry(entry, folder, [display], allow_import=args.allow_import)
            except KeyboardInterrupt as error:
                raise _interrupted(error, len(results), len(entries), folder) from error
            display.finish(result.summary, folder / entry.folder)
        results.append(result)
        found = _write(entries, results, args.target_accuracy, folder)
    return found


def _interrupted(error: KeyboardInterrupt, finished: int, runs: int, folder: Path) -> Interrupted:
    stop = Interrupted(
        f"interrupted; finished runs: {finished} of {runs}, in {folder}; the same command with "
        f"--resume {folder} goes on, and does the one under way again"
    )
    if isinstance(error.__cause__, Interrupted):
        stop.exit_code = error.__cause__.exit_code
    return stop


def _write(
    entries: Sequence[Entry], results: Sequence[Result], targets: Sequence[float], folder: Path
) -> dict[str, Any]:
    found = document(entries, results, targets)
    write_atomically(folder / COMPARISON, (json.dumps(found, indent=2) + "\n").encode())
    return found


def _report(
    args: argparse.Namespace, found: dict[str, Any], folder: Path, console: Console
) -> None:
    from asyncdni import report
    from asyncdni.report import plots

    try:
        written = report.write_reports(found, folder)
    except AsyncDNIError:
        raise
    except Exception as error:  # drawing needs fonts, caches and more of the user's machine
        say(console, f"No plots: {type(error).__name__}: {' | '.join(str(error).splitlines())}")
        written = report.write_reports(found, folder, plots=False)
    if not args.quiet:
        _show(console, found)
        names = dict.fromkeys(path.relative_to(folder).parts[0] for path in written)
        if not plots.available():
            say(console, plots.MISSING_EXTRA)
        say(console, f"All runs, {COMPARISON}, {', '.join(names)} are in {folder}")
    text = json.dumps(found, indent=2) + "\n"
    if args.json == "-":
        sys.stdout.write(text)
    elif args.json:
        write_atomically(Path(args.json), text.encode())


def _show(console: Console, found: dict[str, Any]) -> None:
    for table in make_tables(found, console.width, ascii_only=console.options.ascii_only):
        console.print()
        console.print(table)
    console.print()
    for line in notes(found):
        console.print(line, markup=False, highlight=False)


# --- arguments -----------------------------------------------------------------------------------


def _texts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return number


def _counts(text: str) -> list[int]:
    try:
        return [_count(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected numbers, such as 1,2") from None


def _accuracies(text: str) -> list[float]:
    """Parts of one, or percent; rising."""
    return sorted({_accuracy(part.strip()) for part in text.split(",")})


def _accuracy(text: str) -> float:
    try:
        # Decimal, so that 97.4% is the same number as 0.974, and as 9740 right out of 10,000.
        found = float(Decimal(text[:-1]) / 100 if text.endswith("%") else Decimal(text))
    except InvalidOperation:
        found = 0.0
    if not 0 < found <= 1:
        raise argparse.ArgumentTypeError(
            f"{text}: expected an accuracy above 0 and up to 1 (or 100%), such as 0.975 or 97.5%"
        )
    return found


@contextmanager
def _new_folder(args: argparse.Namespace) -> Iterator[Path]:
    if not args.out:
        with new_folder(Path("runs"), f"{Path(args.file).stem}-compare") as made, locked(made):
            yield made
        return
    folder = Path(args.out)
    _check_empty(folder)  # before anything is written to it
    with locked(folder):
        _check_empty(folder)
        yield folder


def _check_empty(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(path.name != LOCK for path in folder.iterdir())
    except OSError as error:
        raise ConfigError(f"--out {folder}: can't be written: {error.strerror}") from error
    if taken:
        raise ConfigError(
            f"--out {folder}: the folder is not empty; expected a new or empty one, or --resume "
            "to go on with the comparison in it"
        )


@contextmanager
def _old_folder(args: argparse.Namespace, entries: Sequence[Entry]) -> Iterator[Path]:
    folder = _resumed_folder(args)
    finished_runs(folder, entries)  # raises `ConfigError` for what is no folder of this comparison
    with locked(folder):
        yield folder


def _resumed_folder(args: argparse.Namespace) -> Path:
    named = [path for path in (args.resume, args.out) if path]
    if not named:
        raise ConfigError("--resume: which comparison? Give its folder: --resume DIR")
    if len({Path(path).resolve() for path in named}) > 1:
        raise ConfigError(f"--resume {named[0]}, --out {named[1]}: two folders, expected one")
    return Path(named[0])
