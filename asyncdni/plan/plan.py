"""The plan of a run: which worker runs which stages, how many batches, and where the barriers are.

Each worker gets neighbouring stages in the network's order. Edges only lead forward in that order,
so workers can't wait for each other in a circle, whatever the split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from asyncdni import config
from asyncdni.core.position import Rows
from asyncdni.data.meta import Meta
from asyncdni.errors import ConfigError
from asyncdni.experiment import stage_schedule
from asyncdni.experiment.schema import seconds
from asyncdni.messages import DATA
from asyncdni.network import Network, Node

__all__ = [
    "EVALUATIONS_MAX",
    "Group",
    "Plan",
    "barriers",
    "cut_every_s",
    "make_plan",
    "read_by",
    "shared_with",
    "snapshot_every_s",
]

#: Upper bound on the number of barriers, so that a worker's list of them stays small.
EVALUATIONS_MAX = 100_000
#: Names of workers become names of logs, traces and sockets, whose length the system limits.
_NAME_MAX = 64
#: The word that turns off an interval: "never" in place of a time between checkpoints.
NEVER = "never"
#: The longest time between two checkpoints that can be asked for, in seconds.
LONGEST_S = 86_400.0


@dataclass(frozen=True)
class Group:
    """The stages of one worker, and their place among the other workers."""

    name: str  # the names of its members, "a+b+c", or "first..last" where that is too long
    index: int
    members: tuple[Node, ...]
    producers: tuple[str, ...]  # groups it gets activations from, and DATA, in order of first use
    consumers: tuple[str, ...]  # groups that get its activation
    exit: str | None  # the one member whose activation other groups get
    has_loss: bool
    reads_data: bool
    # the schedule of its exit, else of its last stage; between its stages gradients are exact
    schedule: config.Schedule
    synthetic_inputs: bool = False  # whether it also gets the data, to predict its inputs from
    depth: int = 0  # how many groups come after it on the longest path to a loss


@dataclass(frozen=True)
class Plan:
    """The workers of a run and its batches."""

    groups: tuple[Group, ...]
    host: int  # index of the group that hosts the data: the first that reads it
    feeds: tuple[str, ...]  # other groups that get training data over the wire
    test_feeds: tuple[str, ...]  # those of them that also get the test data
    batch_size: int  # samples that flow together: a batch, or a microbatch
    per_update: int  # how many (micro)batches make one update
    batches_per_epoch: int  # (micro)batches that flow; the last may be smaller
    rows: Rows  # the size of each of them
    updates_per_epoch: int
    test_batches: int
    updates: int  # of the whole run
    batches: int  # training (micro)batches of the whole run
    barriers: tuple[int, ...]  # batch counts at which all workers drain; the last is the end
    cuts: tuple[int, ...] = ()  # those barriers at which a checkpoint is taken
    cut_barriers: tuple[int, ...] = ()  # those cuts at which no evaluation is made
    marks: tuple[int, ...] = ()  # batches before which weights are copied: see `core.behind`

    def group_of(self, stage: str) -> Group:
        """Return the group with this declared stage; `KeyError` if there is none."""
        for group in self.groups:
            if any(node.name == stage for node in group.members):
                return group
        raise KeyError(stage)


def make_plan(experiment: config.Experiment, network: Network, meta: Meta) -> Plan:
    """Split `network` over workers and count batches, as `experiment.run` and `.data` say.

    Raises `ConfigError` for a split that does not fit the network, and for a training batch of one
    sample that would reach a batch norm.
    """
    run, batch_size = experiment.run, experiment.data.batch_size
    groups = _groups(experiment, network, _split(run.split, network))
    if experiment.schedule.synthetic_inputs:
        groups = tuple(map(_fed, groups))
    if isinstance(run.pin, list) and len(run.pin) != len(groups):
        raise ConfigError(
            f"run.pin: {run.pin} names {len(run.pin)} cores, expected {len(groups)}, one "
            "for each worker"
        )
    microbatches = _microbatches(experiment)
    unit = batch_size // microbatches
    _check_single_sample(experiment, network, groups, meta, unit)
    readers = [group for group in groups if group.reads_data]
    others = [group for group in groups if DATA in group.producers and group is not readers[0]]
    accumulate = experiment.schedule.accumulate
    updates = -(-meta.train_samples // (batch_size * accumulate))
    batches = -(-meta.train_samples // unit)

    total = run.epochs * updates
    if run.max_steps is not None:
        total = min(total, run.max_steps)

    def position(update: int) -> int:
        return update // updates * batches + update % updates * microbatches * accumulate

    def positions(every_epochs: float, name: str) -> tuple[int, ...]:
        return tuple(map(position, barriers(total, updates, every_epochs, name)))

    evaluations = positions(run.evaluate_every, "run.evaluate_every")
    every = experiment.checkpoint.every
    cuts = () if isinstance(every, str) else positions(every, "checkpoint.every")
    marks: tuple[int, ...] = ()
    if run.evaluate == "behind":  # but the last one is of what training ends with
        marks, evaluations = evaluations[:-1], evaluations[-1:]
    return Plan(
        groups=groups,
        host=readers[0].index,
        feeds=tuple(group.name for group in others),
        test_feeds=tuple(group.name for group in others if group.reads_data),
        batch_size=unit,
        per_update=microbatches * accumulate,
        batches_per_epoch=batches,
        rows=Rows(unit, meta.train_samples, batch_size, meta.test_samples),
        updates_per_epoch=updates,
        test_batches=-(-meta.test_samples // batch_size),
        updates=total,
        batches=position(total),
        barriers=tuple(sorted({*evaluations, *cuts})),
        cuts=cuts,
        cut_barriers=tuple(sorted({*cuts} - {*evaluations})),
        marks=marks if meta.test_samples else (),
    )


def shared_with(groups: Sequence[Group], group: Group) -> dict[str, tuple[str, ...]]:
    """Map other workers to the stages of `group` whose weights some stage there also uses, in
    order."""
    found = {}
    for other in groups:
        owners = {node.owner for node in other.members}
        mine = tuple(node.name for node in group.members if node.owner in owners)
        if mine and other.name != group.name:
            found[other.name] = mine
    return found


def read_by(groups: Sequence[Group]) -> dict[str, int]:
    """Map the workers whose generators read out through weights of the last worker to the number
    of its updates after which they get a new copy."""
    readers = {}
    for group in groups:
        model = group.schedule.predictor
        if group.exit is not None and isinstance(model, config.ReadoutGenerator):
            readers[group.name] = model.refresh
    return readers


def cut_every_s(checkpoint: config.Checkpoint) -> float | None:
    """Return the seconds between checkpoints; None if the interval is in epochs, or only the end
    has one."""
    every = checkpoint.every
    if not isinstance(every, str) or every == NEVER:
        return None
    return seconds(every, "checkpoint.every", LONGEST_S)


def snapshot_every_s(checkpoint: config.Checkpoint) -> float | None:
    """Return the seconds between a worker's own snapshots; None if it takes none."""
    every = checkpoint.snapshot_every
    return None if every == NEVER else seconds(every, "checkpoint.snapshot_every", LONGEST_S)


