"""Traces: what each worker did when, as its file on disk, and as one file for trace viewers.

A worker writes DIR/trace/WORKER.npz, with 32 bytes for each event:

```
events  structured array, in the order of the events' ends: see `RECORD`
names   what the numbers in `events` stand for: letters of ops, kinds of messages, workers
lost    number of events that were dropped, as there were too many
clock   the clock behind `time.perf_counter` on that host
```

Times are seconds of `time.perf_counter`. On Linux that is CLOCK_MONOTONIC, which all processes of a
host share, so that the events of its workers can be put side by side; across hosts they can't.

DIR/trace.json has the events of all workers, for https://ui.perfetto.dev and chrome://tracing, in
Chrome's JSON format ("Trace Event Format", Duffy and others, 2016). A worker is a process with
three tracks: its ops (and the sleep of one that was made slow), its waiting, its transport. An
arrow (a flow, phases `s` and `f`) leads from where an activation or a gradient was sent to where it
was received. Times are microseconds since the first event of any worker. Receiving a message takes
no time, but is drawn 1 ns wide, as an arrow must end at something with a width.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from asyncdni.errors import CheckpointError
from asyncdni.files import open_file, replaced

__all__ = [
    "ACTIVATION",
    "DATA",
    "FILE",
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
    "merge",
    "merged_at_end",
    "read_trace",
    "trace_events",
    "trace_path",
    "write_events",
]

#: One event. `name` and `peer` are indices in `names`; an event without duration ends at its start.
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

#: Kinds of messages that carry tensors of a training batch. DATA is also the name of a node.
ACTIVATION, GRADIENT, DATA = "activation", "gradient", "data"

#: letter of an op -> its name
OP_NAMES = {
    "F": "forward",
    "B": "backward",
    "b": "true gradient passed on",
    "W": "weights' gradients",
    "C": "late correction",
    "M": "late share of the true gradient",
    "U": "update",
    "A": "update of shared weights",
    "K": "weights copied for others",
    "V": "weights of others taken over",
    "P": "generator predicts",
    "T": "generator is fitted",
    "S": "input model is fitted",
    "R": "data",
    "E": "evaluation",
    "H": "weights held for an evaluation",
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
        """Return the events of one track (OP, WAIT, SENT, RECEIVED or SLOWED), in order."""
        chosen: NDArray[Any] = self.events[self.events["track"] == track]
        return chosen

    def messages(self, track: int, kind: str, peer: str) -> NDArray[np.intp]:
        """Return the indices of all messages of a kind that were SENT to, or RECEIVED from,
        `peer`."""
        if kind not in self.names or peer not in self.names:
            return np.empty(0, dtype=np.intp)
        name, other = self.names.index(kind), self.names.index(peer)
        events = self.events
        chosen = (events["track"] == track) & (events["name"] == name) & (events["peer"] == other)
        return np.flatnonzero(chosen)


class Link(NamedTuple):
    """Messages of one kind from one worker to another, by their indices in the two traces' events.

    `sent` and `received` have the same length: the i-th sent is the i-th received.
    """

    kind: str
    sender: int  # index of the worker
    receiver: int
    sent: NDArray[np.intp]
    received: NDArray[np.intp]


def trace_path(folder: Path, worker: str) -> Path:
    """Return the path of a worker's trace in the folder of a run."""
    return folder / "trace" / f"{worker}.npz"


def encode(events: bytes | bytearray, names: Sequence[str], lost: int) -> bytes:
    """Return the content of a trace file; `events` are packed records."""
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
    """Read the trace of one worker of a run made with `--trace`. Raises `CheckpointError`."""
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
    """Yield activations, gradients and data of training batches that both ends have recorded."""
    numbers = {trace.worker: number for number, trace in enumerate(traces)}
    for sender, trace in enumerate(traces):
        sent = trace.events["track"] == SENT
        for peer in np.unique(trace.events["peer"][sent]).tolist():
            receiver = numbers.get(trace.names[peer])
            if receiver is None:
                continue  # the peer is the coordinator, or its trace is missing
            for kind in (ACTIVATION, GRADIENT, DATA):
                origin = DATA if kind == DATA else trace.worker
                ours = trace.messages(SENT, kind, trace.names[peer])
                theirs = traces[receiver].messages(RECEIVED, kind, origin)
                yield from _paired(Link(kind, sender, receiver, ours, theirs), traces)


