"""`asyncdni profile`: measure what each op of each stage costs here, and what speed that allows."""

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
from asyncdni.cli.tables import plain_table, say_wrapped
from asyncdni.data import describe
from asyncdni.drivers.virtual.costs import SENDING
from asyncdni.errors import ConfigError
from asyncdni.messages import DATA
from asyncdni.plan.build import make_design
from asyncdni.profiling.measurement import measure
from asyncdni.profiling.report import document
from asyncdni.profiling.roofline import arithmetic_of
from asyncdni.report.columns import counted
from asyncdni.report.machine import cores
from asyncdni.schedules import SCHEDULES
from asyncdni.store.tensors import write_atomically

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run", "show"]

_US = 1e6
#: Columns of the table in the order of training, and headings that differ from their names.
_OPS = ("R", "F", "P", "B", SENDING, "b", "W", "U", "T", "C")
_HEADINGS = {SENDING: "B+send"}
_UNKNOWN = "a layer does not say how many FLOPs it takes (by a method flops; see docs/adding.md)"
_MEANT = (
    "Products: FLOPs of matrix products and convolutions at the measured speed of a product of "
    "that shape; the rest is all else, a generator's work too. Traffic: what the layers and the "
    "optimizer must read and write, at the measured speed of copying as much. The roofline is the "
    "longer of products and traffic, without generators."
)
#: Ceilings that differ by less than this share count as equal.
_NEAR = 0.99


def show(console: Console, found: Mapping[str, Any]) -> None:
    """Print four tables, and conclusions in words.

    `found` is the result of `profiling.report.document`.
    """
    micro = "us" if console.options.ascii_only else "µs"
    say_wrapped(console, f"CPU time of each op on a batch of {found['batch_size']}, in {micro}:")
    console.print(_ops_table(found))
    say_wrapped(console, _notes(found))
    _show_roofline(console, found, micro)
    say_wrapped(console, "\nBytes of each message, tensors + header:")
    console.print(_messages_table(found))
    say_wrapped(
        console, f"\nCeilings in samples/s on {counted(found['cores'], 'core')} (times single):"
    )
    console.print(_splits_table(found, micro))
    for line in _verdict(found, micro):
        say_wrapped(console, line)


# --- tables --------------------------------------------------------------------------------------


def _ops_table(found: Mapping[str, Any]) -> Table:
    """Make a table with a row for each stage: its ops, and the cost of a batch if a worker has this
    stage only."""
    stages = found["stages"]
    used = [one for one in _OPS if any(one in stage["ops"] for stage in stages)]
    schedules = list(stages[0]["batch_s"])
    table = plain_table(
        "stage", [*(_HEADINGS.get(one, one) for one in used), *schedules], fold=True
    )
    for stage in stages:
        ops = [stage["ops"].get(letter) for letter in used]
        medians = [_us(one["median_s"]) if one else "-" for one in ops]
        table.add_row(stage["name"], *medians, *(_us(stage["batch_s"][one]) for one in schedules))
    return table


def _show_roofline(console: Console, found: Mapping[str, Any], micro: str) -> None:
    """Print a table with a row for each stage: what a batch takes of the machine, under the
    experiment's own schedule."""
    own = list(found["given"]["schedules"])[-1]
    if any(stage["roofline"] is None for stage in found["stages"]):
        say_wrapped(console, f"\nNo rooflines: {_UNKNOWN}.")
        return
    say_wrapped(
        console,
        f"\nA batch under {own}: millions of FLOPs, {micro} in products and in the rest, MB moved "
        f"and {micro} for that, and the roofline:",
    )
    headings = ["forward", "backward", "products", "rest", "MB", "traffic", "roofline"]
    table = plain_table("stage", headings, fold=True)
    for stage in found["stages"]:
        part, batch_s = stage["roofline"][own], stage["batch_s"][own]
        table.add_row(
            stage["name"],
            *(f"{1e-6 * stage['flops'][way]:,.1f}" for way in ("forward", "backward")),
            _us(part["products_s"]),
            _us(max(0.0, batch_s - part["products_s"])),
            f"{1e-6 * part['traffic_bytes']:,.2f}",
            _us(part["traffic_s"]),
            _us(part["roofline_s"]),
        )
    console.print(table)
    say_wrapped(console, _MEANT)


