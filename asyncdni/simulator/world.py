"""What all processes of a simulated run share: time, network, addresses, and the log of events."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Protocol

import msgspec

from asyncdni.build import Design
from asyncdni.core.events import Action, Computed, Event, Machine, Received
from asyncdni.messages import COORDINATOR, Activation, Gradient, Message
from asyncdni.simulator.agenda import Agenda
from asyncdni.simulator.conditions import Costs
from asyncdni.simulator.wires import Parcel, Wires

__all__ = ["Alarm", "Log", "Process", "World"]

#: A real clock moves on between a deadline and the next look at it.
_TICK_S = 1e-6
_LINES_KEPT = 512


class Log:
    """A hash over every event, with its moment and its machine: two runs are equal or they differ.

    Tensors are left out; whatever goes wrong in them shows in the final weights.
    """

    def __init__(self) -> None:
        self.events = 0
        self._hash = hashlib.sha256()
        self._lines: list[str] = []

    def add(self, now: float, name: str, event: Event) -> None:
        self.events += 1
        self._lines.append(f"{now!r} {name} {_text(event)}")
        if len(self._lines) >= _LINES_KEPT:
            self._flush()

    def digest(self) -> str:
        """Of everything so far, in hexadecimal."""
        self._flush()
        return self._hash.hexdigest()

    def _flush(self) -> None:
        self._hash.update("".join(line + "\n" for line in self._lines).encode())
        self._lines.clear()


def _text(event: Event) -> str:
    match event:
        case Received(message=Activation() | Gradient() as message):
            return repr(msgspec.structs.astuple(_without_tensors(message)))
        case Received(message=message):
            return repr(message)
        case Computed(op=op, samples=samples):
            return f"{op} {op.last} {op.evaluate} {samples}"
    return repr(event)


def _without_tensors(message: Activation | Gradient) -> Message:
    return msgspec.structs.replace(message, tensors={})


class Process(Protocol):
    """One that messages can be addressed to."""

    def receive(self, message: Message) -> None: ...


class World:
    """Addresses: a worker's name for data, the bytes of its control connection for the coordinator,
    and COORDINATOR for workers. A message to one that is not there is lost."""

    def __init__(
        self, design: Design, seed: int, costs: Costs, agenda: Agenda, wires: Wires, check: bool
    ) -> None:
        self.design = design
        self.seed = seed
        self.costs = costs
        self.agenda = agenda
        self.wires = wires
        self.log = Log()
        self.processes: dict[str, Process] = {}
        self.by_peer: dict[bytes, Process] = {}
        self.hear: Callable[[bytes, Message], None] = _no_one  # the coordinator's ear
        self._check = check

    def handle(self, name: str, machine: Machine, event: Event) -> list[Action]:
        """One event, logged; the machine's invariants are checked after it."""
        self.log.add(self.agenda.now, name, event)
        actions = machine.handle(event, self.agenda.now)
        if self._check:
            machine.check()
        return actions

    def to_worker(self, sender: str, to: str, message: Message) -> Parcel | None:
        """On the data link between two workers."""
        return self.wires.send(sender, to, message, partial(self._deliver, to), control=False)

    def to_coordinator(self, sender: str, peer: bytes, message: Message) -> None:
        deliver = partial(self.hear, peer)
        self.wires.send(sender, COORDINATOR, message, deliver, control=True)

    def from_coordinator(self, peer: bytes, message: Message) -> None:
        deliver = partial(self._deliver_to_peer, peer)
        self.wires.send(COORDINATOR, _name_of(peer), message, deliver, control=True)

    def _deliver(self, to: str, message: Message) -> None:
        process = self.processes.get(to)
        if process is not None:
            process.receive(message)

    def _deliver_to_peer(self, peer: bytes, message: Message) -> None:
        process = self.by_peer.get(peer)
        if process is not None:
            process.receive(message)


def _name_of(peer: bytes) -> str:
    """Control connections are named NAME#INCARNATION."""
    return peer.decode().rpartition("#")[0]


def _no_one(peer: bytes, message: Message) -> None:
    raise AssertionError(f"{message!r} came before there was a coordinator")


class Alarm:
    """A driver's fourth duty: wake a machine once its deadline has passed."""

    def __init__(self, agenda: Agenda, machine: Machine, wake: Callable[[], None]) -> None:
        self._agenda = agenda
        self._machine = machine
        self._wake = wake
        self._set_for: float | None = None

    def reset(self) -> None:
        """After each event: the deadline may have come closer. One further off is seen later."""
        deadline = self._machine.deadline()
        if deadline is not None and (self._set_for is None or deadline < self._set_for):
            self._set(max(deadline, self._agenda.now + _TICK_S))

    def _set(self, moment: float) -> None:
        self._set_for = moment
        self._agenda.at(moment, partial(self._ring, moment), idle=True)

    def _ring(self, moment: float) -> None:
        if moment != self._set_for:
            return  # an earlier one has been set since
        self._set_for = None
        deadline = self._machine.deadline()
        if deadline is not None and self._agenda.now >= deadline:
            self._wake()
        else:
            self.reset()
