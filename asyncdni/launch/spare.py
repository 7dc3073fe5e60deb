"""A worker's process in advance: it has imported what every worker needs, and waits for its name.

```
 launcher ── starts ──► spare: imports
          ── a line ──► opens the log of a worker, and goes on as `asyncdni worker --stage …`
          ── no more ─► leaves: the launcher has ended, however it did
```

Importing is most of what a start takes: about half a second of a core, and as much again with
numba. A stage that has died comes back sooner by that.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from asyncdni.nn import fused
from asyncdni.wire.beat import parent_lives

__all__ = ["AWAIT", "SPARE_BYTES", "Spare", "await_orders"]

#: The only argument of a process that is to wait.
AWAIT = "--await"
#: What a spare holds that it does not share with other processes, with numba and some more.
SPARE_BYTES = 96 * 2**20
#: What it imports; what an experiment needs beside that depends on it.
_MODULES = ("asyncdni.cli.worker", "asyncdni.drivers.real.process", "importlib.metadata")
_LOOK_EVERY_S = 1.0


class Spare:
    """A process that `command` with the argument `AWAIT` has begun, in a session of its own.

    Raises `OSError` if it can't be started.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], inherited: Sequence[int]
    ) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._waits = True
        self._process = subprocess.Popen(
            [*command, AWAIT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=self._environment,
            pass_fds=inherited,
        )

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def become(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes] | None:
        """Have it go on as `command`, with its output added to `log`, and return its process. None
        if it has ended, or was started in another way than the command would be."""
        own = len(self._command)
        if list(command[:own]) != self._command or dict(environment) != self._environment:
            return None
        orders = {"words": command[own:], "log": os.path.abspath(log)}
        pipe = self._process.stdin
        assert pipe is not None
        if not self._waits or self._process.poll() is not None:
            return None
        try:
            pipe.write(json.dumps(orders).encode() + b"\n")
            pipe.close()
        except OSError:  # it has ended just now
            return None
        self._waits = False
        return self._process

    def close(self) -> None:
        """End it, unless it has become a worker's process."""
        if not self._waits:
            return
        self._waits = False
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()


def await_orders() -> None:
    """Import what workers need and wait; return as the process of one, its arguments in `sys.argv`.
    Raises `SystemExit` where there is nobody left to be told by."""
    for name in _MODULES:
        importlib.import_module(name)
    fused.prepare(np.dtype(np.float32))
    while not select.select([0], [], [], _LOOK_EVERY_S)[0]:
        if parent_lives() is False:
            raise SystemExit(0)
    line = sys.stdin.buffer.readline()
    if not line:
        raise SystemExit(0)
    orders = json.loads(line)
    log = os.open(orders["log"], os.O_WRONLY | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, descriptors in ((null, [0]), (log, [1, 2])):
        for descriptor in descriptors:
            os.dup2(source, descriptor)
        os.close(source)
    sys.argv[1:] = orders["words"]
