"""A worker's trace: what goes in comes back, cheaply and within bounds."""

from __future__ import annotations

import gc
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from each import each
from tracing import trace

from asyncdni.drivers.real import meter as module
from asyncdni.drivers.real.meter import Trace
from asyncdni.errors import CheckpointError
from asyncdni.messages import (
    COORDINATOR,
    DATA,
    Activation,
    Barrier,
    Drained,
    Evaluated,
    Gradient,
    Start,
)
from asyncdni.report.traces import (
    OP,
    RECEIVED,
    RECORD,
    SENT,
    SLOWED,
    WAIT,
    encode,
    links,
    read_trace,
    trace_path,
)
from asyncdni.schedules.base import Op, OpKind, Source

F3 = Op(OpKind.FORWARD, 3)


def activation(batch: int = 3, *, sender: str = "low", evaluate: bool = False) -> Activation:
    return Activation(sender, 1, batch, 10, {}, evaluate=evaluate)


def described(folder: Path, track: int, worker: str = "low") -> list[tuple[str, str, int]]:
    """(name, peer, batch) of each event of a track."""
    found = read_trace(folder, worker)
    return [
        (found.names[name], found.names[peer], batch)
        for _, name, peer, batch, _, _ in found.on(track).tolist()
    ]


@pytest.fixture
def recording(tmp_path: Path) -> Trace:
    return Trace(trace_path(tmp_path, "low"))


def test_what_was_recorded_comes_back_in_order(recording: Trace, tmp_path: Path) -> None:
    late = Op(OpKind.BACKWARD, 1, source=Source.DIFFERENCE)
    recording.waited(1.0, 1.5)
    recording.received(Gradient("top", 1, 1, {}), 1.5)
    recording.add(late, 1.5, 2.0)
    recording.slowed(2.0, 2.25)
    recording.sent("top", activation(), 2.25, 2.5)
    recording.add(Op(OpKind.BACKWARD, 2, learn=False), 2.5, 3.0)
    recording.write()
    assert described(tmp_path, OP) == [("C", "", 1), ("b", "", 2)]
    assert described(tmp_path, WAIT) == [("", "", -1)]
    assert described(tmp_path, SLOWED) == [("", "", -1)]
    assert described(tmp_path, SENT) == [("activation", "top", 3)]
    assert described(tmp_path, RECEIVED) == [("gradient", "top", 1)]
    events = read_trace(tmp_path, "low").events
    assert events["start_s"].tolist() == [1.0, 1.5, 1.5, 2.0, 2.25, 2.5]
    assert events["end_s"].tolist() == [1.5, 1.5, 2.0, 2.25, 2.5, 3.0]


def test_data_and_test_batches_are_told_from_activations(recording: Trace, tmp_path: Path) -> None:
    recording.add(F3, 0.0, 1.0)
    recording.sent("top", activation(sender=DATA), 1.0, 1.0)
    recording.sent("top", activation(), 1.0, 1.0)
    recording.sent("top", activation(evaluate=True), 1.0, 1.0)
    recording.sent("top", activation(sender=DATA, evaluate=True), 1.0, 1.0)
    recording.write()
    kinds = [kind for kind, _, _ in described(tmp_path, SENT)]
    assert kinds == ["data", "activation", "test batch", "test batch"]


def test_messages_without_a_batch_or_a_sender_are_recorded_too(
    recording: Trace, tmp_path: Path
) -> None:
    recording.received(Start(), 0.0)
    recording.add(F3, 0.0, 1.0)
    recording.sent("top", Barrier("low", 1, 7, "evaluate"), 1.0, 1.0)
    recording.sent(COORDINATOR, Drained(1, 7, "evaluate", 4), 1.0, 1.0)
    recording.sent(COORDINATOR, Evaluated(7, "low", 4, 0.5, None, 4), 1.0, 1.0)  # its batch is None
    recording.write()
    assert described(tmp_path, RECEIVED) == [("start", "", -1)]
    sent = [("barrier", "top", -1), ("drained", COORDINATOR, -1), ("evaluated", COORDINATOR, -1)]
    assert described(tmp_path, SENT) == sent


def test_no_tensor_outlives_its_message(recording: Trace) -> None:
    tensor = np.ones(4)
    seen = weakref.ref(tensor)
    message = Activation("low", 1, 3, 4, {"h": tensor})
    recording.sent("top", message, 0.0, 1.0)
    recording.received(message, 1.0)
    del tensor, message
    gc.collect()
    assert seen() is None


