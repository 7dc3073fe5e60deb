"""`asyncdni graph`: the network of an experiment as a table, and as a graph for Graphviz."""

from __future__ import annotations

import argparse
from pathlib import Path

from asyncdni import experiment
from asyncdni.cli.common import add_experiment
from asyncdni.datasets import describe as describe_data
from asyncdni.describe import describe, dot
from asyncdni.network import make_network
from asyncdni.weights import write_atomically

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "show the stages of a network: inputs, layers, shapes and parameters"
EXAMPLE = """\
  asyncdni graph launch/digits.toml
  asyncdni graph launch/digits.toml --dot digits.dot
  then, with Graphviz:  dot -Tsvg digits.dot > digits.svg"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_experiment(parser)
    parser.add_argument("--dot", metavar="FILE", help="write the graph in Graphviz' language")


def run(args: argparse.Namespace) -> int:
    chosen = experiment.load(args.file, args.set)
    network = make_network(chosen, describe_data(chosen.data), allow_import=args.allow_import)
    print(describe(network, allow_import=args.allow_import), end="")
    if args.dot:
        write_atomically(Path(args.dot), dot(network).encode())
    return 0
