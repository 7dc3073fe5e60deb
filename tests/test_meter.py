"""What a worker's seconds are counted as: on a clock that only its transport moves, and by hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from life import drive

from asyncdni.core.events import Action, Compute, Computed, Stop
from asyncdni.core.worker import Phase
from asyncdni.delays import Slow
from asyncdni.drivers.real import engine, meter
from asyncdni.drivers.real.machine import resident_bytes
from asyncdni.drivers.real.meter import Meter
from asyncdni.messages import Connect, Leave, Message, Report, Start
from asyncdni.schedules.base import Op, OpKind, Source
from asyncdni.stages.base import Agreement, Forwarded

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

    def lose(self, worker: str) -> None:
        raise AssertionError(worker)

    def take_accused(self) -> list[tuple[str, str]]:
        return []

    def counters(self) -> dict[str, int]:
        return {"bytes_sent": 3, "bytes_received": 5, "messages": 2}


class _Idle:
    """A machine that trains, has nothing to do, and stops when told to."""

    phase = Phase.TRAINING

    unapplied = 0

    def joined(self, connect: Connect, *, senders_known: bool) -> None:
        """The round begins."""

    def deadline(self) -> float | None:
        return None

    def handle(self, event: object, now: float) -> list[Action]:
        if getattr(event, "message", None) != Leave():
            return []
        self.phase = Phase.LEFT
        return [Stop()]

    def counters(self) -> dict[str, int]:
        return {}


def _run(monkeypatch: pytest.MonkeyPatch) -> _Wire:
    clock = _Clock()
    names = ("perf_counter", "monotonic", "process_time", "thread_time")
    for module in (engine, meter):
        monkeypatch.setattr(module, "time", SimpleNamespace(**dict.fromkeys(names, clock)))
    wire = _Wire(clock, [Start(), Start(), Start(), Leave()])
    drive(_Idle(), wire, [Start()], stage=_Layers(clock))
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


# --- a worker that was made slow -----------------------------------------------------------------

OVERSLEPT_S = 0.5


class _Nap:
    """Stands for `time`: a sleep is always too long by as much."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock
        self.perf_counter = self.monotonic = self.process_time = self.thread_time = clock
        self.asked: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        self._clock.now += seconds + OVERSLEPT_S


class _Forwards:
    """A machine that forwards so many batches at once, and then has nothing to do."""

    phase = Phase.TRAINING

    def __init__(self, batches: int) -> None:
        self._left = list(range(batches))
        self._busy = False

    unapplied = 0

    def joined(self, connect: Connect, *, senders_known: bool) -> None:
        """The round begins."""

    def deadline(self) -> float | None:
        return None

    def handle(self, event: object, now: float) -> list[Action]:
        if getattr(event, "message", None) == Leave():
            self.phase = Phase.LEFT
            return [Stop()]
        self._busy = self._busy and not isinstance(event, Computed)
        if self._busy or not self._left:
            return []
        self._busy = True
        op = Op(OpKind.FORWARD, self._left.pop(0))
        return [Compute(op, {"data": {"h": np.zeros((4, 1))}})]

    def counters(self) -> dict[str, int]:
        return {}


class _Layers:
    """A stage whose forward takes two seconds."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def readout(self) -> dict[str, int]:
        return {}

    def skips(self) -> dict[str, int]:
        return {}

    def forward(self, batch: int, inputs: object, context: object) -> Forwarded:
        self._clock.now += 2.0
        return Forwarded(None)


def _run_slowed(monkeypatch: pytest.MonkeyPatch, batches: int, **slow: float) -> tuple[Any, _Nap]:
    clock = _Clock()
    nap = _Nap(clock)
    for module in (engine, meter):
        monkeypatch.setattr(module, "time", nap)
    wire = _Wire(clock, [Start()] * batches + [Start(), Start(), Leave()])
    machine, layers = _Forwards(batches), _Layers(clock)
    drive(machine, wire, [Start()], stage=layers, slow=Slow(0, "a", **slow))
    return wire.reports[-1].counters, nap


def test_sleep_makes_ops_as_slow_as_asked_and_is_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    found, nap = _run_slowed(monkeypatch, 3, factor=3.0)
    assert nap.asked == [4.0, 3.5, 3.5]  # what was too much is taken off the next
    assert found["slowed_s"] == 3 * 4.0 + OVERSLEPT_S
    assert found["compute_s"] == 3 * 2.0


def test_a_pause_comes_after_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = _run_slowed(monkeypatch, 2, pause_s=8.0, chance=1.0)
    assert found["slowed_s"] == 2 * 8.0 + OVERSLEPT_S


def test_a_worker_that_is_not_to_be_slow_never_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    found, nap = _run_slowed(monkeypatch, 2)
    assert nap.asked == [] and found["slowed_s"] == 0


def test_forwards_are_timed_from_the_first_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = _run_slowed(monkeypatch, 3)
    assert found["stream_samples"] == 2 * 4
    assert found["stream_s"] == 2 * (2.0 + RECEIVE_S)


# --- rates without fills and drains --------------------------------------------------------------


def test_the_stretch_of_forwards_ends_at_a_barrier() -> None:
    counted = Meter()
    counted.forwarded(4, 0.0)  # not training yet
    counted.resume()
    for at_s in (1.0, 2.0, 4.0):
        counted.forwarded(4, at_s)
    counted.pause()
    counted.forwarded(4, 50.0)
    counted.resume()
    for at_s in (100.0, 101.0):
        counted.forwarded(2, at_s)
    found = counted.counters()
    assert (found["stream_s"], found["stream_samples"]) == (3.0 + 1.0, 2 * 4 + 2)


# --- agreement -----------------------------------------------------------------------------------


def test_agreement_is_the_mean_of_what_was_measured() -> None:
    counted = Meter()
    for found in (Agreement(1.0, 0.5, 4.0), None, Agreement(0.5, 0.25, 2.0)):
        counted.agreement(found)
    counters = counted.counters()
    names = ("agreements", "gradient_cosine", "gradient_error", "generator_loss")
    assert [counters[name] for name in names] == [2, 0.75, 0.375, 3.0]


def test_agreement_with_what_is_synthetic_itself_has_another_name() -> None:
    counters = Meter(bootstrapped=True).counters()
    assert "gradient_cosine" not in counters
    assert counters["target_cosine"] is None and counters["agreements"] == 0


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


def test_cpu_time_is_projected_from_the_ops_that_are_measured() -> None:
    counted, wanted = Meter(), []
    counted.resume()
    for batch in range(15):
        op = Op(OpKind.FORWARD, batch)
        wanted.append(counted.wants_cpu(op))
        counted.op(op, 2.0, float(batch) if wanted[-1] else None)
        counted.op(Op(OpKind.UPDATE, batch), 0.0, 1.0)
    assert [batch for batch, measured in enumerate(wanted) if measured] == [0, 7, 14]
    assert counted.counters()["op_F_cpu_s"] == 15 * (0 + 7 + 14) / 3
    assert counted.counters()["op_F_wall_s"] == 30.0


def test_sums_are_those_of_all_ops_with_the_generators_apart() -> None:
    counted = Meter()
    counted.resume()
    counted.op(Op(OpKind.FORWARD, 0), 3.0, 2.0)
    counted.op(Op(OpKind.PREDICT, 0), 0.5, 0.25)
    counted.op(Op(OpKind.FIT, 0), 1.0, 0.5)
    counted.op(Op(OpKind.FIT_INPUT, 1), 0.25, 0.25)
    found = counted.counters()
    assert (found["compute_s"], found["generator_s"], found["op_cpu_s"]) == (3.0, 1.75, 3.0)


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
