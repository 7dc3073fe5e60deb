"""What commands print, and what becomes of them when it can't be written."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

import pytest
from each import each
from rich.console import Console

from asyncdni import logs
from asyncdni.cli.output import Output, ReaderGone, open_standard_files, outputs
from asyncdni.errors import AsyncDNIError


class Broken(io.StringIO):
    """Takes nothing."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.tried = 0
        self._number = number

    def write(self, text: str) -> int:
        self.tried += 1
        raise OSError(self._number, os.strerror(self._number))


def output(file: Any, *, goes_on: bool = True) -> Output:
    return Output(file, "standard output", goes_on=goes_on)


@each("number", [errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF])
def test_what_does_more_than_print_goes_on_and_says_so_once(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it is a console's, which would end the program of a broken pipe by itself."""
    file = Broken(number)
    out = output(file)
    console = Console(file=out, force_terminal=False)  # type: ignore[arg-type]
    with logs.printed():
        for line in ("one", "two"):
            print(line, file=out)
            console.print(line)
    assert out.lost and file.tried == 1
    said = capsys.readouterr().err
    reason = os.strerror(number)
    assert said == (
        f"asyncdni: standard output can't be written any more ({reason}); all else goes on\n"
    )


def test_what_only_prints_ends_when_nobody_reads_it() -> None:
    with pytest.raises(ReaderGone):
        output(Broken(errno.EPIPE), goes_on=False).write("x")
    console = Console(file=output(Broken(errno.EPIPE), goes_on=False))  # type: ignore[arg-type]
    with pytest.raises(ReaderGone):
        console.print("x")


def test_and_names_what_else_keeps_it_from_being_written() -> None:
    with pytest.raises(AsyncDNIError, match="standard output can't be written: No space left"):
        output(Broken(errno.ENOSPC), goes_on=False).write("x")


def test_a_full_disk_is_found_out_when_what_was_written_leaves_and_fails_but_once() -> None:
    with open("/dev/full", "w", encoding="utf-8") as file:
        out = output(file)
        out.write("x")
        out.flush()
        assert out.lost
        out.flush()
    # closing it has flushed what was left: into nothing


def test_what_an_encoding_lacks_is_spelled_out() -> None:
    raw = io.BytesIO()
    out = output(io.TextIOWrapper(raw, encoding="ascii"))
    out.write("größer")
    out.flush()
    assert raw.getvalue() == b"gr\\xf6\\xdfer"
    assert not out.lost


def test_an_output_that_was_closed_from_the_start_takes_everything() -> None:
    out = output(None, goes_on=False)
    assert out.write("abc") == 3
    out.writelines(["a", "b"])
    out.flush()
    assert not out.isatty()
    with pytest.raises(AttributeError):
        _ = out.encoding


def test_both_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError), outputs() as out:
        assert sys.stdout is out  # type: ignore[comparison-overlap]
        raise ZeroDivisionError
    assert (sys.stdout, sys.stderr) == before


def test_numbers_of_closed_files_are_taken_before_a_run_can_take_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []

    def fstat(number: int) -> None:
        if number != 0:
            raise OSError(errno.EBADF, "closed")

    with monkeypatch.context() as patched:  # no longer than that: others need them too
        patched.setattr(os, "fstat", fstat)
        patched.setattr(os, "open", lambda path, flags: opened.append(path))
        open_standard_files()
    assert opened == [os.devnull, os.devnull]
