"""Runs commands as a user would, waits for what they do, and finds what they leave behind."""

from __future__ import annotations

import io
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar
from unittest.mock import patch

from asyncdni import logs
from asyncdni.__main__ import main

#: Ends a test that would hang; nothing takes that long.
PATIENCE_S = 30.0
#: Carried by every process of a site, whatever session it leads and whoever its parent is by now.
_MARK = "ASYNCDNI_TEST_SITE"

#: Two stages that learn to add two-bit numbers: as small as a network gets.
TINY = """\
[data]
name = "addition"
bits = 3
examples = 40
test_examples = 20
batch_size = 10

[[stages]]
name = "hidden"
layers = [{ dense = 8 }, "sigmoid"]

[[stages]]
name = "top"
layers = [{ dense = 3 }]
loss = "sigmoid_cross_entropy"

[schedule]
name = "synthetic"

[run]
epochs = 2
"""
#: Changes that make it train until somebody stops it.
ENDLESS = ("--set", "run.epochs=1000000", "--set", "run.evaluate_every=1000000")

T = TypeVar("T")


def until(found: Callable[[], T | None], what: str, patience_s: float = PATIENCE_S) -> T:
    """The first true answer of `found`, asked again and again."""
    deadline = time.monotonic() + patience_s
    while True:
        answer = found()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited {patience_s:g} s for {what}"
        time.sleep(0.01)


@dataclass(frozen=True)
class Finished:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def wrong(self) -> list[str]:
        """What it has printed on standard error that is more than information."""
        said = map(logs.parsed, self.err.splitlines())
        return [text for level, text in said if level > logging.INFO]

    def refused(self, *words: str) -> str:
        """Assert that it failed with one line above the level info, which holds `words`; returns
        what that line says, without time and name."""
        assert self.code > 0, self
        assert len(self.wrong) == 1, self.err
        (text,) = self.wrong
        assert text not in self.err.splitlines(), f"no `asyncdni: ` or time before it: {self.err}"
        for word in words:
            assert word in text, (word, text)
        return text


class Command:
    """A command that runs in a session of its own, as a shell would start it."""

    def __init__(self, argv: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            list(argv),
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def interrupt(self) -> None:
        """What Ctrl-C in its terminal does; nothing once it has ended."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGINT)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send this process alone a signal."""
        os.kill(self.pid, number)

    def said(self) -> str:
        """What it has written to standard output so far."""
        return _text(self._out)

    def warned(self) -> str:
        """What it has written to standard error so far."""
        return _text(self._err)

    def has_ended(self) -> bool:
        """Without waiting for it."""
        return self._process.poll() is not None

    def finished(self, patience_s: float = PATIENCE_S) -> Finished:
        """Wait for its end."""
        self._process.wait(patience_s)
        return Finished(self._process.returncode, _text(self._out), _text(self._err))

    def close(self) -> None:
        """End it if it has not ended by itself."""
        self._process.kill()
        self._process.wait()
        self._out.close()
        self._err.close()


class Site:
    """A folder to work in, a temporary folder to leave empty, and all processes started here."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.folder = folder
        self.temporary = temporary
        self.commands: list[Command] = []
        self.environment = {
            **os.environ,
            _MARK: secrets.token_hex(8),
            "TMPDIR": str(temporary),
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.environment.pop("ASYNCDNI_DATA", None)  # a test that wants data says where it is

    def write(self, name: str, text: str) -> Path:
        """A file in the site's folder, parents made as needed."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def start(self, *args: str | Path, **variables: str) -> Command:
        """`asyncdni` with these arguments."""
        return self.execute([sys.executable, "-m", "asyncdni", *map(str, args)], **variables)

    def python(self, *args: str | Path) -> Command:
        """The interpreter with these arguments."""
        return self.execute([sys.executable, *map(str, args)])

    def execute(self, argv: Sequence[str], **variables: str) -> Command:
        """Any command line, with more environment variables."""
        command = Command(argv, self.folder, {**self.environment, **variables})
        self.commands.append(command)
        return command

    def run(self, *args: str | Path, **variables: str) -> Finished:
        """`asyncdni` with these arguments, to its end."""
        return self.start(*args, **variables).finished()

    def call(self, *args: str | Path) -> Finished:
        """`asyncdni` with these arguments in this process.

        For what is refused before another process is started, and for what starts none: a process
        of its own takes twenty times as long, most of it for its imports.
        """
        out, err = io.StringIO(), io.StringIO()
        with (
            chdir(self.folder),
            patch.dict(os.environ, self.environment, clear=True),
            patch.object(tempfile, "tempdir", str(self.temporary)),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                code = main([str(arg) for arg in args])
            except SystemExit as stop:
                code = int(stop.code or 0)
            finally:
                logs.be("")  # this process is no worker, whatever it was called to be
        return Finished(code, out.getvalue(), err.getvalue())

    def processes(self) -> list[int]:
        """All of this site that live, zombies left out."""
        mark = f"{_MARK}={self.environment[_MARK]}".encode()
        return [pid for pid in _pids() if mark in _environment(pid) and _lives(pid)]

    def empty(self) -> None:
        """Wait until no process is left; assert that no temporary file is."""
        until(lambda: not self.processes(), "the end of all processes")
        left = [str(path) for path in self.temporary.rglob("*")]
        assert not left, left


@contextmanager
def make_site(folder: Path) -> Iterator[Site]:
    """Working in `folder`; at the end nothing may be left, or the test fails."""
    with tempfile.TemporaryDirectory(prefix="site-") as temporary:  # short: sockets go there
        site = Site(folder, Path(temporary))
        try:
            yield site
            site.empty()
        finally:
            for pid in site.processes():
                os.kill(pid, signal.SIGKILL)
            for command in site.commands:
                command.close()


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """What the coordinator of the run in `folder` has recorded of one kind, so far."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in whole if record["kind"] == kind]


def await_training(folder: Path, workers: int = 2) -> dict[str, int]:
    """Wait until each of so many workers has reported updates; returns their process ids."""
    pids = {one["stage"]: one["pid"] for one in until_recorded(folder, "joined", workers)}

    def busy() -> bool:
        reports = records(folder, "report")
        return {one["stage"] for one in reports if one["values"]["updates"]} == set(pids)

    until(busy, f"updates of {', '.join(pids)}")
    return pids


def until_recorded(folder: Path, kind: str, count: int = 1) -> list[dict[str, Any]]:
    """Wait for so many records of one kind."""

    def found() -> list[dict[str, Any]] | None:
        known = records(folder, kind)
        return known if len(known) >= count else None

    return until(found, f"{count} records {kind!r} in {folder}")


def weights(folder: Path, tag: str = "final") -> dict[str, bytes]:
    """The weight files of a run, byte by byte."""
    return {path.name: path.read_bytes() for path in sorted((folder / tag).glob("*.safetensors"))}


def free_port() -> int:
    """A tcp port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _text(file: IO[bytes]) -> str:
    """All of it; its position, which the process shares, stays at the end."""
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode()


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _lives(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"
