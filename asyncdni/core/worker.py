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
   gradient, a started Forward may grant the producers credit.
3. The host of the data reads one batch ahead, and sets the barriers of the plan.
4. A batch that a producer has skipped is void: consumers and producers are told, and it counts as
   having passed.
5. No forward takes a link beyond its bound on lag.
6. A neighbour that is dead is not waited for, and nothing goes there. One that sends what does not
   fit is as good as dead: the coordinator hears of it, with the story of the batch.
7. An Update of weights that other workers have too is made in two: it hands its gradients to them,
   and an Apply steps once theirs have come; in the order of batches, before the next forward or
   when there is nothing else to do. A stage drains of it, too.
8. Before `Start` it greets its neighbours, and is ready once their greetings have come.
9. A worker lives for one round. A word to join the next one ends it; its `Counts` go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from asyncdni.core.counts import Counts
from asyncdni.core.events import (
    Action,
    Compute,
    Computed,
    Event,
    Received,
    Release,
    Save,
    Stop,
    Stored,
    Woke,
)
from asyncdni.core.flights import Flights, Guard, Lag
from asyncdni.core.inputs import Inputs, Mail, Replay
from asyncdni.core.links import PATIENCE_S, Greetings, Links
from asyncdni.core.position import CHECKPOINT, Barriers, Host, Position
from asyncdni.core.post import Post, Story
from asyncdni.core.shares import Shares
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
    Shared,
    Skipped,
    Start,
)
from asyncdni.messages import Save as SaveOrder
from asyncdni.schedules.base import Flight, Op, OpKind, Schedule

__all__ = ["Arrivals", "Phase", "Worker", "WorkerView"]

# --- view ----------------------------------------------------------------------------------------
#
# What a worker consists of, and what its schedule and its reports may know of that.
#
# The parts: flights (batches in flight), inputs (batches on their way in), links (credit),
# barriers, the host of the data, the bound on lag, weights shared with others, the guard.
# `core.worker` moves them.


class WorkerView:
    """The state of one worker; what the schedule may know of it is its `View`."""

    def __init__(
        self,
        position: Position,
        *,
        window: int | str,
        window_max: int,
        lag: Lag | None,
        skips: bool,
        replay: Replay | None,
        guard: Guard | None,
        shares: Shares | None,
        counts: Counts | None,
    ) -> None:
        self.position = position
        self.has_consumers = bool(position.consumers)
        self.has_producers = bool(position.producers)
        self.has_readers = bool(position.feeds or position.train_feeds)
        self.counts = counts or Counts()
        self._flights = Flights(position.consumers, self.counts)
        self._links = Links(position, window, window_max)
        self._barriers = Barriers(position.inputs)
        self._host = Host(position, self.counts) if position.hosts_data else None
        self._inputs = Inputs(position, replay)
        self._lag = lag or Lag()
        self._lag.carry(self.counts.lags)
        self._guard = guard
        self._shares = shares or Shares()
        self._skips = skips

    @property
    def ready(self) -> Sequence[int]:
        ready = self._inputs.train.ready
        if not ready or not (self._skips or self._links.may_send(self.position.name)):
            return ()
        held = not self._lag.drop and self._lag.overdue(ready[0], self._flights) is not None
        if held or (self._shares.pending and self._shares.hold(ready[0])):
            return ()
        return ready

    @property
    def queued(self) -> int:
        return len(self._inputs.train)

    @property
    def last(self) -> int:
        return self._flights.last

    @property
    def flights(self) -> Mapping[int, Flight]:
        return self._flights.by_batch

    @property
    def newest(self) -> Flight | None:
        return self._flights.newest

    @property
    def arrived(self) -> Sequence[int]:
        return self._flights.arrived

    @property
    def hopeless(self) -> Sequence[int]:
        return self._flights.hopeless

    @property
    def true_inputs(self) -> Sequence[int]:
        return self._inputs.true_ready

    @property
    def replayable(self) -> Sequence[int]:
        return self._inputs.replay.preferred

    @property
    def waiting(self) -> bool:
        return self._guard is not None and self._guard.waiting

    @property
    def unapplied(self) -> int:
        return self._flights.unapplied

    @property
    def closed(self) -> bool:
        return self._barriers.closed

    def counters(self) -> dict[str, float | int | None]:
        """For reports: what has been done, and how long the queues are right now."""
        return {
            **self.counts.counters(),
            "queue": self.queued,
            "in_flight": len(self._flights),
            "waiting": int(self.waiting),
            "window": self._links.window(),
        }

    def check(self) -> None:
        """Assert every invariant of the parts."""
        for part in (self._flights, self._inputs, self._links):
            part.check()
        self._lag.check(self._flights)
        self._shares.check(self._flights.last_forwarded)
        if self._host is not None:
            assert self.counts.position <= self._host.read


