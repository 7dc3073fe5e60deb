"""`asyncdni node`: be the agent of one machine, without the experiment's file."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from dataclasses import replace

from asyncdni import logs
from asyncdni.cli.common import (
    add_allow_import,
    add_logging,
    add_place,
    add_security,
    keys_for,
    worker_flags,
)
from asyncdni.cluster.agent import Means, serve
from asyncdni.cluster.engines import find_place
from asyncdni.cluster.ssh import Line, receive_keys, say_part
from asyncdni.errors import ConfigError
from asyncdni.launch.local import start_fork_server
from asyncdni.wire.address import private_folder

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "start the workers placed on this machine, and start those again that die"
EXAMPLE = """\
  ASYNCDNI_RANK=1 ASYNCDNI_WORLD_SIZE=2 asyncdni node --coordinator tcp://HOST:5555 --keys keys
  asyncdni node --engine slurm"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_place(parser)
    add_security(parser)
    add_allow_import(
        parser,
        help="import, and so run, the code that the experiment names as module:Class",
    )
    add_logging(parser)
    parser.add_argument(
        "--attached",
        action="store_true",
        help="take the keys from standard input, and leave when that ends: for the agents that "
        "`asyncdni run --hosts` starts by ssh",
    )


def run(args: argparse.Namespace) -> int:
    place = find_place(os.environ, engine=args.engine, coordinator=args.coordinator)
    if place.coordinator is None:
        raise ConfigError(
            "no engine has started this agent: give it ASYNCDNI_RANK and ASYNCDNI_WORLD_SIZE in "
            "its environment, and --coordinator tcp://HOST:PORT"
        )
    logs.be("agent", str(place.rank))
    logs.own().info(place.words())
    with ExitStack() as stack:
        line = None
        if args.attached:
            folder = stack.enter_context(private_folder(sockets=False))
            args.keys = str(folder) if receive_keys(sys.stdin, folder) else None
            line = Line(sys.stdin.fileno())
        means = Means(
            keys=keys_for(args, place.coordinator),
            flags=worker_flags(args),
            allow_import=args.allow_import,
            timeout_s=args.timeout,
        )
        if line is not None:
            means = replace(means, abandoned=line.has_ended, takes_part=say_part)
        serve(place, "", replace(means, server=start_fork_server()))
    return 0
