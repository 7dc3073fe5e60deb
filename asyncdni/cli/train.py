"""`asyncdni train`: start all processes, train, evaluate, and write a run folder."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

from asyncdni import config
from asyncdni.cli.common import (
    add_conditions,
    add_experiment,
    add_init,
    add_logging,
    add_page,
    add_resume,
    chosen_run,
    complete_line,
    new_folder,
    page_for,
    settings,
    shown_on,
)
from asyncdni.errors import AsyncDNIError, ConfigError
from asyncdni.imports import Allowed
from asyncdni.launch.display import make_display
from asyncdni.launch.train import train
from asyncdni.plan.rules import repeatable_words
from asyncdni.store.mirror import run_here
from asyncdni.store.resume import is_complete
from asyncdni.store.run import Result

__all__ = ["EXAMPLE", "HELP", "add_arguments", "leave", "run"]


def leave(run: Result, *, allow_import: Allowed, quiet: bool) -> None:
    """Write pictures and samples of what the network has learnt, and list them. Failures are only
    printed, since the run has ended."""
    from asyncdni.report import plots
    from asyncdni.report.album import has_something_to_show, leave_samples

    if not has_something_to_show(run):
        return
    try:
        files = leave_samples(run, allow_import=allow_import)
    except Exception as error:  # drawing needs fonts and caches, which may be missing
        name = "" if isinstance(error, AsyncDNIError) else f"{type(error).__name__}: "
        said = f"No pictures of the run: {name}{' | '.join(str(error).splitlines())}"
    else:
        missing = [] if plots.available() else [plots.MISSING_EXTRA]
        names = ", ".join(path.name for path in files)
        said = "\n".join([*([f"To look at: {names}"] if files else []), *missing])
    if not quiet:
        print(said)


HELP = "train a network on this machine, with one worker process for each stage"
EXAMPLE = """\
  asyncdni train launch/digits.toml
  asyncdni train launch/mnist.toml --schedule locked --set run.epochs=3 --out runs/locked
  asyncdni train --resume runs/locked"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_experiment(parser, optional=True)
    parser.add_argument("--schedule", metavar="NAME", help="schedule, in place of the file's")
    parser.add_argument(
        "--seed", type=int, metavar="N", help=f"seed, in place of the file's; {repeatable_words()}"
    )
    add_conditions(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="run folder, new or empty (default: a new one under runs/)"
    )
    add_init(parser)
    add_resume(parser)
    parser.add_argument(
        "--trace",
        action="store_true",
        help="write every op, message and wait to DIR/trace.json, for https://ui.perfetto.dev "
        "and `asyncdni timeline`",
    )
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="write event files to DIR/tensorboard (extra: tensorboard)",
    )
    add_page(parser)
    add_logging(parser)


def run(args: argparse.Namespace) -> int:
    if args.out == "":
        raise ConfigError("--out '': expected the path of a folder, new or empty")
    if args.resume is not None:
        args.resume = str(run_here(args.resume))
    chosen = chosen_run(args)
    if args.resume is not None and is_complete(Path(args.resume), chosen):
        print(complete_line(args.resume, chosen))
        return 0
    if chosen.recovery.coordinator_s:
        raise ConfigError(
            f"recovery.coordinator_s = {chosen.recovery.coordinator_s:g}: the workers of `asyncdni "
            "train` end with their coordinator, so none would wait for another one: use `asyncdni "
            "run`, which starts it again, or --set recovery.coordinator_s=0"
        )
    name = f"{Path(args.file or '').stem}-{chosen.schedule.__struct_config__.tag}"
    given = args.resume or args.out
    opened = nullcontext(Path(given)) if given else new_folder(Path("runs"), name)
    with opened as folder:
        _train(args, chosen, folder)
    return 0


def _train(args: argparse.Namespace, chosen: config.Experiment, folder: Path) -> None:
    where = {"resume": folder, "set": settings(args)} if args.resume else {"out": folder}
    with (
        page_for(args) as page,
        make_display(quiet=args.quiet) as display,
        shown_on(page, str(folder), folder) as shown,
    ):
        finished = train(
            None if args.resume else chosen,
            **where,
            observers=[display, *shown],
            progress=False,
            trace=args.trace,
            tensorboard=args.tensorboard,
            allow_import=args.allow_import,
        )
        display.finish(finished.summary, folder)
    leave(finished, allow_import=args.allow_import, quiet=args.quiet)
