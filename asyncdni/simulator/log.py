"""What has happened in a simulated run, as one number."""

from __future__ import annotations

import hashlib
from array import array

import msgspec

from asyncdni.core.events import Computed, Event, Received
from asyncdni.messages import Activation, Gradient, Message

__all__ = ["Log"]

_LINES_KEPT = 512


class Log:
    """A hash over every event, with its moment and its machine: two runs are equal or they differ.

    Tensors are left out; whatever goes wrong in them shows in the final weights.
    """

    def __init__(self) -> None:
        self.events = 0
        self._hash = hashlib.sha256()
        self._times = array("d")
        self._lines: list[str] = []

    def add(self, now: float, name: str, event: Event) -> None:
        self.events += 1
        self._times.append(now)
        self._lines.append(f"{name} {_text(event)}\n")
        if len(self._lines) >= _LINES_KEPT:
            self._flush()

    def digest(self) -> str:
        """Of everything so far, in hexadecimal."""
        self._flush()
        return self._hash.hexdigest()

    def _flush(self) -> None:
        self._hash.update(self._times.tobytes())
        self._hash.update("".join(self._lines).encode())
        self._times = array("d")
        self._lines.clear()


def _text(event: Event) -> str:
    if type(event) is Computed:
        op = event.op
        return f"{op.letter} {op.batch} {op.last} {op.evaluate} {event.samples}"
    if type(event) is Received:
        message = event.message
        if isinstance(message, Activation | Gradient):
            return repr(msgspec.structs.astuple(_without_tensors(message)))
        return repr(message)
    return repr(event)


def _without_tensors(message: Activation | Gradient) -> Message:
    return msgspec.structs.replace(message, tensors={})
