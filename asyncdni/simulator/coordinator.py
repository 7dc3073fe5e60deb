"""The coordinator's process in virtual time, and the launcher that tells it who has exited."""

from __future__ import annotations

from functools import partial
from typing import Any

from asyncdni.core.coordinator import Coordinator
from asyncdni.core.events import Event, Exited, Fail, Finish, Received, Record, Send, UserStop, Woke
from asyncdni.core.roster import Roster
from asyncdni.messages import COORDINATOR, Message
from asyncdni.simulator.world import Alarm, World

__all__ = ["CoordinatorProcess"]

#: How long the launcher takes to see that a process has ended.
_NOTICED_AFTER_S = 0.1


class CoordinatorProcess:
    """Drives one `Coordinator`."""

    def __init__(self, world: World, roster: Roster) -> None:
        self.machine = Coordinator(roster)
        self.records: list[tuple[str, dict[str, Any]]] = []
        self.end: Finish | Fail | None = None
        self._world = world
        self._alarm = Alarm(world.agenda, self.machine, partial(self._handle, Woke()))

    def start(self) -> None:
        """The process begins: it looks at the clock for the first time."""
        self._handle(Woke())

    def receive(self, peer: bytes, message: Message) -> None:
        """A message of the control connection `peer` has arrived."""
        self._handle(Received(message, peer))

    def user_stop(self) -> None:
        self._handle(UserStop())

    def exited(self, name: str, code: int) -> None:
        """A worker's process has ended; the launcher will notice."""
        what = partial(self._handle, Exited(name, code, ""))
        self._world.agenda.after(_NOTICED_AFTER_S, what)

    def _handle(self, event: Event) -> None:
        if self.end is not None:
            return  # its loop is over
        for action in self._world.handle(COORDINATOR, self.machine, event):
            match action:
                case Send(to=to, message=message):
                    assert isinstance(to, bytes)
                    self._world.from_coordinator(to, message)
                case Record(kind=kind, values=values):
                    self.records.append((kind, values))
                case Finish() | Fail():
                    self.end = action
                case _:
                    raise TypeError(f"a coordinator's driver can't carry out {action!r}")
        self._alarm.reset()
