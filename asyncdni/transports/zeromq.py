"""The two ends of the wire over ZeroMQ: `WorkerTransport` and `CoordinatorTransport`.

```
 worker A                       coordinator                      worker B
   DEALER ─────── control ───────► ROUTER ◄─────── control ─────── DEALER
   PUSH ──────────────────────────── data ────────────────────────► PULL
   PULL ◄─────────────────────────── data ───────────────────────── PUSH
```

Control and data ride on separate sockets, so that no order waits behind tensors. Sends never
block. A transport belongs to the thread that made it; `beat.Heart` has a socket of its own. Where
links are to be slow, the data sockets of those belong to a thread that delays what is sent: see
`emulation`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import zmq

from asyncdni.config import MESSAGE_BYTES_MAX, Limits
from asyncdni.delays import LinkDelay
from asyncdni.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError
from asyncdni.messages import COORDINATOR, Beat, Message, Refused
from asyncdni.transports import sockets
from asyncdni.transports.address import data_endpoint, parse
from asyncdni.transports.codec import (
    BETWEEN_WORKERS,
    FROM_COORDINATOR,
    FROM_WORKER,
    HEADER_BYTES_MAX,
    Buffer,
    decode,
    encode,
    size,
)
from asyncdni.transports.emulation import Emulation
from asyncdni.transports.sockets import Socket

__all__ = ["HEART_SUFFIX", "CoordinatorTransport", "WorkerTransport"]

#: Ends the identity of a worker's heart; the rest is the worker's own.
HEART_SUFFIX = b"~"

_CONTROL_LIMITS = Limits(message_bytes=HEADER_BYTES_MAX)  # such a message is a header alone
_RECEIVED_MAX = 256  # messages of one `receive`, so that its caller gets to act on them
_REJECTED_MAX = 64  # peers remembered for having sent nonsense


class WorkerTransport:
    """A worker's sockets: one to its coordinator, one for its data, one to each neighbour.

    `coordinator` is the address to connect to; the coordinator need not be there yet. Until
    `limit` is called, `config.Limits` hold as they are by default. Raises `LaunchError` for an
    address that can't be used.
    """

    def __init__(self, coordinator: str) -> None:
        self.coordinator = coordinator
        self.identity = secrets.token_hex(8).encode()
        self.bytes_sent = 0
        self.bytes_received = 0
        self.messages = 0  # sent and received
        self._limits = Limits()
        self._context: zmq.Context[Socket] = zmq.Context()
        self._neighbours: dict[str, Socket] = {}
        self._endpoints: dict[str, str] = {}
        self._emulation: Emulation | None = None
        try:
            self._control = sockets.open_socket(self._context, zmq.DEALER, HEADER_BYTES_MAX)
            self._control.setsockopt(zmq.IDENTITY, self.identity)
            sockets.connect(self._control, parse(coordinator, bind=False))
            # Its address is in the Hello, and the limit comes with the answer: bound without it.
            self._data = sockets.open_socket(self._context, zmq.PULL, MESSAGE_BYTES_MAX)
            self.address = sockets.bind(self._data, data_endpoint(coordinator))
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._poller = zmq.Poller()
        self._poller.register(self._control, zmq.POLLIN)
        self._poller.register(self._data, zmq.POLLIN)

    def limit(self, limits: Limits) -> None:
        """What the run allows: from now on no larger message goes out or comes in between workers.

        Control messages have a limit of their own, `codec.HEADER_BYTES_MAX`.
        """
        self._limits = limits

    def emulate(self, delays: Mapping[str, LinkDelay]) -> None:
        """Hold back all messages to these workers as long as `delays` say; before `connect`."""
        if delays:
            self._emulation = Emulation(delays)

    def connect(self, endpoints: Mapping[str, str]) -> None:
        """Open a socket to each neighbour (worker -> endpoint), or a new one where it has moved.

        Raises `LaunchError` for an endpoint that can't be used.
        """
        for worker, endpoint in endpoints.items():
            if self._endpoints.get(worker) == endpoint:
                continue
            address = parse(endpoint, bind=False)
            socket = sockets.open_socket(self._context, zmq.PUSH, MESSAGE_BYTES_MAX)
            sockets.connect(socket, address)
            if self._emulation is not None and worker in self._emulation:
                self._emulation.connect(worker, socket)
            elif worker in self._neighbours:
                self._neighbours[worker].close(linger=0)
            self._neighbours[worker] = socket
            self._endpoints[worker] = endpoint

    def send(self, to: str, message: Message) -> Callable[[], bool] | None:
        """Send to a connected worker, or to `messages.COORDINATOR`; never blocks.

        Large tensors are not copied: they must stay as they are until the function that comes back
        is true. None means that all has been copied. Raises `LimitExceeded` for a message over the
        limit or a full queue, `LocalProtocolError` for what no peer would accept.
        """
        socket = self._control if to == COORDINATOR else self._neighbours.get(to)
        if socket is None:
            raise LocalProtocolError(f"no connection to {to!r}, only to {sorted(self._neighbours)}")
        if type(message) not in (FROM_WORKER if to == COORDINATOR else BETWEEN_WORKERS):
            raise LocalProtocolError(f"{type(message).__name__} is no message to {to!r}")
        frames = encode(message)
        total = size(frames)
        if to != COORDINATOR and total > self._limits.message_bytes:
            raise LimitExceeded(
                f"{type(message).__name__} of {total} bytes is over limits.message_bytes = "
                f"{self._limits.message_bytes}: raise it or make batches smaller"
            )
        sent = None
        if self._emulation is not None and to in self._emulation:
            self._emulation.send(to, frames)
        else:
            sent = sockets.send(socket, frames)
        self.bytes_sent += total
        self.messages += 1
        return sent

    def wait(self, timeout_s: float | None) -> None:
        """Until there is something to receive, or for `timeout_s` (None: for ever)."""
        sockets.wait(self._poller, timeout_s)

    def receive(self, timeout_s: float | None) -> list[Message]:
        """All messages that are here (at most 256), control first.

        Waits up to `timeout_s` (None: for ever) for the first. Tensors are read-only views of
        ZeroMQ's memory, which lives as long as they do. Raises `RemoteProtocolError`, and what the
        thread that delays messages has failed at.
        """
        if self._emulation is not None:
            self._emulation.check()
        found = self._drain()
        if not found and timeout_s != 0:
            self.wait(timeout_s)
            found = self._drain()
        return found

    def counters(self) -> dict[str, int]:
        """For reports: messages and their bytes since the start, the heart's beats left out."""
        return {
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "messages": self.messages,
        }

    def close(self, linger_s: float) -> None:
        """Close all sockets; what has not left after `linger_s` is given up, held or not."""
        ends_at = time.monotonic() + linger_s
        if self._emulation is not None:
            self._emulation.close(linger_s)
        left_s = max(0.0, ends_at - time.monotonic()) if linger_s else 0.0
        sockets.close(self._context, self.address, left_s)

    def _drain(self) -> list[Message]:
        found: list[Message] = []
        for socket, allowed in ((self._control, FROM_COORDINATOR), (self._data, BETWEEN_WORKERS)):
            while len(found) < _RECEIVED_MAX:
                frames = sockets.receive(socket)
                if frames is None:
                    break
                found.append(self._decode(frames, allowed))
        return found

    def _decode(self, frames: list[Buffer], allowed: frozenset[type[Message]]) -> Message:
        self.bytes_received += size(frames)
        self.messages += 1
        limits = _CONTROL_LIMITS if allowed is FROM_COORDINATOR else self._limits
        try:
            return _decode_from(frames, allowed, limits)
        except RemoteProtocolError as error:
            where = "control" if allowed is FROM_COORDINATOR else "data"
            raise RemoteProtocolError(f"{where} socket {self.address}: {error}") from error


