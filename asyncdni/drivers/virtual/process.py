"""A worker process in virtual time: carries out what `core.process.Process` asks for.

```
 wires ──► message ──► Process ──► actions ──► wires, disk, an op that takes its time
   ▲                                                        │
   └───────────────── agenda: done after so long ◄──────────┘
```

The process has one thread: while an op takes its time, messages are received, but nothing else is
computed. What is simulated here besides is that the process is paused, starved, slow or killed, and
that saves are slow, fail, or are torn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from asyncdni.core.counts import Counts
from asyncdni.core.events import (
    Action,
    Broke,
    Compute,
    Computed,
    CoordinatorGone,
    Discard,
    Event,
    Exit,
    Join,
    Joined,
    KeepPart,
    Lose,
    Origin,
    PartKept,
    PartSent,
    Prepare,
    Received,
    Redeliver,
    Release,
    Report,
    Restore,
    Restored,
    Save,
    Say,
    SayHello,
    Send,
    SendPart,
    Snapshot,
    SnapshotTaken,
    Stored,
    Woke,
)
from asyncdni.core.ledger import SNAPSHOTS
from asyncdni.core.liveness import Sight, Silence, beat_every_s, worker_patience_s
from asyncdni.core.members import Roster
from asyncdni.core.process import Process
from asyncdni.core.worker import Worker
from asyncdni.drivers.virtual.clock import Alarm
from asyncdni.drivers.virtual.costs import Pace
from asyncdni.drivers.virtual.disk import Disk, PartDisk, Saved, file_of
from asyncdni.drivers.virtual.world import World
from asyncdni.encodings import Compressor
from asyncdni.errors import AsyncDNIError, CheckpointError
from asyncdni.messages import COORDINATOR, DATA, PROTOCOL_VERSION, Beat, Hello, Message
from asyncdni.messages import Report as ReportMessage
from asyncdni.nn.base import Array
from asyncdni.plan.build import (
    Design,
    find_exits,
    find_shares,
    lent_readout,
    make_compressor,
    make_source,
    make_worker,
    prepared,
)
from asyncdni.plan.conditions import slow_of
from asyncdni.plan.plan import Group, shared_with
from asyncdni.schedules.base import OpKind
from asyncdni.stages.base import Score, Stage
from asyncdni.stages.executor import Executor as StageExecutor
from asyncdni.stages.executor import Source
from asyncdni.store.weights import write_weights

__all__ = [
    "Arithmetic",
    "Executor",
    "Keeping",
    "MakeStage",
    "NullExecutor",
    "Office",
    "TimedOp",
    "WorkerProcess",
]

#: (letter, batch, start, end): seconds of virtual time.
TimedOp = tuple[str, int, float, float]

_KILLED = -9


class Office(Protocol):
    """The coordinator's process, as a worker's knows it."""

    key: str
    roster: Roster  # of its run

    def receive(self, peer: bytes, message: Message) -> None: ...


class Executor(Protocol):
    """`stages.executor.Executor`, or one without arithmetic."""

    def compute(self, compute: Compute) -> Computed: ...

    def release(self, batch: int, sent: Callable[[], bool]) -> None: ...

    def discard(self, copy: int) -> None: ...


# --- state -----------------------------------------------------------------------------------

_FULL = "the disk is full (simulated)"


class Keeping:
    """The stage of one process, the ids of the batches that it has learned from, and both on disk.

    `build` makes the stage, if there is any arithmetic."""

    def __init__(
        self,
        name: str,
        group: Group,
        world: World,
        counts: Counts,
        build: Callable[[], Stage] | None,
        folder: Path | None,
    ) -> None:
        """`name` of the process, among all that there have been; `counts` of its `Process`;
        `folder`: where weights are written."""
        self.stage = build() if build is not None else None
        self.ids: set[int] | None = set()  # of the batches behind `counts.batches`, if known
        self.counts = counts
        self.group = group
        self.order = (0, 0)  # of its claim
        self._name = name
        # One that has no access to the disk of the run has one of its own: see `core.transfer`.
        self.away = group.name in world.away
        self.disk = Disk(world.design) if self.away else world.disk
        self._build = build
        self._folder = folder
        self._is_new = True  # the stage

    def claim(self, order: tuple[int, int]) -> None:
        """The stages belong to this process from now on: see `store.claims`. Raises
        `CheckpointError` where they belong to a later one."""
        self.order = order
        self.disk.claim(self.group, order)

    def restore(self, action: Restore) -> Restored:
        """Bring stage and ids into a state. Raises `CheckpointError`."""
        if action.origin is Origin.KEPT:
            if self.stage is not None:
                self.stage.forget()
            return self._restored(None)
        self.ids = set()
        if self._build is not None and not self._is_new:
            self.stage = self._build()
        self._is_new = False
        if action.discard:
            self.disk.discard_snapshots()
        if action.origin is Origin.BEGINNING:
            return self._restored({})
        if action.origin is Origin.CUT:
            place, saved = action.place, self.disk.read(action.place, self.group)
            if saved is None:
                raise CheckpointError(f"no state of {self.group.name} in {place}")
        else:
            found = self.disk.farthest(action.place, self.group)
            if found is None:
                return self._restored({}, unusable=["there is no snapshot"])
            place, saved = found
        self.ids = None if saved.learned is None else set(saved.learned)
        notes = self.stage.restore(saved.state) if self.stage is not None else []
        return self._restored(saved.counts, notes=notes, place=place)

    def _restored(self, counts: Mapping[str, int] | None, **more: Any) -> Restored:
        parameters = self.stage.parameters() if self.stage is not None else 0
        return Restored(parameters, counts, **more)

    def learned(self, batch: int) -> None:
        """One more batch has been forwarded to be learned from."""
        if self.ids is None:
            return
        assert batch not in self.ids, f"{self._name} has learned from batch {batch} twice"
        self.ids.add(batch)

    def weights(self, copy: int | None = None) -> dict[str, dict[str, Array]]:
        """Return the weights by declared stage, of a copy or (None) the present ones; none without
        arithmetic."""
        return self.stage.state(copy) if self.stage is not None else {}

    def state(self) -> Saved:
        """All that decides how this process would go on."""
        state = self.stage.snapshot() if self.stage is not None else {}
        ids = None if self.ids is None else frozenset(self.ids)
        return Saved(state, self.counts.state(), ids)

    def write_snapshot(self, saved: Saved) -> None:
        """One of a process that has been replaced is not written."""
        with contextlib.suppress(CheckpointError):
            self.disk.write(SNAPSHOTS, self.group, saved, self.order)

    def write(self, save: Save) -> dict[str, str]:
        """Write the weights or all state, and return the digests by declared stage."""
        if save.whole:
            return self.disk.write(save.tag, self.group, self.state(), self.order)
        if self._folder is not None and self.stage is not None:
            return write_weights(self._folder / save.tag, self.weights(save.copy), None)
        return {}


# --- null ----------------------------------------------------------------------------------------

_TOKEN = np.zeros(1, np.uint8)
_TOKEN.setflags(write=False)
#: What nobody else gets anything of.
_ALONE = frozenset(OpKind) - {
    *(OpKind.READ, OpKind.FORWARD, OpKind.EVALUATE, OpKind.BACKWARD, OpKind.UPDATE),
    OpKind.COPY,
}


class NullExecutor:
    """Stands for `stages.executor.Executor` in runs that are about order and time alone: it has the
    same samples and addressees, but no arithmetic. Every tensor is one small token.

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
        if op.kind is OpKind.COPY:
            return Computed(op, outputs={"weights": _TOKEN})
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

    def discard(self, copy: int) -> None:
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


