"""`asyncdni explain`: what an experiment file may hold, as docs/reference.md has it."""

from __future__ import annotations

import argparse

from asyncdni.reference import explain

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "explain an option, a layer, a schedule or anything else that an experiment file may name"
EXAMPLE = """\
  asyncdni explain generator.error
  asyncdni explain run.split
  asyncdni explain layer"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        default="",
        help="a table (run), a kind (generator.error), a group of kinds (layer) or an option "
        "(run.split); without it, all names are listed",
    )


def run(args: argparse.Namespace) -> int:
    """Print the explanation. Raises `ConfigError` for an unknown name."""
    print(explain(args.name))
    return 0
