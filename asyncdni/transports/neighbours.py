"""A worker's way to its neighbours: one socket each, replaced or given up as they move or die.

A socket is opened when the first message goes to its neighbour. Where that does not know this
worker's key yet, it keeps it waiting for a moment: see `gate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import zmq

from asyncdni.config import MESSAGE_BYTES_MAX
from asyncdni.delays import LinkDelay
from asyncdni.errors import LaunchError, LocalProtocolError
from asyncdni.transports import sockets
from asyncdni.transports.address import Address, parse, split_key
from asyncdni.transports.codec import Buffer
from asyncdni.transports.curve import KeyPair, as_client
from asyncdni.transports.emulation import Emulation
from asyncdni.transports.sockets import Socket

__all__ = ["Neighbours"]

#: Of one try to connect. By itself the kernel would try less and less often where a firewall drops
#: everything, and find out late that it no longer does.
_CONNECT_MS = 3000


class Neighbours:
    """Sockets by worker. `pair` is this worker's own, where the run has keys."""

    def __init__(self, context: zmq.Context[Socket], pair: KeyPair | None) -> None:
        self.keys: dict[str, bytes] = {}  # public keys (32 bytes) of those that are connected
        self._context = context
        self._pair = pair
        self._endpoints: dict[str, str] = {}  # as told, keys and all
        self._targets: dict[str, tuple[Address, bytes | None]] = {}
        self._lost: set[str] = set()
        self._sockets: dict[str, Socket] = {}
        self._emulation: Emulation | None = None

    def emulate(self, delays: Mapping[str, LinkDelay]) -> None:
        """Hold back all messages to these workers; before the first `connect`, once."""
        if delays and self._emulation is None:
            self._emulation = Emulation(delays)

    def connect(self, endpoints: Mapping[str, str]) -> dict[str, str]:
        """Where each worker is from now on: see `WorkerTransport.connect`."""
        unusable = {}
        for worker, endpoint in endpoints.items():
            if self._endpoints.get(worker) == endpoint and worker not in self._lost:
                continue
            self.lose(worker)
            try:
                target = self._target(worker, endpoint)
            except LaunchError as error:
                unusable[worker] = str(error)
                continue
            self._lost.discard(worker)
            self._endpoints[worker], self._targets[worker] = endpoint, target
            if target[1] is not None:
                self.keys[worker] = target[1]
        return unusable

    def lose(self, worker: str) -> None:
        """Drop what is queued for `worker`, and all that is sent to it until it is connected."""
        self._lost.add(worker)
        self.keys.pop(worker, None)
        socket = self._sockets.pop(worker, None)
        if socket is None:
            return
        if self._emulation is not None and worker in self._emulation:
            self._emulation.disconnect(worker)  # the socket is that thread's to close
        else:
            socket.close(linger=0)

    def is_lost(self, worker: str) -> bool:
        """Whether what is sent to `worker` is dropped."""
        return worker in self._lost

    def send(self, to: str, frames: Sequence[Buffer]) -> Callable[[], bool] | None:
        """As `sockets.send`, to one that is not lost."""
        socket = self._sockets.get(to)
        if socket is None:
            socket = self._open(to)
        if self._emulation is not None and to in self._emulation:
            self._emulation.send(to, frames)
            return None
        return sockets.send(socket, frames)

    def check(self) -> None:
        """Raise what the thread that delays messages has failed at."""
        if self._emulation is not None:
            self._emulation.check()

    def close(self, linger_s: float) -> None:
        """End that thread once all it holds has been sent, or after `linger_s`."""
        if self._emulation is not None:
            self._emulation.close(linger_s)

    def _target(self, worker: str, endpoint: str) -> tuple[Address, bytes | None]:
        text, key = split_key(endpoint)
        if (key is None) != (self._pair is None):
            has, expected = ("no key", "one") if key is None else ("a key", "none")
            raise LaunchError(
                f"worker {worker} at {text} has {has}, expected {expected}: give all processes of "
                "a run --keys, or none"
            )
        try:
            return parse(text, bind=False), key
        except LaunchError as error:
            raise LaunchError(f"worker {worker} can't be reached: {error}") from error

    def _open(self, worker: str) -> Socket:
        if worker not in self._targets:
            raise LocalProtocolError(
                f"no connection to {worker!r}, only to {sorted(self._targets)}"
            )
        address, key = self._targets[worker]
        socket = sockets.open_socket(self._context, zmq.PUSH, MESSAGE_BYTES_MAX)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_MS)
        if self._pair is not None and key is not None:
            as_client(socket, self._pair, key)
        sockets.connect(socket, address)
        self._sockets[worker] = socket
        if self._emulation is not None and worker in self._emulation:
            self._emulation.connect(worker, socket)
        return socket
