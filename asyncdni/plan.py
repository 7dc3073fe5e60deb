"""Who runs what, and when: stages grouped into workers, batches, and the barriers between them.

A worker gets neighbouring stages of the network's order. Edges only ever lead forward in that
order, so groups can't need each other in a circle, whatever the split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asyncdni import config
from asyncdni.datasets.base import Meta
from asyncdni.errors import ConfigError
from asyncdni.messages import DATA
from asyncdni.network import Network, Node

__all__ = ["EVALUATIONS_MAX", "Group", "Plan", "barriers", "make_plan"]

#: More evaluations than any run needs: what a worker keeps stays small.
EVALUATIONS_MAX = 100_000
#: Names of workers become names of logs, traces and sockets, which the system limits.
_NAME_MAX = 64


@dataclass(frozen=True)
class Group:
    """The stages of one worker."""

    name: str  # of its members, "a+b+c", or "first..last" where that is too long
    index: int
    members: tuple[Node, ...]
    producers: tuple[str, ...]  # groups it receives from, and DATA, in order of first use
    consumers: tuple[str, ...]  # groups that receive from it
    exit: str | None  # the one member whose activation leaves the group
    has_loss: bool
    reads_data: bool


@dataclass(frozen=True)
class Plan:
    """The workers of a run and its batches."""

    groups: tuple[Group, ...]
    host: int  # index of the group that hosts the data: the first that reads it
    feeds: tuple[str, ...]  # other groups that read data, and get it over the wire
    batches_per_epoch: int  # the last one may be smaller
    test_batches: int
    batches: int  # of the whole run
    barriers: tuple[int, ...]  # training batches after which to evaluate; the end is the last

    def group_of(self, stage: str) -> Group:
        """The group that the declared stage is in; `KeyError` if there is none."""
        for group in self.groups:
            if any(node.name == stage for node in group.members):
                return group
        raise KeyError(stage)


def make_plan(experiment: config.Experiment, network: Network, meta: Meta) -> Plan:
    """Split `network` over workers and count batches, as `experiment.run` and `.data` say.

    Raises `ConfigError` for a split that does not fit the network, and for a training batch of one
    sample where a batch norm would see it.
    """
    run, batch_size = experiment.run, experiment.data.batch_size
    groups = _groups(network, _split(run.split, network))
    if isinstance(run.pin, list) and len(run.pin) != len(groups):
        raise ConfigError(
            f"run.pin: {run.pin} names {len(run.pin)} cores, expected {len(groups)}, one a worker"
        )
    _check_single_sample(experiment, network, groups, meta)
    readers = [group for group in groups if group.reads_data]
    per_epoch = -(-meta.train_samples // batch_size)
    return Plan(
        groups=groups,
        host=readers[0].index,
        feeds=tuple(group.name for group in readers[1:]),
        batches_per_epoch=per_epoch,
        test_batches=-(-meta.test_samples // batch_size),
        batches=run.epochs * per_epoch,
        barriers=barriers(run.epochs, per_epoch, run.evaluate_every),
    )


def barriers(epochs: int, batches_per_epoch: int, evaluate_every: float) -> tuple[int, ...]:
    """Counts of training batches after which to evaluate: every `evaluate_every` epochs, rounded
    to batches and at least one apart, and at the end. No epochs: once, at 0."""
    total = epochs * batches_per_epoch
    step = max(1.0, evaluate_every * batches_per_epoch)
    if total / step > EVALUATIONS_MAX:
        raise ConfigError(
            f"run.evaluate_every: {evaluate_every:g} asks for {total / step:.0f} evaluations in "
            f"{epochs} epochs, expected at most {EVALUATIONS_MAX}; raise it or lower run.epochs"
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


def _groups(network: Network, split: Sequence[int]) -> tuple[Group, ...]:
    parts: list[tuple[Node, ...]] = []
    start = 0
    for count in split:
        parts.append(network.nodes[start : start + count])
        start += count
    names = [_name(part) for part in parts]
    home = {node.name: name for name, part in zip(names, parts, strict=True) for node in part}
    return tuple(_group(name, index, parts[index], home) for index, name in enumerate(names))


def _name(members: Sequence[Node]) -> str:
    """Unique, since workers have neighbouring stages and no stage has a dot in its name."""
    whole = "+".join(node.name for node in members)
    if len(whole) <= _NAME_MAX or len(members) == 1:
        return whole
    return f"{members[0].name}..{members[-1].name}"


def _group(name: str, index: int, members: tuple[Node, ...], home: dict[str, str]) -> Group:
    """`home` says which group each declared stage is in."""
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
    return Group(
        name=name,
        index=index,
        members=members,
        producers=tuple(dict.fromkeys(source for source in sources if source != name)),
        consumers=tuple(group for group in dict.fromkeys(home.values()) if group in readers),
        exit=exits[0] if exits else None,
        has_loss=any(member.loss is not None for member in members),
        reads_data=DATA in sources,
    )


def _check_single_sample(
    experiment: config.Experiment, network: Network, groups: Sequence[Group], meta: Meta
) -> None:
    """A batch norm can't train on a batch of one sample: it has no variance."""
    batch_size, samples = experiment.data.batch_size, meta.train_samples
    if batch_size > 1 and samples % batch_size != 1:
        return
    normalised = [node.place for node in network.nodes if any(map(_is_batch_norm, node.layers))]
    if _generators_normalise(experiment.schedule):
        normalised += [f"the generator of {group.exit}" for group in groups if group.exit]
    if normalised:
        what = "every training batch" if batch_size == 1 else "the last training batch of an epoch"
        raise ConfigError(
            f"{normalised[0]}: its batch_norm needs at least 2 samples a batch, but {what} would "
            f"have 1 (data.batch_size = {batch_size}, {samples} training samples); "
            f"{_cure(batch_size, samples)}do without batch_norm"
        )


def _generators_normalise(schedule: config.Schedule) -> bool:
    generator = getattr(schedule, "generator", None)
    return isinstance(generator, config.MlpGenerator) and bool(generator.hidden)


def _is_batch_norm(layer: object) -> bool:
    return layer == "batch_norm" or (isinstance(layer, dict) and "batch_norm" in layer)


def _cure(batch_size: int, samples: int) -> str:
    """The next batch size that leaves no single sample over."""
    larger = range(batch_size + 1, samples + 1)
    fitting = next((size for size in larger if samples % size != 1), None)
    return f"use data.batch_size = {fitting} or " if fitting else ""
