"""Rolling snapshots: each worker keeps a recent state of its stage on disk, for its successor."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from asyncdni.backends.base import Stage
from asyncdni.checkpoint import Claim, write_state
from asyncdni.core.counts import Counts
from asyncdni.errors import CheckpointError

__all__ = ["SNAPSHOTS", "Snapshots"]

#: Folder of the run's that they are in.
SNAPSHOTS = "snapshots"

#: From one to the next at least so many times what the last one took: about 1 % of the time.
_SPARSE = 100.0
_NEVER = float("inf")


class Snapshots:
    """When the next one is due, and the writing of it.

    One that can't be written is told once on standard error, and does not end the run as long as
    the folder of the run is there: what is committed stays, and the next one may succeed.
    """

    def __init__(self, folder: str, every_s: float | None) -> None:
        """`folder` of the run; empty, or `every_s` None: nothing is written."""
        self.count = 0
        self.seconds = 0.0  # spent on all of them
        self.due_s = _NEVER  # on the clock of `time.monotonic`
        self._folder = Path(folder, SNAPSHOTS)
        self._every_s = _NEVER if every_s is None or not folder else every_s
        self._complained = False
        if self.wanted:
            self.due_s = time.monotonic() + self._every_s

    @property
    def wanted(self) -> bool:
        return self._every_s < _NEVER

    def write(self, stage: Stage, counts: Counts, claim: Claim | None = None) -> None:
        """Now, on this thread; the stage has applied all that it has accumulated.

        One of a process that has been replaced, by `claim`, is not written. Raises
        `CheckpointError` where the folder of the run is gone.
        """
        began = time.monotonic()
        try:
            state = stage.snapshot()
            write_state(self._folder, state, counts.state(), durable=False, claim=claim)
            self.count += 1
        except CheckpointError as error:
            if not self._folder.parent.is_dir():
                raise
            if not self._complained:
                print(f"asyncdni: no snapshot was written: {error}", file=sys.stderr, flush=True)
            self._complained = True
        ended = time.monotonic()
        self.seconds += ended - began
        self.due_s = ended + max(self._every_s, _SPARSE * (ended - began))

    def counters(self) -> dict[str, float | int | None]:
        """For reports."""
        return {"snapshots": self.count, "snapshot_s": self.seconds}
