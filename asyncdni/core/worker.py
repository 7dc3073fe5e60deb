"""The logic of one worker: a state machine without I/O, clocks, randomness or arrays.

```
  Start        barrier behind the        all due gradients        Evaluate: test batches,
    │          last activation           applied: Drained         Save, then Resume
    ▼                 │                        │                        │
 IDLE ──► TRAINING ───┴──► TRAINING, closed ───┴──► DRAINED ────────────┴──► TRAINING | LEFT
```

Rules:
1. At most one op is under way. Which one comes next during training is the schedule's choice alone;
   here it is only started, and what follows from it is sent.
2. A finished Forward sends the activation to every consumer, a finished Backward each producer its
   gradient; a started Forward may grant the producers credit.
3. The host of the data reads one batch ahead, and sets the barriers of the plan.
4. A batch that a producer has skipped can't be used: consumers and producers are told, and it
   counts as having passed.
5. No forward takes a link beyond its bound on lag.
6. A dead neighbour is not waited for, and nothing is sent to it. A neighbour that sends what does
   not fit is treated as dead, and the coordinator hears of it, with the story of the batch.
7. An Update of weights that other workers have too is made in two steps: it hands its gradients to
   them, and an Apply makes the step once theirs have come; in the order of batches, before the next
   forward or when there is nothing else to do. A stage drains of these as well.
   Copies of weights that generators elsewhere read are taken, and taken over, between two ops.
8. Before `Start` a worker greets its neighbours, and is ready once their greetings have come.
9. A worker lives for one round. An order to join the next one ends it; its `Counts` go on.

An arriving gradient passes `Worker.handle` (here), `Mail` (is it expected?), `Flights` (where it is
kept), and the schedule, which sees it through `StageView` and names the op that uses it; `_start`
then hands it over with the op.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from asyncdni.core.behind import BEST, Marks
from asyncdni.core.counts import Counts
from asyncdni.core.events import (
    Action,
    Compute,
    Computed,
    Discard,
    Event,
    Received,
    Release,
    Save,
    Stop,
    Stored,
    Woke,
)
from asyncdni.core.flights import Copies, Flights, Guard, Lag, Shares
from asyncdni.core.inputs import Inputs, Replay
from asyncdni.core.ledger import is_cut
from asyncdni.core.links import Links
from asyncdni.core.position import CHECKPOINT, Barriers, Host, Position
from asyncdni.core.post import PATIENCE_S, Greetings, Post, Story, UnexpectedMessage
from asyncdni.errors import RemoteProtocolError
from asyncdni.messages import (
    COORDINATOR,
    DATA,
    Abort,
    Activation,
    Barrier,
    Close,
    Connect,
    Credit,
    Evaluate,
    Gradient,
    Greeting,
    Leave,
    Lost,
    Message,
    Rejoin,
    Resume,
    Saved,
    Scored,
    Shared,
    Skipped,
    Start,
    Weights,
)
from asyncdni.messages import Save as SaveOrder
from asyncdni.schedules.base import Flight, Op, OpKind, Schedule

__all__ = ["Mail", "Parts", "Phase", "Results", "StageView", "Worker"]

# --- what a worker consists of -------------------------------------------------------------------


@dataclass(slots=True)
class Parts:
    """The state of one worker: each subject has one owner, which everybody else asks."""

    position: Position  # where the worker stands in the network
    counts: Counts  # what has been done, over all rounds
    flights: Flights  # batches forwarded and not yet given up
    inputs: Inputs  # batches on their way in
    links: Links  # credit, both ways
    barriers: Barriers  # the current one and the next
    host: Host | None  # position in the data; None: another worker hosts them
    lag: Lag  # the bound on staleness
    guard: Guard | None  # whether the generator can be trusted; None: it always is
    shares: Shares  # gradients of weights that other workers have as well
    marks: Marks  # where weights are copied, to be evaluated behind the stream
    copies: Copies  # weights that generators of other workers read out through
    skips: bool  # a consumer without credit is skipped instead of waited for

    def begin(self, connect: Connect) -> None:
        """Take note of where the data and the barriers stand as a round begins."""
        self.counts.begin(connect.start)
        self.flights.begin(connect.start)
        self.inputs.begin(connect.start)
        self.barriers.begin(connect.barrier)
        self.marks.begin(connect.start)
        if self.host is not None:
            self.host.begin(connect.planned)

    def lose(self, worker: str) -> None:
        """Wait for nothing from a dead neighbour, and send it nothing, until a new round."""
        self.links.lose(worker)
        self.marks.give_up()
        if worker in self.position.consumers:
            self.flights.lose(worker)
        for node in self.position.inputs:
            if self.position.home(node) == worker != self.position.name:
                self.inputs.lose(node)

    @property
    def settled(self) -> bool:
        """No batch is in flight, every gradient has been applied, and no copy is evaluated."""
        flights = self.flights
        idle = not (flights.by_batch or flights.unapplied or self.shares.pending)
        return idle and self.marks.settled

    def counters(self) -> dict[str, float | int | None]:
        """For reports: what has been done, and how long the queues are right now."""
        return {
            **self.counts.counters(),
            "queue": len(self.inputs.train),
            "in_flight": len(self.flights),
            "waiting": int(self.guard is not None and self.guard.waiting),
            "window": self.links.window(),
        }

    def check(self) -> None:
        """Assert every invariant of the parts."""
        for part in (self.flights, self.inputs, self.links, self.marks):
            part.check()
        self.lag.check(self.flights)
        self.shares.check(self.flights.last_forwarded)
        if self.host is not None:
            assert self.counts.position <= self.host.read


class StageView:
    """What a schedule may know of a worker: see `schedules.base.View`.

    Collections are those of their owners, so that a schedule reads them without a call."""

    def __init__(self, parts: Parts) -> None:
        position = parts.position
        self._name = position.name
        self._parts = parts
        self._flights = parts.flights
        self._inbox = parts.inputs.train
        self._barriers = parts.barriers
        self.has_consumers = bool(position.consumers)
        self.has_producers = bool(position.producers)
        self.has_readers = bool(position.feeds or position.train_feeds)
        self.flights: Mapping[int, Flight] = parts.flights.by_batch
        self.arrived: Sequence[int] = parts.flights.arrived
        self.true_inputs: Sequence[int] = parts.inputs.true.ready

    @property
    def ready(self) -> Sequence[int]:
        ready, parts = self._inbox.ready, self._parts
        if not ready or not (parts.skips or parts.links.may_send(self._name)):
            return ()
        held = not parts.lag.drop and parts.lag.overdue(ready[0], self._flights) is not None
        if held or (parts.shares.pending and parts.shares.hold(ready[0])):
            return ()
        if parts.marks.due and parts.marks.hold(ready[0]):
            return ()
        return ready

    @property
    def queued(self) -> int:
        return len(self._inbox)

    @property
    def last(self) -> int:
        return self._flights.last

    @property
    def newest(self) -> Flight | None:
        return self._flights.newest

    @property
    def hopeless(self) -> Sequence[int]:
        return self._flights.hopeless

    @property
    def replayable(self) -> Sequence[int]:
        return self._parts.inputs.replay.preferred

    @property
    def waiting(self) -> bool:
        guard = self._parts.guard
        return guard is not None and guard.waiting

    @property
    def unapplied(self) -> int:
        return self._flights.unapplied

    @property
    def closed(self) -> bool:
        return self._barriers.closed


# --- what has arrived ----------------------------------------------------------------------------

_NOBODY = -1  # no process has this incarnation


class Mail:
    """The receiving end of all links between workers: what neighbours send is held against what
    they may send, and handed to the part that it is for.

    Every method that takes a message raises `UnexpectedMessage` where it does not fit."""

    def __init__(self, parts: Parts) -> None:
        self.incarnations: dict[str, int] = {}  # of the neighbours
        self._position = parts.position
        self._counts = parts.counts
        self._flights = parts.flights
        self._links = parts.links
        self._inputs = parts.inputs
        self._shares = parts.shares
        self._copies = parts.copies
        self._barriers = parts.barriers

    def is_current(self, message: Message) -> bool:
        """False for what an older process of that worker has left on the wire."""
        home = self._position.home(getattr(message, "sender", ""))
        if home == self._position.name:
            raise UnexpectedMessage
        known = self.incarnations.get(home)
        return known is None or known == getattr(message, "incarnation", known)

    def fits_its_link(self, message: Message) -> bool:
        """Such a message goes from its sender to here at all."""
        sender, position = getattr(message, "sender", ""), self._position
        match message:
            case Activation() | Barrier():
                return sender in position.inputs
            case Gradient():
                return sender in position.consumers
            case Shared():
                return sender in position.sharers
            case Weights():
                return sender == position.reads
            case Credit(node=node):
                return (node, sender) in self._links.outgoing
        return sender in (*position.inputs, *position.consumers)

    def lose(self, worker: str) -> None:
        """Ignore whatever a dead neighbour has sent before its death."""
        self.incarnations[worker] = _NOBODY

    def received(self, message: Message, now: float, *, testing: bool) -> None:
        """Hand a current message on; `testing`: the worker has drained, so it may be a test."""
        match message:
            case Activation():
                self._activation(message, now, testing)
            case Gradient():
                self._gradient(message)
            case Shared(sender=sender, batch=batch, tensors=tensors):
                _expect(self._shares.came(sender, batch, tensors))
            case Weights(sender=sender, version=version, tensors=tensors):
                _expect(self._copies.came(sender, version, tensors))
            case Skipped():
                self._skipped(message)
            case Credit():
                self._credit(message)
            case Barrier(sender=sender, barrier=barrier, kind=kind):
                _expect(self._barriers.fits(sender, barrier, kind))
                self._barriers.arrived(sender, barrier, kind)
            case _:
                raise UnexpectedMessage

    def _activation(self, message: Activation, now: float, testing: bool) -> None:
        _expect(testing if message.evaluate else not message.last)
        links = self._links.tests_in if message.evaluate else self._links.incoming
        link = links.get(message.sender)
        if link is None or link.received >= link.allowed:
            raise UnexpectedMessage
        self._check_rows(message)
        link.arrived(message.waited, now)
        fits = self._inputs.add(
            message.batch,
            message.sender,
            message.samples,
            message.tensors,
            evaluate=message.evaluate,
            last=message.last,
        )
        _expect(fits)

    def _gradient(self, message: Gradient) -> None:
        batch, sender = message.batch, message.sender
        _expect(self._may_answer(sender, batch) and not self._flights.gave(batch, sender))
        # One that nobody waits for any more is counted, and that is all.
        self._counts.late += not self._flights.gradient(batch, sender, message.tensors)

    def _skipped(self, message: Skipped) -> None:
        batch, sender = message.batch, message.sender
        if sender in self._position.inputs:
            _expect(self._inputs.skip(batch, sender))
            return
        _expect(self._may_answer(sender, batch))
        self._flights.skip(batch, sender)

    def _credit(self, message: Credit) -> None:
        links = self._links.tests_out if message.evaluate else self._links.outgoing
        link = links.get((message.node, message.sender))
        if link is None:
            raise UnexpectedMessage
        taken, allowed = message.taken, message.allowed
        if not link.fits(taken, allowed):
            raise UnexpectedMessage(f"of {link.sent} sent it says {taken} taken, {allowed} allowed")
        link.granted(taken, allowed)

    def _may_answer(self, sender: str, batch: int) -> bool:
        """A consumer, about a batch that was sent to it, or will be if it need not wait for it."""
        known = batch <= self._flights.last or self._position.consumers_ahead
        return sender in self._position.consumers and batch >= 0 and known

    def _check_rows(self, message: Activation) -> None:
        """An activation has the samples of its batch, and is the last of the test set or not."""
        rows, batch, evaluate = self._position.rows, message.batch, message.evaluate
        if rows is None:
            return
        due = rows.of_test(batch) if evaluate else rows.of(batch)
        if message.samples != due:
            raise UnexpectedMessage(f"it has {message.samples} rows, not {due}")
        last = evaluate and rows.ends_test(batch)
        if message.last != last:
            end = "the last" if last else "not the last"
            raise UnexpectedMessage(f"that batch is {end} of the test set")


def _expect(fits: bool) -> None:
    if not fits:
        raise UnexpectedMessage


# --- what has been computed ----------------------------------------------------------------------


class Results:
    """One method for each kind of op, called when such an op is done: what follows from it is
    counted, kept, given up and sent."""

    def __init__(self, parts: Parts, post: Post) -> None:
        self._parts = parts
        self._post = post
        self._name = parts.position.name
        self._flights = parts.flights
        self._counts = parts.counts
        self._scores: dict[str, Any] = {}  # of the test under way, by stage with a loss
        # A table, as this is asked after every op of a run.
        self._after = {
            OpKind.READ: self._read,
            OpKind.FORWARD: self._forwarded,
            OpKind.PREDICT: self._done,
            OpKind.BACKWARD: self._went_back,
            OpKind.LEARN: self._done,
            OpKind.UPDATE: self._handed_over if parts.position.sharers else self._updated,
            OpKind.COPY: self._copied,
            OpKind.ADOPT: self._nothing,
            OpKind.APPLY: self._nothing,  # the Update before it has been counted
            OpKind.FIT: self._fitted,
            OpKind.FIT_INPUT: self._nothing,  # nobody waits for that
            OpKind.EVALUATE: self._evaluated,
            OpKind.HOLD: self._held_copy,
        }

    def note(self, event: Computed, op: Op, now: float) -> None:
        """An op is done."""
        kind = op.kind
        self._counts.ops += 1
        self._after[kind](event, op, now)
        if op.last and kind is not OpKind.EVALUATE and op.batch in self._flights.by_batch:
            self.release(op.batch)

    def release(self, batch: int) -> None:
        """Forget a batch in flight, and have its forward state let go of."""
        self._flights.release(batch)
        self._post.actions.append(Release(batch))

    def give_up(self, batch: int) -> None:
        """Wait for a batch's gradient no longer, and tell those who wait for ours."""
        self._counts.dropped += 1
        self.release(batch)
        self._post.skipped(batch)

    def _nothing(self, event: Computed, op: Op, now: float) -> None:
        pass

    def _done(self, event: Computed, op: Op, now: float) -> None:
        self._flights.done(op, now)

    def _updated(self, event: Computed, op: Op, now: float) -> None:
        self._flights.done(op, now)
        self._parts.copies.updated(self._counts.updates)

    def _copied(self, event: Computed, op: Op, now: float) -> None:
        self._post.weights(event, op, self._parts.copies.copied(op.batch))

    def _went_back(self, event: Computed, op: Op, now: float) -> None:
        self._flights.done(op, now)
        self._post.gradients(event, op)

    def _handed_over(self, event: Computed, op: Op, now: float) -> None:
        """An Update of weights that others have as well: an Apply follows once theirs are here."""
        self._flights.done(op, now)
        self._parts.shares.handed_over(op.batch)
        self._post.shares(event, op)

    def _fitted(self, event: Computed, op: Op, now: float) -> None:
        self._flights.done(op, now)
        guard = self._parts.guard
        if guard is not None and guard.note(event.cosine):
            self._counts.fallbacks += guard.waiting
            self._post.guarded(guard.waiting, guard.mean)

    def _forwarded(self, event: Computed, op: Op, now: float) -> None:
        flights, counts, parts = self._flights, self._counts, self._parts
        flights.forwarded(op.batch, event.samples, now)
        if op.replay:
            return
        counts.batches += 1
        counts.samples += event.samples
        parts.lag.forwarded(op.batch, flights)
        parts.marks.turn = True
        without = self._post.activation(self._name, event, op, skips=parts.skips)
        for consumer in without:
            flights.skip(op.batch, consumer)
        counts.skipped += bool(without)
        if op.skip:
            self._post.skipped(op.batch)

    def _read(self, event: Computed, op: Op, now: float) -> None:
        parts = self._parts
        assert parts.host is not None
        parts.host.has_read(op)
        if DATA in parts.links.incoming:  # the host itself reads them, too
            links = parts.links.tests_in if op.evaluate else parts.links.incoming
            links[DATA].arrived(False, now)
            parts.inputs.add(
                op.batch,
                DATA,
                event.samples,
                event.outputs,
                evaluate=op.evaluate,
                last=op.last,
            )
        self._post.activation(DATA, event, op, skips=parts.skips and not op.evaluate)

    def _evaluated(self, event: Computed, op: Op, now: float) -> None:
        self._post.activation(self._name, event, op)
        for score in event.scores:
            if score.stage in self._scores:
                self._scores[score.stage].add(score)
            else:
                self._scores[score.stage] = score
        if op.last:
            barrier, scores, self._scores = self._parts.barriers.current, self._scores.values(), {}
            if op.copy is None:
                self._post.evaluated(barrier, scores)
            elif (facts := self._parts.marks.facts(op.copy, now)) is not None:
                self._parts.marks.tested(op.copy)
                self._post.evaluated(barrier, scores, op.copy, *facts)

    def _held_copy(self, event: Computed, op: Op, now: float) -> None:
        self._parts.marks.copied(op.batch, self._counts.samples, now)


