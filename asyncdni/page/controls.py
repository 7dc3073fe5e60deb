"""What the page may do to the workers of a run that this process has started: for demonstrations.

A worker is killed as a fault would kill it; the coordinator finds that out and starts it again, as
it always does. A paused one is stopped by the system until it is let go on; one that is paused for
longer than the run's limit on silence counts as dead, and is started again too.
"""

from __future__ import annotations

import os
import signal

from asyncdni.errors import ConfigError, LaunchError
from asyncdni.page.state import RunState

__all__ = ["ACTIONS", "act", "check_controls"]

#: By name of the action: the signal, what has been done by it, and the state of the worker then.
ACTIONS = {
    "kill": (signal.SIGKILL, "killed from the page", ""),
    "pause": (signal.SIGSTOP, "paused from the page", "paused"),
    "go on": (signal.SIGCONT, "goes on, as asked for on the page", "waiting"),
}


def check_controls() -> None:
    """Raise `ConfigError` on a system that can't tell whose child a process is."""
    if not hasattr(os, "waitid"):
        raise ConfigError("--page-controls: needs Linux; leave it out on this system")


def act(run: RunState, worker: str, action: str) -> None:
    """Do one of `ACTIONS` to the present process of a worker.

    Raises `LaunchError` if it has none, or one that this process has not started.
    """
    process = run.process(worker)
    if process is None:
        raise LaunchError(f"{worker} has no process now")
    if not process.is_here or not _is_living_child(process.pid):
        raise LaunchError(f"the process of {worker} was not started by this command")
    number, text, state = ACTIONS[action]
    os.kill(process.pid, number)
    run.said(worker, f"{worker} {text}", state=state)


def _is_living_child(pid: int) -> bool:
    """Whether that is a child of this process that has not ended; its number is then its own."""
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return ended is None
