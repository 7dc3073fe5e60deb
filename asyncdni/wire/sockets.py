"""What all transports do with ZeroMQ sockets: set limits, explain bind errors, send and receive
frames.

Only `wait` and `wait_until` block for long.
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

#: Smaller tensors are copied into ZeroMQ, which costs less than tracking them (about 5 µs) and
#: frees their buffer at once. At 256 KiB both cost the same; from 512 KiB on a copy costs more than
#: twice as much. Measured: benchmarks/transport.
COPY_BELOW_BYTES = 384 * 1024

#: The most messages queued for one peer. A backstop: credit stops activations long before.
_QUEUE_MAX = 65536
#: The most unread messages of one peer; more of them wait at their sender.
UNREAD_MAX = 1024
#: The most that encryption adds to a frame.
_OVERHEAD_BYTES = 64
#: A new connection that has not shown its key by then is closed.
_HANDSHAKE_MS = 5000
_REBIND_S = 1.0
_NO_DESCRIPTOR_S = 5.0
_AGAIN_S = 0.001

# Plain integers: flags of `enum` take longer to compare and to combine.
_READABLE = int(zmq.POLLIN)
_AT_ONCE = int(zmq.NOBLOCK)
_AT_ONCE_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_WAIT_MAX_MS = 24 * 3600 * 1000  # keeps any timeout within ZeroMQ's integers


def open_socket(context: zmq.Context[Socket], kind: int, frame_bytes_max: int) -> Socket:
    """Open a socket that never keeps its context alive (linger 0) and drops peers with longer
    frames.

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
        time.sleep(_AGAIN_S)  # `Port` is closing connections of strangers, which frees descriptors


def bind(socket: Socket, address: Address) -> str:
    """Bind, and return the endpoint with its real port. Raises `LaunchError`."""
    umask = os.umask(0o077)  # other users can't connect to an ipc socket, not even before chmod
    # A socket that listens at [::] takes IPv4 as well.
    socket.setsockopt(zmq.IPV6, ":" in address.host)
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
    """Bind to the first address that is free, as `bind` does. Raises `LaunchError` if none is."""
    for address in addresses[:-1]:
        with suppress(LaunchError):
            return bind(socket, address)
    try:
        return bind(socket, addresses[-1])
    except LaunchError as error:
        if len(addresses) == 1:
            raise
        raise LaunchError(
            f"none of {len(addresses)} ports is free, the last one: {error}"
        ) from error


def rebind(socket: Socket, endpoint: str, frame_bytes_max: int) -> None:
    """Lower or raise the frame limit of a socket that is bound to a tcp endpoint.

    ZeroMQ applies a limit to connections accepted after a bind, so the socket is bound again.
    Raises `LaunchError` if another process has taken the port meanwhile.
    """
    socket.unbind(endpoint)
    socket.setsockopt(zmq.MAXMSGSIZE, frame_bytes_max + _OVERHEAD_BYTES)
    ends_at = time.monotonic() + _REBIND_S
    while True:
        try:
            socket.bind(endpoint)
            return
        except zmq.ZMQError as error:  # ZeroMQ's thread may not have released the port yet
            if error.errno != errno.EADDRINUSE or time.monotonic() > ends_at:
                raise LaunchError(f"can't listen on {endpoint}: {error.strerror}") from error
        time.sleep(_AGAIN_S)


def connect(socket: Socket, address: Address) -> None:
    """Connect, now or as soon as the peer listens. Raises `LaunchError`."""
    try:
        # Not for all: with this option ZeroMQ looks for no IPv4 address of a name that has both.
        socket.setsockopt(zmq.IPV6, address.needs_ipv6())
        socket.connect(address.endpoint)
    except zmq.ZMQError as error:
        raise LaunchError(f"can't connect to {address.endpoint}: {error.strerror}") from error


def close(context: zmq.Context[Socket], address: str, linger_s: float) -> None:
    """Close all sockets of `context` after at most `linger_s`, and remove the ipc file it bound."""
    if context.closed:
        return  # another process may have its file by now
    context.destroy(linger=round(linger_s * 1000))
    if address.startswith("ipc://"):  # ZeroMQ leaves it behind
        with suppress(OSError):
            os.unlink(address.removeprefix("ipc://"))


def send(socket: Socket, frames: Sequence[Any]) -> Callable[[], bool] | None:
    """Queue one message; the header and small tensors are copied, large tensors are not.

    Returns a function that tells whether ZeroMQ has released the large tensors, or None if there
    are none. Raises `LimitExceeded` if the queue is full.
    """
    trackers: list[zmq.MessageTracker] = []
    last = len(frames) - 1
    try:
        for at, frame in enumerate(frames):
            flags = _AT_ONCE if at == last else _AT_ONCE_MORE
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
    """Return the frames of one message, or None if none is waiting.

    The first frame is copied, since headers are small; the others are views of ZeroMQ's memory.
    """
    if not _readable(socket):
        return None
    try:
        frames: list[Buffer] = [socket.recv(_AT_ONCE)]
    except zmq.Again:
        return None
    _receive_rest(socket, frames, bool(socket.getsockopt(zmq.RCVMORE)))
    return frames


class Origin(NamedTuple):
    """The connection over which a message came."""

    descriptor: int  # -1 where ZeroMQ does not know
    key: bytes | None  # the public key (32 bytes) that its peer has shown, if any


def receive_from(socket: Socket, *, keys: bool) -> tuple[list[Buffer], Origin] | None:
    """Receive as `receive` does, with the message's origin. `keys`: peers must show a key (see
    `Gate`)."""
    if not _readable(socket):
        return None
    try:
        first = socket.recv(_AT_ONCE, copy=False)
    except zmq.Again:
        return None
    descriptor = first.get(zmq.SRCFD)
    assert isinstance(descriptor, int)
    key = bytes.fromhex(str(first.get("User-Id"))) if keys else None
    frames: list[Buffer] = [first.bytes]
    _receive_rest(socket, frames, first.more)
    return frames, Origin(descriptor, key)


def _readable(socket: Socket) -> bool:
    # Most calls find nothing: asking first costs 1 µs, an exception 2 µs.
    events = socket.getsockopt(zmq.EVENTS)
    assert isinstance(events, int)
    return bool(events & _READABLE)


def _receive_rest(socket: Socket, frames: list[Buffer], more: bool) -> None:
    """Append the frames of a message behind its first, if there are `more`."""
    while more:  # a message arrives whole: this can't block
        frame = socket.recv(_AT_ONCE, copy=False)
        frames.append(frame.buffer)
        more = frame.more


def wait_until(poller: zmq.Poller, timeout_s: float | None, done: Callable[[], bool]) -> None:
    """Wait until `done` is true, or for `timeout_s`; ask `done` whenever a socket can be read."""
    ends_at = None if timeout_s is None else time.monotonic() + timeout_s
    left_s = timeout_s
    while left_s is None or left_s > 0:
        wait(poller, left_s)
        if done():
            return
        if ends_at is not None:
            left_s = ends_at - time.monotonic()


def wait(poller: zmq.Poller, timeout_s: float | None) -> None:
    """Wait until a socket has something to read, or for `timeout_s` (None: for ever)."""
    if timeout_s is None:
        poller.poll()
    else:
        # Rounded up, so that waiting for less than a millisecond is no busy loop.
        poller.poll(min(math.ceil(max(timeout_s, 0.0) * 1000), _WAIT_MAX_MS))
