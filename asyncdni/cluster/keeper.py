"""Keeps the coordinator of a run going: it is a child of the agent of rank 0, and so are the
workers of that machine, which live on when it dies.

```
 agent of rank 0 ──┬── coordinator ✝        coordinator, with the same folder and addresses
                   │        └─ watch ─────►    │
                   ├── worker ────────── Hello ┘
                   └── worker
```
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Self

from asyncdni import logs
from asyncdni.errors import CheckpointError, LaunchError
from asyncdni.imports import PATH_VARIABLE, path_of_this_process
from asyncdni.report.records import recorded
from asyncdni.wire.beat import PARENT_VARIABLE, parent_lives

__all__ = ["KEPT", "Keeper", "leave_with_keeper"]

#: Environment variable that tells a process that it is a coordinator with a keeper: its value is
#: the folder of the run's sockets, or empty where the run takes place on several machines.
KEPT = "ASYNCDNI_KEPT"
#: How long the coordinator's last words to its agents may take to arrive after its end.
_WORDS_S = 1.0
#: How long it may take to leave where its keeper has to, and to end once it is killed.
_LEAVE_S, _KILL_S = 3.0, 2.0


class Keeper(AbstractContextManager["Keeper", None]):
    """Runs `command`, a coordinator, and runs it again whenever a signal has killed it.

    It may be killed `restarts` times in a row without a batch of training that is farther than all
    before, as the records in the run's `folder` tell, and without having lived for `patience_s`
    seconds, for which its workers wait. Any other end is that of the run, of which the coordinator
    itself has told the user. As a context manager it leaves no process behind.
    """

    def __init__(
        self,
        command: Sequence[str],
        sockets: str,
        folder: Path,
        restarts: int,
        patience_s: float,
    ) -> None:
        """`sockets`: see `KEPT`. Raises `LaunchError` if the command can't be run."""
        self._command = list(command)
        self._sockets = sockets
        self._folder = folder
        self._restarts = restarts
        self._patience_s = patience_s
        self._deaths = 0  # in a row
        self._farthest = _farthest(folder)
        self._signalled = False
        self._ended_s: float | None = None
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()  # does nothing if it has ended
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LEAVE_S)
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_S)

    def _start(self) -> None:
        own = {KEPT: self._sockets, PARENT_VARIABLE: str(os.getpid())}
        environment = {**os.environ, PATH_VARIABLE: path_of_this_process(), **own}
        self._began_s = time.monotonic()
        try:
            # In a session of its own: signals to all processes of a terminal reach it once, by us.
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, start_new_session=True, env=environment
            )
        except OSError as error:
            raise LaunchError(f"can't start the coordinator: {error}") from error

    def watch(self) -> int | None:
        """Start the coordinator again if it has been killed; return its exit code once it has ended
        by itself. Raises `LaunchError` if it has been killed too often."""
        code, now = self._process.poll(), time.monotonic()
        if code is None:
            return None
        if code >= 0 or self._signalled:
            self._ended_s = self._ended_s or now
            return self.code() if now >= self._ended_s + _WORDS_S else None
        before, self._farthest = self._farthest, max(self._farthest, _farthest(self._folder))
        lasts = self._farthest > before or now - self._began_s >= self._patience_s
        self._deaths = 1 if lasts else self._deaths + 1
        died = f"the coordinator was killed by signal {-code}"
        if self._deaths > self._restarts:
            raise LaunchError(
                f"{died}, {self._deaths} times in a row within {self._patience_s:g} s of its start "
                "(recovery.coordinator_s) and with no batch learned in between; the run ends "
                "(recovery.restarts)"
            )
        logs.own().warning(f"{died}; it is started again, and the workers wait for it")
        self._start()
        return None

    def signal(self, number: int) -> None:
        """Hand a signal on that asks the run to stop."""
        self._signalled = True
        self._process.send_signal(number)

    def code(self) -> int:
        """Wait for the end of the coordinator, and return the exit code of the run."""
        code = self._process.wait()
        return code if code >= 0 else 128 - code


def _farthest(folder: Path) -> int:
    """The farthest batch of training that a worker has reported; 0 where nothing is known of it."""
    farthest = 0
    with suppress(CheckpointError):
        for record in recorded(folder):
            if record["kind"] == "report":
                found = record["values"]
                farthest = max(farthest, found["batches"] + (found["missed"] or 0))
    return farthest


def leave_with_keeper(_: object) -> None:
    """End this process, a coordinator, at once and without a word to anybody else if its keeper has
    ended: agents elsewhere wait for the next one."""
    if parent_lives() is False:
        with suppress(OSError):
            os.write(2, b"asyncdni: the coordinator ends: the agent that has started it is gone\n")
        os._exit(1)
