"""What a worker hears while it is in no round: the newest order counts, wherever it waits."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from asyncdni.drivers.real import engine as forsaken_module
from asyncdni.drivers.real.engine import Forsaken, Signals, Told
from asyncdni.drivers.real.process import Inbox
from asyncdni.errors import LaunchError
from asyncdni.messages import Abort, Connect, Credit, Leave, Message, Refused, Rejoin, Welcome
from asyncdni.wire.beat import PARENT_VARIABLE

CREDIT = Credit("a", 1, "a", 0, 1)


class Wire:
    """Each `receive` brings the next list; none may be asked for once all have been."""

    def __init__(self, *arrivals: list[Message]) -> None:
        self.arrivals = list(arrivals)

    def receive(self, timeout_s: float | None) -> list[Message]:
        return self.arrivals.pop(0)


def inbox(*arrivals: list[Message]) -> Inbox:
    return Inbox(Wire(*arrivals), Forsaken())


def test_a_coordinator_that_is_known_to_live_is_waited_for_however_long_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    welcome = Welcome("a", 1, {}, {}, "", "initial")
    monkeypatch.setenv(PARENT_VARIABLE, str(os.getppid()))
    assert inbox([], [], [welcome]).await_welcome("ipc://x", 0.0) == welcome
    monkeypatch.setenv(PARENT_VARIABLE, "1" if os.getppid() != 1 else "2")
    with pytest.raises(Told, match="the process that started this worker is gone"):
        inbox([]).await_welcome("ipc://x", 0.0)
    monkeypatch.delenv(PARENT_VARIABLE)
    with pytest.raises(LaunchError, match="no coordinator answered"):
        inbox([]).await_welcome("ipc://x", 0.0)


def connect(incarnation: int) -> Connect:
    return Connect(incarnation, {}, {})


def test_addresses_of_the_round_are_waited_for_and_those_of_an_older_one_ignored() -> None:
    waiting = inbox([connect(1)], [], [CREDIT], [], [connect(2)], [])
    assert waiting.await_connect(2) == connect(2)
    assert waiting.take_early() == [CREDIT]
    assert waiting.take_early() == []


def test_the_newest_order_counts_in_whatever_sequence_they_came() -> None:
    newest = Rejoin(4, "initial")
    waiting = inbox([Rejoin(3, "keep"), newest, Rejoin(2, "keep")])
    assert waiting.newer(1) == newest


def test_an_order_is_followed_before_addresses_that_came_with_it() -> None:
    order = Rejoin(3, "keep")
    assert inbox([connect(2), order]).await_connect(2) == order


def test_an_order_that_has_been_followed_is_given_out_once() -> None:
    waiting = inbox([Rejoin(2, "keep")], [])
    assert waiting.newer(1) == Rejoin(2, "keep")
    assert waiting.newer(2) is None


def test_an_order_older_than_the_round_is_none() -> None:
    assert inbox([Rejoin(2, "keep")]).newer(2) is None


def test_what_was_left_over_from_a_round_counts_too() -> None:
    waiting = inbox([])
    waiting.put([CREDIT, Rejoin(5, "snapshots")])
    assert waiting.newer(4) == Rejoin(5, "snapshots")


def test_after_a_failure_the_next_order_is_waited_for_and_all_else_is_void() -> None:
    order = Rejoin(3, "checkpoints/000001")
    assert inbox([CREDIT, connect(2)], [], [order], []).await_order(2) == order


@pytest.mark.parametrize("last", [Abort("disk full"), Leave()])
def test_a_run_that_is_called_off_ends_all_waiting(last: Message) -> None:
    with pytest.raises(Told, match="the run was called off"):
        inbox([last]).await_connect(1)


def test_a_refusal_is_raised_by_its_class() -> None:
    with pytest.raises(LaunchError, match="stage a is taken"):
        inbox([Refused("LaunchError", "stage a is taken")]).await_welcome("ipc://x", 1.0)


def test_the_welcome_ends_the_first_wait() -> None:
    welcome = Welcome("a", 1, {}, {}, "", "initial")
    assert inbox([CREDIT, welcome]).await_welcome("ipc://x", 1.0) == welcome


def test_no_answer_names_the_address_and_the_cure() -> None:
    with pytest.raises(LaunchError, match=r"no coordinator answered at ipc://x within 0 s.*--time"):
        inbox().await_welcome("ipc://x", 0.0)


def test_a_worker_whose_coordinator_is_gone_waits_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends: list[str] = []
    monkeypatch.setattr(forsaken_module, "exit_process", ends.append)
    monkeypatch.setattr(forsaken_module, "_GRACE_S", 0.01)
    forsaken = Forsaken()
    forsaken("nothing heard")
    with pytest.raises(Told, match="worker stops: nothing heard"):
        Inbox(Wire([], []), forsaken).await_connect(1)


def test_a_worker_that_is_too_busy_to_leave_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(forsaken_module, "exit_process", lambda reason: ended.set())
    monkeypatch.setattr(forsaken_module, "_GRACE_S", 0.01)
    Forsaken()("nothing heard")
    assert ended.wait(30)


# --- signals -------------------------------------------------------------------------------------


def test_a_worker_leaves_stopping_to_its_coordinator_until_it_is_told_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever has started it by hand gets one line."""
    clock = [10.0]
    monkeypatch.setattr(forsaken_module.time, "monotonic", lambda: clock[0])
    monkeypatch.delenv("ASYNCDNI_PARENT_PID", raising=False)
    reasons: list[str] = []
    forsaken = Forsaken()
    monkeypatch.setattr(Forsaken, "__call__", lambda _, reason: reasons.append(reason))
    signals = Signals("b", forsaken)
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
    with Signals("b", Forsaken()).heard():
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == ""
