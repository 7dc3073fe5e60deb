"""A worker process from its start to its end: say Hello, build the stage, run, say what failed."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import msgspec
from threadpoolctl import threadpool_limits

from asyncdni import config
from asyncdni.build import (
    Design,
    find_exits,
    make_design,
    make_source,
    make_stage,
    make_worker,
)
from asyncdni.conditions import link_delays, slow_of
from asyncdni.core.events import Stop
from asyncdni.datasets.base import Meta
from asyncdni.errors import AsyncDNIError, Interrupted, LaunchError, by_name
from asyncdni.messages import (
    COORDINATOR,
    PROTOCOL_VERSION,
    Abort,
    Connect,
    Failed,
    Hello,
    Message,
    Ready,
    Refused,
    Welcome,
)
from asyncdni.metrics.traces import trace_path
from asyncdni.runtime.affinity import choose_core, pin_process, usable_cores
from asyncdni.runtime.engine import Engine
from asyncdni.runtime.trace import Trace
from asyncdni.transports.beat import Heart, orphaned
from asyncdni.transports.zeromq import WorkerTransport

__all__ = ["run_worker"]

_LINGER_S = 2.0
_LOOK_EVERY_S = 0.25


@dataclass
class _Joined:
    """What the coordinator has said so far."""

    welcome: Welcome | None = None
    connect: Connect | None = None


def run_worker(
    stage: str, coordinator: str, *, timeout_s: float = 30.0, allow_import: bool = False
) -> None:
    """Be the worker of `stage` (name or index) until the run is over.

    Raises:
        LaunchError: no coordinator within `timeout_s`, or it refused this worker.
        AsyncDNIError: what this worker failed at; the coordinator has been told.
    """
    transport = WorkerTransport(coordinator)
    joined = _Joined()
    linger_s = _LINGER_S
    try:
        _run(transport, stage, coordinator, timeout_s, allow_import, joined)
    except KeyboardInterrupt:
        text = f"worker {stage} was interrupted"
        transport.send(COORDINATOR, Failed("Interrupted", text, ""))
        raise Interrupted(text) from None
    except _Told:
        linger_s = 0.0
        raise
    except AsyncDNIError as error:
        transport.send(COORDINATOR, Failed(type(error).__name__, str(error), ""))
        raise
    except Exception as error:
        text = f"worker {stage} failed: {type(error).__name__}: {error}; its log has the traceback"
        trace = traceback.format_exc()
        transport.send(COORDINATOR, Failed(AsyncDNIError.__name__, text, trace))
        print(trace, file=sys.stderr)
        raise AsyncDNIError(text) from error
    finally:
        transport.close(linger_s if joined.welcome is not None else 0.0)


class _Told(AsyncDNIError):
    """The coordinator ended this worker, so there is nothing to tell it."""


def _run(
    transport: WorkerTransport,
    stage: str,
    coordinator: str,
    timeout_s: float,
    allow_import: bool,
    joined: _Joined,
) -> None:
    transport.send(
        COORDINATOR,
        Hello(
            protocol=PROTOCOL_VERSION,
            stage=stage,
            address=transport.address,
            pid=os.getpid(),
            host=socket.gethostname(),
        ),
    )
    early = _await_welcome(transport, coordinator, timeout_s, joined)
    welcome = joined.welcome
    assert welcome is not None
    limits = msgspec.convert(welcome.experiment.get("limits", {}), config.Limits)
    transport.limit(limits)
    heart = Heart(coordinator, transport.identity, limits.silence_s)
    heart.start()  # before the design is made: the user's modules may take their time to import
    try:
        meta = msgspec.convert(welcome.meta, Meta)
        design = make_design(welcome.experiment, meta, allow_import=allow_import)
        _pin(design, welcome.stage)
        with threadpool_limits(design.experiment.run.threads):
            stop = _train(transport, design, welcome, joined, early)
    finally:
        heart.stop()
    if stop.failed:
        raise _Told(f"worker {welcome.stage} was stopped by its coordinator: {stop.failed}")


def _pin(design: Design, stage: str) -> None:
    groups = design.plan.groups
    index = next(group.index for group in groups if group.name == stage)
    core = choose_core(design.experiment, index, len(groups), usable_cores())
    if core is not None:
        pin_process(core)


def _await_welcome(
    transport: WorkerTransport, coordinator: str, timeout_s: float, joined: _Joined
) -> list[Message]:
    """Until the coordinator has let this worker in; returns what neighbours have sent already."""
    deadline = time.monotonic() + timeout_s
    early: list[Message] = []
    while joined.welcome is None:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise LaunchError(
                f"no coordinator answered at {coordinator} within {timeout_s:g} s: "
                "check the address, or wait longer with --timeout"
            )
        if orphaned():
            raise _Told("the process that started this worker is gone")
        early += _sort_out(transport.receive(min(left_s, _LOOK_EVERY_S)), joined)
    return early


def _sort_out(messages: list[Message], joined: _Joined) -> list[Message]:
    """Note the coordinator's words about joining; returns all other messages."""
    others = []
    for message in messages:
        match message:
            case Welcome():
                joined.welcome = message
            case Connect():
                joined.connect = message
            case Refused(kind=kind, text=text):
                raise by_name(kind)(text)
            case Abort(text=text) if joined.connect is None:
                raise _Told(f"the run was called off: {text}")
            case _:
                others.append(message)
    return others


def _train(
    transport: WorkerTransport,
    design: Design,
    welcome: Welcome,
    joined: _Joined,
    early: list[Message],
) -> Stop:
    group = next(g for g in design.plan.groups if g.name == welcome.stage)
    stage = make_stage(design, group)
    source = make_source(design, group)
    while joined.connect is None:
        early += _sort_out(transport.receive(_LOOK_EVERY_S), joined)
    experiment, plan = design.experiment, design.plan
    transport.emulate(link_delays(experiment, plan, group.name, experiment.run.seed))
    transport.connect(joined.connect.addresses)
    worker = make_worker(design, group)
    worker.joined(welcome.incarnation, joined.connect.incarnations)
    trace = None
    if welcome.trace and welcome.folder:
        trace = Trace(trace_path(Path(welcome.folder), group.name))
    engine = Engine(
        worker,
        stage,
        transport,
        exits=find_exits(design),
        source=source,
        folder=welcome.folder,
        trace=trace,
        slow=slow_of(experiment, plan, group.name, experiment.run.seed),
    )
    transport.send(COORDINATOR, Ready(stage.parameters()))
    return engine.run(early)
