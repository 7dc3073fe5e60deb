"""A worker process: its sockets, its disk and its signals, from its start to its end.

What it does when is decided by `core.process.Process`, and carried out by `drivers.real.engine`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

from asyncdni import config, logs, software
from asyncdni.core.counts import Counts
from asyncdni.core.events import (
    Exit,
    Join,
    Joined,
    KeepPart,
    Origin,
    PartKept,
    PartSent,
    Prepare,
    Prepared,
    Restore,
    Restored,
    SayHello,
    SendPart,
)
from asyncdni.core.ledger import CUTS, SNAPSHOTS
from asyncdni.core.liveness import worker_patience_s
from asyncdni.core.process import Process
from asyncdni.core.worker import Worker
from asyncdni.data.meta import Meta
from asyncdni.delays import LinkDelay, Slow
from asyncdni.drivers.real.engine import Engine, Snapshots, Tools
from asyncdni.drivers.real.inspection import Inspection
from asyncdni.drivers.real.machine import (
    STOP_SIGNALS,
    choose_core,
    limit_memory,
    pin_process,
    take_long_turns,
    usable_cores,
    wants_long_turns,
)
from asyncdni.drivers.real.meter import Meter, Trace
from asyncdni.errors import (
    AsyncDNIError,
    CheckpointError,
    ConfigError,
    Interrupted,
    LimitExceeded,
    RemoteProtocolError,
)
from asyncdni.imports import Allowed
from asyncdni.messages import (
    COORDINATOR,
    PROTOCOL_VERSION,
    Accused,
    Connect,
    Hello,
    Steer,
    Welcome,
)
from asyncdni.plan.build import (
    Design,
    begins_from,
    find_exits,
    find_shares,
    lent_readout,
    make_compressor,
    make_design,
    make_roster,
    make_source,
    make_stage,
    make_worker,
    prepared,
)
from asyncdni.plan.conditions import link_delays, neighbours, slow_of
from asyncdni.report.traces import trace_path
from asyncdni.stages.base import Stage
from asyncdni.stages.executor import Executor
from asyncdni.stages.numpy.stage import NumpyStage
from asyncdni.store.checkpoint import (
    cut_folder,
    cuts_until,
    discard_snapshots,
    read_newest,
    read_state,
)
from asyncdni.store.claims import Claim
from asyncdni.store.given import kept
from asyncdni.store.parts import PartStore
from asyncdni.wire.address import private_folder, remove_ownerless
from asyncdni.wire.beat import PARENT_VARIABLE, Heart, exit_process, parent_lives
from asyncdni.wire.curve import Keys
from asyncdni.wire.worker import WorkerTransport

__all__ = ["Dismissed", "Session", "Signals", "Watchdog", "restored_stage", "run_worker"]

# --- ends that no message has ordered ------------------------------------------------------------

#: How long the worker's own thread may take to come to a safe point, to save and to leave.
_GRACE_S = 2.0
#: Signals that come together are one request, as for the coordinator.
_TOGETHER_S = 0.25


class Dismissed(AsyncDNIError):
    """The coordinator ended this worker, or is gone: there is nobody to tell."""


class Watchdog:
    """Ends this process some time after there is nobody left to work for.

    The heart calls it, in its own thread. The worker's thread looks at `reason` between two ops,
    keeps what it has learned and leaves. Where it can't, because one op takes too long or another
    library has it, the process ends without that.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def __call__(self, reason: str) -> None:
        self.reason = reason
        last_resort = threading.Timer(_GRACE_S, exit_process, (reason,))
        last_resort.daemon = True
        last_resort.start()


