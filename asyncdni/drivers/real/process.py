"""A worker process from its start to its end: say Hello, be let in, work, say what failed."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

from asyncdni import config
from asyncdni.core.counts import Counts
from asyncdni.core.events import Stop
from asyncdni.data.meta import Meta
from asyncdni.drivers.real.engine import SNAPSHOTS, Engine, Forsaken, Signals, Snapshots, Told
from asyncdni.drivers.real.inspection import Inspection
from asyncdni.drivers.real.machine import choose_core, limit_memory, pin_process, usable_cores
from asyncdni.drivers.real.meter import Meter, Trace
from asyncdni.errors import (
    AsyncDNIError,
    CheckpointError,
    Interrupted,
    LaunchError,
    LimitExceeded,
    NumericalError,
    by_name,
)
from asyncdni.messages import (
    COORDINATOR,
    PROTOCOL_VERSION,
    Abort,
    Accused,
    Built,
    Connect,
    Failed,
    Hello,
    Leave,
    Message,
    Refused,
    Rejoin,
    Welcome,
)
from asyncdni.plan.build import (
    Design,
    find_exits,
    find_shares,
    make_design,
    make_roster,
    make_source,
    make_stage,
    make_worker,
)
from asyncdni.plan.conditions import link_delays, slow_of
from asyncdni.plan.plan import snapshot_every_s
from asyncdni.report.traces import trace_path
from asyncdni.stages.base import Stage
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
from asyncdni.wire.address import remove_ownerless
from asyncdni.wire.beat import Heart, parent_lives
from asyncdni.wire.curve import Keys
from asyncdni.wire.worker import WorkerTransport

__all__ = ["Inbox", "Session", "restored_stage", "run_worker"]

# --- inbox ---------------------------------------------------------------------------------------
#
# What comes for a worker that is in no round: the coordinator's words about joining one.
#
# Several may die in a row, so that a new order to join comes while an older one is being followed:
# the newest counts, and what belongs to an older one is void.

_LOOK_EVERY_S = 0.25


class _Receiver(Protocol):
    def receive(self, timeout_s: float | None) -> list[Message]: ...


class Inbox:
    """Sorts what arrives; all waiting outside of rounds is done here.

    Every method that waits raises `Told` once the coordinator has called the run off or is gone,
    and by its class what it refused this worker for.
    """

    def __init__(self, transport: _Receiver, forsaken: Forsaken) -> None:
        self.welcome: Welcome | None = None
        self._transport = transport
        self._forsaken = forsaken
        self._order: Rejoin | None = None  # not yet given out
        self._connect: Connect | None = None
        self._early: list[Message] = []

    def put(self, messages: Iterable[Message]) -> None:
        """Sort out what has arrived."""
        for message in messages:
            match message:
                case Welcome():
                    self.welcome = message
                case Rejoin():
                    if self._order is None or message.incarnation > self._order.incarnation:
                        self._order = message
                case Connect():
                    self._connect = message
                case Refused(kind=kind, text=text):
                    raise by_name(kind)(text)
                case Abort(text=text):
                    raise Told(f"the run was called off: {text}")
                case Leave():
                    raise Told("the run was called off")
                case _ if getattr(message, "sender", None) is not None:
                    self._early.append(message)
                case _:
                    pass  # an order that belonged to a round which is over here

    def await_welcome(self, coordinator: str, timeout_s: float) -> Welcome:
        """Until the coordinator has let this worker in. Raises `LaunchError` after `timeout_s`,
        unless it is known to live."""
        deadline = time.monotonic() + timeout_s
        while self.welcome is None:
            left_s, lives = deadline - time.monotonic(), parent_lives()
            if left_s <= 0 and lives is None:
                raise LaunchError(
                    f"no coordinator answered at {coordinator} within {timeout_s:g} s: "
                    "check the address, or wait longer with --timeout"
                )
            if lives is False:
                raise Told("the process that started this worker is gone")
            wait_s = _LOOK_EVERY_S if lives else min(left_s, _LOOK_EVERY_S)
            self.put(self._transport.receive(wait_s))
        return self.welcome

    def newer(self, incarnation: int) -> Rejoin | None:
        """An order to join a later round than this incarnation's, if it is here; does not wait."""
        self.put(self._transport.receive(0.0))
        order, self._order = self._order, None
        return order if order is not None and order.incarnation > incarnation else None

    def await_connect(self, incarnation: int) -> Connect | Rejoin:
        """Where the neighbours are in this incarnation's round, or the order to join another."""
        while True:
            order = self.newer(incarnation)
            if order is not None:
                return order
            connect = self._connect
            if connect is not None and connect.incarnation == incarnation:
                return connect
            self._wait()

    def await_order(self, incarnation: int) -> Rejoin:
        """The order to join a later round than this incarnation's."""
        while True:
            order = self.newer(incarnation)
            if order is not None:
                return order
            self._wait()

    def take_early(self) -> list[Message]:
        """What was not about joining, for the worker; what is void there it will know."""
        early, self._early = self._early, []
        return early

    def _wait(self) -> None:
        self._forsaken.check()
        self.put(self._transport.receive(_LOOK_EVERY_S))


