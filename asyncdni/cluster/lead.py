"""Lead a run over many machines: the part of rank 0, or of who starts the others by ssh."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncdni import config, experiment
from asyncdni.cluster.agent import this_host
from asyncdni.cluster.elastic import Elastic, Host
from asyncdni.cluster.placement import Placement, as_asked, balanced
from asyncdni.cluster.rendezvous import Rendezvous, Work
from asyncdni.cluster.worker_logs import LOGS
from asyncdni.imports import Allowed
from asyncdni.launch.conduct import Observer, check_host, conduct
from asyncdni.launch.local import LocalLauncher, worker_command
from asyncdni.launch.train import design_of
from asyncdni.plan.build import Design, worker_libraries
from asyncdni.plan.sizes import worker_bytes, worker_operations
from asyncdni.report.tensorboard import EventFiles
from asyncdni.report.traces import merged_at_end
from asyncdni.store.claims import present_term
from asyncdni.store.given import begin_with
from asyncdni.wire.curve import Keys

__all__ = ["Run", "digest", "lead"]

#: What may have another place on each machine, and still be the same.
_PATHS = (("data", "path"), ("run", "init"), ("model", "weights"))
#: What rank 0 decides alone.
_DECIDED = (("run", "place"),)


def digest(chosen: config.Experiment) -> str:
    """Return what identifies an experiment on all machines: the SHA-256 of all that it says but the
    paths of files and what rank 0 decides alone, 64 hexadecimal digits."""
    tables = experiment.tables(chosen)
    for section, name in (*_PATHS, *_DECIDED):
        if isinstance(tables.get(section), dict):
            tables[section].pop(name, None)
    return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """A run to be led."""

    experiment: config.Experiment
    folder: Path
    resumed: bool  # whether the run in the folder goes on
    keys: Keys | None
    flags: Sequence[str]  # of each worker's command line, for the same keys
    allow_import: Allowed
    counts: Sequence[int] | None = None  # workers of each rank; None: as `run.place` says
    trace: bool = False
    tensorboard: bool = False
    goes_on: str = ""  # what to type to go on with it


def lead(run: Run, rendezvous: Rendezvous, observers: Sequence[Observer]) -> dict[str, Any]:
    """Coordinate the run whose agents come to `rendezvous`, and return its summary.

    This process is also the agent of the rendezvous' own rank, if any. Raises what `conduct`
    raises.
    """
    design = design_of(run.experiment, allow_import=run.allow_import)
    if not run.resumed:
        design = begin_with(design)
    workers = [group.name for group in design.plan.groups]
    needs = _needs(design)
    if rendezvous.ranks == 1:
        check_host(design)
    costs = _costs(design)
    rendezvous.meeting.await_name(run.experiment.limits.startup_s)
    hosts = _hosts(run, rendezvous)
    placement = _placement(run, costs, needs, hosts)
    # Workers that have lived on without a coordinator may be elsewhere.
    where = placement | {name: rank for name, rank in rendezvous.running().items() if name in costs}
    elastic = _elastic(run, placement, where, costs, needs)
    if elastic is not None and rendezvous.own_rank is not None:
        elastic.stays(rendezvous.own_rank, hosts[rendezvous.own_rank])
    with ExitStack() as stack:
        own = None
        if rendezvous.own_rank is not None:
            logs, threads = run.folder / LOGS, run.experiment.run.threads
            libraries = worker_libraries(design)
            own = stack.enter_context(LocalLauncher(logs, threads, libraries=libraries))
        stack.push(rendezvous.dismiss)  # before this process waits for its own workers

        def launch(address: str) -> Rendezvous:
            work = _work(run, where, needs, rendezvous.meeting.reached(address))
            work = dataclasses.replace(work, libraries=worker_libraries(design), elastic=elastic)
            return rendezvous.begin(work, own)

        if run.trace:
            stack.enter_context(merged_at_end(run.folder, workers))
        heard = [*observers]
        if elastic is not None:
            heard.append(lambda _, __, kind, values: elastic.observe(kind, values))
        if run.tensorboard:
            heard.append(stack.enter_context(EventFiles(run.folder)))
        return conduct(
            design,
            rendezvous.meeting.workers,
            run.folder,
            launch=launch,
            observers=heard,
            trace=run.trace,
            resume=run.resumed,
            keys=run.keys,
            flags=run.flags,
            goes_on=run.goes_on,
        )


def _hosts(run: Run, rendezvous: Rendezvous) -> list[Host]:
    """The machine of each rank. Waits for their agents; raises as `Rendezvous.gather`."""
    chosen, own = run.experiment, rendezvous.own_rank
    takes_back = chosen.recovery.coordinator_s > 0.0
    found = rendezvous.gather(chosen.limits.startup_s, takes_back=takes_back)
    if own is not None:
        found[own] = this_host()
    return [found[rank] for rank in range(rendezvous.ranks)]


def _placement(
    run: Run, costs: Mapping[str, float], needs: Mapping[str, int], hosts: Sequence[Host]
) -> Placement:
    """Place the workers as was asked for, or as is fastest on these machines."""
    options = run.experiment.run
    counts = run.counts if run.counts is not None else options.place
    if counts is not None:
        return as_asked(list(costs), counts, len(hosts))
    slots = [max(one.cores // options.threads, 1) for one in hosts]
    if options.device != "cpu" and any(one.gpus for one in hosts):
        slots = [one.gpus for one in hosts]
    return balanced(costs, slots, needs, [one.memory_bytes or math.inf for one in hosts])


def _costs(design: Design) -> dict[str, float]:
    """What a sample takes at each worker, in operations."""
    allowed = design.allow_import
    return {
        group.name: worker_operations(design.network, group, allow_import=allowed)
        for group in design.plan.groups
    }


def _elastic(
    run: Run,
    placement: Placement,
    where: Placement,
    costs: Mapping[str, float],
    needs: Mapping[str, int],
) -> Elastic | None:
    if run.experiment.elastic is None:
        return None
    on_gpus = run.experiment.run.device == "cuda"
    return Elastic(run.experiment.elastic, placement, costs, needs, where, on_gpus=on_gpus)


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
        coordinator_s=run.experiment.recovery.coordinator_s,
        term=present_term(run.folder),
    )
