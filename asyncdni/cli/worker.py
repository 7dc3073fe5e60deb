"""`asyncdni worker`: run one worker of a run, whose coordinator may start later."""

from __future__ import annotations

import argparse

from asyncdni import logs
from asyncdni.cli.common import (
    add_allow_import,
    add_logging,
    add_security,
    keys_for,
    positive_seconds,
)
from asyncdni.imports import being_worker, look_where_parent_does
from asyncdni.wire.address import towards

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "run the worker of one stage; its coordinator tells it what to train"
EXAMPLE = """\
  asyncdni worker --stage hidden1 --coordinator tcp://192.0.2.7:5555 --keys keys
  asyncdni worker --stage 1 --coordinator tcp://HOST:5555 --keys keys --ports 6000-6099
  asyncdni worker --stage 2 --coordinator ipc:///tmp/run/coordinator --timeout 60"""

_TIMEOUT_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", required=True, metavar="NAME_OR_INDEX", help="stage to train")
    parser.add_argument(
        "--coordinator",
        required=True,
        metavar="ADDRESS",
        help="tcp://HOST:PORT, with an IPv6 address tcp://[HOST]:PORT, or ipc://PATH",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--bind",
        metavar="ADDRESS",
        help="where to listen for the neighbours, which send their data straight to this worker: "
        "tcp://HOST:PORT or tcp://HOST:FIRST-LAST, a free port of that range (default: "
        "any port of the interface that reaches the coordinator). Every worker's port must be open "
        "to the hosts of its neighbours, the coordinator's to all",
    )
    where.add_argument(
        "--ports",
        metavar="FIRST-LAST",
        help="listen at a free port of this range, on the interface that reaches the coordinator",
    )
    parser.add_argument(
        "--advertise",
        metavar="HOST",
        help="the name or address that neighbours connect to, where they know this host by another "
        "one than that of --bind: HOST, or tcp://HOST:PORT behind a router that changes the port",
    )
    add_security(parser)
    parser.add_argument(
        "--timeout",
        type=positive_seconds,
        default=_TIMEOUT_S,
        metavar="SECONDS",
        help=f"how long to wait for the coordinator (default: {_TIMEOUT_S:g})",
    )
    add_allow_import(
        parser,
        help="import, and so run, the code that the experiment names as module:Class",
    )
    add_logging(parser, display=False)


def run(args: argparse.Namespace) -> int:
    logs.be("worker", args.stage)
    # BLAS reads its thread count when NumPy is imported; `LocalLauncher` sets it before the start.
    from asyncdni.drivers.real.process import run_worker

    bind = towards(args.coordinator, args.ports) if args.ports else args.bind
    with being_worker(args.stage):
        if args.allow_import:
            look_where_parent_does()
        run_worker(
            args.stage,
            args.coordinator,
            timeout_s=args.timeout,
            allow_import=args.allow_import,
            keys=keys_for(args, args.coordinator, *filter(None, (bind,))),
            bind=bind,
            advertise=args.advertise,
        )
    return 0
