"""Watch the connections to a tcp port, and close those that make this process hold too much.

ZeroMQ keeps a descriptor for every stranger during its handshake, and holds a message until its
last frame has come, however many there are: its own limits apply to single frames and to whole
messages. So a thread watches the connections of a socket and shuts down those that exceed their
share; ZeroMQ then frees what it holds for them. ZeroMQ tells the thread who connects and
disconnects, the kernel how much each peer has sent (on Linux; elsewhere only the number of
connections is limited), and the socket's reader how much has been read.
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

__all__ = ["EVENT", "Port"]

#: Time between two looks at the connections. A peer at 2 GB/s sends 100 MB meanwhile.
_LOOK_S = 0.05
_CLOSE_LOOK_S = 0.01  # while more than `_MUCH_BYTES` of one peer are unread
_MUCH_BYTES = 1 << 20
#: What a connection may send beyond its messages: handshakes, and frames being taken apart.
_SLACK_BYTES = 1 << 20
#: What a peer may send before it has shown its key. A handshake takes some 600 bytes.
_BEFORE_KEY_BYTES = 1 << 16
#: The most that a server with keys sends before it accepts a peer: a greeting of 64 bytes, a
#: WELCOME of 170, and 32 of a refusal. It sends more as soon as it has accepted.
_SENT_BEFORE_IN_BYTES = 266
#: The most that the network adds to a frame: its header (9) and its encryption (33), rounded up.
_FRAME_BYTES = 64
#: The most connections that have not sent a whole message; beyond that the oldest are closed.
_UNHEARD_MAX = 1024
_CONNECTIONS_MAX = 8192
_DESCRIPTORS = 1 << 16  # the limit on open files that this process asks for
_TELL_EVERY_S = 10.0

_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_MONITOR_STOPPED
#: The first frame of what a monitor tells, zmq_socket_monitor(3): event and value. The reader of it
#: in pyzmq brings asyncio along, which takes a tenth of the time that a worker needs to start.
EVENT = struct.Struct("=Hi")
_COUNTED = struct.Struct("=QQ")  # of `struct tcp_info`: tcpi_bytes_acked, tcpi_bytes_received
_COUNTED_AT = 120
_INFO_BYTES = _COUNTED_AT + _COUNTED.size
_TCP_INFO = getattr(system, "TCP_INFO", None)
_QUEUED_MAX = 1 << 23
_QUEUED = struct.Struct("=i")


@dataclass(slots=True)
class _Connection:
    inode: int  # of the socket: the same descriptor may belong to another one later
    sender: bytes = b""  # the last sender, as given to `heard`
    read: int = 0  # bytes that this process has read; only the reading thread writes it
    overcounted: int = 0  # bytes counted as read that had never come
    received: int = 0  # bytes, at the last look
    unfinished: int = 0  # bytes certain to belong to a message that has no end yet
    held: int = 0  # bytes that ZeroMQ holds, whole messages included


class Port:
    """Watches the peers of one socket, which must be bound to tcp endpoints only.

    Make it before the socket is bound, and start it afterwards. The socket's reader must report
    what it reads (`heard`, `emptied`), or its peers count as silent.

    Attributes, which may be changed at any time:
        message_bytes: the length of the longest message.
        unread: how many messages of one peer may wait to be read.
        peers: how many peers may be in the middle of a message at the same time.
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
            keys: whether peers must show a key.
            read_ahead: reads all whole messages that have come, and reports them to this port;
                what is left is unfinished. It is called in the port's thread, when more is held
                than the longest message and nobody has read for a while.
        """
        self.message_bytes = message_bytes
        self.unread = unread
        self.peers = peers
        self._keys = keys
        self._read_ahead = read_ahead
        # The other half is for the run's files, and for connections that are still closing.
        descriptors = _descriptors()
        self._unheard_max = max(1, min(_UNHEARD_MAX, descriptors // 4))
        self._connections_max = max(2, min(_CONNECTIONS_MAX, descriptors // 2))
        self._connections: dict[int, _Connection] = {}  # by descriptor, in the order they came
        self._closed: deque[tuple[bytes, str]] = deque()
        self._closed_unheard = self._reported = 0  # connections that had sent no message
        self._tell_at_s = 0.0
        self._times_emptied = self._emptied_at_look = 0
        self._socket = socket
        self._events: zmq.Socket[bytes] = socket.get_monitor_socket(_EVENTS)
        self._thread = threading.Thread(target=self._watch, name="port", daemon=True)

    def start(self) -> None:
        """Start watching; the socket must be bound."""
        # Looking at a connection takes a descriptor: reserve it, for when none is left.
        self._blank = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._probe = system.socket(system.AF_UNIX)  # has room for an address of any family
        self._thread.start()

    def heard(self, descriptor: int, size: int, frames: int, who: bytes) -> None:
        """Note that a message of `size` bytes in so many frames has been read from a connection."""
        connection = self._connections.get(descriptor)
        if connection is not None:
            connection.read += size + frames * _FRAME_BYTES
            connection.sender = who

    def emptied(self) -> None:
        """Note that all whole messages have been read."""
        self._times_emptied += 1

    def take_closed(self) -> list[tuple[bytes, str]]:
        """Return whom it has shut out since the last call (b"" if never heard) and why."""
        closed = []
        while self._closed:
            closed.append(self._closed.popleft())
        now = time.monotonic()
        if self._closed_unheard > self._reported and now >= self._tell_at_s:
            count = self._closed_unheard - self._reported
            self._reported += count
            self._tell_at_s = now + _TELL_EVERY_S
            closed.append((b"", f"closed {count:,} connections that had sent nothing yet"))
        return closed

    def close(self) -> None:
        """Stop watching, before the socket is closed. Closing twice does nothing."""
        if not self._thread.is_alive():
            return
        self._socket.disable_monitor()  # sends the event that ends the thread
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
        """Note who has connected and disconnected; False once no more events will come."""
        with suppress(zmq.Again):
            for _ in range(self._unheard_max):
                event, descriptor = EVENT.unpack(self._events.recv_multipart(zmq.NOBLOCK)[0])
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
            self._close_unheard(next(reversed(self._connections)))
        if len(self._connections) > self._unheard_max:
            unheard = [fd for fd, one in self._connections.items() if not one.read]
            for oldest in unheard[: -self._unheard_max]:
                self._close_unheard(oldest)

    def _look(self) -> bool:
        """Shut out the peers that make this process hold too much; tell whether to look again
        soon."""
        was_emptied = self._times_emptied > self._emptied_at_look
        for descriptor, connection in list(self._connections.items()):
            try:
                text = self._measure(descriptor, connection, was_emptied)
            except OSError:
                continue  # it has disconnected, as an event will tell
            if text:
                self._shut_out(descriptor, text)
        self._emptied_at_look = self._times_emptied
        self._limit_totals()
        most = max((one.held for one in self._connections.values()), default=0)
        if most > self.message_bytes + _SLACK_BYTES and not was_emptied:
            self._read_ahead()
        return most > _MUCH_BYTES

    def _measure(self, descriptor: int, one: _Connection, was_emptied: bool) -> str:
        """Measure what is held for a connection; return why it must be closed, or an empty text."""
        assert _TCP_INFO is not None
        # Taken before `received`, so that it never counts bytes that `received` does not.
        read = one.read
        with self._probed(descriptor, one.inode) as probe:
            info = probe.getsockopt(system.IPPROTO_TCP, _TCP_INFO, _INFO_BYTES)
            queued = fcntl.ioctl(probe, termios.FIONREAD, bytes(_QUEUED.size))
        if len(info) < _INFO_BYTES:
            return ""  # an older kernel
        sent, received = _COUNTED.unpack_from(info, _COUNTED_AT)
        received -= _QUEUED.unpack(queued)[0]
        # If all whole messages were read since the last look, what had come by then and is still
        # unread belongs to an unfinished message.
        one.unfinished = max(0, one.received - (one.read - one.overcounted)) if was_emptied else 0
        one.held = received - (read - one.overcounted)
        one.received = received
        if one.held < 0:
            one.overcounted -= one.held
            one.held = 0
        if self._keys and not one.read and sent <= _SENT_BEFORE_IN_BYTES:
            if one.held > _BEFORE_KEY_BYTES:
                return f"it has sent {one.held:,} bytes and shown no key"
        elif one.unfinished > self.message_bytes + _SLACK_BYTES:
            return (
                f"it has sent {one.unfinished:,} bytes of an endless message; "
                f"the longest allowed has {self.message_bytes:,}"
            )
        elif one.held > self.unread * self.message_bytes + _SLACK_BYTES:
            return f"{one.held:,} bytes of it wait to be read"
        return ""

    def _limit_totals(self) -> None:
        """Keep all connections together within limits; those with the most are closed first."""
        parts_max = self.peers * self.message_bytes + _SLACK_BYTES
        self._limit_total(lambda one: one.unfinished, parts_max, "of unfinished messages")
        self._limit_total(lambda one: one.held, self.unread * parts_max, "waiting to be read")

    def _limit_total(self, bytes_of: Callable[[_Connection], int], most: int, what: str) -> None:
        total = sum(map(bytes_of, self._connections.values()))
        while total > most:
            largest = max(self._connections, key=lambda fd: bytes_of(self._connections[fd]))
            part = bytes_of(self._connections[largest])
            self._shut_out(largest, f"it has sent {part:,} of {total:,} bytes {what}")
            total -= part

    def _shut_out(self, descriptor: int, text: str) -> None:
        connection = self._connections.pop(descriptor)
        with suppress(OSError), self._probed(descriptor, connection.inode) as probe:
            host, port = probe.getpeername()[:2]
            peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            closed = connection.sender, f"closed the connection from {peer}: {text}"
            self._closed.append(closed)
            _end(probe)

    def _close_unheard(self, descriptor: int) -> None:
        connection = self._connections.pop(descriptor)
        with suppress(OSError), self._probed(descriptor, connection.inode) as probe:
            _end(probe)
            self._closed_unheard += 1

    @contextmanager
    def _probed(self, descriptor: int, inode: int = 0) -> Iterator[system.socket]:
        """Duplicate a connection's descriptor, so that it stays the same connection while in use.

        Raises `OSError` if the descriptor no longer belongs to the socket with this inode.
        """
        probe = self._probe
        os.dup2(descriptor, probe.fileno(), inheritable=False)
        try:
            if inode and os.fstat(probe.fileno()).st_ino != inode:
                raise OSError("another connection has its descriptor")
            yield probe
        finally:
            os.dup2(self._blank, probe.fileno(), inheritable=False)


def _end(connection: system.socket) -> None:
    """Close a connection at once and discard what it has sent; ZeroMQ then reads its end."""
    connection.setsockopt(system.SOL_SOCKET, system.SO_LINGER, struct.pack("=ii", 1, 0))
    connection.shutdown(system.SHUT_RDWR)
    with suppress(BlockingIOError):
        connection.recv(_QUEUED_MAX, system.MSG_DONTWAIT | getattr(system, "MSG_TRUNC", 0))


def _descriptors() -> int:
    """Return how many files this process may have open, after raising the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _DESCRIPTORS
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft < wanted:
        with suppress(OSError, ValueError):  # some systems allow fewer than their limit says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return soft
