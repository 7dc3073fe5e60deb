"""Signs of life: hearts of workers, and what ends them."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from collections.abc import Iterator

import pytest

from asyncdni.core.liveness import Silence
from asyncdni.errors import LaunchError
from asyncdni.messages import Beat, Message
from asyncdni.wire.address import private_folder
from asyncdni.wire.beat import PARENT_VARIABLE, Heart
from asyncdni.wire.coordinator import CoordinatorTransport

PATIENCE_S = 20.0  # ends a test that would hang; nothing takes that long


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> Iterator[CoordinatorTransport]:
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    with private_folder() as folder:
        transport = CoordinatorTransport(f"ipc://{folder}/coordinator")
        yield transport
        transport.close(0)


def test_a_heart_beats_for_its_worker_until_it_is_stopped(
    coordinator: CoordinatorTransport,
) -> None:
    reasons: queue.Queue[str] = queue.Queue()
    heart = Heart(coordinator.address, b"worker", PATIENCE_S / 6, reasons.put)
    heart.start()
    beats: list[tuple[bytes, Message]] = []
    while len(beats) < 3:
        beats += coordinator.receive(PATIENCE_S)
    heart.stop()
    assert set(beats) == {(b"worker", Beat())}
    assert reasons.empty()


def test_a_silent_coordinator_is_lost(coordinator: CoordinatorTransport) -> None:
    reasons: queue.Queue[str] = queue.Queue()
    heart = Heart(coordinator.address, b"worker", 0.1, reasons.put, patience_s=0.1)
    heart.start()  # nobody receives, so nobody answers
    reason = reasons.get(timeout=PATIENCE_S)
    heart.stop()
    assert reason == f"nothing heard from {coordinator.address} for 0.1 s"
    assert reasons.empty()


def test_a_dead_parent_is_noticed(
    coordinator: CoordinatorTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PARENT_VARIABLE, "1" if os.getppid() != 1 else "2")
    reasons: queue.Queue[str] = queue.Queue()
    heart = Heart(coordinator.address, b"worker", 3.0, reasons.put)
    heart.start()
    assert reasons.get(timeout=PATIENCE_S).startswith("its parent process")
    heart.stop()


def test_a_living_parent_is_no_reason(
    coordinator: CoordinatorTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PARENT_VARIABLE, str(os.getppid()))
    reasons: queue.Queue[str] = queue.Queue()
    heart = Heart(coordinator.address, b"worker", 3.0, reasons.put)
    heart.start()
    for _ in range(3):
        coordinator.receive(PATIENCE_S)
    heart.stop()
    assert reasons.empty()


def test_a_parent_that_lives_is_busy_and_not_dead_however_long_it_says_nothing(
    coordinator: CoordinatorTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PARENT_VARIABLE, str(os.getppid()))
    monkeypatch.setattr(Silence, "too_long", lambda *_: True)
    reasons: queue.Queue[str] = queue.Queue()
    heart = Heart(coordinator.address, b"worker", 0.1, reasons.put, patience_s=0.1)
    heart.start()
    beats = 0
    while beats < 3:
        beats += len(coordinator.receive(PATIENCE_S))
    heart.stop()
    assert reasons.empty()


def test_a_heart_that_never_started_can_be_stopped(coordinator: CoordinatorTransport) -> None:
    Heart(coordinator.address, b"worker", 3.0).stop()
    assert coordinator.receive(0) == []


@pytest.mark.parametrize("text", ["parent", "-3", "1.5"])
def test_a_parent_id_that_is_no_number_is_told(
    coordinator: CoordinatorTransport, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(PARENT_VARIABLE, text)
    with pytest.raises(LaunchError, match=PARENT_VARIABLE):
        Heart(coordinator.address, b"worker", 3.0)


def test_a_worker_without_a_coordinator_ends_with_one_line(
    coordinator: CoordinatorTransport,
) -> None:
    program = (
        "import threading\n"
        "from asyncdni.wire.beat import Heart\n"
        f"Heart({coordinator.address!r}, b'worker', 0.1, patience_s=0.1).start()\n"
        "threading.Event().wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S * 3
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"asyncdni: worker stops: nothing heard from {coordinator.address} for 0.1 s\n"
    )
