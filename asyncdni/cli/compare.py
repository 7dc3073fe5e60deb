"""`asyncdni compare`: train the same network by several schedules, and compare the results."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from asyncdni.cli.common import (
    add_conditions,
    add_experiment,
    add_init,
    add_logging,
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
from asyncdni.launch.budget import (
    Budget,
    Cost,
    Deadline,
    OutOfTime,
    parse_budget,
    shortened_sentence,
)
from asyncdni.launch.compare import (
    COMPARISON,
    Entry,
    discard_run,
    discard_unfinished,
    document,
    finished_runs,
    limited,
    plan_runs,
    planned_before,
    remarks_before,
    run_entry,
)
from asyncdni.launch.conduct import Observer
from asyncdni.launch.display import make_display, say
from asyncdni.page.excerpt import Excerpt
from asyncdni.page.state import RunState
from asyncdni.report.columns import counted
from asyncdni.report.load import REPEATS_MAX, disturbance, fastest
from asyncdni.report.machine import cores
from asyncdni.report.statistics import Result
from asyncdni.store.tensors import write_atomically

if TYPE_CHECKING:
    from asyncdni.page.server import Page

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "train the same network by several schedules, and in a single process, and compare"
EXAMPLE = """\
  asyncdni compare launch/digits.toml --schedules locked,synthetic --budget 2min
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
    _add_limits(parser)
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
    add_logging(parser)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--budget",
        metavar="TIME",
        help="take no longer than this time, such as 90s, 2min or 1h: if need be, with fewer seeds "
        "and epochs",
    )
    parser.add_argument(
        "--repeats",
        type=_number,
        default=REPEATS_MAX,
        metavar="N",
        help="repeat a run up to N times if other programs have disturbed it "
        f"(default: {REPEATS_MAX}; none after a run that stays disturbed)",
    )


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
    budget = None
    if args.budget is not None:
        budget = Budget(args.budget, parse_budget(args.budget), time.monotonic())
    if budget and args.resume is not None:
        seeds, epochs, batches = planned_before(_resumed_folder(args))
        entries = _planned(args, seeds, [f"run.epochs={epochs}"])
        entries = entries if batches is None else limited(entries, batches)
    else:
        entries = _planned(args, args.seeds)
    check_json(args.json)
    # With `--json -` standard output is for the JSON only.
    console = Console(stderr=args.json == "-", highlight=False)
    with _new_folder(args) if args.resume is None else _old_folder(args, entries) as folder:
        finished = [] if args.resume is None else finished_runs(folder, entries)
        discard_unfinished(folder, entries, finished)
        going = _Comparison(args, folder, console, entries, list(finished), budget, args.repeats)
        going.remarks += [] if args.resume is None else remarks_before(folder)
        with page_for(args) as going.page:
            found = going.run_all()
        _report(args, found, folder, console)
    return 0


def _planned(args: argparse.Namespace, seeds: int, further: Sequence[str] = ()) -> list[Entry]:
    """Plan the runs over so many seeds, with `further` settings."""
    return plan_runs(
        args.file,
        [*settings(args), *further],
        args.schedules,
        seeds,
        cores=cores(),
        single_threads=args.single_threads,
        zero_control=args.zero_control,
        evaluate_every=args.evaluate_every,
        latencies=args.latencies,
        allow_import=args.allow_import,
    )


