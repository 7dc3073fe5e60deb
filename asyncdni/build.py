"""From an experiment to the parts that run it: positions, schedules, stages.

Coordinator and workers call the same functions on the same experiment, so that a worker needs no
more than the experiment's tables and the shapes of the data to find its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from asyncdni import config, experiment
from asyncdni.backends.numpy import NumpyStage
from asyncdni.backends.numpy.block import Block, Pace
from asyncdni.core.position import Position
from asyncdni.core.roster import Roster
from asyncdni.datasets import load
from asyncdni.datasets.base import Meta
from asyncdni.datasets.source import Source
from asyncdni.messages import DATA
from asyncdni.network import Network, make_network
from asyncdni.nn.generators import make_generator
from asyncdni.nn.generators.base import Generator
from asyncdni.nn.losses import make_loss
from asyncdni.nn.streams import layer_streams
from asyncdni.plan import Group, Plan, make_plan
from asyncdni.schedules import Locked, Schedule, Synthetic

__all__ = [
    "Design",
    "find_exits",
    "make_design",
    "make_position",
    "make_roster",
    "make_schedule",
    "make_source",
    "make_stage",
    "make_whole_stage",
]


@dataclass(frozen=True)
class Design:
    """An experiment, checked and laid out."""

    experiment: config.Experiment
    meta: Meta
    network: Network
    plan: Plan
    allow_import: bool = False


def make_design(
    tables: Mapping[str, Any] | config.Experiment, meta: Meta, *, allow_import: bool = False
) -> Design:
    """Raises `ConfigError` for anything that does not fit together."""
    parsed = tables if isinstance(tables, config.Experiment) else experiment.parse(tables)
    network = make_network(parsed, meta, allow_import=allow_import)
    plan = make_plan(parsed, network, meta)
    return Design(parsed, meta, network, plan, allow_import)


def make_position(design: Design, group: Group) -> Position:
    """Where the worker of `group` stands."""
    plan = design.plan
    hosts = group.index == plan.host
    return Position(
        name=group.name,
        index=group.index,
        count=len(plan.groups),
        inputs=group.producers,
        consumers=group.consumers,
        has_loss=group.has_loss,
        host=plan.groups[plan.host].name,
        feeds=plan.feeds if hosts else (),
        barriers=plan.barriers if hosts else (),
        test_batches=plan.test_batches if hosts else 0,
    )


def make_schedule(options: config.Schedule) -> Schedule:
    """The schedule that the experiment names."""
    match options:
        case config.Locked():
            return Locked(split_backward=options.split_backward)
        case config.Synthetic():
            return Synthetic(
                bootstrap=options.target == "bootstrap",
                fit_every=options.fit_every,
                fit_first=options.fit_first,
                correct=options.correct,
                max_in_flight=options.max_in_flight,
            )


def make_stage(design: Design, group: Group) -> NumpyStage:
    """Build layers, optimizers and generator of one worker, from the experiment's seed."""
    run, plan = design.experiment.run, design.plan
    by_name = {stage.name: stage for stage in design.experiment.stages}
    blocks = [
        Block(
            node,
            experiment.stage_optimizer(design.experiment, by_name[node.name]),
            dtype=np.dtype(run.dtype),
            seed=run.seed,
            pace=Pace(plan.batches_per_epoch, plan.batches),
            allow_import=design.allow_import,
        )
        for node in group.members
    ]
    return NumpyStage(blocks, group.exit, _make_generator(design, group))


def make_whole_stage(design: Design) -> NumpyStage:
    """All declared stages as one, without generators: for using a trained network."""
    run = config.Run(seed=design.experiment.run.seed, dtype=design.experiment.run.dtype)
    whole = msgspec.structs.replace(
        design.experiment,
        run=msgspec.structs.replace(run, split=[len(design.network.nodes)], epochs=0),
        schedule=config.Locked(),
    )
    alone = make_design(whole, design.meta, allow_import=design.allow_import)
    return make_stage(alone, alone.plan.groups[0])


def _make_generator(design: Design, group: Group) -> Generator | None:
    options = getattr(design.experiment.schedule, "generator", None)
    if options is None or group.exit is None:
        return None
    node = design.network.node(group.exit)
    loss, outputs = design.network.target_of(node)
    values = msgspec.structs.asdict(options)
    generator = make_generator(options.__struct_config__.tag, **values)
    run = design.experiment.run
    generator.build(
        width=int(np.prod(node.output_shape)),
        outputs=outputs,
        loss=loss,
        dtype=np.dtype(run.dtype),
        streams=layer_streams(run.seed, f"{node.name}.generator"),
    )
    return generator


def make_source(design: Design, group: Group) -> Source | None:
    """Load the data where `group` hosts them, and hold them against every loss.

    Raises `DataError`."""
    if group.index != design.plan.host:
        return None
    run, data = design.experiment.run, design.experiment.data
    dataset = load(data, run.seed)
    for node in design.network.nodes:
        if node.loss is not None:
            for targets in (dataset.y_train, dataset.y_test):
                make_loss(node.loss).check(node.output_shape, targets)
    return Source(
        dataset,
        batch_size=data.batch_size,
        seed=run.seed,
        dtype=np.dtype(run.dtype),
    )


def find_exits(design: Design) -> dict[str, str]:
    """The declared stage whose activation each worker sends."""
    return {g.name: g.exit for g in design.plan.groups if g.exit is not None}


def make_roster(design: Design, *, folder: str = "", trace: bool = False) -> Roster:
    """What the coordinator must know."""
    plan, limits = design.plan, design.experiment.limits
    return Roster(
        workers=tuple(group.name for group in plan.groups),
        members={group.name: tuple(n.name for n in group.members) for group in plan.groups},
        neighbours={group.name: _neighbours(plan, group) for group in plan.groups},
        losses=tuple(node.name for node in design.network.nodes if node.loss),
        barriers=len(plan.barriers),
        experiment=experiment.tables(design.experiment),
        meta=msgspec.to_builtins(design.meta),
        folder=folder,
        trace=trace,
        has_tests=plan.test_batches > 0,
        startup_s=limits.startup_s,
        silence_s=limits.silence_s,
    )


def _neighbours(plan: Plan, group: Group) -> tuple[str, ...]:
    """Whom it sends to: consumers, producers, and along the links from the data."""
    host = plan.groups[plan.host].name
    names = [*group.consumers, *(name for name in group.producers if name != DATA)]
    if group.name == host:
        names += plan.feeds
    elif group.reads_data:
        names.append(host)
    return tuple(dict.fromkeys(names))
