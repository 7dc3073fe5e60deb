"""Find the links and workers that the tables [links] and [slow] of an experiment name, and what
holds for each.

The tables name workers, or any of a worker's declared stages, so that the experiment keeps its
meaning under another `run.split`. If a split puts both ends of a link into one worker, the link
does not exist and its conditions are ignored. A link named in [links.between] has only the
conditions of its own table, not those of [links].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TypeVar

from asyncdni import config
from asyncdni.delays import LinkDelay, Slow
from asyncdni.encodings import ENCODINGS, Encoding
from asyncdni.errors import ConfigError
from asyncdni.experiment.schema import bytes_per_second, seconds
from asyncdni.messages import DATA
from asyncdni.network import Node
from asyncdni.plan.plan import Group, Plan, read_by, shared_with

__all__ = [
    "automatic_encoding",
    "automatic_words",
    "check_conditions",
    "find_link",
    "find_worker",
    "link_delays",
    "link_encodings",
    "neighbours",
    "slow_of",
]

_ARROW = "->"
_Named = TypeVar("_Named")


def check_conditions(experiment: config.Experiment, plan: Plan) -> None:
    """Check the names in [links.between], [slow] and [staleness.links].

    Raises `ConfigError` for an unknown name, for two names of the same link or worker, and where
    tensors of float64 are to be compressed.
    """
    _check_compressed(experiment, _named_links(experiment, plan).values())
    _named_workers(experiment, plan)
    found = dict[tuple[str, str], str]()
    for key in experiment.staleness.links:
        place = _place("staleness.links", key)
        link = find_link(plan, key, place)
        if link is None:
            continue
        sender, receiver = link
        if receiver not in _group(plan, sender).consumers:
            raise ConfigError(
                f"{place}: {receiver} takes no activations of {sender}; expected a link from a "
                "producer to its consumer"
            )
        _note(found, link, place)


def neighbours(plan: Plan, group: Group) -> tuple[str, ...]:
    """Return the workers that `group` sends messages to: its consumers, its producers, the other
    end of each link that carries data, the workers it shares weights with, and those that read its
    weights or whose weights it reads."""
    host = plan.groups[plan.host].name
    names = [*group.consumers, *(name for name in group.producers if name != DATA)]
    if group.name == host:
        names += plan.feeds
    elif DATA in group.producers:
        names.append(host)
    names += shared_with(plan.groups, group)
    readers, owner = read_by(plan.groups), plan.groups[-1].name
    if group.name == owner:
        names += readers
    elif group.name in readers:
        names.append(owner)
    return tuple(dict.fromkeys(names))


def link_delays(
    experiment: config.Experiment, plan: Plan, worker: str, seed: int
) -> dict[str, LinkDelay]:
    """Return the delays of all links from `worker` that the experiment slows down, by receiver."""
    named = _named_links(experiment, plan)
    delays = {}
    for receiver in neighbours(plan, _group(plan, worker)):
        place, link = named.get((worker, receiver), ("links", experiment.links))
        delay = LinkDelay(
            latency_s=seconds(link.latency, f"{place}.latency"),
            jitter_s=seconds(link.jitter, f"{place}.jitter"),
            bytes_per_s=bytes_per_second(link.bandwidth, f"{place}.bandwidth")
            if link.bandwidth
            else None,
            seed=seed,
            sender=worker,
            receiver=receiver,
        )
        if delay.latency_s or delay.jitter_s or delay.bytes_per_s is not None:
            delays[receiver] = delay
    return delays


# --- encodings -----------------------------------------------------------------------------------

#: What `compress = "auto"` picks, by the least bandwidth in bytes per second. A dense layer of 1024
#: units takes a core some 70 us a sample. On their way its 4 KiB of float32 take 33 us at 1 Gbit/s,
#: and as bfloat16 66 us at 250 Mbit/s.
_AUTOMATIC = ((125e6, "none"), (31.25e6, "bfloat16"), (0.0, "int8"))
_NOT_COMPRESSED = "none"


def automatic_encoding(bandwidth: str, place: str) -> str:
    """Return what `compress = "auto"` picks for a link of this bandwidth: none where there is no
    limit, from 1 Gbit/s on; bfloat16 from 250 Mbit/s on; int8 below that."""
    if not bandwidth:
        return _NOT_COMPRESSED
    rate = bytes_per_second(bandwidth, f"{place}.bandwidth")
    return next(name for least, name in _AUTOMATIC if rate >= least)


def link_encodings(experiment: config.Experiment, plan: Plan) -> dict[tuple[str, str], Encoding]:
    """Return how activations and gradients travel on each link that compresses them, by (sender,
    receiver).

    Links are left out whose activations must not be rounded (`network.Node.exact`), and those whose
    tensors would not get smaller.
    """
    named = _named_links(experiment, plan)
    found = {}
    for sender, receiver, shape, only_fits in _tensor_links(plan):
        place, link = named.get((sender, receiver), ("links", experiment.links))
        name: str = link.compress
        if only_fits and link.compress_fits is not None:
            name = link.compress_fits
        elif name == "auto":
            name = automatic_encoding(link.bandwidth, place)
        encoding = ENCODINGS.get(name)
        if encoding is None:
            continue
        if encoding.sample_bytes(shape, experiment.data.batch_size) < 4 * math.prod(shape):
            found[sender, receiver] = encoding
    return found


def automatic_words(experiment: config.Experiment, plan: Plan) -> str:
    """For the user: what "auto" has picked, by link; empty where no link asks for it."""
    picked: dict[str, list[str]] = {}
    named = _named_links(experiment, plan)
    for sender, receiver, _, only_fits in _tensor_links(plan):
        place, link = named.get((sender, receiver), ("links", experiment.links))
        if link.compress == "auto" and not (only_fits and link.compress_fits is not None):
            name = automatic_encoding(link.bandwidth, place)
            why = link.bandwidth or "no bandwidth given"
            picked.setdefault(f"{name} ({why})", []).append(f"{sender}->{receiver}")
    said = "; ".join(f"{choice} for {', '.join(links)}" for choice, links in picked.items())
    return f'compress = "auto" is {said}' if said else ""


def _tensor_links(plan: Plan) -> Iterator[tuple[str, str, tuple[int, ...], bool]]:
    """Yield (sender, receiver, shape of one sample) of activations, and of gradients, which go the
    other way; and whether the receiver has no use for them but to train its generator."""
    for group in plan.groups:
        for consumer in group.consumers:
            exit_ = _exit(group)
            if not exit_.exact:
                yield group.name, consumer, exit_.output_shape, False
            yield consumer, group.name, exit_.output_shape, group.schedule.only_fits


def _exit(group: Group) -> Node:
    return next(node for node in group.members if node.name == group.exit)


def _check_compressed(
    experiment: config.Experiment, named: Iterable[tuple[str, config.Link]]
) -> None:
    if experiment.run.dtype == "float32":
        return
    for place, link in [("links", experiment.links), *named]:
        given = {"compress": link.compress, "compress_fits": link.compress_fits}
        for key, value in given.items():
            if value not in (None, _NOT_COMPRESSED):
                raise ConfigError(
                    f"{place}.{key}: {value!r} is for tensors of float32, and run.dtype is "
                    f"{experiment.run.dtype!r}; leave it out, or set run.dtype = 'float32'"
                )


# --- slow workers, and names ---------------------------------------------------------------------


def slow_of(experiment: config.Experiment, plan: Plan, worker: str, seed: int) -> Slow | None:
    """Return how the experiment slows `worker` down; None if it does not."""
    named = _named_workers(experiment, plan).get(worker)
    if named is None:
        return None
    place, slow = named
    return Slow(
        seed,
        worker,
        factor=slow.factor,
        pause_s=seconds(slow.pause, f"{place}.pause"),
        chance=slow.chance,
    )


def find_worker(plan: Plan, name: str, place: str) -> str:
    """Return the worker called `name`, or the one with the stage or stages ("a+b") of that name.

    Raises `ConfigError`, with `place` in its message, if there is none.
    """
    stages = set(name.split("+"))
    for group in plan.groups:
        if name == group.name or stages <= {node.name for node in group.members}:
            return group.name
    known = [group.name for group in plan.groups]
    raise ConfigError(
        f"{place}: there is no worker or stage {name!r}; the workers are {', '.join(known)}"
    )


def find_link(plan: Plan, key: str, place: str) -> tuple[str, str] | None:
    """Return (sender, receiver), both workers, of the link that `key` ("hidden1->hidden2") names.

    None if one worker has both ends. Raises `ConfigError` if there is no such link.
    """
    sender, _, receiver = key.partition(_ARROW)
    link = find_worker(plan, sender, place), find_worker(plan, receiver, place)
    if sender == receiver:
        raise ConfigError(f"{place}: expected two ends that differ")
    if link[0] == link[1]:
        return None
    receivers = neighbours(plan, _group(plan, link[0]))
    if link[1] not in receivers:
        raise ConfigError(
            f"{place}: {link[0]} sends nothing to {link[1]}, only to "
            f"{', '.join(receivers) or 'no other worker'}"
        )
    return link


def _named_links(
    experiment: config.Experiment, plan: Plan
) -> dict[tuple[str, str], tuple[str, config.Link]]:
    """Return the entries of [links.between]: (place, conditions) by (sender, receiver)."""
    found = dict[tuple[str, str], str]()
    named = {}
    for key, conditions in experiment.links.between.items():
        place = _place("links.between", key)
        link = find_link(plan, key, place)
        if link is not None:
            _note(found, link, place)
            named[link] = (place, conditions)
    return named


def _named_workers(experiment: config.Experiment, plan: Plan) -> dict[str, tuple[str, config.Slow]]:
    """Return the entries of [slow]: (place, conditions) by worker."""
    found = dict[str, str]()
    named = {}
    for key, conditions in experiment.slow.items():
        place = _place("slow", key)
        worker = find_worker(plan, key, place)
        _note(found, worker, place)
        named[worker] = (place, conditions)
    return named


def _note(found: dict[_Named, str], what: _Named, place: str) -> None:
    """Note that `place` names `what`. Raises `ConfigError` if another place has already named
    it."""
    if what in found:
        raise ConfigError(f"{place}: means the same as {found[what]}; expected one of them")
    found[what] = place


def _group(plan: Plan, worker: str) -> Group:
    return next(group for group in plan.groups if group.name == worker)


def _place(table: str, key: str) -> str:
    return f'{table}."{key}"' if _ARROW in key else f"{table}.{key}"
