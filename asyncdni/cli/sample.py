"""`asyncdni sample`: print or draw what a trained network generates."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from asyncdni.cli.common import add_allow_import
from asyncdni.errors import ConfigError
from asyncdni.report import plots
from asyncdni.report.album import write_curve, write_images, write_reconstructions
from asyncdni.sampling import (
    continue_curve,
    continue_text,
    draw_images,
    has_prior,
    reconstruct,
    tells_characters,
    tells_points,
)
from asyncdni.store.run import Result, open_run

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "continue a text or a curve, or draw images, with the weights of a run folder"
EXAMPLE = """\
  asyncdni sample runs/shakespeare-synthetic --prompt "ROMEO:" --length 300 --temperature 0.7
  asyncdni sample runs/trigonometry-locked --length 100
  asyncdni sample runs/vae-locked --count 64 --out pictures"""

#: For each kind of run, its flags and their defaults.
_FLAGS: dict[str, dict[str, Any]] = {
    "a text": {"length": 500, "prompt": "", "temperature": 1.0, "seed": 0},
    "a curve": {"length": 100},
    "an autoencoder": {"count": 60, "seed": 0},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a run folder")
    parser.add_argument("--weights", choices=("final", "best"), default="final")
    parser.add_argument(
        "--length", type=int, metavar="N", help="how many characters (500) or points (100)"
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", help="what the text begins with (default: the end of a line)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="how freely each character is drawn; 0: always the likeliest (default: 1)",
    )
    parser.add_argument("--count", type=int, metavar="N", help="how many images (default: 60)")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of random draws (default: 0)")
    parser.add_argument(
        "--out", metavar="FOLDER", help="where pictures and tables go (default: DIR)"
    )
    add_allow_import(parser, help="import layers given as module:Class")


def run(args: argparse.Namespace) -> int:
    trained = open_run(args.folder, args.weights)
    out = Path(args.out or args.folder)
    if tells_characters(trained):
        _text(trained, args)
    elif tells_points(trained):
        _curve(trained, args, out)
    elif has_prior(trained):
        _images(trained, args, out)
    else:
        raise ConfigError(
            f"{args.folder}: nothing can be sampled from it: its data, "
            f"{trained.experiment.data.__struct_config__.tag}, are neither a text nor a curve, and "
            "it is no autoencoder with a gaussian layer; evaluate and predict can be used"
        )
    return 0


def _text(trained: Result, args: argparse.Namespace) -> None:
    flags = _flags(args, "a text")
    if args.out is not None:
        raise ConfigError("--out: a text is written to standard output")
    text = continue_text(trained, **flags, allow_import=args.allow_import)
    sys.stdout.write(f"{flags['prompt']}{text}\n")


def _curve(trained: Result, args: argparse.Namespace, out: Path) -> None:
    flags = _flags(args, "a curve")
    curve = continue_curve(trained, **flags, allow_import=args.allow_import)
    count, error = len(curve.generated), curve.error
    print(f"{count} points from the first {curve.given}: mean absolute error {error:.4f}")
    _say(list(write_curve(out, curve)))
    if not plots.available():
        print(plots.MISSING_EXTRA)


def _images(trained: Result, args: argparse.Namespace, out: Path) -> None:
    flags = _flags(args, "an autoencoder")
    if not plots.available():
        raise ConfigError(
            "images are drawn with matplotlib, which is not installed: pip install 'asyncdni[plot]'"
        )
    images = draw_images(trained, **flags, allow_import=args.allow_import)
    made = reconstruct(trained, allow_import=args.allow_import)
    _say([*write_images(out, images), *write_reconstructions(out, made)])


def _flags(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Return the flags of this kind of run, with defaults. Raises `ConfigError` for those of
    another."""
    own = _FLAGS[kind]
    for flag in dict.fromkeys(flag for flags in _FLAGS.values() for flag in flags):
        if flag not in own and getattr(args, flag) is not None:
            fitting = ", ".join(f"--{name}" for name in own)
            raise ConfigError(
                f"--{flag}: {args.folder} is a run of {kind}, where it means nothing; expected "
                f"{fitting}"
            )
    given = {flag: getattr(args, flag) for flag in own}
    return {flag: own[flag] if value is None else value for flag, value in given.items()}


def _say(files: list[Path]) -> None:
    for file in files:
        print(file)
