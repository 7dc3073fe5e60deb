"""The agent of one machine: it starts the workers that fall to it, and tells what becomes of them.

```
 agent                              coordinator (rank 0)
   │ Enrol ──────────────────────────► │  place, digest of the experiment, machine
   │ ◄──────────── Enrolled (Refused)  │  once, when the run begins
   │ ◄──────────────────────── Engage  │  start a worker, or start it again
   │ Ended ──────────────────────────► │  a worker's process has ended: code, last lines
   │ Part ◄─────────────────────► Taken│  what workers print: see `cluster.worker_logs`
   │ Failed ─────────────────────────► │  no worker can be started here: the end of the run
   │ Beat ◄──────────────────────────► │  all the time
   │ ◄───────────────────── Introduce  │  another coordinator is there: Enrol again
   │ ◄─────────────────────── Dismiss  │  the run is over: leave with this exit code
```

Engines end all processes when one dies, so workers are an agent's children and not the engine's: a
worker that dies is started again by its agent, and the engine sees nothing of it. The agent of rank
0 may have the coordinator as a child as well: see `cluster.keeper`.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from asyncdni import logs
from asyncdni.cluster.elastic import Host
from asyncdni.cluster.engines import Place
from asyncdni.cluster.keeper import Keeper
from asyncdni.cluster.worker_logs import LOGS, LogSender
from asyncdni.core.liveness import worker_patience_s
from asyncdni.drivers.real.coordinator import Stops
from asyncdni.drivers.real.machine import usable_cores, usable_gpus
from asyncdni.errors import AsyncDNIError, Interrupted, LaunchError, by_name
from asyncdni.imports import Allowed
from asyncdni.launch.forkserver import LIBRARIES, SERVER_BYTES, ForkServer
from asyncdni.launch.local import LocalLauncher, worker_command
from asyncdni.messages import (
    PROTOCOL_VERSION,
    Dismiss,
    Ended,
    Engage,
    Enrol,
    Enrolled,
    Failed,
    Introduce,
    Refused,
    Taken,
)
from asyncdni.plan.sizes import memory_bytes
from asyncdni.store.claims import Claim
from asyncdni.wire.address import parse, private_folder
from asyncdni.wire.agent import AgentTransport
from asyncdni.wire.beat import Heart
from asyncdni.wire.curve import Keys

__all__ = ["Means", "serve", "this_host"]

_LOOK_EVERY_S = 0.02
#: Signals that come together are one request, as for the coordinator.
_TOGETHER_S = 0.25
#: How long the workers may take to leave after the end of the run: saved, or failed.
_GRACE_S, _ERROR_GRACE_S = 10.0, 0.5
#: How long the last news of this agent may take to reach the coordinator.
_LINGER_S = 0.5
#: How often what workers have printed is sent to the coordinator, and how long the last of it may
#: take.
_LOGS_EVERY_S, _LOGS_LAST_S = 0.25, 5.0
#: How long it is tried to connect to an address before the user is told that it can't be reached,
#: how long to wait between two attempts, and how long one may take that works.
_REACH_S, _TRY_EVERY_S, _ANSWER_S = 6.0, 0.25, 1.0
#: How long until an agent enrols again: the coordinator may have died with the first word.
_ENROL_EVERY_S = 2.0


@dataclass(frozen=True)
class Means:
    """What an agent has on its machine."""

    keys: Keys | None = None
    flags: Sequence[str] = ()  # of each worker's command line, for the same keys
    allow_import: Allowed = False
    timeout_s: float = 60.0  # for the coordinator to come
    abandoned: Callable[[], bool] = field(default=lambda: False)  # nobody waits for it any more
    takes_part: Callable[[bool], None] = field(default=lambda _: None)  # called at both ends
    keeper: Keeper | None = None  # of the coordinator, where that is a child of this agent
    server: ForkServer | None = None  # forks its workers; it imports what they need meanwhile


def serve(place: Place, digest: str, means: Means) -> None:
    """Be the agent of rank `place.rank` until the run is over.

    `digest` is that of the experiment that was asked for here; empty: none was.

    Raises:
        LaunchError: no coordinator has come, it has refused this agent, or it is gone.
        AsyncDNIError: the run has failed, with its exit code; or the workers can't be started.
        Interrupted: a second signal has come, or the connection that started this agent has ended.
    """
    assert place.coordinator is not None, "a place among several ranks has an address"
    with ExitStack() as stack:
        if means.server is not None:
            stack.callback(means.server.close)
        transport = AgentTransport(place.coordinator, means.keys)
        stack.callback(transport.close, _LINGER_S)
        stops = Stops()
        stack.enter_context(stops.collecting_signals())
        _Agent(place, digest, transport, means, stops, stack).run()


def this_host() -> Host:
    """Return what this machine has for workers, beside the fork server."""
    memory = max(memory_bytes() - SERVER_BYTES, 0)
    return Host(len(usable_cores()) or os.cpu_count() or 1, memory, usable_gpus())


def _enrolment(place: Place, digest: str, running: list[str]) -> Enrol:
    host = this_host()
    return Enrol(
        protocol=PROTOCOL_VERSION,
        rank=place.rank,
        ranks=place.ranks,
        digest=digest,
        pid=os.getpid(),
        host=socket.gethostname(),
        cores=host.cores,
        memory_bytes=host.memory_bytes,
        running=running,
        gpus=host.gpus,
    )


class _Probe(threading.Thread):
    """Tries to connect to a tcp address, such as one behind a firewall, for some seconds."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address = address
        self.failure = ""  # why it has never worked, once the time is over
        self.start()

    def run(self) -> None:
        """Try until it works or the time is over; called in the thread."""
        deadline = time.monotonic() + _REACH_S
        while (left_s := deadline - time.monotonic()) > 0.0:
            failure = _failure(self._address, left_s)
            if not failure:
                return
            time.sleep(_TRY_EVERY_S)
        self.failure = failure


