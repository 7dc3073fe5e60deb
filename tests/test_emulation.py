"""Slow links on real sockets: never sooner than asked, in order, and nothing else held up.

Only lower bounds are measured. That one thing does not wait for another is shown by order: what
must not wait arrives while the other is still held.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from wire import HELLO, PATIENCE_S, Site, activation, received, wait_until

from asyncdni.delays import LinkDelay
from asyncdni.errors import LimitExceeded
from asyncdni.messages import COORDINATOR, Activation, Credit, Gradient, Message
from asyncdni.wire import emulation, sockets
from asyncdni.wire.worker import WorkerTransport

FOR_EVER_S = 50.0  # longer than any test waits


@pytest.fixture(params=["ipc", "tcp"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack, request.param)


def slow(
    receiver: str = "b",
    *,
    latency_s: float = 0.0,
    jitter_s: float = 0.0,
    bytes_per_s: float | None = None,
) -> dict[str, LinkDelay]:
    conditions = {"latency_s": latency_s, "jitter_s": jitter_s, "bytes_per_s": bytes_per_s}
    return {receiver: LinkDelay(**conditions, seed=0, sender="a", receiver=receiver)}


def pair(site: Site, delays: dict[str, LinkDelay]) -> tuple[WorkerTransport, WorkerTransport]:
    """The first is connected to the second under the name "b"."""
    site.coordinator()
    a, b = site.worker(), site.worker()
    a.emulate(delays)
    a.connect({"b": b.address})
    return a, b


def credit(number: int) -> Credit:
    return Credit("a", 0, "b", number, number)


def arrivals(transport: WorkerTransport, count: int) -> list[tuple[Message, float]]:
    """The next messages with the moments after they have come."""
    found: list[tuple[Message, float]] = []
    while len(found) < count:
        messages = transport.receive(PATIENCE_S)
        assert messages, f"{len(found)} of {count} messages came"
        now = time.monotonic()
        found += [(message, now) for message in messages]
    return found


def link_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "links"]


# --- what arrives, and when ----------------------------------------------------------------------


def test_no_message_arrives_sooner_than_the_latency_says(site: Site) -> None:
    a, b = pair(site, slow(latency_s=0.02))
    for number in range(5):
        sent_at = time.monotonic()
        a.send("b", credit(number))
        ((message, arrived_at),) = arrivals(b, 1)
        assert message == credit(number)
        assert arrived_at - sent_at >= 0.02


def test_messages_sent_together_are_held_together_and_keep_their_order(site: Site) -> None:
    a, b = pair(site, slow(latency_s=0.2))
    began = time.monotonic()
    for number in range(100):
        a.send("b", credit(number))
    found = arrivals(b, 100)
    assert [message for message, _ in found] == [credit(number) for number in range(100)]
    assert found[0][1] - began >= 0.2


def test_jitter_keeps_the_order_and_is_never_less_than_the_latency(site: Site) -> None:
    a, b = pair(site, slow(latency_s=0.005, jitter_s=0.01))
    sent_at = []
    for number in range(200):
        sent_at.append(time.monotonic())
        a.send("b", credit(number))
    found = arrivals(b, 200)
    assert [message for message, _ in found] == [credit(number) for number in range(200)]
    for (_, arrived_at), sent in zip(found, sent_at, strict=True):
        assert arrived_at - sent >= 0.005


def test_a_message_takes_its_bytes_by_the_bandwidth_and_others_wait_for_it(site: Site) -> None:
    a, b = pair(site, slow(latency_s=0.01, bytes_per_s=4e6))
    message = activation(16 * 1024)  # 64 KiB and labels: 16 ms each
    took_s = sum(tensor.nbytes for tensor in message.tensors.values()) / 4e6
    began = time.monotonic()
    for _ in range(4):
        a.send("b", message)
    for number, (_, arrived_at) in enumerate(arrivals(b, 4), 1):
        assert arrived_at - began >= number * took_s + 0.01


@pytest.mark.parametrize("elements", [64, 1024 * 1024], ids=["small", "large"])
def test_a_held_batch_is_a_copy(site: Site, elements: int) -> None:
    a, b = pair(site, slow(latency_s=0.05))
    message = activation(elements)
    before = message.tensors["h"].copy()
    assert a.send("b", message) is None  # its buffers may be used again at once
    message.tensors["h"][:] = -1.0
    got = received(b)
    assert isinstance(got, Activation)
    np.testing.assert_array_equal(got.tensors["h"], before)


def test_a_link_may_become_slow_and_fast_again_and_keeps_its_order(site: Site) -> None:
    a, b = pair(site, {})
    a.send("b", credit(0))
    delay = slow()["b"]
    a.emulate({"b": delay})
    delay.added_s = 0.1
    began = time.monotonic()
    a.send("b", credit(1))
    delay.added_s = 0.0
    a.send("b", credit(2))
    found = arrivals(b, 3)
    assert [message for message, _ in found] == [credit(0), credit(1), credit(2)]
    assert found[1][1] >= began + 0.1  # and what is sent later does not overtake it


# --- what is not held up -------------------------------------------------------------------------


def test_a_slow_link_holds_up_no_other(site: Site) -> None:
    coordinator = site.coordinator()
    a, b, c, d = (site.worker() for _ in range(4))
    a.emulate({**slow("b", latency_s=FOR_EVER_S), **slow("c", latency_s=0.001)})
    a.connect({"b": b.address, "c": c.address, "d": d.address})
    for number in range(3):
        a.send("b", credit(number))
        a.send("c", credit(number))
        a.send("d", credit(number))
    a.send(COORDINATOR, HELLO)
    for other in (c, d):
        assert [message for message, _ in arrivals(other, 3)] == [credit(i) for i in range(3)]
    assert coordinator.receive(PATIENCE_S) == [(a.identity, HELLO)]
    assert b.receive(0) == []


def test_a_message_that_is_due_sooner_than_those_held_is_sent_before_them(site: Site) -> None:
    """The thread sleeps until the first is due, and must wake up for a sooner one."""
    a, b, c = pair_and_third(site)
    a.send("b", credit(1))
    a.send("c", credit(2))
    assert received(c) == credit(2)
    assert b.receive(0) == []


def pair_and_third(site: Site) -> tuple[WorkerTransport, WorkerTransport, WorkerTransport]:
    site.coordinator()
    a, b, c = (site.worker() for _ in range(3))
    a.emulate({**slow("b", latency_s=FOR_EVER_S), **slow("c", latency_s=0.01)})
    a.connect({"b": b.address, "c": c.address})
    return a, b, c


def test_without_conditions_there_is_no_thread(site: Site) -> None:
    before = link_threads()
    a, b = pair(site, {})
    a.send("b", credit(1))
    assert received(b) == credit(1)
    assert link_threads() == before


# --- neighbours that move, errors, the end -------------------------------------------------------


def test_what_is_held_for_a_neighbour_that_has_moved_is_given_up(site: Site) -> None:
    a, old = pair(site, slow(latency_s=0.1))
    a.send("b", credit(1))
    new = site.worker()
    a.connect({"b": new.address})
    a.send("b", credit(2))
    assert received(new) == credit(2)
    assert old.receive(0) == []


def test_an_endpoint_that_is_none_is_told(site: Site) -> None:
    site.coordinator()
    worker = site.worker()
    worker.emulate(slow(latency_s=0.1))
    assert "expected tcp://host:port" in worker.connect({"b": "nonsense"})["b"]


def test_more_held_messages_than_any_run_needs_are_an_error(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulation, "_HELD_MAX", 8)
    a, _ = pair(site, slow(latency_s=FOR_EVER_S))
    with pytest.raises(LimitExceeded, match="8 messages are held for slow links"):
        for number in range(9):
            a.send("b", credit(number))


def test_what_the_thread_fails_at_is_raised_by_the_next_send_and_receive(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "_QUEUE_MAX", 4)
    site.coordinator()
    worker = site.worker()
    worker.emulate(slow(latency_s=0.001))
    worker.connect({"b": f"ipc://{site.folder}/nobody"})
    (thread,) = link_threads()
    for number in range(5):
        worker.send("b", credit(number))
    wait_until(lambda: not thread.is_alive())
    with pytest.raises(LimitExceeded, match="4 messages wait for a peer"):
        worker.receive(0)
    with pytest.raises(LimitExceeded, match="4 messages wait for a peer"):
        worker.send("b", credit(5))


def test_closing_sends_what_is_held_when_it_is_due(site: Site) -> None:
    a, b = pair(site, slow(latency_s=0.05))
    messages = [Gradient("a", 0, i, {"b": np.full((512, 256), i, "f4")}) for i in range(4)]
    began = time.monotonic()
    for message in messages:
        a.send("b", message)
    a.close(PATIENCE_S)
    found = arrivals(b, len(messages))
    assert [m.batch for m, _ in found if isinstance(m, Gradient)] == list(range(4))
    assert found[0][1] - began >= 0.05
    assert link_threads() == []


def test_closing_gives_up_what_is_not_due_in_time(site: Site) -> None:
    a, b = pair(site, slow(latency_s=FOR_EVER_S))
    a.send("b", credit(1))
    a.close(0.01)
    a.close(0.01)
    assert link_threads() == []
    assert b.receive(0) == []
