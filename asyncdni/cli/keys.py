"""`asyncdni keys`: make the keys for a run over several hosts."""

from __future__ import annotations

import argparse
from pathlib import Path

from asyncdni.wire.curve import new_keys

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "make the keys of a run over several hosts, without which nobody can take part or listen"
EXAMPLE = """\
  asyncdni keys new keys
  asyncdni coordinator launch/digits.toml --bind tcp://0.0.0.0:5555 --keys keys
  asyncdni worker --stage 0 --coordinator tcp://HOST:5555 --keys keys"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("new",), help="what to do: make new ones")
    parser.add_argument("folder", metavar="DIR", help="where to put them: new, or with mode 0700")


def run(args: argparse.Namespace) -> int:
    """Make both files and print which host needs which; raises `ConfigError`."""
    folder = Path(args.folder)
    coordinator, worker = new_keys(folder)
    print(f"{coordinator}: for the coordinator's host only")
    print(f"{worker}: for each host with workers")
    print(f"copy them over ssh (scp -rp {folder} HOST:), then give every process --keys {folder}")
    return 0