# --- restoring -----------------------------------------------------------------------------------
#
# The state that a stage begins a round with, as the coordinator names it.

_Stage = TypeVar("_Stage", bound=Stage)


def restored_stage(
    build: Callable[[], _Stage],
    begin: Callable[[], _Stage],
    folder: Path,
    restore: str,
    cut: str,
    stages: Sequence[str],
    counts: Counts,
) -> tuple[_Stage, list[str]]:
    """A stage in the state that `restore` names (see `messages.Rejoin`), and what the user should
    know of it; `counts` count on from there. `build` makes one whose state is then replaced,
    `begin` one as it is at the beginning of the run.

    A snapshot that is missing or damaged is told of; then, or where it is newer, the stage goes on
    from its state in `cut` ("checkpoints/000012"; empty: there is none) or one before; without any
    it begins anew. When all go back, snapshots from after that must not be gone on from. Raises
    `CheckpointError` for a cut that all are to go back to and that can't be used, and what `begin`
    raises.
    """
    counts.restore({})
    if restore == "keep":  # in a process that has nothing to keep yet
        return begin(), []
    if restore != SNAPSHOTS:
        discard_snapshots(folder / SNAPSHOTS)  # of all: nobody writes one before all are built
    if restore == "initial":
        return begin(), []
    stage = build()
    if restore != SNAPSHOTS:
        state, found = read_state(folder / restore, stages, None)
        notes = stage.restore(state)
        counts.restore(found)
        return stage, notes
    try:
        place, state, found, wrong = read_newest(folder, stages, SNAPSHOTS, _cuts(folder, cut))
        notes = stage.restore(state)
    except CheckpointError as error:
        return begin(), [f"{error}; {', '.join(stages)} begin anew"]
    counts.restore(found)
    if place != SNAPSHOTS:
        newer = "; ".join(wrong) or "its state there is newer than its last snapshot"
        notes = [f"{newer}; {', '.join(stages)} from {place}, batch {counts.position:,}", *notes]
    return stage, notes


def _cuts(folder: Path, newest: str) -> list[str]:
    """Of the run, the newest first; they need not be whole."""
    parent, _, number = newest.rpartition("/")
    if not number:
        return []
    numbers = cuts_until(folder / parent, int(number))
    return [f"{parent}/{cut_folder(folder, one).name}" for one in numbers]


# --- session -------------------------------------------------------------------------------------
#
# A worker process once it has been let in: it builds its part, and joins round after round.
#
# ```
#  build, restore ──► Built ──► Connect ──► Ready ──► Start … ──► Leave, Abort: the end
#        ▲                                             │
#        └──────────── Rejoin, at any moment ──────────┘
# ```
#
# The process, its sockets, its data set and its meter stay. Each round has a `Worker` and an
# `Engine` of its own, and a stage anew but where what it has learned is to be kept.


