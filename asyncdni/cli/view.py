"""`asyncdni view`: show runs that have ended in a browser, side by side."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from asyncdni.cli.common import add_allow_import, add_page_host, make_page, port_number
from asyncdni.errors import ConfigError

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "show finished runs in a browser, several side by side on one time scale"
EXAMPLE = """\
  asyncdni view runs/locked runs/synthetic
  asyncdni view runs/traced --port 9000"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", metavar="DIR", nargs="+", help="run folders")
    parser.add_argument(
        "--port",
        type=port_number,
        default=0,
        metavar="PORT",
        help="serve the page there (default: the first free port from 8642 on; extra: page)",
    )
    add_page_host(parser)
    add_allow_import(parser, help="import what the experiments name as module:Class")


def run(args: argparse.Namespace) -> int:
    with make_page(args.port, args.page_host) as page:
        from asyncdni.page.recorded import open_state

        for folder in args.folders:
            if not Path(folder).is_dir():
                raise ConfigError(f"{folder}: there is no such folder; expected that of a run")
            page.runs.add(open_state(Path(folder), allow_import=args.allow_import))
        print(f"the page of these runs: {page.address}; Ctrl-C ends it", flush=True)
        try:
            page.wait()
        except KeyboardInterrupt:
            print(file=sys.stderr)
    return 0
