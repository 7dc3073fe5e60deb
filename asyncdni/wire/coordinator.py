"""The coordinator's socket."""

from __future__ import annotations

from typing import Any

import zmq
from zmq.utils import z85

from asyncdni.config import Limits
from asyncdni.errors import LocalProtocolError, RemoteProtocolError
from asyncdni.messages import Beat, Message, Refused
from asyncdni.wire import sockets
from asyncdni.wire.address import listening
from asyncdni.wire.codec import (
    FROM_COORDINATOR,
    FROM_WORKER,
    HEADER_BYTES_MAX,
    Buffer,
    decode_from,
    encode,
    size,
)
from asyncdni.wire.curve import Gate, Keys, as_server, coordinator_pair
from asyncdni.wire.port import Port
from asyncdni.wire.sockets import Socket

__all__ = ["HEART_SUFFIX", "CoordinatorTransport"]

#: The identity of a worker's heart is the worker's own identity and this suffix.
HEART_SUFFIX = b"~"

_LIMITS = Limits(message_bytes=HEADER_BYTES_MAX)  # messages to the coordinator have no tensors
# One `receive` returns no more than this, so that its caller acts on the messages soon.
_RECEIVED_MAX = 256  # messages
_RECEIVED_BYTES_MAX = 1 << 22
_UNSENT_MAX = 1024  # messages queued for one peer, which may never read them
_REJECTED_MAX = 64  # peers remembered for having sent nonsense


class CoordinatorTransport:
    """The coordinator's socket, bound to `address`: `tcp://host:port` (port 0: any),
    `tcp://host:first-last` (the first that is free) or `ipc://path`.

    Invalid messages are dropped and counted in `rejected_messages`. A peer's first invalid message
    is answered with `Refused` and added to `rejected` as (identity, text). Peers refused for their
    key or shut out by `Port` are added as well, without an identity (b""). The caller empties
    `rejected` when it has acted on it.

    `hears` and `says` are the kinds of messages that its peers and it may send: those of workers,
    or those of agents.

    Raises `LaunchError` if the address can't be bound, `ConfigError` if `keys` are a worker's only.
    """

    def __init__(
        self,
        address: str,
        keys: Keys | None = None,
        *,
        hears: frozenset[type[Message]] = FROM_WORKER,
        says: frozenset[type[Message]] = FROM_COORDINATOR,
    ) -> None:
        self._hears = hears
        self._says = says
        self.rejected: list[tuple[bytes, str]] = []
        self.rejected_messages = 0
        self._offenders: set[bytes] = set()
        pair = coordinator_pair(keys) if keys is not None else None
        addresses = listening(address)
        self._gate: Gate | None = None
        self._port: Port | None = None
        self._context: zmq.Context[Socket] = zmq.Context()
        try:
            self._router = sockets.open_socket(self._context, zmq.ROUTER, HEADER_BYTES_MAX)
            if keys is not None and pair is not None:
                self._gate = Gate(self._context, final=True)
                self._gate.known.add(z85.decode(keys.worker_public))
                as_server(self._router, pair)
            self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
            self._router.setsockopt(zmq.SNDHWM, _UNSENT_MAX)
            if addresses[0].scheme == "tcp":  # strangers can't reach an ipc socket
                # Workers send a few messages a second, nearly all of them short.
                self._port = Port(
                    self._router, HEADER_BYTES_MAX, unread=4, peers=16, keys=keys is not None
                )
            self.address = sockets.bind_to_one(self._router, addresses)
            if self._port is not None:
                self._port.start()
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._poller = zmq.Poller()
        self._poller.register(self._router, zmq.POLLIN)
        if self._gate is not None:
            self._poller.register(self._gate.socket, zmq.POLLIN)
        self._beat = encode(Beat())

    def receive(self, timeout_s: float | None) -> list[tuple[bytes, Message]]:
        """Return up to 256 waiting messages as (identity, message).

        Waits up to `timeout_s` (None: for ever) for the first. A heart's beats are answered here
        and returned under the identity of its worker.
        """
        before = self.rejected_messages
        found = self._drain()

        def came() -> bool:
            found.extend(self._drain())
            return bool(found) or self.rejected_messages > before

        if timeout_s != 0 and not found and self.rejected_messages == before:
            sockets.wait_until(self._poller, timeout_s, came)
        return found

    def send(self, identity: bytes, message: Message) -> bool:
        """Send to one peer; never blocks. Tell whether it is connected; nothing is sent if not."""
        if type(message) not in self._says:
            raise LocalProtocolError(f"{type(message).__name__} is no message to this peer")
        return self._send(identity, encode(message))

    def close(self, linger_s: float) -> None:
        """Close the socket; messages not sent after `linger_s` are dropped."""
        if self._port is not None:
            self._port.close()
            self._port = None
        sockets.close(self._context, self.address, linger_s)

    def _send(self, identity: bytes, frames: list[Any]) -> bool:
        try:
            self._router.send_multipart([identity, *frames], zmq.NOBLOCK)
        except zmq.Again:
            pass  # the peer reads nothing; its silence will end it
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def _drain(self) -> list[tuple[bytes, Message]]:
        if self._gate is not None:
            self.rejected += [(b"", text) for text in self._gate.answer()]
        if self._port is not None:
            self.rejected += self._port.take_closed()
        found: list[tuple[bytes, Message]] = []
        bytes_left = _RECEIVED_BYTES_MAX
        for _ in range(_RECEIVED_MAX):
            frames = self._next()
            if frames is None:
                break
            bytes_left -= size(frames)
            identity = bytes(frames[0])
            try:
                found.append(self._attribute(identity, frames[1:]))
            except RemoteProtocolError as error:
                self._reject(identity, str(error))
            if bytes_left < 0:
                break
        return found

    def _next(self) -> list[Buffer] | None:
        if self._port is None:
            return sockets.receive(self._router)
        received = sockets.receive_from(self._router, keys=False)
        if received is None:
            self._port.emptied()
            return None
        frames, origin = received
        self._port.heard(origin.descriptor, size(frames), len(frames), bytes(frames[0]))
        return frames

    def _attribute(self, identity: bytes, frames: list[Buffer]) -> tuple[bytes, Message]:
        message = decode_from(frames, self._hears, _LIMITS)
        # ZeroMQ gives a peer without an identity a random one that begins with a zero byte.
        if identity.startswith(b"\0") or not identity.endswith(HEART_SUFFIX):
            return identity, message
        if type(message) is not Beat:
            raise RemoteProtocolError(f"a heart may only beat, not send {type(message).__name__}")
        self._send(identity, self._beat)
        return identity.removesuffix(HEART_SUFFIX), message

    def _reject(self, identity: bytes, text: str) -> None:
        self.rejected_messages += 1
        if identity not in self._offenders and len(self._offenders) < _REJECTED_MAX:
            self._offenders.add(identity)
            self.rejected.append((identity, text))
            self.send(identity, Refused(RemoteProtocolError.__name__, text))