class Session:
    """The rounds of one worker process."""

    def __init__(
        self,
        transport: WorkerTransport,
        inbox: Inbox,
        forsaken: Forsaken,
        design: Design,
        welcome: Welcome,
    ) -> None:
        """Raises `DataError` where the data that this worker hosts can't be used."""
        self._transport = transport
        self._inbox = inbox
        self._forsaken = forsaken
        self._design = design
        self._welcome = welcome
        self._group = next(g for g in design.plan.groups if g.name == welcome.stage)
        self._stages = [node.name for node in self._group.members]
        self._counts = Counts()
        self._stage: NumpyStage | None = None
        self._meter: Meter | None = None
        self._source = make_source(design, self._group)
        # Where all go back together nobody would ever read one.
        used = make_roster(design).goes_on
        every_s = snapshot_every_s(design.experiment.checkpoint) if used else None
        self._snapshots = Snapshots(welcome.folder, every_s)
        self._trace = None
        if welcome.trace and welcome.folder:
            self._trace = Trace(trace_path(Path(welcome.folder), self._group.name))
        experiment, plan = design.experiment, design.plan
        seed = experiment.run.seed
        self._slow = slow_of(experiment, plan, self._group.name, seed)
        inspection = Inspection(design, self._group, {})
        neighbours = make_roster(design).neighbours[self._group.name]
        transport.expect(
            inspection.message_bytes(experiment.data.batch_size), peers=len(neighbours)
        )
        transport.emulate(link_delays(experiment, plan, self._group.name, seed))

    def run(self) -> Stop:
        """Until the coordinator says Leave or Abort.

        Raises what this worker has failed at, such as `CheckpointError` where the folder of the run
        can't be made on this host, and `Told` once the coordinator is gone.
        """
        order = Rejoin(self._welcome.incarnation, self._welcome.restore)
        while True:
            stop = self._round(order)
            if stop.rejoin is None:
                break
            order = stop.rejoin
        if self._trace is not None:
            self._trace.write()
        return stop

    def _round(self, order: Rejoin) -> Stop:
        """Follow an order to join; `Stop.rejoin` is the next one, whenever it came."""
        stage, notes = self._prepared(order.restore)
        newer = self._inbox.newer(order.incarnation)
        if newer is not None:
            return Stop(rejoin=newer)
        self._transport.await_neighbours()
        self._transport.send(COORDINATOR, self._built(order.incarnation, stage, notes))
        connect = self._inbox.await_connect(order.incarnation)
        if isinstance(connect, Rejoin):
            return Stop(rejoin=connect)
        return self._connected(stage, connect)

    def _prepared(self, restore: str) -> tuple[NumpyStage, list[str]]:
        if restore == "keep" and self._stage is not None:
            self._stage.forget()
            return self._stage, []
        folder = Path(self._welcome.folder)
        self._stage, notes = restored_stage(
            lambda: make_stage(self._design, self._group),
            lambda: make_stage(kept(folder, self._design, self._stages), self._group),
            folder,
            restore,
            self._welcome.cut,
            self._stages,
            self._counts,
        )
        return self._stage, notes

    def _built(self, incarnation: int, stage: NumpyStage, notes: list[str]) -> Built:
        counts = self._counts
        return Built(
            incarnation=incarnation,
            parameters=stage.parameters(),
            position=counts.position,
            updates=counts.updates,
            read=counts.read,
            notes=notes,
        )

    def _connected(self, stage: NumpyStage, connect: Connect) -> Stop:
        # Not before all are built: a run that fails until then takes its folder away again.
        claim = None
        if self._welcome.folder:
            _make_folder(self._welcome.folder)
            order = self._welcome.term, connect.incarnation
            claim = Claim(Path(self._welcome.folder), self._stages, order)
            claim.make()
        self._connect(connect)
        engine = self._engine(stage, connect, claim)
        try:
            stop = engine.run(self._inbox.take_early())
        except NumericalError as error:
            engine.report()
            if self._design.experiment.numbers.policy != "roll_back":
                raise
            failed = Failed(type(error).__name__, str(error), "")
            self._transport.send(COORDINATOR, failed)
            stop = Stop(rejoin=self._inbox.await_order(connect.incarnation))
        self._inbox.put(engine.left)
        return stop

    def _connect(self, connect: Connect) -> None:
        """Who says that it listens where nobody can is at fault for that, and not this worker."""
        host = self._design.plan.groups[self._design.plan.host].name
        for worker, text in self._transport.connect(connect.addresses, host=host).items():
            accused = Accused(worker, connect.incarnations[worker], text)
            self._transport.send(COORDINATOR, accused)

    def _engine(self, stage: NumpyStage, connect: Connect, claim: Claim | None) -> Engine:
        worker = make_worker(self._design, self._group, self._counts)
        worker.joined(connect, senders_known=self._transport.knows_senders)
        if self._meter is None:
            hears_synthetic = getattr(worker.schedule, "hears_synthetic", False)
            self._meter = Meter(bootstrapped=hears_synthetic)
        return Engine(
            worker,
            stage,
            self._transport,
            exits=find_exits(self._design),
            shares=find_shares(self._design, self._group),
            source=self._source,
            folder=self._welcome.folder,
            claim=claim,
            trace=self._trace,
            slow=self._slow,
            meter=self._meter,
            snapshots=self._snapshots,
            forsaken=self._forsaken,
            inspection=Inspection(self._design, self._group, connect.incarnations),
        )


