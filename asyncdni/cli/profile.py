"""`asyncdni profile`: what each op of each stage costs here, and what speed that allows."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from asyncdni import experiment
from asyncdni.build import make_design
from asyncdni.cli.common import add_experiment, check_json
from asyncdni.cli.profile_tables import show
from asyncdni.datasets import describe
from asyncdni.errors import ConfigError
from asyncdni.metrics.machine import cores
from asyncdni.profiling.measurement import measure
from asyncdni.profiling.report import document
from asyncdni.weights import write_atomically

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

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
