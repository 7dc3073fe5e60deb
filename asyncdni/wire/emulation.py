"""Emulate slow links between real processes: the sender holds each message until it is due.

```
 engine's thread                       emulation's thread
   send("b", m) ──► copy, due ──► heap by due time ──► sleeps until the first is due ──► PUSH b
   send("c", m) ───────────────────────────────────────────────────────────────────────► PUSH c
```

Links without a delay (c) keep their sockets in the engine's thread. A held message waits for its
due time only, never for another link's message. On top of the delay come the real link's own time
and the thread's wake-up: see docs/conditions.md.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Sequence

from asyncdni.delays import LinkDelay
from asyncdni.errors import LimitExceeded
from asyncdni.wire import sockets
from asyncdni.wire.codec import Buffer, size
from asyncdni.wire.sockets import Socket

__all__ = ["Emulation"]

#: The most messages held for all links together. A backstop: credit stops activations long before.
_HELD_MAX = 65536


class Emulation:
    """Holds each message to a worker with a delay for as long as that says, in a thread of its own.

    A socket passed to `take` or `connect` belongs to that thread until `close` has returned.
    """

    def __init__(self) -> None:
        self._delays: dict[str, LinkDelay] = {}  # by receiver
        self._sockets: dict[str, Socket] = {}
        self._retired: list[Socket] = []
        self._held: list[tuple[float, int, Socket, list[bytes]]] = []  # heap by (due, sequence)
        self._sequence = 0
        self._changed = threading.Condition()
        self._ends_at: float | None = None  # set by `close`
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="links", daemon=True)
        self._thread.start()

    def __contains__(self, worker: str) -> bool:
        """Tell whether messages to `worker` are delayed."""
        return worker in self._delays

    def take(self, worker: str, delay: LinkDelay, socket: Socket | None) -> None:
        """Delay messages to `worker` from now on. Its socket, if there is one already, belongs to
        this thread from here on; what has been sent over it stays in front."""
        with self._changed:
            self._delays[worker] = delay
            if socket is not None:
                self._sockets[worker] = socket

    def connect(self, worker: str, socket: Socket) -> None:
        """Send messages for `worker`, which has a delay, over `socket` from now on."""
        with self._changed:
            self._retire(worker)
            self._sockets[worker] = socket

    def disconnect(self, worker: str) -> None:
        """Drop the messages held for `worker`, and close its socket."""
        with self._changed:
            self._retire(worker)

    def send(self, worker: str, frames: Sequence[Buffer]) -> None:
        """Copy `frames`, and send them when they are due. Never blocks.

        Raises `LimitExceeded` if too many messages are held, and whatever `check` raises.
        """
        copies = [frame if isinstance(frame, bytes) else frame.tobytes() for frame in frames]
        with self._changed:
            self.check()
            if len(self._held) >= _HELD_MAX:
                raise LimitExceeded(
                    f"{_HELD_MAX} messages are held for slow links: lower their latency or raise "
                    "their bandwidth, or lower limits.window_max"
                )
            due = self._delays[worker].due(time.monotonic(), size(copies))
            self._sequence += 1
            heapq.heappush(self._held, (due, self._sequence, self._sockets[worker], copies))
            if self._held[0][1] == self._sequence:
                self._changed.notify()  # it is due first, so the thread must wake up earlier

    def check(self) -> None:
        """Raise the error that has ended the thread, if there is one."""
        if self._error is not None:
            raise self._error

    def close(self, linger_s: float) -> None:
        """End the thread once all held messages have been sent, or after `linger_s`."""
        with self._changed:
            if self._ends_at is None:
                self._ends_at = time.monotonic() + linger_s
                self._changed.notify()
        self._thread.join()

    def _retire(self, worker: str) -> None:
        old = self._sockets.pop(worker, None)
        if old is not None:
            self._held = [entry for entry in self._held if entry[2] is not old]
            heapq.heapify(self._held)
            self._retired.append(old)
            self._changed.notify()

    def _run(self) -> None:
        while (next_one := self._take()) is not None:
            socket, frames = next_one
            try:
                sockets.send(socket, frames)
            except Exception as error:  # the engine's thread raises it
                self._error = error
                return

    def _take(self) -> tuple[Socket, list[bytes]] | None:
        """Wait for the next message to be due; None when the thread should end."""
        with self._changed:
            while True:
                while self._retired:
                    self._retired.pop().close(linger=0)
                now = time.monotonic()
                if self._held and self._held[0][0] <= now:
                    _, _, socket, frames = heapq.heappop(self._held)
                    return socket, frames
                ends_at = self._ends_at
                if ends_at is not None and (not self._held or ends_at <= now):
                    return None
                wake_at = [moment for moment in (self._first_due(), ends_at) if moment is not None]
                self._changed.wait(min(wake_at) - now if wake_at else None)

    def _first_due(self) -> float | None:
        return self._held[0][0] if self._held else None