def _paired(link: Link, traces: Sequence[WorkerTrace]) -> Iterator[Link]:
    """Yield the link's messages that both ends have; a batch goes over a link once."""
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


# --- trace.json ----------------------------------------------------------------------------------

FILE = "trace.json"
_TRACKS = {1: "ops", 2: "waiting", 3: "transport"}
_OPS, _WAITING, _TRANSPORT = _TRACKS
#: Lines in one write.
_BLOCK = 4096


def merge(folder: Path, workers: Sequence[str]) -> Path | None:
    """Write DIR/trace.json from the traces of `workers` (in order) in the folder.

    Workers whose traces are missing or damaged are listed in its `otherData`; None if there are no
    traces. Raises `CheckpointError` if the file can't be written.
    """
    found: list[WorkerTrace] = []
    missing = {}
    for worker in workers:
        try:
            found.append(read_trace(folder, worker))
        except CheckpointError as error:
            missing[worker] = _reason(folder, worker, error)
    if not found:
        return None
    path = folder / FILE
    write_events(path, found, missing)
    return path


@contextlib.contextmanager
def merged_at_end(folder: Path, workers: Sequence[str]) -> Iterator[None]:
    """Merge the traces when the block ends. An error of the block takes precedence over one of
    merging."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(CheckpointError):
            merge(folder, workers)
        raise
    merge(folder, workers)


def write_events(
    path: Path, traces: Sequence[WorkerTrace], missing: Mapping[str, str] | None = None
) -> None:
    """Write a trace.json of these traces, whole or not at all. Raises `CheckpointError`."""
    about = {
        "producer": "asyncdni",
        "clock": sorted({trace.clock for trace in traces}),
        "missing": dict(missing or {}),
        "not_recorded": {trace.worker: trace.lost for trace in traces if trace.lost},
    }
    with _replaced(path) as file:
        file.write(f'{{"displayTimeUnit":"ms","otherData":{json.dumps(about)},"traceEvents":[')
        lines = trace_events(traces)
        separator = "\n"
        while block := list(islice(lines, _BLOCK)):
            file.write(separator + ",\n".join(block))
            separator = ",\n"
        file.write("\n]}\n")


def trace_events(traces: Sequence[WorkerTrace]) -> Iterator[str]:
    """Yield the JSON text of each event: names of workers and tracks, their events, then all
    arrows."""
    zero_s = min((t.events["start_s"].min() for t in traces if len(t.events)), default=0.0)
    all_times = [_Times(trace, zero_s) for trace in traces]
    for pid, (trace, times) in enumerate(zip(traces, all_times, strict=True), 1):
        yield from _metadata(pid, trace.worker)
        yield from _ops(pid, trace, times)
        yield from _waits(pid, trace, times)
        yield from _messages(pid, trace, times)
        if trace.lost:
            yield _cut(pid, trace, times)
    number = 0
    for link in links(traces):  # arrows come last: Perfetto wants all slices before them
        sent = all_times[link.sender].starts[link.sent]
        received = all_times[link.receiver].starts[link.received]
        for start, end in zip(sent.tolist(), received.tolist(), strict=True):
            yield from _arrow(number, link, start, end)
            number += 1


class _Times:
    """Starts and ends in whole nanoseconds, rounded so that events do not begin to overlap."""

    def __init__(self, trace: WorkerTrace, zero_s: float) -> None:
        events = trace.events
        self.starts = np.rint((events["start_s"] - zero_s) * 1e9).astype(np.int64)
        self.ends = np.rint((events["end_s"] - zero_s) * 1e9).astype(np.int64)
        received = np.flatnonzero(events["track"] == RECEIVED)
        # Received messages are 1 ns wide; those received together stand side by side.
        order = np.arange(len(received))
        self.starts[received] = np.maximum.accumulate(self.starts[received] - order) + order
        self.ends[received] = self.starts[received] + 1


def _metadata(pid: int, worker: str) -> Iterator[str]:
    def line(name: str, tid: int, args: Mapping[str, object]) -> str:
        return json.dumps({"ph": "M", "name": name, "pid": pid, "tid": tid, "args": args})

    yield line("process_name", 0, {"name": worker})
    yield line("process_sort_index", 0, {"sort_index": pid})
    for tid, name in _TRACKS.items():
        yield line("thread_name", tid, {"name": name})
        yield line("thread_sort_index", tid, {"sort_index": tid})


def _ops(pid: int, trace: WorkerTrace, times: _Times) -> Iterator[str]:
    names = [json.dumps(OP_NAMES.get(name, name)) for name in trace.names]
    head = f'{{"ph":"X","cat":"op","pid":{pid},"tid":{_OPS}'
    for (_, name, _, batch, *_), when in _timed(trace, OP, times):
        yield f'{head},"name":{names[name]},{when},"args":{{"batch":{batch}}}}}'
    head = f'{{"ph":"X","cat":"slow","name":"made slow","pid":{pid},"tid":{_OPS}'
    for _, when in _timed(trace, SLOWED, times):
        yield f'{head},{when},"args":{{}}}}'


def _waits(pid: int, trace: WorkerTrace, times: _Times) -> Iterator[str]:
    head = f'{{"ph":"X","cat":"wait","name":"wait","pid":{pid},"tid":{_WAITING}'
    for _, when in _timed(trace, WAIT, times):
        yield f'{head},{when},"args":{{}}}}'


def _messages(pid: int, trace: WorkerTrace, times: _Times) -> Iterator[str]:
    head = f'{{"ph":"X","cat":"message","pid":{pid},"tid":{_TRANSPORT}'
    peers = [json.dumps(name) for name in trace.names]
    for track, verb, preposition in ((SENT, "send", "to"), (RECEIVED, "receive", "from")):
        names = [json.dumps(f"{verb} {name}") for name in trace.names]
        for (_, name, peer, batch, *_), when in _timed(trace, track, times):
            args = f'"{preposition}":{peers[peer]}' + (f',"batch":{batch}' if batch >= 0 else "")
            yield f'{head},"name":{names[name]},{when},"args":{{{args}}}}}'


def _cut(pid: int, trace: WorkerTrace, times: _Times) -> str:
    """Make a mark at the time when a worker stopped recording."""
    name = f"trace cut short: the {trace.lost} events from here on were not recorded"
    mark = {"ph": "i", "s": "p", "cat": "cut", "name": name, "pid": pid, "tid": _OPS}
    at_ns = int(times.ends.max(initial=0))
    return json.dumps({**mark, "ts": at_ns / 1000, "args": {"not_recorded": trace.lost}})


def _arrow(number: int, link: Link, start: int, end: int) -> Iterator[str]:
    common = f'"cat":"message","name":"{link.kind}","id":{number},"tid":{_TRANSPORT}'
    yield f'{{"ph":"s",{common},"pid":{link.sender + 1},"ts":{_us(start)}}}'
    yield f'{{"ph":"f","bp":"e",{common},"pid":{link.receiver + 1},"ts":{_us(end)}}}'


def _timed(trace: WorkerTrace, track: int, times: _Times) -> Iterator[tuple[Any, str]]:
    """Yield (fields, times as JSON) of each event of a track."""
    places = np.flatnonzero(trace.events["track"] == track)
    for first in range(0, len(places), _BLOCK):
        block = places[first : first + _BLOCK]
        starts, ends = times.starts[block].tolist(), times.ends[block].tolist()
        for event, start, end in zip(trace.events[block].tolist(), starts, ends, strict=True):
            yield event, f'"ts":{_us(start)},"dur":{_us(end - start)}'


def _us(nanoseconds: int) -> str:
    return f"{nanoseconds // 1000}.{nanoseconds % 1000:03d}"


def _reason(folder: Path, worker: str, error: CheckpointError) -> str:
    return str(error) if trace_path(folder, worker).exists() else "it has left no trace here"


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[TextIO]:
    """Open a file that replaces `path` once all has been written to it."""
    try:
        with replaced(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8")
            yield text
            text.detach()  # flushes its buffer and leaves the file open
    except OSError as error:
        raise CheckpointError(f"can't write {path}: {error.strerror}") from error
