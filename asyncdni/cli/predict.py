"""`asyncdni predict`: outputs of a trained network for inputs in a file."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np

from asyncdni.errors import DataError
from asyncdni.evaluation import predict
from asyncdni.files import read_file
from asyncdni.run import open_run
from asyncdni.weights import write_atomically

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
    parser.add_argument(
        "--allow-import", action="store_true", help="import layers given as module:Class"
    )


def run(args: argparse.Namespace) -> int:
    trained = open_run(args.folder, args.weights)
    outputs = predict(trained, _read(Path(args.input)), allow_import=args.allow_import)
    arrays = dict(outputs)
    last = list(outputs)[-1]
    losses = {stage.name: stage.loss for stage in trained.experiment.stages}
    if losses[last] == "cross_entropy":
        arrays["label"] = outputs[last].argmax(axis=1)
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_atomically(Path(args.out), content.getvalue())
    shown = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    print(f"{args.out}: {shown}")
    return 0


def _read(path: Path) -> np.ndarray:
    try:
        loaded = np.load(io.BytesIO(read_file(path)), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise DataError(
                f"{path} holds one array without a name; expected an .npz file with an array x, "
                "as numpy.savez(path, x=…) writes it"
            )
        with loaded as archive:
            for name in ("x", "x_test"):
                if name in archive:
                    return np.asarray(archive[name])
            found = ", ".join(archive.files) or "nothing"
    except FileNotFoundError:
        raise DataError(f"no file {path}") from None
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is no .npz file of plain arrays: {error}") from error
    except Exception as error:  # zipfile and zlib have errors of their own
        raise DataError(f"{path} can't be read: {error}") from error
    raise DataError(f"{path} holds {found}, expected an array x")
