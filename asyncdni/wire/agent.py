"""An agent's socket, to the coordinator of its run."""

from __future__ import annotations

import secrets

import zmq

from asyncdni.config import Limits
from asyncdni.errors import LocalProtocolError
from asyncdni.messages import Message
from asyncdni.wire import sockets
from asyncdni.wire.address import parse
from asyncdni.wire.codec import FROM_AGENT, HEADER_BYTES_MAX, TO_AGENT, decode_from, encode
from asyncdni.wire.curve import Handshake, Keys, as_client, worker_pair
from asyncdni.wire.sockets import Socket

__all__ = ["AgentTransport"]

_LIMITS = Limits(message_bytes=HEADER_BYTES_MAX)  # messages to an agent have no tensors


class AgentTransport:
    """The socket of an agent, connected to the address where the coordinator hears agents. The
    coordinator need not be there yet.

    Raises `LaunchError` for an address that can't be used, `ConfigError` if `keys` are the
    coordinator's only.
    """

    def __init__(self, coordinator: str, keys: Keys | None = None) -> None:
        self.identity = secrets.token_hex(8).encode()
        pair = worker_pair(keys) if keys is not None else None
        self._context: zmq.Context[Socket] = zmq.Context()
        try:
            self._socket = sockets.open_socket(self._context, zmq.DEALER, HEADER_BYTES_MAX)
            self._socket.setsockopt(zmq.IDENTITY, self.identity)
            if keys is not None and pair is not None:
                as_client(self._socket, pair, keys.coordinator_public)
            self._handshake: Handshake | None = Handshake(
                self._socket, coordinator, keys=keys is not None
            )
            sockets.connect(self._socket, parse(coordinator, bind=False))
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)

    def send(self, message: Message) -> None:
        """Send to the coordinator, now or as soon as it is there; never blocks."""
        if type(message) not in FROM_AGENT:
            raise LocalProtocolError(f"{type(message).__name__} is no message of an agent")
        sockets.send(self._socket, encode(message))

    def receive(self, timeout_s: float) -> list[Message]:
        """Return the messages that wait; wait up to `timeout_s` seconds for the first.

        Raises `LaunchError` if the coordinator refuses the keys of this agent, and
        `RemoteProtocolError` for a message that no agent can be sent.
        """
        sockets.wait(self._poller, timeout_s)
        if self._handshake is not None and self._handshake.done():
            self._end_handshake()
        found: list[Message] = []
        while (frames := sockets.receive(self._socket)) is not None:
            found.append(decode_from(frames, TO_AGENT, _LIMITS))
        return found

    def close(self, linger_s: float) -> None:
        """Close the socket; messages not sent after `linger_s` seconds are dropped, and all of them
        where no coordinator has been there."""
        if not self._context.closed:
            linger_s = linger_s if self._handshake is None else 0.0
            self._end_handshake()
            self._context.destroy(linger=round(linger_s * 1000))

    def _end_handshake(self) -> None:
        if self._handshake is not None:
            self._handshake.close()
            self._handshake = None
