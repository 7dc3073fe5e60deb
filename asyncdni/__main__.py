"""`asyncdni COMMAND …`: find the command, run it, turn errors into one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import io
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from asyncdni import __version__, logs
from asyncdni.cli import COMMANDS, LASTING, STAMPED
from asyncdni.cli.output import Output, ReaderGone, open_standard_files, outputs
from asyncdni.errors import AsyncDNIError, Interrupted
from asyncdni.imports import (
    allowing,
    current_folder,
    leave_out_current_folder,
    look_in_current_folder,
)

__all__ = ["main"]


_NOWHERE = "the current folder has been removed: change to another, or give paths that begin with /"
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
        epilog="`asyncdni COMMAND --help` shows an example of each; `asyncdni new NAME` writes an "
        "experiment to begin with, and `asyncdni explain` lists what one may hold.",
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
    caught: list[int] = []
    if argv is None:  # this process is ours
        open_standard_files()
        _say_anything()
        _clean_up_after(caught)
    try:
        with outputs() as out, logs.printed() as printer:
            given = list(sys.argv[1:] if argv is None else argv)
            return _run(given, out, printer, caught)
    finally:
        if argv is None:  # a second Ctrl-C may come while Python tidies up
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(argv: Sequence[str], out: Output, printer: logs.Printer, caught: list[int]) -> int:
    try:
        args = _parser(argv).parse_args(argv)
        args.words = list(argv)
        out.goes_on = args.command in LASTING
        _log_as_asked(args, printer)
        allowed = getattr(args, "allow_import", False)
        if allowed:
            look_in_current_folder()
        with allowing(allowed):
            code = int(args.run(args))
        out.flush()
        return code
    except AsyncDNIError as error:
        return _say(error, caught)
    except KeyboardInterrupt as error:
        return _say(_stop_behind(error), caught)
    except FileNotFoundError:
        if current_folder():
            raise
        logs.own().error(_NOWHERE)
        return 1
    except ReaderGone:
        return 141


def _log_as_asked(args: argparse.Namespace, printer: logs.Printer) -> None:
    """Print what is logged as --log-level, --log-json and --quiet ask for; a command without these
    flags prints everything in plain words."""
    level, stamped = getattr(args, "log_level", None), args.command in STAMPED
    json, quiet = getattr(args, "log_json", False), getattr(args, "quiet", False)
    printer.use(level, json=json, stamped=stamped, quiet=quiet)


def _stop_behind(error: BaseException | None) -> Interrupted:
    """What a run has said of a stop; one more Ctrl-C may have come on top of it."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__cause__ or error.__context__
    return error or Interrupted("interrupted")


def _say(error: AsyncDNIError, caught: list[int]) -> int:
    logs.own().error("%s", " | ".join(str(error).splitlines()))
    if isinstance(error, Interrupted) and caught:
        return 128 + caught[-1]
    return error.exit_code


def _clean_up_after(caught: list[int]) -> None:
    """SIGTERM, SIGHUP and SIGUSR1 end a command as Ctrl-C does; their numbers are added to
    `caught`."""

    def interrupt(number: int, _: object) -> None:
        caught.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, interrupt)


if __name__ == "__main__":
    leave_out_current_folder()  # where `python -m` looks first, whatever lies there
    sys.exit(main())
