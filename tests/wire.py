"""Real sockets for the tests of both transports: a site with its coordinator and workers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import zmq

from asyncdni.config import Limits
from asyncdni.messages import PROTOCOL_VERSION, Activation, Hello, Message
from asyncdni.wire.address import private_folder
from asyncdni.wire.coordinator import CoordinatorTransport
from asyncdni.wire.curve import Keys, new_pair
from asyncdni.wire.worker import WorkerTransport

PATIENCE_S = 20.0  # ends a test that would hang; nothing takes that long
HELLO = Hello(PROTOCOL_VERSION, "1", "tcp://127.0.0.1:1", 1, "here")


class Site:
    """A coordinator's address of one kind, and everything opened there, closed at the end."""

    def __init__(self, stack: ExitStack, kind: str, keys: Keys | None = None) -> None:
        self._stack = stack
        self.kind = kind
        self.keys = keys
        self.folder = stack.enter_context(private_folder())
        places = {"tcp": "tcp://127.0.0.1:0", "ipv6": "tcp://[::1]:0"}
        self.address = places.get(kind, f"ipc://{self.folder}/coordinator")

    def coordinator(self) -> CoordinatorTransport:
        transport = CoordinatorTransport(self.address, self.keys)
        self._stack.callback(transport.close, 0)
        self.address = transport.address
        return transport

    def sockets(self) -> list[Path]:
        """All in the folder but the mark of whose it is."""
        return [path for path in self.folder.iterdir() if not path.name.startswith(".")]

    def worker(self, limits: Limits | None = None) -> WorkerTransport:
        """With these limits, or those that hold until a worker is told."""
        transport = WorkerTransport(self.address, self.keys)
        if limits is not None:
            transport.limit(limits)
        self._stack.callback(transport.close, 0)
        return transport

    def raw(self, kind: int, address: str | None = None) -> zmq.Socket[bytes]:
        """A peer that keeps to no protocol; without an address it is connected nowhere."""
        context = zmq.Context()
        self._stack.callback(context.destroy, 0)
        peer = context.socket(kind)
        self._stack.callback(peer.close, 0)
        if address is not None:
            peer.connect(address)
        return peer


def need_ipv6() -> None:
    """Skip the test where this machine has no IPv6."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError as error:
        pytest.skip(f"this machine can't listen at ::1: {error}")


def make_keys() -> Keys:
    """As of one `asyncdni keys new`, without a folder."""
    coordinator, worker = new_pair(), new_pair()
    return Keys(coordinator.public, worker.public, coordinator, worker)


def pair(site: Site, limits: Limits | None = None) -> tuple[WorkerTransport, WorkerTransport]:
    """Two workers; the first is connected to the second under the name "b"."""
    site.coordinator()
    a, b = site.worker(limits), site.worker(limits)
    a.connect({"b": b.address})
    return a, b


def received(transport: WorkerTransport) -> Message:
    (message,) = transport.receive(PATIENCE_S)
    return message


def activation(elements: int) -> Activation:
    h = np.arange(elements, dtype=np.float32).reshape(-1, 64)
    return Activation("a", 0, 7, len(h), {"h": h, "y": np.arange(len(h))})


def wait_until(condition: Callable[[], bool]) -> None:
    """Give other threads the interpreter until the condition holds."""
    never = threading.Event()
    for _ in range(int(PATIENCE_S * 1000)):
        if condition():
            return
        never.wait(0.001)
    raise AssertionError("the condition never held")
