"""`asyncdni graph`: show the network of an experiment as tables, and draw it with Graphviz."""

from __future__ import annotations

import argparse
from pathlib import Path

from asyncdni import experiment
from asyncdni.cli.common import add_experiment
from asyncdni.data import describe as describe_data
from asyncdni.errors import ConfigError
from asyncdni.plan.build import Design, make_design
from asyncdni.plan.describe import (
    FORMATS,
    describe,
    describe_flops,
    describe_links,
    describe_workers,
    dot,
    draw,
)
from asyncdni.store.tensors import write_atomically

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "show the graph of a network: stages, shapes, parameters, workers, FLOPs, links"
EXAMPLE = """\
  asyncdni graph launch/digits.toml
  asyncdni graph launch/digits.toml --split 2,2 --out digits.svg
  asyncdni graph launch/digits.toml --out digits.dot
  the last one without Graphviz, for any program that reads its language"""

_TEXTS = ("dot", "gv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_experiment(parser)
    parser.add_argument(
        "--split",
        metavar="N,N,…",
        help="stages of each worker, in place of the file's run.split (default: one each)",
    )
    parser.add_argument(
        "--out",
        "--dot",
        metavar="FILE",
        help="write the graph too: .dot or .gv in Graphviz' language, or, drawn by Graphviz, "
        + ", ".join(f".{form}" for form in FORMATS),
    )


def run(args: argparse.Namespace) -> int:
    form = _form(args.out) if args.out else None
    changes = [*args.set, *([f"run.split={_split(args.split)}"] if args.split else [])]
    chosen = experiment.load(args.file, changes)
    design = make_design(chosen, describe_data(chosen.data), allow_import=args.allow_import)
    if form is not None:
        write_atomically(Path(args.out), _content(design, form))
    print(describe(design.network, allow_import=args.allow_import))
    print(describe_workers(design))
    print(describe_flops(design), end="")
    if links := describe_links(design):
        print(f"\n{links}", end="")
    return 0


def _form(out: str) -> str:
    form = Path(out).suffix.removeprefix(".").lower()
    if form not in (*_TEXTS, *FORMATS):
        known = ", ".join(f".{one}" for one in (*_TEXTS, *FORMATS))
        raise ConfigError(f"--out {out}: expected a name that ends in one of {known}")
    return form


def _split(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"--split {text!r}: expected stages of each worker, such as 2,1,1")
    return [int(part) for part in parts]


def _content(design: Design, form: str) -> bytes:
    text = dot(design)
    return text.encode() if form in _TEXTS else draw(text, form)