class WorkerProcess:
    """One process of the worker of `group`. `ended(code)` is called once, when it has ended.

    While it is paused nothing happens in it; what was to happen follows at once afterwards.
    """

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
        self.name = name = group.name
        self.key = f"{name}#{number}"
        self.peer = self.key.encode()
        self.address = f"virtual://{self.key}"
        self.office = office
        self.alive = True
        self.slowness = 1.0  # ops take so many times as long
        self._world = world
        self._agenda = world.agenda
        self._group = group
        self._ended = ended
        self._ops = ops
        self._clock = clock = world.chance_faults.clock()
        self._hear = partial(office.receive, self.peer)
        chosen = world.design.experiment
        self._silence_s = chosen.limits.silence_s
        self._patience_s = worker_patience_s(self._silence_s, chosen.recovery.coordinator_s)
        self._silence = Silence(self._patience_s, world.agenda.now)
        self._pauses = self._starvations = 0
        self._backlog: list[Callable[[], None]] = []
        self._process = Process(
            name,
            partial(make_worker, world.design, group),
            clock.reading(world.agenda.now),
            timeout_s=_JOIN_TIMEOUT_S,
            watch=partial(world.watch, name),
        )
        self._alarm = Alarm(world.agenda, self._process, self._wake, clock)
        self._do = self._table()
        self._prepare_to_compute(arithmetic)

    def _prepare_to_compute(self, arithmetic: Arithmetic) -> None:
        world, group = self._world, self._group
        design, stages = world.design, arithmetic.stages
        names = tuple(node.name for node in group.members)
        slow = slow_of(design.experiment, design.plan, group.name, world.seed)
        self._pace = Pace(world.costs, group.name, names, world.seed, slow)
        build = partial(stages, design, group) if stages is not None else None
        counts = self._process.counts
        self._keeping = Keeping(self.key, group, world, counts, build, arithmetic.folder)
        self._parts = PartDisk(self._keeping.disk, fetches=True)
        self._source: Source | None = None
        self._executor: Executor = NullExecutor(design, group)
        self._addresses: dict[str, str] = {}  # of neighbours
        self._compressor = Compressor({}, {})
        self._asked: object = None  # the op or the restoring under way
        self._saving: Save | None = None  # the save under way
        self._delay_s = 0.0  # what a snapshot takes, before the next op

    def _table(self) -> dict[type[Action], Callable[[Any], None]]:
        """What is done about each action."""
        return {
            Send: self._send,
            Compute: self._compute,
            Release: self._release,
            Discard: lambda action: self._executor.discard(action.copy),
            Report: self._report,
            Save: self._save,
            Snapshot: self._snapshot,
            Say: lambda action: None,  # nobody reads what a simulated process prints
            SayHello: self._say_hello,
            Prepare: self._prepare,
            Restore: self._restore,
            Join: self._join,
            Redeliver: self._redeliver,
            SendPart: self._send_part,
            KeepPart: self._keep_part,
            Lose: lambda action: None,  # what is sent to a process that has ended is lost
            Exit: lambda action: self.exit(1 if action.failed or action.error else 0),
        }

    @property
    def worker(self) -> Worker:
        """The worker of the current or last round; before the first, one that has done nothing."""
        process = self._process
        return process.worker or make_worker(self._world.design, self._group, process.counts)

    @property
    def ids(self) -> set[int] | None:
        """The ids of the batches that it has learned from; None where earlier files do not say."""
        return self._keeping.ids

    def weights(self) -> dict[str, dict[str, Array]]:
        """Return the weights by declared stage; none without arithmetic."""
        return self._keeping.weights()

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """The process begins."""
        self._later(self._pace.startup_s(), self._start)

    def _start(self) -> None:
        self._carry_out(self._process.start(self._reading))

    def turn_to(self, office: Office, ended: Callable[[int], None]) -> None:
        """From now on another coordinator is where the one before has been, and `ended` is called
        in place of what was called before."""
        self.office, self._ended = office, ended
        self._hear = partial(office.receive, self.peer)

    @property
    def _reading(self) -> float:
        """What the process's own clock shows."""
        return self._clock.reading(self._agenda.now)

    def exit(self, code: int) -> None:
        """End the process, whoever has ended it."""
        if self.alive:
            self.alive = False
            self._asked = None
            self._backlog.clear()
            self._ended(code)

    def pause(self, for_s: float, *, starved: bool = False) -> None:
        """SIGSTOP, and SIGCONT later; or `starved`: its host has no core to spare for so long."""
        self._pauses += 1
        self._starvations += starved
        self._agenda.after(for_s, partial(self._go_on, starved))

    def _go_on(self, starved: bool) -> None:
        self._pauses -= 1
        self._starvations -= starved
        while self._backlog and not self._pauses:
            self._backlog.pop(0)()

    @property
    def sight(self) -> Sight:
        """What its process looks like from outside, where it has not spoken for a while."""
        stopped = self._pauses > self._starvations
        return Sight.STARVED if self._starvations and not stopped else Sight.STILL

    @property
    def _is_awake(self) -> bool:
        """Whether what comes now is done at once."""
        return self.alive and not self._pauses and not self._backlog

    def _now(self, what: Callable[[], None]) -> None:
        """Do this at once, or as soon as the process is paused no more."""
        if self._is_awake:
            what()
        elif self.alive:
            self._backlog.append(what)

    def _later(self, delay_s: float, what: Callable[[], None], *, idle: bool = False) -> None:
        """After a while, if it lives then."""
        self._agenda.after(delay_s, partial(self._now, what), idle=idle)

    # --- the heart -------------------------------------------------------------------------------

    def _beat(self) -> None:
        if self._silence.too_long(self._agenda.now):
            self._handle(CoordinatorGone(f"nothing heard for {self._patience_s:g} s"))
            return
        self._tell(Beat())
        self._later(beat_every_s(self._silence_s), self._beat, idle=True)

    # --- events and actions ----------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """A message has arrived."""
        if self._is_awake:
            self._receive(message)
        elif self.alive:
            self._backlog.append(partial(self._receive, message))

    def _receive(self, message: Message) -> None:
        if type(message) is Beat:
            self._silence.hear(self._agenda.now)
        else:
            self._handle(Received(message))

    def _wake(self) -> None:
        self._now(partial(self._handle, Woke()))

    def _handle(self, event: Event) -> None:
        if not self.alive:
            return
        process = self._process
        now = self._clock.reading(self._agenda.now)
        try:
            actions = process.handle(event, now)
        except AsyncDNIError as error:
            actions = process.handle(Broke(error), now)
        if self._world.checks:
            process.check()
        self._carry_out(actions)

    def _carry_out(self, actions: list[Action]) -> None:
        do = self._do
        for action in actions:
            if not self.alive:  # it has died of the one before
                return
            do[type(action)](action)
        self._alarm.reset()

    def _send(self, send: Send) -> None:
        if send.to == COORDINATOR:
            self._tell(send.message)
            return
        address = self._addresses[send.to]  # type: ignore[index]
        message = self._compressor.compress(send.to, send.message)  # type: ignore[arg-type]
        parcel = self._world.to_worker(self, address, message)
        if parcel is not None:
            self._process.buffers.sent(send.message, parcel.left)

    def _tell(self, message: Message) -> None:
        """Send a message to the coordinator."""
        self._world.to_coordinator(self, self.office.key, message, self._hear)

    def _release(self, release: Release) -> None:
        self._executor.release(release.batch, self._process.buffers.free(release.batch))

    def _report(self, report: Report) -> None:
        self._tell(ReportMessage(report.counters))

    # --- joining ---------------------------------------------------------------------------------

    def _say_hello(self, action: SayHello) -> None:
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            stage=self.name,
            address=self.address,
            pid=self._group.index,
            host="simulator",
            incarnation=action.incarnation,
        )
        self._tell(hello)

    def _prepare(self, action: Prepare) -> None:
        self._silence.hear(self._agenda.now)
        self._beat()
        ready = prepared(self._world.design, self._group, self.office.roster)
        ready.away = self._keeping.away
        self._handle(ready)

    def _restore(self, action: Restore) -> None:
        """Reading the state takes about as long as writing it."""
        self._asked, self._saving = action, None
        self._later(self._pace.save_s(), partial(self._has_read, action))

    def _has_read(self, action: Restore) -> None:
        try:
            restored = self._keeping.restore(action)
        except AsyncDNIError as error:
            self._handle(Broke(error))
        else:
            self._handle(restored)

    def _join(self, action: Join) -> None:
        try:
            if action.claim is not None:
                self._keeping.claim(action.claim)
        except CheckpointError as error:
            self._handle(Broke(error))
            return
        self._addresses = dict(action.connect.addresses)
        design, stage = self._world.design, self._keeping.stage
        self._compressor = make_compressor(design, self._group, stage)
        if stage is not None:
            if self._source is None:
                self._source = make_source(design, self._group)
            self._executor = StageExecutor(
                stage,
                find_exits(design),
                self._source,
                shares=find_shares(design, self._group),
                readout=lent_readout(design, self._group),
            )
        self._handle(Joined())

    def _redeliver(self, action: Redeliver) -> None:
        for message in action.messages:
            self.receive(message)

    # --- ops -------------------------------------------------------------------------------------

    def _compute(self, compute: Compute) -> None:
        self._asked = compute
        what = partial(self._has_taken, compute, self._agenda.now, self._process.training)
        delay_s, self._delay_s = self._delay_s, 0.0
        if delay_s:
            start = partial(self._world.compute, self.name, self._pace, compute.op, what)
            self._later(delay_s, start)
        else:
            self._world.compute(self.name, self._pace, compute.op, what)

    def _has_taken(self, compute: Compute, began: float, training: bool) -> None:
        """The op is over, but for what makes this process slower than it should be."""
        if self.slowness > 1.0:
            extra_s = (self.slowness - 1.0) * (self._agenda.now - began)
            self._later(extra_s, partial(self._computed, compute, began, training))
        elif self._pauses or self._backlog:
            self._now(partial(self._computed, compute, began, training))
        else:
            self._computed(compute, began, training)

    def _computed(self, compute: Compute, began: float, training: bool) -> None:
        if compute is not self._asked:
            return  # of a round that is over
        op = compute.op
        try:
            event = self._executor.compute(compute)
        except AsyncDNIError as error:
            self._handle(Broke(error))
            return
        if training:
            self._ops.append((op.letter, op.batch, began, self._agenda.now))
            if op.kind is OpKind.FORWARD and not op.replay:
                self._keeping.learned(op.batch)
        self._handle(event)
        self._delay_s = 0.0

    # --- saves -----------------------------------------------------------------------------------

    def _save(self, save: Save) -> None:
        self._saving = save
        chance = self._world.chance_faults.save()
        took_s = self._pace.save_s() + chance.extra_s
        if chance.torn:
            self._later(took_s / 2, self._die)
        else:
            self._later(took_s, partial(self._has_saved, save, chance.fails))

    def _has_saved(self, save: Save, fails: bool) -> None:
        try:
            if fails:
                raise CheckpointError(f"{self.name} can't write {save.tag}: {_FULL}")
            files = self._keeping.write(save)
        except CheckpointError as error:
            self._handle(Broke(error))
            return
        if save is self._saving:  # or else a restoring has taken its place
            self._handle(Stored(save.tag, files, self._files(save.tag) if save.whole else ()))

    def _files(self, place: str) -> Sequence[str]:
        """The files that the coordinator has to be sent of what has been written to `place`."""
        return [file_of(place, self._group)] if self._keeping.away else []

    def _send_part(self, ask: SendPart) -> None:
        part = self._parts.read(COORDINATOR, ask.incarnation, ask.path, ask.offset)
        assert part is not None, f"{self.key} sends {ask.path}, which is not there"
        self._tell(part)
        end = part.offset + len(part.data)
        self._handle(PartSent(ask.to, ask.incarnation, ask.path, end, part.size))

    def _keep_part(self, action: KeepPart) -> None:
        self._parts.write(action.sender, action.part)
        self._handle(PartKept(action.part, action.sender))

    def _snapshot(self, snapshot: Snapshot) -> None:
        """Take a snapshot of the state as it is now; it is on disk a moment later, or never."""
        keeping = self._keeping
        if snapshot.last:
            keeping.write_snapshot(keeping.state())
            self._handle(SnapshotTaken(0.0))
            return
        self._delay_s = self._pace.save_s()
        chance, saved = self._world.chance_faults.save(), keeping.state()
        # As if in no time: simulated runs are short, and faults are to meet as many as were asked.
        taken = SnapshotTaken(0.0)
        if chance.fails:
            taken.error = CheckpointError(f"{self.name} can't write a snapshot: {_FULL}")
        elif keeping.away and not chance.torn:  # it is sent on from its own disk
            keeping.write_snapshot(saved)
            taken.paths = self._files(SNAPSHOTS)
        self._handle(taken)
        if chance.fails or taken.paths:
            return
        took_s = self._pace.save_s() + chance.extra_s
        if chance.torn:
            self._later(took_s / 2, self._die)
        else:
            self._later(took_s, partial(keeping.write_snapshot, saved), idle=True)

    def _die(self) -> None:
        self.exit(_KILLED)
