"""Worker processes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from asyncdni.errors import LaunchError

__all__ = ["LocalLauncher", "worker_command"]

#: Every BLAS that NumPy may be built with.
_THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_LAST_LINES = 5
#: All is saved and they have been let go: how long they may take over their last words.
_GRACE_S = 10.0
#: The same after an error, for those who have heard of it; the others have nothing to lose.
_CUT_S = 0.5
_TAIL_BYTES = 4096


def worker_command(stage: str, coordinator: str, *, allow_import: bool = False) -> list[str]:
    """The command line of one worker: the same as a user would type."""
    command = [sys.executable, "-m", "asyncdni", "worker"]
    command += ["--stage", stage, "--coordinator", coordinator]
    return [*command, "--allow-import"] if allow_import else command


@dataclass(slots=True)
class _Started:
    """One process of a worker."""

    process: subprocess.Popen[bytes]
    log_start: int  # where in the worker's log its own words begin
    reported: bool = False


class LocalLauncher:
    """Starts command lines, one a worker, and sees to it that none outlives the run.

    Each worker leads a session of its own, so that Ctrl-C reaches the coordinator alone; it learns
    this process's id, and leaves when that is gone. As a context manager it stops them at the end.
    What a worker says goes to its log, behind what is there already.
    """

    def __init__(self, logs: Path, threads: int = 1) -> None:
        self._logs = logs
        self._threads = threads
        self._commands: dict[str, list[str]] = {}
        self._processes: dict[str, _Started] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop(_GRACE_S if kind is None else _CUT_S)

    def start(self, commands: dict[str, Sequence[str]]) -> None:
        """`commands` by worker. Raises `LaunchError` where one can't be started."""
        for name, command in commands.items():
            self._commands[name] = list(command)
            self._start(name)

    def restart(self, name: str) -> None:
        """Run a worker's command again; whatever is left of its last process is killed first.

        Raises `LaunchError` where it can't be started.
        """
        old = self._processes.pop(name, None)
        if old is not None:
            old.process.kill()  # does nothing to one that has ended; SIGKILL wakes a stopped one
            old.process.wait()
        self._start(name)

    def exited(self) -> list[tuple[str, int, str]]:
        """(worker, exit code, last lines) of processes that have ended; each is told once."""
        ended = []
        for name, one in self._processes.items():
            code = one.process.poll()
            if code is not None and not one.reported:
                one.reported = True
                ended.append((name, code, self._last_lines(name, one.log_start)))
        return ended

    def stop(self, grace_s: float) -> None:
        """Wait that long for all to leave by themselves, then make them; Ctrl-C ends the wait."""
        deadline = time.monotonic() + grace_s
        processes = [one.process for one in self._processes.values()]
        try:
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()

    def _start(self, name: str) -> None:
        environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(self._threads))}
        environment["ASYNCDNI_PARENT_PID"] = str(os.getpid())
        try:
            with open(self._log(name), "ab") as log:
                process = subprocess.Popen(
                    self._commands[name],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=environment,
                )
                self._processes[name] = _Started(process, log.tell())
        except OSError as error:
            self.stop(0)
            raise LaunchError(f"can't start worker {name}: {error}") from error

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _last_lines(self, name: str, start: int) -> str:
        try:
            with open(self._log(name), "rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(start, end - _TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        return " | ".join(text.strip().splitlines()[-_LAST_LINES:])
