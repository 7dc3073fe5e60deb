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
4. Whatever a peer sends that does not fit is its fault: `RemoteProtocolError`, with the story of
   the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from asyncdni.core.barriers import Barriers
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
from asyncdni.core.flights import Flights
from asyncdni.core.host import Host
from asyncdni.core.inbox import Inbox
from asyncdni.core.links import Links
from asyncdni.core.position import Position
from asyncdni.core.post import Post
from asyncdni.core.story import Story
from asyncdni.errors import RemoteProtocolError
from asyncdni.messages import (
    COORDINATOR,
    DATA,
    Abort,
    Activation,
    Barrier,
    Credit,
    Evaluate,
    Gradient,
    Interrupt,
    Leave,
    Message,
    Resume,
    Saved,
    Skipped,
    Start,
)
from asyncdni.messages import Save as SaveOrder
from asyncdni.schedules.base import Flight, Op, OpKind, Schedule

__all__ = ["Phase", "Worker"]


class Phase(Enum):
    IDLE = "idle"
    TRAINING = "training"
    DRAINED = "drained"
    LEFT = "left"


class Worker:
    """One stage's part in a run. It is also the `View` that its schedule sees."""

    def __init__(
        self,
        position: Position,
        schedule: Schedule,
        *,
        window: int | str = "auto",
        window_max: int = 256,
    ) -> None:
        self.position = position
        self.schedule = schedule
        self.phase = Phase.IDLE
        self.incarnations: dict[str, int] = {}  # of the neighbours
        self.has_loss = position.has_loss
        self.has_consumers = bool(position.consumers)
        self.has_producers = bool(position.producers)
        self.has_readers = bool(position.feeds)
        self.batches = 0  # training batches forwarded
        self.samples = 0
        self.dropped = 0  # batches whose gradient was given up
        self.late = 0  # gradients that came for a batch given up
        self._flights = Flights(position.consumers)
        self._links = Links(position, window, window_max)
        self._post = Post(position, self._links)
        self._barriers = Barriers(position.inputs)
        self._host = Host(position) if position.hosts_data else None
        self._train = Inbox(position.inputs)
        self._test = Inbox(position.inputs)
        self._busy: Op | None = None
        self._scores: dict[str, Any] = {}
        self._story = Story()

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
                self._received(message, now, event)
            case Computed(op=op):
                self._story.did(now, op)
                self._computed(event, op, now)
            case Stored(tag=tag, files=files):
                self._post.send(COORDINATOR, Saved(tag, files), event)
            case Woke():
                pass
            case _:
                raise TypeError(f"a worker has no use for {event!r}")
        if self._busy is None:
            self._advance(event, now)
        return actions

    def deadline(self) -> float | None:
        return None  # a worker waits for events alone

    def check(self) -> None:
        """Assert every invariant."""
        for part in (self._flights, self._train, self._test, self._links):
            part.check()
        if self.phase is Phase.DRAINED:
            assert not self.flights and not self.unapplied
        if self._host is not None:
            assert self.batches <= self._host.read

    def story(self, batch: int) -> str:
        """All that happened to a batch here, one line an event, oldest first."""
        return self._story.of(batch)

    def joined(self, incarnation: int, neighbours: Mapping[str, int]) -> None:
        """The coordinator has let this worker in, and said which processes its neighbours are."""
        self._post.incarnation = incarnation
        self.incarnations = dict(neighbours)

    # --- the schedule's view ---------------------------------------------------------------------

    @property
    def ready(self) -> Sequence[int]:
        return self._train.ready if self._links.may_send(self.position.name) else ()

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
    def unapplied(self) -> int:
        return self._flights.unapplied

    @property
    def closed(self) -> bool:
        return self._barriers.closed

    def counters(self) -> dict[str, float | int | None]:
        """For reports: what has been done, and how long the queues are right now."""
        return {
            "batches": self.batches,
            "samples": self.samples,
            "queue": len(self._train),
            "dropped": self.dropped,
            "window": self._links.window(),
            **self._flights.counters(),
        }

    # --- what arrives ----------------------------------------------------------------------------

    def _received(self, message: Message, now: float, cause: object) -> None:
        sender = getattr(message, "sender", None)
        if sender is None:
            self._ordered(message, cause)
            return
        home = self.position.home(sender)
        self._expect(home != self.position.name, message)
        known = self.incarnations.get(home)
        if known is not None and known != getattr(message, "incarnation", known):
            return  # what an older process of that stage has left on the wire
        match message:
            case Activation():
                self._activation(message, now)
            case Gradient(batch=batch, tensors=tensors):
                self._expect(self._may_answer(sender, batch), message)
                self._expect(not self._flights.gave(batch, sender), message)
                self.late += not self._flights.gradient(batch, sender, tensors)
            case Skipped(batch=batch):
                self._expect(self._may_answer(sender, batch), message)
                self._flights.skip(batch, sender)
            case Credit(node=node, taken=taken, allowed=allowed):
                link = self._links.outgoing.get((node, sender))
                if link is None or taken > link.sent:
                    raise self._misfit(message)
                link.granted(taken, allowed)
            case Barrier(barrier=barrier, final=final):
                self._expect(self._barriers.fits(sender, barrier), message)
                self._barriers.arrived(sender, barrier, final)
            case _:
                raise self._misfit(message)

    def _ordered(self, message: Message, cause: object) -> None:
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
            case SaveOrder(tag=tag):
                self._expect(self.phase is Phase.DRAINED, message)
                self._post.actions.append(Save(tag, cause=cause))
            case Leave():
                self._leave(Stop(cause=cause))
            case Abort(text=text):
                self._leave(Stop(text or "aborted", cause=cause))
            case Interrupt():
                if self._host is not None:
                    self._host.interrupt()
            case _:
                raise self._misfit(message)

    def _activation(self, message: Activation, now: float) -> None:
        link = self._links.incoming.get(message.sender)
        if link is None or link.received >= link.allowed:
            raise self._misfit(message)
        self._expect(self.phase is Phase.DRAINED if message.evaluate else not message.last, message)
        link.arrived(message.waited, now)
        inbox = self._test if message.evaluate else self._train
        fits = inbox.add(
            message.batch, message.sender, message.samples, message.tensors, message.last
        )
        self._expect(fits, message)

    def _leave(self, stop: Stop) -> None:
        self.phase = Phase.LEFT
        self._post.actions.append(stop)

    def _may_answer(self, sender: str, batch: int) -> bool:
        """A consumer, about a batch that was sent to it."""
        return sender in self.position.consumers and 0 <= batch < self.batches

    def _expect_at(self, barrier: int, message: Message) -> None:
        self._expect(self.phase is Phase.DRAINED and barrier == self._barriers.current, message)

    def _expect(self, fits: bool, message: Message) -> None:
        if not fits:
            raise self._misfit(message)

    def _misfit(self, message: Message) -> RemoteProtocolError:
        return self._story.misfit(self.position.name, self.phase.value, message)

    # --- what has been computed ------------------------------------------------------------------

    def _computed(self, event: Computed, op: Op, now: float) -> None:
        assert op == self._busy, (op, self._busy)
        self._busy = None
        match op.kind:
            case OpKind.READ:
                self._has_read(event, op, now)
            case OpKind.FORWARD:
                self._flights.forwarded(op.batch, event.samples)
                self.batches += 1
                self.samples += event.samples
                self._post.activation(self.position.name, event, op)
            case OpKind.EVALUATE:
                self._has_evaluated(event, op)
            case OpKind.BACKWARD:
                self._flights.done(op)
                self._post.gradients(event, op)
            case _:
                self._flights.done(op)
        if op.last and op.batch in self.flights and op.kind is not OpKind.EVALUATE:
            self._release(op.batch, event)

    def _has_read(self, event: Computed, op: Op, now: float) -> None:
        assert self._host is not None
        self._host.has_read(op)
        if DATA in self._links.incoming:
            inbox = self._test if op.evaluate else self._train
            self._links.incoming[DATA].arrived(False, now)
            inbox.add(op.batch, DATA, event.samples, event.outputs, op.last)
        self._post.activation(DATA, event, op)

    def _has_evaluated(self, event: Computed, op: Op) -> None:
        self._post.activation(self.position.name, event, op)
        for score in event.scores:
            if score.stage in self._scores:
                self._scores[score.stage].add(score)
            else:
                self._scores[score.stage] = score
        if op.last:
            self._post.evaluated(self._barriers.current, self._scores.values(), event)
            self._scores = {}

    def _release(self, batch: int, cause: object) -> None:
        self._flights.release(batch)
        self._post.actions.append(Release(batch, cause=cause))

    def _drop(self, batch: int, cause: object) -> None:
        """Give up waiting for a gradient, and tell those who wait for ours."""
        self.dropped += 1
        self._release(batch, cause)
        self._post.skipped(batch, cause)

    # --- what comes next -------------------------------------------------------------------------

    def _advance(self, cause: object, now: float) -> None:
        for batch in self._flights.hopeless():
            self._drop(batch, cause)
        op: Op | None = None
        if self.phase is Phase.TRAINING:
            op = self._next_op(cause)
            if op is None:
                self._links.idle()
                if self.closed:
                    self._pass_barrier(cause)
        elif self.phase is Phase.DRAINED:
            op = self._next_test_op()
        if op is not None:
            self._start(op, cause, now)

    def _next_op(self, cause: object) -> Op | None:
        op = self.schedule.next_op(self)
        while op is not None and op.kind is OpKind.DROP:
            self._drop(op.batch, cause)
            op = self.schedule.next_op(self)
        host = self._host
        if op is not None or host is None or self.closed:
            return op
        if host.at_barrier():
            self._barriers.set(final=host.set_barrier())
            self._post.barrier(DATA, self._barriers, cause)
            return self.schedule.next_op(self)  # it may have waited for the stage to close
        may_read = not self._train.ready and self.schedule.may_read(self)
        return host.next_read() if may_read and self._links.may_send(DATA) else None

    def _next_test_op(self) -> Op | None:
        if self._test.ready:
            if self._links.may_send(self.position.name):
                return Op(OpKind.EVALUATE, self._test.ready[0])
        elif self._host is not None and self._host.testing and self._links.may_send(DATA):
            return self._host.next_test_read()
        return None

    def _start(self, op: Op, cause: object, now: float) -> None:
        inputs: dict[str, Any] = {}
        if op.kind in (OpKind.FORWARD, OpKind.EVALUATE):
            arrival = (self._train if op.kind is OpKind.FORWARD else self._test).take(op.batch)
            inputs = arrival.tensors
            op = Op(op.kind, op.batch, last=arrival.last)
            if op.kind is OpKind.EVALUATE:
                self._links.pause()  # the window is for training's rate
            self._post.credit(now, cause)
        elif op.kind in (OpKind.BACKWARD, OpKind.FIT):
            inputs = self._flights.gradients(op.batch)
        self._busy = op
        self._post.actions.append(Compute(op, inputs, cause=cause))

    def _pass_barrier(self, cause: object) -> None:
        """Behind the last activation to every consumer; to the coordinator once all is applied."""
        barriers = self._barriers
        if not barriers.passed and not len(self._train):
            barriers.passed = True
            self._post.barrier(self.position.name, barriers, cause)
        if barriers.passed and not self.flights and not self.unapplied:
            self.phase = Phase.DRAINED
            self._post.drained(barriers.current, self.batches, cause)
