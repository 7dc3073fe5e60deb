"""`asyncdni evaluate`: evaluate a trained network on its test set."""

from __future__ import annotations

import argparse
import json

from asyncdni.cli.common import add_allow_import, warnings_said
from asyncdni.evaluation import evaluate
from asyncdni.report.columns import metric_words
from asyncdni.store.run import open_run

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "evaluate the weights of a run folder on its test set"
EXAMPLE = """\
  asyncdni evaluate runs/digits-synthetic
  asyncdni evaluate runs/digits-synthetic --weights best --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a run folder")
    parser.add_argument("--weights", choices=("final", "best"), default="final")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_allow_import(parser, help="import layers given as module:Class")


def run(args: argparse.Namespace) -> int:
    with warnings_said():
        result = evaluate(open_run(args.folder, args.weights), allow_import=args.allow_import)
    if args.json:
        print(json.dumps(result))
        return 0
    accuracy = result["accuracy"]
    shown = "" if accuracy is None else f"accuracy {accuracy:.4f}, "
    more = "".join(f"{text}, " for text in metric_words(result.get("metrics", {})))
    loss = f"loss {result['loss']:.4f}, {more}"
    print(f"{args.weights} weights: {shown}{loss}{result['samples']} samples")
    return 0
