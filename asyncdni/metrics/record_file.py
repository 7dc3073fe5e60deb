"""The file of a run's records, a line of JSON each: read again, and added to after a death."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from asyncdni.errors import CheckpointError

__all__ = ["check_there", "open_records", "read_records", "writing"]

_BLOCK_BYTES = 65536


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records in a `metrics.jsonl`, a torn last line left out; none where there is no file.

    Raises `CheckpointError` for a file that holds anything else.
    """
    if path.exists() and not path.is_file():
        return  # a device: nothing can be read back
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.endswith("\n"):
                    yield _parse(line, f"{path}, line {number}")
    except FileNotFoundError:
        return  # a new run
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"can't read {path}: {error}") from error


def _parse(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        record["time_s"] = float(record["time_s"])
        record["kind"] = str(record["kind"])
    except (ValueError, TypeError, KeyError):
        raise CheckpointError(f"{place}: expected a record, got {line.strip()[:60]!r}") from None
    return dict(record)


def open_records(path: Path) -> TextIO:
    """To be written at its end, behind the last whole line."""
    try:
        if path.is_file():
            with open(path, "rb+") as whole:
                whole.truncate(_end_of_lines(whole))
        return open(path, "a", buffering=1, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"can't write {path}: {error.strerror}") from error


def _end_of_lines(file: BinaryIO) -> int:
    """Where the last whole line ends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK_BYTES)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def check_there(file: TextIO) -> None:
    """Raises `CheckpointError` for a file that has been removed: with it went the whole run."""
    if os.fstat(file.fileno()).st_nlink == 0:
        folder = os.path.dirname(file.name)
        raise CheckpointError(f"{folder} was removed while the run went on: nothing can be kept")


@contextmanager
def writing(file: TextIO) -> Iterator[None]:
    """Raises `CheckpointError` for what the system says of a write."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"can't write {file.name}: {error.strerror}") from error
