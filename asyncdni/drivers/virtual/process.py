"""A worker process in virtual time: it joins rounds, computes, sends, beats, leaves, as the real
one does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeGuard

import numpy as np

from asyncdni.core.counts import Counts
from asyncdni.core.events import (
    Action,
    Compute,
    Computed,
    Event,
    Received,
    Release,
    Save,
    Send,
    Stop,
    Stored,
    Woke,
)
from asyncdni.core.liveness import Sight
from asyncdni.core.worker import Phase, Worker
from asyncdni.drivers.virtual.clock import Alarm
from asyncdni.drivers.virtual.costs import Pace
from asyncdni.drivers.virtual.disk import CUTS, SNAPSHOTS, Saved
from asyncdni.drivers.virtual.wires import Parcel
from asyncdni.drivers.virtual.world import World
from asyncdni.errors import AsyncDNIError, CheckpointError, NumericalError
from asyncdni.messages import (
    COORDINATOR,
    DATA,
    PROTOCOL_VERSION,
    Abort,
    Activation,
    Beat,
    Built,
    Connect,
    Drained,
    Failed,
    Gradient,
    Hello,
    Leave,
    Message,
    Refused,
    Rejoin,
    Report,
    Welcome,
)
from asyncdni.nn.base import Array
from asyncdni.plan.build import Design, find_exits, find_shares, make_source, make_worker
from asyncdni.plan.conditions import slow_of
from asyncdni.plan.plan import Group, shared_with, snapshot_every_s
from asyncdni.schedules.base import OpKind
from asyncdni.stages.base import Score, Stage
from asyncdni.stages.executor import Executor as StageExecutor
from asyncdni.stages.executor import Source
from asyncdni.store.weights import write_weights

__all__ = [
    "Arithmetic",
    "Executor",
    "Keeper",
    "Keeping",
    "MakeStage",
    "NullExecutor",
    "Office",
    "Process",
    "Round",
    "TimedOp",
    "WorkerProcess",
]

# --- process -------------------------------------------------------------------------------------
#
# What every worker process has: a life, a clock, a heart, and connections to the others.

_BEATS_PER_SILENCE = 3
#: Of its coordinator's silence, in `limits.silence_s` and in seconds, the longer one: then there is
#: nobody left to work for.
_SILENCES, _SILENCE_MIN_S = 10.0, 3.0


class Office(Protocol):
    """The coordinator's process, as a worker's knows it."""

    key: str

    def receive(self, peer: bytes, message: Message) -> None: ...


class Process:
    """One process of the worker `name`. `ended(code)` is called once, when it has ended.

    While it is paused nothing happens in it; what was to happen follows at once afterwards.
    """

    def __init__(
        self, world: World, name: str, number: int, office: Office, ended: Callable[[int], None]
    ) -> None:
        self.world = world
        self.name = name
        self.key = f"{name}#{number}"
        self.peer = self.key.encode()
        self.address = f"virtual://{self.key}"
        self.office = office
        self.clock = world.mischance.clock()
        self.alive = True
        self.slowness = 1.0  # ops take so many times as long
        self.addresses: dict[str, str] = {}  # of neighbours
        self._ended = ended
        self._hear = partial(office.receive, self.peer)
        self._silence_s = world.design.experiment.limits.silence_s
        self._pauses = self._starvations = 0
        self._backlog: list[Callable[[], None]] = []
        self._heard_s = self._looked_s = 0.0

    # --- life ------------------------------------------------------------------------------------

    def exit(self, code: int) -> None:
        if self.alive:
            self.alive = False
            self._backlog.clear()
            self._ended(code)

    def pause(self, for_s: float, *, starved: bool = False) -> None:
        """SIGSTOP, and SIGCONT later; or `starved`: its host has no core to spare for so long."""
        self._pauses += 1
        self._starvations += starved
        self.world.agenda.after(for_s, partial(self._go_on, starved))

    @property
    def sight(self) -> Sight:
        """What its process looks like from outside, where it has not spoken for a while."""
        stopped = self._pauses > self._starvations
        return Sight.STARVED if self._starvations and not stopped else Sight.STILL

    def _go_on(self, starved: bool) -> None:
        self._pauses -= 1
        self._starvations -= starved
        while self._backlog and not self._pauses:
            self._backlog.pop(0)()

    def later(self, delay_s: float, what: Callable[[], None], *, idle: bool = False) -> None:
        """After a while, if it lives then."""
        self.world.agenda.after(delay_s, partial(self.now, what), idle=idle)

    @property
    def is_awake(self) -> bool:
        """What comes now is done at once."""
        return self.alive and not self._pauses and not self._backlog

    def now(self, what: Callable[[], None]) -> None:
        """At once, or as soon as it is paused no more."""
        if self.is_awake:
            what()
        elif self.alive:
            self._backlog.append(what)

    # --- messages --------------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """A message has arrived."""
        if self.is_awake:
            self._receive(message)
        elif self.alive:
            self._backlog.append(partial(self._receive, message))

    def _receive(self, message: Message) -> None:
        if not self.alive:
            return
        if type(message) is Beat:
            self._heard_s = self.world.agenda.now
        else:
            self.take(message)

    def take(self, message: Message) -> None:
        """Do what it says."""
        raise NotImplementedError

    def tell(self, message: Message) -> None:
        """To the coordinator."""
        self.world.to_coordinator(self, self.office.key, message, self._hear)

    # --- the heart -------------------------------------------------------------------------------

    def begin_to_beat(self) -> None:
        self._heard_s = self._looked_s = self.world.agenda.now
        self._beat()

    def _beat(self) -> None:
        now = self.world.agenda.now
        limit_s = max(_SILENCE_MIN_S, _SILENCES * self._silence_s)
        if now - self._looked_s > limit_s / 2:
            self._heard_s = now  # it was paused, so the silence was its own
        self._looked_s = now
        if now - self._heard_s > limit_s:
            self.forsaken()
            return
        self.tell(Beat())
        self.later(self._silence_s / _BEATS_PER_SILENCE, self._beat, idle=True)

    def forsaken(self) -> None:
        """The coordinator is gone."""
        raise NotImplementedError


# --- round ---------------------------------------------------------------------------------------
#
# One round of a worker process in virtual time: it drives one `Worker`, as an engine does.
#
# The process has one thread: while an op takes its time, messages are received, but nothing else is
# computed; and an order to join another round is followed after the op.

#: (letter, batch, start, end): seconds of virtual time.
TimedOp = tuple[str, int, float, float]

_REPORT_EVERY_S = 0.5


class Executor(Protocol):
    """`stages.executor.Executor`, or one without arithmetic."""

    def compute(self, compute: Compute) -> Computed: ...

    def release(self, batch: int, sent: Callable[[], bool]) -> None: ...


class Keeper(Protocol):
    """What a process does about its state on disk; see `drivers.virtual.process`."""

    @property
    def snapshot_is_due(self) -> bool: ...

    def learned(self, batch: int) -> None: ...

    def snapshot(self) -> None: ...

    def save(self, tag: str, done: Callable[[dict[str, str]], None]) -> None: ...


class Round:
    """`stopped` is called with the `Stop` that ends it and what came behind; `failed` with what an
    op has failed at."""

    def __init__(
        self,
        process: Process,
        worker: Worker,
        executor: Executor,
        keeper: Keeper,
        pace: Pace,
        ops: list[TimedOp],
        *,
        stopped: Callable[[Stop, list[Message]], None],
        failed: Callable[[AsyncDNIError], None],
    ) -> None:
        self.worker = worker
        self.over = False
        self.after_op: Callable[[], None] | None = None  # to be done once all is applied
        self._ops = ops
        self._process = process
        self._world = process.world
        self._executor = executor
        self._keeper = keeper
        self._pace = pace
        self._stopped = stopped
        self._failed = failed
        self._busy = False
        self._held: list[Message] = []  # behind an order that waits for the end of an op
        self._report_due = False
        self._delay_s = 0.0  # before the next op
        self._read: set[int] = set()  # training batches read and not released yet
        self._unsent: dict[int, list[Parcel]] = {}  # by batch
        wake = partial(self._handle, Woke())
        self._alarm = Alarm(self._world.agenda, worker, wake, process.clock)
        process.later(_REPORT_EVERY_S, self._time_to_report, idle=True)

    @property
    def busy(self) -> bool:
        """An op is under way."""
        return self._busy

    def begin(self) -> None:
        """It greets its neighbours."""
        self._handle(Woke())

    def take(self, message: Message) -> None:
        """A message has arrived."""
        if self._held or (self._busy and type(message) is Rejoin):
            self._held.append(message)
        else:
            self._handle(Received(message))

    def let_go(self) -> None:
        """Of buffers of the data that no later round will release."""
        self.over = True
        for batch in sorted(self._read):
            self._executor.release(batch, self._sent(batch))
        self._read.clear()

    def report(self) -> None:
        """Tell the coordinator all counters as of now."""
        self._process.tell(Report(self.worker.counters()))

    # --- events and actions ----------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if self.over:
            return
        process = self._process
        try:
            actions = self._world.handle(process.name, self.worker, event, process.clock)
        except AsyncDNIError as error:
            self._failed(error)
            return
        for action in actions:
            if self.over:  # its process has died of the one before
                return
            self._carry_out(action)
        self._alarm.reset()

    def _carry_out(self, action: Action) -> None:
        match action:
            case Compute():
                self._compute(action)
            case Send(to=to, message=message):
                assert isinstance(to, str)
                self._send(to, message)
            case Release(batch=batch):
                self._read.discard(batch)
                self._executor.release(batch, self._sent(batch))
            case Save(tag=tag):
                self._keeper.save(tag, partial(self._saved, tag))
            case Stop():
                self._stop(action)
            case _:
                raise TypeError(f"a worker's driver can't carry out {action!r}")

    def _saved(self, tag: str, files: dict[str, str]) -> None:
        self._handle(Stored(tag, files))

    def _stop(self, stop: Stop) -> None:
        self.let_go()
        held, self._held = self._held, []
        self._stopped(stop, held)

    # --- ops -------------------------------------------------------------------------------------

    def _compute(self, compute: Compute) -> None:
        self._busy = True
        training = self.worker.phase is Phase.TRAINING
        began = self._world.agenda.now
        what = partial(self._has_taken, compute, began, training)
        delay_s, self._delay_s = self._delay_s, 0.0
        name, op = self._process.name, compute.op
        if delay_s:
            start = partial(self._world.compute, name, self._pace, op, what)
            self._process.later(delay_s, start)
        else:
            self._world.compute(name, self._pace, op, what)

    def _has_taken(self, compute: Compute, began: float, training: bool) -> None:
        """The op is over, but for what makes this process slower than it should be."""
        process = self._process
        if process.slowness > 1.0:
            extra_s = (process.slowness - 1.0) * (self._world.agenda.now - began)
            process.later(extra_s, partial(self._computed, compute, began, training))
        elif process.is_awake:
            self._computed(compute, began, training)
        else:
            process.now(partial(self._computed, compute, began, training))

    def _computed(self, compute: Compute, began: float, training: bool) -> None:
        if self.over:
            return
        self._busy = False
        op = compute.op
        if op.kind is OpKind.READ and not op.evaluate:
            self._read.add(op.batch)
        try:
            event = self._executor.compute(compute)
        except AsyncDNIError as error:
            self._failed(error)
            return
        if training:
            self._ops.append((op.letter, op.batch, began, self._world.agenda.now))
            if op.kind is OpKind.FORWARD and not op.replay:
                self._keeper.learned(op.batch)
        self._after(event)

    def _after(self, event: Computed) -> None:
        keeper = self._keeper
        snapshot = event.op.kind is OpKind.UPDATE and keeper.snapshot_is_due
        if snapshot:
            self._delay_s = self._pace.save_s()
        self._handle(event)
        if snapshot and not self.over and self.worker.phase is Phase.TRAINING:
            keeper.snapshot()
        self._delay_s = 0.0
        if self.after_op is not None and not self.over and not self.worker.unapplied:
            self.after_op()
        if self._report_due and not self.over:
            self._report_due = False
            self.report()
        held, self._held = self._held, []
        for index, message in enumerate(held):
            if self._process.alive and not self.over:
                self._held = held[index + 1 :]
                self._handle(Received(message))

    def _time_to_report(self) -> None:
        if self.over:
            return
        if self._busy:
            self._report_due = True
        else:
            self.report()
        self._process.later(_REPORT_EVERY_S, self._time_to_report, idle=True)

    # --- sending ---------------------------------------------------------------------------------

    def _send(self, to: str, message: Message) -> None:
        process = self._process
        if to == COORDINATOR:
            if isinstance(message, Drained):
                self.report()  # the coordinator adds up at barriers
            process.tell(message)
            return
        parcel = self._world.to_worker(process, process.addresses[to], message)
        if parcel is not None and _reuses_buffers(message):
            self._unsent.setdefault(message.batch, []).append(parcel)

    def _sent(self, batch: int) -> Callable[[], bool]:
        waiting = self._unsent.pop(batch, [])
        return lambda: all(parcel.gone for parcel in waiting)


def _reuses_buffers(message: Message) -> TypeGuard[Activation | Gradient]:
    """Its tensors are used again once its batch is released; those of test batches are not."""
    if isinstance(message, Activation):
        return not message.evaluate
    return isinstance(message, Gradient)


# --- keeping -------------------------------------------------------------------------------------
#
# What a worker process has learned, and what of it is on disk: snapshots, cuts, weights.

_FULL = "the disk is full (simulated)"
_KILLED = -9


class Keeping:
    """Stage and counts of one process. `build` makes the stage, if there is any arithmetic."""

    def __init__(
        self,
        process: Process,
        group: Group,
        pace: Pace,
        build: Callable[[], Stage] | None,
        folder: Path | None,
        failed: Callable[[CheckpointError], None],
    ) -> None:
        """`folder`: where weights are written; `failed`: called for a save that went wrong."""
        self.counts = Counts()
        self.stage = build() if build is not None else None
        self.ids: set[int] | None = set()  # of the batches behind `counts.batches`, if known
        self._process = process
        self._world = process.world
        self._group = group
        self._pace = pace
        self._build = build
        self._folder = folder
        self._failed = failed
        self._has_state = False
        self._order = (0, 0)
        self._is_new = True  # the stage
        design = self._world.design
        # One whose weights wait for the gradients of others could not go on from its own.
        alone = not shared_with(design.plan.groups, group)
        self._every_s = snapshot_every_s(design.experiment.checkpoint) if alone else None
        self._snapshot_at = self._next_snapshot()

    # --- state -----------------------------------------------------------------------------------

    def claim(self, order: tuple[int, int]) -> None:
        """The stages belong to this process from now on: see `store.claims`. Raises
        `CheckpointError` where they belong to a later one."""
        self._order = order
        self._world.disk.claim(self._group, order)

    def restore(self, restore: str, cut: str) -> list[str]:
        """Begin a round from what `restore` names (see `messages.Rejoin`), in place of a snapshot
        from `cut` (see `messages.Welcome`) if need be; notes for the user."""
        if restore == "keep" and self._has_state:
            if self.stage is not None:
                self.stage.forget()
            return []
        self._has_state = True
        self.counts.restore({})
        self.ids = set()
        if self._build is not None and not self._is_new:
            self.stage = self._build()
        self._is_new = False
        if restore in ("initial", "keep"):
            return []
        place, saved = self._world.disk.find(restore, cut, self._group)
        if saved is None and restore != SNAPSHOTS:
            raise CheckpointError(f"no state of {self._group.name} in {restore}")
        if saved is None:
            return ["there is no snapshot; it begins anew"]
        self.counts.restore(saved.counts)
        self.ids = None if saved.learned is None else set(saved.learned)
        notes = [] if place == restore else [f"it goes on from {place}"]
        return [*notes, *(self.stage.restore(saved.state) if self.stage is not None else [])]

    def learned(self, batch: int) -> None:
        """One more batch has been forwarded to be learned from."""
        if self.ids is None:
            return
        assert batch not in self.ids, f"{self._process.key} has learned from batch {batch} twice"
        self.ids.add(batch)

    def weights(self) -> dict[str, dict[str, Array]]:
        """By declared stage; none without arithmetic."""
        return self.stage.state() if self.stage is not None else {}

    def _saved(self) -> Saved:
        state = self.stage.snapshot() if self.stage is not None else {}
        ids = None if self.ids is None else frozenset(self.ids)
        return Saved(state, self.counts.state(), ids)

    # --- snapshots -------------------------------------------------------------------------------

    @property
    def snapshot_is_due(self) -> bool:
        return self._snapshot_at is not None and self._world.agenda.now >= self._snapshot_at

    def snapshot(self) -> None:
        """Of the state as it is now; it is on disk a moment later, or never."""
        self._snapshot_at = self._next_snapshot()
        chance, saved = self._world.mischance.save(), self._saved()
        if chance.fails:
            return  # said, and no more: the next one may succeed
        took_s = self._pace.save_s() + chance.extra_s
        if chance.torn:
            self._process.later(took_s / 2, self._die)
            return

        self._process.later(took_s, partial(self._write_snapshot, saved), idle=True)

    def last_snapshot(self) -> None:
        """Before the process leaves because its coordinator is gone."""
        if self._every_s is not None:
            self._write_snapshot(self._saved())

    def _write_snapshot(self, saved: Saved) -> None:
        with contextlib.suppress(CheckpointError):  # of one that has been replaced
            self._world.disk.write(SNAPSHOTS, self._group, saved, self._order)

    def _next_snapshot(self) -> float | None:
        return None if self._every_s is None else self._world.agenda.now + self._every_s

    # --- saves that were ordered -----------------------------------------------------------------

    def save(self, tag: str, done: Callable[[dict[str, str]], None]) -> None:
        """Weights, or for a cut all state; `done` gets the digests by declared stage."""
        chance = self._world.mischance.save()
        took_s = self._pace.save_s() + chance.extra_s

        def finish() -> None:
            if chance.fails:
                self._failed(CheckpointError(f"{self._group.name} can't write {tag}: {_FULL}"))
                return
            try:
                files = self._write(tag)
            except CheckpointError as error:
                self._failed(error)
            else:
                done(files)

        if chance.torn:
            self._process.later(took_s / 2, self._die)
        else:
            self._process.later(took_s, finish)

    def _write(self, tag: str) -> dict[str, str]:
        if tag.startswith(CUTS):
            return self._world.disk.write(tag, self._group, self._saved(), self._order)
        if self._folder is not None and self.stage is not None:
            return write_weights(self._folder / tag, self.weights(), None, shared=True)
        return {}

    def _die(self) -> None:
        self._process.exit(_KILLED)


# --- null ----------------------------------------------------------------------------------------
#
# Ops without arithmetic: only what the core needs to know of them, for runs that are about order
# and time. Tensors are one small token, which the codec can carry too.

_TOKEN = np.zeros(1, np.uint8)
_TOKEN.setflags(write=False)
#: What nobody else gets anything of.
_ALONE = frozenset(OpKind) - {
    *(OpKind.READ, OpKind.FORWARD, OpKind.EVALUATE, OpKind.BACKWARD, OpKind.UPDATE),
}


class NullExecutor:
    """Stands for `stages.executor.Executor`: same samples, same addressees, no values.

    Its scores count samples; their loss is 0, and they have no right answers.
    """

    def __init__(self, design: Design, group: Group) -> None:
        plan, meta = design.plan, design.meta
        self._rows = plan.rows
        self._losses = [node.name for node in group.members if node.scored]
        self._activation = {name: _TOKEN for name in ("h", "y", *meta.context)}
        self._gradients: dict[str, dict[str, np.ndarray]] = {}
        for node in group.members:
            for name in node.inputs:
                if name != DATA and plan.group_of(name) is not group:
                    home = plan.group_of(name).name
                    self._gradients.setdefault(home, {})[node.name] = _TOKEN
        self._shares = {
            sharer: dict.fromkeys(names, _TOKEN)
            for sharer, names in shared_with(plan.groups, group).items()
        }

    def compute(self, compute: Compute) -> Computed:
        op = compute.op
        if op.kind in _ALONE:
            return Computed(op)
        if op.kind is OpKind.UPDATE:
            return Computed(op, outputs=self._shares)
        if op.kind is OpKind.BACKWARD:
            return Computed(op, outputs=self._gradients if op.send else {})
        tests = op.evaluate or op.kind is OpKind.EVALUATE
        samples = self._rows.of_test(op.batch) if tests else self._rows.of(op.batch)
        scores: tuple[Score, ...] = ()
        if op.kind is OpKind.EVALUATE:
            scores = tuple(Score(name, samples) for name in self._losses)
        return Computed(op, samples, self._activation, scores)

    def release(self, batch: int, sent: Callable[[], bool]) -> None:
        pass


#: Builds the stage of one worker.
MakeStage = Callable[[Design, Group], Stage]

#: How long a worker waits for a coordinator that does not answer: the default of its command line.
_JOIN_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Arithmetic:
    """Whether there is any, and where its results are written."""

    stages: MakeStage | None = None  # None: only order and time are real
    folder: Path | None = None


class WorkerProcess(Process):
    """The rounds of one process."""

    def __init__(
        self,
        world: World,
        group: Group,
        number: int,
        office: Office,
        ended: Callable[[int], None],
        arithmetic: Arithmetic,
        ops: list[TimedOp],
    ) -> None:
        """`number`: which one of this name; `ops`: where its ops are noted."""
        super().__init__(world, group.name, number, office, ended)
        design = world.design
        self._group = group
        self._arithmetic = arithmetic
        self._ops = ops
        names = tuple(node.name for node in group.members)
        slow = slow_of(design.experiment, design.plan, group.name, world.seed)
        self._pace = Pace(world.costs, group.name, names, world.seed, slow)
        stages = arithmetic.stages
        build = partial(stages, design, group) if stages is not None else None
        self._keeping = Keeping(
            self, group, self._pace, build, arithmetic.folder, failed=self._failed
        )
        self._source: Source | None = None
        self._welcome: Welcome | None = None
        self._order: Rejoin | None = None  # the newest
        self._building = False
        self._round: Round | None = None
        self._early: list[Message] = []
        self.worker = make_worker(design, group, self._keeping.counts)

    def start(self) -> None:
        """The process begins."""
        self.later(self._pace.startup_s(), self._hello)

    def weights(self) -> dict[str, dict[str, Array]]:
        """By declared stage; none without arithmetic."""
        return self._keeping.weights()

    @property
    def ids(self) -> set[int] | None:
        """Of the batches that it has learned from; None where files of before do not say."""
        return self._keeping.ids

    # --- joining ---------------------------------------------------------------------------------

    def _hello(self) -> None:
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            stage=self.name,
            address=self.address,
            pid=self._group.index,
            host="simulator",
        )
        self.tell(hello)
        self.later(_JOIN_TIMEOUT_S, self._give_up)

    def _give_up(self) -> None:
        """No coordinator has answered; its loop may have been over already."""
        if self._welcome is None:
            self.exit(1)

    def take(self, message: Message) -> None:
        """A message has arrived, and is not a beat."""
        if self._round is not None:
            self._round.take(message)
        else:
            self._sort(message)

    def _sort(self, message: Message) -> None:
        """What comes between rounds."""
        match message:
            case Welcome(incarnation=incarnation, restore=restore):
                self._welcome = message
                self.begin_to_beat()
                self._follow(Rejoin(incarnation, restore))
            case Rejoin():
                self._follow(message)
            case Connect(incarnation=incarnation):
                if self._order is not None and incarnation == self._order.incarnation:
                    self._connected(message)
            case Refused() | Abort() | Leave():
                self.exit(1)
            case _:
                self._early.append(message)

    def _follow(self, order: Rejoin) -> None:
        if self._order is not None and order.incarnation <= self._order.incarnation:
            return
        self._order = order
        if not self._building:
            self._build()

    def _build(self) -> None:
        """Reading the state takes about as long as writing it."""
        self._building = True
        assert self._order is not None
        self.later(self._pace.save_s(), partial(self._has_built, self._order))

    def _has_built(self, order: Rejoin) -> None:
        self._building = False
        assert self._welcome is not None
        if order is not self._order:
            self._build()  # for the newest, without a word about this one
            return
        try:
            notes = self._keeping.restore(order.restore, self._welcome.cut)
        except AsyncDNIError as error:
            self._failed(error)
            return
        counts, stage = self._keeping.counts, self._keeping.stage
        built = Built(
            incarnation=order.incarnation,
            parameters=stage.parameters() if stage is not None else 0,
            position=counts.position,
            updates=counts.updates,
            read=counts.read,
            notes=notes,
        )
        self.tell(built)

    def _connected(self, connect: Connect) -> None:
        """The round begins."""
        assert self._welcome is not None
        try:
            self._keeping.claim((self._welcome.term, connect.incarnation))
        except CheckpointError as error:
            self._failed(error)
            return
        self.addresses = dict(connect.addresses)
        design, group = self.world.design, self._group
        self.worker = make_worker(design, group, self._keeping.counts)
        self.worker.joined(connect)
        self._round = Round(
            self,
            self.worker,
            self._executor(),
            self._keeping,
            self._pace,
            self._ops,
            stopped=self._stopped,
            failed=self._failed,
        )
        self._round.begin()
        early, self._early = self._early, []
        for message in early:
            self.receive(message)

    def _executor(self) -> Executor:
        stage, design = self._keeping.stage, self.world.design
        if stage is None:
            return NullExecutor(design, self._group)
        if self._source is None:
            self._source = make_source(design, self._group)
        shares = find_shares(design, self._group)
        return StageExecutor(stage, find_exits(design), self._source, shares=shares)

    # --- the end of a round ----------------------------------------------------------------------

    def _stopped(self, stop: Stop, left: list[Message]) -> None:
        self._round = None
        if stop.rejoin is None:
            self.exit(1 if stop.failed else 0)
            return
        self._follow(stop.rejoin)
        for message in left:
            self._sort(message)

    def _failed(self, error: AsyncDNIError) -> None:
        policy = self.world.design.experiment.numbers.policy
        if self._round is not None:
            self._round.let_go()
            if isinstance(error, NumericalError):
                self._round.report()
        self._round = None
        self.tell(Failed(type(error).__name__, str(error), ""))
        if not (isinstance(error, NumericalError) and policy == "roll_back"):
            self.exit(1)  # otherwise there will be another round

    def exit(self, code: int) -> None:
        if self._round is not None:
            self._round.over = True
        super().exit(code)

    def forsaken(self) -> None:
        """Keep what there is, once it is whole, and leave."""
        if self._round is not None and self._round.busy:
            self._round.after_op = self._leave
        else:
            self._leave()

    def _leave(self) -> None:
        if self._round is not None and not self.worker.unapplied:
            self._keeping.last_snapshot()
        self.exit(1)