class Signals:
    """What a worker does about the signals in `STOP_SIGNALS` while its coordinator lives.

    Schedulers, service managers and terminals signal all processes of a job at once. Stopping is
    the coordinator's part: workers that left by themselves would take along what is to be saved.
    So the first signal is not this worker's end. The second one is, as soon as an update is whole;
    the third at once.
    """

    def __init__(self, stage: str, watchdog: Watchdog) -> None:
        self.ended_by: int | None = None  # the signal that was one too many
        self._stage = stage
        self._watchdog = watchdog
        self._heard_s: float | None = None  # the last request

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Handle signals within this context; in other threads than the main one do nothing."""
        previous: dict[int, Any] = {}
        with contextlib.suppress(ValueError):
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    previous[number] = signal.signal(number, self)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def __call__(self, number: int, _: object) -> None:
        now = time.monotonic()
        before = self._heard_s
        if before is not None and now - before < _TOGETHER_S:
            return
        self._heard_s = now
        if before is None:
            self._say()
        elif self._watchdog.reason is None:
            self.ended_by = number
            self._watchdog(f"it got signal {number} more than once")
        else:
            os._exit(128 + number)

    def _say(self) -> None:
        """Tell whoever has started the worker by hand; others can read the coordinator."""
        if os.environ.get(PARENT_VARIABLE):
            return
        text = (
            f"worker {self._stage} goes on until its coordinator stops: stop that one, or signal "
            "this worker again to end it alone"
        )
        logs.print_at_once(logging.INFO, text)


# --- the state that a stage begins a round with --------------------------------------------------

_Stage = TypeVar("_Stage", bound=Stage)


def restored_stage(
    build: Callable[[], _Stage],
    begin: Callable[[], _Stage],
    folder: Path,
    action: Restore,
    stages: Sequence[str],
) -> tuple[_Stage, Restored]:
    """A stage in the state that `action` names, and the answer to it. `build` makes a stage whose
    state is then replaced, `begin` one as it is at the beginning of the run; `folder` is that of
    the run.

    The answer tells of a snapshot that is missing or damaged. Raises `CheckpointError` for a cut
    that all are to go back to and that can't be used, and what `begin` raises.
    """
    if action.discard:
        discard_snapshots(folder / SNAPSHOTS)  # of all: nobody writes one before all are built
    if action.origin is Origin.BEGINNING:
        return _answered(begin(), counts={})
    stage = build()
    if action.origin is Origin.CUT:
        state, counts = read_state(folder / action.place, stages, None)
        return _answered(stage, counts=counts, notes=stage.restore(state))
    cuts = _cuts(folder, action.place)
    try:
        place, state, counts, wrong = read_newest(folder, stages, SNAPSHOTS, cuts)
        notes = stage.restore(state)
    except CheckpointError as error:
        return _answered(begin(), counts={}, unusable=[str(error)])
    return _answered(stage, counts=counts, notes=notes, place=place, unusable=wrong)


def _answered(stage: _Stage, **answer: Any) -> tuple[_Stage, Restored]:
    return stage, Restored(stage.parameters(), **answer)


def _cuts(folder: Path, newest: str) -> list[str]:
    """List the run's cuts up to `newest`, the newest first; they need not be whole."""
    parent, _, number = newest.rpartition("/")
    if not number:
        return []
    numbers = cuts_until(folder / parent, int(number))
    return [f"{parent}/{cut_folder(folder, one).name}" for one in numbers]


# --- session -------------------------------------------------------------------------------------


