"""The virtual network: each message takes its time, none overtakes another on its link.

A tensor is copied when it arrives, not when it is sent: until then it belongs to the sender, as a
buffer does that ZeroMQ has not let go of. A stage that rewrites it too early is found out.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np

from asyncdni.config import Limits
from asyncdni.delays import LinkDelay
from asyncdni.drivers.virtual.clock import Agenda
from asyncdni.drivers.virtual.costs import Links, MessageBytes, around, tensor_bytes
from asyncdni.encodings import Encoded
from asyncdni.messages import Beat, Message, Report, WithTensors
from asyncdni.wire.codec import Buffer, decode, encode

__all__ = ["EncodedParcel", "FaultyWires", "Lose", "Parcel", "Wires"]

#: Called with sender, receiver and message of each one sent; true: it is lost.
Lose = Callable[[str, str, Message], bool]
Deliver = Callable[[Message], None]


class Parcel:
    """A message on its way whose tensors are still the sender's."""

    __slots__ = ("_message", "gone")

    def __init__(self, message: Message) -> None:
        self._message: Message | None = message
        self.gone = False  # arrived or lost: the sender may use its buffers again

    def left(self) -> bool:
        """Whether the sender may use its buffers again."""
        return self.gone

    def open(self) -> Message:
        """The receiver's own copy, once."""
        message, self._message = self._message, None
        self.gone = True
        if isinstance(message, WithTensors):
            tensors = {
                name: tensor.decode() if isinstance(tensor, Encoded) else np.array(tensor)
                for name, tensor in message.tensors.items()
            }
            return msgspec.structs.replace(message, tensors=tensors)
        assert message is not None
        return message


class EncodedParcel(Parcel):
    """The same as frames, through the codec of the real wire."""

    __slots__ = ("_frames", "_limits")

    def __init__(self, message: Message, limits: Limits) -> None:
        super().__init__(message)
        self._frames = encode(message)
        self._limits = limits

    def open(self) -> Message:
        self.gone = True
        return decode([_bytes(frame) for frame in self._frames], self._limits)


class Wires:
    """All links between all processes. `links` says how slow they are by themselves.

    A message of a link in `delays`, by (sender, receiver), is held before as long as that says, its
    size being what `size` says of it.
    """

    def __init__(
        self,
        agenda: Agenda,
        links: Links,
        seed: int,
        *,
        copy: bool,
        codec: Limits | None = None,
        lose: Lose | None = None,
        delays: Mapping[tuple[str, str], LinkDelay] | None = None,
        size: MessageBytes = tensor_bytes,
    ) -> None:
        self._agenda = agenda
        self._links = links
        self._seed = seed
        self._copy = copy
        self._codec = codec
        self._lose = lose
        self._delays = delays or {}
        self._size = size
        self._random: dict[tuple[str, str], random.Random] = {}
        self._last: dict[tuple[str, str, bool], float] = {}  # latest arrival by connection

    def send(
        self,
        sender: str,
        to: str,
        message: Message,
        deliver: Deliver,
        *,
        control: bool,
        ends: tuple[str, str] | None = None,
    ) -> Parcel | None:
        """Deliver later; where tensors are copied on arrival, what says that they have been.

        `ends`: which processes of these names it goes between, each pair by a connection of its
        own."""
        parcel = self._wrap(message)
        if self._lose is not None and self._lose(sender, to, message):
            if parcel is not None:
                parcel.gone = True
            return parcel
        leaves = self._agenda.now if control else self._leaves(sender, to, message)
        arrival = self._arrival(sender, to, leaves, control, ends or (sender, to))
        what = partial(deliver, message) if parcel is None else partial(_open, parcel, deliver)
        self._agenda.at(arrival, what, idle=isinstance(message, Beat | Report))
        return parcel

    def apart(self, one: str, other: str) -> bool:
        """Nothing gets from one process to the other now."""
        return False

    def _wrap(self, message: Message) -> Parcel | None:
        if self._codec is not None:
            return EncodedParcel(message, self._codec)
        return Parcel(message) if self._copy else None

    def _leaves(self, sender: str, to: str, message: Message) -> float:
        """When the sender lets it go: at once, but for the conditions of the experiment."""
        delay = self._delays.get((sender, to))
        if delay is None:
            return self._agenda.now
        return delay.due(self._agenda.now, self._size(sender, to, message))

    def _arrival(
        self, sender: str, to: str, leaves: float, control: bool, ends: tuple[str, str]
    ) -> float:
        link = (sender, to)
        source = self._random.get(link)
        if source is None:
            source = self._random[link] = random.Random(f"{self._seed}/{sender}/{to}/link")
        links = self._links
        latency_us = links.control_latency_us if control else links.latency_us
        latency_us = links.between.get(link, latency_us)
        arrival = leaves + around(latency_us, links.jitter, source) * 1e-6
        key = (*ends, control)
        arrival = self._last[key] = max(arrival, self._last.get(key, 0.0))
        return arrival


