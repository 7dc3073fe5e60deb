"""Who may write to a run's folder: of all processes that have had a part of the run, the last one.

```
DIR/owners/coordinator    the term of the coordinator that has the run
DIR/owners/STAGE          term and incarnation of the worker process that has the stage
```

A process that was stopped (SIGSTOP, a suspended machine, swap) does not know that it has been held
to be dead and replaced. When it wakes, it finds here that somebody came later, and keeps its hands
off. Each start of a coordinator is a new term, larger than all before; incarnations grow within
one. The files are overwritten in place, which costs no flush to the disk.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from asyncdni.errors import CheckpointError
from asyncdni.messages import COORDINATOR

__all__ = ["OWNERS", "Claim", "new_term"]

#: In the folder of a run.
OWNERS = "owners"

#: Term and incarnation; the later process has the larger one.
Order = tuple[int, int]


@dataclass(frozen=True)
class Claim:
    """What one process has of a run, and since when."""

    folder: Path  # of the run
    stages: Sequence[str]  # declared ones; or COORDINATOR
    order: Order

    def make(self) -> None:
        """From now on they belong to this process. Raises `CheckpointError` where they belong to a
        later one, or the folder can't be written."""
        self.check()
        try:
            (self.folder / OWNERS).mkdir(exist_ok=True)
            for stage in self.stages:
                _write(self._file(stage), self.order)
        except OSError as error:
            path = self.folder / OWNERS
            raise CheckpointError(f"can't write to {path}: {error.strerror}") from error

    def check(self) -> None:
        """Raises `CheckpointError` where a later process has taken them over."""
        for stage in self.stages:
            if _read(self._file(stage)) > self.order:
                who = "the run" if stage == COORDINATOR else f"stage {stage}"
                raise CheckpointError(
                    f"{self.folder}: a later process has taken over {who}, so this one writes "
                    "nothing more"
                )

    @property
    def sees_coordinator(self) -> bool:
        """The folder is the coordinator's own, and not another one with its name on this host."""
        return _read(self._file(COORDINATOR))[0] == self.order[0] > 0

    def _file(self, stage: str) -> Path:
        return self.folder / OWNERS / stage


def new_term(folder: Path) -> int:
    """Of a coordinator that takes over the run in `folder`, later than all that there were."""
    return max(time.time_ns(), *(term + 1 for term, _ in _all(folder / OWNERS)), 1)


def _all(folder: Path) -> Iterator[Order]:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            yield _read(path)


def _read(path: Path) -> Order:
    """Before everybody where there is no such file, or a damaged one."""
    try:
        line, checksum = path.read_bytes()[:100].rsplit(None, 1)
        term, incarnation = map(int, line.split())
    except (OSError, ValueError):
        return 0, 0
    return (term, incarnation) if checksum == b"%08x" % crc32(line) else (0, 0)


def _write(path: Path, order: Order) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
        line = b"%020d %010d" % order  # always as long: nothing of an older one is left
        file.write(b"%b %08x\n" % (line, crc32(line)))
