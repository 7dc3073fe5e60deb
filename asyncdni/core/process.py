"""The life of a worker process, from its Hello to its end: a state machine without I/O or clocks.

```
  start            Welcome            Restored              Connect           Joined
    │                 │                   │                    │                 │
    ▼                 ▼                   ▼                    ▼                 ▼
  HELLO ─────────► BUILDING ──────────► BUILT ────────────► CONNECTING ──────► ROUND
    │              ▲  ▲  ▲               │                     │                │  │
    │              │  │  └── Rejoin ─────┴─────────────────────┴────────────────┘  │
    │              │  │      (the newest; after the op under way)                  │ numbers gone
    │  no answer   │  └──────────────────────── Rejoin ─────── FAILED ◄────────────┘ wrong, and
    ▼              │                                                                 "roll_back"
  ENDED ◄── Leave, Abort, an error, or the coordinator is gone, in any state
```

In a round the process hands what happens to the round's `Worker`; what it decides by itself is:

- Of several orders to join a round the newest counts; one that comes while the stage is being
  restored is followed right afterwards, without a word about the older one.
- Messages of neighbours that come between rounds are kept for the next one.
- An order to join ends a round only once the op under way has been counted, and where all is kept,
  the update of its batch has been made. What comes behind that order waits with it.
- A report is due every 0.5 s, after the op under way, and before each `Drained`.
- A rolling snapshot is due some time after the last one, behind an Update, if all is applied.
  There are none where all workers go back together: nobody would ever read one.
- A worker without access to the run's folder fetches what it begins with, and sends on what it
  saves; what was saved counts as stored once the coordinator has it. No snapshot is due before the
  last one has arrived.
- A snapshot that can't be written is told of once, and does not end the process as long as the
  run's folder is there: what is committed stays, and the next snapshot may succeed.
- What the user is told of the state that a stage begins a round with.
- A coordinator that has started this process is waited for as long as it lives, another one for
  `timeout_s`.
- Asked by another coordinator than the one that has let it in, it says Hello again, and learns on
  until that coordinator's Welcome orders it to join a round.
- Once the coordinator is gone the worker finishes the update it is in the middle of, keeps what it
  has learned, and leaves.
- Arrays of a batch are used again once the batch is released and no message holds them any more;
  batches that were read and not released by the end of a round are released then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum

from asyncdni.core.counts import Counts
from asyncdni.core.events import (
    Action,
    Adapt,
    Broke,
    Compute,
    Computed,
    CoordinatorGone,
    Event,
    Exit,
    Join,
    Joined,
    KeepPart,
    Lose,
    Origin,
    ParentGone,
    PartKept,
    PartSent,
    Prepare,
    Prepared,
    Received,
    Redeliver,
    Release,
    Report,
    Restore,
    Restored,
    Say,
    SayHello,
    Send,
    Snapshot,
    SnapshotTaken,
    Stop,
    Stored,
    Unusable,
    Woke,
)
from asyncdni.core.ledger import SNAPSHOTS
from asyncdni.core.post import UnexpectedMessage
from asyncdni.core.transfer import Incoming, Outgoing, needed
from asyncdni.core.worker import Phase, Worker
from asyncdni.errors import (
    AsyncDNIError,
    Interrupted,
    LaunchError,
    NumericalError,
    RemoteProtocolError,
    by_name,
)
from asyncdni.messages import (
    COORDINATOR,
    Abort,
    Activation,
    Built,
    Connect,
    Drained,
    Failed,
    Fetch,
    Gradient,
    Introduce,
    Leave,
    Lost,
    Message,
    Missing,
    Note,
    Part,
    Refused,
    Rejoin,
    Steer,
    Taken,
    Welcome,
)
from asyncdni.schedules.base import Op, OpKind

__all__ = ["Buffers", "Process", "State", "is_settled"]

_REPORT_EVERY_S = 0.5
#: How long a coordinator may take to answer before the log of a worker says so.
_PATIENCE_S = 5.0
#: How long until a worker says Hello again: the coordinator may have died with the one before.
_HELLO_EVERY_S = 2.0
#: From one snapshot to the next at least so many times what it took, to write and to send it: each
#: of the two about 1 % of the time.
_SNAPSHOTS_APART = 100.0
_NEVER = float("inf")

#: Orders that end a round: they wait for the op under way.
_ENDING = frozenset({Rejoin, Welcome})
#: The ops of a batch's update, behind its forward.
_LEARNING = OpKind.PREDICT, OpKind.BACKWARD, OpKind.UPDATE

#: What `Worker.handle` does, and a driver may look on at.
Handle = Callable[[Event, float], list[Action]]


class State(Enum):
    """Where in its life a process is."""

    HELLO = "hello"
    BUILDING = "building"
    BUILT = "built"
    CONNECTING = "connecting"
    ROUND = "round"
    FAILED = "failed"
    ENDED = "ended"


class Buffers:
    """Knows which arrays of a round's batches are in messages that have not left yet."""

    def __init__(self) -> None:
        self._unsent: dict[int, list[Callable[[], bool]]] = {}  # by batch

    def sent(self, message: Message, left: Callable[[], bool]) -> None:
        """A message has been handed over; `left()` says whether its tensors have left by then.

        Tensors of test batches are not used again."""
        if isinstance(message, Gradient) or (
            isinstance(message, Activation) and not message.evaluate
        ):
            self._unsent.setdefault(message.batch, []).append(left)

    def free(self, batch: int) -> Callable[[], bool]:
        """Return what says whether all arrays of a released batch may be used again."""
        waiting = self._unsent.pop(batch, [])
        return lambda: all([left() for left in waiting])