@dataclass
class _Comparison:
    """A comparison that is being made in `folder`: its runs, and the results so far."""

    args: argparse.Namespace
    folder: Path
    console: Console
    entries: list[Entry]
    results: list[Result]
    budget: Budget | None
    repeats: int  # how many times a disturbed run is repeated from now on
    page: Page | None = None
    remarks: list[str] = field(default_factory=list)
    costs: dict[str, Cost] = field(default_factory=dict)  # by run, without its seed

    def run_all(self) -> dict[str, Any]:
        """Train the unfinished runs; return the document of all runs.

        Meanwhile DIR/compare.json always holds the document of the runs so far.
        """
        self._write()
        if self.results:
            kept = f"{len(self.results)} of {len(self.entries)} runs are finished already"
            self._say(f"{kept}, in {self.folder}")
        if self.budget and self.args.resume is None:
            self._try_out(self.budget)
        for number, entry in enumerate(self.entries, 1):
            if self._result(entry):
                continue
            if not self._fits([entry]) or not self._once(number, entry):
                break
            self._repeat(number, entry)
        if self.budget and self._unfinished():
            discard_unfinished(self.folder, self.entries, self.results)
            self._say(
                f"The time budget of {self.budget.text} ended after {len(self.results)} of "
                f"{len(self.entries)} runs; the same command with --resume {self.folder} makes "
                "the others."
            )
        return self._write()

    def _once(
        self, number: int, entry: Entry, limit_s: float | None = None, repeats: int = 0
    ) -> bool:
        """Make one run and keep its result; return False if it was stopped by the budget, or after
        `limit_s` seconds."""
        title = f"run {number} of {len(self.entries)}: {entry.title}"
        deadline = Deadline(self.budget.end_s, limit_s) if self.budget else None
        place = self.folder / entry.folder
        with (
            make_display(self.args.quiet, self.console, title=title) as display,
            shown_on(self.page, entry.title, place) as shown,
        ):
            state = shown[0] if shown else RunState(entry.title, place, live=True)
            excerpt = Excerpt(state)
            observers: list[Observer] = [display, state, excerpt, *([deadline] if deadline else [])]
            allowed = self.args.allow_import
            try:
                result = run_entry(entry, self.folder, observers, allow_import=allowed)
            except KeyboardInterrupt as error:
                runs = len(self.results), len(self.entries)
                raise _interrupted(error, *runs, self.folder) from error
            except OutOfTime:
                result = None
            if deadline and (cost := deadline.cost()):
                self.costs[_row(entry)] = cost
            if result is None:
                return False
            excerpt.write(place)
            display.finish(result.summary, place)
        assert result.load is not None
        self.results.append(replace(result, load=replace(result.load, repeats=repeats)))
        self._write()
        return True

    # --- disturbed runs

    def _repeat(self, number: int, entry: Entry) -> None:
        """Make a run again while it is disturbed, as often as is allowed and the budget lets."""
        for repeat in range(1, self.repeats + 1):
            found = self._result(entry)
            reason = self._disturbed(found) if found else ""
            if not found or not reason:
                return
            if not self._fits([entry, *self._unfinished()]):
                self._remark(
                    f"{entry.title} was disturbed; the budget leaves no time to repeat it."
                )
                return
            self._say(
                f"{entry.title} was disturbed: {reason}. It is made again, repeat {repeat} of at "
                f"most {self.repeats}."
            )
            self.results.remove(found)
            discard_run(self.folder, entry)
            if not self._once(number, entry, repeats=repeat):
                return
        found = self._result(entry)
        if self.repeats and found and self._disturbed(found):
            self._remark(
                f"{entry.title} was still disturbed after {counted(self.repeats, 'repeat')}, so "
                "later runs were not repeated."
            )
            self.repeats = 0

    def _disturbed(self, result: Result) -> str:
        return disturbance(result.load, fastest(one.load for one in self.results))

    # --- time budget

    def _try_out(self, budget: Budget) -> None:
        """Make the first seed's runs within their part of the budget, and plan fewer seeds and
        epochs, or a part of one, if it is too small for all."""
        first = [entry for entry in self.entries if entry.seed == self.entries[0].seed]
        asked = self.args.seeds, first[0].epochs
        limit_s = budget.trial_s(len(first))
        for number, entry in enumerate(first, 1):
            if self.costs and not budget.tries:
                break
            if not self._once(number, entry, limit_s) and _row(entry) not in self.costs:
                raise ConfigError(
                    f"--budget {budget.text}: it ended before {entry.title} had begun to train; "
                    "give more time"
                )
        costliest = max(self.costs.values(), key=lambda cost: cost.seconds(1))
        costs = [self.costs.get(_row(entry), costliest) for entry in first]
        whole = len(self.results) == len(first)
        given = budget.shortened(costs, *asked, whole=whole)
        if not whole:
            self.results.clear()
            discard_unfinished(self.folder, self.entries, [])
        if not whole or given != asked:
            self.entries = self._shortened(given[0], given[1], asked[1])
        if given != asked:
            given = given[0], self.entries[0].epochs
            self._remark(shortened_sentence(budget.text, asked, given))
        for number, entry in enumerate(self.entries, 1):
            if self._result(entry):
                self._repeat(number, entry)

    def _shortened(self, seeds: int, epochs: float, asked: float) -> list[Entry]:
        """Plan the runs over so many seeds and epochs; `asked` epochs were asked for."""
        if epochs == asked:
            return _planned(self.args, seeds)
        whole = max(1, math.ceil(epochs))
        entries = _planned(self.args, seeds, [f"run.epochs={whole}"])
        return entries if epochs == whole else limited(entries, int(epochs * entries[0].batches))

    def _fits(self, entries: Sequence[Entry]) -> bool:
        """Tell whether the budget has time for these runs, by what such runs have cost so far."""
        if self.budget is None:
            return True
        known = [(self.costs.get(_row(one)), one.epochs) for one in entries]
        least_s = sum(cost.seconds(epochs) for cost, epochs in known if cost)
        return self.budget.left_s > max(0.0, least_s)

    # --- results

    def _result(self, entry: Entry) -> Result | None:
        return next((one for one in self.results if one.key == entry.key), None)

    def _unfinished(self) -> list[Entry]:
        return [entry for entry in self.entries if self._result(entry) is None]

    def _write(self) -> dict[str, Any]:
        order = {entry.key: index for index, entry in enumerate(self.entries)}
        results = sorted(self.results, key=lambda one: order[one.key])
        found = document(self.entries, results, self.args.target_accuracy, self.remarks)
        write_atomically(self.folder / COMPARISON, (json.dumps(found, indent=2) + "\n").encode())
        return found

    def _remark(self, text: str) -> None:
        """Say something that the report has to say too."""
        self.remarks.append(text)
        self._say(text)

    def _say(self, text: str) -> None:
        if not self.args.quiet:
            say(self.console, text)


def _row(entry: Entry) -> str:
    """Return what runs of other seeds have in common with this one."""
    return f"{entry.name}{entry.latency_s}"


def _interrupted(error: KeyboardInterrupt, finished: int, runs: int, folder: Path) -> Interrupted:
    stop = Interrupted(
        f"interrupted; finished runs: {finished} of {runs}, in {folder}; to go on, give the "
        f"same command with --resume {folder}, which begins the unfinished run again"
    )
    if isinstance(error.__cause__, Interrupted):
        stop.exit_code = error.__cause__.exit_code
    return stop


def _report(
    args: argparse.Namespace, found: dict[str, Any], folder: Path, console: Console
) -> None:
    from asyncdni.page.comparison import write_reports
    from asyncdni.report import plots

    allowed = args.allow_import
    try:
        written = write_reports(found, folder, allow_import=allowed)
    except AsyncDNIError:
        raise
    except Exception as error:  # drawing needs fonts and caches, which may be missing
        say(console, f"No plots: {type(error).__name__}: {' | '.join(str(error).splitlines())}")
        written = write_reports(found, folder, plots=False, allow_import=allowed)
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


def _number(text: str, least: int = 0) -> int:
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"{text}: expected at least {least}")
    return number


def _count(text: str) -> int:
    return _number(text, 1)


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
