"""What a process takes of its machine: a core, memory, descriptors; and how it is asked to stop.

In a locked chain one stage works while the others wait, and what a stage sends is delivered by a
thread of ZeroMQ's. Left alone, the system likes to put that thread, or the receiver, on the core
where the sender goes on with what it still has to learn, and the delivery waits. On cores of their
own neighbours never wait for each other. Decoupled stages all work all the time: there no fixed
rule that was tried did clearly better than the system. But where many of them share a core, each
message that arrives interrupts whoever is running, who then finds the caches full of another's
data: so they ask to be left to run until their turn is over.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

from asyncdni import config
from asyncdni.errors import CheckpointError, ConfigError
from asyncdni.plan.plan import Group

__all__ = [
    "STOP_SIGNALS",
    "choose_core",
    "limit_memory",
    "log_place",
    "pin_process",
    "resident_bytes",
    "take_long_turns",
    "usable_cores",
    "usable_gpus",
    "wants_long_turns",
    "written",
]

#: What asks a process to stop in good order: Ctrl-C, `kill` and most engines, a closed terminal,
#: and Slurm before a job's time is over (`--signal=USR1@…`).
STOP_SIGNALS = tuple(map(int, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)))


def usable_cores() -> list[int]:
    """Cores that this process may use; empty where the system does not say (macOS)."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def usable_gpus() -> int:
    """How many GPUs this process may use: those of NVIDIA, told without loading their libraries."""
    found = len([*Path("/dev").glob("nvidia[0-9]*")])
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return found
    listed = takewhile(lambda one: one.strip() not in ("", "-1"), chosen.split(","))
    return min(found, len([*listed]))  # CUDA, too, reads no further than the first that is none


def choose_core(
    chosen: config.Experiment, index: int, workers: int, cores: Sequence[int]
) -> int | None:
    """The core for worker `index` of `workers`, whose process may use `cores`; None: any of them.

    Raises `ConfigError` for a core in `run.pin` that is none of `cores`.
    """
    pin = chosen.run.pin
    if isinstance(pin, list):
        if pin[index] not in cores:
            raise ConfigError(
                f"run.pin: worker {index} may not run on core {pin[index]}, only on "
                f"{', '.join(map(str, cores)) or 'what this system chooses'}"
            )
        return pin[index]
    alone = workers == 1 or chosen.run.threads > 1
    if pin == "none" or alone or not chosen.schedule.locks or not cores:
        return None
    return cores[index % len(cores)]


def pin_process(core: int) -> None:
    """Keep all threads of this process, those of ZeroMQ among them, on one of `usable_cores`."""
    os.sched_setaffinity(0, {core})  # threads started from now on follow this one
    _for_all_threads(lambda thread: os.sched_setaffinity(thread, {core}))


def wants_long_turns(groups: Sequence[Group], pin: object, cores: Sequence[int]) -> bool:
    """Whether the workers of these groups, whose processes may use `cores`, should
    `take_long_turns`: more than two of them share a core, none waits for what another sends, and
    `run.pin` is "auto". With two on a core nothing was gained."""
    crowded = 0 < 2 * len(cores) < len(groups)
    return crowded and pin == "auto" and all(group.schedule.cycle is None for group in groups)


def take_long_turns() -> None:
    """Make a batch job of each thread of this process (sched(7), `SCHED_BATCH`): when it wakes, it
    waits until the thread that is running on its core has had its turn; and let the turns of the
    calling thread be long. Does nothing where the system has no such jobs (macOS) or does not allow
    them."""
    if sys.platform == "linux":
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            _for_all_threads(
                lambda thread: os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
            )
        _lengthen_turns(_TURN_S)


#: How long a turn may be. The system's own, of some 3 ms, leave caches cold for the most part;
#: with 100 ms there was no difference.
_TURN_S = 0.02
#: The number of the system call `sched_setattr`, for which Python has no function.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}


def _lengthen_turns(turn_s: float) -> None:
    """Ask for turns of `turn_s` for the calling thread, which is a batch job (sched_setattr(2):
    since Linux 6.12 `sched_runtime` means that; older ones ignore it)."""
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    # struct sched_attr: size, policy, flags, nice, priority, and in ns runtime, deadline, period
    attr = struct.pack("=IIQiIQQQ", 48, os.SCHED_BATCH, 0, nice, 0, round(turn_s * 1e9), 0, 0)
    ctypes.CDLL(None).syscall(number, 0, attr, 0)  # a refusal leaves turns as they were


def _for_all_threads(change: Callable[[int], None]) -> None:
    """Call `change` with the id of each thread of this process."""
    for task in Path("/proc/self/task").glob("*"):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            change(int(task.name))


def log_place(stderr: str = "/proc/self/fd/2") -> str:
    """Return where the standard error of this process goes: `HOST:PATH` for a file, else the words
    `the output of process PID on HOST`."""
    host = socket.gethostname()
    with suppress(OSError):  # no /proc
        path = os.readlink(stderr)
        if os.path.isfile(path):
            return f"{host}:{path}"
    return f"the output of process {os.getpid()} on {host}"


# --- memory --------------------------------------------------------------------------------------

T = TypeVar("T")

_NO_DESCRIPTOR_S = 5.0
_AGAIN_S = 0.01

_STATM = Path("/proc/self/statm")  # Linux: sizes in pages, the second is the resident set


def resident_bytes(statm: Path = _STATM) -> int | None:
    """The resident set right now, pages shared with others included; None where none can be read.

    The peak, which every system gives, would not do: it never falls, and so hides whether memory
    still grows.
    """
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def limit_memory(bytes_max: int, statm: Path = _STATM) -> None:
    """From now on this process has no more address space: what asks for more gets `MemoryError`.

    Raises `ConfigError` where it has more already.
    """
    try:
        held = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        held = 0
    if held >= bytes_max:
        raise ConfigError(
            f"limits.memory_bytes: {bytes_max} is less than the {held} bytes of address space that "
            "a worker has before it builds anything; raise it"
        )
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = bytes_max if hard == resource.RLIM_INFINITY else min(bytes_max, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def written(write: Callable[[], T], patience_s: float = _NO_DESCRIPTOR_S) -> T:
    """What `write` gives, which is done once more for as long as no file can be opened.

    Strangers may have taken all descriptors for a moment, until they are turned away: see
    `wire.port`. Raises what `write` raises for another reason, or still after `patience_s`.
    """
    ends_at = time.monotonic() + patience_s
    while True:
        try:
            return write()
        except CheckpointError as error:
            cause = error.__cause__
            lacking = isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE)
            if not lacking or time.monotonic() > ends_at:
                raise
        time.sleep(_AGAIN_S)
