"""What all processes of a simulated run share: time, network, disk, and the log of events."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Protocol, get_args

import msgspec

from asyncdni.core.coordinator import Coordinator
from asyncdni.core.events import Action, Computed, Event, Received
from asyncdni.core.worker import Worker
from asyncdni.drivers.virtual.clock import Agenda, Clock
from asyncdni.drivers.virtual.costs import Cores, Costs, Pace
from asyncdni.drivers.virtual.disk import Disk
from asyncdni.drivers.virtual.faults import ChanceFaults
from asyncdni.drivers.virtual.wires import Parcel, Wires
from asyncdni.messages import COORDINATOR, Message, WithTensors
from asyncdni.plan.build import Design
from asyncdni.schedules.base import Op

__all__ = ["Log", "Party", "World"]

# --- log -----------------------------------------------------------------------------------------

_ENTRIES_KEPT = 512
#: Where those are among the fields of the messages that carry any.
_TENSORS_AT: dict[type[Message], int] = {
    kind: kind.__struct_fields__.index("tensors") for kind in get_args(WithTensors)
}


class Log:
    """A hash over every event, with its moment and its machine: two runs are equal or they differ.

    Tensors are left out; whatever goes wrong in them shows in the final weights.
    """

    def __init__(self) -> None:
        self.events = 0
        self._hash = hashlib.sha256()
        self._entries: list[tuple[float, str, Any]] = []
        self._encode = msgspec.msgpack.Encoder(enc_hook=repr).encode  # quicker than text

    def add(self, now: float, name: str, event: Event) -> None:
        self.events += 1
        self._entries.append((now, name, _log_entry(event)))
        if len(self._entries) >= _ENTRIES_KEPT:
            self._flush()

    def digest(self) -> str:
        """Return the hash of everything so far, in hexadecimal."""
        self._flush()
        return self._hash.hexdigest()

    def _flush(self) -> None:
        self._hash.update(self._encode(self._entries))
        self._entries.clear()


def _log_entry(event: Event) -> Any:
    """What tells it from any other; encoded soon, before anybody can change it."""
    if type(event) is Computed:
        return event.op, event.samples
    if type(event) is Received:
        message = event.message
        at = _TENSORS_AT.get(type(message))
        if at is None:
            return message
        fields = msgspec.structs.astuple(message)
        return fields[:at] + fields[at + 1 :]
    return repr(event)


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
        self.chance_faults = ChanceFaults()  # of saves and clocks
        self.by_address: dict[str, Party] = {}
        self.by_peer: dict[bytes, Party] = {}
        self.cores: Cores | None = None  # None: every worker has one of its own
        self.away: frozenset[str] = frozenset()  # workers without access to the disk of the run
        self.checks = check  # assert every invariant of a machine after each of its events

    def watch(self, name: str, worker: Worker) -> Callable[[Event, float], list[Action]]:
        """`worker.handle`, with each event logged, and what it costs noted."""
        agenda, cores, add, handle = self.agenda, self.cores, self.log.add, worker.handle

        def watched(event: Event, now: float) -> list[Action]:
            add(agenda.now, name, event)
            actions = handle(event, now)
            if cores is not None:
                cores.handled(name, event, actions)
            return actions

        return watched

    def coordinate(self, machine: Coordinator, event: Event, clock: Clock) -> list[Action]:
        """One event of the coordinator, logged; its invariants are checked after it."""
        self.log.add(self.agenda.now, COORDINATOR, event)
        actions = machine.handle(event, clock.reading(self.agenda.now))
        if self.checks:
            machine.check()
        return actions

    def compute(self, name: str, pace: Pace, op: Op, done: Callable[[], None]) -> None:
        """An op takes its time; `done` is called at its end."""
        if self.cores is None:
            self.agenda.after(pace.op_s(op), done)
        else:
            self.cores.run(name, op, pace, done)

    def to_worker(self, sender: Party, address: str, message: Message) -> Parcel | None:
        """Send a message on the data link between two workers."""
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
