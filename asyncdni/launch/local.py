"""Start and stop worker processes on this machine."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from asyncdni import logs
from asyncdni.core.liveness import Sight
from asyncdni.errors import Interrupted, LaunchError, legible
from asyncdni.files import check_file
from asyncdni.handover import VARIABLE, Handover
from asyncdni.imports import PATH_VARIABLE, Allowed, import_flags, path_of_this_process
from asyncdni.launch.forkserver import FORK_VARIABLE, Forked, ForkServer
from asyncdni.wire.beat import PARENT_VARIABLE

__all__ = [
    "LocalLauncher",
    "last_lines",
    "own_command",
    "start_fork_server",
    "typed_command",
    "worker_command",
]

#: The file that a worker process runs first.
_ENTRY = Path(__file__).with_name("entry.py")
#: Python's flags that decide where modules come from, by name in `sys.flags`.
_WORLD_FLAGS = {"isolated": "-I", "ignore_environment": "-E", "no_user_site": "-s"}
#: The variables that set the threads of each BLAS that NumPy may be built with.
_THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_LAST_LINES = 5
_LINE_CHARACTERS = 1000
#: How long workers may take to leave after an orderly end.
_GRACE_S = 10.0
#: How long they may take after an error. Most have nothing left to save.
_ERROR_GRACE_S = 0.5
#: How long workers may take to leave whom a second signal has told to, and how long after the first
#: one that signal is no longer taken for the same request.
_LEAVE_S, _SIGNALS_APART_S = 3.0, 0.4
_TAIL_BYTES = 4096
#: How long to wait for a killed process to end. One that waits for a disk may never end.
_KILL_S = 2.0
#: States of threads in Linux: stopped by a signal or a debugger; running, or waiting for a core or
#: a disk.
_STOPPED, _RUNNABLE = frozenset("Tt"), frozenset("RD")
#: A runnable process that gets less than this share of a core is starved.
_STARVED_BELOW = 0.5


def own_command(words: Sequence[str]) -> list[str]:
    """Return the command line of another process of this program, run by this process's Python."""
    flags = [flag for name, flag in _WORLD_FLAGS.items() if getattr(sys.flags, name)]
    return [sys.executable, "-P", *flags, str(_ENTRY), *words]


def worker_command(stage: str, coordinator: str, *, allow_import: Allowed = False) -> list[str]:
    """Return the command line of one worker, run by this process's Python."""
    words = ["worker", "--stage", stage, "--coordinator", coordinator]
    return own_command([*words, *import_flags(allow_import), *logs.flags()])


def start_fork_server(threads: int = 1, handover: Handover | None = None) -> ForkServer | None:
    """Start a process that can fork any worker of a `LocalLauncher` with the same arguments; None
    where this system has none to give, or the user wants none."""
    if os.environ.get(FORK_VARIABLE) == "0":
        return None
    inherited = [] if handover is None else [handover.descriptor]
    try:
        return ForkServer(own_command([]), _environment(threads, handover), inherited)
    except OSError:
        return None


def _environment(threads: int, handover: Handover | None) -> dict[str, str]:
    """The environment of a worker's process."""
    own = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    own |= {PARENT_VARIABLE: str(os.getpid()), PATH_VARIABLE: path_of_this_process()}
    if handover is not None:
        own[VARIABLE] = str(handover.descriptor)
    return {**os.environ, **own}


_Process = subprocess.Popen[bytes] | Forked


@dataclass(slots=True)
class _Started:
    """One process of a worker."""

    process: _Process
    log_start: int  # where in the worker's log the output of this process begins
    reported: bool = False
    looked: tuple[float, float] | None = None  # time and CPU time of the last look, in seconds