#: Ops that work on what has come from producers.
_TAKING = frozenset({OpKind.FORWARD, OpKind.EVALUATE, OpKind.FIT_INPUT})
#: Ops that work on what has come from consumers.
_GRADED = frozenset({OpKind.BACKWARD, OpKind.FIT})


class Phase(Enum):
    IDLE = "idle"
    TRAINING = "training"
    DRAINED = "drained"
    LEFT = "left"


class Worker:
    """One stage's part in a run, for one round.

    `Mail` takes in what neighbours send, `Results` what has been computed; this class obeys the
    coordinator, has the schedule choose the next op and starts it."""

    def __init__(
        self,
        position: Position,
        schedule: Schedule,
        *,
        window: int | str = "auto",
        window_max: int = 256,
        lag: Lag | None = None,
        skips: bool = False,
        replay: Replay | None = None,
        guard: Guard | None = None,
        shares: Shares | None = None,
        copies: Copies | None = None,
        counts: Counts | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`skips`: towards a consumer without credit it learns on instead of waiting.

        `shares`: of weights that it has in common with others; `copies`: of weights that others
        read; `counts`: what has been done in
        earlier rounds; `patience_s`: see `Greetings`."""
        self.phase = Phase.IDLE
        self.position = position
        self.schedule = schedule
        self.counts = counts = counts or Counts()
        self.parts = parts = Parts(
            position=position,
            counts=counts,
            flights=Flights(position.consumers, counts),
            inputs=Inputs(position, replay),
            links=Links(position, window, window_max),
            barriers=Barriers(position.inputs),
            host=Host(position, counts) if position.hosts_data else None,
            lag=lag or Lag(),
            guard=guard,
            shares=shares or Shares(),
            marks=Marks(position.marks),
            copies=copies or Copies(),
            skips=skips,
        )
        parts.lag.carry(counts.lags)
        self.view = StageView(parts)
        self._flights = parts.flights
        self._inputs = parts.inputs
        self._links = parts.links
        self._barriers = parts.barriers
        self._host = parts.host
        self._lag = parts.lag
        self._shares = parts.shares
        self._marks = parts.marks
        self._copies = parts.copies
        self._skips = skips
        self._post = Post(position, parts.links)
        self._mail = Mail(parts)
        self._results = Results(parts, self._post)
        self._greetings = Greetings(self._post, patience_s)
        self._story = Story(position.name)
        self._senders_known = True
        self._busy: Op | None = None  # the op under way

    def joined(self, connect: Connect, *, senders_known: bool = True) -> None:
        """The coordinator has said which processes the neighbours are, and where the data stand.

        `senders_known`: whoever a message says it is from has sent it, as keys prove. Where that is
        not so, a message that its sender would have no reason to send is taken to be somebody
        else's, and its sender is not accused."""
        self._senders_known = senders_known
        self._post.incarnation = connect.incarnation
        self._mail.incarnations = dict(connect.incarnations)
        self._greetings.begin(connect.incarnations)
        self.parts.begin(connect)

    # --- the contract of a machine ---------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """See `events.Machine`. Raises `RemoteProtocolError` for what the coordinator must not
        send."""
        actions: list[Action] = []
        self._post.actions = actions
        if self.phase is Phase.LEFT:
            return actions
        if type(event) is Computed:  # no `match`, which is slow: nearly all events are these two
            op = event.op
            self._story.did(now, op)
            assert op == self._busy, (op, self._busy)
            self._busy = None
            self._results.note(event, op, now)
        elif type(event) is Received:
            self._story.received(now, event.message)
            self._received(event.message, now)
        elif type(event) is Stored:
            self._post.send(COORDINATOR, Saved(event.tag, event.files))
            if event.tag == BEST:
                self._discard(self._marks.saved())
        elif type(event) is not Woke:
            raise TypeError(f"a worker has no use for {event!r}")
        elif self.phase is Phase.IDLE:
            self._greetings.go_on(now)
        if self._busy is None:
            self._advance(now)
        return actions

    def deadline(self) -> float | None:
        """When to greet again; from `Start` on a worker waits for events alone."""
        return self._greetings.deadline() if self.phase is Phase.IDLE else None

    def check(self) -> None:
        """Assert every invariant."""
        self.parts.check()
        if self.phase is Phase.DRAINED:  # inputs of what comes after the barrier may be here
            assert self.parts.settled

    # --- what others may ask ---------------------------------------------------------------------

    @property
    def unapplied(self) -> int:
        """Backwards accumulated since the last Update."""
        return self._flights.unapplied

    def counters(self) -> dict[str, float | int | None]:
        """For reports: what has been done, and how long the queues are right now."""
        return self.parts.counters()

    def story(self, batch: int) -> str:
        """All that happened to a batch here, one line an event, oldest first."""
        return self._story.of(batch)

    # --- what arrives ----------------------------------------------------------------------------

    def _received(self, message: Message, now: float) -> None:
        """A message that does not fit is its sender's fault: a neighbour is accused and ignored
        from then on, the coordinator's ends the worker."""
        sender = getattr(message, "sender", None)
        try:
            if sender is None:
                self._ordered(message)
            elif not self._mail.is_current(message):
                return
            elif isinstance(message, Greeting):
                self._greeted(message)
            else:
                testing = self.phase is Phase.DRAINED or bool(self.position.marks)
                self._mail.received(message, now, testing=testing)
        except UnexpectedMessage as unexpected:
            text = self._story.unexpected(self.phase.value, message, unexpected.why)
            if sender is None:
                raise RemoteProtocolError(text) from None
            if self._senders_known or self._mail.fits_its_link(message):
                self._accuse(self.position.home(sender), message, text)

    def _greeted(self, greeting: Greeting) -> None:
        """One that was meant for another worker says only that an address is wrong."""
        if greeting.to == self.position.name and self.phase is Phase.IDLE:
            self._greetings.heard(greeting.sender)

    def _accuse(self, worker: str, message: Message, text: str) -> None:
        if worker not in self._mail.incarnations:
            return  # not from a neighbour: nobody can tell who has sent it
        self._post.accused(worker, getattr(message, "incarnation", 0), text)
        self._lose(worker)

    def _lose(self, worker: str) -> None:
        self._mail.lose(worker)
        self.parts.lose(worker)

    def _ordered(self, message: Message) -> None:
        """Obey the coordinator."""
        match message:
            case Start():
                _expect(self.phase is Phase.IDLE)
                self.phase = Phase.TRAINING
            case Evaluate(barrier=barrier):
                self._expect_at(barrier)
                if self._host is not None:
                    self._host.begin_test()
            case Resume(barrier=barrier):
                self._expect_at(barrier)
                self.phase = Phase.TRAINING
                self._barriers.lift()
                self._links.pause()
                self._inputs.replay.clear()
            case Scored(copy=copy, best=best):
                self._discard(self._marks.scored(copy, best=best))
            case SaveOrder(tag=tag, copy=copy):
                _expect(self.phase is Phase.DRAINED and copy in (None, self._marks.best))
                self._post.actions.append(Save(tag, is_cut(tag), copy))
            case Leave():
                self._leave(Stop())
            case Abort(text=text):
                self._leave(Stop(text or "aborted"))
            case Close(kind=kind):
                # A barrier that is being set will do for a checkpoint; another would follow it.
                if self._host is not None and not (self._barriers.closed and kind == CHECKPOINT):
                    self._host.close(kind)
            case Lost(worker=worker):
                self._lose(worker)
            case Rejoin():
                for batch in list(self._flights.by_batch):
                    self._results.release(batch)
                self._leave(Stop(rejoin=message))
            case _:
                raise UnexpectedMessage

    def _discard(self, copies: Iterable[int]) -> None:
        self._post.actions += map(Discard, copies)

    def _leave(self, stop: Stop) -> None:
        self.phase = Phase.LEFT
        self._post.actions.append(stop)

    def _expect_at(self, barrier: int) -> None:
        _expect(self.phase is Phase.DRAINED and barrier == self._barriers.current)

    # --- what comes next -------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        """Start the next op, if there is one; otherwise see whether a barrier can be passed."""
        if self._inputs.any_skipped:
            self._pass_over(now)
        op: Op | None = None
        if self.phase is Phase.TRAINING:
            op = self._next_op()
            if op is None:
                self._links.idle()
                if self._barriers.closed:
                    self._pass_barrier()
        elif self.phase is Phase.DRAINED and self._barriers.kind != CHECKPOINT:
            op = self._next_test_op(None)
        if op is not None:
            self._start(op, now)

    def _pass_over(self, now: float) -> None:
        """Skip batches that can't be used, and tell all that send to this stage or get from it."""
        for batch, nodes, in_training in self._inputs.voids():
            self._post.credit(now, nodes)
            if in_training:
                self.counts.missed += 1
                self._flights.missed(batch)
                self._post.missed(batch)
                self._post.skipped(batch)

    def _next_op(self) -> Op | None:
        """The next op of training, or of an evaluation behind it in its turn."""
        op = self._next_training_op()
        return self._next_op_behind() if op is None and self.position.marks else op

    def _next_training_op(self) -> Op | None:
        copy = self._copies.next_op()
        if copy is not None:
            return copy
        op = self._scheduled()
        if self._shares.pending and (op is None or op.kind is OpKind.FORWARD):
            shared = self._shares.complete
            if shared is not None:  # and not in the middle of a batch's own update
                return Op(OpKind.APPLY, shared)
        if self.position.marks and (op is None or op.kind is OpKind.FORWARD):
            behind = self._next_op_between()
            if behind is not None:
                return behind
        host = self._host
        if op is not None or host is None or self._barriers.closed:
            return op
        if host.at_barrier():
            self._barriers.set(host.set_barrier())
            self._post.barrier(DATA, self._barriers)
            return self._scheduled()  # it may have waited for the stage to close
        may_read = not self._inputs.train.ready and self.schedule.may_read(self.view)
        may_send = self._skips or self._links.may_send(DATA)
        return host.next_read() if may_read and may_send else None

    def _scheduled(self) -> Op | None:
        """The schedule's choice, once all has been given up that is to be given up first."""
        while (op := self.schedule.next_op(self.view)) is not None:
            if op.kind is OpKind.DROP:
                self._results.give_up(op.batch)
                continue
            if op.kind is not OpKind.FORWARD or op.replay:
                return op
            overdue = self._lag.overdue(op.batch, self._flights)
            if overdue is None:
                return op
            self._results.give_up(overdue)
        return None

    def _next_op_between(self) -> Op | None:
        """What an evaluation behind the stream needs between two training batches, if anything."""
        mark = self._marks.reached(self._flights.last)
        if mark is not None:
            return Op(OpKind.HOLD, mark)
        return self._next_op_behind() if self._marks.turn else None

    def _next_op_behind(self) -> Op | None:
        """The next test batch for a copy of the weights, if it is here or may be read."""
        copy = self._marks.testing
        if copy is None:
            return None
        if self._host is not None and self._marks.begin_read():
            self._host.begin_test()
        return self._next_test_op(copy)

    def _next_test_op(self, copy: int | None) -> Op | None:
        if self._inputs.test.ready:
            may_send = self._links.may_send(self.position.name, evaluate=True)
            first = self._inputs.test.ready[0]
            return Op(OpKind.EVALUATE, first, copy=copy) if may_send else None
        host = self._host
        if host is not None and host.testing and self._links.may_send(DATA, evaluate=True):
            return host.next_test_read()
        return None

    def _start(self, op: Op, now: float) -> None:
        inputs: dict[str, Any] = {}
        if op.kind in _TAKING:
            if op.kind is OpKind.FORWARD:
                self.counts.queue.add(len(self._inputs.train))
                self.counts.replays += op.replay
            arrival, nodes = self._inputs.take(op)
            inputs = arrival.tensors
            if op.kind is OpKind.EVALUATE:
                op = Op(op.kind, op.batch, last=arrival.last, copy=op.copy)
                self._marks.turn = False
                self._links.pause()  # the window is for training's rate
            self._post.credit(now, nodes, evaluate=op.kind is OpKind.EVALUATE)
        elif op.kind in _GRADED:
            inputs = self._flights.gradients(op.batch)
        elif op.kind is OpKind.APPLY:
            inputs = self._shares.take(op.batch)
        elif op.kind is OpKind.ADOPT:
            inputs = self._copies.take()
        self._busy = op
        self._post.actions.append(Compute(op, inputs))

    def _pass_barrier(self) -> None:
        """Behind the last activation to every consumer; to the coordinator once all is applied."""
        barriers = self._barriers
        if not barriers.passed and not len(self._inputs.train):
            barriers.passed = True
            self._post.barrier(self.position.name, barriers)
        if barriers.passed and self._inputs.empty and self.parts.settled:
            self.phase = Phase.DRAINED
            self._post.drained(barriers, self.counts.position)