class Session:
    """Builds and restores the part of one worker process, and connects it to its neighbours.

    The process, its sockets, its data set and its meter stay. Each round has an executor and an
    inspection of its own, and a stage anew but where what it has learned is to be kept."""

    def __init__(
        self,
        transport: WorkerTransport,
        stage: str,
        coordinator: str,
        watchdog: Watchdog,
        signals: Signals,
        *,
        allow_import: Allowed,
        keys: Keys | None,
    ) -> None:
        """`stage`: name or index, as it was given; the others: see `run_worker`."""
        self.welcome: Welcome | None = None
        self._transport = transport
        self._name = stage
        self._coordinator = coordinator
        self._watchdog = watchdog
        self._signals = signals
        self._allow_import = allow_import
        self._keys = keys
        self._stage: NumpyStage | None = None
        self._folder = ""  # that of the run, or one in its place
        self._parts: PartStore | None = None  # where there is one in its place
        self._context = ExitStack()

    def close(self) -> None:
        """Stop to beat, and let signals do what they did before."""
        self._context.close()

    def say_hello(self, action: SayHello) -> None:
        """Raises what the handshake has failed at."""
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            stage=self._name,
            address=self._transport.address,
            pid=os.getpid(),
            host=socket.gethostname(),
            versions=software.versions(),
            incarnation=action.incarnation,
        )
        try:
            self._transport.send(COORDINATOR, hello)
        except LimitExceeded:
            self._transport.receive(_REASON_S)  # raises what the handshake has failed at
            raise

    # --- once it has been let in -----------------------------------------------------------------

    def prepare(self, action: Prepare) -> Prepared:
        """Read the experiment, and begin to beat. Raises `DataError` where the data that this
        worker hosts can't be used."""
        self.welcome = welcome = action.welcome
        logs.be("worker", welcome.stage)
        logs.own().info(
            "process %d on %s serves the coordinator at %s",
            os.getpid(),
            socket.gethostname(),
            self._coordinator,
        )
        limits = msgspec.convert(welcome.experiment.get("limits", {}), config.Limits)
        recovery = msgspec.convert(welcome.experiment.get("recovery", {}), config.Recovery)
        # Before the design is made, as the user's modules may take their time to import.
        self._beat(limits.silence_s, recovery.coordinator_s)
        self._context.enter_context(self._signals.heard())
        self._transport.limit(limits)
        if limits.memory_bytes is not None:
            limit_memory(limits.memory_bytes)
        meta = msgspec.convert(welcome.meta, Meta)
        design = self._design_of(welcome, meta)
        _share_cores(design, welcome.stage)
        self._context.enter_context(threadpool_limits(design.experiment.run.threads))
        # What goes wrong in numbers is found out where it matters: see [numbers].
        self._context.enter_context(np.errstate(all="ignore"))
        self._design = design
        self._find_folder(welcome)
        self._build(welcome)
        roster = make_roster(design)
        self._expect(len(roster.neighbours[self._group.name]))
        ready = prepared(design, self._group, roster)
        ready.away = self._parts is not None
        return ready

    def _design_of(self, welcome: Welcome, meta: Meta) -> Design:
        """Return the design of the run. Raises `ConfigError`, with the name of this host: as the
        coordinator has made the same design, something is missing here."""
        try:
            return make_design(welcome.experiment, meta, allow_import=self._allow_import)
        except ConfigError as error:
            where = f"worker {welcome.stage} on {socket.gethostname()}"
            raise ConfigError(f"{where}: {error}") from error

    def _find_folder(self, welcome: Welcome) -> None:
        """Use the folder of the run, or one of this process alone where that of the coordinator is
        not to be seen from here: see `core.transfer`."""
        self._folder = welcome.folder
        claim = Claim(Path(welcome.folder), (), (welcome.term, 0))
        if welcome.folder and not claim.sees_coordinator:
            own = self._context.enter_context(private_folder(sockets=False))
            self._folder, self._parts = str(own), PartStore(own)
            self._context.callback(self._parts.close)

    def send_part(self, action: SendPart) -> PartSent:
        """Send a part of a file that is written here to the coordinator. Raises
        `CheckpointError`."""
        assert self._parts is not None
        began = time.monotonic()
        incarnation, path = action.incarnation, action.path
        part = self._parts.read(COORDINATOR, incarnation, path, action.offset)
        if part is None:
            raise CheckpointError(f"{Path(self._folder, path)} is gone: somebody has removed it")
        self._transport.send(COORDINATOR, part)
        if part.sha256 and not path.startswith(f"{SNAPSHOTS}/"):  # the coordinator has all of it
            Path(self._folder, path).unlink(missing_ok=True)
        end, took_s = part.offset + len(part.data), time.monotonic() - began
        return PartSent(action.to, incarnation, path, end, part.size, took_s)

    def keep_part(self, action: KeepPart) -> PartKept:
        """Write a part of a file that the coordinator has sent. Raises `CheckpointError`."""
        assert self._parts is not None
        try:
            self._parts.write(action.sender, action.part)
        except RemoteProtocolError as error:
            return PartKept(action.part, action.sender, str(error))
        return PartKept(action.part, action.sender)

    def _beat(self, silence_s: float, coordinator_s: float) -> None:
        heart = Heart(
            self._coordinator,
            self._transport.identity,
            silence_s,
            self._watchdog,
            keys=self._keys,
            patience_s=worker_patience_s(silence_s, coordinator_s),
        )
        heart.start()
        self._context.callback(heart.stop)

    def _build(self, welcome: Welcome) -> None:
        """All that stays over the rounds."""
        design, name = self._design, welcome.stage
        experiment, plan = design.experiment, design.plan
        self._group = next(group for group in plan.groups if group.name == name)
        self._stages = [node.name for node in self._group.members]
        self._source = make_source(design, self._group)
        self._snapshots = Snapshots(self._folder)
        schedule = make_worker(design, self._group).schedule
        self._meter = Meter(bootstrapped=getattr(schedule, "receives_synthetic", False))
        self._trace = None
        if welcome.trace and self._folder:
            self._trace = Trace(trace_path(Path(self._folder), name))
        self._slow = slow_of(experiment, plan, name, experiment.run.seed)

    def _expect(self, neighbours: int) -> None:
        experiment, name = self._design.experiment, self._group.name
        inspection = Inspection(self._design, self._group, {})
        longest = inspection.message_bytes(experiment.data.batch_size)
        self._transport.expect(longest, peers=neighbours)
        self._delays = link_delays(experiment, self._design.plan, name, experiment.run.seed)
        self._transport.emulate(self._delays)

    def slow_down(self, steer: Steer) -> Slow | None:
        """Be as slow as is asked from now on, beside what the experiment says, and make links so;
        return how this worker is slow, None if it is not."""
        seed, name = self._design.experiment.run.seed, self._group.name
        if self._slow is None and (steer.factor != 1.0 or steer.added_s):
            self._slow = Slow(seed, name)
        if self._slow is not None:
            self._slow.times, self._slow.added_s = steer.factor, steer.added_s
        for receiver in neighbours(self._design.plan, self._group):
            added_s = steer.latency_s.get(receiver, 0.0)
            if added_s and receiver not in self._delays:
                delay = LinkDelay(seed=seed, sender=name, receiver=receiver)
                self._delays[receiver] = delay
                self._transport.emulate({receiver: delay})
            if receiver in self._delays:
                self._delays[receiver].added_s = added_s
        return self._slow

    # --- rounds ----------------------------------------------------------------------------------

    def make_worker(self, counts: Counts) -> Worker:
        """The logic of one round."""
        return make_worker(self._design, self._group, counts)

    def restore(self, action: Restore) -> Restored:
        """Bring the stage into a state: see `restored_stage`."""
        assert self.welcome is not None
        if action.origin is Origin.KEPT and self._stage is not None:
            self._stage.forget()
            restored = Restored(self._stage.parameters())
        else:
            folder = Path(self._folder)
            begins = begins_from(self._design, self._group)
            self._stage, restored = restored_stage(
                lambda: make_stage(self._design, self._group),
                lambda: make_stage(kept(folder, self._design, begins), self._group),
                folder,
                action,
                self._stages,
            )
            if self._parts is not None:  # fetched again when it is needed again
                shutil.rmtree(folder / CUTS, ignore_errors=True)
        self._transport.await_neighbours()
        logs.own().debug("a round begins from this state: %s", action.origin.value)
        return restored

    def join(self, action: Join) -> tuple[Joined, Tools]:
        """Claim the stages, and connect to the neighbours. Raises `CheckpointError`."""
        assert self.welcome is not None and self._stage is not None
        folder, claim = self._folder, None
        if action.claim is not None:
            claim = Claim(Path(folder), self._stages, action.claim)
            claim.make()
        joined = Joined(self._connect(action.connect), self._transport.knows_senders)
        logs.own().debug("connected to %s", ", ".join(action.connect.addresses) or "nobody")
        design, group = self._design, self._group
        executor = Executor(
            self._stage,
            find_exits(design),
            self._source,
            self._meter.agreement,
            find_shares(design, group),
            lent_readout(design, group),
        )
        return joined, Tools(
            self._stage,
            executor,
            self._snapshots,
            self._meter,
            folder=folder,
            away=self._parts is not None,
            claim=claim,
            inspection=Inspection(design, group, action.connect.incarnations),
            compressor=make_compressor(design, group, self._stage),
            trace=self._trace,
            slow=self._slow,
        )

    def _connect(self, connect: Connect) -> list[Accused]:
        """Who says that it listens where nobody can is at fault for that, and not this worker."""
        host = self._design.plan.groups[self._design.plan.host].name
        wrong = self._transport.connect(connect.addresses, host=host)
        return [Accused(name, connect.incarnations[name], text) for name, text in wrong.items()]


