"""What arrives at a worker: mail of its neighbours, orders of the coordinator.

A message that does not fit is its sender's fault. A neighbour's is dropped, and the neighbour
accused; the coordinator's ends the worker.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from asyncdni.core.barriers import CHECKPOINT
from asyncdni.core.events import Release, Save, Stop
from asyncdni.core.greetings import Greetings
from asyncdni.core.mail import Mail
from asyncdni.core.position import Position
from asyncdni.core.post import Post
from asyncdni.core.story import Story
from asyncdni.core.view import WorkerView
from asyncdni.errors import RemoteProtocolError
from asyncdni.messages import (
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
    Shared,
    Skipped,
    Start,
)
from asyncdni.messages import Save as SaveOrder

__all__ = ["Arrivals", "Phase"]


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

    def _received(self, message: Message, now: float, cause: object) -> None:
        sender = getattr(message, "sender", None)
        if sender is None:
            self._ordered(message, cause)
            return
        try:
            if not self._mail.is_current(message):
                return
            if isinstance(message, Greeting):
                self._greeted(message, cause)
            else:
                self._mail_came(message, now)
        except RemoteProtocolError as error:
            if self._senders_known or self._mail.fits_its_link(message):
                self._accuse(self.position.home(sender), message, str(error), cause)

    def _greeted(self, greeting: Greeting, cause: object) -> None:
        """One that was meant for another says only that an address is wrong."""
        if greeting.to == self.position.name and self.phase is Phase.IDLE:
            self._greetings.heard(greeting.sender)
            self._say_if_ready(cause)

    def _say_if_ready(self, cause: object) -> None:
        if self._greetings.complete():
            self._post.ready(cause)

    def _greet(self, now: float, cause: object) -> None:
        """Until the round starts: greet the neighbours, and tell of those that can't be heard."""
        self._post.greetings(self._greetings.greet(now), cause)
        self._say_if_ready(cause)
        unheard = self._greetings.tell(now)
        if unheard:
            self._post.unheard(unheard, cause)

    def _accuse(self, worker: str, message: Message, text: str, cause: object) -> None:
        if worker not in self._mail.incarnations:
            return  # no neighbour's word: nobody can tell who has sent it
        incarnation = getattr(message, "incarnation", 0)
        self._post.accused(worker, incarnation, text, cause)
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
                self._inputs.replay.clear()
            case SaveOrder(tag=tag):
                self._expect(self.phase is Phase.DRAINED, message)
                self._post.actions.append(Save(tag, cause=cause))
            case Leave():
                self._leave(Stop(cause=cause))
            case Abort(text=text):
                self._leave(Stop(text or "aborted", cause=cause))
            case Close(kind=kind):
                # A barrier that is being set will do for a checkpoint; another would follow it.
                if self._host is not None and not (self.closed and kind == CHECKPOINT):
                    self._host.close(kind)
            case Lost(worker=worker):
                self._lose(worker)
            case Rejoin():
                for batch in list(self.flights):
                    self._release(batch, cause)
                self._leave(Stop(rejoin=message, cause=cause))
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

    def _release(self, batch: int, cause: object) -> None:
        self._flights.release(batch)
        self._post.actions.append(Release(batch, cause=cause))
