"""`asyncdni coordinator`: wait for workers that are started by hand, on any hosts, and train."""

from __future__ import annotations

import argparse
from pathlib import Path

from asyncdni import experiment
from asyncdni.cli.common import add_conditions, add_experiment, settings
from asyncdni.cli.display import make_display
from asyncdni.training import conduct, design_of

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "coordinate a run whose workers are started by hand, in any order, on any hosts"
EXAMPLE = """\
  asyncdni coordinator launch/digits.toml --bind tcp://0.0.0.0:5555 --out runs/by-hand
  then, for each stage:  asyncdni worker --stage 0 --coordinator tcp://HOST:5555"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_experiment(parser)
    parser.add_argument(
        "--bind", required=True, metavar="ADDRESS", help="tcp://HOST:PORT or ipc://"
    )
    parser.add_argument("--schedule", metavar="NAME", help="instead of the file's")
    parser.add_argument("--seed", type=int, metavar="N", help="instead of the file's")
    add_conditions(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="run folder; each worker writes its weights to this path on its own host, so that "
        "over several hosts it must be a shared folder, or the weights copied here by hand: the "
        "run ends with an error that names those missing (default: nothing is written)",
    )
    parser.add_argument("--quiet", action="store_true", help="show nothing but errors")


def run(args: argparse.Namespace) -> int:
    chosen = experiment.load(args.file, settings(args), schedule=args.schedule, seed=args.seed)
    design = design_of(chosen, allow_import=args.allow_import)
    folder = Path(args.out) if args.out else None
    with make_display(quiet=args.quiet) as display:
        summary = conduct(design, args.bind, folder, observers=[display])
        display.finish(summary, folder)
    return 0
