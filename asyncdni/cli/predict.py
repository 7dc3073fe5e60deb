"""`asyncdni predict`: compute a trained network's outputs for the inputs in a file."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np

from asyncdni.cli.common import add_allow_import, warnings_said
from asyncdni.data.npz import read_one
from asyncdni.evaluation import predict
from asyncdni.store.run import open_run
from asyncdni.store.tensors import write_atomically

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "write a trained network's outputs for the inputs x of an .npz file"
EXAMPLE = """\
  asyncdni predict runs/digits-synthetic images.npz --out outputs.npz
  where images.npz holds x, shaped as the training inputs; outputs.npz then holds one array for
  each stage with a loss (for cross_entropy: logits) and `label`, the largest of the last one"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a run folder")
    parser.add_argument("input", metavar="INPUT.npz", help="array x (or x_test)")
    parser.add_argument("--out", required=True, metavar="OUT.npz")
    parser.add_argument("--weights", choices=("final", "best"), default="final")
    add_allow_import(parser, help="import layers given as module:Class")


def run(args: argparse.Namespace) -> int:
    trained = open_run(args.folder, args.weights)
    x = read_one(Path(args.input), ("x", "x_test"))
    with warnings_said():
        outputs = predict(trained, x, allow_import=args.allow_import)
    arrays = dict(outputs)
    last = list(outputs)[-1]
    losses = {stage.name: stage.loss for stage in trained.experiment.stages}
    if losses[last] == "cross_entropy":
        arrays["label"] = outputs[last].argmax(axis=-1)
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_atomically(Path(args.out), content.getvalue())
    shown = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    print(f"{args.out}: {shown}")
    return 0
