"""Signs of life: a small thread sends beats for its worker, so that a long matrix product does not
look like a death.

The coordinator answers every beat. A worker whose coordinator falls silent, or whose parent process
has ended, has nobody to work for and exits.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

import zmq

from asyncdni import logs
from asyncdni.core.liveness import Silence, beat_every_s, worker_patience_s
from asyncdni.errors import LaunchError
from asyncdni.messages import Beat
from asyncdni.wire import sockets
from asyncdni.wire.address import parse
from asyncdni.wire.codec import HEADER_BYTES_MAX, encode
from asyncdni.wire.coordinator import HEART_SUFFIX
from asyncdni.wire.curve import Keys, as_client, worker_pair

__all__ = ["PARENT_VARIABLE", "Heart", "exit_process", "parent_lives"]

#: Environment variable with the process id of the parent that a worker must not outlive.
PARENT_VARIABLE = "ASYNCDNI_PARENT_PID"


def exit_process(reason: str) -> None:
    """End this process at once, from any thread, after printing one line."""
    logs.print_at_once(logging.ERROR, f"worker stops: {reason}")
    os._exit(1)


class Heart:
    """Sends beats for the worker with `identity`, from a daemon thread with a socket of its own.

    Start it once the coordinator has answered the Hello: silence counts from then. The coordinator
    declares a worker dead after about `silence_s`. `on_lost` is called at most once, in that
    thread, with the reason. If the coordinator started this process, the reason is that the parent
    process has ended. Otherwise it is that the coordinator has been silent for `patience_s`
    seconds (default: `core.liveness.worker_patience_s`).

    Raises `LaunchError` for a bad coordinator address or parent id, `ConfigError` if `keys` are the
    coordinator's only.
    """

    def __init__(
        self,
        coordinator: str,
        identity: bytes,
        silence_s: float,
        on_lost: Callable[[str], None] = exit_process,
        *,
        keys: Keys | None = None,
        patience_s: float | None = None,
    ) -> None:
        self._address = parse(coordinator, bind=False)
        self._identity = identity + HEART_SUFFIX
        self._keys = keys
        self._pair = worker_pair(keys) if keys is not None else None
        self._beat_every_s = beat_every_s(silence_s)
        self._patience_s = worker_patience_s(silence_s) if patience_s is None else patience_s
        self._on_lost = on_lost
        self._parent = _parent_pid()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop beating and wait until the thread has closed its socket."""
        self._stopped.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        context: zmq.Context[sockets.Socket] = zmq.Context()
        try:
            socket = sockets.open_socket(context, zmq.DEALER, HEADER_BYTES_MAX)
            socket.setsockopt(zmq.IDENTITY, self._identity)
            if self._keys is not None and self._pair is not None:
                as_client(socket, self._pair, self._keys.coordinator_public)
            sockets.connect(socket, self._address)
            reason = self._beat_until_lost(socket)
        finally:
            context.destroy(linger=0)
        if reason is not None:
            self._on_lost(reason)

    def _beat_until_lost(self, socket: sockets.Socket) -> str | None:
        """Send beats until the coordinator is lost; return the reason, or None when stopped."""
        silence = Silence(self._patience_s, time.monotonic())
        beat = encode(Beat())
        sockets.send(socket, beat)
        while not self._stopped.wait(self._beat_every_s):
            now = time.monotonic()
            if _drain(socket):
                silence.hear(now)
            if self._parent is not None:  # while the parent lives, silence means that it is busy
                if os.getppid() != self._parent:
                    return f"its parent process {self._parent} is gone"
            elif silence.too_long(now):
                return f"nothing heard from {self._address.endpoint} for {self._patience_s:g} s"
            sockets.send(socket, beat)
        return None


def _drain(socket: sockets.Socket) -> bool:
    """Discard all waiting messages and tell whether there were any: each shows that the coordinator
    lives."""
    heard = False
    while sockets.receive(socket) is not None:
        heard = True
    return heard


def parent_lives() -> bool | None:
    """Tell whether the coordinator's process, which started this one, lives; None if this one was
    started by hand."""
    parent = _parent_pid()
    return None if parent is None else os.getppid() == parent


def _parent_pid() -> int | None:
    text = os.environ.get(PARENT_VARIABLE)
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise LaunchError(f"{PARENT_VARIABLE}={text!r}: expected the parent's process id")
    return int(text)