def test_what_is_too_much_is_counted_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVENTS_MAX", 3)
    recording = Trace(trace_path(tmp_path, "low"))
    for n in range(5):
        recording.add(Op(OpKind.FORWARD, n), n, n + 0.5)
    recording.waited(5.0, 6.0)
    recording.write()
    found = read_trace(tmp_path, "low")
    assert [batch for _, _, batch in described(tmp_path, OP)] == [0, 1, 2]
    assert (len(found.events), found.lost) == (3, 3)


def test_a_full_trace_has_lost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENTS_MAX", 2)
    recording = Trace(trace_path(tmp_path, "low"))
    for n in range(2):
        recording.add(Op(OpKind.FORWARD, n), n, n + 0.5)
    recording.write()
    assert read_trace(tmp_path, "low").lost == 0


def test_a_worker_that_has_computed_nothing_leaves_no_file(
    recording: Trace, tmp_path: Path
) -> None:
    """The run may have failed, and its folder been taken away."""
    recording.received(Start(), 0.0)
    recording.waited(0.0, 1.0)
    recording.write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="a promise about Linux")
def test_the_clock_is_one_that_all_processes_of_a_host_share() -> None:
    before = time.clock_gettime(time.CLOCK_MONOTONIC)
    now = time.perf_counter()
    assert before <= now <= time.clock_gettime(time.CLOCK_MONOTONIC)


def test_a_run_without_a_trace_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="train with --trace"):
        read_trace(tmp_path, "low")


def packed(record: tuple[int, int, int, int, float, float]) -> bytes:
    return encode(np.array([record], dtype=RECORD).tobytes(), ["", "F"], 0)


DAMAGED = {
    "no archive": b"[1, 2]",
    "empty": b"",
    "torn": packed((OP, 1, 0, 3, 0.0, 1.0))[:200],
    "a name that is not there": packed((OP, 2, 0, 3, 0.0, 1.0)),
    "a negative peer": packed((OP, 1, -1, 3, 0.0, 1.0)),
    "time runs backwards": packed((OP, 1, 0, 3, 1.0, 0.0)),
    "no time": packed((OP, 1, 0, 3, float("nan"), 0.0)),
}


@each("content", DAMAGED.values())
def test_a_damaged_trace_is_named(tmp_path: Path, content: bytes) -> None:
    path = trace_path(tmp_path, "low")
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"low\.npz is no (whole )?trace"):
        read_trace(tmp_path, "low")


def test_an_archive_of_other_arrays_is_no_trace(tmp_path: Path) -> None:
    path = trace_path(tmp_path, "low")
    path.parent.mkdir()
    np.savez(path, x=np.ones(3))
    with pytest.raises(CheckpointError, match=r"low\.npz is no trace"):
        read_trace(tmp_path, "low")
    np.savez(path, events=np.ones(3), names=np.array(["F"]), lost=0, clock="")
    with pytest.raises(CheckpointError, match="its events are float64"):
        read_trace(tmp_path, "low")


def test_a_message_is_paired_with_its_arrival_by_kind_ends_and_batch() -> None:
    low = trace(
        "low",
        ("sent", "data", "top", 0, 0.0, 0.1),
        ("sent", "activation", "top", 0, 0.2, 0.3),
        ("sent", "activation", "top", 1, 0.4, 0.5),
        ("sent", "report", "coordinator", None, 0.6, 0.7),
        ("received", "gradient", "top", 0, 0.9, 0.9),
    )
    top = trace(
        "top",
        ("received", "activation", "low", 0, 0.5, 0.5),
        ("received", "data", "data", 0, 0.5, 0.5),
        ("sent", "gradient", "low", 0, 0.8, 0.9),
        ("sent", "credit", "low", None, 0.9, 0.9),
    )
    found = {
        (link.kind, link.sender, link.receiver): (link.sent.tolist(), link.received.tolist())
        for link in links([low, top])
    }
    assert found == {
        ("data", 0, 1): ([0], [1]),
        ("activation", 0, 1): ([1], [0]),  # batch 1 was sent, and not yet received
        ("gradient", 1, 0): ([2], [4]),
    }