def _messages_table(found: Mapping[str, Any]) -> Table:
    """Make a table with a row for each node; all its consumers receive the same tensors and return
    as many bytes."""
    down, back = _by(found["edges"], "activation", "sender"), _by(found["edges"], "gradient", "to")
    parameters = {stage["name"]: stage["parameters"] for stage in found["stages"]}
    table = plain_table("stage", ["parameters", "activation", "gradient back"], fold=True)
    for name in [*([DATA] if DATA in down else []), *parameters]:
        count = f"{parameters[name]:,}" if name in parameters else "-"
        table.add_row(name, count, _bytes(down.get(name)), _bytes(back.get(name)))
    return table


def _by(edges: Sequence[Mapping[str, Any]], kind: str, end: str) -> dict[str, Mapping[str, Any]]:
    return {edge[end]: edge for edge in edges if edge["kind"] == kind}


def _splits_table(found: Mapping[str, Any], micro: str) -> Table:
    """Make a table with a row for each number of workers: the best split over them."""
    schedules = list(found["given"]["schedules"])
    table = plain_table("best split", ["workers", f"slowest, {micro}", *schedules], fold=True)
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
    """Describe how far apart the quartiles of the measurements are."""
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
    """Describe what the experiment's own split allows, and which one to take instead."""
    single, given = found["single"], found["given"]
    lines = [
        f"\nsingle (one process, one thread): {_us(single['batch_s'])} {micro} a batch, at most "
        f"{single['samples_per_s']:,.0f} samples/s."
    ]
    for name, one in given["schedules"].items():
        lines.append(
            f"{name} over {_split(given)}: at most {one['samples_per_s']:,.0f} samples/s, "
            f"{one['speed_up']:.2f} times single. {_limits(name, one, found['cores'], micro)}"
            f"{_of_roofline(one)}"
        )
    if len(given["schedules"]) == 1:
        lines.append(
            "The experiment is locked; --set schedule.name=synthetic profiles its generators."
        )
    else:
        lines.append(_fewest(found["splits"], list(given["schedules"])[-1]))
    return [*lines, f"Ceilings, not forecasts: {'; '.join(found['left_out'])}."]


def _fewest(splits: Sequence[Mapping[str, Any]], name: str) -> str:
    """Describe the best split over the fewest workers: more of them would only send more
    messages."""
    rates = [split["schedules"][name]["samples_per_s"] for split in splits]
    first = next(one for one, rate in zip(splits, rates, strict=True) if rate >= _NEAR * max(rates))
    return f"For the highest ceiling of {name} above, take run.split = {first['split']}."


def _limits(name: str, one: Mapping[str, Any], count: int, micro: str) -> str:
    """Describe what limits a schedule: what a faster run would need more of."""
    needs = f"{one['slowest']} with {_us(one['worker_s'][one['slowest']])} {micro} a batch"
    if one["limit"] == "worker":
        return f"The slowest worker limits it: {needs}."
    if one["limit"] == "cores":
        work = f"{_us(one['total_s'])} {micro} of work a batch"
        return f"{counted(count, 'core')} for {work} limit it; slowest worker: {needs}."
    return f"Locking limits it: {SCHEDULES[name].waits_for}."


def _of_roofline(one: Mapping[str, Any]) -> str:
    most = one["roofline_samples_per_s"]
    if most is None:
        return ""
    share = 100 * one["samples_per_s"] / most
    return f" The roofline is {most:,.0f} samples/s; this is {share:.0f} % of it."


def _split(split: Mapping[str, Any]) -> str:
    return " + ".join(map(str, split["split"]))


def _us(seconds: float) -> str:
    return f"{seconds * _US:,.0f}"


def _bytes(edge: Mapping[str, Any] | None) -> str:
    return f"{edge['tensor_bytes']:,} + {edge['header_bytes']}" if edge else "-"


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
    """Measure and print. Raises `ConfigError` and `DataError` before anything is measured."""
    chosen = experiment.load(args.file, args.set)
    design = make_design(chosen, describe(chosen.data), allow_import=args.allow_import)
    workers = _workers(args.workers, len(design.network.nodes))
    check_json(args.json)
    measured = measure(design, args.batches)
    found = document(
        *(design, measured),
        cores=args.cores or cores(),
        workers=workers,
        arithmetic=arithmetic_of(design),
    )
    text = json.dumps(found, indent=2) + "\n"
    if args.json and args.json != "-":  # before printing, which fails if the reader goes away
        write_atomically(Path(args.json), text.encode())
    # With `--json -` standard output is for the JSON only.
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
