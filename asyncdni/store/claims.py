"""Claims: which process may write to a run's folder. The last one that started may.

```
DIR/owners/coordinator    the term of the coordinator that runs the run
DIR/owners/STAGE          term and incarnation of the worker process that holds the stage
```

A process that was stopped (SIGSTOP, a suspended machine, swap) does not know that it was declared
dead and replaced. When it wakes up, it finds the claim of its successor here and writes nothing
more. Each start of a coordinator is a new, larger term; incarnations grow within a term. The files
are overwritten in place, which costs no flush to the disk.
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

__all__ = [
    "OWNERS",
    "Claim",
    "new_term",
    "present_term",
]

#: The folder of the claims, in the folder of a run.
OWNERS = "owners"

#: Term and incarnation; the later process has the larger one.
Order = tuple[int, int]


@dataclass(frozen=True)
class Claim:
    """What one process owns of a run, and how recently it started."""

    folder: Path  # the run's
    stages: Sequence[str]  # declared stages, or COORDINATOR alone
    order: Order

    def make(self) -> None:
        """Take the stages over for this process.

        Raises `CheckpointError` where a later process owns one, or the folder can't be written.
        """
        self.check()
        try:
            (self.folder / OWNERS).mkdir(exist_ok=True)
            for stage in self.stages:
                _write(self._file(stage), self.order)
        except OSError as error:
            path = self.folder / OWNERS
            raise CheckpointError(f"can't write to {path}: {error.strerror}") from error

    def check(self) -> None:
        """Raise `CheckpointError` where a later process has taken one of the stages over."""
        for stage in self.stages:
            if _read(self._file(stage)) > self.order:
                who = "the run" if stage == COORDINATOR else f"stage {stage}"
                raise CheckpointError(
                    f"{self.folder}: a later process has taken over {who}, so this one writes "
                    "nothing more"
                )

    @property
    def sees_coordinator(self) -> bool:
        """Whether the folder is the coordinator's own, not another of that name on this host."""
        return present_term(self.folder) == self.order[0] > 0

    def _file(self, stage: str) -> Path:
        return self.folder / OWNERS / stage


def new_term(folder: Path) -> int:
    """A term for a new coordinator of the run in `folder`: larger than all before it."""
    return max(time.time_ns(), *(term + 1 for term, _ in _all(folder / OWNERS)), 1)


def present_term(folder: Path) -> int:
    """The term of the coordinator that runs the run in `folder`; 0 where none has claimed it."""
    return _read(folder / OWNERS / COORDINATOR)[0]


def _all(folder: Path) -> Iterator[Order]:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            yield _read(path)


def _read(path: Path) -> Order:
    """The claim in a file; (0, 0), older than any, where it is missing or damaged."""
    try:
        line, checksum = path.read_bytes()[:100].rsplit(None, 1)
        term, incarnation = map(int, line.split())
    except (OSError, ValueError):
        return 0, 0
    return (term, incarnation) if checksum == b"%08x" % crc32(line) else (0, 0)


def _write(path: Path, order: Order) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
        line = b"%020d %010d" % order  # of fixed length: it covers the older one
        file.write(b"%b %08x\n" % (line, crc32(line)))
