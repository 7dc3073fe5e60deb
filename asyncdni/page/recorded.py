"""Show runs from their folders: their records as they came, the timelines of their traces, and what
their workers have logged."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from asyncdni.errors import CheckpointError, legible
from asyncdni.imports import Allowed
from asyncdni.page.excerpt import read_excerpt
from asyncdni.page.state import POINTS, RunState
from asyncdni.plan.build import Design, make_design
from asyncdni.report.records import Recorder, recorded
from asyncdni.report.traces import (
    GRADIENT,
    OP,
    OP_NAMES,
    SLOWED,
    WAIT,
    WorkerTrace,
    links,
    read_trace,
    trace_path,
)
from asyncdni.store.run import METRICS, known_data, load_experiment

__all__ = ["last_lines", "open_state", "timeline"]

#: The longest part of a timeline in one answer, and the most boxes of one worker in it.
_LENGTH_MAX_S = 10.0
_BOXES_MAX = 4000
_ARROWS_MAX = 4000
_LOG_LINES = 200


def open_state(
    folder: Path, *, title: str = "", points: int = POINTS, allow_import: Allowed = False
) -> RunState:
    """Return what the page shows of the run in `folder`, which has ended or goes on elsewhere.

    Its title is the folder's name unless another is given; its curves have so many points together.
    Raises `CheckpointError` for a folder without a run or one that can't be read, and `ConfigError`
    for an experiment that this version can't lay out.
    """
    chosen, meta = load_experiment(folder), known_data(folder)
    if meta is None or not (folder / METRICS).is_file():
        missing = "shapes of its data (data.json)" if meta is None else f"records ({METRICS})"
        raise CheckpointError(f"{folder} can't be shown: the {missing} are missing")
    design = make_design(chosen, meta, allow_import=allow_import)
    workers = (group.name for group in design.plan.groups)
    traced = all(trace_path(folder, worker).is_file() for worker in workers)
    state = RunState(title or str(folder), folder, live=False, traced=traced, points=points)
    _replay(folder, design, state)
    if (excerpt := read_excerpt(folder)) is not None:
        state.show_excerpt(*excerpt)
    if not state.network:
        raise CheckpointError(f"{folder} can't be shown: {folder / METRICS} holds no record")
    complete = (folder / "summary.json").is_file()
    if complete:
        state.ended()
    else:
        state.ended("unfinished", "the run has not ended yet, or goes on elsewhere")
    return state


def _replay(folder: Path, design: Design, state: RunState) -> None:
    """Show the records of a run one after the other, as its coordinator did."""
    recorder = Recorder(tuple(group.name for group in design.plan.groups), {}, None)
    records = sorted(recorded(folder), key=lambda record: float(record["time_s"]))
    for record in records:
        values = {key: value for key, value in record.items() if key != "kind"}
        try:
            recorder.record(record["kind"], values)
            state(design, recorder, record["kind"], values)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # damaged, or of a version that wrote other fields


def last_lines(folder: Path | None, worker: str, size: int) -> str:
    """Return the last `size` bytes of a worker's log at most, made safe to show."""
    if folder is None:
        return "Nothing is kept of this run."
    try:
        with open(folder / "logs" / f"{worker}.log", "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - size))
            text = log.read().decode(errors="replace")
    except OSError as error:
        return f"The log can't be read here: {error.strerror}."
    lines: Sequence[str] = text.splitlines()[-_LOG_LINES:]
    return legible("\n".join(lines), size, lines=True) or "The worker has printed nothing."


# --- timelines -----------------------------------------------------------------------------------


def timeline(run: RunState, begin_s: float, length_s: float) -> dict[str, Any]:
    """Return the ops, waits and messages of `length_s` seconds of a traced run, from `begin_s`
    after its first op on, as JSON.

    Each worker's boxes are [name of the op, batch, start, end], its waits [start, end], in seconds
    after `begin_s`; arrows are [whether a gradient, sender, receiver, start, end, batch], with
    numbers of workers. Raises `CheckpointError` for a run without traces.
    """
    if run.folder is None or not run.traced:
        raise CheckpointError(f"{run.title} has no timeline: train with --trace")
    traces = [_trace(run.folder, worker) for worker in run.workers]
    ops = [trace.on(OP) for trace in traces]
    if not any(map(len, ops)):
        raise CheckpointError("the traces hold no ops")
    first = min(float(own["start_s"].min()) for own in ops if len(own))
    whole_s = max(float(own["end_s"].max()) for own in ops if len(own)) - first
    length_s = min(_LENGTH_MAX_S, whole_s, max(1e-4, length_s if length_s > 0 else 0.0))
    begin_s = min(max(0.0, begin_s if begin_s > 0 else 0.0), max(0.0, whole_s - length_s))
    zero_s, end_s = first + begin_s, first + begin_s + length_s
    used = {name for trace in traces for name in trace.names}
    return {
        "begin_s": begin_s,
        "length_s": length_s,
        "whole_s": whole_s,
        "names": {name: OP_NAMES[name] for name in OP_NAMES if name in used},
        "workers": [_row(trace, zero_s, end_s) for trace in traces],
        "arrows": _arrows(traces, zero_s, end_s),
    }


@lru_cache(maxsize=256)
def _trace(folder: Path, worker: str) -> WorkerTrace:
    return read_trace(folder, worker)


def _inside(events: NDArray[Any], zero_s: float, end_s: float) -> list[Any]:
    chosen = (events["end_s"] > zero_s) & (events["start_s"] < end_s)
    found: list[Any] = events[chosen][:_BOXES_MAX].tolist()
    return found


def _row(trace: WorkerTrace, zero_s: float, end_s: float) -> dict[str, Any]:
    def times(start_s: float, stop_s: float) -> list[float]:
        return [round(start_s - zero_s, 7), round(stop_s - zero_s, 7)]

    ops = _inside(trace.on(OP), zero_s, end_s)
    return {
        "name": legible(trace.worker, 64),
        "boxes": [[trace.names[name], batch, *times(a, b)] for _, name, _, batch, a, b in ops],
        "waits": [times(a, b) for *_, a, b in _inside(trace.on(WAIT), zero_s, end_s)],
        "slowed": [times(a, b) for *_, a, b in _inside(trace.on(SLOWED), zero_s, end_s)],
        "truncated": len(ops) >= _BOXES_MAX,
    }


def _arrows(traces: list[WorkerTrace], zero_s: float, end_s: float) -> list[list[Any]]:
    found: list[list[Any]] = []
    for link in links(traces):
        sent = traces[link.sender].events["start_s"][link.sent]
        received = traces[link.receiver].events["start_s"][link.received]
        inside = (received > zero_s) & (sent < end_s)
        batches = traces[link.sender].events["batch"][link.sent][inside].tolist()
        for a, b, batch in zip(sent[inside], received[inside], batches, strict=True):
            if len(found) >= _ARROWS_MAX:
                return found
            times = [round(float(a - zero_s), 7), round(float(b - zero_s), 7)]
            found.append([link.kind == GRADIENT, link.sender, link.receiver, *times, batch])
    return found
