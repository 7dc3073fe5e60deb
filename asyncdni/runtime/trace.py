"""When each op of a worker ran: the raw material of timelines."""

from __future__ import annotations

import json
from pathlib import Path

from asyncdni.schedules.base import Op
from asyncdni.weights import write_atomically

__all__ = ["OPS_MAX", "Trace"]

#: Ops kept of one worker: some 30 MB on disk, minutes of training.
OPS_MAX = 400_000


class Trace:
    """Ops with their start and end on the monotonic clock, which all processes of a host share."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ops: list[tuple[str, int, float, float]] = []

    def add(self, op: Op, start_s: float, end_s: float) -> None:
        if len(self._ops) < OPS_MAX:
            self._ops.append((op.letter, op.batch, start_s, end_s))

    def write(self) -> None:
        """One JSON line an op: [letter, batch, start_s, end_s]."""
        lines = (json.dumps(entry) + "\n" for entry in self._ops)
        write_atomically(self._path, "".join(lines).encode())