def _microbatches(experiment: config.Experiment) -> int:
    """Return how many microbatches a batch is cut into: 1 except in synchronous pipelines."""
    count = experiment.schedule.microbatches
    batch_size = experiment.data.batch_size
    if batch_size % count:
        raise ConfigError(
            f"schedule.microbatches: {count} does not divide data.batch_size = {batch_size}; "
            "expected one of its divisors"
        )
    return count


def barriers(
    total: int, updates_per_epoch: int, every_epochs: float, name: str = "run.evaluate_every"
) -> tuple[int, ...]:
    """Return the counts of updates, of `total` in the run, after which it stops for the option
    `name`.

    It stops every `every_epochs` epochs, rounded to updates and at least one update apart, and at
    the end; with 0 updates once, at 0. Raises `ConfigError` for more than `EVALUATIONS_MAX` stops.
    """
    step = max(1.0, every_epochs * updates_per_epoch)
    if total / step > EVALUATIONS_MAX:
        raise ConfigError(
            f"{name}: {every_epochs:g} asks for {total / step:.0f} barriers in "
            f"{total / updates_per_epoch:.0f} epochs, expected at most {EVALUATIONS_MAX}; raise it "
            "or lower run.epochs"
        )
    positions = {round(k * step) for k in range(1, int(total / step) + 1)}
    return (*sorted(position for position in positions if position < total), total)


def _split(split: Sequence[int] | None, network: Network) -> list[int]:
    stages = len(network.nodes)
    if split is None:
        return [1] * stages
    if sum(split) != stages:
        raise ConfigError(
            f"run.split: {list(split)} gives {sum(split)} stages to workers, expected {stages}, "
            "as many as the network has"
        )
    return list(split)