def _failure(address: str, timeout_s: float) -> str:
    """Why nobody can connect to an address from here; empty if it works, and for one that is not
    tcp."""
    given = parse(address, bind=False)
    try:
        if given.scheme == "tcp":
            socket.create_connection((given.host, given.port), timeout_s).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


class _Agent:
    """One agent from its enrolment to its dismissal."""

    def __init__(
        self,
        place: Place,
        digest: str,
        transport: AgentTransport,
        means: Means,
        stops: Stops,
        stack: ExitStack,
    ) -> None:
        self._place = place
        self._digest = digest
        self._transport = transport
        self._means = means
        self._stops = stops
        self._stack = stack  # ends what is started here
        self._since = self._enrolled_s = time.monotonic()
        self._probe = _Probe(place.coordinator or "")
        self._told = False  # that it has failed
        self._workers_probe: _Probe | None = None  # of the address that workers connect to
        self._enrolled: Enrolled | None = None
        self._launcher: LocalLauncher | None = None
        self._logs: LogSender | None = None  # None: they are in the folder of the run
        self._logs_sent_s = 0.0
        self._engaged: set[str] = set()
        self._lost: str | None = None  # why the coordinator is held to be gone
        self._asked_s: float | None = None  # when a signal has come

    def run(self) -> None:
        """Do what the coordinator says until it dismisses this agent; raises as `serve` does."""
        self._enrol()
        dismissed: Dismiss | None = None
        while dismissed is None:
            for message in self._transport.receive(_LOOK_EVERY_S):
                match message:
                    case Enrolled():
                        self._begin(message)
                    case Engage(worker=worker):
                        self._engage(worker)
                    case Introduce():
                        self._enrol()
                    case Taken() if self._logs is not None:
                        self._logs.taken(message)
                    case Refused(kind=kind, text=text):
                        raise by_name(kind)(text)
                    case Dismiss():
                        dismissed = message
            self._tell_ends()
            self._send_logs()
            if dismissed is None:
                dismissed = self._watch()
        self._leave(dismissed)

    def _enrol(self) -> None:
        """Say who this is, and which workers live here, to a coordinator that does not know it."""
        self._enrolled_s = time.monotonic()
        running = self._launcher.running() if self._launcher is not None else []
        self._transport.send(_enrolment(self._place, self._digest, running))

    # --- workers ---------------------------------------------------------------------------------

    def _begin(self, enrolled: Enrolled) -> None:
        """Prepare for the workers of this machine, and begin to beat. If another coordinator has
        taken this agent back, that has been done."""
        if self._enrolled is not None:
            logs.own().info(f"rank {self._place.rank} goes on with another coordinator")
            if self._logs is not None:
                self._logs.begin_again()
            return
        self._enrolled = enrolled
        self._means.takes_part(True)
        where = self._log_folder(enrolled)
        libraries = [name for name in enrolled.libraries if name in LIBRARIES]
        self._launcher = self._stack.enter_context(
            LocalLauncher(where, enrolled.threads, libraries=libraries, server=self._means.server)
        )
        heart = Heart(
            self._place.coordinator or "",
            self._transport.identity,
            enrolled.silence_s,
            self._lose,
            keys=self._means.keys,
            patience_s=worker_patience_s(enrolled.silence_s, enrolled.coordinator_s),
        )
        heart.start()
        self._stack.callback(heart.stop)
        names = ", ".join(enrolled.workers) or "nothing: there are more ranks than workers"
        logs.own().info(f"rank {self._place.rank} on {socket.gethostname()} runs {names}")

    def _log_folder(self, enrolled: Enrolled) -> Path:
        """Make the folder for the logs of workers here: in that of the run, or, where this machine
        does not see that one, in one of this agent's own. Raises `LaunchError`."""
        folder = Path(enrolled.folder)
        if enrolled.term and not Claim(folder, (), (enrolled.term, 0)).sees_coordinator:
            folder = self._stack.enter_context(private_folder(sockets=False))
            self._logs = LogSender(folder, self._transport.send)
        where = folder / LOGS
        try:
            where.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = (
                f"rank {self._place.rank} on {socket.gethostname()} can't write {where}: "
                f"{error.strerror}; name a folder with --out that can be written on all machines"
            )
            self._transport.send(Failed(LaunchError.__name__, text, ""))
            raise LaunchError(text) from error
        return where

    def _lose(self, reason: str) -> None:
        """Note that the coordinator is gone; called in the heart's thread."""
        self._lost = reason

    def _engage(self, worker: str) -> None:
        if self._launcher is None or self._enrolled is None:
            return
        allowed, address = self._means.allow_import, self._enrolled.coordinator
        if not self._engaged:
            self._workers_probe = _Probe(address)
        command = [*worker_command(worker, address, allow_import=allowed), *self._means.flags]
        try:
            if worker in self._engaged:
                self._launcher.restart(worker)
            else:
                self._engaged.add(worker)
                self._launcher.start({worker: command})
        except LaunchError as error:
            self._tell_end(worker, 1, str(error))  # as a process that has died at once

    def _tell_ends(self) -> None:
        """Tell the coordinator of workers that have ended, and the user of those that have died."""
        for worker, code, last_lines in self._launcher.exited() if self._launcher else ():
            self._tell_end(worker, code, last_lines)

    def _send_logs(self) -> None:
        """Send what workers have printed meanwhile, if the coordinator has it from nobody else."""
        now = time.monotonic()
        if self._logs is not None and now >= self._logs_sent_s + _LOGS_EVERY_S:
            self._logs_sent_s = now
            self._logs.look()

    def _tell_end(self, worker: str, code: int, last_lines: str) -> None:
        if self._logs is not None:
            self._logs.look()  # what it has said comes before the news of its end
        self._transport.send(Ended(worker, code, last_lines))
        if code:
            died = f"worker {worker} has died with {_exit_words(code)}"
            logs.own().warning(f"{died}; its last lines: {last_lines}" if last_lines else died)

    # --- the end ---------------------------------------------------------------------------------

    def _watch(self) -> Dismiss | None:
        """Raise what ends this agent before it is dismissed; return the end of a coordinator that
        is a child of it and has ended."""
        address = self._place.coordinator
        if self._lost is not None:
            self._let_leave()
            raise LaunchError(f"the coordinator of the run is gone: {self._lost}")
        now = time.monotonic()
        if self._enrolled is None and now >= self._enrolled_s + _ENROL_EVERY_S:
            self._enrol()
        waited = now - self._since
        if self._enrolled is None and waited > self._means.timeout_s:
            raise LaunchError(
                f"no coordinator at {address} within {self._means.timeout_s:g} s: check that "
                "rank 0 runs, that its host can be reached from here and that the port is open, or "
                "name another address with --coordinator"
            )
        self._watch_ports()
        if self._means.abandoned():
            raise Interrupted("the connection that started this agent has ended")
        while self._stops.take():
            self._asked()
        return self._watch_coordinator()

    def _watch_ports(self) -> None:
        """Tell of a port of the coordinator that is closed on the way; raise `LaunchError` if it is
        that of the workers, who would wait for it in vain."""
        own, workers = self._place.coordinator or "", self._workers_probe
        who = f"rank {self._place.rank} on {socket.gethostname()}"
        if self._enrolled is None and self._probe.failure and not self._told:
            self._told = True
            logs.own().warning(
                f"{who} can't connect to the coordinator at {own} yet: {self._probe.failure}; it "
                f"tries for {self._means.timeout_s:g} s in all (--timeout)"
            )
        if workers is None or not workers.failure or self._enrolled is None:
            return
        self._workers_probe, failure = None, workers.failure
        if not _failure(own, _ANSWER_S):  # otherwise the coordinator is gone
            text = (
                f"{who} can't connect to {self._enrolled.coordinator}, where workers reach the "
                f"coordinator: {failure}; open that port of rank 0 to this host"
            )
            self._transport.send(Failed(LaunchError.__name__, text, ""))
            raise LaunchError(text)

    def _watch_coordinator(self) -> Dismiss | None:
        """The end of the run, if the coordinator is a child of this agent and has ended."""
        if self._means.keeper is None:
            return None
        try:
            code = self._means.keeper.watch()
        except LaunchError:
            self._let_leave()
            raise
        return None if code is None else Dismiss(code, "the coordinator has ended")

    def _let_leave(self) -> None:
        """Have the workers leave, as there is no coordinator to tell them."""
        if self._launcher is not None:
            self._launcher.let_leave()

    def _asked(self) -> None:
        """A signal asks this process to stop. Engines signal all processes of a job at once, and
        stopping is the coordinator's part, which has all workers save what they have learned; so
        only a second signal is the end of this agent alone. The keeper of the coordinator hands all
        signals on to it."""
        if self._means.keeper is not None:
            self._means.keeper.signal(self._stops.numbers[-1])
            return
        now = time.monotonic()
        before, self._asked_s = self._asked_s, now
        if self._enrolled is None or (before is not None and now - before >= _TOGETHER_S):
            self._raise_stop()
        if before is None:
            number = signal.Signals(self._stops.numbers[-1]).name
            logs.own().info(
                f"rank {self._place.rank} got {number}: it goes on until the coordinator, which "
                "may have got it too, stops the run; a second one ends it at once"
            )

    def _raise_stop(self) -> None:
        stop = Interrupted(f"rank {self._place.rank} was stopped, and its workers with it")
        stop.exit_code = 128 + self._stops.numbers[-1]
        raise stop

    def _leave(self, dismissed: Dismiss) -> None:
        """Wait for the workers, and raise what the run has ended with, if that is an error."""
        self._means.takes_part(False)
        saved = dismissed.code == 0 or dismissed.code > 128
        if self._launcher is not None:
            with suppress(KeyboardInterrupt):
                self._launcher.stop(_GRACE_S if saved else _ERROR_GRACE_S)
            self._tell_last(self._launcher)
        if dismissed.code and self._means.keeper is None:  # a coordinator here has told why
            error = AsyncDNIError(f"rank {self._place.rank} leaves: {dismissed.text}")
            error.exit_code = dismissed.code
            raise error

    def _tell_last(self, launcher: LocalLauncher) -> None:
        """Send the rest of what workers have printed, and tell the coordinator, which waits for
        that, of the end of each."""
        deadline = time.monotonic() + _LOGS_LAST_S
        while not (self._logs is None or self._logs.look() or self._lost is not None):
            if time.monotonic() > deadline:
                break
            for message in self._transport.receive(_LOOK_EVERY_S):
                if isinstance(message, Taken):
                    self._logs.taken(message)
        for worker, code, last_lines in launcher.exited():
            self._transport.send(Ended(worker, code, last_lines))


def _exit_words(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
