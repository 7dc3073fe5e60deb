"""How a worker process comes to an end that no message has ordered."""

from __future__ import annotations

import signal
import threading

import pytest

from asyncdni.drivers.real import process as process_module
from asyncdni.drivers.real.process import Signals, Watchdog


def test_a_worker_that_is_too_busy_to_leave_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(process_module, "exit_process", lambda reason: ended.set())
    monkeypatch.setattr(process_module, "_GRACE_S", 0.01)
    Watchdog()("nothing heard")
    assert ended.wait(30)


# --- signals -------------------------------------------------------------------------------------


def test_a_worker_leaves_stopping_to_its_coordinator_until_it_is_told_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever has started it by hand gets one line."""
    clock = [10.0]
    monkeypatch.setattr(process_module.time, "monotonic", lambda: clock[0])
    monkeypatch.delenv("ASYNCDNI_PARENT_PID", raising=False)
    reasons: list[str] = []
    watchdog = Watchdog()
    monkeypatch.setattr(Watchdog, "__call__", lambda _, reason: reasons.append(reason))
    signals = Signals("b", watchdog)
    before = signal.getsignal(signal.SIGTERM)
    with signals.heard():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)  # at the same moment: systemd sends both
        assert reasons == [] and signals.ended_by is None
        clock[0] += 1.0
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert reasons == ["it got signal 15 more than once"] and signals.ended_by == signal.SIGTERM
    assert capfd.readouterr().err == (
        "asyncdni: worker b goes on until its coordinator stops: stop that one, or signal this "
        "worker again to end it alone\n"
    )


def test_a_worker_that_was_launched_has_nobody_to_tell(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ASYNCDNI_PARENT_PID", "1")
    with Signals("b", Watchdog()).heard():
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == ""
