"""Batches and gradients between workers over real sockets, ipc and tcp on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
import zmq
from wire import HELLO, PATIENCE_S, Site, activation, pair, received, wait_until

from asyncdni.config import Limits
from asyncdni.delays import LinkDelay
from asyncdni.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError
from asyncdni.messages import COORDINATOR, Activation, Close, Credit, Gradient, Ready, Start
from asyncdni.wire import sockets
from asyncdni.wire import worker as arrivals
from asyncdni.wire.codec import decode


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
    poller.register(worker._arrivals.socket, zmq.POLLIN)
    assert poller.poll(int(PATIENCE_S * 1000))
    coordinator.send(worker.identity, Close("final"))
    poller = zmq.Poller()
    poller.register(worker._control, zmq.POLLIN)
    assert poller.poll(int(PATIENCE_S * 1000))
    assert worker.receive(PATIENCE_S) == [Close("final"), credit]


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
def test_garbage_on_the_data_socket_is_dropped_and_counted(site: Site, frames: list[bytes]) -> None:
    a, b = pair(site)
    stranger = site.raw(zmq.PUSH, b.address)
    for number in range(1, 4):
        stranger.send_multipart(frames)
        assert b.receive(PATIENCE_S) == []
        assert b.counters()["rejected_messages"] == number
    assert len(b.rejected) == 3 and b.rejected[0].startswith("dropped a message: ")
    assert b.take_accused() == []  # nobody knows who it was
    a.send("b", Credit("a", 0, "b", 1, 2))
    assert received(b) == Credit("a", 0, "b", 1, 2)


def test_of_much_garbage_only_the_first_is_told(site: Site) -> None:
    _, b = pair(site)
    stranger = site.raw(zmq.PUSH, b.address)
    for _ in range(100):
        stranger.send(b"garbage")
    while b.counters()["rejected_messages"] < 100:
        b.receive(PATIENCE_S)
    assert len(b.rejected) == 17
    assert b.rejected[-1] == "and 84 more of these"


def test_garbage_from_the_coordinator_is_told_with_its_address(site: Site) -> None:
    router = site.raw(zmq.ROUTER)
    router.bind(site.address)
    site.address = router.getsockopt_string(zmq.LAST_ENDPOINT)
    worker = site.worker()
    worker.send(COORDINATOR, HELLO)
    assert router.poll(int(PATIENCE_S * 1000))
    identity, _ = router.recv_multipart()
    router.send_multipart([identity, b"garbage"])
    with pytest.raises(RemoteProtocolError, match=f"control socket to {site.address}: "):
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


def test_a_message_over_the_limit_is_dropped_by_its_receiver(site: Site) -> None:
    a, b = pair(site)
    b.limit(Limits(message_bytes=16_500))  # more than any frame of it has
    a.send("b", activation(64 * 64))
    assert b.receive(PATIENCE_S) == []
    assert b.rejected[0].endswith("at most 16500 are allowed")


def test_a_frame_over_the_limit_is_not_even_read_over_tcp() -> None:
    with ExitStack() as stack:
        site = Site(stack, "tcp")
        a, b = pair(site)
        b.limit(Limits(message_bytes=10_000))
        greedy = site.raw(zmq.PUSH, b.address)
        monitor = greedy.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        greedy.send(bytes(20_000))
        assert monitor.poll(int(PATIENCE_S * 1000))
        greedy.disable_monitor()
        monitor.close()
        a.send("b", Credit("a", 0, "b", 1, 2))
        assert received(b) == Credit("a", 0, "b", 1, 2)
        assert b.rejected == []


def test_a_limit_above_the_default_is_kept_on_both_sides(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "Limits", lambda: Limits(message_bytes=1))  # the default
    a, b = pair(site, Limits(message_bytes=1_000_000))
    a.send("b", activation(64 * 64))
    assert isinstance(received(b), Activation)


def test_a_wait_takes_nothing_and_ends_when_something_is_here(site: Site) -> None:
    a, b = pair(site)
    credit = Credit("a", 0, "b", 1, 2)
    a.send("b", credit)
    b.wait(None)
    assert b.messages == 0
    while not (found := b.receive(0)):
        b.wait(None)  # a peer that connects ends a wait as well
    assert found == [credit]
    b.wait(0.001)
    assert b.counters() == {
        "bytes_sent": 0,
        "bytes_received": a.bytes_sent,
        "messages": 1,
        "rejected_messages": 0,
    }


def test_a_peer_that_sends_a_giant_frame_is_cut_off(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "MESSAGE_BYTES_MAX", 10_000)
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
    with pytest.raises(LocalProtocolError, match="Ready is no message to this peer"):
        coordinator.send(a.identity, Ready(1))
    with pytest.raises(LocalProtocolError, match=r"no connection to 'c', only to \['b'\]"):
        a.send("c", Credit("a", 0, "b", 1, 2))


def test_an_endpoint_that_is_none_is_told(site: Site) -> None:
    site.coordinator()
    worker = site.worker()
    assert "expected tcp://host:port" in worker.connect({"b": "nonsense"})["b"]
    assert worker.send("b", Credit("a", 0, "b", 1, 2)) is None


def test_a_neighbour_that_has_moved_is_found_again(site: Site) -> None:
    a, old = pair(site)
    old.close(0)
    new = site.worker()
    a.connect({"b": new.address})
    a.send("b", Credit("a", 0, "b", 1, 2))
    assert received(new) == Credit("a", 0, "b", 1, 2)


def test_connecting_again_to_the_same_place_keeps_the_link_and_its_queue(site: Site) -> None:
    site.coordinator()
    a = site.worker()
    nobody = f"ipc://{site.folder}/later"
    a.connect({"b": nobody})
    a.send("b", Credit("a", 0, "b", 1, 2))
    for _ in range(3):
        a.connect({"b": nobody})
    a.send("b", Credit("a", 0, "b", 3, 4))
    late = site.raw(zmq.PULL)
    late.bind(nobody)
    for taken in (1, 3):
        assert late.poll(int(PATIENCE_S * 1000))
        assert decode([late.recv()], Limits()) == Credit("a", 0, "b", taken, taken + 1)


@pytest.mark.parametrize("slow", [False, True], ids=["plain", "emulated"])
def test_what_is_sent_to_a_lost_neighbour_is_dropped_until_it_is_connected(
    site: Site, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "_QUEUE_MAX", 8)
    site.coordinator()
    a, b = site.worker(), site.worker()
    if slow:
        a.emulate({"b": LinkDelay(latency_s=0.001, seed=0, sender="a", receiver="b")})
    a.connect({"b": f"ipc://{site.folder}/nobody"})
    a.send("b", Credit("a", 0, "b", 0, 0))
    a.lose("b")
    for taken in range(100):  # more than any queue holds
        assert a.send("b", Credit("a", 0, "b", taken, taken)) is None
    a.connect({"b": b.address})
    a.send("b", Credit("a", 0, "b", 100, 100))
    assert received(b) == Credit("a", 0, "b", 100, 100)


def test_a_lost_neighbour_may_be_where_it_was(site: Site) -> None:
    a, b = pair(site)
    a.lose("b")
    a.send("b", Credit("a", 0, "b", 1, 1))
    a.connect({"b": b.address})
    a.send("b", Credit("a", 0, "b", 2, 2))
    assert received(b) == Credit("a", 0, "b", 2, 2)


def test_losing_a_neighbour_releases_what_was_queued_for_it(site: Site) -> None:
    site.coordinator()
    a = site.worker()
    a.connect({"b": f"ipc://{site.folder}/nobody"})
    sent = a.send("b", activation(1024 * 1024))
    assert sent is not None and not sent()
    a.lose("b")
    wait_until(sent)