# --- arrivals ------------------------------------------------------------------------------------
#
# What arrives at a worker: mail of its neighbours, orders of the coordinator.
#
# A message that does not fit is its sender's fault. A neighbour's is dropped, and the neighbour
# accused; the coordinator's ends the worker.


class Phase(Enum):
    IDLE = "idle"
    TRAINING = "training"
    DRAINED = "drained"
    LEFT = "left"


class Arrivals(WorkerView):
    """The receiving half of a worker."""

    def __init__(self, position: Position, *, patience_s: float, **options: Any) -> None:
        super().__init__(position, **options)
        self.phase = Phase.IDLE
        self._greetings = Greetings(patience_s)
        self._senders_known = True
        self._post = Post(position, self._links)
        self._story = Story()
        self._mail = Mail(
            position, self._flights, self._links, self._inputs, self._shares, self._misfit
        )

    def joined(self, connect: Connect, *, senders_known: bool = True) -> None:
        """The coordinator has said which processes the neighbours are, and where the data stand.

        `senders_known`: whoever a message says it is from has sent it, as keys prove. Where that is
        not so, a word that its sender would have no reason to send is held to be somebody else's.
        """
        self._senders_known = senders_known
        self._post.incarnation = connect.incarnation
        self._mail.incarnations = dict(connect.incarnations)
        self._greetings.begin(connect.incarnations)
        self.counts.begin(connect.start)
        self._flights.begin(connect.start)
        self._inputs.begin(connect.start)
        self._barriers.begin(connect.barrier)
        if self._host is not None:
            self._host.begin(connect.planned)

    def _received(self, message: Message, now: float) -> None:
        sender = getattr(message, "sender", None)
        if sender is None:
            self._ordered(message)
            return
        try:
            if not self._mail.is_current(message):
                return
            if isinstance(message, Greeting):
                self._greeted(message)
            else:
                self._mail_came(message, now)
        except RemoteProtocolError as error:
            if self._senders_known or self._mail.fits_its_link(message):
                self._accuse(self.position.home(sender), message, str(error))

    def _greeted(self, greeting: Greeting) -> None:
        """One that was meant for another says only that an address is wrong."""
        if greeting.to == self.position.name and self.phase is Phase.IDLE:
            self._greetings.heard(greeting.sender)
            self._say_if_ready()

    def _say_if_ready(self) -> None:
        if self._greetings.complete():
            self._post.ready()

    def _greet(self, now: float) -> None:
        """Until the round starts: greet the neighbours, and tell of those that can't be heard."""
        self._post.greetings(self._greetings.greet(now))
        self._say_if_ready()
        unheard = self._greetings.tell(now)
        if unheard:
            self._post.unheard(unheard)

    def _accuse(self, worker: str, message: Message, text: str) -> None:
        if worker not in self._mail.incarnations:
            return  # no neighbour's word: nobody can tell who has sent it
        incarnation = getattr(message, "incarnation", 0)
        self._post.accused(worker, incarnation, text)
        self._lose(worker)

    def _lose(self, worker: str) -> None:
        """Go on without a neighbour until a new round."""
        self._links.lose(worker)
        self._mail.lose(worker)
        if worker in self.position.consumers:
            self._flights.lose(worker)
        for node in self.position.inputs:
            if self.position.home(node) == worker != self.position.name:
                self._inputs.lose(node)

    def _mail_came(self, message: Message, now: float) -> None:
        match message:
            case Activation():
                in_test = self.phase is Phase.DRAINED
                self._expect(in_test if message.evaluate else not message.last, message)
                self._mail.activation(message, now)
            case Gradient():
                self.counts.late += not self._mail.gradient(message)
            case Shared():
                self._mail.shared(message)
            case Skipped():
                self._mail.skipped(message)
            case Credit():
                self._mail.credit(message)
            case Barrier(sender=sender, barrier=barrier, kind=kind):
                self._expect(self._barriers.fits(sender, barrier, kind), message)
                self._barriers.arrived(sender, barrier, kind)
            case _:
                raise self._misfit(message)

    def _ordered(self, message: Message) -> None:
        """A word of the coordinator."""
        match message:
            case Start():
                self._expect(self.phase is Phase.IDLE, message)
                self.phase = Phase.TRAINING
            case Evaluate(barrier=barrier):
                self._expect_at(barrier, message)
                if self._host is not None:
                    self._host.begin_test()
            case Resume(barrier=barrier):
                self._expect_at(barrier, message)
                self.phase = Phase.TRAINING
                self._barriers.lift()
                self._links.pause()
                self._inputs.replay.clear()
            case SaveOrder(tag=tag):
                self._expect(self.phase is Phase.DRAINED, message)
                self._post.actions.append(Save(tag))
            case Leave():
                self._leave(Stop())
            case Abort(text=text):
                self._leave(Stop(text or "aborted"))
            case Close(kind=kind):
                # A barrier that is being set will do for a checkpoint; another would follow it.
                if self._host is not None and not (self.closed and kind == CHECKPOINT):
                    self._host.close(kind)
            case Lost(worker=worker):
                self._lose(worker)
            case Rejoin():
                for batch in list(self.flights):
                    self._release(batch)
                self._leave(Stop(rejoin=message))
            case _:
                raise self._misfit(message)

    def _leave(self, stop: Stop) -> None:
        self.phase = Phase.LEFT
        self._post.actions.append(stop)

    def _expect_at(self, barrier: int, message: Message) -> None:
        self._expect(self.phase is Phase.DRAINED and barrier == self._barriers.current, message)

    def _expect(self, fits: bool, message: Message) -> None:
        if not fits:
            raise self._misfit(message)

    def _misfit(self, message: Message, why: str = "") -> RemoteProtocolError:
        return self._story.misfit(self.position.name, self.phase.value, message, why)

    def _release(self, batch: int) -> None:
        self._flights.release(batch)
        self._post.actions.append(Release(batch))


