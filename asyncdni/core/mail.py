"""What neighbours send, held against what they may send, and put where it belongs."""

from __future__ import annotations

from collections.abc import Callable

from asyncdni.core.flights import Flights
from asyncdni.core.inputs import Inputs
from asyncdni.core.links import Links
from asyncdni.core.position import Position
from asyncdni.core.shares import Shares
from asyncdni.errors import RemoteProtocolError
from asyncdni.messages import Activation, Barrier, Credit, Gradient, Message, Shared, Skipped

__all__ = ["Mail"]

_NOBODY = -1  # no process has this incarnation


class Mail:
    """Each method raises `RemoteProtocolError` for a message that does not fit."""

    def __init__(
        self,
        position: Position,
        flights: Flights,
        links: Links,
        inputs: Inputs,
        shares: Shares,
        misfit: Callable[[Message, str], RemoteProtocolError],
    ) -> None:
        """`misfit` makes the error for a message that does not fit, and says what is wrong."""
        self.incarnations: dict[str, int] = {}  # of the neighbours
        self._position = position
        self._flights = flights
        self._links = links
        self._inputs = inputs
        self._shares = shares
        self._misfit = misfit

    def is_current(self, message: Message) -> bool:
        """Not what an older process of that stage has left on the wire."""
        home = self._position.home(getattr(message, "sender", ""))
        self._expect(home != self._position.name, message)
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
        """Whatever still comes from it is not wanted."""
        self.incarnations[worker] = _NOBODY

    def activation(self, message: Activation, now: float) -> None:
        link = self._links.incoming.get(message.sender)
        self._expect(link is not None and link.received < link.allowed, message)
        assert link is not None
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
        self._expect(fits, message)

    def gradient(self, message: Gradient) -> bool:
        """False where nobody waits for it any more."""
        batch, sender = message.batch, message.sender
        self._expect(self._may_answer(sender, batch), message)
        self._expect(not self._flights.gave(batch, sender), message)
        return self._flights.gradient(batch, sender, message.tensors)

    def shared(self, message: Shared) -> None:
        self._expect(self._shares.came(message.sender, message.batch, message.tensors), message)

    def skipped(self, message: Skipped) -> None:
        batch, sender = message.batch, message.sender
        if sender in self._position.inputs:
            self._expect(self._inputs.skip(batch, sender), message)
            return
        self._expect(self._may_answer(sender, batch), message)
        self._flights.skip(batch, sender)

    def credit(self, message: Credit) -> None:
        link = self._links.outgoing.get((message.node, message.sender))
        self._expect(link is not None, message)
        assert link is not None
        taken, allowed = message.taken, message.allowed
        why = f"of {link.sent} sent it says {taken} taken, {allowed} allowed"
        self._expect(link.fits(taken, allowed), message, why)
        link.granted(message.taken, message.allowed)

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
        self._expect(message.samples == due, message, f"it has {message.samples} rows, not {due}")
        last = evaluate and rows.ends_test(batch)
        end = "the last" if last else "not the last"
        self._expect(message.last == last, message, f"that batch is {end} of the test set")

    def _expect(self, fits: bool, message: Message, why: str = "") -> None:
        if not fits:
            raise self._misfit(message, why)
