"""When each op of a worker ran, what it waited for, sent and received: for traces and timelines."""

from __future__ import annotations

import struct
from collections import defaultdict
from pathlib import Path

from asyncdni.messages import DATA, Activation, Message
from asyncdni.metrics import traces
from asyncdni.schedules.base import Op
from asyncdni.weights import write_atomically

__all__ = ["EVENTS_MAX", "Trace"]

#: Events kept of one worker: 32 MB, some 100,000 batches.
EVENTS_MAX = 1_000_000

_pack = struct.Struct("<4i2d").pack  # see `traces.RECORD`


class Trace:
    """Events of one worker, packed at once into bytes.

    Nothing of an op or a message is kept but names and numbers, so that no tensor outlives its
    batch and the garbage collector has nothing to look at. All times are seconds of
    `time.perf_counter`: one clock for all processes of a host, see `metrics.traces`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._events = bytearray()
        self._numbers: defaultdict[str, int] = defaultdict()
        self._numbers.default_factory = self._numbers.__len__  # the next number
        self._left = EVENTS_MAX
        self._trained = False

    def add(self, op: Op, start_s: float, end_s: float) -> None:
        """An op has been computed."""
        self._trained = True
        self._note(traces.OP, op.letter, "", op.batch, start_s, end_s)

    def waited(self, start_s: float, end_s: float) -> None:
        """There was nothing to do."""
        self._note(traces.WAIT, "", "", traces.NO_BATCH, start_s, end_s)

    def slowed(self, start_s: float, end_s: float) -> None:
        """The worker has slept after an op, as it was asked to be slow."""
        self._note(traces.SLOWED, "", "", traces.NO_BATCH, start_s, end_s)

    def sent(self, to: str, message: Message, start_s: float, end_s: float) -> None:
        """A message has been handed to the transport, for the worker `to` or the coordinator."""
        batch = getattr(message, "batch", traces.NO_BATCH)
        self._note(traces.SENT, _kind(message), to, batch, start_s, end_s)

    def received(self, message: Message, at_s: float) -> None:
        """The transport has handed over a message."""
        batch = getattr(message, "batch", traces.NO_BATCH)
        sender = getattr(message, "sender", "")
        self._note(traces.RECEIVED, _kind(message), sender, batch, at_s, at_s)

    def write(self) -> None:
        """Once, at the end; nothing where no op has run. Raises `CheckpointError`."""
        if self._trained:  # or else the run may have failed, and its folder be gone
            lost = max(0, -self._left)
            write_atomically(self._path, traces.encode(self._events, [*self._numbers], lost))

    def _note(
        self, track: int, name: str, peer: str, batch: int, start_s: float, end_s: float
    ) -> None:
        # All kinds of events end together, so that what is there is the whole of its time.
        self._left -= 1
        if self._left >= 0:
            numbers = self._numbers
            self._events += _pack(track, numbers[name], numbers[peer], batch, start_s, end_s)


def _kind(message: Message) -> str:
    """What the trace calls it; test batches apart, as their numbers come again and again."""
    if type(message) is not Activation:
        return type(message).__name__.lower()
    if message.evaluate:
        return "test batch"
    return traces.DATA if message.sender == DATA else traces.ACTIVATION
