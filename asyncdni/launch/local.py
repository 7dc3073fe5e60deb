"""Worker processes on this machine."""

from __future__ import annotations

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

from asyncdni.core.liveness import Sight
from asyncdni.errors import Interrupted, LaunchError, legible
from asyncdni.files import check_file
from asyncdni.handover import VARIABLE, Handover
from asyncdni.imports import PATH_VARIABLE, Allowed, import_flags, path_of_this_process

__all__ = ["LocalLauncher", "typed_command", "worker_command"]

#: What a worker runs: see there.
_ENTRY = Path(__file__).with_name("entry.py")
#: Of Python's flags, by name in `sys.flags`, those that say where modules come from.
_WORLD_FLAGS = {"isolated": "-I", "ignore_environment": "-E", "no_user_site": "-s"}
#: Every BLAS that NumPy may be built with.
_THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_LAST_LINES = 5
_LINE_CHARACTERS = 1000
#: All is saved and they have been let go: how long they may take over their last words.
_GRACE_S = 10.0
#: The same after an error, for those who have heard of it; the others have nothing to lose.
_CUT_S = 0.5
_TAIL_BYTES = 4096
#: How long a killed process may take to be gone. One that waits for a disk which does not answer
#: may take for ever, and must not be waited for.
_KILL_S = 2.0
#: States of threads, as Linux has them: stopped, by a signal or a debugger; and those that would go
#: on at once if they were given a core, or what they read from the disk.
_HELD, _WANTING = frozenset("Tt"), frozenset("RD")
#: Who has been given half a core or more is not starved.
_FREELY = 0.5


def worker_command(stage: str, coordinator: str, *, allow_import: Allowed = False) -> list[str]:
    """The command line of one worker: what a user would type, by this process's own Python."""
    flags = [flag for name, flag in _WORLD_FLAGS.items() if getattr(sys.flags, name)]
    command = [sys.executable, "-P", *flags, str(_ENTRY), "worker"]
    command += ["--stage", stage, "--coordinator", coordinator]
    return [*command, *import_flags(allow_import)]


@dataclass(slots=True)
class _Started:
    """One process of a worker."""

    process: subprocess.Popen[bytes]
    log_start: int  # where in the worker's log its own words begin
    reported: bool = False
    looked: tuple[float, float] | None = None  # when, and its CPU time by then, in seconds


class LocalLauncher:
    """Starts command lines, one a worker, and sees to it that none outlives the run.

    Each worker leads a session of its own, so that Ctrl-C reaches the coordinator alone; it learns
    this process's id, and leaves when that is gone. As a context manager it stops them at the end.
    What a worker says goes to its log, behind what is there already.
    """

    def __init__(self, logs: Path, threads: int = 1, handover: Handover | None = None) -> None:
        self._logs = logs
        self._handover = handover
        self._threads = threads
        self._commands: dict[str, list[str]] = {}
        self._processes: dict[str, _Started] = {}
        self._undying: list[subprocess.Popen[bytes]] = []  # killed, and not gone yet

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        let_go = error is None or (isinstance(error, Interrupted) and error.orderly)
        self.stop(_GRACE_S if let_go else _CUT_S)

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
            if not _ended(old.process, _KILL_S):
                self._undying.append(old.process)
        self._start(name)

    def look(self, name: str) -> Sight:
        """What a worker's process looks like; since the last look at it, where that is the
        question."""
        one = self._processes.get(name)
        found = None if one is None else _threads(one.process.pid)
        if one is None or found is None:
            return Sight.UNSEEN
        states, cpu_s = found
        now = time.monotonic()
        (since, before_s), one.looked = one.looked or (now, cpu_s), (now, cpu_s)
        if states & _HELD:
            return Sight.STILL
        given = (cpu_s - before_s) >= _FREELY * (now - since) > 0.0
        if states & _WANTING and not given:
            return Sight.STARVED
        return Sight.BUSY if cpu_s > before_s else Sight.STILL

    def last_lines(self, name: str) -> str:
        """What a worker's process has said last, in one line; "" where it has said nothing."""
        one = self._processes.get(name)
        return "" if one is None else self._last_lines(name, one.log_start)

    def exited(self) -> list[tuple[str, int, str]]:
        """(worker, exit code, last lines) of processes that have ended; each is told once."""
        self._undying = [one for one in self._undying if one.poll() is None]
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
            for process in [*processes, *self._undying]:
                _ended(process, _KILL_S)

    def _start(self, name: str) -> None:
        environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(self._threads))}
        environment["ASYNCDNI_PARENT_PID"] = str(os.getpid())
        environment[PATH_VARIABLE] = path_of_this_process()
        inherited = []
        if self._handover is not None:
            inherited.append(self._handover.descriptor)
            environment[VARIABLE] = str(self._handover.descriptor)
        try:
            check_file(self._log(name))
            with open(self._log(name), "ab") as log:
                process = subprocess.Popen(
                    self._commands[name],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=environment,
                    pass_fds=inherited,
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
        lines = text.strip().splitlines()[-_LAST_LINES:]
        return " | ".join(legible(line, _LINE_CHARACTERS) for line in lines)


def _ended(process: subprocess.Popen[bytes], within_s: float) -> bool:
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _threads(pid: int) -> tuple[set[str], float] | None:
    """States of all threads of a child of this process, and the CPU time of all together in
    seconds; None where the system does not tell (see proc(5))."""
    states, ticks = set(), 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            if int(fields[1]) != os.getpid():
                return None  # /proc is that of another namespace
            states.add(fields[0].decode())
            ticks += int(fields[11]) + int(fields[12])
        return states, ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


# --- by hand -------------------------------------------------------------------------------------
#
# The command lines of workers that people start, on any host.


def typed_command(
    stage: str, coordinator: str, flags: Sequence[str] = (), *, allow_import: Allowed = False
) -> str:
    """What to type for one worker on the coordinator's host; `coordinator` is its address.

    On other hosts the name of that host takes the place of 127.0.0.1.
    """
    # A worker on this machine reaches a socket that listens on every interface through this one.
    reachable = coordinator.replace("tcp://0.0.0.0:", "tcp://127.0.0.1:")
    words = ["asyncdni", "worker", "--stage", stage, "--coordinator", reachable, *flags]
    return shlex.join([*words, *import_flags(allow_import)])