def _make_folder(path: str) -> None:
    """On hosts that do not share the coordinator's."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"can't write {path}: {error.strerror}") from error


_LINGER_S = 2.0
#: How long the reason may take why nothing can be sent to the coordinator.
_REASON_S = 1.0


def run_worker(
    stage: str,
    coordinator: str,
    *,
    timeout_s: float = 30.0,
    allow_import: bool = False,
    keys: Keys | None = None,
    bind: str | None = None,
    advertise: str | None = None,
) -> None:
    """Be the worker of `stage` (name or index) until the run is over.

    `bind` and `advertise`: see `WorkerTransport`.

    Raises:
        LaunchError: no coordinator within `timeout_s`, or it refused this worker.
        Interrupted: it was signalled again and again; see `forsaken.Signals`.
        AsyncDNIError: what this worker failed at; the coordinator has been told.
    """
    transport = WorkerTransport(coordinator, keys, bind=bind, advertise=advertise)
    forsaken = Forsaken()
    signals = Signals(stage, forsaken)
    inbox = Inbox(transport, forsaken)
    linger_s = _LINGER_S
    try:
        _say_hello(transport, stage)
        inbox.await_welcome(coordinator, timeout_s)
        heart = Heart(
            coordinator, transport.identity, _limits(inbox).silence_s, forsaken, keys=keys
        )
        heart.start()  # before all is built: the user's modules may take their time to import
        try:
            with signals.heard():
                _work(transport, inbox, forsaken, allow_import)
        finally:
            heart.stop()
    except Told as error:
        linger_s = 0.0
        if signals.ended_by is None:
            raise
        stop = Interrupted(str(error))
        stop.exit_code = 128 + signals.ended_by
        raise stop from None
    except (Exception, KeyboardInterrupt) as error:
        failed = _last_words(stage, error)
        with contextlib.suppress(AsyncDNIError):  # where nobody takes it, the first error counts
            transport.send(COORDINATOR, failed)
        if failed.trace:
            print(failed.trace, file=sys.stderr)
        if isinstance(error, AsyncDNIError):
            raise
        kind = Interrupted if isinstance(error, KeyboardInterrupt) else AsyncDNIError
        raise kind(failed.text) from (error if failed.trace else None)
    finally:
        for text in transport.rejected:
            print(f"asyncdni: {text}", file=sys.stderr)
        transport.close(linger_s if inbox.welcome is not None else 0.0)
        if coordinator.startswith("ipc://"):  # its folder stays where it was killed
            remove_ownerless(Path(coordinator.removeprefix("ipc://")).parent)


def _last_words(stage: str, error: BaseException) -> Failed:
    """What the coordinator is told."""
    match error:
        case AsyncDNIError():
            return Failed(type(error).__name__, str(error), "")
        case KeyboardInterrupt():
            return Failed(Interrupted.__name__, f"worker {stage} was interrupted", "")
        case MemoryError():
            text = f"worker {stage} is out of memory: {error or 'nothing more was to be had'}"
            return Failed(MemoryError.__name__, text, "")
    text = f"worker {stage} failed: {type(error).__name__}: {error}; its log has the traceback"
    return Failed(AsyncDNIError.__name__, text, traceback.format_exc())


def _say_hello(transport: WorkerTransport, stage: str) -> None:
    hello: Message = Hello(
        protocol=PROTOCOL_VERSION,
        stage=stage,
        address=transport.address,
        pid=os.getpid(),
        host=socket.gethostname(),
    )
    try:
        transport.send(COORDINATOR, hello)
    except LimitExceeded:
        transport.receive(_REASON_S)  # raises what the handshake has failed at, which says more
        raise


def _limits(inbox: Inbox) -> config.Limits:
    assert inbox.welcome is not None
    return msgspec.convert(inbox.welcome.experiment.get("limits", {}), config.Limits)


def _work(transport: WorkerTransport, inbox: Inbox, forsaken: Forsaken, allow_import: bool) -> None:
    welcome, limits = inbox.welcome, _limits(inbox)
    assert welcome is not None
    transport.limit(limits)
    if limits.memory_bytes is not None:
        limit_memory(limits.memory_bytes)
    meta = msgspec.convert(welcome.meta, Meta)
    design = make_design(welcome.experiment, meta, allow_import=allow_import)
    _pin(design, welcome.stage)
    # What goes wrong in numbers is found out where it matters: see [numbers].
    with threadpool_limits(design.experiment.run.threads), np.errstate(all="ignore"):
        stop = Session(transport, inbox, forsaken, design, welcome).run()
    forsaken.check()
    if stop.failed:
        raise Told(f"worker {welcome.stage} was stopped by its coordinator: {stop.failed}")


def _pin(design: Design, stage: str) -> None:
    groups = design.plan.groups
    index = next(group.index for group in groups if group.name == stage)
    core = choose_core(design.experiment, index, len(groups), usable_cores())
    if core is not None:
        pin_process(core)
