"""What strangers can and can't do: nonsense at every socket, eavesdropping, code in data."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import benchmarking
import pytest
import zmq
from wire import HELLO, PATIENCE_S, Site, make_keys, received

from asyncdni.config import Limits
from asyncdni.errors import CheckpointError, RemoteProtocolError
from asyncdni.messages import COORDINATOR, Credit, Ready, Refused
from asyncdni.store.tensors import StoredStage, load_stage
from asyncdni.wire.address import split_key
from asyncdni.wire.coordinator import CoordinatorTransport
from asyncdni.wire.worker import WorkerTransport

MESSAGES = 20_000
GROWTH_BYTES_MAX = 32 * 2**20
nonsense = benchmarking.module("faults/nonsense.py")


@pytest.fixture(params=["ipc", "tcp"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack, request.param)


def rss_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    pytest.skip("this system does not tell how much memory a process has")


# --- nonsense ------------------------------------------------------------------------------------


def credit(number: int) -> Credit:
    return Credit("a", 1, "b", number, number)


def flood(peer: zmq.Socket[bytes], messages: Iterator[list[bytes]], count: int) -> None:
    for _ in range(count):
        peer.send_multipart(next(messages))


def exchanged(a: WorkerTransport, b: WorkerTransport, number: int) -> int:
    """Messages that a and b got until one from the other came, in both directions."""
    seen = 0
    for sender, receiver, name in ((a, b, "b"), (b, a, "a")):
        sender.send(name, credit(number))
        while True:
            found = receiver.receive(PATIENCE_S)
            seen += len(found)
            if credit(number) in found:
                break
    return seen


def test_workers_go_on_exchanging_while_nonsense_pours_in(site: Site) -> None:
    site.coordinator()
    a, b = site.worker(), site.worker()
    a.connect({"b": b.address})
    b.connect({"a": a.address})
    peers = [site.raw(zmq.PUSH, worker.address) for worker in (a, b)]
    messages = nonsense.make_nonsense(5, nonsense.templates(["a", "b"]))
    before = 0
    for number in range(MESSAGES // 200):
        for peer in peers:
            flood(peer, messages, 100)
        exchanged(a, b, number)
        if number == 10:
            before = rss_bytes()
    handled = sum(worker.messages for worker in (a, b))
    while handled < MESSAGES:
        for worker in (a, b):
            worker.receive(0.001)
        handled = sum(worker.messages for worker in (a, b))
    rejected = sum(worker.counters()["rejected_messages"] for worker in (a, b))
    assert rejected > MESSAGES / 2
    assert len(a.rejected) == len(b.rejected) == 17  # the last one counts the others
    assert rss_bytes() - before < GROWTH_BYTES_MAX


def test_a_coordinator_goes_on_answering_while_nonsense_pours_in(site: Site) -> None:
    coordinator, worker = site.coordinator(), site.worker()
    peer = site.raw(zmq.DEALER, coordinator.address)
    messages = nonsense.make_nonsense(6, nonsense.templates(["a"]))
    before = 0
    worker.send(COORDINATOR, HELLO)
    for number in range(MESSAGES // 100):
        flood(peer, messages, 100)
        worker.send(COORDINATOR, Ready(number))
        await_word(coordinator, worker, number)
        if number == 10:
            before = rss_bytes()
    assert coordinator.rejected_messages > MESSAGES / 2
    assert len(coordinator.rejected) == 1
    assert rss_bytes() - before < GROWTH_BYTES_MAX
    assert worker.receive(0) == []  # nobody but the peer was refused


def await_word(coordinator: CoordinatorTransport, worker: WorkerTransport, number: int) -> None:
    while (worker.identity, Ready(number)) not in coordinator.receive(PATIENCE_S):
        pass


def test_a_worker_takes_nonsense_from_its_coordinator_as_an_error_each_time(site: Site) -> None:
    """It has chosen that peer itself: the first one ends it."""
    router = site.raw(zmq.ROUTER)
    router.bind(site.address)
    site.address = router.getsockopt_string(zmq.LAST_ENDPOINT)
    worker = site.worker()
    worker.send(COORDINATOR, HELLO)
    assert router.poll(int(PATIENCE_S * 1000))
    identity, _ = router.recv_multipart()
    messages = nonsense.make_nonsense(7, nonsense.templates(["a"]))
    for _ in range(2000):
        router.send_multipart([identity, *next(messages)])
        with suppress(RemoteProtocolError):
            worker.receive(PATIENCE_S)
    router.send_multipart([identity, b"\x93\xa7Refused\xa1k\xa1t"])
    assert received(worker) == Refused("k", "t")


def test_the_nonsense_is_the_same_for_the_same_seed_and_mostly_none() -> None:
    originals = nonsense.templates(["a"])
    one, other = (nonsense.make_nonsense(1, originals) for _ in range(2))
    assert [next(one) for _ in range(500)] == [next(other) for _ in range(500)]


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + b"\0" + bytes(31)


def test_a_stranger_that_announces_a_giant_frame_before_its_key_is_cut_off() -> None:
    keys = make_keys()
    with ExitStack() as stack:
        site = Site(stack, "tcp", keys)
        coordinator, worker = site.coordinator(), site.worker(Limits(message_bytes=2**20))
        for address in (coordinator.address, split_key(worker.address)[0]):
            port = int(address.rpartition(":")[2])
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            stranger.settimeout(PATIENCE_S)
            stranger.sendall(GREETING + b"\x06" + (3 * 2**30).to_bytes(8, "big"))
            with suppress(ConnectionResetError):
                while stranger.recv(1000):  # its greeting, then the end
                    pass
        worker.send(COORDINATOR, HELLO)
        assert coordinator.receive(PATIENCE_S) == [(worker.identity, HELLO)]


# --- eavesdropping -------------------------------------------------------------------------------


class Tap:
    """Forwards tcp connections to an address, and keeps what passes."""

    def __init__(self, stack: ExitStack, port: int) -> None:
        self.passed = bytearray()
        self._port = port
        self._listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._port))
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._forward, args=(source, target), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with source, suppress(OSError):
            while chunk := source.recv(65536):
                self.passed += chunk
                target.sendall(chunk)


@pytest.mark.parametrize("secure", [False, True], ids=["without-keys", "with-keys"])
def test_what_is_sent_can_be_read_on_the_way_without_keys_alone(secure: bool) -> None:
    keys = make_keys() if secure else None
    with ExitStack() as stack:
        coordinator = CoordinatorTransport("tcp://127.0.0.1:0", keys)
        stack.callback(coordinator.close, 0)
        tap = Tap(stack, int(coordinator.address.rpartition(":")[2]))
        worker = WorkerTransport(tap.address, keys)
        stack.callback(worker.close, 0)
        hello = HELLO.__class__(1, "a stage with a name", "tcp://127.0.0.1:1", 1, "host")
        worker.send(COORDINATOR, hello)
        assert coordinator.receive(PATIENCE_S) == [(worker.identity, hello)]
        assert (b"a stage with a name" in tap.passed) == (not secure)


# --- code in data --------------------------------------------------------------------------------


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))


def test_a_pickle_in_place_of_weights_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    (tmp_path / "a.safetensors").write_bytes(pickle.dumps(Bomb(str(mark))))
    for read in (load_stage, StoredStage):
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            read(tmp_path, "a")
    assert not mark.exists()


def test_a_pickle_as_a_message_is_dropped_and_not_run(site: Site, tmp_path: Path) -> None:
    coordinator, worker = site.coordinator(), site.worker()
    mark = tmp_path / "was-run"
    bomb = pickle.dumps(Bomb(str(mark)))
    site.raw(zmq.DEALER, coordinator.address).send_multipart([bomb, bomb])
    site.raw(zmq.PUSH, worker.address).send_multipart([bomb, bomb])
    assert coordinator.receive(PATIENCE_S) == []
    assert worker.receive(PATIENCE_S) == []
    assert coordinator.rejected_messages == worker.counters()["rejected_messages"] == 1
    assert not mark.exists()
