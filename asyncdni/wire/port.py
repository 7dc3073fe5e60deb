"""Who is connected to a tcp port, and what each of them makes this process hold.

ZeroMQ gives every stranger a descriptor for as long as it shakes hands, and holds a message until
its last frame has come, however many there are: its own limits count frames, and whole messages.
So a thread watches the connections of a socket from the side, and shuts those that take more than
their part; ZeroMQ then drops what it holds of them. It learns from ZeroMQ who comes and goes, from
the kernel how much each has sent (Linux; elsewhere their number alone is limited), and from who
reads the socket what of that has been read.
"""

from __future__ import annotations

import fcntl
import os
import resource
import socket as system
import struct
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import zmq

__all__ = ["Port"]

#: How often the thread looks: at 2 GB/s a peer is 100 MB further by then.
_LOOK_S = 0.05
_CLOSE_LOOK_S = 0.01  # while somebody has sent much that nobody has read
_MUCH_BYTES = 1 << 20
#: What a connection may have sent beyond messages: handshakes, and what is still being cut up.
_SLACK_BYTES = 1 << 20
#: Of one that has not shown a key yet, where keys are wanted. A handshake takes some 600.
_BEFORE_KEY_BYTES = 1 << 16
#: A server with keys has sent no more than that (a greeting of 64 bytes, a WELCOME of 170, and 32
#: for what it may say when it refuses) before it lets somebody in, and more right after.
_SENT_BEFORE_IN_BYTES = 266
#: A frame is that much longer on the way at most: its header (9), and what encrypts it (33).
_FRAME_BYTES = 64
#: Connections that have sent no whole message, at most; the oldest of more are closed.
_UNHEARD_MAX = 1024
_CONNECTIONS_MAX = 8192
_DESCRIPTORS = 1 << 16  # that a process asks for
_TELL_EVERY_S = 10.0

_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_MONITOR_STOPPED
_EVENT = struct.Struct("=Hi")
_COUNTED = struct.Struct("=QQ")  # of `struct tcp_info`: tcpi_bytes_acked, tcpi_bytes_received
_COUNTED_AT = 120
_INFO_BYTES = _COUNTED_AT + _COUNTED.size
_TCP_INFO = getattr(system, "TCP_INFO", None)
_QUEUED_MAX = 1 << 23
_QUEUED = struct.Struct("=i")


@dataclass(slots=True)
class _Connection:
    inode: int  # of the socket: descriptors are used again
    who: bytes = b""  # the last sender, as `heard` was told
    read: int = 0  # bytes that this process has read, written by the thread that reads alone
    forgiven: int = 0  # bytes that were counted as read, but had never come
    received: int = 0  # at the last look
    part: int = 0  # bytes of a message that has no end yet, as far as is certain
    held: int = 0  # bytes that ZeroMQ holds, whole messages included


