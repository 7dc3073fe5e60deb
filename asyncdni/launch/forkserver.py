"""A process that has imported what workers need and forks them, so that a start imports nothing.

```
 launcher            fork server              a process between    worker
 ── starts ────────► imports
 ── a line ────────► forks ─────────────────► forks, ends ───────► waits until it is adopted
    adopts the worker: prctl(2), subreapers
 ◄─ process id ─────────────────────────────────────────────────── goes on as
                                                                   `asyncdni worker --stage …`
 ── no more lines ─► leaves: the launcher has ended, however it did
```

Importing is most of a start: half a second of a core, one second with numba, two with PyTorch. The
workers of a machine share that, and the memory that they don't write to. A worker's parent is the
launcher, as if it had been started from there, so both see each other's end.

Needs Linux. Elsewhere, and with `ASYNCDNI_FORK=0` in the environment, each worker is a process that
imports for itself.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path

import numpy as np

from asyncdni.nn import fused
from asyncdni.wire.beat import parent_lives

__all__ = [
    "FORK",
    "FORK_VARIABLE",
    "LIBRARIES",
    "SERVER_BYTES",
    "ForkServer",
    "Forked",
    "serve_forks",
]

#: The first argument of a fork server. The second is blank: a worker's command line is written over
#: it, so that lists of processes show that one.
FORK, _BLANK = "--fork", " " * 1024
#: With 0 in this variable of the environment, each worker is a process that imports for itself.
FORK_VARIABLE = "ASYNCDNI_FORK"
#: What a fork server holds that it does not share with other processes, with numba and some more.
SERVER_BYTES = 96 * 2**20
#: What every worker imports.
_MODULES = ("asyncdni.cli.worker", "asyncdni.drivers.real.process", "importlib.metadata")
#: What stages in PyTorch import; the last two PyTorch itself, once it works out shapes.
_TORCH_MODULES = (
    *("asyncdni.nn.torch.model", "asyncdni.nn.torch.optimizer"),
    *("torch.utils._device", "torch.fx.experimental.symbolic_shapes"),
)
#: What the workers of some experiments need beside that: name -> how to load it.
LIBRARIES: dict[str, Callable[[], object]] = {
    "numba": lambda: fused.prepare(np.dtype(np.float32)),
    "torch": lambda: [importlib.import_module(name) for name in _TORCH_MODULES],
}
_LOOK_EVERY_S = 1.0
_WAIT_EVERY_S, _ADOPTED_EVERY_S = 0.01, 0.001
_PR_SET_CHILD_SUBREAPER = 36


# --- in the launcher -----------------------------------------------------------------------------


class Forked:
    """A worker's process that a fork server is to fork; what `subprocess.Popen` has of it.

    Until the server has done that, and while it imports, `pid` is None.
    """

    def __init__(self, server: ForkServer) -> None:
        self._server = server
        self._unwanted = False  # it was killed before it was there
        self.pid: int | None = None
        self.returncode: int | None = None
        self.lost = False  # the server has ended without forking it

    def begin(self, pid: int) -> None:
        """Note which process it is; 0: the system had none to give."""
        if pid == 0:
            self.returncode = 1
            return
        self.pid = pid
        if self._unwanted:
            self.kill()

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it lives or is not there yet."""
        if self.pid is None and self.returncode is None:
            self._server.hear()
        if self.pid is not None and self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has asked for its end
                self.returncode = 0
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Its exit code, once it has ended. Raises `subprocess.TimeoutExpired` after `timeout`
        seconds."""
        ends_at = time.monotonic() + timeout
        while (code := self.poll()) is None and not self.lost:
            if time.monotonic() >= ends_at:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(_WAIT_EVERY_S)
        return -signal.SIGKILL if code is None else code

    def terminate(self) -> None:
        """Ask it to stop."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.poll() is not None:
            return
        if self.pid is None:
            self._unwanted = True
            self.returncode = -number if self.lost else None  # nobody is to start it elsewhere
        else:
            os.kill(self.pid, number)  # nobody else has this id as long as its end is not asked for


