"""What the page may do to the workers of a run that this process has started: for demonstrations.

A worker is killed as a fault would kill it; the coordinator finds that out and starts it again, as
it always does. A paused one is stopped by the system until it is let go on; one that is paused for
longer than the run's limit on silence counts as dead, and is started again too. Workers and links
are made slow as `[slow]` and `[links]` of the experiment would make them, through the coordinator.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Mapping
from typing import Any

from asyncdni.errors import ConfigError, LaunchError, legible
from asyncdni.page.state import RunState

__all__ = ["ACTIONS", "CONDITIONS", "act", "check_controls", "slow_down"]

#: By name of the action: the signal, what has been done by it, and the state of the worker then.
ACTIONS = {
    "kill": (signal.SIGKILL, "killed from the page", ""),
    "pause": (signal.SIGSTOP, "paused from the page", "paused"),
    "go on": (signal.SIGCONT, "goes on, as asked for on the page", "waiting"),
}


#: By name of the action: the key of its number, and the least and greatest it may be.
CONDITIONS = {
    "slow": ("factor", 1.0, 50.0),
    "lengthen": ("added_s", 0.0, 1.0),
    "delay": ("latency_s", 0.0, 1.0),
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


def slow_down(run: RunState, worker: str, action: str, asked: Mapping[str, Any]) -> None:
    """Do one of `CONDITIONS`: have a worker take `factor` times as long for each op (1: no longer
    slow), or `added_s` longer, or messages on its link to the worker `to` take `latency_s` longer
    each way (0: no longer).

    Raises `ConfigError` for another number than may be, or a link that is none.
    """
    key, least, most = CONDITIONS[action]
    number = asked.get(key)
    if isinstance(number, bool) or not isinstance(number, int | float):
        number = math.nan
    if not least <= number <= most:
        expected = f"expected a number from {least:g} to {most:g}"
        raise ConfigError(f"{action}: {key} is {str(asked.get(key))[:20]}, {expected}")
    if action != "delay":
        run.slow_down(worker, **{key: float(number)})
        return
    other = str(asked.get("to"))
    if (worker, other) not in run.links:
        raise ConfigError(f"delay: there is no link from {worker} to {legible(other, 64)}")
    run.delay(worker, other, float(number))


def _is_living_child(pid: int) -> bool:
    """Whether that is a child of this process that has not ended; its number is then its own."""
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return ended is None
