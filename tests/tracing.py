"""Traces made up for tests, and what any trace for Perfetto and chrome://tracing has to be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from asyncdni.report.traces import NO_BATCH, OP, RECEIVED, RECORD, SENT, SLOWED, WAIT, WorkerTrace

TRACKS = {"op": OP, "wait": WAIT, "sent": SENT, "received": RECEIVED, "slow": SLOWED}
#: What each phase has to have: process_name and the like, slices, marks, starts and ends of arrows.
KEYS = {
    "M": {"ph", "name", "pid", "tid", "args"},
    "X": {"ph", "name", "cat", "pid", "tid", "ts", "dur", "args"},
    "i": {"ph", "name", "cat", "pid", "tid", "ts", "s", "args"},
    "s": {"ph", "name", "cat", "pid", "tid", "ts", "id"},
    "f": {"ph", "name", "cat", "pid", "tid", "ts", "id", "bp"},
}
NAMES = {"process_name", "process_sort_index", "thread_name", "thread_sort_index"}

Event = dict[str, Any]


def trace(
    worker: str, *events: tuple[str, str, str, int | None, float, float], lost: int = 0
) -> WorkerTrace:
    """Of (what, letter or kind, peer, batch, start_s, end_s)."""
    names = sorted({name for event in events for name in event[1:3]})
    records = [
        (
            TRACKS[what],
            names.index(name),
            names.index(peer),
            NO_BATCH if batch is None else batch,
            start,
            end,
        )
        for what, name, peer, batch, start, end in events
    ]
    return WorkerTrace(worker, np.array(records, dtype=RECORD), tuple(names), lost, "a clock")


def ops(*found: tuple[str, int, float, float], worker: str = "low") -> WorkerTrace:
    """Of ops alone: (letter, batch, start_s, end_s)."""
    return trace(worker, *(("op", name, "", b, start, end) for name, b, start, end in found))


def assert_well_formed(document: dict[str, Any], workers: Iterable[str]) -> None:
    """What the format asks for: see the module's docstring."""
    events: list[Event] = document["traceEvents"]
    for event in events:
        assert set(event) == KEYS[event["ph"]], event
        assert event.get("ts", 0) >= 0 and event.get("dur", 0) >= 0, event
    _assert_named(events, list(workers))
    slices = _assert_apart(events)
    _assert_arrows(events, slices)


def _assert_named(events: list[Event], workers: list[str]) -> None:
    named = [e for e in events if e["ph"] == "M"]
    assert {e["name"] for e in named} == NAMES
    processes = {e["pid"]: e["args"]["name"] for e in named if e["name"] == "process_name"}
    order = {e["pid"]: e["args"]["sort_index"] for e in named if e["name"] == "process_sort_index"}
    assert [processes[pid] for pid in sorted(order, key=order.__getitem__)] == workers
    tracks = {(e["pid"], e["tid"]) for e in named if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in events if e["ph"] != "M"} <= tracks


def _assert_apart(events: list[Event]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """No two slices of a track overlap; returns (start, end) of each in nanoseconds, in order."""
    slices = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            start = round(event["ts"] * 1000)
            slices[event["pid"], event["tid"]].append((start, start + round(event["dur"] * 1000)))
    for track, found in slices.items():
        found.sort()
        for (_, end), (start, _) in pairwise(found):
            assert end <= start, (track, end, start)
    return slices


def _assert_arrows(
    events: list[Event], slices: dict[tuple[int, int], list[tuple[int, int]]]
) -> None:
    """Each has one start and one end, in this order, of one name, each at the start of a slice."""
    starts = {track: {start for start, _ in found} for track, found in slices.items()}
    ends = {}
    for phase in ("s", "f"):
        found = [e for e in events if e["ph"] == phase]
        ends[phase] = {e["id"]: e for e in found}
        assert len(ends[phase]) == len(found)
        for event in found:
            assert round(event["ts"] * 1000) in starts[event["pid"], event["tid"]], event
    assert ends["s"].keys() == ends["f"].keys()
    for number, start in ends["s"].items():
        end = ends["f"][number]
        assert (start["name"], start["cat"]) == (end["name"], end["cat"])
        assert start["ts"] <= end["ts"] and start["pid"] != end["pid"]
