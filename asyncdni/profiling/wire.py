"""What a message costs here: CPU time at both ends, and the time until it is there.

Two ends of the real transport in one process, over the same kind of socket that local workers use.
One message at a time: sent, waited for, received. The CPU time of the process has that of ZeroMQ's
threads in it, which move the bytes.
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

#: Bytes of a tensor; a message without any comes first.
_SIZES = (0, 2**14, 2**16, 2**18, 2**20)
_REPEATS = 30
#: Not counted: connections are made, buffers grow.
_FIRST = 5
_PATIENCE_S = 5.0
_NAME = "there"
#: As good as none.
_HELD_S = 1e-6


@dataclass(frozen=True)
class Hop:
    """A message from one worker to another, in seconds."""

    send_s: float  # CPU time of the thread that sends it
    move_s: float  # CPU time of the threads that move it, at both ends together
    receive_s: float  # CPU time of the thread that is woken by it and receives it
    latency_s: float  # from the call that sends it to the moment the receiver knows that it is here


@dataclass(frozen=True)
class Wire:
    """Hops by size. `warm`: of one right after another; `cold`: with caches that have forgotten."""

    sizes: tuple[int, ...]
    warm: tuple[Hop, ...]
    cold: tuple[Hop, ...]
    look_s: tuple[float, float]  # CPU time of a look for messages that finds none, warm and cold

    def warm_hop(self, tensor_bytes: int) -> Hop:
        """Between measured sizes, and above the largest, on a straight line."""
        return _between(self.sizes, self.warm, tensor_bytes)

    def cold_hop(self, tensor_bytes: int) -> Hop:
        return _between(self.sizes, self.cold, tensor_bytes)


def measure_wire(
    sizes: Sequence[int] = _SIZES, repeats: int = _REPEATS, *, held: bool = False
) -> Wire:
    """Takes about half a second.

    `held`: of links that `[links]` makes slow, without their delay: what it costs to hold a message
    back and send it later. Raises `LaunchError` where no socket can be had or nothing comes."""
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
    """Seconds, as in `Hop`, and of a look that finds nothing."""
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
