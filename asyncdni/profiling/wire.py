"""Measures what a message costs on this machine: CPU time at both ends, and latency.

Two ends of the real transport stand in one process, over the same kind of socket that local workers
use. One message at a time is sent, waited for and received. The CPU time of the process includes
that of ZeroMQ's threads, which move the bytes.
"""

from __future__ import annotations

import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from asyncdni.delays import LinkDelay
from asyncdni.errors import LaunchError
from asyncdni.messages import Activation, Credit, Message
from asyncdni.profiling.measurement import make_forget
from asyncdni.wire.address import private_folder
from asyncdni.wire.coordinator import CoordinatorTransport
from asyncdni.wire.worker import WorkerTransport

__all__ = ["Hop", "Wire", "measure_wire"]

#: Bytes of the tensor in a message; 0: a message without tensors.
_SIZES = (0, 2**14, 2**16, 2**18, 2**20)
_REPEATS = 30
#: So many first messages are not counted, as connections are made and buffers grow.
_FIRST = 5
_PATIENCE_S = 5.0
_NAME = "there"
#: A delay that is as good as none, in seconds.
_HELD_S = 1e-6


@dataclass(frozen=True)
class Hop:
    """What one message from a worker to another costs, in seconds."""

    send_s: float  # CPU time of the thread that sends it
    move_s: float  # CPU time of the threads that move it, at both ends together
    receive_s: float  # CPU time of the thread that is woken by it and receives it
    latency_s: float  # from the call that sends it until the receiver knows that it has arrived


@dataclass(frozen=True)
class Wire:
    """Hops by size of the message. `warm`: one right after another; `cold`: after the caches have
    been emptied."""

    sizes: tuple[int, ...]  # bytes of the tensor
    warm: tuple[Hop, ...]
    cold: tuple[Hop, ...]
    # CPU time of checking for messages when there are none: (warm, cold)
    look_s: tuple[float, float]

    def warm_hop(self, tensor_bytes: int) -> Hop:
        """The hop of a message with warm caches; between measured sizes, and above the largest,
        times follow a straight line."""
        return _between(self.sizes, self.warm, tensor_bytes)

    def cold_hop(self, tensor_bytes: int) -> Hop:
        """The hop of a message with cold caches, as `warm_hop`."""
        return _between(self.sizes, self.cold, tensor_bytes)


def measure_wire(
    sizes: Sequence[int] = _SIZES, repeats: int = _REPEATS, *, held: bool = False
) -> Wire:
    """Measure hops of messages; takes about half a second.

    With `held`, messages go over a link that `[links]` slows down, but with hardly any delay: this
    measures what it costs to hold a message back and send it later. Raises `LaunchError` where no
    socket can be opened or no message arrives."""
    forget = make_forget()
    with private_folder() as folder:
        coordinator = CoordinatorTransport(f"ipc://{folder}/wire")
        ends = [WorkerTransport(coordinator.address) for _ in range(2)]
        try:
            if held:
                delay = LinkDelay(latency_s=_HELD_S, seed=0, sender="here", receiver=_NAME)
                ends[0].emulate({_NAME: delay})
            ends[0].connect({_NAME: ends[1].address})
            return _measured(ends[0], ends[1], forget, tuple(sizes), repeats)
        finally:
            for end in ends:
                end.close(0.0)
            coordinator.close(0.0)


def _measured(
    sender: WorkerTransport,
    receiver: WorkerTransport,
    forget: Callable[[], None],
    sizes: tuple[int, ...],
    repeats: int,
) -> Wire:
    hops: list[list[Hop]] = [[], []]
    looks: list[list[float]] = [[], []]
    for size in sizes:
        message = _message(size)
        for found, times, before in zip(hops, looks, (None, forget), strict=True):
            samples = [_one(sender, receiver, message, before) for _ in range(_FIRST + repeats)]
            columns = list(zip(*samples[_FIRST:], strict=True))
            medians = [statistics.median(one) for one in columns]
            found.append(Hop(*medians[:-1]))
            times.append(medians[-1])
    warm, cold = (tuple(found) for found in hops)
    return Wire(sizes, warm, cold, (statistics.median(looks[0]), statistics.median(looks[1])))


def _message(size: int) -> Message:
    if not size:
        return Credit("here", 1, _NAME, 1, 2)
    tensors = {"h": np.zeros(size // 4, np.float32), "y": np.zeros(256, np.int64)}
    return Activation("here", 1, 1, 256, tensors)


def _one(
    sender: WorkerTransport,
    receiver: WorkerTransport,
    message: Message,
    before: Callable[[], None] | None,
) -> tuple[float, float, float, float, float]:
    """Send one message: the four times of a `Hop`, then the CPU time of checking in vain."""
    if before is not None:
        before()
    looked = time.thread_time()
    receiver.receive(0.0)
    process, began = time.process_time(), time.perf_counter()
    sending = time.thread_time()
    sender.send(_NAME, message)
    sent = time.thread_time()
    found: list[Message] = []
    while not found:  # a socket may wake its waiter for nothing
        receiver.wait(_PATIENCE_S)
        woken = time.perf_counter()
        found = receiver.receive(0.0)
        if not found and woken - began > _PATIENCE_S:
            raise LaunchError(f"no message has come over a local socket within {_PATIENCE_S:g} s")
    received = time.thread_time()
    moved_s = max(0.0, time.process_time() - process - (received - sending))
    return sent - sending, moved_s, received - sent, woken - began, sending - looked


def _between(sizes: Sequence[int], hops: Sequence[Hop], size: int) -> Hop:
    if size <= sizes[0] or len(sizes) == 1:
        return hops[0]
    upper = min(bisect_right(sizes, size), len(sizes) - 1)
    low, high = hops[upper - 1], hops[upper]
    share = (size - sizes[upper - 1]) / (sizes[upper] - sizes[upper - 1])
    values = zip(astuple(low), astuple(high), strict=True)
    return Hop(*(below + share * (above - below) for below, above in values))
