"""What a worker's seconds are counted as, on a clock that only its transport moves."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from asyncdni.backends.base import Stage
from asyncdni.core.events import Stop
from asyncdni.core.worker import Phase, Worker
from asyncdni.messages import Leave, Message, Report, Start
from asyncdni.runtime import engine, meter
from asyncdni.runtime.engine import Engine

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
