"""`asyncdni compare`: the same training by several schedules, and what it comes to."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from asyncdni.cli.common import add_experiment, free_folder
from asyncdni.cli.display import make_display, say
from asyncdni.comparison import (
    BASELINE,
    Entry,
    document,
    plan_runs,
    run_entry,
    single_text,
)
from asyncdni.errors import ConfigError, Interrupted
from asyncdni.metrics.comparison import Result
from asyncdni.metrics.machine import cores
from asyncdni.weights import write_atomically

__all__ = ["EXAMPLE", "HELP", "add_arguments", "make_table", "run"]

HELP = "train the same network by several schedules, and in a single process, and compare"
EXAMPLE = """\
  asyncdni compare launch/digits.toml --schedules locked,synthetic --seeds 3
  asyncdni compare launch/digits.toml --set run.epochs=20 --json - --quiet > comparison.json"""

#: From this width on an interval stands beside its mean, not below it.
_WIDE = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_experiment(parser)
    parser.add_argument(
        "--schedules",
        default="locked,synthetic",
        metavar="NAME,NAME",
        help="which to compare with a single process (default: locked,synthetic)",
    )
    parser.add_argument(
        "--seeds",
        type=_count,
        default=2,
        metavar="N",
        help="runs of each, with seeds counted up from the file's (default: 2)",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="folder of all runs, new or empty (default: under runs/)"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the comparison there too; -: to standard output"
    )
    parser.add_argument("--quiet", action="store_true", help="show nothing but errors")


def run(args: argparse.Namespace) -> int:
    entries = plan_runs(
        args.file,
        args.set,
        [name.strip() for name in args.schedules.split(",") if name.strip()],
        args.seeds,
        cores=cores(),
        allow_import=args.allow_import,
    )
    _check_json(args.json)
    folder = _make_folder(args)
    # With `--json -` standard output belongs to the JSON alone.
    console = Console(stderr=args.json == "-", highlight=False)
    found = _run_all(entries, folder, console, quiet=args.quiet, allow_import=args.allow_import)
    if not args.quiet:
        _show(console, found, folder)
    text = json.dumps(found, indent=2) + "\n"
    if args.json == "-":
        sys.stdout.write(text)
    elif args.json:
        write_atomically(Path(args.json), text.encode())
    return 0


def _run_all(
    entries: Sequence[Entry], folder: Path, console: Console, *, quiet: bool, allow_import: bool
) -> dict[str, Any]:
    """The document of all runs; DIR/compare.json holds that of the runs so far after each."""
    results: list[Result] = []
    found: dict[str, Any] = {}
    for number, entry in enumerate(entries, 1):
        title = f"run {number} of {len(entries)}: {entry.name}, seed {entry.seed}"
        with make_display(quiet, console, title=title) as display:
            try:
                result = run_entry(entry, folder, [display], allow_import=allow_import)
            except (Interrupted, KeyboardInterrupt) as error:
                text = f"{str(error) or 'interrupted'}; finished runs: {len(results)}"
                raise Interrupted(f"{text} of {len(entries)}, in {folder}") from error
            display.finish(result.summary, folder / entry.folder)
        results.append(result)
        found = document(entries, results)
        write_atomically(folder / "compare.json", (json.dumps(found, indent=2) + "\n").encode())
    return found


# --- the table -----------------------------------------------------------------------------------


def make_table(found: dict[str, Any], width: int, *, ascii_only: bool = False) -> Table:
    """The rows of `document`, for a console of `width` columns."""
    sign, joint = "+-" if ascii_only else "±", " " if width >= _WIDE else "\n"
    speedup = f"speedup_over_{BASELINE}"
    scored = any(row["test_accuracy"] for row in found["rows"])
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    quality = "test accuracy" if scored else "test loss"
    for heading in ("samples/s", quality, "training", "CPU", f"times {BASELINE}"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found["rows"]:
        table.add_row(
            row["name"],
            _with_interval(row["samples_per_s"], "{:,.0f}", sign, joint),
            _with_interval(row["test_accuracy"], "{:.2f}", sign, joint, 100.0, " %")
            if scored
            else _with_interval(row["test_loss"], "{:.4f}", sign, joint),
            _with_interval(row["train_s"], "{:.1f}", "", "", unit=" s"),
            _with_interval(row["cpu_s"], "{:.1f}", "", "", unit=" s"),
            _range(row[speedup], joint),
        )
    return table


def _with_interval(
    one: dict[str, Any] | None,
    form: str,
    sign: str,
    joint: str,
    scale: float = 1.0,
    unit: str = "",
) -> str:
    """`97.25 ± 0.21 %`; without `sign` the mean alone."""
    if one is None:
        return "-"
    mean = form.format(scale * one["mean"])
    if not sign or one["high"] is None:
        return mean + unit
    half = form.format(scale * (one["high"] - one["mean"]))
    return f"{mean}{unit if joint != ' ' else ''}{joint}{sign} {half}{unit}"


def _range(one: dict[str, Any] | None, joint: str) -> str:
    """`1.45 (1.38 to 1.52)`."""
    if one is None:
        return "-"
    mean = f"{one['mean']:.2f}"
    return (
        mean
        if one["low"] in (None, one["high"])
        else f"{mean}{joint}({one['low']:.2f} to {one['high']:.2f})"
    )


def _show(console: Console, found: dict[str, Any], folder: Path) -> None:
    machine, seeds = found["machine"], found["seeds"]
    ascii_only = console.options.ascii_only
    console.print()
    console.print(make_table(found, console.width, ascii_only=ascii_only))
    console.print()
    interval = "" if len(seeds) == 1 else ", 95 % intervals of the mean (Student's t)"
    runs = "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    lines = (
        f"{runs}{interval}; {machine['cores']} cores, {machine['cpu'] or 'unknown CPU'}.",
        single_text(found["rows"][-1]["threads"]),
        *found["verdict"],
    )
    for line in lines:
        console.print(line, markup=False, highlight=False)
    say(console, f"All runs and compare.json are in {folder}")


# --- arguments -----------------------------------------------------------------------------------


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return number


def _check_json(path: str | None) -> None:
    """Before hours of training, not after."""
    if path and path != "-" and not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"--json {path}: there is no folder {Path(path).parent}; create it first")


def _make_folder(args: argparse.Namespace) -> Path:
    name = f"{Path(args.file).stem}-compare"
    folder = Path(args.out) if args.out else free_folder(Path("runs"), name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"--out {folder}: can't be written: {error.strerror}") from error
    if taken:
        raise ConfigError(f"--out {folder}: the folder is not empty; expected a new or empty one")
    return folder
