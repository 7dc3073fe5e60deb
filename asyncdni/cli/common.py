"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncdni import config, experiment, logs
from asyncdni.errors import ConfigError, DataWarning
from asyncdni.experiment.recipes import find_recipe
from asyncdni.files import check_file
from asyncdni.store.resume import changed_experiment
from asyncdni.wire.address import check_secure, port_range
from asyncdni.wire.curve import Keys, load_keys

if TYPE_CHECKING:
    from asyncdni.page.server import Page
    from asyncdni.page.state import RunState

__all__ = [
    "add_conditions",
    "add_experiment",
    "add_init",
    "add_logging",
    "add_page",
    "add_page_host",
    "add_place",
    "add_resume",
    "add_security",
    "check_json",
    "chosen_run",
    "complete_line",
    "condition_flags",
    "flags",
    "keys_for",
    "make_page",
    "new_folder",
    "page_for",
    "port_number",
    "positive_seconds",
    "settings",
    "shown_on",
    "warnings_said",
    "worker_flags",
]


def add_experiment(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add the experiment file, --set and --allow-import."""
    nargs = "?" if optional else None
    parser.add_argument(
        "file",
        metavar="FILE.toml",
        nargs=nargs,
        type=find_recipe,
        help="the experiment; recipe:digits and the like come with asyncdni (`asyncdni new --help` "
        "lists them)",
    )
    parser.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        help="change a value of the file; may be given several times",
    )
    add_allow_import(
        parser,
        help="let workers import the layers that the file names as module:Class",
    )


def add_allow_import(parser: argparse.ArgumentParser, help: str) -> None:
    """Add --allow-import, for all code or for that of some modules."""
    parser.add_argument(
        "--allow-import",
        action=_Allow,
        nargs="?",
        default=False,
        metavar="MODULE",
        help=f"{help}; with MODULE only from that module and those inside it (may be given several "
        "times; without MODULE, put it last or before another option)",
    )


class _Allow(argparse.Action):
    """Collects the modules named; alone, the flag allows all."""

    def __call__(self, _: object, space: argparse.Namespace, value: Any, __: object = None) -> None:
        known = getattr(space, self.dest)
        allowed = True if value is None or known is True else (*(known or ()), value)
        setattr(space, self.dest, allowed)


def add_init(parser: argparse.ArgumentParser) -> None:
    """Add --init, short for --set run.init=…"""
    parser.add_argument(
        "--init",
        metavar="PATH",
        help="begin with these weights: a run folder, a folder of STAGE.safetensors, or one "
        ".safetensors file of arrays STAGE.0.weight (of some stages: --set run.init_stages=[…])",
    )


def add_conditions(parser: argparse.ArgumentParser, *, latency: bool = True) -> None:
    """Add the flags for slow links and slow workers, short for --set links.latency=… and the like.

    With `latency` False the command itself handles --latency, and `settings` leaves it out.
    """
    if latency:
        parser.add_argument(
            "--latency", metavar="TIME", help="make all links between workers slower, such as 10ms"
        )
    parser.add_argument(
        "--jitter",
        metavar="TIME",
        help="delay each message by up to this much more, drawn at random",
    )
    parser.add_argument(
        "--bandwidth",
        metavar="RATE",
        help="limit the bandwidth of all links between workers, such as 100Mbit/s",
    )
    parser.add_argument(
        "--slow",
        metavar="NAME=FACTOR",
        action="append",
        default=[],
        help="make each op of a stage take this many times as long; may be given several times",
    )


def settings(args: argparse.Namespace) -> list[str]:
    """Return the settings of --set, followed by those of the flags of `add_init` and
    `add_conditions`.

    Raises `ConfigError`.
    """
    init = getattr(args, "init", None)
    if init == "":
        raise ConfigError("--init '': expected the path of a run folder, or of weights")
    begin = [] if init is None else [f"run.init={json.dumps(init)}", "run.init_sha256={}"]
    chosen = [f"links.{flag}={json.dumps(text)}" for flag, text in _link_flags(args).items()]
    return [*args.set, *begin, *chosen, *map(_slow_setting, args.slow)]


def condition_flags(args: argparse.Namespace) -> list[str]:
    """Return the given flags of `add_conditions` as words of a command line."""
    words = [f"--{flag}={text}" for flag, text in _link_flags(args).items()]
    return words + [f"--slow={text}" for text in args.slow]


def _link_flags(args: argparse.Namespace) -> dict[str, str]:
    texts = {flag: getattr(args, flag, None) for flag in ("latency", "jitter", "bandwidth")}
    return {flag: text for flag, text in texts.items() if text is not None}


def _slow_setting(text: str) -> str:
    name, equals, factor = text.partition("=")
    if not (name and equals and factor):
        raise ConfigError(f"--slow {text!r}: expected NAME=FACTOR, such as hidden2=3")
    return f"slow.{name}.factor={factor}"


def check_json(path: str | None) -> None:
    """Check that --json's file can be written, before hours of work. Raises `ConfigError`."""
    if not path or path == "-":
        return
    if not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"--json {path}: there is no folder {Path(path).parent}; create it first")
    try:
        check_file(path)
    except OSError as error:
        raise ConfigError(f"--json {path}: {error.strerror}; -: to standard output") from error


