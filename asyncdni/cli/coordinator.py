"""`asyncdni coordinator`: train with workers that users start by hand, on any hosts."""

from __future__ import annotations

import argparse
from pathlib import Path

from asyncdni.cli.common import (
    add_conditions,
    add_experiment,
    add_init,
    add_logging,
    add_page,
    add_resume,
    add_security,
    chosen_run,
    complete_line,
    flags,
    keys_for,
    page_for,
    shown_on,
)
from asyncdni.errors import ConfigError
from asyncdni.launch.conduct import conduct
from asyncdni.launch.display import make_display
from asyncdni.launch.train import design_of
from asyncdni.store.given import begin_with
from asyncdni.store.mirror import run_here
from asyncdni.store.resume import is_complete
from asyncdni.wire.address import port_range

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "coordinate a run whose workers are started by hand, in any order, on any hosts"
EXAMPLE = """\
  asyncdni keys new keys
  asyncdni coordinator launch/digits.toml --bind tcp://0.0.0.0:5555 --keys keys --out runs/by-hand
  then, for each stage:  asyncdni worker --stage 0 --coordinator tcp://HOST:5555 --keys keys"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_experiment(parser, optional=True)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--bind",
        metavar="ADDRESS",
        help="where to listen for workers: tcp://HOST:PORT or tcp://HOST:FIRST-LAST, the first "
        "free port of that range (HOST 0.0.0.0: all IPv4 addresses of this host; [::]: IPv6 as "
        "well), or ipc://PATH",
    )
    where.add_argument(
        "--ports",
        metavar="FIRST-LAST",
        help="the same as --bind tcp://0.0.0.0:FIRST-LAST",
    )
    parser.add_argument(
        "--advertise",
        metavar="HOST",
        help="the name or address by which the workers' hosts know this one, for the commands that "
        "are shown: HOST, or tcp://HOST:PORT behind a router that changes the port",
    )
    add_security(parser)
    parser.add_argument("--schedule", metavar="NAME", help="schedule, in place of the file's")
    add_conditions(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="run folder; workers on hosts that do not share it send here what they save "
        "(default: nothing is written, and a worker's death ends the run)",
    )
    add_init(parser)
    add_resume(parser)
    add_page(parser, controls=False)
    add_logging(parser)


def run(args: argparse.Namespace) -> int:
    if args.ports:
        port_range(args.ports, f"--ports {args.ports}")
    bind = f"tcp://0.0.0.0:{args.ports}" if args.ports else args.bind
    keys = keys_for(args, bind)
    if args.resume is not None:
        args.resume = str(run_here(args.resume))
    chosen = chosen_run(args)
    folder = args.resume or args.out
    if args.resume and is_complete(Path(args.resume), chosen):
        print(complete_line(args.resume, chosen))
        return 0
    design = design_of(chosen, allow_import=args.allow_import)
    if args.resume is None:
        design = begin_with(design)
    if design.init is not None and folder is None:
        raise ConfigError(
            "run.init: workers get the given weights from the folder of the run; give --out DIR"
        )
    kept = Path(folder) if folder else None
    with (
        page_for(args) as page,
        make_display(quiet=args.quiet) as display,
        shown_on(page, folder or "a run that is not kept", kept) as shown,
    ):
        summary = conduct(
            design,
            bind,
            kept,
            observers=[display, *shown],
            resume=args.resume is not None,
            keys=keys,
            flags=flags(args),
            advertise=args.advertise,
        )
        display.finish(summary, kept)
    return 0
