"""What neighbours send, held against what they may send, and handed to the part that it is for."""

from __future__ import annotations

from asyncdni.core.parts import Parts
from asyncdni.core.story import UnexpectedMessage
from asyncdni.messages import Activation, Barrier, Credit, Gradient, Message, Shared, Skipped

__all__ = ["Mail"]

_NOBODY = -1  # no process has this incarnation


class Mail:
    """The receiving end of all links between workers.

    Every method that takes a message raises `UnexpectedMessage` where it does not fit."""

    def __init__(self, parts: Parts) -> None:
        self.incarnations: dict[str, int] = {}  # of the neighbours
        self._position = parts.position
        self._counts = parts.counts
        self._flights = parts.flights
        self._links = parts.links
        self._inputs = parts.inputs
        self._shares = parts.shares
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
        link = self._links.incoming.get(message.sender)
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
        link = self._links.outgoing.get((message.node, message.sender))
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
