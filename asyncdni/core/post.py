"""What a worker sends, and its greetings before a round starts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any

from asyncdni.core.events import Action, Computed, Send
from asyncdni.core.links import Links
from asyncdni.core.position import Barriers, Position
from asyncdni.messages import (
    COORDINATOR,
    Accused,
    Activation,
    Barrier,
    Credit,
    Drained,
    Evaluated,
    Gradient,
    Greeting,
    Guarded,
    Message,
    Ready,
    Shared,
    Skipped,
    Unheard,
    Weights,
)
from asyncdni.schedules.base import Op, OpKind

__all__ = ["PATIENCE_S", "Greetings", "Post", "Story", "UnexpectedMessage", "patience_s"]


class Post:
    """One method for each kind of message that a worker sends.

    `actions` collects what one event leads to, sends and all else; it is set anew for each."""

    def __init__(self, position: Position, links: Links) -> None:
        self._name = position.name
        self._position = position
        self._links = links
        self.incarnation = 0
        self.actions: list[Action] = []

    def send(self, to: str, message: Message) -> None:
        """Nothing goes to the dead."""
        if not self._links.is_lost(to):
            self.actions.append(Send(to, message))

    def greetings(self, workers: Iterable[str]) -> None:
        for to in workers:
            self.send(to, Greeting(self._name, self.incarnation, to))

    def unheard(self, workers: list[str]) -> None:
        self.send(COORDINATOR, Unheard(self.incarnation, workers))

    def ready(self) -> None:
        self.send(COORDINATOR, Ready(self.incarnation))

    def activation(self, node: str, event: Computed, op: Op, *, skips: bool = False) -> list[str]:
        """What a Read, Forward or Evaluate gave, to every consumer of the node.

        `skips`: one that grants no credit gets word that it will not come. Returns those, and the
        dead."""
        evaluate = op.evaluate or op.kind is OpKind.EVALUATE
        skipped = []
        for to in self._links.consumers(node, evaluate=evaluate):
            if not self._links.takes(node, to, waits=not skips):
                skipped.append(to)
                self.send(to, Skipped(node, self.incarnation, op.batch))
                continue
            message = Activation(
                sender=node,
                incarnation=self.incarnation,
                batch=op.batch,
                samples=event.samples,
                tensors=event.outputs,
                evaluate=evaluate,
                last=evaluate and op.last,  # a forward's `last` is about its own state
                waited=self._links.sent(node, to, evaluate=evaluate),
            )
            self.send(to, message)
        return skipped

    def missed(self, batch: int) -> None:
        """A batch has not come here, so it goes to no consumer."""
        for to in self._links.consumers(self._name):
            self.send(to, Skipped(self._name, self.incarnation, batch))

    def gradients(self, event: Computed, op: Op) -> None:
        """What a Backward gave, to each producer its part."""
        for producer, tensors in (event.outputs or {}).items():
            self.send(producer, Gradient(self._name, self.incarnation, op.batch, tensors))

    def shares(self, event: Computed, op: Op) -> None:
        """What an Update gave of weights that others have too, to each its part."""
        for sharer, tensors in (event.outputs or {}).items():
            self.send(sharer, Shared(self._name, self.incarnation, op.batch, tensors))

    def weights(self, event: Computed, op: Op, readers: Iterable[str]) -> None:
        """What a Copy gave, to each of these readers."""
        for reader in readers:
            self.send(reader, Weights(self._name, self.incarnation, op.batch, event.outputs))

    def skipped(self, batch: int) -> None:
        """No gradient of this batch will come from here."""
        for producer in self._position.producers:
            self.send(producer, Skipped(self._name, self.incarnation, batch))

    def credit(self, now: float, nodes: Iterable[str], *, evaluate: bool = False) -> None:
        """What these nodes sent is being used: grants to the producers that are due one."""
        apart = evaluate and bool(self._position.marks)
        for node, link in self._links.take(now, nodes, evaluate=evaluate):
            home = self._position.home(node)
            if home != self._name:
                credit = Credit(self._name, self.incarnation, node, link.taken, link.allowed, apart)
                self.send(home, credit)

    def barrier(self, node: str, barriers: Barriers) -> None:
        """Behind the node's last activation, to every consumer."""
        for to in self._links.consumers(node):
            message = Barrier(node, self.incarnation, barriers.current, barriers.kind)
            self.send(to, message)

    def guarded(self, waiting: bool, cosine: float) -> None:
        self.send(COORDINATOR, Guarded(waiting, cosine))

    def drained(self, barriers: Barriers, position: int) -> None:
        message = Drained(self.incarnation, barriers.current, barriers.kind, position)
        self.send(COORDINATOR, message)

    def accused(self, worker: str, incarnation: int, text: str) -> None:
        self.send(COORDINATOR, Accused(worker, incarnation, text))

    def evaluated(self, barrier: int, scores: Iterable[Any], *behind: Any) -> None:
        """The sums over the test set of each loss here (`stages.base.Score`); `behind`: `copy`,
        `learned` and `age_s` of an `Evaluated` behind the stream."""
        for s in scores:
            metrics = {name: average.value for name, average in s.metrics.items()}
            sums = s.stage, s.samples, s.loss, s.correct, s.outputs, s.steps
            self.send(COORDINATOR, Evaluated(barrier, *sums, metrics, *behind))


