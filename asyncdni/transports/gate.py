"""Who may connect: answers to ZeroMQ's questions about keys (ZAP, rfc.zeromq.org/spec/27).

One gate serves all sockets of a context. ZeroMQ asks it about every handshake, and the handshake
waits for the answer: without a gate's `answer` nobody comes in. It must be there before the first
socket of its context is bound.
"""

from __future__ import annotations

import zmq
from zmq.utils import z85

from asyncdni.transports import sockets
from asyncdni.transports.codec import Buffer
from asyncdni.transports.sockets import Socket

__all__ = ["Gate"]

_ENDPOINT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_NOTED_MAX = 64  # strangers, each noted once
_ANSWERED_MAX = 256  # of one `answer`


class Gate:
    """Lets in the owners of known public keys.

    `known` are their keys (32 bytes each), the caller's to change at any time; a message that comes
    over such a connection carries the key as 64 hexadecimal digits (`sockets.receive_from`).
    Strangers are counted in `refused`, each time they try.
    """

    def __init__(self, context: zmq.Context[Socket], *, final: bool) -> None:
        """`final`: a stranger is refused for good, and told; otherwise it may try again later,
        as one whose key becomes known too late."""
        self.known: set[bytes] = set()
        #: Word is awaited of who is to be known: until then strangers wait at the gate, since one
        #: that is not let in would try again after a whole handshake's time.
        self.waits = False
        self.refused = 0
        self._final = final
        self._strangers: set[bytes] = set()
        self._at_gate: list[Buffer] | None = None  # the one request that has not been answered
        self.socket: Socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ENDPOINT)

    def answer(self) -> list[str]:
        """Answer those who wait; never blocks. Returns a line about each new stranger, and beyond
        some of them one whenever the number of refusals has doubled."""
        noted: list[str] = []
        for _turn in range(_ANSWERED_MAX):  # or a flood would never end
            request = self._at_gate or sockets.receive(self.socket)
            self._at_gate = None
            if request is None:
                break
            _, number, _, address, _, mechanism, *credentials = map(bytes, request)
            key = credentials[0] if credentials else b""
            known = mechanism == b"CURVE" and key in self.known
            if self.waits and not known:
                self._at_gate = request
                break
            if known:
                self._reply(number, b"200", b"", key.hex().encode())
            else:
                self._reply(number, b"400" if self._final else b"300", b"unknown key", b"")
                noted += self._note(key, address.decode(errors="replace"))
        return noted

    def _note(self, key: bytes, address: str) -> list[str]:
        self.refused += 1
        if key in self._strangers or len(self._strangers) >= _NOTED_MAX:
            if self.refused <= _NOTED_MAX or self.refused & (self.refused - 1):
                return []
            return [f"refused peers {self.refused:,} times so far, the last one at {address}"]
        self._strangers.add(key)
        who = z85.encode(key).decode() if len(key) == 32 else "none"
        return [f"refused a peer at {address or 'this host'}: unknown key {who}"]

    def _reply(self, number: bytes, status: bytes, text: bytes, user: bytes) -> None:
        self.socket.send_multipart([_VERSION, number, status, text, user, b""], zmq.NOBLOCK)
