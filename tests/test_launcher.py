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
from asyncdni.launch.forkserver import Forked
from asyncdni.launch.local import (
    LocalLauncher,
    own_command,
    start_fork_server,
    typed_command,
)

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


# --- the fork server -----------------------------------------------------------------------------

HELP = own_command(["worker", "--help"])
#: Waits for a coordinator that never comes.
WAITING = own_command(["worker", "--stage", "a", "--coordinator", "tcp://127.0.0.1:9"])
forking = pytest.mark.skipif(sys.platform != "linux", reason="this system has no subreapers")


def _server_of(launcher: LocalLauncher) -> int:
    """The process id of a launcher's fork server."""
    assert launcher._server is not None
    return launcher._server.pid


def _forked(launcher: LocalLauncher, name: str = "a") -> Forked:
    """The worker's process, which a fork server has forked."""
    process = launcher._processes[name].process
    assert isinstance(process, Forked)
    return process


@forking
def test_workers_are_forked_by_one_server_with_their_logs_and_their_ends(tmp_path: Path) -> None:
    with LocalLauncher(tmp_path) as launcher:
        launcher.start({"a": HELP, "b": own_command(["worker"])})
        server = _server_of(launcher)
        ended: dict[str, int] = {}
        until(lambda: ended.update({e[0]: e[1] for e in launcher.exited()}) or len(ended) == 2, "")
        launcher.restart("a")
        assert until(launcher.exited, "its end")[0][:2] == ("a", 0)
        assert _server_of(launcher) == server
    assert ended == {"a": 0, "b": 2}
    assert (tmp_path / "a.log").read_text().count("usage: asyncdni worker") == 2
    assert "required: --stage" in (tmp_path / "b.log").read_text()
    assert not Path(f"/proc/{server}").exists()


@forking
def test_a_forked_worker_is_a_child_of_the_launcher_and_shows_its_own_command(
    launcher: LocalLauncher,
) -> None:
    launcher.start({"a": WAITING})
    process = _forked(launcher)
    pid = until(lambda: process.poll() or process.pid, "the process")
    shown = Path(f"/proc/{pid}/cmdline")
    until(lambda: shown.read_bytes().rstrip(b"\0").split(b"\0")[1:] == _encoded(WAITING[1:]), "it")
    assert int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()
    assert os.getsid(pid) == pid
    assert launcher.look("a") is not Sight.UNSEEN
    os.kill(pid, signal.SIGKILL)
    assert until(launcher.exited, "its end")[0][:2] == ("a", -signal.SIGKILL)


@forking
def test_forked_workers_draw_differently_where_users_code_seeds_nothing(
    launcher: LocalLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy's own state would be copied by a fork."""
    drawing = "import atexit\natexit.register(lambda: print(__import__('numpy').random.random()))"
    (tmp_path / "sitecustomize.py").write_text(drawing)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    launcher.start({"a": HELP, "b": HELP})
    until(lambda: launcher.exited() is not None and not launcher.running(), "their ends")
    drawn = [(tmp_path / f"{name}.log").read_text().splitlines()[-1] for name in ("a", "b")]
    assert 0.0 <= float(drawn[0]) < 1.0 and drawn[0] != drawn[1]


def _encoded(words: list[str]) -> list[bytes]:
    return [os.fsencode(word) for word in words]


@forking
def test_what_is_stopped_before_it_has_been_forked_is_never_there(tmp_path: Path) -> None:
    with LocalLauncher(tmp_path) as launcher:
        launcher.start({"a": WAITING, "b": WAITING})
        processes = [_forked(launcher, name) for name in ("a", "b")]
        launcher.stop(0)
        launcher.exited()  # starts nothing any more
        assert [launcher._processes[name].process for name in ("a", "b")] == processes
    assert not any(one.pid and _lives(one.pid) for one in processes)


@forking
def test_a_server_that_ends_while_it_imports_is_no_loss(launcher: LocalLauncher) -> None:
    launcher.start({"a": HELP})
    os.kill(_server_of(launcher), signal.SIGKILL)
    assert until(launcher.exited, "its end")[0][:2] == ("a", 0)
    assert isinstance(launcher._processes["a"].process, subprocess.Popen)


@forking
def test_a_server_that_hangs_is_given_up_at_the_next_start(launcher: LocalLauncher) -> None:
    launcher.start({"a": HELP})
    server = _server_of(launcher)
    os.kill(server, signal.SIGSTOP)
    launcher.restart("a")
    assert until(launcher.exited, "its end")[0][:2] == ("a", 0)
    assert isinstance(launcher._processes["a"].process, subprocess.Popen)
    assert not Path(f"/proc/{server}").exists()


@forking
def test_a_server_that_ends_later_has_a_successor(launcher: LocalLauncher) -> None:
    launcher.start({"a": HELP})
    until(launcher.exited, "its end")
    first = _server_of(launcher)
    os.kill(first, signal.SIGKILL)
    until(lambda: not _lives(first), "its end")
    launcher.restart("a")
    assert until(launcher.exited, "its end")[0][:2] == ("a", 0)
    assert _server_of(launcher) != first and not Path(f"/proc/{first}").exists()


@forking
def test_a_server_for_other_threads_is_closed(tmp_path: Path) -> None:
    given = start_fork_server(threads=1)
    assert given is not None
    with LocalLauncher(tmp_path, threads=2, server=given) as launcher:
        launcher.start({"a": HELP})
        assert _server_of(launcher) != given.pid and not Path(f"/proc/{given.pid}").exists()
        launcher.stop(0)


@forking
def test_nothing_is_forked_where_another_thread_runs(
    launcher: LocalLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the tracers and debuggers start one that come with the user's Python."""
    start = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"
    (tmp_path / "sitecustomize.py").write_text(start)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    launcher.start({"a": HELP})
    assert until(launcher.exited, "its end")[0][:2] == ("a", 0)
    assert isinstance(launcher._processes["a"].process, subprocess.Popen)


def test_nobody_has_to_have_a_server(
    launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCDNI_FORK", "0")
    launcher.start({"a": HELP})
    assert until(launcher.exited, "its end")[0][:2] == ("a", 0)
    assert launcher._server is None


@forking
def test_a_library_that_can_not_be_loaded_is_left_to_the_worker(launcher: LocalLauncher) -> None:
    launcher._libraries = ["no such library"]
    launcher.start({"a": HELP})
    assert until(launcher.exited, "its end")[0][:2] == ("a", 0)
    assert isinstance(launcher._processes["a"].process, Forked)


@forking
def test_a_server_leaves_when_the_process_that_has_started_it_is_killed() -> None:
    code = (
        "from asyncdni.launch.local import start_fork_server\nimport signal\n"
        "print(start_fork_server().pid, flush=True)\nsignal.pause()"
    )
    with subprocess.Popen(script(code), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        parent.kill()
    until(lambda: not _lives(server), "the end of the server")


def _lives(pid: int) -> bool:
    """Whether a process runs; one that nobody has asked for its end does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
