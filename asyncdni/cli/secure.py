"""`--keys` and `--insecure`: what keeps strangers away from an address."""

from __future__ import annotations

import argparse
from pathlib import Path

from asyncdni.errors import ConfigError
from asyncdni.transports.address import check_secure
from asyncdni.transports.curve import Keys, load_keys

__all__ = ["add_security", "flags", "keys_for"]


def add_security(parser: argparse.ArgumentParser) -> None:
    """The two flags."""
    parser.add_argument(
        "--keys",
        metavar="DIR",
        help="folder with the keys of the run (`asyncdni keys new DIR` makes them): all is "
        "encrypted, and nobody without keys takes part; needed for every address that other hosts "
        "can reach",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="do without keys: who reaches the address can read and change all that is sent",
    )


def keys_for(args: argparse.Namespace, *addresses: str) -> Keys | None:
    """The keys to use at these addresses; None where there are to be none.

    Raises `ConfigError` for one that other hosts can reach and neither of the flags, and for
    keys that can't be used.
    """
    if args.keys and args.insecure:
        raise ConfigError("--keys and --insecure: expected one of them, not both")
    keys = load_keys(args.keys) if args.keys else None
    for address in addresses:
        check_secure(address, keys, args.insecure)
    return keys


def flags(args: argparse.Namespace) -> list[str]:
    """The same on the command line of a worker of this run, on this host."""
    if args.keys:
        return ["--keys", str(Path(args.keys).resolve())]
    return ["--insecure"] if args.insecure else []
