"""ZeroMQ sockets as all transports here use them: limits, bind errors, frames in and out.

Nothing in this module blocks for long but `wait`.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import zmq

from asyncdni.errors import LaunchError, LimitExceeded
from asyncdni.wire.address import Address
from asyncdni.wire.codec import Buffer, size

__all__ = [
    "COPY_BELOW_BYTES",
    "UNREAD_MAX",
    "Origin",
    "Socket",
    "bind",
    "bind_to_one",
    "close",
    "connect",
    "open_socket",
    "rebind",
    "receive",
    "receive_from",
    "send",
    "wait",
    "wait_until",
]

Socket = zmq.Socket[bytes]

#: Smaller tensors are copied into ZeroMQ: cheaper than tracking them (about 5 µs), and their buffer
#: is free at once. From 512 KiB on a copy costs more than twice as much as a tracked view; at
#: 256 KiB it is even. Measured: benchmarks/transport.
COPY_BELOW_BYTES = 384 * 1024

#: Messages that wait to be sent to one peer. A backstop: credit stops activations long before.
_QUEUE_MAX = 65536
#: Messages of one peer that wait to be read; more wait at their sender. What a flood can fill.
UNREAD_MAX = 1024
#: Encryption makes frames longer than what is in them.
_OVERHEAD_BYTES = 64
#: Until a new connection has shown its key, or is closed.
_HANDSHAKE_MS = 5000
_REBIND_S = 1.0
_NO_DESCRIPTOR_S = 5.0
_AGAIN_S = 0.001

_READABLE = int(zmq.POLLIN)  # the flag itself takes longer to compare
_WAIT_MAX_MS = 24 * 3600 * 1000  # keeps any timeout within ZeroMQ's integers


def open_socket(context: zmq.Context[Socket], kind: int, frame_bytes_max: int) -> Socket:
    """A socket that never keeps its context alive (linger 0) and drops peers with giant frames.

    Raises `LaunchError` where this process has no descriptor left for it.
    """
    socket = _new_socket(context, kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, _QUEUE_MAX)
    socket.setsockopt(zmq.RCVHWM, UNREAD_MAX)
    socket.setsockopt(zmq.MAXMSGSIZE, frame_bytes_max + _OVERHEAD_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    return socket


def _new_socket(context: zmq.Context[Socket], kind: int) -> Socket:
    ends_at = time.monotonic() + _NO_DESCRIPTOR_S
    while True:
        try:
            return context.socket(kind)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or time.monotonic() > ends_at:
                raise LaunchError(
                    f"can't open a socket: {error.strerror}; see ulimit -n"
                ) from error
        time.sleep(_AGAIN_S)  # strangers that have taken them are being turned away: see `port`


def bind(socket: Socket, address: Address) -> str:
    """Bind, and give the endpoint with its real port. Raises `LaunchError`."""
    umask = os.umask(0o077)  # no other user may connect to an ipc socket, from the first moment
    try:
        socket.bind(address.endpoint)
        if address.path:
            os.chmod(address.path, 0o600)
    except (zmq.ZMQError, OSError) as error:
        hint = {
            errno.EADDRINUSE: "it is in use: choose another, or port 0 for any",
            errno.EADDRNOTAVAIL: "it is no address of this machine",
            errno.ENODEV: "it is no address or interface of this machine",
        }.get(error.errno or 0, error.strerror or str(error))
        raise LaunchError(f"can't listen on {address.endpoint}: {hint}") from error
    finally:
        os.umask(umask)
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


def bind_to_one(socket: Socket, addresses: Sequence[Address]) -> str:
    """Bind to the first of them that is free, as `bind` does. Raises `LaunchError` for none."""
    for address in addresses[:-1]:
        with suppress(LaunchError):
            return bind(socket, address)
    return bind(socket, addresses[-1])


def rebind(socket: Socket, endpoint: str, frame_bytes_max: int) -> None:
    """Have a socket that is bound to a tcp endpoint drop peers with frames over a new limit.

    A limit holds for connections that come after it was bound. Raises `LaunchError` where somebody
    else has taken the port meanwhile.
    """
    socket.unbind(endpoint)
    socket.setsockopt(zmq.MAXMSGSIZE, frame_bytes_max + _OVERHEAD_BYTES)
    ends_at = time.monotonic() + _REBIND_S
    while True:
        try:
            socket.bind(endpoint)
            return
        except zmq.ZMQError as error:  # ZeroMQ's own thread may not have let go of it yet
            if error.errno != errno.EADDRINUSE or time.monotonic() > ends_at:
                raise LaunchError(f"can't listen on {endpoint}: {error.strerror}") from error
        time.sleep(_AGAIN_S)


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
    if not _readable(socket):
        return None
    try:
        frames: list[Buffer] = [socket.recv(zmq.NOBLOCK)]
    except zmq.Again:
        return None
    _receive_rest(socket, frames)
    return frames


class Origin(NamedTuple):
    """Over which connection a message has come."""

    descriptor: int  # -1 where ZeroMQ does not know
    key: bytes | None  # the public key (32 bytes) that its peer has shown, where it has


def receive_from(socket: Socket, *, keys: bool) -> tuple[list[Buffer], Origin] | None:
    """As `receive`, with where it has come from. `keys`: all peers have shown one (see `gate`)."""
    if not _readable(socket):
        return None
    try:
        first = socket.recv(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return None
    descriptor = first.get(zmq.SRCFD)
    assert isinstance(descriptor, int)
    key = bytes.fromhex(str(first.get("User-Id"))) if keys else None
    frames: list[Buffer] = [first.bytes]
    _receive_rest(socket, frames)
    return frames, Origin(descriptor, key)


def _readable(socket: Socket) -> bool:
    # Asking first costs 1 µs, an exception 2: most looks find nothing.
    events = socket.getsockopt(zmq.EVENTS)
    assert isinstance(events, int)
    return bool(events & _READABLE)


def _receive_rest(socket: Socket, frames: list[Buffer]) -> None:
    while socket.getsockopt(zmq.RCVMORE):  # a message arrives whole: this can't block
        frames.append(socket.recv(zmq.NOBLOCK, copy=False).buffer)


def wait_until(poller: zmq.Poller, timeout_s: float | None, done: Callable[[], bool]) -> None:
    """Wait for `done` to become true, asked whenever a socket has something, or for `timeout_s`."""
    ends_at = None if timeout_s is None else time.monotonic() + timeout_s
    left_s = timeout_s
    while left_s is None or left_s > 0:
        wait(poller, left_s)
        if done():
            return
        if ends_at is not None:
            left_s = ends_at - time.monotonic()


def wait(poller: zmq.Poller, timeout_s: float | None) -> None:
    """Until a socket has something to read, or for `timeout_s` (None: for ever)."""
    if timeout_s is None:
        poller.poll()
    else:
        # Rounded up, so that a wait for less than a millisecond is not a busy loop.
        poller.poll(min(math.ceil(max(timeout_s, 0.0) * 1000), _WAIT_MAX_MS))