#: How long a neighbour may take before the coordinator is told that it is not heard.
PATIENCE_S = 5.0
#: `startup_s` is at least so many times that, so that the reason is known before the start fails.
_PATIENCES_OF_STARTUP = 4
#: Seconds between two greetings: one is lost with the connection that it was sent over.
_AGAIN_S = 1.0


def patience_s(startup_s: float) -> float:
    """How long whoever keeps a round from coming about may do so before somebody is told, where
    starting may take `startup_s`."""
    return min(PATIENCE_S, startup_s / _PATIENCES_OF_STARTUP)


class Greetings:
    """Whether all links of a worker carry something, before anybody trains.

    Each worker of a round greets all its neighbours until the round starts. One that has heard them
    all is ready; so once all are ready, every link has been proven in each direction, to the very
    process that is meant. A worker that has waited for too long tells the coordinator whom it has
    not heard.

    ```
     A                B                       coordinator
     │ Greeting ─────►│                             │
     │ x◄─── Greeting │ Ready ────────────────────► │
     │ Unheard(B) ────────────────────────────────► │ "B can't reach A at tcp://…"
    ```
    """

    def __init__(self, post: Post, patience_s: float) -> None:
        """`patience_s`: after so long the coordinator is told of those who have not been heard."""
        self._post = post
        self._patience_s = patience_s
        self._neighbours: tuple[str, ...] = ()
        self._unheard: set[str] = set()
        self._due = -math.inf  # when to greet next
        self._patient_until: float | None = None  # None: nobody has been greeted yet
        self._ready = False  # the coordinator has been told
        self._reported: list[str] = []  # neighbours reported as unheard

    def begin(self, neighbours: Iterable[str]) -> None:
        """These are to be greeted, and heard."""
        self._neighbours = tuple(neighbours)
        self._unheard = set(self._neighbours)

    def heard(self, worker: str) -> None:
        """A neighbour's greeting has come."""
        self._unheard.discard(worker)
        self._say_if_ready()

    def go_on(self, now: float) -> None:
        """Greet all neighbours if it is time, and tell the coordinator what is new."""
        if now >= self._due:
            if self._patient_until is None:
                self._patient_until = now + self._patience_s
            self._due = now + _AGAIN_S
            self._post.greetings(self._neighbours)
        self._say_if_ready()
        if self._patient_until is not None and now >= self._patient_until:
            self._tell_unheard()

    def deadline(self) -> float:
        return self._due

    def _say_if_ready(self) -> None:
        """Once: when all have been heard, and greeted."""
        if not self._ready and not self._unheard and self._patient_until is not None:
            self._ready = True
            self._post.ready()

    def _tell_unheard(self) -> None:
        unheard = [name for name in self._neighbours if name in self._unheard]
        before, self._reported = self._reported, unheard
        if unheard and unheard != before:
            self._post.unheard(unheard)


# --- story ---------------------------------------------------------------------------------------

_LENGTH = 4096  # events kept


class UnexpectedMessage(Exception):
    """Raised inside `core` for a message that its sender should not have sent."""

    def __init__(self, why: str = "") -> None:
        super().__init__(why)
        self.why = why


class Story:
    """What happened to each batch at one worker, for the moment when a message does not fit: a
    ring of what was received and done, made into text only when asked for."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._events: deque[tuple[float, int | None, Op | str, str]] = deque(maxlen=_LENGTH)

    def received(self, now: float, message: Message) -> None:
        """Keep the message's kind and sender, not the message: its tensors would live on."""
        batch = getattr(message, "batch", None)
        sender = getattr(message, "sender", COORDINATOR)
        self._events.append((now, batch, type(message).__name__, sender))

    def did(self, now: float, op: Op) -> None:
        self._events.append((now, op.batch, op, ""))

    def of(self, batch: int) -> str:
        """All that happened to a batch, oldest first."""
        return ", ".join(
            f"{now:.6f} s "
            + (f"did {what}" if isinstance(what, Op) else f"got {what} from {sender}")
            for now, number, what, sender in self._events
            if number == batch
        )

    def unexpected(self, phase: str, message: Message, why: str) -> str:
        """What is wrong with a message that does not fit, and the story of its batch; `why` may be
        empty."""
        sender = getattr(message, "sender", COORDINATOR)
        batch = getattr(message, "batch", None)
        what = type(message).__name__ + ("" if batch is None else f" of batch {batch}")
        text = f"worker {self._worker} ({phase}) can't use the {what} that {sender} sent"
        text += f": {why}" * bool(why)
        if batch is not None:
            text += f"; what happened to that batch here: {self.of(batch)}"
        return text
