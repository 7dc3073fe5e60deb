"""`asyncdni compare`: train the same network by several schedules, and compare the results."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from asyncdni.cli.common import (
    add_conditions,
    add_experiment,
    add_init,
    add_page,
    check_json,
    new_folder,
    page_for,
    settings,
    shown_on,
)
from asyncdni.cli.tables import make_tables, notes
from asyncdni.errors import AsyncDNIError, ConfigError, Interrupted
from asyncdni.files import LOCK, locked
from asyncdni.launch.compare import (
    COMPARISON,
    Entry,
    discard_unfinished,
    document,
    finished_runs,
    plan_runs,
    run_entry,
)
from asyncdni.launch.display import make_display, say
from asyncdni.report.machine import cores
from asyncdni.report.statistics import Result
from asyncdni.store.tensors import write_atomically

if TYPE_CHECKING:
    from asyncdni.page.server import Page

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

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
        help="schedules to compare with a single process, of locked, gpipe, 1f1b, delayed, "
        "local_loss and synthetic (default: locked,synthetic)",
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
        help="runs of each schedule, with consecutive seeds from the file's on (default: 2)",
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
    add_page(parser)
    parser.add_argument("--quiet", action="store_true", help="show nothing but errors")


def _add_rows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--single-threads",
        type=_counts,
        default=[],
        metavar="N,N",
        help="compare also with a single process of N BLAS threads; one with all cores always runs",
    )
    parser.add_argument(
        "--zero-control",
        action="store_true",
        help="run synthetic also with generators that always predict zero, as a control",
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
    # With `--json -` standard output is for the JSON only.
    console = Console(stderr=args.json == "-", highlight=False)
    with _new_folder(args) if args.resume is None else _old_folder(args, entries) as folder:
        finished = [] if args.resume is None else finished_runs(folder, entries)
        discard_unfinished(folder, entries, finished)
        with page_for(args) as page:
            found = _run_all(args, entries, finished, folder, console, page)
        _report(args, found, folder, console)
    return 0


def _run_all(
    args: argparse.Namespace,
    entries: Sequence[Entry],
    finished: Sequence[Result],
    folder: Path,
    console: Console,
    page: Page | None,
) -> dict[str, Any]:
    """Train the unfinished runs; return the document of all runs.

    Meanwhile DIR/compare.json always holds the document of the runs so far.
    """
    results = list(finished)
    found = _write(entries, results, args.target_accuracy, folder)
    kept = {one.key for one in finished}
    if kept and not args.quiet:
        say(console, f"{len(kept)} of {len(entries)} runs are finished already, in {folder}")
    for number, entry in enumerate(entries, 1):
        if entry.key in kept:
            continue
        title = f"run {number} of {len(entries)}: {entry.title}"
        place = folder / entry.folder
        with (
            make_display(args.quiet, console, title=title) as display,
            shown_on(page, entry.title, place) as shown,
        ):
            try:
                result = run_entry(entry, folder, [display, *shown], allow_import=args.allow_import)
            except KeyboardInterrupt as error:
                raise _interrupted(error, len(results), len(entries), folder) from error
            display.finish(result.summary, place)
        results.append(result)
        found = _write(entries, results, args.target_accuracy, folder)
    return found


def _interrupted(error: KeyboardInterrupt, finished: int, runs: int, folder: Path) -> Interrupted:
    stop = Interrupted(
        f"interrupted; finished runs: {finished} of {runs}, in {folder}; to go on, give the "
        f"same command with --resume {folder}, which begins the unfinished run again"
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
    from asyncdni.report import plots
    from asyncdni.report.page import write_reports

    try:
        written = write_reports(found, folder)
    except AsyncDNIError:
        raise
    except Exception as error:  # drawing needs fonts and caches, which may be missing
        say(console, f"No plots: {type(error).__name__}: {' | '.join(str(error).splitlines())}")
        written = write_reports(found, folder, plots=False)
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
    """Parse accuracies from 0 to 1, or in percent, and sort them."""
    return sorted({_accuracy(part.strip()) for part in text.split(",")})


def _accuracy(text: str) -> float:
    try:
        # Decimal, so that 97.4% equals 0.974 and 9740 of 10,000 exactly.
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
    finished_runs(folder, entries)  # raises `ConfigError` if it is not of this comparison
    with locked(folder):
        yield folder


def _resumed_folder(args: argparse.Namespace) -> Path:
    named = [path for path in (args.resume, args.out) if path]
    if not named:
        raise ConfigError("--resume: which comparison? Give its folder: --resume DIR")
    if len({Path(path).resolve() for path in named}) > 1:
        raise ConfigError(f"--resume {named[0]}, --out {named[1]}: two folders, expected one")
    return Path(named[0])
