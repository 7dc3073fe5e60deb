"""Both transports over real sockets, ipc and tcp on this machine."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import zmq

from asyncdni.config import Limits
from asyncdni.errors import (
    LaunchError,
    LimitExceeded,
    LocalProtocolError,
    RemoteProtocolError,
)
from asyncdni.messages import (
    COORDINATOR,
    PROTOCOL_VERSION,
    Activation,
    Beat,
    Credit,
    Gradient,
    Hello,
    Interrupt,
    Message,
    Ready,
    Refused,
    Start,
)
from asyncdni.transports import sockets, zeromq
from asyncdni.transports.address import private_folder
from asyncdni.transports.codec import decode
from asyncdni.transports.zeromq import CoordinatorTransport, WorkerTransport

PATIENCE_S = 20.0  # ends a test that would hang; nothing takes that long
HELLO = Hello(PROTOCOL_VERSION, "1", "tcp://127.0.0.1:1", 1, "here")


class Site:
    """A coordinator's address of one kind, and everything opened there, closed at the end."""

    def __init__(self, stack: ExitStack, kind: str) -> None:
        self._stack = stack
        self.kind = kind
        self.folder = stack.enter_context(private_folder())
        self.address = "tcp://127.0.0.1:0" if kind == "tcp" else f"ipc://{self.folder}/coordinator"

    def coordinator(self) -> CoordinatorTransport:
        transport = CoordinatorTransport(self.address)
        self._stack.callback(transport.close, 0)
        self.address = transport.address
        return transport

    def worker(self, limits: Limits | None = None) -> WorkerTransport:
        """With these limits, or those that hold until a worker is told."""
        transport = WorkerTransport(self.address)
        if limits is not None:
            transport.limit(limits)
        self._stack.callback(transport.close, 0)
        return transport

    def raw(self, kind: int, address: str) -> zmq.Socket[bytes]:
        """A peer that keeps to no protocol."""
        context = zmq.Context()
        self._stack.callback(context.destroy, 0)
        peer = context.socket(kind)
        self._stack.callback(peer.close, 0)
        peer.connect(address)
        return peer


@pytest.fixture(params=["ipc", "tcp"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack, request.param)


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


# --- worker and worker ---------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [64, 64 * 1024, 1024 * 1024], ids=["small", "copied", "view"])
def test_a_batch_arrives_as_it_was_sent(site: Site, elements: int) -> None:
    a, b = pair(site)
    sent = activation(elements)
    a.send("b", sent)
    got = received(b)
    assert isinstance(got, Activation)
    for name, tensor in sent.tensors.items():
        np.testing.assert_array_equal(got.tensors[name], tensor)
        assert got.tensors[name].dtype == tensor.dtype
    assert not got.tensors["h"].flags.writeable
    assert a.bytes_sent == b.bytes_received > elements * 4


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1, 1, 1, 5)])
def test_tensors_of_odd_shapes_arrive(site: Site, shape: tuple[int, ...]) -> None:
    a, b = pair(site)
    a.send("b", Gradient("a", 0, 1, {"x": np.ones(shape), "y": np.ones(shape, bool)}))
    got = received(b)
    assert isinstance(got, Gradient)
    assert got.tensors["x"].shape == got.tensors["y"].shape == shape
    assert got.tensors["x"].all() and got.tensors["y"].all()


def test_a_small_tensor_may_be_rewritten_at_once(site: Site) -> None:
    a, b = pair(site)
    h = np.ones((4, 4), np.float32)
    assert a.send("b", Gradient("a", 0, 1, {"b": h})) is None
    h[:] = 2
    got = received(b)
    assert isinstance(got, Gradient)
    np.testing.assert_array_equal(got.tensors["b"], np.ones((4, 4)))


