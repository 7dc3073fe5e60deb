"""`asyncdni timeline`: draw when each worker ran which op."""

from __future__ import annotations

import argparse

from asyncdni.errors import ConfigError
from asyncdni.report.plots import check_picture_name
from asyncdni.report.timeline import draw, panel
from asyncdni.store.run import open_run

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "draw the timeline of runs made with `train --trace`, as SVG or PNG"
EXAMPLE = """\
  asyncdni train launch/digits.toml --schedule locked --trace --out runs/a
  asyncdni train launch/digits.toml --trace --out runs/b
  asyncdni timeline runs/a runs/b --out timeline.svg --ms 20"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", metavar="DIR", nargs="+", help="run folders, one panel each")
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="FILE.svg, or FILE.png with pip install 'asyncdni[plot]'",
    )
    parser.add_argument("--ms", type=float, default=20.0, help="milliseconds shown (default: 20)")
    parser.add_argument(
        "--at",
        type=float,
        default=0.5,
        help="where in the run to begin, from 0 to 1 (default: 0.5)",
    )
    parser.add_argument(
        "--messages", action="store_true", help="a line for each activation and gradient"
    )
    parser.add_argument(
        "--animate",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="play the runs side by side in an SVG, slowed down to so many seconds",
    )


def run(args: argparse.Namespace) -> int:
    if not 0 < args.ms < float("inf") or not 0 <= args.at <= 1:
        raise ConfigError(f"--ms {args.ms}, --at {args.at}: expected ms above 0, at from 0 to 1")
    check_picture_name(args.out)
    if not 0 <= args.animate < float("inf") or (args.animate and args.out.lower().endswith("png")):
        raise ConfigError(
            f"--animate {args.animate:g} with --out {args.out}: expected seconds above 0, and a "
            "name that ends in .svg"
        )
    panels = [panel(open_run(folder)) for folder in args.folders]
    ways = {"at": args.at, "messages": args.messages, "animate_s": args.animate}
    draw(panels, args.ms / 1e3, **ways).save(args.out)
    print(args.out)
    return 0
