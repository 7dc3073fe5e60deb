"""Who may connect where there are keys, over real sockets, ipc and tcp on this machine."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from wire import HELLO, PATIENCE_S, Site, activation, make_keys, need_ipv6, received, wait_until

from asyncdni.errors import ConfigError, LaunchError
from asyncdni.messages import COORDINATOR, Activation, Beat, Credit, Message, Start
from asyncdni.wire import codec, sockets
from asyncdni.wire.address import split_key
from asyncdni.wire.beat import PARENT_VARIABLE, Heart
from asyncdni.wire.coordinator import CoordinatorTransport
from asyncdni.wire.curve import KeyPair, Keys, as_client, new_pair
from asyncdni.wire.worker import WorkerTransport

KEYS = make_keys()
SAMPLES = {int: 3, float: 0.5, str: "text", bool: True, bytes: b"\0\xff"}
TENSORS = {"h": np.arange(12, dtype=np.float32).reshape(3, 4)}


@pytest.fixture(params=["ipc", "tcp"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack, request.param, KEYS)


def sample(kind: type[Message]) -> Message:
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        if field.required:
            values[field.name] = TENSORS if field.name == "tensors" else SAMPLES.get(field.type, {})
    values.update({"workers": ["b"]} if "workers" in values else {})
    values.update({"sender": "a"} if "sender" in values else {})
    values.update({"correct": None} if "correct" in values else {})
    return kind(**values)


def names(kind: type[Message]) -> str:
    return kind.__name__


def acquainted(site: Site, *more: str) -> tuple[WorkerTransport, ...]:
    """Workers a, b and `more`, each told where all the rest are, as the coordinator does. The data
    are at a."""
    site.coordinator()
    workers = {name: site.worker() for name in ("a", "b", *more)}
    for name, worker in workers.items():
        others = {n: w.address for n, w in workers.items() if n != name}
        worker.connect(others, host="a")
    return tuple(workers.values())


def deliver(sender: WorkerTransport, receiver: WorkerTransport, message: Message) -> Message:
    """From a to b."""
    sender.send("b", message)
    return received(receiver)


def stranger(site: Site, address: str, pair: KeyPair) -> zmq.Socket[bytes]:
    """A raw socket that may know the public key of who listens at `address`, and shows its own."""
    endpoint, key = split_key(address)
    socket = site.raw(zmq.PUSH)
    assert key is not None
    as_client(socket, pair, key)
    socket.connect(endpoint)
    return socket


def credit(number: int, sender: str = "a") -> Credit:
    return Credit(sender, 0, "b", number, number)


# --- who is let in -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(codec.FROM_WORKER, key=names), ids=names)
def test_with_keys_every_word_of_a_worker_reaches_its_coordinator(
    site: Site, kind: type[Message]
) -> None:
    coordinator, worker = site.coordinator(), site.worker()
    worker.send(COORDINATOR, sample(kind))
    assert coordinator.receive(PATIENCE_S) == [(worker.identity, sample(kind))]
    assert coordinator.rejected == []


def test_with_keys_every_order_reaches_its_worker(site: Site) -> None:
    coordinator, worker = site.coordinator(), site.worker()
    worker.send(COORDINATOR, HELLO)
    coordinator.receive(PATIENCE_S)
    orders = [sample(kind) for kind in sorted(codec.FROM_COORDINATOR, key=names)]
    for order in orders:
        coordinator.send(worker.identity, order)
    got: list[Message] = []
    while len(got) < len(orders):
        got += worker.receive(PATIENCE_S)
    assert got == orders


@pytest.mark.parametrize("kind", sorted(codec.BETWEEN_WORKERS, key=names), ids=names)
def test_with_keys_every_message_reaches_a_neighbour(site: Site, kind: type[Message]) -> None:
    a, b = acquainted(site)
    got = deliver(a, b, sample(kind))
    if "tensors" in kind.__struct_fields__:
        np.testing.assert_array_equal(got.tensors["h"], TENSORS["h"])  # type: ignore[attr-defined]
    else:
        assert got == sample(kind)
    assert b.rejected == []


@pytest.mark.parametrize("elements", [64, 1024 * 1024], ids=["small", "large"])
def test_with_keys_a_batch_arrives_as_it_was_sent(site: Site, elements: int) -> None:
    a, b = acquainted(site)
    sent = activation(elements)
    got = deliver(a, b, sent)
    assert isinstance(got, Activation)
    np.testing.assert_array_equal(got.tensors["h"], sent.tensors["h"])


def test_with_keys_a_heart_beats_and_is_answered(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat(site, monkeypatch)


def test_over_ipv6_orders_batches_and_beats_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    need_ipv6()
    with ExitStack() as stack:
        site = Site(stack, "ipv6", KEYS)
        coordinator, a, b = site.coordinator(), site.worker(), site.worker()
        assert a.address.startswith("tcp://[::1]:")
        a.connect({"b": b.address}, host="a")
        b.connect({"a": a.address}, host="a")
        deliver(a, b, activation(64))
        a.send(COORDINATOR, HELLO)
        assert coordinator.receive(PATIENCE_S) == [(a.identity, HELLO)]
        coordinator.send(a.identity, Start())
        assert received(a) == Start()
        coordinator.close(0)
        site.address = "tcp://[::1]:0"
        beat(site, monkeypatch)


def beat(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    coordinator = site.coordinator()
    reasons: queue.Queue[str] = queue.Queue()
    heart = Heart(coordinator.address, b"worker", 0.1, reasons.put, keys=KEYS, patience_s=20.0)
    heart.start()
    beats: list[tuple[bytes, Message]] = []
    while len(beats) < 3:
        beats += coordinator.receive(PATIENCE_S)
    heart.stop()
    assert set(beats) == {(b"worker", Beat())}
    assert reasons.empty()


# --- who is not ----------------------------------------------------------------------------------


def refusal(coordinator: CoordinatorTransport, worker: WorkerTransport) -> str:
    """What the worker is told, while the coordinator looks after its socket."""
    worker.send(COORDINATOR, HELLO)
    for _ in range(int(PATIENCE_S * 100)):
        assert coordinator.receive(0.001) == []
        try:
            assert worker.receive(0.01) == []
        except LaunchError as error:
            worker.send(COORDINATOR, HELLO)  # last words to nobody: no error in place of this one
            return str(error)
    raise AssertionError("nobody has told it")


def test_a_worker_without_keys_is_refused_and_told(site: Site) -> None:
    coordinator = site.coordinator()
    site.keys = None
    assert refusal(coordinator, site.worker()).endswith("give this one --keys DIR")
    assert coordinator.receive(0) == []


def test_a_worker_with_a_wrong_key_is_refused_told_and_noted(site: Site) -> None:
    coordinator = site.coordinator()
    wrong = new_pair()
    site.keys = Keys(KEYS.coordinator_public, wrong.public, None, wrong)
    assert "does not know this worker's key" in refusal(coordinator, site.worker())
    ((identity, text),) = coordinator.rejected
    assert identity == b"" and wrong.public.decode() in text
    assert ("127.0.0.1" in text) == (site.kind == "tcp")


def test_a_coordinator_with_a_wrong_key_is_not_obeyed(site: Site) -> None:
    coordinator = site.coordinator()
    site.keys = Keys(new_pair().public, KEYS.worker_public, None, KEYS.worker)
    assert "other keys than this worker expects" in refusal(coordinator, site.worker())


def test_a_coordinator_without_keys_is_not_obeyed(site: Site) -> None:
    site.keys = None
    coordinator = site.coordinator()
    site.keys = KEYS
    assert "uses no keys" in refusal(coordinator, site.worker())


def test_what_a_worker_says_to_a_coordinator_that_has_refused_it_is_no_error(site: Site) -> None:
    site.keys = None
    coordinator = site.coordinator()
    site.keys = KEYS
    worker = site.worker()
    monitor = worker._handshake
    assert monitor is not None
    for _ in range(int(PATIENCE_S * 100)):
        coordinator.receive(0.001)
        if monitor.socket.poll(10):
            break
    for _ in range(20):
        worker.send(COORDINATOR, HELLO)
        coordinator.receive(0.01)
    assert "uses no keys" in refusal(coordinator, worker)


def test_a_host_has_to_have_the_keys_of_the_part_it_plays(site: Site) -> None:
    site.keys = Keys(KEYS.coordinator_public, KEYS.worker_public, KEYS.coordinator, None)
    site.coordinator()
    with pytest.raises(ConfigError, match=r"no worker\.key"):
        site.worker()
    with pytest.raises(ConfigError, match=r"no worker\.key"):
        Heart(site.address, b"worker", 1.0, keys=site.keys)
    site.keys = Keys(KEYS.coordinator_public, KEYS.worker_public, None, KEYS.worker)
    with pytest.raises(ConfigError, match=r"no coordinator\.key"):
        site.coordinator()


def test_strangers_at_a_data_socket_are_refused_and_noted(site: Site) -> None:
    a, b = acquainted(site)
    assert KEYS.worker is not None
    own = new_pair()
    plain = site.raw(zmq.PUSH, split_key(b.address)[0])
    others = [stranger(site, b.address, pair) for pair in (own, KEYS.worker)]
    for socket in (plain, *others):
        with suppress(zmq.Again):  # it has been refused by now
            socket.send(codec.encode(credit(9))[0], zmq.NOBLOCK)
    while len(b.rejected) < 2:
        assert b.receive(0.01) == []
    assert {own.public.decode() in line for line in b.rejected} == {True, False}
    assert all(line.startswith("refused a peer at ") for line in b.rejected)
    assert deliver(a, b, credit(1)) == credit(1)
    assert b.counters()["rejected_messages"] == 0


def test_one_stranger_that_keeps_trying_is_noted_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "_HANDSHAKE_MS", 100)
    a, b = acquainted(site)
    pair = new_pair()
    for _ in range(5):
        stranger(site, b.address, pair)
    gate = b._arrivals._gate
    assert gate is not None
    while gate.refused < 5:
        assert b.receive(0.01) == []
    assert len(b.rejected) == 1
    assert deliver(a, b, credit(1)) == credit(1)


def test_a_neighbour_that_calls_before_it_is_known_gets_in_later(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "_HANDSHAKE_MS", 100)
    site.coordinator()
    a, b = site.worker(), site.worker()
    a.connect({"b": b.address})
    a.send("b", credit(1))
    while not b.rejected:
        assert b.receive(0.01) == []
    b.connect({"a": a.address})
    assert received(b) == credit(1)


def test_a_neighbour_that_calls_a_moment_too_early_waits_and_is_no_stranger(site: Site) -> None:
    site.coordinator()
    a, b = site.worker(), site.worker()
    b.await_neighbours()
    a.connect({"b": b.address})
    a.send("b", credit(1))
    gate = b._arrivals._gate
    assert gate is not None
    while gate._at_gate is None:
        assert b.receive(0.01) == []
    b.connect({"a": a.address})
    assert received(b) == credit(1)
    assert (gate.refused, b.rejected) == (0, [])


def test_an_endpoint_without_a_key_is_refused_and_so_is_one_with(site: Site) -> None:
    a, b = acquainted(site)
    assert "has no key, expected one" in a.connect({"b": split_key(b.address)[0]})["b"]
    site.keys = None
    assert "has a key, expected none" in site.worker().connect({"b": b.address})["b"]


# --- who is cut off ------------------------------------------------------------------------------


def test_a_neighbour_that_sends_nonsense_is_cut_off_and_named(site: Site) -> None:
    a, b, c = acquainted(site, "c")
    c._neighbours.send("b", [b"garbage"])
    assert b.receive(PATIENCE_S) == []
    ((worker, text),) = b.take_accused()
    assert worker == "c" and text.startswith("bad message")
    assert b.take_accused() == []
    assert b.rejected == [f"cut off worker c: {text}"]
    c.send("b", credit(1, "c"))
    assert b.receive(PATIENCE_S) == []
    assert b.counters()["rejected_messages"] == 2
    assert deliver(a, b, credit(1)) == credit(1)


def test_a_neighbour_that_speaks_for_another_is_cut_off_and_named(site: Site) -> None:
    a, b, c = acquainted(site, "c")
    c.send("b", credit(1, "a"))
    assert b.receive(PATIENCE_S) == []
    assert b.take_accused() == [("c", "bad message: it says that it is another worker's")]
    assert deliver(a, b, credit(1)) == credit(1)


def test_the_host_of_the_data_alone_speaks_for_it(site: Site) -> None:
    a, b, c = acquainted(site, "c")
    assert deliver(a, b, credit(1, "data")) == credit(1, "data")
    c.send("b", credit(1, "data"))
    assert b.receive(PATIENCE_S) == []
    ((worker, text),) = b.take_accused()
    assert (worker, text.endswith("which worker c does not host")) == ("c", True)
    b.lose("c")
    assert deliver(a, b, credit(2, "data")) == credit(2, "data")


def test_a_replaced_neighbour_is_heard_by_its_new_key_alone(site: Site) -> None:
    old, b = acquainted(site)
    assert deliver(old, b, credit(1)) == credit(1)
    new = site.worker()
    new.connect({"b": b.address})
    b.connect({"a": new.address})
    old.send("b", credit(2))
    assert b.receive(PATIENCE_S) == []
    assert deliver(new, b, credit(3)) == credit(3)
    assert b.rejected == []


def test_a_lost_neighbour_is_not_heard_until_it_is_connected(site: Site) -> None:
    a, b = acquainted(site)
    assert deliver(a, b, credit(1)) == credit(1)
    b.lose("a")
    a.send("b", credit(2))
    assert b.receive(PATIENCE_S) == []
    b.connect({"a": a.address})
    assert deliver(a, b, credit(3)) == credit(3)


def test_closing_with_keys_leaves_no_files(site: Site) -> None:
    coordinator = site.coordinator()
    a, b = site.worker(), site.worker()
    for worker, other in ((a, b), (b, a)):
        worker.connect({"other": other.address})
    a.send("other", Credit("other", 0, "b", 1, 1))
    assert len(b.receive(PATIENCE_S)) == 1
    for transport in (a, b, coordinator):
        transport.close(0.1)
    assert site.sockets() == []


def test_large_tensors_are_released_where_they_are_encrypted(site: Site) -> None:
    a, b = acquainted(site)
    sent = a.send("b", activation(1024 * 1024))
    assert sent is not None
    assert isinstance(received(b), Activation)
    wait_until(sent)


def test_a_coordinator_and_its_worker_talk_both_ways(site: Site) -> None:
    coordinator, worker = site.coordinator(), site.worker()
    worker.send(COORDINATOR, HELLO)
    assert coordinator.receive(PATIENCE_S) == [(worker.identity, HELLO)]
    coordinator.send(worker.identity, Start())
    assert received(worker) == Start()
