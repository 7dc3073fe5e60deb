"""Strangers and peers at tcp ports: how many there may be, and what they make a process hold."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from wire import (
    HELLO,
    PATIENCE_S,
    Site,
    activation,
    make_keys,
    need_ipv6,
    pair,
    received,
    wait_until,
)

from asyncdni.config import Limits
from asyncdni.messages import COORDINATOR, Ready, Start
from asyncdni.wire import port
from asyncdni.wire.address import split_key
from asyncdni.wire.worker import WorkerTransport

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "TCP_INFO"), reason="this system does not tell what a connection has sent"
)

MIB = 2**20
MORE = b"\x01"  # flag of a frame that is not the last one of its message
MORE_LONG = b"\x03"  # the same with eight bytes of length


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def site(stack: ExitStack) -> Site:
    return Site(stack, "tcp")


class Stranger:
    """A connection to an address of ours, without ZeroMQ."""

    def __init__(self, stack: ExitStack, address: str) -> None:
        host, _, at = split_key(address)[0].removeprefix("tcp://").rpartition(":")
        here = host.strip("[]"), int(at)
        self.socket = stack.enter_context(socket.create_connection(here))
        self.socket.settimeout(PATIENCE_S)

    def greet(self, mechanism: bytes) -> None:
        signature = b"\xff" + bytes(8) + b"\x7f\x03\x00"
        self.socket.sendall(signature + mechanism.ljust(20, b"\0") + bytes(32))

    def come_in(self, kind: bytes) -> None:
        """As a peer without a key."""
        self.greet(b"NULL")
        ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
        self.socket.sendall(b"\x04" + bytes([len(ready)]) + ready)
        came = b""
        while b"READY" not in came:
            came += self.socket.recv(1000)

    def sent_until_closed(self, part: bytes) -> int:
        """Bytes that were taken of `part`, again and again, until the other side closed."""
        ends_at = time.monotonic() + PATIENCE_S
        sent = 0
        with suppress(ConnectionError):
            while time.monotonic() < ends_at and sent < 1024 * MIB:
                sent += self.socket.send(part)
            raise AssertionError(f"{sent} bytes were taken")
        return sent

    def is_closed(self) -> bool:
        self.socket.setblocking(False)
        try:
            while self.socket.recv(1000):
                pass
        except BlockingIOError:
            return False
        except ConnectionError:
            pass
        return True


def frame(size: int) -> bytes:
    return MORE_LONG + struct.pack(">Q", size) + bytes(size)


def exchange(a: WorkerTransport, b: WorkerTransport, elements: int) -> None:
    a.send("b", activation(elements))
    assert received(b).tensors["h"].size == elements  # type: ignore[attr-defined]


# --- how many ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [False, True])
def test_of_too_many_silent_connections_the_oldest_go_and_peers_stay(
    stack: ExitStack, keys: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "_descriptors", lambda: 40)  # of which 10 may be silent
    site = Site(stack, "tcp", make_keys() if keys else None)
    coordinator, worker = site.coordinator(), site.worker()
    worker.send(COORDINATOR, HELLO)
    assert coordinator.receive(PATIENCE_S) == [(worker.identity, HELLO)]
    for address in (coordinator.address, worker.address):
        strangers = [Stranger(stack, address) for _ in range(25)]
        wait_until(lambda: all(one.is_closed() for one in strangers[:15]))  # noqa: B023
        assert not strangers[-1].is_closed()
    assert coordinator.receive(0) == []
    assert [peer for peer, _ in coordinator.rejected] == [b""]
    assert "connections that had sent nothing yet" in coordinator.rejected[0][1]
    worker.send(COORDINATOR, Ready(1))
    assert coordinator.receive(PATIENCE_S) == [(worker.identity, Ready(1))]
    coordinator.send(worker.identity, Start())
    assert received(worker) == Start()


def test_of_too_many_connections_that_have_spoken_the_newest_go(
    site: Site, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "_descriptors", lambda: 8)  # of which 4 may be connections
    coordinator, worker = site.coordinator(), site.worker()
    worker.send(COORDINATOR, HELLO)
    assert coordinator.receive(PATIENCE_S) == [(worker.identity, HELLO)]
    talkers = []
    for _ in range(3):
        talkers.append(Stranger(stack, coordinator.address))
        talkers[-1].come_in(b"DEALER")
        talkers[-1].socket.sendall(b"\x00\x01x")
        before = coordinator.rejected_messages
        while coordinator.rejected_messages == before:
            coordinator.receive(PATIENCE_S)
    last = Stranger(stack, coordinator.address)
    wait_until(last.is_closed)
    assert not any(one.is_closed() for one in talkers)
    worker.send(COORDINATOR, Ready(1))
    assert coordinator.receive(PATIENCE_S) == [(worker.identity, Ready(1))]


# --- how much ------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [frame(MIB), frame(200), (MORE + b"\x00") * 50_000])
def test_a_message_without_an_end_is_cut_off_at_both_ports(
    site: Site, stack: ExitStack, part: bytes
) -> None:
    coordinator = site.coordinator()
    a, b = site.worker(), site.worker()
    a.connect({"b": b.address})
    b.expect(100_000, peers=1)
    exchange(a, b, 6400)
    for address, kind in ((coordinator.address, b"DEALER"), (b.address, b"PUSH")):
        stranger = Stranger(stack, address)
        stranger.come_in(kind)
        # Nobody reads meanwhile, as in a long op.
        assert stranger.sent_until_closed(part) < 256 * MIB
    assert coordinator.receive(0) == b.receive(0) == []
    assert [text for _, text in coordinator.rejected if "closed the connection from" in text]
    assert "closed the connection from 127.0.0.1:" in b.rejected[0]
    exchange(a, b, 6400)
    a.send(COORDINATOR, HELLO)
    assert coordinator.receive(PATIENCE_S) == [(a.identity, HELLO)]


def test_a_port_of_ipv6_has_the_same_limits_and_names_the_peer(stack: ExitStack) -> None:
    need_ipv6()
    coordinator = Site(stack, "ipv6").coordinator()
    stranger = Stranger(stack, coordinator.address)
    stranger.come_in(b"DEALER")
    stranger.sent_until_closed(frame(MIB))
    wait_until(lambda: not coordinator.receive(0) and bool(coordinator.rejected))
    own = stranger.socket.getsockname()[1]
    assert f"closed the connection from [::1]:{own}: " in coordinator.rejected[0][1]


def test_who_reads_on_finds_the_end_missing_sooner(site: Site, stack: ExitStack) -> None:
    site.coordinator()
    b = site.worker()
    b.expect(2 * MIB, peers=1)
    stranger = Stranger(stack, b.address)
    stranger.come_in(b"PUSH")
    part = frame(MIB)
    for _ in range(8):
        stranger.socket.sendall(part)
    while not b.rejected:
        assert b.receive(0.01) == []
    assert "of an endless message; the longest allowed has 2,097,152" in b.rejected[0]
    wait_until(stranger.is_closed)


def test_many_that_hold_a_part_each_have_one_limit(site: Site, stack: ExitStack) -> None:
    site.coordinator()
    b = site.worker()
    b.expect(4 * MIB, peers=2)
    strangers = [Stranger(stack, b.address) for _ in range(5)]
    for one in strangers:
        one.come_in(b"PUSH")
        one.socket.sendall(frame(3 * MIB))  # less than the longest message
    while sum(one.is_closed() for one in strangers) < 2:
        assert b.receive(0.01) == []
    assert "bytes of unfinished messages" in b.rejected[0]


def test_without_a_key_nobody_gets_far(stack: ExitStack) -> None:
    site = Site(stack, "tcp", make_keys())
    coordinator, worker = site.coordinator(), site.worker(Limits())
    for address in (coordinator.address, worker.address):
        stranger = Stranger(stack, address)
        stranger.greet(b"CURVE")
        stranger.socket.sendall(b"\x06" + struct.pack(">Q", MIB // 2) + bytes(MIB // 4))
        wait_until(stranger.is_closed)
    coordinator.receive(0)
    assert "shown no key" in coordinator.rejected[0][1]
    worker.send(COORDINATOR, HELLO)
    assert coordinator.receive(PATIENCE_S) == [(worker.identity, HELLO)]


@pytest.mark.parametrize("keys", [False, True])
def test_whole_messages_may_wait_however_long_they_are(stack: ExitStack, keys: bool) -> None:
    site = Site(stack, "tcp", make_keys() if keys else None)
    a, b = pair(site, Limits(message_bytes=64 * MIB))
    if keys:
        b.connect({"a": a.address})
    sent = activation(2 * MIB)  # 8 MiB, and labels
    size = sum(tensor.nbytes for tensor in sent.tensors.values())
    b.expect(size, peers=1)
    a.send("b", sent)
    assert len(b.receive(PATIENCE_S) or b.receive(PATIENCE_S)) == 1
    watched = b._arrivals._port
    assert watched is not None
    for _ in range(2):
        for _ in range(12):
            a.send("b", sent)
        # All of them have come, and have been looked at, before the first one is received.
        wait_until(lambda: len(b._arrivals._ahead) >= 10)
        found = 0
        while found < 12:
            found += len(b.receive(PATIENCE_S))
        assert b.receive(0) == []
    assert b.rejected == []
    assert len(watched._connections) == 1
