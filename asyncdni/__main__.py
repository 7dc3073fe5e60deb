"""`asyncdni COMMAND …`: find the command, run it, turn errors into one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import io
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from asyncdni import __version__
from asyncdni.cli import COMMANDS
from asyncdni.errors import AsyncDNIError
from asyncdni.imports import current_folder, leave_out_current_folder, look_in_current_folder

__all__ = ["main"]


_NOWHERE = (
    "asyncdni: the current folder has been removed: change to another, or give paths that begin "
    "with /"
)
_MESSAGE_MAX = 500  # characters; it quotes what was given


class _Parser(argparse.ArgumentParser):
    """Refuses as everything here does: in one line."""

    def error(self, message: str) -> NoReturn:
        message = message if len(message) <= _MESSAGE_MAX else f"{message[:_MESSAGE_MAX]}..."
        self.exit(2, f"asyncdni: {message}; see `{self.prog} --help`\n")


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="asyncdni",
        description="Train a neural network with each stage in a process of its own.",
        epilog="`asyncdni COMMAND --help` shows an example of each.",
    )
    parser.add_argument("--version", action="version", version=f"asyncdni {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    # A worker's start-up is paid once a stage: import one command, not all of them.
    wanted = COMMANDS if not argv or argv[0] not in COMMANDS else (argv[0],)
    for name in wanted:
        module = importlib.import_module(f"asyncdni.cli.{name}")
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog=f"example:\n{module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def _say_anything() -> None:
    """What the terminal has no characters for becomes escapes; it ends nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    if argv is None:  # this process is ours
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
        _say_anything()
    try:
        given = list(sys.argv[1:] if argv is None else argv)
        args = _parser(given).parse_args(given)
        if getattr(args, "allow_import", False):
            look_in_current_folder()
        return int(args.run(args))
    except AsyncDNIError as error:
        print(f"asyncdni: {' | '.join(str(error).splitlines())}", file=sys.stderr)
        return error.exit_code
    except FileNotFoundError:
        if current_folder():
            raise
        print(_NOWHERE, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("asyncdni: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    finally:
        if argv is None:  # a second Ctrl-C may come while Python tidies up
            signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    leave_out_current_folder()  # where `python -m` looks first, whatever lies there
    sys.exit(main())