class _Files:
    """What a process without access to the run's folder sends there, and fetches from there."""

    def __init__(self) -> None:
        self.away = False  # it has no access
        self.outgoing = Outgoing(COORDINATOR)
        self.incoming = Incoming()
        self.wanted: list[str] = []  # before the stage is restored; the first one is on its way
        self.stored: Stored | None = None  # to be told once all its files have arrived
        self.took_s = 0.0  # to read and send what is on its way


class Process:
    """One worker process. A driver carries out its actions: see `core.events`.

    `worker` is that of the current round, or of the last one; None before the first.
    `counts` go on over all rounds. `snapshot_due_s`: when the next rolling snapshot is due.
    """

    def __init__(
        self,
        stage: str,
        make_worker: Callable[[Counts], Worker],
        now: float,
        *,
        coordinator: str = COORDINATOR,
        timeout_s: float | None = None,
        launched: bool = False,
        watch: Callable[[Worker], Handle] = lambda worker: worker.handle,
    ) -> None:
        """`stage` and `coordinator` (its address) are for what users are told. `make_worker` makes
        the worker of a round, once `Prepared` has come. `timeout_s`: how long a coordinator may
        take to answer; None: for ever. `launched`: the coordinator has started this process, whose
        end is told by `ParentGone`, and may take as long as it lives. `watch` gives what is called
        in place of a worker's `handle`."""
        self.state = State.HELLO
        self.worker: Worker | None = None
        self.counts = Counts()
        self.buffers = Buffers()
        self._stage = stage
        self._make_worker = make_worker
        self._watch = watch
        self._coordinator = coordinator
        self._timeout_s = None if launched else timeout_s
        self._began_s = now
        self._give_up_s: float | None = None
        self._complain_s = _NEVER  # when the log is to say that no coordinator answers
        self._hello_s = now + _HELLO_EVERY_S  # when to say Hello again
        self._roll_back = False
        self._stages: Sequence[str] = ()
        self._sources: Mapping[str, str] = {}
        self._snapshot_every_s: float | None = None  # None: this process takes no snapshots
        self.snapshot_due_s = _NEVER
        self._complained = False  # of a snapshot that could not be written
        self._welcome: Welcome | None = None
        self._order: Rejoin | None = None  # the newest
        self._following: Rejoin | None = None  # what the stage is being restored for
        self._restore: Restore | None = None  # the newest
        self._connect: Connect | None = None
        self._has_state = False
        self._early: list[Message] = []
        self._files = _Files()
        self._gone = ""  # why there is nobody left to work for
        # Of the round:
        self._handle: Handle = _nothing
        self._phase = Phase.LEFT
        self._busy = False  # an op is under way
        self._held: list[Received] = []  # an order to join, and what came behind it
        self._read: set[int] = set()  # training batches read and not released yet
        self._report_s = _NEVER
        self._report_due = False  # after the op under way
        self._others = self._table()
        self._own = self._table_of_messages()

    def _table_of_messages(self) -> dict[type[Message], Callable[..., list[Action]]]:
        """What is done about the coordinator's messages in a round that are not for the worker."""
        return {
            Taken: self._taken,
            Note: lambda message, now: [Say(message.text)],
            Introduce: self._introduced,
            Steer: lambda message, now: [Adapt(message)],
            Welcome: self._welcomed_again,
        }

    def _table(self) -> dict[type[Event], Callable[..., list[Action]]]:
        """What is done about each event."""
        return {
            Received: self._received,
            Computed: lambda event, now: [],
            Stored: self._stored,
            Woke: self._woke,
            Prepared: self._prepared,
            Restored: self._restored,
            Joined: self._joined,
            SnapshotTaken: self._snapshot_taken,
            PartSent: self._part_sent,
            PartKept: self._part_kept,
            Unusable: self._unusable,
            Broke: self._broke,
            CoordinatorGone: self._coordinator_gone,
            ParentGone: self._parent_gone,
        }

    # --- the contract of a machine ---------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        """The process begins."""
        if self._timeout_s is not None:
            self._give_up_s = now + self._timeout_s
            if self._timeout_s > _PATIENCE_S:
                self._complain_s = now + _PATIENCE_S
        return [SayHello()]

    def handle(self, event: Event, now: float) -> list[Action]:
        """See `events.Machine`. Raises what `Worker.handle` raises, to be answered with `Broke`."""
        kind = type(event)
        if self.state is State.ROUND:  # nearly all events of a run come through here
            if kind is Received:
                message = event.message  # type: ignore[attr-defined]
                if self._held or (self._busy and type(message) in _ENDING):
                    self._held.append(event)  # type: ignore[arg-type]
                    return []
                return self._received(event, now)  # type: ignore[arg-type]
            if kind is Computed:
                return self._computed(event, now)  # type: ignore[arg-type]
        elif self.state is State.ENDED and kind is not SnapshotTaken:
            return []
        return self._others[kind](event, now)

    def deadline(self) -> float | None:
        """When the next report is due, or a greeting, or waiting for an answer has been too long"""
        if self.state is State.ROUND:
            if self._phase is Phase.IDLE and self.worker is not None:
                due = self.worker.deadline()
                return self._report_s if due is None else min(due, self._report_s)
            return self._report_s
        if self.state is State.HELLO:
            give_up_s = _NEVER if self._give_up_s is None else self._give_up_s
            return min(give_up_s, self._complain_s, self._hello_s)
        return None

    def check(self) -> None:
        """Assert every invariant."""
        if self.state is State.ROUND:
            assert self.worker is not None
            self.worker.check()
            assert self._phase is self.worker.phase is not Phase.LEFT
            assert self._busy or not (self._held or self._report_due)
        else:
            assert not (self._busy or self._held or self._read)

    @property
    def training(self) -> bool:
        """A round is under way, between its start or a barrier and the next one."""
        return self._phase is Phase.TRAINING

    # --- joining ---------------------------------------------------------------------------------

    def _sort(self, message: Message, now: float) -> list[Action]:
        """What comes between rounds."""
        match message:
            case Welcome(incarnation=incarnation, restore=restore):
                if self.state is not State.HELLO:
                    return self._welcomed_again(message, now)
                self._welcome, self._order = message, Rejoin(incarnation, restore)
                self.state = State.BUILDING
                return [Prepare(message)]
            case Rejoin():
                return self._follow(message)
            case Connect(incarnation=incarnation):
                if self.state is State.BUILT and incarnation == self._incarnation:
                    return self._join(message)
            case Refused(kind=kind, text=text):
                return [self._exit(Exit(error=by_name(kind)(text)))]
            case Abort(text=text):
                return [self._exit(Exit(f"the run was called off: {text}"))]
            case Leave():
                return [self._exit(Exit("the run was called off"))]
            case Note(text=text):
                return [Say(text)]
            case Introduce():
                return self._introduced(message, now)
            case Steer():
                return [Adapt(message)]
            case Part() | Missing():
                return self._fetched(message)
            case _ if getattr(message, "sender", None) is not None:
                self._early.append(message)
            case _:
                pass  # an order that belonged to a round which is over here
        return []

    @property
    def _incarnation(self) -> int:
        return self._order.incarnation if self._order is not None else 0

    def _introduced(self, message: Introduce, now: float) -> list[Action]:
        """Another coordinator asks who this is."""
        return [SayHello(self._incarnation if self._has_state else 0)]

    def _welcomed_again(self, message: Welcome, now: float) -> list[Action]:
        """Join the first round of a coordinator that has taken the place of the one before."""
        if self._welcome is None or message.term <= self._welcome.term:
            return []
        self._welcome, self._order = message, None
        order = Rejoin(message.incarnation, message.restore)
        if self.state is State.ROUND:
            return self._hand(Received(order), now)
        return self._follow(order)

    def _prepared(self, event: Prepared, now: float) -> list[Action]:
        assert self._welcome is not None
        self._roll_back, self._stages = event.roll_back, event.stages
        self._sources = event.sources
        self._files.away = event.away
        every_s = event.snapshot_every_s
        # Where all go back together nobody would ever read a snapshot.
        if event.learns_alone and self._welcome.folder and every_s is not None:
            self._snapshot_every_s, self.snapshot_due_s = every_s, self._began_s + every_s
        return self._build()

    def _follow(self, order: Rejoin) -> list[Action]:
        if self._order is not None and order.incarnation <= self._order.incarnation:
            return []
        self._order = order
        # A restoring under way is answered first; what is only being fetched is not.
        restoring = self.state is State.BUILDING and not self._files.wanted
        return [] if restoring else self._build()

    def _build(self) -> list[Action]:
        assert self._order is not None and self._welcome is not None
        self.state, self._following = State.BUILDING, self._order
        match self._order.restore:
            case "keep":  # in a process that has nothing to keep yet, as at the beginning
                restore = Restore(Origin.KEPT if self._has_state else Origin.BEGINNING)
            case "initial":
                restore = Restore(Origin.BEGINNING, discard=True)
            case _ if self._order.restore == SNAPSHOTS:
                restore = Restore(Origin.FARTHEST, self._welcome.cut)
            case cut:
                restore = Restore(Origin.CUT, cut, discard=True)
        self._restore = restore
        self._want(restore)
        return self._fetch_next()

    def _restored(self, event: Restored, now: float) -> list[Action]:
        self._has_state = True
        if event.counts is not None:
            self.counts.restore(event.counts)
        if self._following is not self._order:
            return self._build()
        self.state = State.BUILT
        built = Built(
            incarnation=self._incarnation,
            parameters=event.parameters,
            position=self.counts.position,
            updates=self.counts.updates,
            read=self.counts.read,
            notes=[*self._notes(event), *event.notes],
            sources=dict(self._sources),
        )
        return [Send(COORDINATOR, built)]

    def _notes(self, event: Restored) -> list[str]:
        """Tell the user if the stage could not be taken from its last snapshot."""
        assert self._restore is not None
        if self._restore.origin is not Origin.FARTHEST or event.place == SNAPSHOTS:
            return []
        why, stages = "; ".join(event.unusable), ", ".join(self._stages)
        if not event.place:
            return [f"{why}; {stages} begin anew"]
        why = why or "its state there is newer than its last snapshot"
        return [f"{why}; {stages} from {event.place}, batch {self.counts.position:,}"]

    def _join(self, connect: Connect) -> list[Action]:
        """Claim the stages only now that all are built: a run that fails until then takes its
        folder away again."""
        assert self._welcome is not None
        self.state, self._connect = State.CONNECTING, connect
        claim = (self._welcome.term, connect.incarnation) if self._welcome.folder else None
        return [Join(connect, claim)]

    def _joined(self, event: Joined, now: float) -> list[Action]:
        """The round begins: the worker greets its neighbours, and gets what has come early."""
        if self.state is not State.CONNECTING or self._connect is None:
            return []
        self.worker = worker = self._make_worker(self.counts)
        worker.joined(self._connect, senders_known=event.senders_known)
        self._handle, self._phase = self._watch(worker), worker.phase
        self.buffers = Buffers()
        self._files.outgoing.clear(self._incarnation)
        self._report_s = now + _REPORT_EVERY_S
        self.state = State.ROUND
        actions: list[Action] = [Send(COORDINATOR, accused) for accused in event.accused]
        actions += self._hand(Woke(), now)
        early, self._early = self._early, []
        return [*actions, Redeliver(early)] if early else actions

    # --- a round ---------------------------------------------------------------------------------

    def _received(self, event: Received, now: float) -> list[Action]:
        message = event.message
        if self.state is not State.ROUND:
            return self._sort(message, now)
        own = self._own.get(type(message))
        if own is not None:
            return own(message, now)
        actions = self._hand(event, now)
        if type(message) is Lost:
            actions.append(Lose(message.worker))
        return actions

    def _hand(self, event: Event, now: float) -> list[Action]:
        """Hand it to the worker. Of its actions a `Compute` comes last."""
        actions = self._handle(event, now)
        if actions:
            if type(actions[-1]) is Compute:
                self._busy = True
            if self._read:
                self._read -= {action.batch for action in actions if type(action) is Release}
        if self.worker.phase is not self._phase:  # type: ignore[union-attr]
            return self._phase_changed(actions, now)
        return actions

    def _phase_changed(self, actions: list[Action], now: float) -> list[Action]:
        assert self.worker is not None
        self._phase = self.worker.phase
        if self._phase is Phase.DRAINED:  # the coordinator adds up at each barrier
            at = next(index for index, action in enumerate(actions) if _says_drained(action))
            return [*actions[:at], Report(self.worker.counters()), *actions[at:]]
        if self._phase is Phase.LEFT:
            (stop,) = [action for action in actions if isinstance(action, Stop)]
            actions = [action for action in actions if action is not stop]
            return [*actions, *self._end_round(), *self._stopped(stop)]
        return actions

    def _computed(self, event: Computed, now: float) -> list[Action]:
        self._busy = False
        op = event.op
        if op.kind is OpKind.READ and not op.evaluate:
            self._read.add(op.batch)
        actions = self._hand(event, now)
        if op.copy is not None and op.last and self.worker is not None:
            actions.insert(0, Report(self.worker.counters()))  # before what has been evaluated
        if op.kind is OpKind.UPDATE and now >= self.snapshot_due_s:
            self._snapshot(actions, now)
        if self._report_due or self._held or self._gone:
            self._catch_up(actions, now)
        return actions

    def _catch_up(self, actions: list[Action], now: float) -> None:
        """Do what has waited for the end of an op."""
        assert self.worker is not None
        if self._gone and not (self._busy and self.worker.unapplied):
            actions += self._leave()
            return
        if self._report_due:
            self._report_due = False
            actions.append(Report(self.worker.counters()))
        if self._held and not self._is_amid_update(actions):
            held, self._held = self._held, []
            for event in held:
                actions += self._received(event, now)

    def _is_amid_update(self, actions: Sequence[Action]) -> bool:
        """Whether the next op goes on with a batch's update, which a round would lose that keeps
        what this one has learned."""
        order, following = self._held[0].message, actions[-1] if actions else None
        keeps = isinstance(order, Rejoin | Welcome) and order.restore == "keep"
        return keeps and isinstance(following, Compute) and following.op.kind in _LEARNING

    def _stored(self, event: Stored, now: float) -> list[Action]:
        if self.state is not State.ROUND:
            return []
        if event.paths:
            self._files.stored = event
            return self._files.outgoing.add(event.paths)
        return self._hand(event, now)

    def _unusable(self, event: Unusable, now: float) -> list[Action]:
        """Treat that neighbour as dead from now on."""
        if self.state is not State.ROUND:
            return []
        lost = Received(Lost(event.accused.worker))
        return [Send(COORDINATOR, event.accused), *self._received(lost, now)]

    def _woke(self, event: Woke, now: float) -> list[Action]:
        if self.state is State.HELLO and self._give_up_s is not None and now >= self._give_up_s:
            text = (
                f"no coordinator answered at {self._coordinator} within {self._timeout_s:g} s: "
                "check the address, or wait longer with --timeout"
            )
            return [self._exit(Exit(error=LaunchError(text)))]
        if self.state is State.HELLO and now >= self._complain_s:
            self._complain_s = _NEVER
            text = (
                f"no coordinator has answered at {self._coordinator} for {_PATIENCE_S:g} s: either "
                "it does not run yet, or that port is closed on the way; trying for "
                f"{self._timeout_s:g} s in all (--timeout)"
            )
            return [Say(text)]
        if self.state is State.HELLO and now >= self._hello_s:
            self._hello_s = now + _HELLO_EVERY_S
            return [SayHello()]
        if self.state is not State.ROUND or self.worker is None:
            return []
        due = self.worker.deadline()
        actions = self._hand(event, now) if due is not None and now >= due else []
        if now >= self._report_s:
            self._report_s = now + _REPORT_EVERY_S
            if self._busy:
                self._report_due = True
            else:
                actions.append(Report(self.worker.counters()))
        return actions

    # --- snapshots -------------------------------------------------------------------------------

    def _snapshot(self, actions: list[Action], now: float) -> None:
        """Ask for one before the next op begins, unless the state is half changed."""
        assert self.worker is not None and self._snapshot_every_s is not None
        idle = self._files.outgoing.idle
        if self._phase is Phase.TRAINING and not self.worker.unapplied and idle:
            self.snapshot_due_s = now + self._snapshot_every_s
            actions.insert(len(actions) - self._busy, Snapshot())

    def _snapshot_taken(self, event: SnapshotTaken, now: float) -> list[Action]:
        assert self._snapshot_every_s is not None
        apart_s = max(self._snapshot_every_s, _SNAPSHOTS_APART * event.took_s)
        self.snapshot_due_s = now + apart_s
        if event.error is None:
            return self._files.outgoing.add(event.paths) if self.state is State.ROUND else []
        if self._complained and not event.folder_gone:
            return []
        if event.folder_gone and self.state is not State.ENDED:
            return self._broke(Broke(event.error), now)
        self._complained = True
        return [Say(f"no snapshot was written: {event.error}")]

    # --- files of the run's folder, where that is out of reach -----------------------------------

    def _want(self, restore: Restore) -> None:
        """Note which files are to be fetched for a restoring."""
        files, welcome = self._files, self._welcome
        assert welcome is not None
        files.wanted.clear()
        if not files.away or restore.origin is Origin.KEPT:
            return
        given = bool(welcome.experiment.get("run", {}).get("init_sha256"))
        places = {
            Origin.BEGINNING: [],
            Origin.CUT: [restore.place],
            Origin.FARTHEST: [SNAPSHOTS, restore.place],
        }[restore.origin]
        files.wanted.extend(
            needed(places, self._stages, given=given and restore.origin is not Origin.CUT)
        )

    def _fetch_next(self) -> list[Action]:
        """Fetch what is still wanted, and then restore the stage."""
        assert self._restore is not None
        if not self._files.wanted:
            return [self._restore]
        self._files.incoming = Incoming()
        return [Send(COORDINATOR, Fetch(self._incarnation, self._files.wanted[0]))]

    def _fetched(self, message: Part | Missing) -> list[Action]:
        """A part of a wanted file has come, or there is no such file."""
        files = self._files
        if message.incarnation != self._incarnation or files.wanted[:1] != [message.path]:
            return []  # for an order that is no longer followed
        if isinstance(message, Missing):
            files.wanted.pop(0)
            return self._fetch_next()
        try:
            files.incoming.accept(message)
        except UnexpectedMessage as unexpected:
            raise RemoteProtocolError(f"{message.path}: {unexpected.why}") from None
        return [KeepPart(message, COORDINATOR)]

    def _part_kept(self, event: PartKept, now: float) -> list[Action]:
        part, wanted = event.part, self._files.wanted
        if event.fault:
            raise RemoteProtocolError(event.fault)
        if part.incarnation != self._incarnation or wanted[:1] != [part.path]:
            return []
        end = part.offset + len(part.data)
        taken = Send(COORDINATOR, Taken(part.incarnation, part.path, end))
        if end < part.size:
            return [taken]
        wanted.pop(0)
        return [taken, *self._fetch_next()]

    def _part_sent(self, event: PartSent, now: float) -> list[Action]:
        self._files.took_s += event.took_s
        return self._files.outgoing.part_sent(event)

    def _taken(self, message: Taken, now: float) -> list[Action]:
        """The coordinator has written a part; once it has all, what was saved is stored."""
        files = self._files
        try:
            actions = files.outgoing.taken(message)
        except UnexpectedMessage as unexpected:
            raise RemoteProtocolError(f"{message.path}: {unexpected.why}") from None
        if files.outgoing.idle:
            took_s, files.took_s = files.took_s, 0.0
            self.snapshot_due_s = max(self.snapshot_due_s, now + _SNAPSHOTS_APART * took_s)
        if files.stored is not None and files.outgoing.idle:
            stored, files.stored = files.stored, None
            actions += self._hand(stored, now)
        return actions

    # --- ends ------------------------------------------------------------------------------------

    def _end_round(self) -> list[Action]:
        """Release what no later round will."""
        released: list[Action] = [Release(batch) for batch in sorted(self._read)]
        self._read.clear()
        self._files.outgoing.clear(self._incarnation)
        self._files.stored = None
        self._busy = self._report_due = False
        self._phase = Phase.LEFT
        return released

    def _stopped(self, stop: Stop) -> list[Action]:
        self.state = State.FAILED  # until it follows the order
        if stop.rejoin is not None:
            return self._follow(stop.rejoin)
        if self._gone or not stop.failed:
            return [self._exit(Exit(self._gone))]
        name = self._welcome.stage if self._welcome is not None else self._stage
        return [self._exit(Exit(f"worker {name} was stopped by its coordinator: {stop.failed}"))]

    def _broke(self, event: Broke, now: float) -> list[Action]:
        error = event.error
        was_in_round = self.state is State.ROUND
        actions: list[Action] = self._end_round()
        numbers = was_in_round and isinstance(error, NumericalError)
        if numbers and self.worker is not None:
            actions.append(Report(self.worker.counters()))
        failed = _last_words(self._stage, event)
        actions.append(Send(COORDINATOR, failed))
        if not (numbers and self._roll_back):
            return [*actions, self._exit(Exit(failed.text, error, event.trace))]
        self.state = State.FAILED
        held, self._held = self._held, []
        for one in held:
            actions += self._received(one, now)
        return actions

    def _coordinator_gone(self, event: CoordinatorGone, now: float) -> list[Action]:
        if self._gone:
            return []
        known = self.state is not State.HELLO
        self._gone = f"worker stops: {event.reason}" if known else event.reason
        return [] if self._busy else self._leave()

    def _parent_gone(self, event: ParentGone, now: float) -> list[Action]:
        """Leave if nobody has answered yet; later on the coordinator's silence tells that it is
        gone, after the update under way."""
        if self.state is not State.HELLO:
            return []
        reason = "the process that started this worker is gone"
        return self._coordinator_gone(CoordinatorGone(reason), now)

    def _leave(self) -> list[Action]:
        """Keep what has been learned, unless the state is half changed."""
        end = Exit(self._gone)
        whole = self.state is State.ROUND and self.worker is not None and not self.worker.unapplied
        keeps = whole and self._snapshot_every_s is not None
        return [Snapshot(last=True), self._exit(end)] if keeps else [self._exit(end)]

    def _exit(self, end: Exit) -> Exit:
        self._end_round()
        self._held.clear()
        self.state = State.ENDED
        return end


