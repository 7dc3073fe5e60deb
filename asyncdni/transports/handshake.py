"""Why a coordinator does not let a worker in, as far as ZeroMQ tells: no use to wait then."""

from __future__ import annotations

import zmq
from zmq.utils.monitor import recv_monitor_message

from asyncdni.errors import LaunchError
from asyncdni.transports.sockets import Socket

__all__ = ["Handshake"]

#: Handshakes that the other side has broken off without a word: what a server does to those who
#: call it by another's key. One or two may be due to a coordinator that dies.
_BROKEN_OFF_MAX = 5


class Handshake:
    """Watches one socket until its first handshake with `address` has succeeded."""

    def __init__(self, socket: Socket, address: str, *, keys: bool) -> None:
        self._watched = socket
        self._address = address
        self._keys = keys
        self._broken_off = 0
        self.socket: Socket = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )

    def done(self) -> bool:
        """Whether there is nothing more to watch. Raises `LaunchError` once it can't succeed."""
        while self.socket.poll(0):
            event = recv_monitor_message(self.socket)
            if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return True
            reason = self._reason(event["event"], event["value"])
            if reason:
                raise LaunchError(f"coordinator {self._address} {reason}")
        return False

    def close(self) -> None:
        """Stop watching."""
        self._watched.disable_monitor()
        self.socket.close(linger=0)

    def _reason(self, kind: int, value: int) -> str:
        """Empty while it may still succeed."""
        if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return "does not know this worker's key: give both the keys of one `asyncdni keys new`"
        if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            if value != zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
                return ""
            if self._keys:
                return "uses no keys: start it with --keys, or this worker without"
            return "lets in workers with keys alone: give this one --keys DIR"
        self._broken_off += 1  # which may be all that is seen of any of the above
        if self._broken_off < _BROKEN_OFF_MAX:
            return ""
        if self._keys:
            return (
                "breaks off every handshake: it has other keys than this worker expects, or uses "
                "no keys; give both the keys of one `asyncdni keys new`"
            )
        return (
            "breaks off every handshake: it may be one that lets in workers with keys alone: give "
            "this one --keys DIR"
        )
