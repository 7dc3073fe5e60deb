"""A worker's sockets: to the coordinator, for data from its neighbours, and to each neighbour."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

import zmq

from asyncdni.config import MESSAGE_BYTES_MAX, Limits
from asyncdni.delays import LinkDelay
from asyncdni.errors import LaunchError, LimitExceeded, LocalProtocolError, RemoteProtocolError
from asyncdni.messages import COORDINATOR, DATA, Message
from asyncdni.wire import sockets
from asyncdni.wire.address import Address, advertised, data_endpoints, join_key, parse, split_key
from asyncdni.wire.codec import (
    BETWEEN_WORKERS,
    FROM_COORDINATOR,
    FROM_WORKER,
    HEADER_BYTES_MAX,
    Buffer,
    decode_from,
    encode,
    size,
)
from asyncdni.wire.curve import (
    Gate,
    Handshake,
    KeyPair,
    Keys,
    as_client,
    as_server,
    new_pair,
    worker_pair,
)
from asyncdni.wire.emulation import Emulation
from asyncdni.wire.port import Port
from asyncdni.wire.sockets import Socket

__all__ = ["Arrivals", "Neighbours", "WorkerTransport"]

# --- arrivals ------------------------------------------------------------------------------------

_TEXTS_MAX = 16  # lines for the worker's log

_Received = tuple[list[Buffer], bytes | None]  # frames, and the sender's key


class Arrivals:
    """The data socket, on which neighbours send. It is bound to the first of `addresses` that is
    free.

    A connected peer may send anything. Invalid messages are dropped and counted; where the run has
    keys (`pair` is the worker's own), the neighbour that sent one is cut off. `rejected` has a line
    about each of the first dropped messages and the first refused peers. Raises `LaunchError` if no
    address can be bound.
    """

    def __init__(
        self, context: zmq.Context[Socket], addresses: Sequence[Address], pair: KeyPair | None
    ) -> None:
        self._limits = Limits()
        self.bytes_received = 0
        self.messages = 0
        self.rejected: list[str] = []
        self.unlisted = 0  # lines that `rejected` had no room for
        self.rejected_messages = 0
        self._accused: list[tuple[str, str]] = []
        self._names: dict[bytes, str] = {}  # neighbours by key
        self._host = ""  # the neighbour that may also send as the data node
        self._cut_off: set[bytes] = set()
        self._gate: Gate | None = None
        self._port: Port | None = None
        #: Held by the thread that uses the socket: the worker's, or the port's while that computes.
        self.attended = threading.RLock()
        self._ahead: deque[_Received] = deque()  # read by the port's thread, not yet received
        self.socket = sockets.open_socket(context, zmq.PULL, MESSAGE_BYTES_MAX)
        if pair is not None:
            self._gate = Gate(context, final=False)
            as_server(self.socket, pair)
        if addresses[0].scheme == "tcp":  # strangers can't reach an ipc socket
            self._port = Port(
                self.socket,
                self._limits.message_bytes,
                unread=sockets.UNREAD_MAX,
                peers=1,
                keys=pair is not None,
                read_ahead=self._read_ahead,
            )
        self.endpoint = sockets.bind_to_one(self.socket, addresses)
        if self._port is not None:
            self._port.start()

    def register(self, poller: zmq.Poller) -> None:
        """Register the data socket with `poller`."""
        poller.register(self.socket, zmq.POLLIN)
        if self._gate is not None:
            poller.register(self._gate.socket, zmq.POLLIN)

    def limit(self, limits: Limits) -> None:
        """Refuse larger messages from now on. Call it before any neighbour connects.

        It also limits what a stranger can make this process hold: ZeroMQ reads a whole frame before
        it looks at the key. Raises `LaunchError` if the port is lost.
        """
        self._limits = limits
        if self._port is not None:
            self._port.message_bytes = limits.message_bytes
            with self.attended:
                sockets.rebind(self.socket, self.endpoint, limits.message_bytes)

    def expect(self, message_bytes: int, peers: int) -> None:
        """Expect at most `peers` neighbours, whose longest message has `message_bytes` without its
        header."""
        if self._port is not None:
            self._port.message_bytes = min(message_bytes, self._limits.message_bytes)
            self._port.peers = max(1, peers)

    def await_neighbours(self) -> None:
        """Keep neighbours with unknown keys waiting until `admit` names them."""
        if self._gate is not None:
            self._gate.waits = True

    def admit(self, keys: Mapping[str, bytes], host: str) -> None:
        """Accept these neighbours only from now on, by their public keys (32 bytes).

        Each may send in its own name; `host` also in the name of the data node.
        """
        self._host = host
        if self._gate is not None:
            self._names = {key: worker for worker, key in keys.items()}
            self._gate.known = set(self._names)
            self._cut_off.clear()
            self._gate.waits = False
            self._note(self._gate.answer())  # a request that waited causes no wake-up

    def receive(self, count: int) -> list[Message]:
        """Read up to `count` waiting messages and return the valid ones; answer peers that want to
        connect."""
        if self._gate is not None:
            self._note(self._gate.answer())
        if self._port is not None:
            self._tell_closed(self._port)
        found: list[Message] = []
        with self.attended:
            for _ in range(count):  # invalid messages count, so that a flood can't keep it here
                received = self._ahead.popleft() if self._ahead else self._next()
                if received is None:
                    break
                message = self._checked(*received)
                if message is not None:
                    found.append(message)
        return found

    def wait(self, poller: zmq.Poller, timeout_s: float | None) -> None:
        """Call `sockets.wait` with a poller that knows this socket, unless a message has been read
        already."""
        with self.attended:
            if not self._ahead:
                sockets.wait(poller, timeout_s)

    def close(self) -> None:
        """Stop watching the port, before the socket is closed."""
        if self._port is not None:
            self._port.close()

    def take_accused(self) -> list[tuple[str, str]]:
        """Return the neighbours cut off since the last call, and why."""
        accused, self._accused = self._accused, []
        return accused

    def _read_ahead(self) -> None:
        if not self.attended.acquire(blocking=False):
            return  # the worker's thread is using the socket
        try:
            while len(self._ahead) < sockets.UNREAD_MAX:
                received = self._next()
                if received is None:
                    break
                self._ahead.append(received)
        finally:
            self.attended.release()

    def _next(self) -> _Received | None:
        if self._port is None and self._gate is None:
            frames = sockets.receive(self.socket)
            return None if frames is None else (frames, None)
        received = sockets.receive_from(self.socket, keys=self._gate is not None)
        if received is None:
            if self._port is not None:
                self._port.emptied()
            return None
        frames, origin = received
        if self._port is not None:
            self._port.heard(origin.descriptor, size(frames), len(frames), origin.key or b"")
        return frames, origin.key

    def _tell_closed(self, port: Port) -> None:
        for key, text in port.take_closed():
            if key in self._names:
                self._reject(text, key)
            else:
                self._note([text])

    def _checked(self, frames: list[Buffer], key: bytes | None) -> Message | None:
        """Decode a message and check its sender; None if it is dropped. `key` is None in a run
        without keys."""
        self.bytes_received += size(frames)
        self.messages += 1
        if key is not None and key not in self._names:
            self.rejected_messages += key in self._cut_off
            return None  # the sender was accepted earlier, and has been cut off or replaced
        try:
            message = decode_from(frames, BETWEEN_WORKERS, self._limits)
            if key is not None:
                self._check_sender(getattr(message, "sender", ""), self._names[key])
        except RemoteProtocolError as error:
            self._reject(str(error), key)
            return None
        return message

    def _check_sender(self, said: str, worker: str) -> None:
        if said == DATA and worker != self._host:
            what = f"the data's, which worker {worker} does not host"
            raise RemoteProtocolError(f"bad message: it says that it is {what}")
        if said not in (worker, DATA):
            raise RemoteProtocolError("bad message: it says that it is another worker's")

    def _reject(self, text: str, key: bytes | None) -> None:
        self.rejected_messages += 1
        if key is None or self._gate is None:
            self._note([f"dropped a message: {text}"])
            return
        worker = self._names.pop(key)
        self._gate.known.discard(key)
        self._cut_off.add(key)
        self._accused.append((worker, text))
        self._note([f"cut off worker {worker}: {text}"])

    def _note(self, lines: list[str]) -> None:
        fitting = max(0, _TEXTS_MAX - len(self.rejected))
        self.rejected += lines[:fitting]
        self.unlisted += len(lines[fitting:])


# --- neighbours ----------------------------------------------------------------------------------

#: Timeout of one attempt to connect. Left alone, the kernel tries less and less often while a
#: firewall drops everything, and would notice late that it no longer does.
_CONNECT_MS = 3000


class Neighbours:
    """A worker's sockets to its neighbours: one each, replaced or closed as they move or die.

    A socket is opened with the first message to its neighbour. If the neighbour does not know this
    worker's key yet, it keeps the connection waiting: see `Gate`. `pair` is this worker's own,
    where the run has keys.
    """

    def __init__(self, context: zmq.Context[Socket], pair: KeyPair | None) -> None:
        self.keys: dict[str, bytes] = {}  # public keys (32 bytes) of those that are connected
        self._context = context
        self._pair = pair
        self._endpoints: dict[str, str] = {}  # as received, with keys
        self._targets: dict[str, tuple[Address, bytes | None]] = {}
        self._lost: set[str] = set()
        self._sockets: dict[str, Socket] = {}
        self._emulation: Emulation | None = None

    def emulate(self, delays: Mapping[str, LinkDelay]) -> None:
        """Delay messages to the workers in `delays`, none of which are delayed yet."""
        if delays and self._emulation is None:
            self._emulation = Emulation()
        for worker, delay in delays.items():
            assert self._emulation is not None
            self._emulation.take(worker, delay, self._sockets.get(worker))

    def connect(self, endpoints: Mapping[str, str]) -> dict[str, str]:
        """Note where each worker listens from now on: see `WorkerTransport.connect`."""
        unusable = {}
        for worker, endpoint in endpoints.items():
            if self._endpoints.get(worker) == endpoint and worker not in self._lost:
                continue
            self.lose(worker)
            try:
                target = self._target(worker, endpoint)
            except LaunchError as error:
                unusable[worker] = str(error)
                continue
            self._lost.discard(worker)
            self._endpoints[worker], self._targets[worker] = endpoint, target
            if target[1] is not None:
                self.keys[worker] = target[1]
        return unusable

    def lose(self, worker: str) -> None:
        """Drop what is queued for `worker`, and whatever is sent to it until the next `connect`."""
        self._lost.add(worker)
        self.keys.pop(worker, None)
        socket = self._sockets.pop(worker, None)
        if socket is None:
            return
        if self._emulation is not None and worker in self._emulation:
            self._emulation.disconnect(worker)  # its thread owns the socket and closes it
        else:
            socket.close(linger=0)

    def is_lost(self, worker: str) -> bool:
        """Tell whether messages to `worker` are dropped."""
        return worker in self._lost

    def send(self, to: str, frames: Sequence[Buffer]) -> Callable[[], bool] | None:
        """Send to a worker that is not lost; see `sockets.send`."""
        socket = self._sockets.get(to)
        if socket is None:
            socket = self._open(to)
        if self._emulation is not None and to in self._emulation:
            self._emulation.send(to, frames)
            return None
        return sockets.send(socket, frames)

    def check(self) -> None:
        """Raise the error that has ended the thread that delays messages, if there is one."""
        if self._emulation is not None:
            self._emulation.check()

    def close(self, linger_s: float) -> None:
        """End that thread once all messages it holds have been sent, or after `linger_s`."""
        if self._emulation is not None:
            self._emulation.close(linger_s)

    def _target(self, worker: str, endpoint: str) -> tuple[Address, bytes | None]:
        text, key = split_key(endpoint)
        if (key is None) != (self._pair is None):
            has, expected = ("no key", "one") if key is None else ("a key", "none")
            raise LaunchError(
                f"worker {worker} at {text} has {has}, expected {expected}: give all processes of "
                "a run --keys, or none"
            )
        try:
            return parse(text, bind=False), key
        except LaunchError as error:
            raise LaunchError(f"worker {worker} can't be reached: {error}") from error

    def _open(self, worker: str) -> Socket:
        if worker not in self._targets:
            raise LocalProtocolError(
                f"no connection to {worker!r}, only to {sorted(self._targets)}"
            )
        address, key = self._targets[worker]
        socket = sockets.open_socket(self._context, zmq.PUSH, MESSAGE_BYTES_MAX)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_MS)
        if self._pair is not None and key is not None:
            as_client(socket, self._pair, key)
        sockets.connect(socket, address)
        self._sockets[worker] = socket
        if self._emulation is not None and worker in self._emulation:
            self._emulation.connect(worker, socket)
        return socket


_CONTROL_LIMITS = Limits(message_bytes=HEADER_BYTES_MAX)  # control messages have no tensors
_RECEIVED_MAX = 256  # messages of one `receive`, so that its caller acts on them soon


class WorkerTransport:
    """A worker's sockets: one to its coordinator, one for its data, one to each neighbour.

    It connects to the address `coordinator`; the coordinator need not be there yet. Until `limit`
    is called, the defaults of `config.Limits` apply. Invalid messages from neighbours are dropped
    and counted; in a run with keys their sender is cut off: see `Arrivals`.

    `bind` is where it listens for its neighbours, and `advertise` the address that they connect to.
    Both default to what the coordinator's address suggests: see `address.data_endpoints`.

    Raises `LaunchError` for an address that can't be used, `ConfigError` if `keys` are the
    coordinator's only.
    """

    def __init__(
        self,
        coordinator: str,
        keys: Keys | None = None,
        *,
        bind: str | None = None,
        advertise: str | None = None,
    ) -> None:
        self.coordinator = coordinator
        self.identity = secrets.token_hex(8).encode()
        self.bytes_sent = 0
        self._bytes_to: Counter[str] = Counter()  # neighbours, without test batches
        self._control_bytes = 0  # received
        self._messages = 0  # sent, and received from the coordinator
        self._message_bytes_max = Limits().message_bytes
        #: Whether each message's sender is certain, as it is with keys.
        self.knows_senders = keys is not None
        self._host = ""  # the neighbour that hosts the data, if one does
        self._shut_out = False  # the coordinator refuses this worker for good
        member = worker_pair(keys) if keys is not None else None
        pair = new_pair() if keys is not None else None
        self._context: zmq.Context[Socket] = zmq.Context()
        self._neighbours = Neighbours(self._context, pair)
        try:
            self._control = sockets.open_socket(self._context, zmq.DEALER, HEADER_BYTES_MAX)
            self._control.setsockopt(zmq.IDENTITY, self.identity)
            if keys is not None and member is not None:
                as_client(self._control, member, keys.coordinator_public)
            self._handshake: Handshake | None = Handshake(
                self._control, coordinator, keys=keys is not None
            )
            sockets.connect(self._control, parse(coordinator, bind=False))
            # Bound before the limit on messages is known: Hello must contain the address, and the
            # limit comes with the answer.
            self._arrivals = Arrivals(self._context, data_endpoints(coordinator, bind), pair)
            #: The address that neighbours connect to.
            self.address = advertised(self._arrivals.endpoint, coordinator, advertise)
            if pair is not None:
                self.address = join_key(self.address, pair.public_bytes)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._poller = zmq.Poller()
        self._poller.register(self._control, zmq.POLLIN)
        self._poller.register(self._handshake.socket, zmq.POLLIN)
        self._arrivals.register(self._poller)

    @property
    def rejected(self) -> list[str]:
        """Lines for the log: the first dropped messages and refused peers."""
        more = self._arrivals.unlisted
        return [*self._arrivals.rejected, *([f"and {more:,} more of these"] if more else [])]

    def limit(self, limits: Limits) -> None:
        """Set the run's limit on messages between workers. Call it before any of them connects.

        Control messages have a limit of their own, `codec.HEADER_BYTES_MAX`. Raises `LaunchError`:
        see `Arrivals.limit`.
        """
        self._message_bytes_max = limits.message_bytes
        self._arrivals.limit(limits)

    def expect(self, message_bytes: int, peers: int) -> None:
        """Expect at most `peers` neighbours, none of which sends messages of more than
        `message_bytes`.

        Over tcp a peer that sends more without ending its message is shut out. Only the worker
        knows these numbers, from its network.
        """
        self._arrivals.expect(message_bytes, peers)

    def emulate(self, delays: Mapping[str, LinkDelay]) -> None:
        """Delay all messages to the workers in `delays` from now on; each of them once."""
        self._neighbours.emulate(delays)

    def await_neighbours(self) -> None:
        """Keep neighbours that connect early waiting. Call it before the coordinator may send
        Connect: some neighbours get theirs before this worker does."""
        self._arrivals.await_neighbours()

    def connect(self, endpoints: Mapping[str, str], *, host: str = "") -> dict[str, str]:
        """Note where each neighbour listens (worker -> endpoint). May be called again and again.

        With keys each neighbour may send in its own name only, and `host` also in the data node's.

        A link whose endpoint is unchanged stays, with all that is queued. A link to a neighbour
        that has moved or was lost starts anew, and what was queued is dropped. Returns the
        neighbours whose endpoints can't be used, and why; they count as lost.
        """
        self._host = host
        unusable = self._neighbours.connect(endpoints)
        self._arrivals.admit(self._neighbours.keys, host)
        return unusable

    def lose(self, worker: str) -> None:
        """Drop what is queued for a dead neighbour, and whatever is sent to it until the next
        `connect`."""
        self._neighbours.lose(worker)
        self._arrivals.admit(self._neighbours.keys, self._host)

    def send(self, to: str, message: Message) -> Callable[[], bool] | None:
        """Send to a connected worker, or to `messages.COORDINATOR`; never blocks.

        Large tensors are not copied: leave them unchanged until the returned function returns true.
        None means that all has been copied, or dropped because `to` is lost or refuses this worker.
        Raises `LimitExceeded` for a message over the limit or a full queue, `LocalProtocolError`
        for what no peer would accept.
        """
        if type(message) not in (FROM_WORKER if to == COORDINATOR else BETWEEN_WORKERS):
            raise LocalProtocolError(f"{type(message).__name__} is no message to {to!r}")
        if self._neighbours.is_lost(to) or (to == COORDINATOR and self._shut_out):
            return None
        frames = encode(message)
        total = size(frames)
        if to == COORDINATOR:
            sent = self._tell(frames)
        else:
            self._check_size(message, total)
            sent = self._neighbours.send(to, frames)
            if not getattr(message, "evaluate", False):
                self._bytes_to[to] += total
        self.bytes_sent += total
        self._messages += 1
        return sent

    def wait(self, timeout_s: float | None) -> None:
        """Wait until there is something to receive, or for `timeout_s` (None: for ever).

        It may return sooner, for example when a peer wants to connect.
        """
        self._arrivals.wait(self._poller, timeout_s)

    def receive(self, timeout_s: float | None) -> list[Message]:
        """Return up to 256 waiting messages, control first; the list is empty if all were invalid.

        Waits up to `timeout_s` (None: for ever) for the first. Tensors are read-only views of
        ZeroMQ's memory, which lives as long as they do. Raises `RemoteProtocolError` for an invalid
        message from the coordinator, `LaunchError` if the coordinator refuses this worker, and any
        error of the thread that delays messages.
        """
        self._neighbours.check()
        if timeout_s == 0:
            return self._drain()
        before = self.messages
        found = self._drain()
        if self.messages > before:
            return found

        def came() -> bool:
            found.extend(self._drain())
            return self.messages > before

        with self._arrivals.attended:
            sockets.wait_until(self._poller, timeout_s, came)
        return found

    def take_accused(self) -> list[tuple[str, str]]:
        """Return the neighbours cut off since the last call, and why."""
        return self._arrivals.take_accused()

    def counters(self) -> dict[str, int]:
        """Counters for reports: messages and their bytes since the start, without the heart's
        beats; `bytes_to_WORKER` also without test batches."""
        return {
            **{f"bytes_to_{worker}": count for worker, count in self._bytes_to.items()},
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "messages": self.messages,
            "rejected_messages": self._arrivals.rejected_messages,
        }

    @property
    def bytes_received(self) -> int:
        return self._control_bytes + self._arrivals.bytes_received

    @property
    def messages(self) -> int:
        """Messages sent and received."""
        return self._messages + self._arrivals.messages

    def close(self, linger_s: float) -> None:
        """Close all sockets; messages not sent after `linger_s` are dropped."""
        ends_at = time.monotonic() + linger_s
        self._neighbours.close(linger_s)
        left_s = max(0.0, ends_at - time.monotonic()) if linger_s else 0.0
        self._arrivals.close()
        sockets.close(self._context, self._arrivals.endpoint, left_s)

    def _tell(self, frames: list[Buffer]) -> Callable[[], bool] | None:
        try:
            return sockets.send(self._control, frames)
        except LimitExceeded:
            if self._handshake is None:
                raise
            return None  # the handshake has failed, as `receive` will report

    def _check_size(self, message: Message, total: int) -> None:
        allowed = self._message_bytes_max
        if total > allowed:
            raise LimitExceeded(
                f"{type(message).__name__} of {total} bytes is over limits.message_bytes = "
                f"{allowed}: raise it or make batches smaller"
            )

    def _drain(self) -> list[Message]:
        self._watch_handshake()
        found: list[Message] = []
        while len(found) < _RECEIVED_MAX:
            frames = sockets.receive(self._control)
            if frames is None:
                break
            found.append(self._order(frames))
        return found + self._arrivals.receive(_RECEIVED_MAX - len(found))

    def _watch_handshake(self) -> None:
        if self._handshake is None:
            return
        try:
            done = self._handshake.done()
        except LaunchError:
            self._shut_out = True
            raise
        if done:
            self._poller.unregister(self._handshake.socket)
            self._handshake.close()
            self._handshake = None

    def _order(self, frames: list[Buffer]) -> Message:
        """Decode a message of the coordinator. Nobody else can send here, so an invalid one is an
        error."""
        self._control_bytes += size(frames)
        self._messages += 1
        try:
            return decode_from(frames, FROM_COORDINATOR, _CONTROL_LIMITS)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(f"control socket to {self.coordinator}: {error}") from error
