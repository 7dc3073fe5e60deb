"""ZeroMQ sockets as all transports here use them: limits, bind errors, frames in and out.

Nothing in this module blocks but `wait`.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import zmq

from asyncdni.errors import LaunchError, LimitExceeded
from asyncdni.transports.address import Address
from asyncdni.transports.codec import Buffer, size

__all__ = [
    "COPY_BELOW_BYTES",
    "Socket",
    "bind",
    "close",
    "connect",
    "open_socket",
    "receive",
    "send",
    "wait",
]

Socket = zmq.Socket[bytes]

#: Smaller tensors are copied into ZeroMQ: cheaper than tracking them (about 5 µs), and their buffer
#: is free at once. From 512 KiB on a copy costs more than twice as much as a tracked view; at
#: 256 KiB it is even. Measured: benchmarks/transport.
COPY_BELOW_BYTES = 384 * 1024

#: Messages in one direction of a link. A backstop: credit stops activations long before.
_QUEUE_MAX = 65536

_READABLE = int(zmq.POLLIN)  # the flag itself takes longer to compare
_WAIT_MAX_MS = 24 * 3600 * 1000  # keeps any timeout within ZeroMQ's integers


def open_socket(context: zmq.Context[Socket], kind: int, frame_bytes_max: int) -> Socket:
    """A socket that never keeps its context alive (linger 0) and drops peers with giant frames."""
    socket: Socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, _QUEUE_MAX)
    socket.setsockopt(zmq.RCVHWM, _QUEUE_MAX)
    socket.setsockopt(zmq.MAXMSGSIZE, frame_bytes_max)
    return socket


def bind(socket: Socket, address: Address) -> str:
    """Bind, and give the endpoint with its real port. Raises `LaunchError`."""
    try:
        socket.bind(address.endpoint)
        if address.path:
            os.chmod(address.path, 0o600)  # whatever the umask: this user alone may connect
    except (zmq.ZMQError, OSError) as error:
        hint = {
            errno.EADDRINUSE: "it is in use: choose another, or port 0 for any",
            errno.EADDRNOTAVAIL: "it is no address of this machine",
            errno.ENODEV: "it is no address or interface of this machine",
        }.get(error.errno or 0, error.strerror or str(error))
        raise LaunchError(f"can't listen on {address.endpoint}: {hint}") from error
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


def connect(socket: Socket, address: Address) -> None:
    """Connect, now or whenever the peer is there. Raises `LaunchError`."""
    try:
        socket.connect(address.endpoint)
    except zmq.ZMQError as error:
        raise LaunchError(f"can't connect to {address.endpoint}: {error.strerror}") from error


def close(context: zmq.Context[Socket], address: str, linger_s: float) -> None:
    """Close all sockets of `context` after at most `linger_s`, and remove the ipc file it bound."""
    if context.closed:
        return  # the file may by now be another's
    context.destroy(linger=round(linger_s * 1000))
    if address.startswith("ipc://"):  # ZeroMQ leaves it behind
        with suppress(OSError):
            os.unlink(address.removeprefix("ipc://"))


def send(socket: Socket, frames: Sequence[Any]) -> Callable[[], bool] | None:
    """Queue one message; the header and small tensors as copies, large tensors as they are.

    Returns what tells whether ZeroMQ has let go of the large ones, or None if there are none.
    Raises `LimitExceeded` where the queue is full.
    """
    trackers: list[zmq.MessageTracker] = []
    last = len(frames) - 1
    try:
        for at, frame in enumerate(frames):
            flags = zmq.NOBLOCK if at == last else zmq.NOBLOCK | zmq.SNDMORE
            if at == 0 or size((frame,)) < COPY_BELOW_BYTES:
                socket.send(frame, flags)
            else:
                tracker = socket.send(frame, flags, copy=False, track=True)
                assert tracker is not None
                trackers.append(tracker)
    except zmq.Again:
        raise LimitExceeded(
            f"{_QUEUE_MAX} messages wait for a peer that takes none: it hangs or can't be reached"
        ) from None
    if not trackers:
        return None
    return lambda: all([tracker.done for tracker in trackers])


def receive(socket: Socket) -> list[Buffer] | None:
    """The frames of one message, or None if there is none.

    Its first frame is copied, since headers are small; the others are views of ZeroMQ's memory.
    """
    # Asking first costs 1 µs, an exception 2: most looks find nothing.
    events = socket.getsockopt(zmq.EVENTS)
    assert isinstance(events, int)
    if not events & _READABLE:
        return None
    try:
        frames: list[Buffer] = [socket.recv(zmq.NOBLOCK)]
    except zmq.Again:
        return None
    while socket.getsockopt(zmq.RCVMORE):  # a message arrives whole: this can't block
        frames.append(socket.recv(zmq.NOBLOCK, copy=False).buffer)
    return frames


def wait(poller: zmq.Poller, timeout_s: float | None) -> None:
    """Until a socket has something to read, or for `timeout_s` (None: for ever)."""
    if timeout_s is None:
        poller.poll()
    else:
        # Rounded up, so that a wait for less than a millisecond is not a busy loop.
        poller.poll(min(math.ceil(max(timeout_s, 0.0) * 1000), _WAIT_MAX_MS))
