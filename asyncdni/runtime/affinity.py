"""Which core a worker may run on.

In a locked chain one stage works while the others wait, and what a stage sends is delivered by a
thread of ZeroMQ's. Left alone, the system likes to put that thread, or the receiver, on the core
where the sender goes on with what it still has to learn, and the delivery waits. On cores of their
own neighbours never wait for each other. Decoupled stages all work all the time: there no fixed
rule that was tried did clearly better than the system.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from asyncdni import config
from asyncdni.errors import ConfigError

__all__ = ["choose_core", "pin_process", "usable_cores"]


def usable_cores() -> list[int]:
    """Cores that this process may use; empty where the system does not say (macOS)."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


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
    if pin == "none" or alone or not isinstance(chosen.schedule, config.Locked) or not cores:
        return None
    return cores[index % len(cores)]


def pin_process(core: int) -> None:
    """Keep all threads of this process, those of ZeroMQ among them, on one of `usable_cores`."""
    os.sched_setaffinity(0, {core})  # threads started from now on follow this one
    for task in Path("/proc/self/task").glob("*"):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(task.name), {core})
