"""Standard output and standard error that survive the loss of their reader.

The reader may end (`| head`), the terminal may close, the disk may be full, the descriptor may be
closed. A command that does more than print goes on, after one line on standard error if that still
works. A command that only prints ends.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from asyncdni import logs
from asyncdni.errors import AsyncDNIError

__all__ = ["Output", "ReaderGone", "open_standard_files", "outputs"]


class ReaderGone(Exception):
    """Nobody reads the output of a command that only prints."""


class Output:
    """A text file; writing to it may go on after it has failed."""

    def __init__(self, file: TextIO | None, name: str, *, goes_on: bool) -> None:
        """`file` is None if it was closed from the start. Unless `goes_on`, writing raises
        `ReaderGone` if the reader has gone, and `AsyncDNIError` for other failures."""
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
            # Python flushes the buffer when it ends; that must not fail again.
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, self._file.fileno() if self._file is not None else sink)
            os.close(sink)
        if self.goes_on:
            if self._name:
                text = f"{self._name} can't be written any more ({reason}); all else goes on"
                logs.own().error(text)
        elif isinstance(error, BrokenPipeError):
            raise ReaderGone from None
        else:
            raise AsyncDNIError(f"{self._name} can't be written: {reason}") from None


def _spelled_out(text: str, encoding: str) -> str:
    """Replace characters that this encoding lacks by escapes."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def outputs() -> Iterator[Output]:
    """Replace `sys.stdout`, which is yielded, and `sys.stderr`."""
    before = sys.stdout, sys.stderr
    sys.stderr = Output(sys.stderr, "", goes_on=True)
    sys.stdout = out = Output(sys.stdout, "standard output", goes_on=False)
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = before


def open_standard_files() -> None:
    """Open standard descriptors that are closed (`>&-`). Otherwise a file of the run would get such
    a number, and receive what is written to standard output or error."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the system gives it the lowest free number
