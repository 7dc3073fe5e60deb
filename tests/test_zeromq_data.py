"""Batches and gradients between workers over real sockets, ipc and tcp on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
import zmq
from wire import HELLO, PATIENCE_S, Site, activation, pair, received, wait_until

from asyncdni.config import Limits
from asyncdni.errors import (
    LaunchError,
    LimitExceeded,
    LocalProtocolError,
    RemoteProtocolError,
)
from asyncdni.messages import (
    COORDINATOR,
    Activation,
    Credit,
    Gradient,
    Interrupt,
    Ready,
    Start,
)
from asyncdni.transports import sockets, zeromq


@pytest.fixture(params=["ipc", "tcp"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack, request.param)


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
