"""The trace of a run for Perfetto: known events in, known slices and arrows out."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tracing import assert_well_formed, ops, trace

from asyncdni.drivers.real.meter import Trace
from asyncdni.errors import CheckpointError, WorkerLost
from asyncdni.report.traces import (
    WorkerTrace,
    merge,
    merged_at_end,
    trace_events,
    trace_path,
    write_events,
)
from asyncdni.schedules.base import Op, OpKind

LOW = trace(
    "low",
    ("op", "F", "", 0, 10.0, 10.001),
    ("sent", "activation", "top", 0, 10.001, 10.0012),
    ("wait", "", "", None, 10.0012, 10.004),
    ("received", "gradient", "top", 0, 10.004, 10.004),
    ("received", "credit", "top", None, 10.004, 10.004),
    ("op", "B", "", 0, 10.0041, 10.005),
)
TOP = trace(
    "top",
    ("received", "activation", "low", 0, 10.002, 10.002),
    ("op", "F", "", 0, 10.002, 10.003),
    ("op", "B", "", 0, 10.003, 10.0035),
    ("sent", "gradient", "low", 0, 10.0035, 10.0036),
    ("sent", "credit", "low", None, 10.0036, 10.0037),
)


def events(*traces: WorkerTrace) -> list[dict[str, Any]]:
    return [json.loads(line) for line in trace_events(traces)]


def slices(found: list[dict[str, Any]], pid: int, tid: int) -> list[dict[str, Any]]:
    return [e for e in found if e["ph"] == "X" and (e["pid"], e["tid"]) == (pid, tid)]


def test_the_sleep_of_a_slow_worker_follows_its_op() -> None:
    slow = trace("low", ("op", "F", "", 0, 1.0, 1.5), ("slow", "", "", None, 1.5, 2.5))
    forward, nap = slices(events(slow), 1, 1)
    assert (forward["name"], nap["name"], nap["cat"]) == ("forward", "made slow", "slow")
    assert (nap["ts"], nap["dur"]) == (forward["ts"] + forward["dur"], 1e6)
    assert_well_formed({"traceEvents": events(slow)}, ["low"])


def written(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def test_times_are_microseconds_since_the_first_event_of_any_worker() -> None:
    found = events(LOW, TOP)
    low, top = slices(found, 1, 1), slices(found, 2, 1)
    assert [(e["name"], e["ts"], e["dur"], e["args"]) for e in low] == [
        ("forward", 0.0, 1000.0, {"batch": 0}),
        ("backward", 4100.0, 900.0, {"batch": 0}),
    ]
    assert [(e["name"], e["ts"], e["dur"]) for e in top] == [
        ("forward", 2000.0, 1000.0),
        ("backward", 3000.0, 500.0),
    ]


def test_waits_and_messages_have_tracks_of_their_own() -> None:
    found = events(LOW, TOP)
    assert [(e["name"], e["ts"], e["dur"]) for e in slices(found, 1, 2)] == [("wait", 1200, 2800)]
    assert [(e["name"], e["ts"], e["args"]) for e in slices(found, 1, 3)] == [
        ("send activation", 1000.0, {"to": "top", "batch": 0}),
        ("receive gradient", 4000.0, {"from": "top", "batch": 0}),
        ("receive credit", 4000.001, {"from": "top"}),  # beside the other, not on top of it
    ]


def test_an_arrow_leads_from_a_send_to_its_arrival() -> None:
    arrows = [e for e in events(LOW, TOP) if e["ph"] in "sf"]
    assert [(e["ph"], e["name"], e["id"], e["pid"], e["ts"]) for e in arrows] == [
        ("s", "activation", 0, 1, 1000.0),
        ("f", "activation", 0, 2, 2000.0),
        ("s", "gradient", 1, 2, 3500.0),
        ("f", "gradient", 1, 1, 4000.0),
    ]


def test_a_message_that_only_one_end_knows_has_no_arrow() -> None:
    assert not [e for e in events(LOW) if e["ph"] in "sf"]


def test_the_file_is_what_the_format_asks_for(tmp_path: Path) -> None:
    write_events(tmp_path / "trace.json", [LOW, TOP])
    document = written(tmp_path / "trace.json")
    assert_well_formed(document, ["low", "top"])
    assert document["displayTimeUnit"] == "ms"
    assert document["otherData"]["clock"] == ["a clock"]
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


def test_ops_that_touch_do_not_overlap_by_rounding() -> None:
    """Each ends at the very moment when the next one starts, at times that are no nanoseconds."""
    ends = [1000.0 + n / 3e6 for n in range(2000)]
    found = [("F", n, start, end) for n, (start, end) in enumerate(pairwise(ends))]
    document = {"traceEvents": events(ops(*found))}
    assert_well_formed(document, ["low"])
    assert len(slices(document["traceEvents"], 1, 1)) == len(found)


def test_more_events_than_are_written_at_once_are_all_there(tmp_path: Path) -> None:
    found = ops(*(("U", n, n * 1e-3, n * 1e-3 + 5e-4) for n in range(10_000)))
    write_events(tmp_path / "trace.json", [found])
    document = written(tmp_path / "trace.json")
    batches = [e["args"]["batch"] for e in slices(document["traceEvents"], 1, 1)]
    assert batches == list(range(10_000))


def test_names_that_need_quotes_survive() -> None:
    found = events(ops(("F", 0, 0.0, 1.0), worker='a "b" \\ ü'))
    assert found[0]["args"] == {"name": 'a "b" \\ ü'}


def test_an_op_of_a_letter_unknown_here_keeps_its_letter() -> None:
    assert slices(events(ops(("Z", 0, 0.0, 1.0))), 1, 1)[0]["name"] == "Z"


def test_a_trace_that_was_cut_short_says_so_where_it_ends(tmp_path: Path) -> None:
    cut = trace("low", ("op", "F", "", 0, 1.0, 1.5), lost=7)
    write_events(tmp_path / "trace.json", [cut])
    document = written(tmp_path / "trace.json")
    assert_well_formed(document, ["low"])
    (mark,) = [e for e in document["traceEvents"] if e["ph"] == "i"]
    assert "cut short: the 7 events" in mark["name"] and mark["ts"] == 500_000
    assert document["otherData"]["not_recorded"] == {"low": 7}


def recorded(folder: Path, worker: str) -> None:
    recording = Trace(trace_path(folder, worker))
    recording.add(Op(OpKind.FORWARD, 0), 1.0, 2.0)
    recording.write()


def test_traces_are_merged_in_the_order_of_the_stages(tmp_path: Path) -> None:
    for worker in ("a", "c", "b"):
        recorded(tmp_path, worker)
    assert merge(tmp_path, ["c", "b", "a"]) == tmp_path / "trace.json"
    assert_well_formed(written(tmp_path / "trace.json"), ["c", "b", "a"])


def test_missing_and_damaged_traces_are_named_and_the_others_merged(tmp_path: Path) -> None:
    recorded(tmp_path, "low")
    trace_path(tmp_path, "top").write_bytes(b"torn")
    merge(tmp_path, ["low", "middle", "top"])
    document = written(tmp_path / "trace.json")
    assert_well_formed(document, ["low"])
    missing = document["otherData"]["missing"]
    assert missing["middle"] == "it has left no trace here"
    assert "is no trace" in missing["top"]


def test_a_run_without_any_trace_gets_no_file(tmp_path: Path) -> None:
    assert merge(tmp_path, ["low", "top"]) is None
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_keeps_its_error_and_the_traces_of_those_that_lived(
    tmp_path: Path,
) -> None:
    with pytest.raises(WorkerLost, match="top died"), merged_at_end(tmp_path, ["low", "top"]):
        recorded(tmp_path, "low")
        raise WorkerLost("worker top died")
    document = written(tmp_path / "trace.json")
    assert_well_formed(document, ["low"])
    assert document["otherData"]["missing"].keys() == {"top"}


def test_the_error_of_a_run_is_not_hidden_by_one_of_its_trace(tmp_path: Path) -> None:
    (tmp_path / "trace.json").mkdir()  # nothing can take its place
    with pytest.raises(CheckpointError, match="can't write"), merged_at_end(tmp_path, ["low"]):
        recorded(tmp_path, "low")
    with pytest.raises(WorkerLost, match="top died"), merged_at_end(tmp_path, ["low"]):
        raise WorkerLost("worker top died")


def test_a_file_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"can't write .*trace\.json"):
        write_events(tmp_path / "nowhere" / "trace.json", [LOW])


def test_a_failure_half_way_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.json"
    path.write_text("before")
    monkeypatch.setattr("asyncdni.report.traces.links", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_events(path, [LOW])
    assert path.read_text() == "before"
    assert [found.name for found in tmp_path.iterdir()] == ["trace.json"]
