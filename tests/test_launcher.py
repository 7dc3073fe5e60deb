"""Processes on this machine: started, started again, told of once, and none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import until

from asyncdni.core.liveness import Sight
from asyncdni.errors import LaunchError
from asyncdni.launch import local
from asyncdni.launch.local import LocalLauncher, own_command, typed_command

Exited = tuple[str, int, str]


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[LocalLauncher]:
    with LocalLauncher(tmp_path) as made:
        yield made
        made.stop(0)


def script(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def pid_in(log: Path, line: int = 0) -> int | None:
    """The process id that a worker has written as that line of its log."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return int(lines[line]) if len(lines) > line and lines[line].endswith("\n") else None


SAY_PID_AND_SLEEP = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
SPINNING = "import os; print(os.getpid(), flush=True)\nwhile True: pass"
DEAF = (
    "import os, signal\n"
    "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):\n"
    "    signal.signal(number, signal.SIG_IGN)\n"
    "print(os.getpid(), flush=True)\n"
    "while True: signal.pause()"
)


def test_an_end_is_told_once_with_code_and_last_lines(launcher: LocalLauncher) -> None:
    launcher.start({"a": script("print('one\\ntwo'); raise SystemExit(3)")})
    assert until(launcher.exited, "its end") == [("a", 3, "one | two")]
    assert launcher.exited() == []


def test_a_process_started_again_has_its_own_end_and_its_own_last_lines(
    launcher: LocalLauncher, tmp_path: Path
) -> None:
    counting = "import os, sys; print('first' if os.path.getsize(sys.argv[1]) == 0 else 'later')"
    launcher.start({"a": [*script(counting), str(tmp_path / "a.log")]})
    assert until(launcher.exited, "the first end") == [("a", 0, "first")]
    launcher.restart("a")
    assert until(launcher.exited, "the second end") == [("a", 0, "later")]
    assert (tmp_path / "a.log").read_text() == "first\nlater\n"


@pytest.mark.parametrize("code", [SAY_PID_AND_SLEEP, DEAF], ids=["lives", "ignores signals"])
@pytest.mark.parametrize("stopped", [False, True])
def test_starting_again_kills_what_is_left_of_the_process_before(
    launcher: LocalLauncher, tmp_path: Path, code: str, stopped: bool
) -> None:
    launcher.start({"a": script(code)})
    old = until(lambda: pid_in(tmp_path / "a.log"), "the first process")
    if stopped:
        os.kill(old, signal.SIGSTOP)
    launcher.restart("a")
    assert not Path(f"/proc/{old}").exists()  # reaped too
    new = until(lambda: pid_in(tmp_path / "a.log", 1), "the second process")
    assert new != old
    assert launcher.exited() == []  # the old one's end is nobody's business any more


# --- what a silent process looks like ------------------------------------------------------------


def test_a_process_that_waits_is_still_and_so_is_one_that_is_stopped(
    launcher: LocalLauncher, tmp_path: Path
) -> None:
    launcher.start({"a": script(SAY_PID_AND_SLEEP), "b": script(SPINNING)})
    a, b = (until(lambda n=n: pid_in(tmp_path / f"{n}.log"), n) for n in "ab")  # type: ignore[misc]
    until(lambda: launcher.look("a") is Sight.STILL, "a process that waits")
    os.kill(b, signal.SIGSTOP)
    until(lambda: launcher.look("b") is Sight.STILL, "a process that is stopped")
    os.kill(a, signal.SIGKILL)


def test_a_process_that_computes_or_would_like_to_is_not_still(
    launcher: LocalLauncher, tmp_path: Path
) -> None:
    """Which of both depends on what else the machine does."""
    launcher.start({"a": script(SPINNING)})
    until(lambda: pid_in(tmp_path / "a.log"), "a process")
    seen = {launcher.look("a") for _ in range(100)}
    assert Sight.STARVED in seen  # at the first look nobody knows what it has been given
    assert seen <= {Sight.STARVED, Sight.BUSY}


@pytest.mark.parametrize(
    ("states", "cpu_s", "sight"),
    [
        ("S", 0.00, Sight.STILL),
        ("T", 0.90, Sight.STILL),
        ("St", 0.90, Sight.STILL),  # held by a debugger
        ("R", 0.00, Sight.STARVED),
        ("SR", 0.30, Sight.STARVED),
        ("SD", 0.00, Sight.STARVED),
        ("R", 0.90, Sight.BUSY),
        ("S", 0.02, Sight.BUSY),
    ],
)
def test_what_its_threads_do_and_the_time_that_they_were_given_tell_what_it_is(
    launcher: LocalLauncher,
    monkeypatch: pytest.MonkeyPatch,
    states: str,
    cpu_s: float,
    sight: Sight,
) -> None:
    """In the second since the last look."""
    launcher.start({"a": script(SAY_PID_AND_SLEEP)})
    looks = [({"S"}, 5.0), (set(states), 5.0 + cpu_s)]
    times = [100.0, 101.0]
    monkeypatch.setattr(local, "_threads", lambda pid: looks.pop(0))
    with monkeypatch.context() as patched:
        patched.setattr(local.time, "monotonic", lambda: times.pop(0))
        launcher.look("a")
        assert launcher.look("a") is sight