def _open(parcel: Parcel, deliver: Deliver) -> None:
    deliver(parcel.open())


def _bytes(frame: Buffer) -> bytes:
    return frame if isinstance(frame, bytes) else frame.tobytes()


# --- faulty --------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Sent:
    """One message on its way."""

    copies: int = 1  # that will arrive


@dataclass(frozen=True, slots=True)
class _Partition:
    one: frozenset[str]  # keys of processes
    other: frozenset[str]
    heals_at: float

    def parts(self, ends: tuple[str, str]) -> bool:
        a, b = ends
        return (a in self.one and b in self.other) or (a in self.other and b in self.one)


class FaultyWires(Wires):
    """Links that fail: partitions, and connections that break.

    ```
    partition   sent ─────────────┤ waits ├──► arrives      TCP sends again until it gets through
    break       1 2 3 4 5 on the way ──► 1 2 are lost, 3 is sent twice, 4 5
    ```

    A message is addressed to one process. What was on its way from a process that has died may be
    lost, the last first, as its queues are gone with it."""

    def __init__(self, *args: Any, delay_s: float = 0.0, jitter_s: float = 0.0, **more: Any):
        """`delay_s`, and evenly drawn up to `jitter_s`: more for every message."""
        super().__init__(*args, **more)
        self._delay_s = delay_s
        self._jitter_s = jitter_s
        self._noise = random.Random(f"{self._seed}/faulty wires")
        self._partitions: list[_Partition] = []
        self._flying: dict[tuple[str, str], deque[_Sent]] = {}

    # --- faults ----------------------------------------------------------------------------------

    def part(self, one: Collection[str], other: Collection[str], for_s: float) -> None:
        """Nothing gets from the processes on one side to those on the other for a while."""
        now = self._agenda.now
        self._partitions = [p for p in self._partitions if p.heals_at > now]
        self._partitions.append(_Partition(frozenset(one), frozenset(other), now + for_s))

    def cut(self, sender: str, to: str, *, duplicate: bool = False) -> int:
        """A connection breaks: the first of what is on its way that way is lost, up to all of it;
        how much."""
        flying = self._on_the_way(sender, to)
        lost = self._noise.randint(0 if duplicate else 1, len(flying)) if flying else 0
        for sent in flying[:lost]:
            sent.copies = 0
        if duplicate and lost < len(flying):
            flying[lost].copies = 2
        return lost

    def carries(self, sender: str, to: str) -> bool:
        """Something is on its way."""
        return bool(self._flying.get((sender, to)))

    def died(self, sender: str) -> None:
        """The last of what a process had sent was still in its own queues."""
        for ends in [one for one in self._flying if one[0] == sender]:
            flying = self._on_the_way(*ends)
            for sent in flying[self._noise.randint(0, len(flying)) :]:
                sent.copies = 0

    def apart(self, one: str, other: str) -> bool:
        return self._heals_at((one, other)) is not None

    # --- messages --------------------------------------------------------------------------------

    def send(
        self,
        sender: str,
        to: str,
        message: Message,
        deliver: Deliver,
        *,
        control: bool,
        ends: tuple[str, str] | None = None,
    ) -> Parcel | None:
        sent = _Sent()
        flying = self._flying.setdefault(ends or (sender, to), deque())
        flying.append(sent)
        land = partial(self._land, flying, sent, deliver)
        return super().send(sender, to, message, land, control=control, ends=ends)

    def _land(self, flying: deque[_Sent], sent: _Sent, deliver: Deliver, message: Message) -> None:
        flying.remove(sent)
        for _ in range(sent.copies):
            deliver(message)

    def _arrival(
        self, sender: str, to: str, leaves: float, control: bool, ends: tuple[str, str]
    ) -> float:
        heals_at = self._heals_at(ends)
        if heals_at is not None:
            leaves = max(leaves, heals_at)
        more_s = self._delay_s
        if self._jitter_s:
            more_s += self._noise.uniform(0.0, self._jitter_s)
        return super()._arrival(sender, to, leaves + more_s, control, ends)

    def _heals_at(self, ends: tuple[str, str]) -> float | None:
        """When the last partition between two processes heals; None where there is none."""
        now = self._agenda.now
        between = [p.heals_at for p in self._partitions if p.heals_at > now and p.parts(ends)]
        return max(between, default=None)

    def _on_the_way(self, sender: str, to: str) -> list[_Sent]:
        return list(self._flying.get((sender, to), ()))
