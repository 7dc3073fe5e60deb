"""The loop of the coordinator's process: control messages in, orders out, and a watch on processes.

Ctrl-C (SIGINT), SIGTERM, SIGUSR1 and a closed terminal (SIGHUP) ask for a stop: the pipe drains,
what was learned is saved, all leave. A second one ends the run at once. An exception of an observer
and the end of the program around a run that goes on in a thread are such requests too.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from asyncdni.core.coordinator import Coordinator
from asyncdni.core.events import (
    Commit,
    Consult,
    Consulted,
    DiscardSnapshots,
    Event,
    Exited,
    Fail,
    Finish,
    KeepPart,
    Launch,
    Look,
    Looked,
    Move,
    PartKept,
    PartSent,
    Received,
    Record,
    Rejected,
    Send,
    SendPart,
    Steered,
    Stored,
    UserStop,
    Woke,
)
from asyncdni.core.ledger import SNAPSHOTS
from asyncdni.core.liveness import Sight
from asyncdni.drivers.real.machine import STOP_SIGNALS, written
from asyncdni.errors import (
    CheckpointError,
    Interrupted,
    LaunchError,
    RemoteProtocolError,
    by_name,
)
from asyncdni.messages import COORDINATOR, Steer
from asyncdni.store.checkpoint import discard_snapshots
from asyncdni.store.parts import PartStore
from asyncdni.wire.coordinator import HEART_SUFFIX, CoordinatorTransport

__all__ = ["Launcher", "Observer", "Steering", "Stops", "coordinate"]

#: A dead worker keeps its neighbours waiting until it is noticed; a look takes some 50 µs.
_LOOK_EVERY_S = 0.02


class Launcher(Protocol):
    """What is needed of a launcher while the run goes on."""

    def exited(self) -> list[tuple[str, int, str]]: ...

    def restart(self, name: str) -> None: ...

    def look(self, name: str) -> Sight: ...

    def last_lines(self, name: str) -> str: ...

    def moves(self) -> list[tuple[str, str]]:
        """Workers that are to go on elsewhere from the next barrier, each once, and why."""
        ...

    def settle(self) -> None:
        """Once the run is over: wait until all workers have left, and until what they have printed
        is in the folder of the run."""
        ...


Observer = Callable[[str, Mapping[str, Any]], None]
#: Returns what those who watch the run ask anew of workers, by name; called all the time.
Steering = Callable[[], Mapping[str, Steer]]


class Stops:
    """Requests to stop that come from outside the run, each given out once."""

    def __init__(self) -> None:
        self.error: BaseException | None = None  # of an observer, to be raised at the end
        self.ended_early: str | None = None  # why a callback had the run end at an evaluation
        self._ends_because: str | None = None  # the same, once asked for
        self.numbers: list[int] = []  # of signals
        self._waiting = 0
        self._program_ends = False

    def signalled(self, number: int, _: object = None) -> None:
        """Note a signal; this is a signal handler."""
        self.numbers.append(number)
        self._waiting += 1

    def failed(self, error: BaseException) -> None:
        """An observer has raised that; the first one counts."""
        if self.error is None:
            self.error = error
            self._waiting += 1

    def end(self, reason: str) -> None:
        """A callback has the run end at an evaluation; the first reason counts."""
        self._ends_because = self._ends_because or reason

    def ends(self) -> bool:
        """Whether the run is to end at the present evaluation, which is not its last one."""
        self.ended_early = self._ends_because
        return self.ended_early is not None

    def take(self) -> bool:
        """Whether there is a request that has not been taken yet; it is taken now."""
        if not self._program_ends and not threading.main_thread().is_alive():
            self._program_ends = True  # of whose threads this is one
            self._waiting += 1
        if not self._waiting:
            return False
        self._waiting -= 1
        return True

    @contextmanager
    def collecting_signals(self) -> Iterator[None]:
        """`STOP_SIGNALS` are requests, and end nothing (in the main thread alone)."""
        previous: dict[int, Any] = {}
        try:
            for number in STOP_SIGNALS:
                if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # started by nohup
                previous[number] = signal.signal(number, self.signalled)
        except ValueError:
            pass  # not the main thread: the caller's signals are the caller's business
        try:
            yield
        finally:
            for number, handler in previous.items():
                # None: somebody's who knows no Python, and can't be put back from here.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


class _Run:
    def __init__(
        self,
        machine: Coordinator,
        transport: CoordinatorTransport,
        observe: Observer,
        commit: Callable[[Commit], None],
        command: Callable[[str], str],
        stops: Stops,
        folder: Path | None,
    ) -> None:
        self.machine = machine
        self.transport = transport
        self.observe = observe
        self.launcher: Launcher | None = None
        self.end: Finish | Fail | None = None
        self._commit = commit
        self._command = command
        self._stops = stops
        self._folder = folder
        self.parts = PartStore(folder) if folder is not None else None
        self._looked_s = time.monotonic()

    def handle(self, event: Event) -> None:
        events = [event]
        while events:
            for action in self.machine.handle(events.pop(0), time.monotonic()):
                answer = self._carry_out(action)
                if answer is not None:
                    events.append(answer)

    def wake(self) -> None:
        """Let the machine see what time it is, and how long this process has not looked."""
        now = time.monotonic()
        self.machine.paused(now - self._looked_s, now)
        self._looked_s = now
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
                return self._launch(stage)
            case Look(stage=stage):
                sight = self.launcher.look(stage) if self.launcher is not None else Sight.UNSEEN
                return Looked(stage, sight)
            case Commit(tag=tag):
                written(lambda: self._commit(action))
                return Stored(tag)
            case Consult():
                return Consulted(ends=self._stops.ends())
            case SendPart():
                return self._send_part(action)
            case KeepPart():
                return self._keep_part(action)
            case DiscardSnapshots():
                assert self._folder is not None
                discard_snapshots(self._folder / SNAPSHOTS)
            case Finish() | Fail():
                self.end = action
            case _:
                raise TypeError(f"a coordinator's driver can't carry out {action!r}")
        return None

    def _launch(self, stage: str) -> Event | None:
        if self.launcher is not None:
            try:
                self.launcher.restart(stage)
            except LaunchError as error:
                return Exited(stage, 1, str(error))  # as a process that has died at once
            return None
        values = {"time_s": time.monotonic(), "stage": stage, "command": self._command(stage)}
        self.observe("waiting", values)
        return None

    def _send_part(self, action: SendPart) -> PartSent:
        """Of a file that a worker has asked for. One that can't be read counts as missing."""
        assert self.parts is not None and isinstance(action.to, bytes)
        to, incarnation, path = action.to, action.incarnation, action.path
        try:
            part = self.parts.read(to, incarnation, path, action.offset)
        except CheckpointError as error:
            self._note(str(error))
            part = None
        if part is None:
            return PartSent(to, incarnation, path)
        self.transport.send(to, part)
        return PartSent(to, incarnation, path, part.offset + len(part.data), part.size)

    def _keep_part(self, action: KeepPart) -> PartKept:
        """Of a file that a worker has sent."""
        part, sender = action.part, action.sender
        parts = self.parts
        assert parts is not None and self._folder is not None
        kept = PartKept(part, sender)
        try:
            written(lambda: parts.write(sender, part))
        except RemoteProtocolError as error:
            kept.fault = str(error)
        except CheckpointError as error:
            kept.error, kept.folder_gone = error, not self._folder.is_dir()
        return kept

    def _note(self, text: str) -> None:
        self.observe("note", {"time_s": time.monotonic(), "stage": COORDINATOR, "text": text})

    def close(self) -> None:
        """Remove what has come of files that never became whole."""
        if self.parts is not None:
            self.parts.close()

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
    stops: Stops,
    steering: Sequence[Steering] = (),
    folder: Path | None = None,
) -> Launcher | None:
    """Drive the coordinator until the run has ended; return what has started its workers. Signals
    are added to `stops`.

    `launch` starts the workers of this address, if anybody is to; where nobody is, `command` gives
    the command line that starts one. `commit` writes the manifest of a cut. `steering`: asked
    in every turn of the loop. `folder`: that of the run.

    Raises the first error of any process, by its class (a worker's traceback is a note of it), and
    what `launch` or `commit` raise; after a stop `Interrupted`, or what an observer has raised.
    """
    run = _Run(machine, transport, observe, commit, command, stops, folder)
    with closing(run), stops.collecting_signals():
        if stops.error is not None:
            raise stops.error  # before anything has been started
        run.launcher = launcher = launch(transport.address) if launch is not None else None
        while run.end is None:
            for peer, message in transport.receive(_timeout_s(machine)):
                run.handle(Received(message, peer))
            run.tell_rejected()
            for stage, code, last_lines in launcher.exited() if launcher else ():
                run.handle(Exited(stage, code, last_lines))
            for stage, text in launcher.moves() if launcher else ():
                run.handle(Move(stage, text))
            while stops.take():
                run.handle(UserStop())
            for asked in steering:
                if steers := asked():
                    run.handle(Steered(steers))
            run.wake()
    if isinstance(run.end, Fail):
        raise _error(run.end, run.full_text(run.end), stops)
    return launcher


def _error(fail: Fail, text: str, stops: Stops) -> BaseException:
    """What a run has ended with; `text` is for the user."""
    error = by_name(fail.kind)(text)
    if fail.trace:
        error.add_note(fail.trace)
    if isinstance(error, Interrupted):
        error.orderly = fail.orderly
        if stops.numbers:
            error.exit_code = 128 + stops.numbers[-1]
        if stops.error is not None:
            if fail.orderly:
                stops.error.add_note(fail.text)
            if isinstance(stops.error, SystemExit):  # which says nothing by itself
                print(f"asyncdni: {error}", file=sys.stderr)
            return stops.error
    return error


def _timeout_s(machine: Coordinator) -> float:
    deadline = machine.deadline()
    left_s = _LOOK_EVERY_S if deadline is None else deadline - time.monotonic()
    return min(_LOOK_EVERY_S, max(0.0, left_s))
