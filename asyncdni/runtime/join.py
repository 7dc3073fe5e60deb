"""A worker process from its start to its end: say Hello, be let in, work, say what failed."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import traceback
from pathlib import Path

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

from asyncdni import config
from asyncdni.build import Design, make_design
from asyncdni.datasets.base import Meta
from asyncdni.errors import AsyncDNIError, Interrupted, LimitExceeded
from asyncdni.messages import COORDINATOR, PROTOCOL_VERSION, Failed, Hello, Message
from asyncdni.runtime.affinity import choose_core, pin_process, usable_cores
from asyncdni.runtime.forsaken import Forsaken, Signals, Told
from asyncdni.runtime.inbox import Inbox
from asyncdni.runtime.memory import limit_memory
from asyncdni.runtime.session import Session
from asyncdni.transports.address import remove_ownerless
from asyncdni.transports.beat import Heart
from asyncdni.transports.curve import Keys
from asyncdni.transports.zeromq import WorkerTransport

__all__ = ["run_worker"]

_LINGER_S = 2.0
#: How long the reason may take why nothing can be sent to the coordinator.
_REASON_S = 1.0


def run_worker(
    stage: str,
    coordinator: str,
    *,
    timeout_s: float = 30.0,
    allow_import: bool = False,
    keys: Keys | None = None,
    bind: str | None = None,
    advertise: str | None = None,
) -> None:
    """Be the worker of `stage` (name or index) until the run is over.

    `bind` and `advertise`: see `WorkerTransport`.

    Raises:
        LaunchError: no coordinator within `timeout_s`, or it refused this worker.
        Interrupted: it was signalled again and again; see `forsaken.Signals`.
        AsyncDNIError: what this worker failed at; the coordinator has been told.
    """
    transport = WorkerTransport(coordinator, keys, bind=bind, advertise=advertise)
    forsaken = Forsaken()
    signals = Signals(stage, forsaken)
    inbox = Inbox(transport, forsaken)
    linger_s = _LINGER_S
    try:
        _say_hello(transport, stage)
        inbox.await_welcome(coordinator, timeout_s)
        heart = Heart(
            coordinator, transport.identity, _limits(inbox).silence_s, forsaken, keys=keys
        )
        heart.start()  # before all is built: the user's modules may take their time to import
        try:
            with signals.heard():
                _work(transport, inbox, forsaken, allow_import)
        finally:
            heart.stop()
    except Told as error:
        linger_s = 0.0
        if signals.ended_by is None:
            raise
        stop = Interrupted(str(error))
        stop.exit_code = 128 + signals.ended_by
        raise stop from None
    except (Exception, KeyboardInterrupt) as error:
        failed = _last_words(stage, error)
        with contextlib.suppress(AsyncDNIError):  # where nobody takes it, the first error counts
            transport.send(COORDINATOR, failed)
        if failed.trace:
            print(failed.trace, file=sys.stderr)
        if isinstance(error, AsyncDNIError):
            raise
        kind = Interrupted if isinstance(error, KeyboardInterrupt) else AsyncDNIError
        raise kind(failed.text) from (error if failed.trace else None)
    finally:
        for text in transport.rejected:
            print(f"asyncdni: {text}", file=sys.stderr)
        transport.close(linger_s if inbox.welcome is not None else 0.0)
        if coordinator.startswith("ipc://"):  # its folder stays where it was killed
            remove_ownerless(Path(coordinator.removeprefix("ipc://")).parent)


def _last_words(stage: str, error: BaseException) -> Failed:
    """What the coordinator is told."""
    match error:
        case AsyncDNIError():
            return Failed(type(error).__name__, str(error), "")
        case KeyboardInterrupt():
            return Failed(Interrupted.__name__, f"worker {stage} was interrupted", "")
        case MemoryError():
            text = f"worker {stage} is out of memory: {error or 'nothing more was to be had'}"
            return Failed(MemoryError.__name__, text, "")
    text = f"worker {stage} failed: {type(error).__name__}: {error}; its log has the traceback"
    return Failed(AsyncDNIError.__name__, text, traceback.format_exc())


def _say_hello(transport: WorkerTransport, stage: str) -> None:
    hello: Message = Hello(
        protocol=PROTOCOL_VERSION,
        stage=stage,
        address=transport.address,
        pid=os.getpid(),
        host=socket.gethostname(),
    )
    try:
        transport.send(COORDINATOR, hello)
    except LimitExceeded:
        transport.receive(_REASON_S)  # raises what the handshake has failed at, which says more
        raise


def _limits(inbox: Inbox) -> config.Limits:
    assert inbox.welcome is not None
    return msgspec.convert(inbox.welcome.experiment.get("limits", {}), config.Limits)


def _work(transport: WorkerTransport, inbox: Inbox, forsaken: Forsaken, allow_import: bool) -> None:
    welcome, limits = inbox.welcome, _limits(inbox)
    assert welcome is not None
    transport.limit(limits)
    if limits.memory_bytes is not None:
        limit_memory(limits.memory_bytes)
    meta = msgspec.convert(welcome.meta, Meta)
    design = make_design(welcome.experiment, meta, allow_import=allow_import)
    _pin(design, welcome.stage)
    # What goes wrong in numbers is found out where it matters: see [numbers].
    with threadpool_limits(design.experiment.run.threads), np.errstate(all="ignore"):
        stop = Session(transport, inbox, forsaken, design, welcome).run()
    forsaken.check()
    if stop.failed:
        raise Told(f"worker {welcome.stage} was stopped by its coordinator: {stop.failed}")


def _pin(design: Design, stage: str) -> None:
    groups = design.plan.groups
    index = next(group.index for group in groups if group.name == stage)
    core = choose_core(design.experiment, index, len(groups), usable_cores())
    if core is not None:
        pin_process(core)
