"""The virtual network: each message takes its time, none overtakes another on its link.

A tensor is copied when it arrives, not when it is sent: until then it belongs to the sender, as a
buffer does that ZeroMQ has not let go of. A stage that rewrites it too early is found out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial

import msgspec
import numpy as np

from asyncdni.config import Limits
from asyncdni.delays import LinkDelay
from asyncdni.messages import Activation, Beat, Gradient, Message, Report, Shared
from asyncdni.simulator.agenda import Agenda
from asyncdni.simulator.conditions import Links, around
from asyncdni.simulator.sizes import MessageBytes, tensor_bytes
from asyncdni.transports.codec import Buffer, decode, encode

__all__ = ["EncodedParcel", "Lose", "Parcel", "Wires"]

#: Called with sender, receiver and message of each one sent; true: it is lost.
Lose = Callable[[str, str, Message], bool]
Deliver = Callable[[Message], None]


class Parcel:
    """A message on its way whose tensors are still the sender's."""

    __slots__ = ("_message", "gone")

    def __init__(self, message: Message) -> None:
        self._message: Message | None = message
        self.gone = False  # arrived or lost: the sender may use its buffers again

    def open(self) -> Message:
        """The receiver's own copy, once."""
        message, self._message = self._message, None
        self.gone = True
        if isinstance(message, Activation | Gradient | Shared):
            tensors = {name: np.array(tensor) for name, tensor in message.tensors.items()}
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