def _groups(
    experiment: config.Experiment, network: Network, split: Sequence[int]
) -> tuple[Group, ...]:
    parts: list[tuple[Node, ...]] = []
    start = 0
    for count in split:
        parts.append(network.nodes[start : start + count])
        start += count
    names = [_name(part) for part in parts]
    home = {node.name: name for name, part in zip(names, parts, strict=True) for node in part}
    groups = [
        _group(experiment, name, index, parts[index], home) for index, name in enumerate(names)
    ]
    depths: dict[str, int] = {}
    for group in reversed(groups):  # consumers come later
        depths[group.name] = max((depths[name] + 1 for name in group.consumers), default=0)
    return tuple(replace(group, depth=depths[group.name]) for group in groups)


def _fed(group: Group) -> Group:
    """Return the group for a run with synthetic inputs: if it has producers, it also gets the
    data."""
    if all(name == DATA for name in group.producers):
        return group
    producers = tuple(dict.fromkeys((*group.producers, DATA)))
    return replace(group, producers=producers, synthetic_inputs=True)


def _name(members: Sequence[Node]) -> str:
    """Return the name of a worker. It is unique, since workers have neighbouring stages and no
    stage has a dot in its name."""
    whole = "+".join(node.name for node in members)
    if len(whole) <= _NAME_MAX or len(members) == 1:
        return whole
    return f"{members[0].name}..{members[-1].name}"


def _group(
    experiment: config.Experiment,
    name: str,
    index: int,
    members: tuple[Node, ...],
    home: dict[str, str],
) -> Group:
    """Make the group of `members`; `home` maps each declared stage to its group."""
    sources = [home.get(node, DATA) for member in members for node in member.inputs]
    readers = {home[node] for member in members for node in member.consumers} - {name}
    exits = [
        member.name for member in members if any(home[node] != name for node in member.consumers)
    ]
    if len(exits) > 1:
        raise ConfigError(
            f"run.split: worker {name} would send on the activations of {' and '.join(exits)}, "
            "expected those of one stage; split so that they are in different workers, or their "
            "readers in the same one"
        )
    last = exits[0] if exits else members[-1].name
    return Group(
        name=name,
        index=index,
        members=members,
        producers=tuple(dict.fromkeys(source for source in sources if source != name)),
        consumers=tuple(group for group in dict.fromkeys(home.values()) if group in readers),
        exit=exits[0] if exits else None,
        has_loss=any(member.loss is not None for member in members),
        reads_data=DATA in sources,
        schedule=stage_schedule(experiment, _stage(experiment, last)),
    )


def _stage(experiment: config.Experiment, name: str) -> config.Stage:
    return next(stage for stage in experiment.stages if stage.name == name)


def _check_single_sample(
    experiment: config.Experiment,
    network: Network,
    groups: Sequence[Group],
    meta: Meta,
    batch_size: int,
) -> None:
    """Raise `ConfigError` if a batch norm would train on a batch of one sample, which has no
    variance."""
    samples = meta.train_samples
    if batch_size > 1 and samples % batch_size != 1:
        return
    normalised = [node.place for node in network.nodes if any(map(_is_batch_norm, node.layers))]
    for group in groups:
        model, inputs = group.schedule.predictor, group.schedule.input_predictor
        if group.exit and model is not None and model.normalises:
            normalised.append(f"the generator of {group.exit}")
        if group.synthetic_inputs and inputs is not None and inputs.hidden:
            normalised.append(f"the input model of {group.name}")
    if normalised:
        what = "every training batch" if batch_size == 1 else "the last training batch of an epoch"
        count = experiment.data.batch_size // batch_size
        cut = f" in {count} microbatches" if count > 1 else ""
        raise ConfigError(
            f"{normalised[0]}: its batch_norm needs at least 2 samples a batch, but {what} would "
            f"have 1 (data.batch_size = {experiment.data.batch_size}{cut}, {samples} training "
            f"samples); {_cure(batch_size, samples) if count == 1 else ''}do without batch_norm"
        )


def _is_batch_norm(layer: object) -> bool:
    return layer == "batch_norm" or (isinstance(layer, dict) and "batch_norm" in layer)


def _cure(batch_size: int, samples: int) -> str:
    """Return advice for the user: the next larger batch size that leaves no single sample over."""
    larger = range(batch_size + 1, samples + 1)
    fitting = next((size for size in larger if samples % size != 1), None)
    return f"use data.batch_size = {fitting} or " if fitting else ""
