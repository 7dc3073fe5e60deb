"""The loop of the coordinator's process: control messages in, orders out, and a watch on processes.

Ctrl-C (SIGINT), SIGTERM and a closed terminal (SIGHUP) ask for a stop: the pipe drains, what was
learned is saved, all leave. A second one ends the run at once.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from asyncdni.core.coordinator import Coordinator
from asyncdni.core.events import (
    Commit,
    Event,
    Exited,
    Fail,
    Finish,
    Launch,
    Look,
    Looked,
    Received,
    Record,
    Rejected,
    Send,
    Stored,
    UserStop,
    Woke,
)
from asyncdni.core.liveness import Sight
from asyncdni.errors import LaunchError, by_name
from asyncdni.runtime.memory import written
from asyncdni.transports.coordinator import HEART_SUFFIX, CoordinatorTransport

__all__ = ["Launcher", "Observer", "coordinate"]

#: A dead worker keeps its neighbours waiting until it is noticed; a look takes some 50 µs.
_LOOK_EVERY_S = 0.02
#: After a longer time without a look (SIGSTOP, a laptop's lid, a slow disk) this process was the
#: silent one: for as long again nobody is held to have been.
_GAP_S = 0.5


class Launcher(Protocol):
    """What is needed of a launcher while the run goes on."""

    def exited(self) -> list[tuple[str, int, str]]: ...

    def restart(self, name: str) -> None: ...

    def look(self, name: str) -> Sight: ...

    def last_lines(self, name: str) -> str: ...


Observer = Callable[[str, Mapping[str, Any]], None]


class _Run:
    def __init__(
        self,
        machine: Coordinator,
        transport: CoordinatorTransport,
        observe: Observer,
        commit: Callable[[Commit], None],
        command: Callable[[str], str],
    ) -> None:
        self.machine = machine
        self.transport = transport
        self.observe = observe
        self.launcher: Launcher | None = None
        self.end: Finish | Fail | None = None
        self._commit = commit
        self._command = command
        self._looked_s = time.monotonic()
        self._patient_until_s = 0.0

    def handle(self, event: Event) -> None:
        events = [event]
        while events:
            for action in self.machine.handle(events.pop(0), time.monotonic()):
                answer = self._carry_out(action)
                if answer is not None:
                    events.append(answer)

    def wake(self) -> None:
        """Let the machine see what time it is, unless it has been asleep itself until just now."""
        now = time.monotonic()
        if now - self._looked_s > _GAP_S:
            self._patient_until_s = now + _GAP_S
        self._looked_s = now
        if now >= self._patient_until_s:
            self.handle(Woke())

    def tell_rejected(self) -> None:
        """Peers that the transport has heard nonsense from since the last call."""
        rejected = self.transport.rejected
        while rejected:
            peer, text = rejected.pop(0)
            self.handle(Rejected(peer.removesuffix(HEART_SUFFIX), text))

    def _carry_out(self, action: object) -> Event | None:
        """The answer to it, where there is one."""
        match action:
            case Send(to=to, message=message):
                assert isinstance(to, bytes)
                self.transport.send(to, message)
            case Record(kind=kind, values=values):
                self.observe(kind, values)
            case Launch(stage=stage):
                self._launch(stage)
            case Look(stage=stage):
                sight = self.launcher.look(stage) if self.launcher is not None else Sight.UNSEEN
                return Looked(stage, sight)
            case Commit(tag=tag):
                written(lambda: self._commit(action))
                return Stored(tag)
            case Finish() | Fail():
                self.end = action
            case _:
                raise TypeError(f"a coordinator's driver can't carry out {action!r}")
        return None

    def _launch(self, stage: str) -> None:
        if self.launcher is not None:
            self.launcher.restart(stage)
            return
        values = {"time_s": time.monotonic(), "stage": stage, "command": self._command(stage)}
        self.observe("waiting", values)

    def full_text(self, fail: Fail) -> str:
        """With what only this process knows of the workers that have failed."""
        if self.launcher is None:
            missing = fail.stages if fail.kind == LaunchError.__name__ else ()
            commands = [self._command(stage) for stage in missing]
            return "; to be started by: ".join([fail.text, *commands])
        said = {stage: self.launcher.last_lines(stage) for stage in fail.stages}
        more = [
            f"the last lines of {stage}: {lines}"
            for stage, lines in said.items()
            if lines and lines not in fail.text
        ]
        return "; ".join([fail.text, *more])


def coordinate(
    machine: Coordinator,
    transport: CoordinatorTransport,
    observe: Observer,
    launch: Callable[[str], Launcher] | None = None,
    *,
    commit: Callable[[Commit], None],
    command: Callable[[str], str],
) -> None:
    """Until the run has ended.

    `launch` starts the workers of this address, if anybody is to; where nobody is, `command` gives
    the command line that starts one. `commit` writes the manifest of a cut.

    Raises the first error of any process, by its class (a worker's traceback is a note of it), and
    what `launch`, the launcher or `commit` raise.
    """
    run = _Run(machine, transport, observe, commit, command)
    with _stop_signals() as stops:
        run.launcher = launcher = launch(transport.address) if launch is not None else None
        seen = 0
        while run.end is None:
            for peer, message in transport.receive(_timeout_s(machine)):
                run.handle(Received(message, peer))
            run.tell_rejected()
            for stage, code, last_lines in launcher.exited() if launcher else ():
                run.handle(Exited(stage, code, last_lines))
            if len(stops) > seen:
                seen += 1
                run.handle(UserStop())
            run.wake()
    if isinstance(run.end, Fail):
        error = by_name(run.end.kind)(run.full_text(run.end))
        if run.end.trace:
            error.add_note(run.end.trace)
        raise error


def _timeout_s(machine: Coordinator) -> float:
    deadline = machine.deadline()
    left_s = _LOOK_EVERY_S if deadline is None else deadline - time.monotonic()
    return min(_LOOK_EVERY_S, max(0.0, left_s))


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP instead of dying of them (in the main thread alone)."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)

    previous: dict[int, Any] = {}
    try:
        for number in map(int, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # started by nohup
            previous[number] = signal.signal(number, note)
    except ValueError:
        pass  # not the main thread: the caller's signals are the caller's business
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
