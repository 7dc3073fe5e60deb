"""What all processes of a simulated run share: time, network, disk, and the log of events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from asyncdni.build import Design
from asyncdni.core.events import Action, Event, Machine
from asyncdni.messages import COORDINATOR, Message
from asyncdni.schedules.base import Op
from asyncdni.simulator.agenda import Agenda
from asyncdni.simulator.clock import Clock
from asyncdni.simulator.conditions import Costs, Pace
from asyncdni.simulator.cores import Cores
from asyncdni.simulator.disk import Disk
from asyncdni.simulator.log import Log
from asyncdni.simulator.mischance import Mischance
from asyncdni.simulator.wires import Parcel, Wires

__all__ = ["Party", "World"]


class Party(Protocol):
    """A process that messages can be addressed to."""

    name: str
    key: str  # among all processes that there have been

    def receive(self, message: Message) -> None: ...


class World:
    """A worker's data socket has the address of one process, and so has its control connection:
    what is sent to one that has ended is lost."""

    def __init__(
        self,
        design: Design,
        seed: int,
        costs: Costs,
        agenda: Agenda,
        wires: Wires,
        disk: Disk,
        check: bool,
    ) -> None:
        self.design = design
        self.seed = seed
        self.costs = costs
        self.agenda = agenda
        self.wires = wires
        self.disk = disk
        self.log = Log()
        self.mischance = Mischance()  # of saves and clocks
        self.by_address: dict[str, Party] = {}
        self.by_peer: dict[bytes, Party] = {}
        self.cores: Cores | None = None  # None: every worker has one of its own
        self._check = check

    def handle(self, name: str, machine: Machine, event: Event, clock: Clock) -> list[Action]:
        """One event, logged; the machine's invariants are checked after it."""
        now = self.agenda.now
        self.log.add(now, name, event)
        actions = machine.handle(event, clock.reading(now))
        if self._check:
            machine.check()
        if self.cores is not None:
            self.cores.handled(name, event, actions)
        return actions

    def compute(self, name: str, pace: Pace, op: Op, done: Callable[[], None]) -> None:
        """An op takes its time; `done` is called at its end."""
        if self.cores is None:
            self.agenda.after(pace.op_s(op), done)
        else:
            self.cores.run(name, op, pace, done)

    def to_worker(self, sender: Party, address: str, message: Message) -> Parcel | None:
        """On the data link between two workers."""
        to = self.by_address[address]
        ends = (sender.key, to.key)
        return self.wires.send(sender.name, to.name, message, to.receive, control=False, ends=ends)

    def to_coordinator(
        self, sender: Party, to: str, message: Message, deliver: Callable[[Message], None]
    ) -> None:
        """`to`: the process's key."""
        ends = (sender.key, to)
        self.wires.send(sender.name, COORDINATOR, message, deliver, control=True, ends=ends)

    def from_coordinator(self, sender: str, peer: bytes, message: Message) -> None:
        to = self.by_peer[peer]
        ends = (sender, to.key)
        self.wires.send(COORDINATOR, to.name, message, to.receive, control=True, ends=ends)
