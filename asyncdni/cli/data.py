"""`asyncdni data NAME`: fetch a data set that is too large to be part of the package."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from asyncdni.datasets import download, mnist

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "fetch a data set (digits and addition need none)"
EXAMPLE = """  asyncdni data mnist
  asyncdni data mnist --folder data/mnist"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=("mnist",), help="which data set")
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="where to put its files (default: mnist in $ASYNCDNI_DATA or in the cache folder)",
    )


def run(args: argparse.Namespace) -> int:
    """Fetches what is not there yet, or not right; raises `DataError` if that fails."""
    folder = args.folder or download.default_folder()
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns,
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        _fetch_all(folder, bars)
    return 0


def _fetch_all(folder: Path, bars: Progress) -> None:
    mirrors = list(download.MIRRORS)
    for file in mnist.FILES:
        if path := download.held(file, folder):
            _say(bars, f"{path}: already there, and right")
            continue
        mirror = download.fetch(file, folder, mirrors, _progress(bars, file.name))
        # What has just worked goes first: a mirror that hangs then costs its timeout only once.
        mirrors.remove(mirror)
        mirrors.insert(0, mirror)
        _say(bars, f"{folder / file.name}.gz: fetched from {mirror}")


def _progress(bars: Progress, name: str) -> download.Progress:
    task = bars.add_task(name, total=None)
    return lambda received, total: bars.update(task, completed=received, total=total)


def _say(bars: Progress, line: str) -> None:
    bars.console.print(line, soft_wrap=True, markup=False, highlight=False)
