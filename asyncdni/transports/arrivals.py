"""What neighbours send: a worker's data socket, who may come in there, and what is dropped.

Anybody who gets in may send anything. A message that is none is dropped and counted; where the run
has keys it is known from whom it came, and that neighbour is cut off.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence

import zmq

from asyncdni.config import MESSAGE_BYTES_MAX, Limits
from asyncdni.errors import RemoteProtocolError
from asyncdni.messages import DATA, Message
from asyncdni.transports import sockets
from asyncdni.transports.address import Address
from asyncdni.transports.codec import (
    BETWEEN_WORKERS,
    Buffer,
    decode_from,
    size,
)
from asyncdni.transports.curve import KeyPair, as_server
from asyncdni.transports.gate import Gate
from asyncdni.transports.port import Port
from asyncdni.transports.sockets import Socket

__all__ = ["Arrivals"]

_TEXTS_MAX = 16  # lines for the worker's log


_Received = tuple[list[Buffer], bytes | None]  # frames, and the key of who has sent them


class Arrivals:
    """The data socket, bound to the first of `addresses` that is free. `pair` is the worker's own,
    where the run has keys.

    `rejected` has a line about each of the first messages that were dropped and the first peers
    that were refused. Raises `LaunchError` where the socket can't be bound to any.
    """

    def __init__(
        self, context: zmq.Context[Socket], addresses: Sequence[Address], pair: KeyPair | None
    ) -> None:
        self._limits = Limits()
        self.bytes_received = 0
        self.messages = 0
        self.rejected: list[str] = []
        self.unnoted = 0  # lines that are not among these
        self.rejected_messages = 0
        self._accused: list[tuple[str, str]] = []
        self._names: dict[bytes, str] = {}  # neighbours by key
        self._host = ""  # the one of them that speaks for the data as well
        self._cut_off: set[bytes] = set()
        self._gate: Gate | None = None
        self._port: Port | None = None
        #: Held by whoever uses the socket: the worker's thread, or the port's while that computes.
        self.attended = threading.RLock()
        self._ahead: deque[_Received] = deque()  # read, and not yet received
        self.socket = sockets.open_socket(context, zmq.PULL, MESSAGE_BYTES_MAX)
        if pair is not None:
            self._gate = Gate(context, final=False)
            as_server(self.socket, pair)
        if addresses[0].scheme == "tcp":  # to an ipc socket no stranger gets
            self._port = Port(
                self.socket,
                self._limits.message_bytes,
                unread=sockets.UNREAD_MAX,
                peers=1,
                keys=pair is not None,
                read_ahead=self._read_ahead,
            )
        self.endpoint = sockets.bind_to_one(self.socket, addresses)
        if self._port is not None:
            self._port.start()

    def register(self, poller: zmq.Poller) -> None:
        """Have `poller` see whatever comes."""
        poller.register(self.socket, zmq.POLLIN)
        if self._gate is not None:
            poller.register(self._gate.socket, zmq.POLLIN)

    def limit(self, limits: Limits) -> None:
        """No larger message is taken from now on. Before any neighbour connects.

        It bounds as well what a stranger can make this process hold: ZeroMQ keeps a frame of a
        connection whole before it looks at the key. Raises `LaunchError` where the port is lost.
        """
        self._limits = limits
        if self._port is not None:
            self._port.message_bytes = limits.message_bytes
            with self.attended:
                sockets.rebind(self.socket, self.endpoint, limits.message_bytes)

    def expect(self, message_bytes: int, peers: int) -> None:
        """So long is the longest message, header left out, that one of so many neighbours sends."""
        if self._port is not None:
            self._port.message_bytes = min(message_bytes, self._limits.message_bytes)
            self._port.peers = max(1, peers)

    def await_neighbours(self) -> None:
        """Neighbours will call that are not known yet: they wait until `admit`."""
        if self._gate is not None:
            self._gate.waits = True

    def admit(self, keys: Mapping[str, bytes], host: str) -> None:
        """From now on these neighbours alone are heard, by their public keys (32 bytes); each for
        itself, and `host` for the data as well."""
        self._host = host
        if self._gate is not None:
            self._names = {key: worker for worker, key in keys.items()}
            self._gate.known = set(self._names)
            self._cut_off.clear()
            self._gate.waits = False
            self._note(self._gate.answer())  # who waits there wakes nobody

    def receive(self, count: int) -> list[Message]:
        """The messages among the next `count` that are here; answers those who want to come in."""
        if self._gate is not None:
            self._note(self._gate.answer())
        if self._port is not None:
            self._tell_closed(self._port)
        found: list[Message] = []
        with self.attended:
            for _ in range(count):  # nonsense counts, or a flood would never end
                received = self._ahead.popleft() if self._ahead else self._next()
                if received is None:
                    break
                message = self._judge(*received)
                if message is not None:
                    found.append(message)
        return found

    def wait(self, poller: zmq.Poller, timeout_s: float | None) -> None:
        """`sockets.wait` with a poller that knows this socket; not where something is here."""
        with self.attended:
            if not self._ahead:
                sockets.wait(poller, timeout_s)

    def close(self) -> None:
        """Before the socket is closed."""
        if self._port is not None:
            self._port.close()

    def take_accused(self) -> list[tuple[str, str]]:
        """Neighbours that have been cut off since the last call, and for what."""
        accused, self._accused = self._accused, []
        return accused

    def _read_ahead(self) -> None:
        if not self.attended.acquire(blocking=False):
            return  # the worker is about to read by itself
        try:
            while len(self._ahead) < sockets.UNREAD_MAX:
                received = self._next()
                if received is None:
                    break
                self._ahead.append(received)
        finally:
            self.attended.release()

    def _next(self) -> _Received | None:
        if self._port is None and self._gate is None:
            frames = sockets.receive(self.socket)
            return None if frames is None else (frames, None)
        received = sockets.receive_from(self.socket, keys=self._gate is not None)
        if received is None:
            if self._port is not None:
                self._port.emptied()
            return None
        frames, origin = received
        if self._port is not None:
            self._port.heard(origin.descriptor, size(frames), len(frames), origin.key or b"")
        return frames, origin.key

    def _tell_closed(self, port: Port) -> None:
        for key, text in port.take_closed():
            if key in self._names:
                self._reject(text, key)
            else:
                self._note([text])

    def _judge(self, frames: list[Buffer], key: bytes | None) -> Message | None:
        """None for what is dropped. `key` is None where the run has none."""
        self.bytes_received += size(frames)
        self.messages += 1
        if key is not None and key not in self._names:
            self.rejected_messages += key in self._cut_off
            return None  # from one that was let in, and has been cut off or replaced
        try:
            message = decode_from(frames, BETWEEN_WORKERS, self._limits)
            if key is not None:
                self._check_sender(getattr(message, "sender", ""), self._names[key])
        except RemoteProtocolError as error:
            self._reject(str(error), key)
            return None
        return message

    def _check_sender(self, said: str, worker: str) -> None:
        if said == DATA and worker != self._host:
            what = f"the data's, which worker {worker} does not host"
            raise RemoteProtocolError(f"bad message: it says that it is {what}")
        if said not in (worker, DATA):
            raise RemoteProtocolError("bad message: it says that it is another worker's")

    def _reject(self, text: str, key: bytes | None) -> None:
        self.rejected_messages += 1
        if key is None or self._gate is None:
            self._note([f"dropped a message: {text}"])
            return
        worker = self._names.pop(key)
        self._gate.known.discard(key)
        self._cut_off.add(key)
        self._accused.append((worker, text))
        self._note([f"cut off worker {worker}: {text}"])

    def _note(self, lines: list[str]) -> None:
        fitting = max(0, _TEXTS_MAX - len(self.rejected))
        self.rejected += lines[:fitting]
        self.unnoted += len(lines[fitting:])