def _share_cores(design: Design, stage: str) -> None:
    """Settle how this process shares the cores with the other workers of the run."""
    groups, cores = design.plan.groups, usable_cores()
    index = next(group.index for group in groups if group.name == stage)
    core = choose_core(design.experiment, index, len(groups), cores)
    if core is not None:
        pin_process(core)
    if wants_long_turns(groups, design.experiment.run.pin, cores):
        take_long_turns()


# --- the process ---------------------------------------------------------------------------------

_LINGER_S = 2.0
#: How long the reason may take why nothing can be sent to the coordinator.
_REASON_S = 1.0


def run_worker(
    stage: str,
    coordinator: str,
    *,
    timeout_s: float = 30.0,
    allow_import: Allowed = False,
    keys: Keys | None = None,
    bind: str | None = None,
    advertise: str | None = None,
) -> None:
    """Be the worker of `stage` (name or index) until the run is over.

    `bind` and `advertise`: see `WorkerTransport`.

    Raises:
        LaunchError: no coordinator within `timeout_s`, or it refused this worker.
        Interrupted: it was signalled again and again; see `Signals`.
        AsyncDNIError: what this worker failed at; the coordinator has been told.
    """
    transport = WorkerTransport(coordinator, keys, bind=bind, advertise=advertise)
    watchdog = Watchdog()
    signals = Signals(stage, watchdog)
    session = Session(
        transport, stage, coordinator, watchdog, signals, allow_import=allow_import, keys=keys
    )
    end, linger_s = None, 0.0
    try:
        process = Process(
            stage,
            session.make_worker,
            time.monotonic(),
            coordinator=coordinator,
            timeout_s=timeout_s,
            launched=parent_lives() is not None,
        )
        end = Engine(process, transport, session, watchdog).run()
        if session.welcome is not None and (end.error is not None or not end.failed):
            linger_s = _LINGER_S
    finally:
        session.close()
        for text in transport.rejected:
            logs.own().warning(text)
        transport.close(linger_s)
        if coordinator.startswith("ipc://"):  # its folder stays where it was killed
            remove_ownerless(Path(coordinator.removeprefix("ipc://")).parent)
    _raise(end, signals)


def _raise(end: Exit, signals: Signals) -> None:
    """What the process has ended with, unless the run is over."""
    if end.trace:
        logs.own().error(end.trace)
    match end.error:
        case AsyncDNIError() as error:
            raise error
        case KeyboardInterrupt():
            raise Interrupted(end.failed)
        case BaseException() as error:
            raise AsyncDNIError(end.failed) from (error if end.trace else None)
    if end.failed and signals.ended_by is not None:
        stop = Interrupted(end.failed)
        stop.exit_code = 128 + signals.ended_by
        raise stop
    if end.failed:
        raise Dismissed(end.failed)
    logs.own().info("the run is over")
