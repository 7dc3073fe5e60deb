"""Standard output and standard error as commands see them: whoever reads them may go away.

A reader that ends (`| head`), a terminal that is gone, a full disk, a closed descriptor: none of it
ends a command that does something besides printing. It goes on, and says so once on standard error
if anybody can read that. A command that prints and does nothing else has no reason to.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from asyncdni.errors import AsyncDNIError

__all__ = ["Output", "ReaderGone", "open_standard_files", "outputs"]


class ReaderGone(Exception):
    """Nobody reads what this command prints, and it does nothing else."""


class Output:
    """A text file that can be written to whatever becomes of it."""

    def __init__(self, file: TextIO | None, name: str, *, goes_on: bool) -> None:
        """`file` None: closed from the start. Without `goes_on` writing raises `ReaderGone`, and
        `AsyncDNIError` for all else that the system says."""
        self.goes_on = goes_on
        self.lost = file is None
        self._file = file
        self._name = name

    def write(self, text: str) -> int:
        if not self.lost and self._file is not None:
            try:
                self._file.write(text)
            except UnicodeEncodeError:
                self._file.write(_spelled_out(text, self._file.encoding))
            except (OSError, ValueError) as error:
                self._lose(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        if not self.lost and self._file is not None:
            try:
                self._file.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def isatty(self) -> bool:
        return not self.lost and self._file is not None and self._file.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _lose(self, error: OSError | ValueError) -> None:
        self.lost = True
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        with contextlib.suppress(OSError, ValueError, AttributeError):  # some have no descriptor
            # What is left in its buffer must not fail once more when Python ends.
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, self._file.fileno() if self._file is not None else sink)
            os.close(sink)
        if self.goes_on:
            if self._name:
                text = f"{self._name} can't be written any more ({reason}); all else goes on"
                print(f"asyncdni: {text}", file=sys.stderr, flush=True)
        elif isinstance(error, BrokenPipeError):
            raise ReaderGone from None
        else:
            raise AsyncDNIError(f"{self._name} can't be written: {reason}") from None


def _spelled_out(text: str, encoding: str) -> str:
    """What this encoding lacks as escapes."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def outputs() -> Iterator[Output]:
    """Put both in place of `sys.stdout`, which is returned, and `sys.stderr`."""
    before = sys.stdout, sys.stderr
    sys.stderr = Output(sys.stderr, "", goes_on=True)
    sys.stdout = out = Output(sys.stdout, "standard output", goes_on=False)
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = before


def open_standard_files() -> None:
    """See that no file of a run gets the number of one that is closed (`>&-`), where whoever still
    writes to it would write."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free
