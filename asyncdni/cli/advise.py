"""`asyncdni advise`: predict whether decoupling pays on given machines and links, and what limits
it."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from asyncdni import experiment
from asyncdni.cli.common import add_conditions, add_experiment, settings
from asyncdni.cli.tables import plain_table, say_wrapped
from asyncdni.data import describe
from asyncdni.errors import ConfigError
from asyncdni.plan.build import make_design
from asyncdni.profiling.advice import Advice, Row, Setup, advise, is_slow
from asyncdni.profiling.measurement import check_priced, measure_wire
from asyncdni.profiling.prediction import Prediction, likely_range
from asyncdni.report.columns import counted
from asyncdni.report.load import TAKEN_MAX, read_cores, taken
from asyncdni.report.machine import cores

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run", "show"]

#: A gain below this is within the errors of predicted ratios, which were up to 12 % where they were
#: checked (benchmarks/scale, a quiet machine).
_PAYS = 1.15
_EQUAL = 1 / _PAYS
_CAVEAT = (
    "Predicted from what ops and messages cost on this machine just now: throughput only. In 24 "
    "settings on a quiet machine of two cores real runs reached 0.80 to 1.22 times the predicted "
    "speed (benchmarks/scale): hence the ranges. Other processors have other costs. Accuracy is "
    "not predicted: `asyncdni compare` measures what a schedule does to it."
)


def show(
    console: Console, setup: Setup, advice: Advice, *, asked: int, others: float | None = None
) -> None:
    """Print the predictions as a table, and a verdict in words.

    `asked` is the number of workers that the user allows; there are never more than stages.
    `others` is the share of the cores' time that other programs took meanwhile, None if unknown.
    """
    stages = len(setup.chosen.stages)
    workers = min(asked, stages)
    if asked > stages:
        say_wrapped(
            console,
            f"The network has {counted(stages, 'stage')}: {counted(asked, 'worker')} can't all "
            f"have one, so {workers} are used. Cut its layers into more stages to use more.",
        )
    say_wrapped(console, f"Predicted for {_place(setup, workers)}:\n")
    console.print(_table(advice, others))
    for row in advice.rows:
        if row.refused:
            say_wrapped(console, f"{row.name} is not possible: {row.refused}")
    say_wrapped(console, "\n" + _verdict(advice))
    if others is not None and others > TAKEN_MAX:
        say_wrapped(
            console,
            f"The machine was busy: other programs took {100 * others:.0f} % of the cores' time "
            "meanwhile. So the ranges are wide, and this is a guess: ask again when nothing else "
            "runs.",
        )
    say_wrapped(console, _limit(advice, setup))
    greedy = next((row for row in advice.rows if row.schedule == "local_loss"), None)
    if greedy and greedy.prediction and _rate(greedy) > _rate(advice.best):
        say_wrapped(
            console, f"local_loss is faster still, but learns greedily: see the table. {_CAVEAT}"
        )
    else:
        say_wrapped(console, _CAVEAT)


def _place(setup: Setup, workers: int) -> str:
    links = setup.chosen.links
    text = f"{counted(workers, 'worker')} on {counted(setup.hosts, 'host')} of "
    text += counted(setup.cores, "core")
    said = [f"{key} {getattr(links, key)}" for key in ("latency", "jitter", "bandwidth")]
    asked = [one for one in said if not one.endswith((" ", " 0ms"))]
    if asked:
        text += f", links {'between hosts ' if setup.hosts < workers else ''}of {', '.join(asked)}"
    elif is_slow(links):
        text += ", links as in the file"
    return text


# --- table ---------------------------------------------------------------------------------------


def _table(advice: Advice, others: float | None) -> Table:
    table = plain_table("schedule")
    table.add_column("split", overflow="fold")
    for heading in ("samples/s", "x locked", "idle %", "staleness"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("limited by", overflow="fold")
    locked = next((row for row in advice.rows if row.name == "locked"), advice.alone)
    for row in advice.rows:
        if row.prediction is not None:
            table.add_row(*_cells(row, row.prediction, _rate(locked), others))
    return table


def _cells(row: Row, found: Prediction, locked: float, others: float | None) -> list[str]:
    low, high = likely_range(found.samples_per_s, others)
    return [
        row.name,
        _split(found.split),
        f"{_short(low)} to {_short(high)}",
        f"{found.samples_per_s / locked:.2f}",
        f"{100 * sum(found.idle.values()) / len(found.idle):.0f}",
        f"{max(one or 0.0 for one in found.staleness.values()):.1f}",
        _limiting(found),
    ]


def _rounded(rate: float) -> str:
    """Return `26,000` for 26,123: two digits mean something at most."""
    return f"{float(f'{rate:.2g}'):,.0f}"


def _short(rate: float) -> str:
    """Return `26k` for 26,123, and `1.2M` for a million and a fifth."""
    rounded = float(f"{rate:.2g}")
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if rounded >= size:
            return f"{rounded / size:g}{letter}"
    return f"{rounded:g}"


def _limiting(found: Prediction) -> str:
    if found.limit == "worker":
        return "its own work" if len(found.split) == 1 else found.slowest
    return found.limit


def _split(split: Sequence[int]) -> str:
    """Write a split as `1 + 1 + 2`, or as `6 x 1` where many equal sizes follow each other."""
    runs = [(size, len(list(run))) for size, run in itertools.groupby(split)]
    return " + ".join(
        f"{many} x {size}" if many > 2 else " + ".join([str(size)] * many) for size, many in runs
    )


# --- words ---------------------------------------------------------------------------------------


def _verdict(advice: Advice) -> str:
    decoupled, waiting = advice.decoupled, advice.waiting
    if decoupled is None:
        if len(advice.rows) == 1:
            return "There is one worker, so there is nothing to decouple."
        return f"Whether decoupling pays is not known. Best is {_described(advice.best)}."
    gain = _rate(decoupled) / _rate(waiting)
    if gain >= _PAYS:
        return (
            f"Decoupling pays here: {_described(decoupled)} is {gain:.1f} times as fast as the "
            f"best schedule that waits for gradients, {_described(waiting)}."
        )
    if gain >= _EQUAL:
        return (
            f"Decoupling gains little here: {_described(decoupled)} is about as fast as "
            f"{_described(waiting)}, which waits for gradients."
        )
    return (
        f"Decoupling doesn't pay here: take {_described(waiting)}; the fastest with decoupling is "
        f"{_described(decoupled)}."
    )


def _described(row: Row) -> str:
    """Describe a row: synthetic over 4 workers (run.split = [1, 3]; about 80,000 samples/s)."""
    assert row.prediction is not None
    rate = f"about {_rounded(_rate(row))} samples/s"
    if row.workers == 1:
        return f"one worker with all stages ({rate})"
    split = list(row.prediction.split)
    named = f"run.split = {split}" if any(size > 1 for size in split) else "a stage each"
    name = row.name.removesuffix(f", {row.workers} workers")
    return f"{name} over {row.workers} workers ({named}; {rate})"


def _limit(advice: Advice, setup: Setup) -> str:
    found = advice.best.prediction
    assert found is not None
    works = f"{1e3 * found.work_s[found.slowest]:.2f} ms of work a batch"
    total = f"{1e3 * sum(found.work_s.values()):.2f} ms"
    words = {
        "worker": f"the slowest worker, {found.slowest} with {works}; split its stages, or make "
        "them smaller",
        "cores": f"the cores: a batch takes {total} of work in all, on "
        f"{counted(setup.hosts, 'host')} of {counted(setup.cores, 'core')}",
        "latency": "the latency of the links",
        "bandwidth": "the bandwidth of the links",
        "locking": "waiting: workers wait for each other's activations and gradients",
    }
    return f"What limits {advice.best.name}: {words[advice.limit]}."


def _rate(row: Row) -> float:
    assert row.prediction is not None
    return row.prediction.samples_per_s


HELP = "predict every schedule on machines and links you name: which to take, and what limits it"
EXAMPLE = """\
  asyncdni advise launch/digits.toml
  asyncdni advise launch/mnist.toml --latency 20ms --workers 4 --hosts 2 --cores 8
  asyncdni advise launch/mnist-wide.toml --bandwidth 1Gbit/s --latency 200us"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_experiment(parser)
    add_conditions(parser)
    parser.add_argument(
        "--workers", metavar="N", help="the most workers to use (default: one for each stage)"
    )
    parser.add_argument("--cores", metavar="C", help="cores of each host (default: those here)")
    parser.add_argument(
        "--hosts",
        metavar="H",
        help="hosts that share the workers evenly, with slow links between hosts only (default: "
        "one, or one for each worker if links are slow)",
    )
    parser.add_argument(
        "--batches", metavar="B", default="16", help="batches to measure ops on (default: 16)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, predict and print. Raises `ConfigError` and `DataError` before anything is
    measured."""
    given = experiment.load(args.file, settings(args))
    meta = describe(given.data)
    design = make_design(given, meta, allow_import=args.allow_import)
    check_priced(design)
    chosen = design.experiment  # a `[model]` is cut into its stages there
    stages = len(chosen.stages)
    asked = _whole("--workers", args.workers) or stages
    workers = min(asked, stages)
    hosts = _whole("--hosts", args.hosts) or (workers if is_slow(chosen.links) else 1)
    here = _whole("--cores", args.cores) or cores()
    batches = _whole("--batches", args.batches) or 1
    first = read_cores()
    setup = Setup(
        chosen,
        meta,
        wire=measure_wire(),
        cores=here,
        hosts=min(hosts, workers),
        batches=batches,
        allow_import=args.allow_import,
    )
    found = advise(setup, workers)
    others, _ = taken(first, read_cores(), cores())
    show(Console(highlight=False), setup, found, asked=asked, others=others)
    return 0


def _whole(flag: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ConfigError(f"{flag} {text!r}: expected a whole number from 1")
    return int(text)