def is_settled(op: Op) -> bool:
    """Whether nothing that arrives could change what follows an op: in the middle of a batch's own
    update. A driver need not look at what has arrived behind it."""
    return op.kind is OpKind.PREDICT or (op.kind is OpKind.BACKWARD and op.learn and not op.last)


def _nothing(event: Event, now: float) -> list[Action]:
    """What stands for `Worker.handle` before the first round."""
    raise AssertionError(event)


def _says_drained(action: Action) -> bool:
    return isinstance(action, Send) and isinstance(action.message, Drained)


def _last_words(stage: str, broke: Broke) -> Failed:
    """What the coordinator is told of an error."""
    match broke.error:
        case NumericalError() as error:
            return Failed(type(error).__name__, str(error), "", error.batch)
        case AsyncDNIError() as error:
            return Failed(type(error).__name__, str(error), "")
        case KeyboardInterrupt():
            return Failed(Interrupted.__name__, f"worker {stage} was interrupted", "")
        case MemoryError() as error:
            text = f"worker {stage} is out of memory: {str(error) or 'no more could be allocated'}"
            return Failed(MemoryError.__name__, text, "")
        case error:
            text = f"worker {stage} failed: {type(error).__name__}: {error}"
    where = f": {broke.log}" if broke.log else ""
    text += f"; its log has the traceback{where}"
    return Failed(AsyncDNIError.__name__, text, broke.trace)