@contextmanager
def new_folder(parent: Path, name: str) -> Iterator[Path]:
    """Make a new folder: parent/name, or the first free one of parent/name-2, parent/name-3, …

    It is removed at the end if it is empty. Raises `ConfigError` if none can be made.
    """
    folder = _make_first_free(parent, name)
    try:
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()  # fails unless empty


def _make_first_free(parent: Path, name: str) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            folder = parent / (name if number == 1 else f"{name}-{number}")
            with suppress(FileExistsError):
                folder.mkdir()  # only one of several processes succeeds
                return folder
    except FileNotFoundError:
        raise  # the current folder has been removed
    except OSError as error:
        raise ConfigError(
            f"{parent / name}: can't be made: {error.strerror}; name a folder with --out"
        ) from error
    raise AssertionError("there is always a next number")


@contextmanager
def warnings_said() -> Iterator[None]:
    """Print warnings about data to standard error, one line each."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", DataWarning)
        yield
    for one in found:
        logs.own().warning("%s", one.message)


# --- `--keys` and `--insecure` -------------------------------------------------------------------


def add_security(parser: argparse.ArgumentParser) -> None:
    """Add --keys and --insecure."""
    parser.add_argument(
        "--keys",
        metavar="DIR",
        help="folder with the keys of the run (`asyncdni keys new DIR` makes them): "
        "everything is encrypted, and nobody can take part without keys; required for every "
        "address that other hosts can reach",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="use no keys: anyone who can reach the address can read and change all that is sent",
    )


def keys_for(args: argparse.Namespace, *addresses: str) -> Keys | None:
    """Return the keys to use at these addresses; None without keys.

    Raises `ConfigError` if an address that other hosts can reach has neither flag, and for keys
    that can't be used.
    """
    if args.keys and args.insecure:
        raise ConfigError("--keys and --insecure: expected one of them, not both")
    keys = load_keys(args.keys) if args.keys else None
    for address in addresses:
        check_secure(address, keys, args.insecure)
    return keys


def flags(args: argparse.Namespace) -> list[str]:
    """Return the same flags for the command line of a worker on this host."""
    if args.keys:
        return ["--keys", str(Path(args.keys).resolve())]
    return ["--insecure"] if args.insecure else []


# --- the place of this process among others ------------------------------------------------------

_TIMEOUT_S = 60.0


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add --coordinator, --engine, --ports and --timeout."""
    parser.add_argument(
        "--coordinator",
        metavar="ADDRESS",
        help="tcp://HOST:PORT of rank 0, the same for all ranks, in place of what the engine says; "
        "workers also need the next higher port",
    )
    parser.add_argument(
        "--engine",
        metavar="NAME",
        help="the engine that has started this process (default: the first of those in "
        "docs/machines.md whose variables are set)",
    )
    parser.add_argument(
        "--ports",
        metavar="FIRST-LAST",
        help="workers listen for each other at free ports of this range (default: any)",
    )
    parser.add_argument(
        "--timeout",
        type=positive_seconds,
        default=_TIMEOUT_S,
        metavar="SECONDS",
        help=f"how long the other ranks wait for rank 0 (default: {_TIMEOUT_S:g})",
    )


def worker_flags(args: argparse.Namespace) -> list[str]:
    """Return the flags of `add_security` and `add_place` that the workers of this machine get.

    Raises `LaunchError` for ports that make no sense.
    """
    if args.ports is None:
        return flags(args)
    port_range(args.ports, f"--ports {args.ports}")
    return [*flags(args), "--ports", args.ports]