def test_a_large_tensor_is_not_copied_and_its_release_is_told(site: Site) -> None:
    site.coordinator()
    a, b = site.worker(), site.worker()
    h = np.ones(sockets.COPY_BELOW_BYTES // 4, np.float32)
    # The receiver is not there yet, so ZeroMQ must hold on to the array itself.
    nobody = f"ipc://{site.folder}/later"
    a.connect({"b": nobody})
    sent = a.send("b", Gradient("a", 0, 1, {"b": h}))
    assert sent is not None and not sent()
    h[0] = 2
    b = site.raw(zmq.PULL, "tcp://127.0.0.1:1")
    b.bind(nobody)
    assert b.poll(int(PATIENCE_S * 1000))
    _, frame = b.recv_multipart()
    np.testing.assert_array_equal(np.frombuffer(frame, np.float32), h)
    wait_until(sent)


def test_a_message_with_several_large_tensors_is_sent_when_all_are(site: Site) -> None:
    a, b = pair(site)
    tensors = {name: np.full((512, 512), i, np.float32) for i, name in enumerate("xyz")}
    sent = a.send("b", Gradient("a", 0, 1, tensors))
    assert sent is not None
    got = received(b)
    assert isinstance(got, Gradient)
    wait_until(sent)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(got.tensors[name], tensor)


def test_received_tensors_outlive_the_socket(site: Site) -> None:
    a, b = pair(site)
    sent = activation(1024 * 64)
    a.send("b", sent)
    got = received(b)
    b.close(0)
    assert isinstance(got, Activation)
    np.testing.assert_array_equal(got.tensors["h"], sent.tensors["h"])


def test_control_comes_before_data(site: Site) -> None:
    coordinator, worker, peer = site.coordinator(), site.worker(), site.worker()
    worker.send(COORDINATOR, HELLO)
    coordinator.receive(PATIENCE_S)
    peer.connect({"worker": worker.address})
    credit = Credit("peer", 0, "worker", 1, 2)
    peer.send("worker", credit)
    poller = zmq.Poller()
    poller.register(worker._data, zmq.POLLIN)
    assert poller.poll(int(PATIENCE_S * 1000))
    coordinator.send(worker.identity, Interrupt())
    poller = zmq.Poller()
    poller.register(worker._control, zmq.POLLIN)
    assert poller.poll(int(PATIENCE_S * 1000))
    assert worker.receive(PATIENCE_S) == [Interrupt(), credit]


@pytest.mark.parametrize(
    "frames",
    [
        [b"garbage"],
        [b"\x91\xa5Abort", b"x"],
        [b"\x92\xa5Abort\xa4stop"],  # only a coordinator says so
        [b"\x95\xa8Gradient\xa1b\x00\x01\x81\xa1b\x92\xa7float32\x91\x02", b"1234567"],
    ],
    ids=repr,
)
def test_garbage_from_a_neighbour_is_told_with_its_socket(site: Site, frames: list[bytes]) -> None:
    site.coordinator()
    worker = site.worker()
    site.raw(zmq.PUSH, worker.address).send_multipart(frames)
    with pytest.raises(RemoteProtocolError, match=f"data socket {worker.address}: "):
        worker.receive(PATIENCE_S)


def test_a_message_over_the_limit_is_not_sent(site: Site) -> None:
    a, b = pair(site, Limits(message_bytes=10_000))
    with pytest.raises(
        LimitExceeded, match=r"Activation of \d+ bytes .* limits\.message_bytes = 10000"
    ):
        a.send("b", activation(64 * 64))
    a.send("b", Credit("a", 0, "b", 1, 2))
    assert received(b) == Credit("a", 0, "b", 1, 2)


def test_a_limit_on_messages_between_workers_spares_control(site: Site) -> None:
    coordinator, worker = site.coordinator(), site.worker(Limits(message_bytes=1))
    worker.send(COORDINATOR, HELLO)
    assert coordinator.receive(PATIENCE_S) == [(worker.identity, HELLO)]
    coordinator.send(worker.identity, Start())
    assert received(worker) == Start()


def test_a_message_over_the_limit_is_an_error_of_its_sender(site: Site) -> None:
    a, b = pair(site)
    b.limit(Limits(message_bytes=10_000))
    a.send("b", activation(64 * 64))
    with pytest.raises(RemoteProtocolError, match="at most 10000 are allowed"):
        b.receive(PATIENCE_S)


def test_a_limit_above_the_default_is_kept_on_both_sides(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zeromq, "Limits", lambda: Limits(message_bytes=1))  # the default
    a, b = pair(site, Limits(message_bytes=1_000_000))
    a.send("b", activation(64 * 64))
    assert isinstance(received(b), Activation)


def test_a_wait_takes_nothing_and_ends_when_something_is_here(site: Site) -> None:
    a, b = pair(site)
    credit = Credit("a", 0, "b", 1, 2)
    a.send("b", credit)
    b.wait(None)
    assert b.messages == 0
    assert b.receive(0) == [credit]
    b.wait(0.001)
    assert b.counters() == {
        "bytes_sent": 0,
        "bytes_received": a.bytes_sent,
        "messages": 1,
    }


def test_a_peer_that_sends_a_giant_frame_is_cut_off(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zeromq, "MESSAGE_BYTES_MAX", 10_000)
    site.coordinator()
    worker = site.worker()
    greedy = site.raw(zmq.PUSH, worker.address)
    monitor = greedy.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    greedy.send(bytes(20_000))
    assert monitor.poll(int(PATIENCE_S * 1000))
    greedy.disable_monitor()
    monitor.close()
    assert worker.receive(0) == []


def test_a_full_queue_is_an_error_and_no_wait(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_QUEUE_MAX", 8)
    site.coordinator()
    worker = site.worker()
    worker.connect({"hangs": f"ipc://{site.folder}/nobody"})
    with pytest.raises(LimitExceeded, match="8 messages wait"):
        for _ in range(9):
            worker.send("hangs", Credit("a", 0, "b", 1, 2))


def test_a_message_in_the_wrong_direction_is_not_sent(site: Site) -> None:
    coordinator = site.coordinator()
    a, _ = site.worker(), site.worker()
    a.connect({"b": a.address})
    with pytest.raises(LocalProtocolError, match="Hello is no message to 'b'"):
        a.send("b", HELLO)
    with pytest.raises(LocalProtocolError, match="Start is no message"):
        a.send(COORDINATOR, Start())
    with pytest.raises(LocalProtocolError, match="Ready is no message to a worker"):
        coordinator.send(a.identity, Ready(1))
    with pytest.raises(LocalProtocolError, match=r"no connection to 'c', only to \['b'\]"):
        a.send("c", Credit("a", 0, "b", 1, 2))


def test_an_endpoint_that_is_none_is_told(site: Site) -> None:
    site.coordinator()
    with pytest.raises(LaunchError, match="expected tcp://host:port"):
        site.worker().connect({"b": "nonsense"})


def test_a_neighbour_that_has_moved_is_found_again(site: Site) -> None:
    a, old = pair(site)
    old.close(0)
    new = site.worker()
    a.connect({"b": new.address})
    a.send("b", Credit("a", 0, "b", 1, 2))
    assert received(new) == Credit("a", 0, "b", 1, 2)


# --- opening and closing -------------------------------------------------------------------------


def test_a_port_or_path_in_use_is_told(site: Site) -> None:
    site.coordinator()
    with pytest.raises(LaunchError, match="in use"):
        CoordinatorTransport(site.address)


@pytest.mark.parametrize(
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
        modes = [stat.S_IMODE(path.stat().st_mode) for path in site.folder.iterdir()]
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
    assert list(site.folder.iterdir()) == []


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
    assert list(site.folder.iterdir()) == []
