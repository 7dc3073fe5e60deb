"""What a worker's seconds are counted as: on a clock that only its transport moves, and by hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from asyncdni.backends.base import Stage
from asyncdni.core.events import Stop
from asyncdni.core.worker import Phase, Worker
from asyncdni.messages import Leave, Message, Report, Start
from asyncdni.runtime import engine, meter
from asyncdni.runtime.engine import Engine
from asyncdni.runtime.memory import resident_bytes
from asyncdni.runtime.meter import Meter
from asyncdni.schedules.base import Op, OpKind, Source

WAIT_S, RECEIVE_S = 8.0, 2.0


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class _Wire:
    """Waiting and receiving take their time; each receive brings the next message."""

    def __init__(self, clock: _Clock, messages: list[Message]) -> None:
        self._clock = clock
        self._messages = messages
        self.reports: list[Report] = []

    def send(self, to: str, message: Message) -> Callable[[], bool] | None:
        assert isinstance(message, Report)
        self.reports.append(message)
        return None

    def wait(self, timeout_s: float | None) -> None:
        self._clock.now += WAIT_S

    def receive(self, timeout_s: float | None) -> list[Message]:
        assert timeout_s == 0
        self._clock.now += RECEIVE_S
        return [self._messages.pop(0)]

    def counters(self) -> dict[str, int]:
        return {"bytes_sent": 3, "bytes_received": 5, "messages": 2}


class _Idle:
    """A machine that trains, has nothing to do, and stops when told to."""

    phase = Phase.TRAINING
    schedule = None

    def handle(self, event: object, now: float) -> list[Stop]:
        return [Stop()] if getattr(event, "message", None) == Leave() else []

    def counters(self) -> dict[str, int]:
        return {}


def _run(monkeypatch: pytest.MonkeyPatch) -> _Wire:
    clock = _Clock()
    names = ("perf_counter", "monotonic", "process_time", "thread_time")
    for module in (engine, meter):
        monkeypatch.setattr(module, "time", SimpleNamespace(**dict.fromkeys(names, clock)))
    wire = _Wire(clock, [Start(), Start(), Leave()])
    driven = Engine(cast(Worker, _Idle()), cast(Stage, None), wire, exits={})
    driven.run(early=[Start()])
    return wire


def test_receiving_while_idle_is_transport_and_waiting_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counters = _run(monkeypatch).reports[-1].counters
    assert counters["wait_s"] == 3 * WAIT_S
    assert counters["transport_s"] == 3 * RECEIVE_S
    assert counters["wall_s"] == 3 * (WAIT_S + RECEIVE_S)


def test_reports_count_what_went_over_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = _run(monkeypatch).reports[-1].counters
    assert counters["bytes_sent"] == 3
    assert counters["bytes_received"] == 5
    assert counters["messages"] == 2


# --- ops -----------------------------------------------------------------------------------------

CORRECTING = Op(OpKind.BACKWARD, 4, source=Source.DIFFERENCE, send=False)
RELAYING = Op(OpKind.BACKWARD, 4, learn=False)


def test_ops_are_counted_and_timed_by_their_letters() -> None:
    counted = Meter()
    counted.resume()
    for batch in range(3):
        counted.op(Op(OpKind.FORWARD, batch), 0.5, 0.25)
    for op in (Op(OpKind.BACKWARD, 4), RELAYING, CORRECTING, Op(OpKind.FIT, 4)):
        counted.op(op, 2.0, 1.0)
    found = counted.counters()
    assert (found["op_F_count"], found["op_F_wall_s"], found["op_F_cpu_s"]) == (3, 1.5, 0.75)
    letters = {key[3] for key in found if key.startswith("op_") and key.endswith("_count")}
    assert letters == set("FBbCT")
    assert found["op_b_wall_s"] == found["op_C_wall_s"] == found["op_B_wall_s"] == 2.0


def test_every_op_has_the_letter_that_timelines_show() -> None:
    """The meter looks letters up where `Op` works them out."""
    for op in (*(Op(kind, 0) for kind in OpKind), RELAYING, CORRECTING):
        counted = Meter()
        counted.resume()
        counted.op(op, 1.0, 1.0)
        assert counted.counters()[f"op_{op.letter}_count"] == 1


def test_sums_are_those_of_all_ops_with_the_generators_apart() -> None:
    counted = Meter()
    counted.resume()
    counted.op(Op(OpKind.FORWARD, 0), 3.0, 2.0)
    counted.op(Op(OpKind.PREDICT, 0), 0.5, 0.25)
    counted.op(Op(OpKind.FIT, 0), 1.0, 0.5)
    found = counted.counters()
    assert (found["compute_s"], found["generator_s"], found["op_cpu_s"]) == (3.0, 1.5, 2.75)


def test_ops_outside_training_count_nowhere() -> None:
    counted = Meter()
    counted.op(Op(OpKind.EVALUATE, 0), 1.0, 1.0)
    counted.resume()
    counted.pause()
    counted.op(Op(OpKind.EVALUATE, 1), 1.0, 1.0)
    found = counted.counters()
    assert found["compute_s"] == found["op_cpu_s"] == 0
    assert not any(key.startswith("op_E") for key in found)


# --- memory --------------------------------------------------------------------------------------


def test_memory_is_compared_with_that_of_the_first_report_of_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = iter([100, 200, 300])
    monkeypatch.setattr(meter, "resident_bytes", lambda: next(sizes))
    counted = Meter()
    memory = [counted.counters()]  # not training yet
    counted.resume()
    memory += [counted.counters(), counted.counters()]
    assert [found["memory_bytes"] for found in memory] == [100, 200, 300]
    assert [found["memory_start_bytes"] for found in memory] == [None, 200, 200]


def test_memory_that_can_not_be_read_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "resident_bytes", lambda: None)
    counted = Meter()
    counted.resume()
    found = counted.counters()
    assert found["memory_bytes"] is None and found["memory_start_bytes"] is None


def test_the_resident_set_is_the_second_number_in_pages(tmp_path: Path) -> None:
    statm = tmp_path / "statm"
    statm.write_text("5000 250 90 1 0 300 0\n")
    assert resident_bytes(statm) == 250 * os.sysconf("SC_PAGE_SIZE")
    statm.write_text("5000")
    assert resident_bytes(statm) is None
    assert resident_bytes(tmp_path / "none") is None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_more_memory_in_use_is_seen() -> None:
    before = resident_bytes()
    held = bytearray(b"x") * (64 << 20)
    after = resident_bytes()
    assert before is not None and after is not None
    assert after - before > len(held) // 2