def positive_seconds(text: str) -> float:
    """Read the value of --timeout."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text!r}")
    return seconds


# --- `--quiet`, `--log-level` and `--log-json` ---------------------------------------------------


def add_logging(parser: argparse.ArgumentParser, *, display: bool = True) -> None:
    """Add --log-level and --log-json, and --quiet for a command that shows more than its log."""
    if display:
        parser.add_argument("--quiet", action="store_true", help="show nothing but errors")
    parser.add_argument(
        "--log-level",
        choices=logs.LEVELS,
        metavar="LEVEL",
        help=f"what is logged, here and by the workers that this command starts: "
        f"{', '.join(logs.LEVELS)} (default: info)",
    )
    parser.add_argument(
        "--log-json",
        action="store_true",
        help="log one JSON object a line: time, level, host, logger, worker and text",
    )


# --- `--page` ------------------------------------------------------------------------------------


def add_page(parser: argparse.ArgumentParser, *, controls: bool = True) -> None:
    """Add --page and its companions. Without `controls` no worker is a child of the command."""
    parser.add_argument(
        "--page",
        nargs="?",
        type=port_number,
        const=0,
        metavar="PORT",
        help="show the run in a browser while it goes on, at the address that is printed (default: "
        "the first free port from 8642 on; put it after FILE.toml; extra: page)",
    )
    add_page_host(parser)
    if controls:
        parser.add_argument(
            "--page-controls",
            action="store_true",
            help="for demonstrations: let the page kill, pause and slow down workers and links",
        )


def add_page_host(parser: argparse.ArgumentParser) -> None:
    """Add --page-host."""
    parser.add_argument(
        "--page-host",
        metavar="HOST",
        help="serve the page at this address of the machine, such as 0.0.0.0, so that other hosts "
        "can open it with the token that is printed (default: 127.0.0.1, this machine alone)",
    )


@contextmanager
def page_for(args: argparse.Namespace) -> Iterator[Page | None]:
    """Serve the page that was asked for and print its address; None if there is to be none.

    Raises `ConfigError` without the extra `page`, or if it can't be served.
    """
    host, controls = args.page_host, getattr(args, "page_controls", False)
    if args.page is None:
        if host is not None or controls:
            flag = "--page-controls" if controls else f"--page-host {host}"
            raise ConfigError(f"{flag}: there is no page; add --page")
        yield None
        return
    with make_page(args.page, host, controls=controls) as page:
        wanted = f"port {args.page} is in use; " if args.page not in (0, page.port) else ""
        # Standard output may be for a table or JSON alone.
        print(f"{wanted}the page of this run: {page.address}", file=sys.stderr, flush=True)
        yield page


@contextmanager
def shown_on(page: Page | None, title: str, folder: Path | None) -> Iterator[list[RunState]]:
    """Show the run of the block on the page, if there is one; yield the observers that it needs."""
    if page is None:
        yield []
        return
    with page.run(title, folder) as state:
        yield [state]


def make_page(port: int, host: str | None, *, controls: bool = False) -> Page:
    """Return a page at `port`, or at the first free one from the usual port on for 0. Raises
    `ConfigError`, also without the extra `page`."""
    try:
        from asyncdni.page.server import PORT, Page
    except ImportError as error:
        raise ConfigError(
            f"the page needs {error.name}, which is not installed: pip install 'asyncdni[page]'"
        ) from error
    return Page(port or PORT, host or "127.0.0.1", controls=controls)


def port_number(text: str) -> int:
    """Return the number of a port, as the type of an argument."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 65_535):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no port; expected a number from 1 to 65535 or nothing, and FILE.toml "
            "before it"
        )
    return int(text)


# --- `--resume` ----------------------------------------------------------------------------------


def add_resume(parser: argparse.ArgumentParser) -> None:
    """Add --resume, which takes the place of FILE.toml: the command must make that optional."""
    parser.add_argument(
        "--resume",
        metavar="DIR",
        help="in place of FILE.toml and --out: go on with the run in this folder, or with the copy "
        "at this URL (run.store), from its newest "
        "whole checkpoint; --set may change its length, its learning rates, its split and more",
    )


def chosen_run(args: argparse.Namespace) -> config.Experiment:
    """Return the experiment that the flags ask for. Raises `ConfigError`."""
    if (args.file is None) == (args.resume is None):
        raise ConfigError("expected an experiment, FILE.toml, or --resume DIR, and not both")
    seed = getattr(args, "seed", None)
    if args.resume is None:
        return experiment.load(args.file, settings(args), schedule=args.schedule, seed=seed)
    given = {"--out": args.out, "--schedule": args.schedule, "--seed": seed, "--init": args.init}
    for flag, value in given.items():
        if value is not None:
            raise ConfigError(
                f"--resume {args.resume}: {flag} can't be given, a run goes on as it was and in "
                "its own folder; for changes that may be made use --set"
            )
    return changed_experiment(Path(args.resume), settings(args))


def complete_line(folder: str, chosen: config.Experiment) -> str:
    """Return the line printed for a run that is already complete."""
    epochs = chosen.run.epochs
    return (
        f"the run in {folder} is complete, after {epochs} epochs; --set run.epochs={epochs + 1} "
        "or more makes it longer, with whatever else is changed"
    )