class Port:
    """Watches the peers of one socket, which must be bound to tcp endpoints alone.

    To be made before the socket is bound, and started afterwards. Whoever reads the socket says so
    (`heard`, `emptied`), or its peers will be taken for silent ones.

    Attributes, to be changed at any time:
        message_bytes: of the longest message.
        unread: messages of one peer that may wait to be read.
        peers: how many may be in the middle of a message at the same time.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        message_bytes: int,
        *,
        unread: int,
        peers: int,
        keys: bool,
        read_ahead: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            keys: nobody without one is let in.
            read_ahead: to take out, in the thread of the port, all whole messages that can be
                taken out just now, and to say so here: what is left then has no end. It is called
                when more is held than one message may have, and nobody has read for a while.
        """
        self.message_bytes = message_bytes
        self.unread = unread
        self.peers = peers
        self._keys = keys
        self._read_ahead = read_ahead
        # The other half is for the files of the run, and for what has not been closed yet.
        descriptors = _descriptors()
        self._unheard_max = max(1, min(_UNHEARD_MAX, descriptors // 4))
        self._connections_max = max(2, min(_CONNECTIONS_MAX, descriptors // 2))
        self._connections: dict[int, _Connection] = {}  # by descriptor, in the order they came
        self._closed: deque[tuple[bytes, str]] = deque()
        self._turned_away = self._told = 0  # silent ones
        self._tell_at_s = 0.0
        self._times_emptied = self._emptied_at_look = 0
        self._socket = socket
        self._events: zmq.Socket[bytes] = socket.get_monitor_socket(_EVENTS)
        self._thread = threading.Thread(target=self._watch, name="port", daemon=True)

    def start(self) -> None:
        """Once the socket is bound."""
        # A look at a connection takes a descriptor, and must have one when none is left.
        self._blank = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._probe = system.socket()
        self._thread.start()

    def heard(self, descriptor: int, size: int, frames: int, who: bytes) -> None:
        """A message of so many bytes and frames has been read that came over this connection."""
        connection = self._connections.get(descriptor)
        if connection is not None:
            connection.read += size + frames * _FRAME_BYTES
            connection.who = who

    def emptied(self) -> None:
        """All whole messages have been read."""
        self._times_emptied += 1

    def take_closed(self) -> list[tuple[bytes, str]]:
        """Who has been shut out since the last call (b"" for one never heard), and for what."""
        closed = []
        while self._closed:
            closed.append(self._closed.popleft())
        now = time.monotonic()
        if self._turned_away > self._told and now >= self._tell_at_s:
            count = self._turned_away - self._told
            self._told += count
            self._tell_at_s = now + _TELL_EVERY_S
            closed.append((b"", f"closed {count:,} connections that had sent nothing yet"))
        return closed

    def close(self) -> None:
        """Stop watching; before the socket is closed. Closing twice does nothing."""
        if not self._thread.is_alive():
            return
        self._socket.disable_monitor()  # the thread hears of that, and ends
        self._thread.join()
        self._events.close(linger=0)
        self._probe.close()
        os.close(self._blank)

    # --- the thread -------------------------------------------------------------------------------

    def _watch(self) -> None:
        look_at = 0.0
        while True:
            left_s = look_at - time.monotonic()
            timeout_ms = max(0, round(left_s * 1000)) if self._connections else None
            if self._events.poll(timeout_ms) and not self._note_events():
                return
            if time.monotonic() >= look_at:
                much = _TCP_INFO is not None and self._look()
                look_at = time.monotonic() + (_CLOSE_LOOK_S if much else _LOOK_S)

    def _note_events(self) -> bool:
        """False once there will be no more."""
        with suppress(zmq.Again):
            for _ in range(self._unheard_max):
                event, descriptor = _EVENT.unpack(self._events.recv_multipart(zmq.NOBLOCK)[0])
                if event == zmq.EVENT_MONITOR_STOPPED:
                    return False
                self._connections.pop(descriptor, None)
                if event == zmq.EVENT_ACCEPTED:
                    self._accepted(descriptor)
        return True

    def _accepted(self, descriptor: int) -> None:
        with suppress(OSError), self._probed(descriptor) as probe:
            self._connections[descriptor] = _Connection(os.fstat(probe.fileno()).st_ino)
        if len(self._connections) > self._connections_max:
            self._turn_away(next(reversed(self._connections)))
        if len(self._connections) > self._unheard_max:
            unheard = [fd for fd, one in self._connections.items() if not one.read]
            for oldest in unheard[: -self._unheard_max]:
                self._turn_away(oldest)

    def _look(self) -> bool:
        """Shut out who makes this process hold too much; whether anybody is on the way to that."""
        was_emptied = self._times_emptied > self._emptied_at_look
        for descriptor, connection in list(self._connections.items()):
            try:
                text = self._measure(descriptor, connection, was_emptied)
            except OSError:
                continue  # it is gone, and ZeroMQ will say so
            if text:
                self._shut_out(descriptor, text)
        self._emptied_at_look = self._times_emptied
        self._share_out()
        most = max((one.held for one in self._connections.values()), default=0)
        if most > self.message_bytes + _SLACK_BYTES and not was_emptied:
            self._read_ahead()
        return most > _MUCH_BYTES

    def _measure(self, descriptor: int, one: _Connection, was_emptied: bool) -> str:
        """How much is held of a connection; what is wrong with that, or nothing."""
        assert _TCP_INFO is not None
        # Before what has come: what is read in between must not seem to have never come.
        read = one.read
        with self._probed(descriptor, one.inode) as probe:
            info = probe.getsockopt(system.IPPROTO_TCP, _TCP_INFO, _INFO_BYTES)
            queued = fcntl.ioctl(probe, termios.FIONREAD, bytes(_QUEUED.size))
        if len(info) < _INFO_BYTES:
            return ""  # an older kernel
        sent, received = _COUNTED.unpack_from(info, _COUNTED_AT)
        received -= _QUEUED.unpack(queued)[0]
        # What had come by the last look and is not read, though all was read since, has no end.
        one.part = max(0, one.received - (one.read - one.forgiven)) if was_emptied else 0
        one.held = received - (read - one.forgiven)
        one.received = received
        if one.held < 0:
            one.forgiven -= one.held
            one.held = 0
        if self._keys and not one.read and sent <= _SENT_BEFORE_IN_BYTES:
            if one.held > _BEFORE_KEY_BYTES:
                return f"it has sent {one.held:,} bytes and shown no key"
        elif one.part > self.message_bytes + _SLACK_BYTES:
            return (
                f"it has sent {one.part:,} bytes of a message without an end; the longest has "
                f"{self.message_bytes:,}"
            )
        elif one.held > self.unread * self.message_bytes + _SLACK_BYTES:
            return f"{one.held:,} bytes of it wait to be read"
        return ""

    def _share_out(self) -> None:
        """All together have limits too: beyond one, those with the most go first."""
        parts_max = self.peers * self.message_bytes + _SLACK_BYTES
        self._share(lambda one: one.part, parts_max, "have no end")
        self._share(lambda one: one.held, self.unread * parts_max, "wait to be read")

    def _share(self, bytes_of: Callable[[_Connection], int], most: int, what: str) -> None:
        total = sum(map(bytes_of, self._connections.values()))
        while total > most:
            largest = max(self._connections, key=lambda fd: bytes_of(self._connections[fd]))
            part = bytes_of(self._connections[largest])
            self._shut_out(largest, f"{part:,} of {total:,} bytes that {what} are of it")
            total -= part

    def _shut_out(self, descriptor: int, text: str) -> None:
        connection = self._connections.pop(descriptor)
        with suppress(OSError), self._probed(descriptor, connection.inode) as probe:
            host, port = probe.getpeername()[:2]
            closed = connection.who, f"closed the connection from {host}:{port}: {text}"
            self._closed.append(closed)
            _end(probe)

    def _turn_away(self, descriptor: int) -> None:
        connection = self._connections.pop(descriptor)
        with suppress(OSError), self._probed(descriptor, connection.inode) as probe:
            _end(probe)
            self._turned_away += 1

    @contextmanager
    def _probed(self, descriptor: int, inode: int = 0) -> Iterator[system.socket]:
        """A connection of ZeroMQ's for a moment in our own hand, so that it can't become another.

        Raises `OSError` where it is no longer the one with this inode.
        """
        probe = self._probe
        os.dup2(descriptor, probe.fileno(), inheritable=False)
        try:
            if inode and os.fstat(probe.fileno()).st_ino != inode:
                raise OSError("another one has its descriptor")
            yield probe
        finally:
            os.dup2(self._blank, probe.fileno(), inheritable=False)


def _end(connection: system.socket) -> None:
    """Have ZeroMQ read the end of it next, and close it: at once, and with nothing kept."""
    connection.setsockopt(system.SOL_SOCKET, system.SO_LINGER, struct.pack("=ii", 1, 0))
    connection.shutdown(system.SHUT_RDWR)
    with suppress(BlockingIOError):
        connection.recv(_QUEUED_MAX, system.MSG_DONTWAIT | getattr(system, "MSG_TRUNC", 0))


def _descriptors() -> int:
    """How many this process may have open, once it has asked for as many as make sense."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _DESCRIPTORS
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft < wanted:
        with suppress(OSError, ValueError):  # some systems let it have fewer than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return soft