class LocalLauncher:
    """Starts worker processes from command lines, and makes sure that none outlives the run.

    Each worker gets a session of its own, so that Ctrl-C reaches only the coordinator; it also gets
    this process's id, and leaves when this process has ended. As a context manager it stops the
    workers at the end. A worker's output is appended to its log.

    `libraries`: those of `forkserver.LIBRARIES` that workers need; `server`: a fork server that has
    been started before.
    """

    def __init__(
        self,
        logs: Path,
        threads: int = 1,
        handover: Handover | None = None,
        *,
        libraries: Sequence[str] = (),
        server: ForkServer | None = None,
    ) -> None:
        self._logs = logs
        self._handover = handover
        self._threads = threads
        self._libraries = libraries
        self._server = server
        self._forks = True  # whether a fork server is of use
        if server is not None:
            server.load(libraries)
        self._commands: dict[str, list[str]] = {}
        self._processes: dict[str, _Started] = {}
        self._unreaped: list[_Process] = []  # killed, but not ended yet

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        let_go = error is None or (isinstance(error, Interrupted) and error.orderly)
        self.stop(_GRACE_S if let_go else _ERROR_GRACE_S)

    def start(self, commands: dict[str, Sequence[str]]) -> None:
        """Start the `commands`, by worker. Raises `LaunchError` if one can't be started."""
        for name, command in commands.items():
            self._commands[name] = list(command)
            self._start(name)

    def restart(self, name: str) -> None:
        """Kill what is left of a worker's last process, and run its command again.

        Raises `LaunchError` if it can't be started.
        """
        old = self._processes.pop(name, None)
        if old is not None:
            if old.process.poll() is None and old.process.pid is None:
                self._forks = False  # the fork server hangs
                self._close_server()
            old.process.kill()  # does nothing if it has ended; SIGKILL also ends a stopped process
            if not _ended(old.process, _KILL_S):
                self._unreaped.append(old.process)
        self._start(name)

    def look(self, name: str) -> Sight:
        """Tell what state a worker's process is in, judged by its CPU time since the last look."""
        one = self._processes.get(name)
        pid = None if one is None else one.process.pid
        found = None if pid is None else _threads(pid)
        if one is None or found is None:
            return Sight.UNSEEN
        states, cpu_s = found
        now = time.monotonic()
        (since, before_s), one.looked = one.looked or (now, cpu_s), (now, cpu_s)
        if states & _STOPPED:
            return Sight.STILL
        given = (cpu_s - before_s) >= _STARVED_BELOW * (now - since) > 0.0
        if states & _RUNNABLE and not given:
            return Sight.STARVED
        return Sight.BUSY if cpu_s > before_s else Sight.STILL

    def last_lines(self, name: str) -> str:
        """Return the last output of a worker's process, in one line; empty if there is none."""
        one = self._processes.get(name)
        return "" if one is None else last_lines(self._log(name), one.log_start)

    def exited(self) -> list[tuple[str, int, str]]:
        """Return (worker, exit code, last lines) of processes that have ended, each once. Raises
        `LaunchError` if one that was to be forked can't be started otherwise."""
        self._unreaped = [one for one in self._unreaped if one.poll() is None]
        self._start_lost()
        ended = []
        for name, one in self._processes.items():
            code = one.process.poll()
            if code is not None and not one.reported:
                one.reported = True
                ended.append((name, code, last_lines(self._log(name), one.log_start)))
        return ended

    def running(self) -> list[str]:
        """Return the workers whose process lives."""
        return [name for name, one in self._processes.items() if one.process.poll() is None]

    def let_leave(self) -> None:
        """Have all workers keep what they have learned and leave, where nobody else tells them to;
        those that take too long are killed."""
        for _ in range(2):  # workers leave the first one to their coordinator
            for one in self._processes.values():
                one.process.terminate()
            time.sleep(_SIGNALS_APART_S)
        self.stop(_LEAVE_S)

    def moves(self) -> list[tuple[str, str]]:
        """Return nothing: on one machine all workers stay where they are."""
        return []

    def settle(self) -> None:
        """Wait until all workers have left; their logs are in the folder of the run."""
        self.stop(_GRACE_S)

    def stop(self, grace_s: float) -> None:
        """Wait up to `grace_s` for all workers to leave, then kill them; Ctrl-C ends the wait."""
        deadline = time.monotonic() + grace_s
        processes = [one.process for one in self._processes.values()]
        try:
            self._close_server()
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for process in processes:
                process.kill()
            for process in [*processes, *self._unreaped]:
                _ended(process, _KILL_S)

    def _start(self, name: str) -> None:
        command, environment = self._commands[name], _environment(self._threads, self._handover)
        try:
            check_file(self._log(name))
            with open(self._log(name), "ab") as log:
                begins = log.tell()  # before the process writes: it has the same position
                process = self._forked(name, environment) or subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=environment,
                    pass_fds=[] if self._handover is None else [self._handover.descriptor],
                )
                self._processes[name] = _Started(process, begins)
        except OSError as error:
            self.stop(0)
            raise LaunchError(f"can't start worker {name}: {error}") from error

    # --- the fork server -------------------------------------------------------------------------

    def _forked(self, name: str, environment: dict[str, str]) -> Forked | None:
        """The process of a worker that the fork server is to fork; None where it can't."""
        command, own = self._commands[name], own_command([])
        if not self._forks or command[: len(own)] != own:
            return None
        if self._server is not None:
            forked = self._server.fork(command, environment, self._log(name))
            if forked is not None:
                return forked
            self._close_server()  # it has ended, or was begun for other workers
        self._server = start_fork_server(self._threads, self._handover)
        if self._server is None:
            return None
        self._server.load(self._libraries)
        return self._server.fork(command, environment, self._log(name))

    def _start_lost(self) -> None:
        """Start what the fork server has not come to: its processes can't be forked."""
        for name, one in [*self._processes.items()]:
            if isinstance(one.process, Forked) and one.process.poll() is None and one.process.lost:
                self._forks = False
                self._start(name)

    def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"


def last_lines(log: Path, start: int) -> str:
    """Return the last warnings and errors that a log has from the byte `start` on, in one line;
    empty if there are none or it can't be read."""
    try:
        with open(log, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    said = [logs.parsed(line) for line in text.strip().splitlines()]
    lines = [words for level, words in said if level >= logging.WARNING][-_LAST_LINES:]
    return " | ".join(legible(line, _LINE_CHARACTERS) for line in lines)


def _ended(process: _Process, within_s: float) -> bool:
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _threads(pid: int) -> tuple[set[str], float] | None:
    """Return the states of all threads of a child process, and their CPU time together in seconds;
    None where the system does not tell (see proc(5))."""
    states, ticks = set(), 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            if int(fields[1]) != os.getpid():
                return None  # /proc belongs to another namespace
            states.add(fields[0].decode())
            ticks += int(fields[11]) + int(fields[12])
        return states, ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def typed_command(
    stage: str, coordinator: str, flags: Sequence[str] = (), *, allow_import: Allowed = False
) -> str:
    """Return the command line that a user types to start one worker on the coordinator's host.

    `coordinator` is its address. On other hosts that host's name takes the place of 127.0.0.1, or
    of [::1].
    """
    # A socket that listens on every interface is reached at 127.0.0.1 from the same machine.
    reachable = coordinator.replace("tcp://0.0.0.0:", "tcp://127.0.0.1:")
    reachable = reachable.replace("tcp://[::]:", "tcp://[::1]:")
    words = ["asyncdni", "worker", "--stage", stage, "--coordinator", reachable, *flags]
    return shlex.join([*words, *import_flags(allow_import)])