class CoordinatorTransport:
    """The coordinator's socket, bound to `address`: `tcp://host:port` (port 0: any), `ipc://path`.

    Raises `LaunchError` where nothing can be bound. Nonsense from peers is dropped, counted in
    `rejected_messages`, and its first case a peer answered with `Refused` and noted in `rejected`
    as (identity, text).
    """

    def __init__(self, address: str) -> None:
        self.rejected: list[tuple[bytes, str]] = []
        self.rejected_messages = 0
        parsed = parse(address, bind=True)
        self._context: zmq.Context[Socket] = zmq.Context()
        try:
            self._router = sockets.open_socket(self._context, zmq.ROUTER, HEADER_BYTES_MAX)
            self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
            self.address = sockets.bind(self._router, parsed)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._poller = zmq.Poller()
        self._poller.register(self._router, zmq.POLLIN)
        self._beat = encode(Beat())

    def receive(self, timeout_s: float | None) -> list[tuple[bytes, Message]]:
        """All that is here (at most 256), as (identity, message); waits like a worker's `receive`.

        Beats of hearts are answered here, and come back under the identity of their worker.
        """
        found = self._drain()
        if not found and timeout_s != 0:
            sockets.wait(self._poller, timeout_s)
            found = self._drain()
        return found

    def send(self, identity: bytes, message: Message) -> None:
        """Send to one worker; never blocks. Nothing happens if it is gone."""
        if type(message) not in FROM_COORDINATOR:
            raise LocalProtocolError(f"{type(message).__name__} is no message to a worker")
        self._send(identity, encode(message))

    def close(self, linger_s: float) -> None:
        """Close the socket; what has not left after `linger_s` is given up."""
        sockets.close(self._context, self.address, linger_s)

    def _send(self, identity: bytes, frames: list[Any]) -> None:
        try:
            self._router.send_multipart([identity, *frames], zmq.NOBLOCK)
        except zmq.Again:
            pass  # a peer that reads nothing is as good as gone; its silence will tell
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise

    def _drain(self) -> list[tuple[bytes, Message]]:
        found: list[tuple[bytes, Message]] = []
        for _ in range(_RECEIVED_MAX):
            frames = sockets.receive(self._router)
            if frames is None:
                break
            identity = bytes(frames[0])
            try:
                found.append(self._attribute(identity, frames[1:]))
            except RemoteProtocolError as error:
                self._reject(identity, str(error))
        return found

    def _attribute(self, identity: bytes, frames: list[Buffer]) -> tuple[bytes, Message]:
        message = _decode_from(frames, FROM_WORKER, _CONTROL_LIMITS)
        # ZeroMQ names peers that do not name themselves: a zero byte, then a number of any bytes.
        if identity.startswith(b"\0") or not identity.endswith(HEART_SUFFIX):
            return identity, message
        if type(message) is not Beat:
            raise RemoteProtocolError(f"a heart may only beat, not send {type(message).__name__}")
        self._send(identity, self._beat)
        return identity.removesuffix(HEART_SUFFIX), message

    def _reject(self, identity: bytes, text: str) -> None:
        self.rejected_messages += 1
        if len(self.rejected) < _REJECTED_MAX and all(
            peer != identity for peer, _ in self.rejected
        ):
            self.rejected.append((identity, text))
            self.send(identity, Refused(RemoteProtocolError.__name__, text))


def _decode_from(
    frames: list[Buffer], allowed: frozenset[type[Message]], limits: Limits
) -> Message:
    message = decode(frames, limits)
    if type(message) not in allowed:
        raise RemoteProtocolError(f"{type(message).__name__} may not come from this peer")
    return message
