"""`asyncdni profile`: what each op of each stage costs here, and what speed that allows."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from asyncdni import experiment
from asyncdni.cli.common import add_experiment, check_json
from asyncdni.data import describe
from asyncdni.drivers.virtual.costs import SENDING
from asyncdni.errors import ConfigError
from asyncdni.messages import DATA
from asyncdni.plan.build import make_design
from asyncdni.profiling.measurement import measure
from asyncdni.profiling.report import document
from asyncdni.report.machine import cores
from asyncdni.schedules import SCHEDULES
from asyncdni.store.tensors import write_atomically

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run", "show"]

# --- profile tables ------------------------------------------------------------------------------
#
# How `asyncdni profile` shows its document: three tables, and what follows from them in words.

_US = 1e6
#: Columns of the table in the order of training, and their headings where they differ.
_OPS = ("R", "F", "P", "B", SENDING, "b", "W", "U", "T", "C")
_HEADINGS = {SENDING: "B+send"}
#: Ceilings as near as this to each other are the same.
_NEAR = 0.99


def show(console: Console, found: Mapping[str, Any]) -> None:
    """`found` is what `profiling.report.document` gives."""
    micro = "us" if console.options.ascii_only else "µs"
    _say(console, f"CPU time of each op on a batch of {found['batch_size']}, in {micro}:")
    console.print(_ops_table(found))
    _say(console, _notes(found))
    _say(console, "\nBytes of each message, tensors + header:")
    console.print(_messages_table(found))
    _say(console, f"\nCeilings in samples/s on {_cores(found['cores'])} (times single):")
    console.print(_splits_table(found, micro))
    for line in _verdict(found, micro):
        _say(console, line)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False)


# --- tables --------------------------------------------------------------------------------------


def _table(*headings: str) -> Table:
    """The first column has words, the others numbers."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column(headings[0], overflow="fold")
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _ops_table(found: Mapping[str, Any]) -> Table:
    """Stages by ops, and what a batch costs a worker that has this stage alone."""
    stages = found["stages"]
    used = [one for one in _OPS if any(one in stage["ops"] for stage in stages)]
    schedules = list(stages[0]["batch_s"])
    table = _table("stage", *(_HEADINGS.get(one, one) for one in used), *schedules)
    for stage in stages:
        ops = [stage["ops"].get(letter) for letter in used]
        medians = [_us(one["median_s"]) if one else "-" for one in ops]
        table.add_row(stage["name"], *medians, *(_us(stage["batch_s"][one]) for one in schedules))
    return table


def _messages_table(found: Mapping[str, Any]) -> Table:
    """Consumers of one node all get the same, and give back as much."""
    down, back = _by(found["edges"], "activation", "sender"), _by(found["edges"], "gradient", "to")
    parameters = {stage["name"]: stage["parameters"] for stage in found["stages"]}
    table = _table("stage", "parameters", "activation", "gradient back")
    for name in [*([DATA] if DATA in down else []), *parameters]:
        count = f"{parameters[name]:,}" if name in parameters else "-"
        table.add_row(name, count, _bytes(down.get(name)), _bytes(back.get(name)))
    return table


def _by(edges: Sequence[Mapping[str, Any]], kind: str, end: str) -> dict[str, Mapping[str, Any]]:
    return {edge[end]: edge for edge in edges if edge["kind"] == kind}


def _splits_table(found: Mapping[str, Any], micro: str) -> Table:
    """The best split over each number of workers."""
    schedules = list(found["given"]["schedules"])
    table = _table("best split", "workers", f"slowest, {micro}", *schedules)
    for split in found["splits"]:
        ceilings = split["schedules"]
        own = ceilings[schedules[-1]]
        table.add_row(
            _split(split),
            str(split["workers"]),
            _us(own["worker_s"][own["slowest"]]),
            *(
                f"{ceilings[one]['samples_per_s']:,.0f} ({ceilings[one]['speed_up']:.2f})"
                for one in schedules
            ),
        )
    return table


# --- words ---------------------------------------------------------------------------------------


def _notes(found: Mapping[str, Any]) -> str:
    ops = {letter for stage in found["stages"] for letter in stage["ops"]}
    text = ""
    if SENDING in ops:
        text += "B+send computes the gradient of the inputs too. "
    if "b" in ops:
        text += (
            "b computes that gradient alone, W those of the weights afterwards: between stages of "
            "one worker both are one backward. "
        )
    if found["microbatches"] > 1:
        text += (
            f"This is a microbatch, {found['microbatches']} of which make one update (U); figures "
            "of single and locked are for batches of this size too. "
        )
    if found["fit_every"] > 1:
        rare = [_HEADINGS.get(one, one) for one in (SENDING, "b", "T", "C") if one in ops]
        text += (
            f"Under synthetic only every {_ordinal(found['fit_every'])} batch sends gradients: no "
            f"{', '.join(rare)} on the others. "
        )
    return text + _spread(found["stages"])


