"""What has happened in a simulated run, as one number."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from asyncdni.core.events import Computed, Event, Received
from asyncdni.messages import Activation, Gradient, Message, Shared

__all__ = ["Log"]

_ENTRIES_KEPT = 512
#: Where those are among the fields of the messages that carry any.
_TENSORS_AT: dict[type[Message], int] = {
    kind: kind.__struct_fields__.index("tensors") for kind in (Activation, Gradient, Shared)
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
        self._entries.append((now, name, _told(event)))
        if len(self._entries) >= _ENTRIES_KEPT:
            self._flush()

    def digest(self) -> str:
        """Of everything so far, in hexadecimal."""
        self._flush()
        return self._hash.hexdigest()

    def _flush(self) -> None:
        self._hash.update(self._encode(self._entries))
        self._entries.clear()


def _told(event: Event) -> Any:
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
