"""What comes for a worker that is in no round: the coordinator's words about joining one.

Several may die in a row, so that a new order to join comes while an older one is being followed:
the newest counts, and what belongs to an older one is void.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Protocol

from asyncdni.errors import LaunchError, by_name
from asyncdni.messages import Abort, Connect, Leave, Message, Refused, Rejoin, Welcome
from asyncdni.runtime.forsaken import Forsaken, Told
from asyncdni.transports.beat import parent_lives

__all__ = ["Inbox"]

_LOOK_EVERY_S = 0.25


class _Receiver(Protocol):
    def receive(self, timeout_s: float | None) -> list[Message]: ...


class Inbox:
    """Sorts what arrives; all waiting outside of rounds is done here.

    Every method that waits raises `Told` once the coordinator has called the run off or is gone,
    and by its class what it refused this worker for.
    """

    def __init__(self, transport: _Receiver, forsaken: Forsaken) -> None:
        self.welcome: Welcome | None = None
        self._transport = transport
        self._forsaken = forsaken
        self._order: Rejoin | None = None  # not yet given out
        self._connect: Connect | None = None
        self._early: list[Message] = []

    def put(self, messages: Iterable[Message]) -> None:
        """Sort out what has arrived."""
        for message in messages:
            match message:
                case Welcome():
                    self.welcome = message
                case Rejoin():
                    if self._order is None or message.incarnation > self._order.incarnation:
                        self._order = message
                case Connect():
                    self._connect = message
                case Refused(kind=kind, text=text):
                    raise by_name(kind)(text)
                case Abort(text=text):
                    raise Told(f"the run was called off: {text}")
                case Leave():
                    raise Told("the run was called off")
                case _ if getattr(message, "sender", None) is not None:
                    self._early.append(message)
                case _:
                    pass  # an order that belonged to a round which is over here

    def await_welcome(self, coordinator: str, timeout_s: float) -> Welcome:
        """Until the coordinator has let this worker in. Raises `LaunchError` after `timeout_s`,
        unless it is known to live."""
        deadline = time.monotonic() + timeout_s
        while self.welcome is None:
            left_s, lives = deadline - time.monotonic(), parent_lives()
            if left_s <= 0 and lives is None:
                raise LaunchError(
                    f"no coordinator answered at {coordinator} within {timeout_s:g} s: "
                    "check the address, or wait longer with --timeout"
                )
            if lives is False:
                raise Told("the process that started this worker is gone")
            wait_s = _LOOK_EVERY_S if lives else min(left_s, _LOOK_EVERY_S)
            self.put(self._transport.receive(wait_s))
        return self.welcome

    def newer(self, incarnation: int) -> Rejoin | None:
        """An order to join a later round than this incarnation's, if it is here; does not wait."""
        self.put(self._transport.receive(0.0))
        order, self._order = self._order, None
        return order if order is not None and order.incarnation > incarnation else None

    def await_connect(self, incarnation: int) -> Connect | Rejoin:
        """Where the neighbours are in this incarnation's round, or the order to join another."""
        while True:
            order = self.newer(incarnation)
            if order is not None:
                return order
            connect = self._connect
            if connect is not None and connect.incarnation == incarnation:
                return connect
            self._wait()

    def await_order(self, incarnation: int) -> Rejoin:
        """The order to join a later round than this incarnation's."""
        while True:
            order = self.newer(incarnation)
            if order is not None:
                return order
            self._wait()

    def take_early(self) -> list[Message]:
        """What was not about joining, for the worker; what is void there it will know."""
        early, self._early = self._early, []
        return early

    def _wait(self) -> None:
        self._forsaken.check()
        self.put(self._transport.receive(_LOOK_EVERY_S))