class ForkServer:
    """Starts a fork server by `command`, in a session of its own. From then on this process adopts
    the descendants whose parents have ended.

    Raises `OSError` if it can't be started, or this system adopts none.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], inherited: Sequence[int]
    ) -> None:
        _adopt_orphans()
        self._command = list(command)
        self._environment = dict(environment)
        self._awaited: dict[int, Forked] = {}  # by the number of the order
        self._ordered = 0
        self._rest = b""  # of an answer
        self._process = subprocess.Popen(
            [*command, FORK, _BLANK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=self._environment,
            pass_fds=inherited,
            bufsize=0,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders, self._answers = self._process.stdin, self._process.stdout
        os.set_blocking(self._answers.fileno(), False)

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def load(self, libraries: Sequence[str]) -> None:
        """Have it load some of `LIBRARIES` before it forks anything else."""
        with suppress(OSError):  # it has ended, as the next order will tell
            self._order({"libraries": [*libraries]})

    def fork(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> Forked | None:
        """Have it fork a process that goes on as `command`, with its output added to `log`. None if
        it has ended, or was started in another way than the command would be."""
        own = len(self._command)
        if list(command[:own]) != self._command or dict(environment) != self._environment:
            return None
        number = self._ordered = self._ordered + 1
        try:
            self._order({"number": number, "words": command[own:], "log": os.path.abspath(log)})
        except OSError:
            return None
        forked = self._awaited[number] = Forked(self)
        return forked

    def hear(self) -> None:
        """Take in which processes it has forked."""
        if self._answers.closed:
            return
        try:
            while (data := os.read(self._answers.fileno(), 4096)) != b"":
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    number, pid = map(int, line.split())
                    if (forked := self._awaited.pop(number, None)) is not None:
                        forked.begin(pid)
        except BlockingIOError:
            return
        for forked in self._awaited.values():  # the server has ended
            forked.lost = True
        self._awaited.clear()

    def close(self) -> None:
        """End it; what it has forked lives on."""
        self._process.kill()
        self._process.wait()
        self.hear()
        for pipe in (self._orders, self._answers):
            with suppress(OSError):
                pipe.close()

    def _order(self, order: Mapping[str, object]) -> None:
        """Send a line. Raises `OSError` if nobody reads it any more."""
        if self._process.poll() is not None:
            raise BrokenPipeError
        self._orders.write(json.dumps(order).encode() + b"\n")


def _adopt_orphans() -> None:
    """Become the parent of descendants whose parent has ended. Raises `OSError`."""
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("this system has no subreapers")


# --- in the fork server --------------------------------------------------------------------------


def serve_forks() -> None:
    """Import what workers need, and fork as is told on the standard input; return in each worker's
    process, with its arguments in `sys.argv`. Raises `SystemExit` where there is nobody left to be
    told by, or nothing may be forked: another thread might hold a lock."""
    for name in _MODULES:
        importlib.import_module(name)
    with open(0, "rb", buffering=0, closefd=False) as orders:
        while line := _next_line(orders):
            order = json.loads(line)
            for name in order.get("libraries", ()):
                with suppress(Exception):  # the worker that needs it meets the same, and says so
                    LIBRARIES[name]()
            gc.freeze()  # so that the collector writes to no object that forks share
            if threading.active_count() > 1:
                break
            if "words" in order and _is_forked(order["number"], order["log"]):
                sys.argv[1:] = order["words"]
                sys.orig_argv[-len((FORK, _BLANK)) :] = order["words"]
                _show_command(sys.orig_argv)
                return
    raise SystemExit(0)


def _next_line(orders: FileIO) -> bytes:
    """The next order; empty where no more will come."""
    while not select.select([orders], [], [], _LOOK_EVERY_S)[0]:
        if parent_lives() is False:
            return b""
    return orders.readline()


def _is_forked(number: int, log: str) -> bool:
    """Fork the worker's process of an order and tell the launcher which; whether this one is it."""
    between = _fork(log)
    if between:
        if between < 0 or os.waitpid(between, 0)[1] != 0:
            _answer(number, 0)
        return False
    parent = os.getpid()
    worker = _fork(log)
    if worker:
        os._exit(0 if worker > 0 else 1)
    while os.getppid() == parent:
        time.sleep(_ADOPTED_EVERY_S)
    if not _answer(number, os.getpid()):  # not before: nobody can wait for another's child
        os._exit(0)
    os.setsid()
    _redirect(log)
    np.random.seed()  # anew: otherwise forks would draw the same where users' code seeds nothing
    return True


def _answer(number: int, pid: int) -> bool:
    """Tell the launcher which process an order has led to, 0 for none; whether it listens."""
    try:
        os.write(1, b"%d %d\n" % (number, pid))
    except OSError:
        return False
    return True


def _fork(log: str) -> int:
    """As `os.fork`, but -1 where that fails, with the reason in the worker's log."""
    try:
        return os.fork()
    except OSError as error:
        with suppress(OSError), open(log, "ab") as file:
            file.write(f"can't start a process: {error.strerror}\n".encode())
        return -1


def _redirect(log: str) -> None:
    """Read from nowhere from now on, and write to the log."""
    written = os.open(log, os.O_WRONLY | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, descriptors in ((null, [0]), (written, [1, 2])):
        for descriptor in descriptors:
            os.dup2(source, descriptor)
        os.close(source)


def _show_command(words: Sequence[str]) -> None:
    """Have lists of processes show these words as the command line of this process, or as many of
    their bytes as it has had. Does nothing where the system does not say where that one is."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5)
    room = len(Path("/proc/self/cmdline").read_bytes())
    if start and end - start == room:
        text = b"".join(os.fsencode(word) + b"\0" for word in words)[: room - 1]
        ctypes.memmove(start, text.ljust(room, b"\0"), room)
