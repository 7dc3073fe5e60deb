"""`asyncdni advise`: does decoupling pay on these machines and links, how, and what limits it."""

from __future__ import annotations

import argparse

from rich.console import Console

from asyncdni import experiment
from asyncdni.build import make_design
from asyncdni.cli.advise_table import show
from asyncdni.cli.common import add_conditions, add_experiment, settings
from asyncdni.datasets import describe
from asyncdni.errors import ConfigError
from asyncdni.metrics.machine import cores
from asyncdni.profiling.advice import advise
from asyncdni.profiling.candidates import Scene, is_slow
from asyncdni.profiling.measurement import check_priced
from asyncdni.profiling.wire import measure_wire

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "predict every schedule on machines and links you name: which to take, and what limits it"
EXAMPLE = """\
  asyncdni advise launch/digits.toml
  asyncdni advise launch/mnist.toml --latency 20ms --workers 4 --hosts 2 --cores 8
  asyncdni advise launch/mnist-wide.toml --bandwidth 1Gbit/s --latency 200us"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_experiment(parser)
    add_conditions(parser)
    parser.add_argument(
        "--workers", metavar="N", help="at most (default: one for each stage of the network)"
    )
    parser.add_argument("--cores", metavar="C", help="of each host (default: those here)")
    parser.add_argument(
        "--hosts",
        metavar="H",
        help="which the workers share evenly, with slow links between hosts alone (default: one, "
        "or one for each worker where links are slow)",
    )
    parser.add_argument(
        "--batches", metavar="B", default="32", help="to measure the ops on (default: 32)"
    )


def run(args: argparse.Namespace) -> int:
    """Raises `ConfigError` and `DataError` before anything is measured."""
    chosen = experiment.load(args.file, settings(args))
    meta = describe(chosen.data)
    check_priced(make_design(chosen, meta, allow_import=args.allow_import))
    stages = len(chosen.stages)
    asked = _whole("--workers", args.workers) or stages
    workers = min(asked, stages)
    hosts = _whole("--hosts", args.hosts) or (workers if is_slow(chosen.links) else 1)
    here = _whole("--cores", args.cores) or cores()
    batches = _whole("--batches", args.batches) or 1
    scene = Scene(
        chosen,
        meta,
        wire=measure_wire(),
        cores=here,
        hosts=min(hosts, workers),
        batches=batches,
        allow_import=args.allow_import,
    )
    show(Console(highlight=False), scene, advise(scene, workers), asked=asked)
    return 0


def _whole(flag: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ConfigError(f"{flag} {text!r}: expected a whole number from 1")
    return int(text)
