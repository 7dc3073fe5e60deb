"""Lead a run over many machines: the part of rank 0, or of who starts the others by ssh."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from asyncdni import config, experiment
from asyncdni.cluster.placement import Placement, as_asked, balanced
from asyncdni.cluster.rendezvous import Rendezvous, Work
from asyncdni.imports import Allowed
from asyncdni.launch.conduct import Observer, check_host, conduct
from asyncdni.launch.local import LocalLauncher, worker_command
from asyncdni.launch.train import design_of
from asyncdni.plan.build import Design
from asyncdni.plan.sizes import worker_bytes, worker_operations
from asyncdni.report.tensorboard import EventFiles
from asyncdni.report.traces import merged_at_end
from asyncdni.store.given import begin_with
from asyncdni.wire.address import parse
from asyncdni.wire.curve import Keys

__all__ = ["Meeting", "Run", "digest", "lead"]

_LOOPBACK = "127.0.0.1"
#: What may have another place on each machine, and still be the same.
_PATHS = (("data", "path"), ("run", "init"), ("model", "weights"))


def digest(chosen: config.Experiment) -> str:
    """Return what identifies an experiment on all machines: the SHA-256 of all that it says but the
    paths of files, 64 hexadecimal digits."""
    tables = experiment.tables(chosen)
    for section, name in _PATHS:
        if isinstance(tables.get(section), dict):
            tables[section].pop(name, None)
    return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """A run to be led."""

    experiment: config.Experiment
    folder: Path
    resumed: bool  # whether the run in the folder goes on
    ranks: int
    keys: Keys | None
    flags: Sequence[str]  # of each worker's command line, for the same keys
    allow_import: Allowed
    counts: Sequence[int] | None = None  # workers of each rank; None: balanced
    trace: bool = False
    tensorboard: bool = False
    goes_on: str = ""  # what to type to go on with it


@dataclass(frozen=True)
class Meeting:
    """Where the processes of a run meet: addresses as ZeroMQ takes them."""

    agents: str  # where agents are listened for
    workers: str  # where workers are listened for
    host: str = ""  # by which other machines reach this one; empty: there are none

    @classmethod
    def at(cls, address: str) -> Self:
        """Make that of a run whose agents come to `address`, tcp://HOST:PORT. Workers come to the
        port after it; to any port if PORT is 0.

        Unless HOST is one of loopback, all interfaces are listened at: the name may stand for
        another address here than elsewhere. Raises `LaunchError`.
        """
        parsed = parse(address, bind=True)
        host = _LOOPBACK if parsed.host == "localhost" else parsed.host
        port = parsed.port
        here = host if host.startswith("127.") else "0.0.0.0"
        return cls(f"tcp://{here}:{port}", f"tcp://{here}:{port + 1 if port else 0}", host)

    @classmethod
    def here(cls, folder: Path) -> Self:
        """Make that of a run on this machine alone, with sockets in a private folder."""
        return cls(f"ipc://{folder / 'agents'}", f"ipc://{folder / 'coordinator'}")

    def reached(self, listening: str) -> str:
        """Return the address by which others reach the socket that listens at `listening`."""
        return f"tcp://{self.host}:{listening.rpartition(':')[2]}" if self.host else listening


def lead(
    run: Run,
    meeting: Meeting,
    rendezvous: Rendezvous,
    observers: Sequence[Observer],
    *,
    takes_part: bool,
) -> dict[str, Any]:
    """Coordinate the run whose agents come to `rendezvous`, and return its summary.

    With `takes_part` this process is also the agent of rank 0. Raises what `conduct` raises.
    """
    design = design_of(run.experiment, allow_import=run.allow_import)
    if not run.resumed:
        design = begin_with(design)
    workers = [group.name for group in design.plan.groups]
    needs = _needs(design)
    if run.ranks == 1:
        check_host(design)
    placement = _placement(run, design)
    with ExitStack() as stack:
        own = None
        if takes_part:
            logs, threads = run.folder / "logs", run.experiment.run.threads
            own = stack.enter_context(LocalLauncher(logs, threads))

        stack.push(rendezvous.dismiss)  # before this process waits for its own workers

        def launch(address: str) -> Rendezvous:
            work = _work(run, placement, needs, meeting.reached(address))
            return rendezvous.begin(work, own)

        if run.trace:
            stack.enter_context(merged_at_end(run.folder, workers))
        heard = [*observers]
        if run.tensorboard:
            heard.append(stack.enter_context(EventFiles(run.folder)))
        return conduct(
            design,
            meeting.workers,
            run.folder,
            launch=launch,
            observers=heard,
            trace=run.trace,
            resume=run.resumed,
            keys=run.keys,
            flags=run.flags,
            goes_on=run.goes_on,
        )


def _placement(run: Run, design: Design) -> Placement:
    groups, allowed = design.plan.groups, design.allow_import
    if run.counts is not None:
        return as_asked([group.name for group in groups], run.counts, run.ranks)
    network = design.network
    costs = {one.name: worker_operations(network, one, allow_import=allowed) for one in groups}
    return balanced(costs, run.ranks)


def _needs(design: Design) -> dict[str, int]:
    """The memory that each worker needs at least, in bytes."""
    parts = design.experiment, design.network, design.plan, design.meta
    return {
        group.name: worker_bytes(*parts, group, allow_import=design.allow_import)
        for group in design.plan.groups
    }


def _work(run: Run, placement: Placement, needs: dict[str, int], coordinator: str) -> Work:
    limits, allowed = run.experiment.limits, run.allow_import
    commands = {
        name: [*worker_command(name, coordinator, allow_import=allowed), *run.flags]
        for name in placement
    }
    return Work(
        placement=placement,
        needs=needs,
        coordinator=coordinator,
        folder=str(run.folder.resolve()),
        threads=run.experiment.run.threads,
        silence_s=limits.silence_s,
        startup_s=limits.startup_s,
        commands=commands,
    )
