"""Keep one half second of a run's timeline, where tracing all of it would change what is measured.

```
 training begins                 TRAINED_S later
 ├───────────── workers send slices ─────┤ workers send none any more
                            └─ kept: the newest one in which every worker has trained
```

A slice has the first ops of a half second (see `core.slices`), so that a worker sends no more than
8,000 bytes a second until then, and nothing from there on. DIR/excerpt.json holds the slice:

```
begin_s  when it begins, in seconds after the first record of the run
slices   by worker: until when it has every op in microseconds after that, and the ops, each of four
         numbers, as in `core.slices`
```
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asyncdni.core.slices import EVALUATION, SLICE_S, fault
from asyncdni.files import read_file
from asyncdni.page.state import RunState
from asyncdni.plan.build import Design
from asyncdni.report.records import Recorder
from asyncdni.store.tensors import write_atomically

__all__ = ["FILE", "TRAINED_S", "Excerpt", "read_excerpt"]

FILE = "excerpt.json"
#: For how long after the begin of training workers send slices.
TRAINED_S = 3.0


class Excerpt:
    """Keeps the excerpt of a run; an observer of its records beside `state` (see
    `launch.conduct.Observer`)."""

    def __init__(self, state: RunState) -> None:
        """`state` is an observer of the same run, and passes on what is asked of its workers."""
        self._state = state
        self._asks = True
        self._end_s = math.inf  # when no slices are wanted any more
        self._zero_s: float | None = None  # when the run began, on the clock of slices
        self._slices: dict[int, dict[str, list[int]]] = {}  # by number, and worker
        self._workers: tuple[str, ...] = ()
        state.watched(1)

    def __call__(
        self, design: Design, recorder: Recorder, kind: str, values: Mapping[str, Any]
    ) -> None:
        """Take one record."""
        if not self._asks:
            return
        if self._zero_s is None:
            self._zero_s = time.time()
            self._workers = tuple(group.name for group in design.plan.groups)
        if kind == "start":
            self._end_s = values["time_s"] + TRAINED_S
        elif kind == "slices":
            for number, *slice_ in values["slices"]:
                self._slices.setdefault(number, {})[values["stage"]] = slice_
        if values["time_s"] >= self._end_s:
            self._asks = False
            self._state.watched(-1)

    def write(self, folder: Path) -> None:
        """Write the excerpt to the folder of the run; nothing if the run was too short to have one.
        Raises `CheckpointError`."""
        whole = [number for number, found in self._slices.items() if self._has_trained(found)]
        if not whole:
            return
        number = max(whole)
        begin_s = number * SLICE_S - (self._zero_s or 0.0)
        found = {"begin_s": round(begin_s, 6), "slices": self._slices[number]}
        write_atomically(folder / FILE, json.dumps(found, separators=(",", ":")).encode())

    def _has_trained(self, found: Mapping[str, list[int]]) -> bool:
        """Whether each worker has sent that slice, with an op of training in it."""
        return all(
            any(code != ord(EVALUATION) for code in found.get(name, ())[1::4])
            for name in self._workers
        )


def read_excerpt(folder: Path) -> tuple[float, dict[str, list[int]]] | None:
    """Return the `begin_s` and `slices` of the excerpt in the folder of a run; None if it has none,
    or one that is damaged."""
    try:
        found = json.loads(read_file(folder / FILE))
        begin_s, slices = float(found["begin_s"]), dict(found["slices"])
        whole = math.isfinite(begin_s) and all(
            all(type(one) is int for one in slice_) and fault([[0, *slice_]]) is None
            for slice_ in slices.values()
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return (begin_s, slices) if whole else None