def test_a_process_of_which_the_system_tells_nothing_is_out_of_sight(
    launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher.start({"a": script(SAY_PID_AND_SLEEP)})
    assert launcher.look("b") is Sight.UNSEEN
    monkeypatch.setattr(local.os, "listdir", lambda path: ["1"])  # of another namespace
    assert launcher.look("a") is Sight.UNSEEN
    monkeypatch.setattr(local.os, "listdir", lambda path: ["no such thread"])
    assert launcher.look("a") is Sight.UNSEEN


def test_a_killed_process_that_does_not_go_away_is_not_waited_for(
    launcher: LocalLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a disk that does not answer."""
    launcher.start({"a": script(SAY_PID_AND_SLEEP)})
    until(lambda: pid_in(tmp_path / "a.log"), "the first process")
    with monkeypatch.context() as patched:
        patched.setattr(local, "_KILL_S", 0.0)
        launcher.restart("a")
    until(lambda: pid_in(tmp_path / "a.log", 1), "the second process")
    until(lambda: not launcher.exited() and not launcher._unreaped, "the end of the first")


def test_stopping_leaves_no_process_and_no_zombie_whatever_they_ignore(tmp_path: Path) -> None:
    with LocalLauncher(tmp_path) as launcher:
        launcher.start({"a": script(DEAF), "b": script(DEAF)})
        logs = (tmp_path / "a.log", tmp_path / "b.log")
        pids = [until(lambda log=log: pid_in(log), "a process") for log in logs]  # type: ignore[misc]
        launcher.stop(0)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_command_that_does_not_exist_is_named(launcher: LocalLauncher) -> None:
    with pytest.raises(LaunchError, match=r"can't start worker a: .*no/such/program"):
        launcher.start({"a": ["no/such/program"]})


def test_a_log_that_is_a_pipe_is_not_waited_for(launcher: LocalLauncher, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.log")
    with pytest.raises(LaunchError, match=r"can't start worker a: .*it is a pipe"):
        launcher.start({"a": script("pass")})


def test_logs_that_can_not_be_written_are_named_at_a_restart(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    with LocalLauncher(logs) as launcher:
        launcher.start({"a": script("pass")})
        until(launcher.exited, "its end")
        (logs / "a.log").unlink()
        logs.rmdir()
        with pytest.raises(LaunchError, match=r"can't start worker a: .*a\.log"):
            launcher.restart("a")


def test_a_command_to_be_typed_reaches_a_socket_that_listens_everywhere() -> None:
    flags = ["--keys", "/my keys"]
    line = typed_command("top", "tcp://0.0.0.0:5555", flags, allow_import=True)
    assert line == (
        "asyncdni worker --stage top --coordinator tcp://127.0.0.1:5555 --keys '/my keys' "
        "--allow-import"
    )


# --- the spare process ---------------------------------------------------------------------------

HELP = own_command(["worker", "--help"])
#: Says which process it is, and waits for the end of its parent.
NOT_OURS = script(SAY_PID_AND_SLEEP)


def _spare_of(launcher: LocalLauncher) -> int:
    """Has a launcher look after its processes until it has a spare; returns that one's id."""

    def found() -> int | None:
        launcher.exited()
        return launcher._waiting[0].pid if launcher._waiting else None

    return until(found, "a spare process")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launchers have a spare as soon as they look."""
    monkeypatch.setattr(local, "_SPARE_AFTER_S", 0.0)


@pytest.mark.usefixtures("at_once")
def test_a_spare_becomes_the_worker_that_is_started_again_with_its_log_and_its_end(
    tmp_path: Path,
) -> None:
    with LocalLauncher(tmp_path, spares=1) as launcher:
        launcher.start({"a": HELP})
        spare = _spare_of(launcher)
        until(lambda: not launcher.running(), "the end of the first")
        launcher.restart("a")
        assert launcher._processes["a"].process.pid == spare
        assert until(launcher.exited, "its end")[0][:2] == ("a", 0)
        assert (tmp_path / "a.log").read_text().count("usage: asyncdni worker") == 2
        another = _spare_of(launcher)
    assert another != spare and not Path(f"/proc/{another}").exists()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("command", [HELP, NOT_OURS], ids=["dead", "another"])
def test_a_spare_that_is_dead_or_unlike_the_command_is_no_loss(
    tmp_path: Path, command: list[str]
) -> None:
    with LocalLauncher(tmp_path, spares=1) as launcher:
        launcher.start({"a": command})
        spare = _spare_of(launcher)
        if command is HELP:
            os.kill(spare, signal.SIGKILL)
            until(lambda: not _lives(spare), "its end")
        launcher.restart("a")
        assert launcher._processes["a"].process.pid != spare
        until(lambda: not Path(f"/proc/{spare}").exists(), "the end of the spare")
        launcher.stop(0)


def test_as_many_spares_as_are_asked_for_become_the_workers_that_are_started(
    tmp_path: Path,
) -> None:
    """As in an agent that is told how many workers it gets."""
    with LocalLauncher(tmp_path) as launcher:
        launcher.prepare(2)
        spares = {one.pid for one in launcher._waiting}
        launcher.start({name: HELP for name in ("a", "b", "c")})
        started = {name: one.process.pid for name, one in launcher._processes.items()}
        assert {started["a"], started["b"]} == spares and started["c"] not in spares
        launcher.stop(0)


def test_a_spare_leaves_when_the_process_that_has_started_it_is_killed() -> None:
    code = (
        "from asyncdni.launch.local import start_spare\nimport signal\n"
        "print(start_spare().pid, flush=True)\nsignal.pause()"
    )
    with subprocess.Popen(script(code), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        spare = int(parent.stdout.readline())
        parent.kill()
    until(lambda: not _lives(spare), "the end of the spare")


def _lives(pid: int) -> bool:
    """Whether a process runs; one that nobody has asked for its end does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