def _spread(stages: Sequence[Mapping[str, Any]]) -> str:
    """How far apart the quarters are."""
    shares = [
        ((one["high_s"] - one["low_s"]) / one["median_s"], f"{letter} of {stage['name']}")
        for stage in stages
        for letter, one in stage["ops"].items()
        if one["median_s"] > 0
    ]
    middle, (widest, where) = sorted(shares)[len(shares) // 2][0], max(shares)
    return (
        f"Medians; the middle half of an op's measurements spans {100 * middle:.0f} % of it (at "
        f"most {100 * widest:.0f} %, {where})."
    )


def _verdict(found: Mapping[str, Any], micro: str) -> list[str]:
    """On the experiment's own split, and on the one to take instead."""
    single, given = found["single"], found["given"]
    lines = [
        f"\nsingle (one process, one thread): {_us(single['batch_s'])} {micro} a batch, at most "
        f"{single['samples_per_s']:,.0f} samples/s."
    ]
    for name, one in given["schedules"].items():
        lines.append(
            f"{name} over {_split(given)}: at most {one['samples_per_s']:,.0f} samples/s, "
            f"{one['speed_up']:.2f} times single. {_limits(name, one, found['cores'], micro)}"
        )
    if len(given["schedules"]) == 1:
        lines.append(
            "The experiment is locked; --set schedule.name=synthetic profiles its generators."
        )
    else:
        lines.append(_fewest(found["splits"], list(given["schedules"])[-1]))
    return [*lines, f"Ceilings, not forecasts: {'; '.join(found['left_out'])}."]


def _fewest(splits: Sequence[Mapping[str, Any]], name: str) -> str:
    """More workers than these would only send more messages."""
    rates = [split["schedules"][name]["samples_per_s"] for split in splits]
    first = next(one for one, rate in zip(splits, rates, strict=True) if rate >= _NEAR * max(rates))
    return f"For the highest ceiling of {name} above, take run.split = {first['split']}."


def _limits(name: str, one: Mapping[str, Any], count: int, micro: str) -> str:
    """What a faster run would need more of."""
    needs = f"{one['slowest']} with {_us(one['worker_s'][one['slowest']])} {micro} a batch"
    if one["limit"] == "worker":
        return f"The slowest worker limits it: {needs}."
    if one["limit"] == "cores":
        work = f"{_us(one['total_s'])} {micro} of work a batch"
        return f"{_cores(count)} for {work} limit it; slowest worker: {needs}."
    return f"Locking limits it: {SCHEDULES[name].waits_for}."


def _split(split: Mapping[str, Any]) -> str:
    return " + ".join(map(str, split["split"]))


def _us(seconds: float) -> str:
    return f"{seconds * _US:,.0f}"


def _bytes(edge: Mapping[str, Any] | None) -> str:
    return f"{edge['tensor_bytes']:,} + {edge['header_bytes']}" if edge else "-"


def _cores(count: int) -> str:
    return "1 core" if count == 1 else f"{count} cores"


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if 10 <= number % 100 <= 13 else ending}"


HELP = "measure every op of every stage, and tell how fast each schedule and split could be"
EXAMPLE = """\
  asyncdni profile launch/digits.toml
  asyncdni profile launch/mnist-wide.toml --set schedule.fit_every=8 --workers 2 --workers 4
  asyncdni profile launch/digits.toml --cores 8 --json profile.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_experiment(parser)
    parser.add_argument(
        "--batches",
        type=_count,
        default=100,
        metavar="N",
        help="training batches of each schedule to measure (default: 100)",
    )
    parser.add_argument(
        "--workers",
        type=_count,
        action="append",
        metavar="W",
        help="find the best split over W workers; may be given several times (default: 1, 2, … "
        "up to the number of stages)",
    )
    parser.add_argument(
        "--cores", type=_count, metavar="N", help="ceilings for N cores (default: those here)"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write all figures there too; -: to standard output"
    )


def run(args: argparse.Namespace) -> int:
    """Raises `ConfigError` and `DataError` before anything is measured."""
    chosen = experiment.load(args.file, args.set)
    design = make_design(chosen, describe(chosen.data), allow_import=args.allow_import)
    workers = _workers(args.workers, len(design.network.nodes))
    check_json(args.json)
    measured = measure(design, args.batches)
    found = document(design, measured, cores=args.cores or cores(), workers=workers)
    text = json.dumps(found, indent=2) + "\n"
    if args.json and args.json != "-":  # first: whoever reads the tables may not read to their end
        write_atomically(Path(args.json), text.encode())
    # With `--json -` standard output belongs to the JSON alone.
    show(Console(stderr=args.json == "-", highlight=False), found)
    if args.json == "-":
        sys.stdout.write(text)
    return 0


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return number


def _workers(given: Sequence[int] | None, stages: int) -> list[int]:
    wanted = sorted(set(given or range(1, stages + 1)))
    if wanted[-1] > stages:
        raise ConfigError(
            f"--workers {wanted[-1]}: expected at most {stages}, one for each stage of the network"
        )
    return wanted