#: Ops that work on what has come from producers.
_TAKING = frozenset({OpKind.FORWARD, OpKind.EVALUATE, OpKind.FIT_INPUT})
#: Ops that work on what has come from consumers.
_GRADED = frozenset({OpKind.BACKWARD, OpKind.FIT})


class Worker(Arrivals):
    """One stage's part in a run. It is also the `View` that its schedule sees."""

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
        counts: Counts | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`skips`: towards a consumer without credit it learns on instead of waiting.

        `shares`: of weights that it has in common with others; `counts`: what has been done in
        earlier rounds; `patience_s`: see `Greetings`."""
        super().__init__(
            position,
            patience_s=patience_s,
            window=window,
            window_max=window_max,
            lag=lag,
            skips=skips,
            replay=replay,
            guard=guard,
            shares=shares,
            counts=counts,
        )
        self.schedule = schedule
        self._busy: Op | None = None
        self._scores: dict[str, Any] = {}
        # A table, as this is asked after every op of a run.
        self._after = {
            OpKind.READ: self._has_read,
            OpKind.FORWARD: self._has_forwarded,
            OpKind.PREDICT: self._has_done,
            OpKind.BACKWARD: self._has_gone_back,
            OpKind.LEARN: self._has_done,
            OpKind.UPDATE: self._has_shared if position.sharers else self._has_done,
            OpKind.APPLY: self._has_applied,
            OpKind.FIT: self._has_fitted,
            OpKind.FIT_INPUT: self._has_fitted_input,
            OpKind.EVALUATE: self._has_evaluated,
        }

    # --- the contract of a machine ---------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """See `events.Machine`. Raises `RemoteProtocolError` for what a peer must not send."""
        actions: list[Action] = []
        self._post.actions = actions
        if self.phase is Phase.LEFT:
            return actions
        match event:
            case Received(message=message):
                self._story.received(now, message)
                self._received(message, now)
            case Computed(op=op):
                self._story.did(now, op)
                self._computed(event, op, now)
            case Stored(tag=tag, files=files):
                self._post.send(COORDINATOR, Saved(tag, files))
            case Woke():
                if self.phase is Phase.IDLE:
                    self._greet(now)
            case _:
                raise TypeError(f"a worker has no use for {event!r}")
        if self._busy is None:
            self._advance(now)
        return actions

    def deadline(self) -> float | None:
        """When to greet again; from `Start` on a worker waits for events alone."""
        return self._greetings.deadline() if self.phase is Phase.IDLE else None

    def check(self) -> None:
        """Assert every invariant."""
        super().check()
        if self.phase is Phase.DRAINED:  # inputs of what comes after the barrier may be here
            assert not self.flights and not self.unapplied and not self._shares.pending

    def story(self, batch: int) -> str:
        """All that happened to a batch here, one line an event, oldest first."""
        return self._story.of(batch)

    # --- what has been computed ------------------------------------------------------------------

    def _computed(self, event: Computed, op: Op, now: float) -> None:
        assert op == self._busy, (op, self._busy)
        self._busy = None
        self.counts.ops += 1
        self._after[op.kind](event, op, now)
        if op.last and op.batch in self.flights and op.kind is not OpKind.EVALUATE:
            self._release(op.batch)

    def _has_done(self, event: Computed, op: Op, now: float) -> None:
        self._flights.done(op, now)

    def _has_gone_back(self, event: Computed, op: Op, now: float) -> None:
        self._flights.done(op, now)
        self._post.gradients(event, op)

    def _has_shared(self, event: Computed, op: Op, now: float) -> None:
        """An Update of weights that others have as well."""
        self._flights.done(op, now)
        self._shares.handed_over(op.batch)
        self._post.shares(event, op)

    def _has_applied(self, event: Computed, op: Op, now: float) -> None:
        """The Update before it has been counted."""

    def _has_fitted(self, event: Computed, op: Op, now: float) -> None:
        self._flights.done(op, now)
        if self._guard is not None:
            self._has_agreed(self._guard, event)

    def _has_fitted_input(self, event: Computed, op: Op, now: float) -> None:
        """Nobody waits for that."""

    def _has_forwarded(self, event: Computed, op: Op, now: float) -> None:
        self._flights.forwarded(op.batch, event.samples, now)
        if op.replay:
            return
        self.counts.batches += 1
        self.counts.samples += event.samples
        self._lag.forwarded(op.batch, self._flights)
        without = self._post.activation(self.position.name, event, op, skips=self._skips)
        for consumer in without:
            self._flights.skip(op.batch, consumer)
        self.counts.skipped += bool(without)
        if op.skip:
            self._post.skipped(op.batch)

    def _has_agreed(self, guard: Guard, event: Computed) -> None:
        if guard.note(event.cosine):
            self.counts.fallbacks += guard.waiting
            self._post.guarded(guard.waiting, guard.mean)

    def _has_read(self, event: Computed, op: Op, now: float) -> None:
        assert self._host is not None
        self._host.has_read(op)
        if DATA in self._links.incoming:
            self._links.incoming[DATA].arrived(False, now)
            self._inputs.add(
                op.batch,
                DATA,
                event.samples,
                event.outputs,
                evaluate=op.evaluate,
                last=op.last,
            )
        self._post.activation(DATA, event, op, skips=self._skips and not op.evaluate)

    def _has_evaluated(self, event: Computed, op: Op, now: float) -> None:
        self._post.activation(self.position.name, event, op)
        for score in event.scores:
            if score.stage in self._scores:
                self._scores[score.stage].add(score)
            else:
                self._scores[score.stage] = score
        if op.last:
            self._post.evaluated(self._barriers.current, self._scores.values())
            self._scores = {}

    def _drop(self, batch: int) -> None:
        """Give up waiting for a gradient, and tell those who wait for ours."""
        self.counts.dropped += 1
        self._release(batch)
        self._post.skipped(batch)

    def _pass_over(self, now: float) -> None:
        """Batches that can't be used: whoever sends to or gets from this stage is told."""
        for batch, nodes, in_training in self._inputs.voids():
            self._post.credit(now, nodes)
            if in_training:
                self.counts.missed += 1
                self._flights.missed(batch)
                self._post.missed(batch)
                self._post.skipped(batch)

    # --- what comes next -------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        if self._inputs.any_skipped:
            self._pass_over(now)
        op: Op | None = None
        if self.phase is Phase.TRAINING:
            op = self._next_op()
            if op is None:
                self._links.idle()
                if self.closed:
                    self._pass_barrier()
        elif self.phase is Phase.DRAINED:
            op = self._next_test_op()
        if op is not None:
            self._start(op, now)

    def _next_op(self) -> Op | None:
        op = self._scheduled()
        if self._shares.pending and (op is None or op.kind is OpKind.FORWARD):
            shared = self._shares.complete
            if shared is not None:  # and not in the middle of a batch's own update
                return Op(OpKind.APPLY, shared)
        host = self._host
        if op is not None or host is None or self.closed:
            return op
        if host.at_barrier():
            self._barriers.set(host.set_barrier())
            self._post.barrier(DATA, self._barriers)
            return self._scheduled()  # it may have waited for the stage to close
        may_read = not self._inputs.train.ready and self.schedule.may_read(self)
        may_send = self._skips or self._links.may_send(DATA)
        return host.next_read() if may_read and may_send else None

    def _scheduled(self) -> Op | None:
        """The schedule's choice, once all has been given up that is to be given up first."""
        while (op := self.schedule.next_op(self)) is not None:
            if op.kind is OpKind.DROP:
                self._drop(op.batch)
                continue
            if op.kind is not OpKind.FORWARD or op.replay:
                return op
            overdue = self._lag.overdue(op.batch, self._flights)
            if overdue is None:
                return op
            self._drop(overdue)
        return None

    def _next_test_op(self) -> Op | None:
        if self._inputs.test.ready:
            if self._links.may_send(self.position.name):
                return Op(OpKind.EVALUATE, self._inputs.test.ready[0])
        elif self._host is not None and self._host.testing and self._may_send_tests():
            return self._host.next_test_read()
        return None

    def _may_send_tests(self) -> bool:
        return self._links.may_send(DATA, evaluate=True)

    def _start(self, op: Op, now: float) -> None:
        inputs: dict[str, Any] = {}
        if op.kind in _TAKING:
            if op.kind is OpKind.FORWARD:
                self.counts.queue.add(self.queued)
                self.counts.replays += op.replay
            arrival, nodes = self._inputs.take(op)
            inputs = arrival.tensors
            if op.kind is OpKind.EVALUATE:
                op = Op(op.kind, op.batch, last=arrival.last)
                self._links.pause()  # the window is for training's rate
            self._post.credit(now, nodes)
        elif op.kind in _GRADED:
            inputs = self._flights.gradients(op.batch)
        elif op.kind is OpKind.APPLY:
            inputs = self._shares.take(op.batch)
        self._busy = op
        self._post.actions.append(Compute(op, inputs))

    def _pass_barrier(self) -> None:
        """Behind the last activation to every consumer; to the coordinator once all is applied."""
        barriers = self._barriers
        if not barriers.passed and not self.queued:
            barriers.passed = True
            self._post.barrier(self.position.name, barriers)
        waits = self.flights or self.unapplied or self._shares.pending
        if barriers.passed and self._inputs.empty and not waits:
            self.phase = Phase.DRAINED
            self._post.drained(barriers, self.counts.position)
