"""`asyncdni data NAME`: download a data set that is too large for the package."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from asyncdni.data import archives, mnist
from asyncdni.data import mnist as download

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "download a data set (most are built in, or generated)"
EXAMPLE = """  asyncdni data mnist
  asyncdni data cifar10 --folder data/cifar10"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=("mnist", *archives.ARCHIVES), help="which data set")
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="where to put its files (default: a folder in $ASYNCDNI_DATA or in the cache folder)",
    )


def run(args: argparse.Namespace) -> int:
    """Download the files that are missing or damaged; raises `DataError` if that fails."""
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns,
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        if args.name in archives.ARCHIVES:
            _fetch_archive(archives.ARCHIVES[args.name], args.folder, bars)
        else:
            _fetch_mnist(args.folder or download.default_folder(), bars)
    return 0


def _fetch_archive(archive: archives.Archive, given: Path | None, bars: Progress) -> None:
    folder = given or archives.folder_of(archive)
    if archives.held(archive, folder):
        _say(bars, f"{folder}: {', '.join(archive.sizes)} already there")
        return
    mirror = archives.fetch(archive, folder, _progress(bars, archive.name))
    for name in archive.sizes:
        _say(bars, f"{folder / name}: fetched from {mirror}")


def _fetch_mnist(folder: Path, bars: Progress) -> None:
    mirrors = list(download.MIRRORS)
    for file in mnist.FILES:
        if path := download.held(file, folder):
            _say(bars, f"{path}: already there, and undamaged")
            continue
        mirror = download.fetch(file, folder, mirrors, _progress(bars, file.name))
        # The mirror that worked last comes first, so that one that hangs costs its timeout once.
        mirrors.remove(mirror)
        mirrors.insert(0, mirror)
        _say(bars, f"{folder / file.name}.gz: fetched from {mirror}")


def _progress(bars: Progress, name: str) -> download.Progress:
    task = bars.add_task(name, total=None)
    return lambda received, total: bars.update(task, completed=received, total=total)


def _say(bars: Progress, line: str) -> None:
    bars.console.print(line, soft_wrap=True, markup=False, highlight=False)
