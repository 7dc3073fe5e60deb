"""A worker's end of the wire: see `zeromq`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping

import zmq

from asyncdni.config import Limits
from asyncdni.delays import LinkDelay
from asyncdni.errors import LaunchError, LimitExceeded, LocalProtocolError, RemoteProtocolError
from asyncdni.messages import COORDINATOR, Message
from asyncdni.transports import sockets
from asyncdni.transports.address import advertised, data_endpoints, join_key, parse
from asyncdni.transports.arrivals import Arrivals
from asyncdni.transports.codec import (
    BETWEEN_WORKERS,
    FROM_COORDINATOR,
    FROM_WORKER,
    HEADER_BYTES_MAX,
    Buffer,
    decode_from,
    encode,
    size,
)
from asyncdni.transports.curve import Keys, as_client, new_pair, worker_pair
from asyncdni.transports.handshake import Handshake
from asyncdni.transports.neighbours import Neighbours
from asyncdni.transports.sockets import Socket

__all__ = ["WorkerTransport"]

_CONTROL_LIMITS = Limits(message_bytes=HEADER_BYTES_MAX)  # such a message is a header alone
_RECEIVED_MAX = 256  # messages of one `receive`, so that its caller gets to act on them


class WorkerTransport:
    """A worker's sockets: one to its coordinator, one for its data, one to each neighbour.

    `coordinator` is the address to connect to; the coordinator need not be there yet. Until
    `limit` is called, `config.Limits` hold as they are by default. Nonsense from neighbours is
    dropped and counted, and where there are keys they are cut off: see `arrivals`.

    `bind` is where it listens for its neighbours, and `advertise` what they are told, where these
    are not to be found out from the coordinator's address: see `address.data_endpoints`.

    Raises `LaunchError` for an address that can't be used, `ConfigError` for keys that are the
    coordinator's alone.
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
        self._control_bytes = 0  # received
        self._messages = 0  # sent, and received from the coordinator
        self._message_bytes_max = Limits().message_bytes
        #: With keys nobody can send in another's name.
        self.knows_senders = keys is not None
        self._host = ""  # the neighbour that hosts the data, if one does
        self._shut_out = False  # the coordinator does not let us in, and never will
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
            # Its address is in the Hello, and the limit comes with the answer: bound without it.
            self._arrivals = Arrivals(self._context, data_endpoints(coordinator, bind), pair)
            #: What neighbours must be told to connect to.
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
        """For the log: the first messages that were dropped, and peers that were refused."""
        more = self._arrivals.unnoted
        return [*self._arrivals.rejected, *([f"and {more:,} more of these"] if more else [])]

    def limit(self, limits: Limits) -> None:
        """What the run allows: from now on no larger message goes out or comes in between workers.

        Before any of them connects. Control messages have a limit of their own,
        `codec.HEADER_BYTES_MAX`. Raises `LaunchError`: see `Arrivals.limit`.
        """
        self._message_bytes_max = limits.message_bytes
        self._arrivals.limit(limits)

    def expect(self, message_bytes: int, peers: int) -> None:
        """What neighbours have to send: so many of them, and none a message with longer tensors.

        Over tcp, who sends more without an end to it is shut out. Nobody else can know sooner.
        """
        self._arrivals.expect(message_bytes, peers)

    def emulate(self, delays: Mapping[str, LinkDelay]) -> None:
        """Hold back all messages to these workers as long as `delays` say; before `connect`."""
        self._neighbours.emulate(delays)

    def await_neighbours(self) -> None:
        """The coordinator may tell all workers to connect from now on: neighbours that were told
        before this one are kept waiting until its own `connect`."""
        self._arrivals.await_neighbours()

    def connect(self, endpoints: Mapping[str, str], *, host: str = "") -> dict[str, str]:
        """Where each neighbour listens (worker -> endpoint). May be called again and again.

        With keys each of them is heard for itself alone, and `host` for the data as well.

        A link to an endpoint that stays the same stays as it is, with all that is queued; one to a
        neighbour that has moved or was lost starts anew, and what was queued is dropped. Returns
        those whose endpoint can't be used, and why: they are lost.
        """
        self._host = host
        unusable = self._neighbours.connect(endpoints)
        self._arrivals.admit(self._neighbours.keys, host)
        return unusable

    def lose(self, worker: str) -> None:
        """A neighbour is dead: drop what is queued for it, and what will be until `connect`."""
        self._neighbours.lose(worker)
        self._arrivals.admit(self._neighbours.keys, self._host)

    def send(self, to: str, message: Message) -> Callable[[], bool] | None:
        """Send to a connected worker, or to `messages.COORDINATOR`; never blocks.

        Large tensors are not copied: they must stay as they are until the function that comes back
        is true. None means that all has been copied, or dropped because `to` is lost or does not
        let this worker in. Raises `LimitExceeded` for a message over the limit or a full queue,
        `LocalProtocolError` for what no peer would accept.
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
        self.bytes_sent += total
        self._messages += 1
        return sent

    def wait(self, timeout_s: float | None) -> None:
        """Until there is something to receive, or for `timeout_s` (None: for ever).

        May end sooner, as when a peer wants to connect.
        """
        self._arrivals.wait(self._poller, timeout_s)

    def receive(self, timeout_s: float | None) -> list[Message]:
        """All messages that are here (at most 256), control first; none if all were nonsense.

        Waits up to `timeout_s` (None: for ever) for the first. Tensors are read-only views of
        ZeroMQ's memory, which lives as long as they do. Raises `RemoteProtocolError` for nonsense
        from the coordinator, `LaunchError` where that can't let this worker in, and what the thread
        that delays messages has failed at.
        """
        self._neighbours.check()
        before = self.messages
        found = self._drain()
        if timeout_s == 0 or self.messages > before:
            return found

        def came() -> bool:
            found.extend(self._drain())
            return self.messages > before

        with self._arrivals.attended:
            sockets.wait_until(self._poller, timeout_s, came)
        return found

    def take_accused(self) -> list[tuple[str, str]]:
        """Neighbours that have been cut off since the last call, and for what."""
        return self._arrivals.take_accused()

    def counters(self) -> dict[str, int]:
        """For reports: messages and their bytes since the start, the heart's beats left out."""
        return {
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
        """Sent and received."""
        return self._messages + self._arrivals.messages

    def close(self, linger_s: float) -> None:
        """Close all sockets; what has not left after `linger_s` is given up, held or not."""
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
            return None  # ZeroMQ has given up: the handshake has failed, as `receive` will say

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
        """What the coordinator has sent; nobody else can, so nonsense is no reason to go on."""
        self._control_bytes += size(frames)
        self._messages += 1
        try:
            return decode_from(frames, FROM_COORDINATOR, _CONTROL_LIMITS)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(f"control socket to {self.coordinator}: {error}") from error
