"""Both transports over real sockets, ipc and tcp on this machine."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import zmq
from each import each
from wire import HELLO, PATIENCE_S, Site, activation, pair, received, wait_until

from asyncdni.config import Limits
from asyncdni.errors import LaunchError
from asyncdni.messages import COORDINATOR, Beat, Gradient, Message, Ready, Refused, Start
from asyncdni.wire.codec import decode
from asyncdni.wire.coordinator import CoordinatorTransport
from asyncdni.wire.worker import WorkerTransport


@pytest.fixture(params=["ipc", "tcp"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack, request.param)


# --- worker and coordinator ----------------------------------------------------------------------


def test_a_worker_and_its_coordinator_talk(site: Site) -> None:
    coordinator, worker = site.coordinator(), site.worker()
    assert worker.send(COORDINATOR, HELLO) is None
    assert coordinator.receive(PATIENCE_S) == [(worker.identity, HELLO)]
    coordinator.send(worker.identity, Start())
    assert received(worker) == Start()
    assert worker.messages == 2
    assert worker.bytes_sent > worker.bytes_received > 0


def test_a_worker_may_come_before_its_coordinator(site: Site) -> None:
    site.coordinator().close(0)
    worker = site.worker()
    worker.send(COORDINATOR, HELLO)
    assert site.coordinator().receive(PATIENCE_S) == [(worker.identity, HELLO)]


def test_messages_keep_their_order(site: Site) -> None:
    coordinator, worker = site.coordinator(), site.worker()
    for parameters in range(600):
        worker.send(COORDINATOR, Ready(parameters))
    found: list[Message] = []
    while len(found) < 600:
        got = coordinator.receive(PATIENCE_S)
        assert len(got) <= 256
        found += [message for _, message in got]
    assert found == [Ready(parameters) for parameters in range(600)]


def test_a_receive_without_messages_gives_none_in_time(site: Site) -> None:
    coordinator, worker = site.coordinator(), site.worker()
    assert coordinator.receive(0) == coordinator.receive(0.001) == []
    assert worker.receive(0) == worker.receive(0.001) == []


def test_a_coordinator_ignores_that_a_worker_is_gone(site: Site) -> None:
    coordinator, worker = site.coordinator(), site.worker()
    coordinator.send(b"never seen", Start())
    worker.send(COORDINATOR, HELLO)
    coordinator.receive(PATIENCE_S)
    worker.close(0)
    for _ in range(3):
        coordinator.send(worker.identity, Start())
    assert coordinator.receive(0) == []


@pytest.mark.parametrize(
    "frames",
    [
        [b"garbage"],
        [b""],
        [b"", b"\x91\xa5Ready"],
        [b"\x92\xa5Ready\x01", b"more"],
        [b"\x91\xa5Start"],  # only a coordinator says so
        [b"\xdd\xff\xff\xff\xff"],
    ],
    ids=repr,
)
def test_garbage_is_dropped_by_a_coordinator_and_noted_once_a_peer(
    site: Site, frames: list[bytes]
) -> None:
    coordinator, worker = site.coordinator(), site.worker()
    stranger = site.raw(zmq.DEALER, coordinator.address)
    for _ in range(3):
        stranger.send_multipart(frames)
    stranger.send(b"\x92\xa5Ready\x01")
    found: list[tuple[bytes, Message]] = []
    for _ in range(4):  # at most one wait for each message
        found = found or coordinator.receive(PATIENCE_S)
    assert [message for _, message in found] == [Ready(1)]
    assert coordinator.rejected_messages == 3
    ((identity, text),) = coordinator.rejected
    assert identity == found[0][0]
    assert stranger.poll(int(PATIENCE_S * 1000))
    assert decode([stranger.recv()], Limits()) == Refused("RemoteProtocolError", text)
    assert not stranger.poll(0)  # the first one alone is answered
    worker.send(COORDINATOR, HELLO)
    assert coordinator.receive(PATIENCE_S) == [(worker.identity, HELLO)]


def test_a_peer_that_speaks_no_zeromq_does_no_harm() -> None:
    with ExitStack() as stack:
        site = Site(stack, "tcp")
        coordinator, worker = site.coordinator(), site.worker()
        port = int(coordinator.address.rpartition(":")[2])
        browser = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        browser.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        browser.shutdown(socket.SHUT_WR)
        worker.send(COORDINATOR, HELLO)
        assert coordinator.receive(PATIENCE_S) == [(worker.identity, HELLO)]


def test_a_heart_is_answered_and_counts_for_its_worker(site: Site) -> None:
    coordinator = site.coordinator()
    heart = site.raw(zmq.DEALER, "tcp://127.0.0.1:1")
    heart.setsockopt(zmq.IDENTITY, b"worker~")
    heart.connect(coordinator.address)
    heart.disconnect("tcp://127.0.0.1:1")
    heart.send(b"\x91\xa4Beat")
    assert coordinator.receive(PATIENCE_S) == [(b"worker", Beat())]
    assert heart.poll(int(PATIENCE_S * 1000))
    assert heart.recv() == b"\x91\xa4Beat"
    heart.send(b"\x92\xa5Ready\x01")
    assert coordinator.receive(PATIENCE_S) == []
    assert coordinator.rejected[0][0] == b"worker~"


# --- opening and closing -------------------------------------------------------------------------


def test_a_port_or_path_in_use_is_told(site: Site) -> None:
    site.coordinator()
    with pytest.raises(LaunchError, match="in use"):
        CoordinatorTransport(site.address)


@each(
    "address", ["tcp://192.0.2.1:5555", "nonsense", f"ipc:///tmp/{'x' * 200}", "ipc:///no/such/a"]
)
def test_an_address_that_is_not_ours_is_told(address: str) -> None:
    with pytest.raises(LaunchError):
        CoordinatorTransport(address)


def test_the_port_is_the_real_one() -> None:
    with ExitStack() as stack:
        coordinator = Site(stack, "tcp").coordinator()
        assert int(coordinator.address.removeprefix("tcp://127.0.0.1:")) > 0


def test_only_this_user_may_connect_to_ipc_sockets() -> None:
    with ExitStack() as stack:
        site = Site(stack, "ipc")
        site.coordinator()
        site.worker()
        modes = [stat.S_IMODE(path.stat().st_mode) for path in site.sockets()]
        assert modes == [0o600, 0o600]


def test_closing_leaves_no_files_and_no_descriptors(site: Site) -> None:
    def once() -> None:
        coordinator = CoordinatorTransport(site.address)
        a, b = (WorkerTransport(coordinator.address) for _ in range(2))
        a.connect({"b": b.address})
        a.send("b", activation(1024 * 1024))
        received(b)
        for transport in (a, b, coordinator):
            transport.close(1)
            transport.close(1)

    once()  # starts pyzmq's collector thread, which stays
    before = len(list(Path("/proc/self/fd").iterdir())) if os.path.isdir("/proc/self/fd") else 0
    once()
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert site.sockets() == []


def test_closing_flushes_what_was_sent(site: Site) -> None:
    a, b = pair(site)
    messages = [Gradient("a", 0, i, {"b": np.full((1024, 256), i, "f4")}) for i in range(8)]
    for message in messages:
        a.send("b", message)
    a.close(PATIENCE_S)
    got: list[Message] = []
    while len(got) < len(messages):
        got += b.receive(PATIENCE_S)
    assert [m.batch for m in got if isinstance(m, Gradient)] == list(range(8))


def test_closing_gives_up_what_nobody_takes(site: Site) -> None:
    site.coordinator()
    worker = site.worker()
    worker.connect({"b": f"ipc://{site.folder}/nobody"})
    sent = worker.send("b", activation(1024 * 1024))
    assert sent is not None and not sent()
    worker.close(0.01)
    wait_until(sent)


def test_a_worker_that_can_not_listen_leaves_nothing_behind(site: Site) -> None:
    with pytest.raises(LaunchError):
        WorkerTransport(f"ipc://{site.folder}/missing/coordinator")
    assert site.sockets() == []
