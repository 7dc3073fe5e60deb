"""What a worker did when, on disk: DIR/trace/WORKER.npz, one record of 32 bytes an event.

```
events  structured array, in the order of the events' ends: see `RECORD`
names   what the numbers in `events` stand for: letters of ops, kinds of messages, workers
lost    events that were not kept, as there were too many
clock   what `time.perf_counter` is on that host
```

Times are seconds of `time.perf_counter`. On Linux that is CLOCK_MONOTONIC, which all processes of a
host share, so that the events of its workers can be put side by side; across hosts they can't.
"""

from __future__ import annotations

import io
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asyncdni.errors import CheckpointError
from asyncdni.files import open_file

__all__ = [
    "ACTIVATION",
    "DATA",
    "GRADIENT",
    "NO_BATCH",
    "OP",
    "OP_NAMES",
    "RECEIVED",
    "RECORD",
    "SENT",
    "SLOWED",
    "WAIT",
    "Link",
    "WorkerTrace",
    "encode",
    "links",
    "read_trace",
    "trace_path",
]

#: One event. `name` and `peer` count in `names`; a moment has its end at its start.
RECORD = np.dtype(
    [
        ("track", "<i4"),
        ("name", "<i4"),
        ("peer", "<i4"),
        ("batch", "<i4"),
        ("start_s", "<f8"),
        ("end_s", "<f8"),
    ]
)
OP, WAIT, SENT, RECEIVED, SLOWED = range(5)
NO_BATCH = -1

#: Kinds of messages that carry tensors of a training batch. DATA is the node of that name, too.
ACTIVATION, GRADIENT, DATA = "activation", "gradient", "data"

#: letter of an op -> what it is called
OP_NAMES = {
    "F": "forward",
    "B": "backward",
    "b": "true gradient passed on",
    "W": "weights' gradients",
    "C": "late correction",
    "M": "late share of the true gradient",
    "U": "update",
    "A": "update of shared weights",
    "P": "generator predicts",
    "T": "generator is fitted",
    "S": "input model is fitted",
    "R": "data",
    "E": "evaluation",
}


@dataclass(frozen=True)
class WorkerTrace:
    """The events of one worker."""

    worker: str
    events: NDArray[Any]  # of RECORD
    names: tuple[str, ...]
    lost: int = 0
    clock: str = ""

    def on(self, track: int) -> NDArray[Any]:
        """The events of OP, WAIT, SENT, RECEIVED or SLOWED, in order."""
        chosen: NDArray[Any] = self.events[self.events["track"] == track]
        return chosen

    def messages(self, track: int, kind: str, peer: str) -> NDArray[np.intp]:
        """Places of all messages of a kind that were SENT to, or RECEIVED from, `peer`."""
        if kind not in self.names or peer not in self.names:
            return np.empty(0, dtype=np.intp)
        name, other = self.names.index(kind), self.names.index(peer)
        events = self.events
        chosen = (events["track"] == track) & (events["name"] == name) & (events["peer"] == other)
        return np.flatnonzero(chosen)


class Link(NamedTuple):
    """Messages of one kind from one worker to another, by their places in the two traces' events.

    `sent` and `received` are as long as each other: the i-th sent is the i-th received.
    """

    kind: str
    sender: int  # index of the worker
    receiver: int
    sent: NDArray[np.intp]
    received: NDArray[np.intp]


def trace_path(folder: Path, worker: str) -> Path:
    """Where a worker writes, in the folder of a run."""
    return folder / "trace" / f"{worker}.npz"


def encode(events: bytes | bytearray, names: Sequence[str], lost: int) -> bytes:
    """The content of a file; `events` are packed records."""
    file = io.BytesIO()
    np.savez(
        file,
        events=np.frombuffer(events, RECORD),
        names=np.array(names, dtype=np.str_),
        lost=np.array(lost),
        clock=np.array(time.get_clock_info("perf_counter").implementation),
    )
    return file.getvalue()


def read_trace(folder: Path, worker: str) -> WorkerTrace:
    """The trace of one worker of a run made with `--trace`. Raises `CheckpointError`."""
    path = trace_path(folder, worker)
    try:
        with open_file(path) as file, np.load(file, allow_pickle=False) as found:
            events, lost, clock = found["events"], int(found["lost"]), str(found["clock"])
            names = tuple(found["names"].tolist())
    except FileNotFoundError:
        raise CheckpointError(f"no trace at {path}: train with --trace") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise CheckpointError(f"{path} is no trace: {error}") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path} is no whole trace: {error}") from error
    _check(path, events, len(names))
    return WorkerTrace(worker, events, names, lost, clock)


def links(traces: Sequence[WorkerTrace]) -> Iterator[Link]:
    """Activations, gradients and data of training batches that both ends have recorded."""
    numbers = {trace.worker: number for number, trace in enumerate(traces)}
    for sender, trace in enumerate(traces):
        sent = trace.events["track"] == SENT
        for peer in np.unique(trace.events["peer"][sent]).tolist():
            receiver = numbers.get(trace.names[peer])
            if receiver is None:
                continue  # the coordinator, or a worker whose trace is missing
            for kind in (ACTIVATION, GRADIENT, DATA):
                origin = DATA if kind == DATA else trace.worker
                ours = trace.messages(SENT, kind, trace.names[peer])
                theirs = traces[receiver].messages(RECEIVED, kind, origin)
                yield from _paired(Link(kind, sender, receiver, ours, theirs), traces)


def _paired(link: Link, traces: Sequence[WorkerTrace]) -> Iterator[Link]:
    """Those that were sent and received; a batch goes over a link once."""
    ours = traces[link.sender].events["batch"][link.sent]
    theirs = traces[link.receiver].events["batch"][link.received]
    _, i, j = np.intersect1d(ours, theirs, return_indices=True)  # a trace may be cut short
    if len(i):
        yield link._replace(sent=link.sent[i], received=link.received[j])


def _check(path: Path, events: NDArray[Any], names: int) -> None:
    if events.dtype != RECORD or events.ndim != 1:
        raise CheckpointError(f"{path} is no trace: its events are {events.dtype}")
    for field in ("name", "peer"):
        if len(events) and not 0 <= events[field].min() <= events[field].max() < names:
            raise CheckpointError(f"{path} is no trace: a {field} is not among its names")
    if not np.all(events["start_s"] <= events["end_s"]):
        raise CheckpointError(f"{path} is no trace: an event ends before it starts")
