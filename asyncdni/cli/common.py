"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_experiment", "free_folder"]


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """The experiment file and changes to it."""
    parser.add_argument("file", metavar="FILE.toml", help="the experiment")
    parser.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        help="change a value of the file; may be given several times",
    )
    parser.add_argument(
        "--allow-import",
        action="store_true",
        help="let workers import the layers that the file names as module:Class",
    )


def free_folder(parent: Path, name: str) -> Path:
    """parent/name, or the first of parent/name-2, parent/name-3, … that is not there yet."""
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder
