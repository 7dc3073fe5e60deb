"""Compute how large messages get and how much memory workers need, from shapes only.

The memory of a worker is a lower bound. Each parameter counts four times: the weight, its gradient,
and two numbers that an optimizer keeps. Buffers of batches in flight and of layers come on top.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import numpy as np

from asyncdni import config, experiment
from asyncdni.data.meta import Meta
from asyncdni.errors import ConfigError, ProtocolError
from asyncdni.imports import Allowed
from asyncdni.messages import DATA, Welcome
from asyncdni.network import Network, Node
from asyncdni.nn.layers import make_layer
from asyncdni.plan.plan import Group, Plan, shared_with
from asyncdni.plan.readout import readout_forms
from asyncdni.tables import chain_size
from asyncdni.wire.codec import encode

__all__ = ["check_memory", "check_messages", "memory_bytes", "worker_bytes", "worker_products"]

_COPIES = 4  # numbers kept per parameter
#: Upper bound on the size of a message's header with the names of its tensors.
_HEADER_BYTES = 512
_GIB = 2**30


# --- messages ------------------------------------------------------------------------------------


def check_messages(
    chosen: config.Experiment, network: Network, plan: Plan, meta: Meta, *, allow_import: Allowed
) -> None:
    """Check that all messages fit their limits. Raises `ConfigError` for an experiment that no
    message can hold, and for a message between workers beyond `limits.message_bytes`."""
    try:
        encode(Welcome("", 0, experiment.tables(chosen), msgspec.to_builtins(meta), "", ""))
    except ProtocolError as error:
        raise ConfigError(f"the experiment is too large to be sent to workers: {error}") from error
    limit = chosen.limits.message_bytes
    for sender, what, size in _messages(chosen, network, plan, meta, allow_import):
        if size + _HEADER_BYTES > limit:
            raise ConfigError(
                f"worker {sender} would send more than it may: with its header the {what} of "
                f"{size} bytes is over limits.message_bytes = {limit}; raise it, or lower "
                "data.batch_size"
            )


def _messages(
    chosen: config.Experiment, network: Network, plan: Plan, meta: Meta, allow_import: Allowed
) -> Iterable[tuple[str, str, int]]:
    """Yield the largest message of each kind on each link: (sender, kind, bytes of its tensors)."""
    itemsize = np.dtype(chosen.run.dtype).itemsize
    trained = min(plan.batch_size, meta.train_samples)
    samples = max(trained, min(chosen.data.batch_size, meta.test_samples))
    targets = 8 if network.targets == "classes" else network.outputs * itemsize
    context = targets * max(1, network.steps)
    context += sum(math.prod(tensor.shape) * itemsize for tensor in meta.context.values())
    data = math.prod(network.data_shape) * itemsize
    if plan.feeds:
        yield plan.groups[plan.host].name, "Activation", samples * (data + context)
    for group in plan.groups:
        if group.exit is not None:
            row = math.prod(network.node(group.exit).output_shape) * itemsize
            yield group.name, "Activation", samples * (row + context)
            for consumer in plan.groups:
                readers = sum(group.exit in node.inputs for node in consumer.members)
                if readers and consumer.name != group.name:
                    yield consumer.name, "Gradient", trained * row * readers
        if group is plan.groups[-1]:
            forms = readout_forms(plan, np.dtype(chosen.run.dtype), allow_import=allow_import)
            copied = sum(math.prod(shape) * kind.itemsize for shape, kind in forms.values())
            yield group.name, "Weights", copied
        for stages in shared_with(plan.groups, group).values():
            shared = sum(_parameters(network.node(name), allow_import) for name in stages)
            yield group.name, "Shared", shared * itemsize


# --- memory --------------------------------------------------------------------------------------


def check_memory(
    chosen: config.Experiment, network: Network, plan: Plan, meta: Meta, *, allow_import: Allowed
) -> None:
    """Raise `ConfigError` if this machine can't hold all workers at once."""
    has = memory_bytes()
    needs = {
        group.name: worker_bytes(chosen, network, plan, meta, group, allow_import=allow_import)
        for group in plan.groups
    }
    total = sum(needs.values())
    if has and total > has:
        largest = max(needs, key=lambda name: needs[name])
        raise ConfigError(
            f"the workers need at least {total / _GIB:,.1f} GiB of memory, {largest} alone "
            f"{needs[largest] / _GIB:,.1f} GiB, and this machine has {has / _GIB:,.1f} GiB; make "
            "layers, generators or data.batch_size smaller, or spread the workers over several "
            "machines (asyncdni run)"
        )


def worker_bytes(
    chosen: config.Experiment,
    network: Network,
    plan: Plan,
    meta: Meta,
    group: Group,
    *,
    allow_import: Allowed = False,
) -> int:
    """Return the least memory in bytes that a group's worker needs."""
    parameters = sum(_parameters(node, allow_import) for node in group.members)
    parameters += _exit_parameters(network, group)
    parameters += _input_parameters(network, group)
    rows = sum(math.prod(node.output_shape) for node in group.members)
    samples = min(plan.batch_size, meta.train_samples)
    held = chosen.data.held_samples if group.index == plan.host else 0
    data = held * (math.prod(meta.input_shape) + meta.outputs)
    itemsize = np.dtype(chosen.run.dtype).itemsize
    return itemsize * (_COPIES * parameters + samples * rows + data)


def worker_products(network: Network, group: Group, *, allow_import: Allowed = False) -> int:
    """Return about how many products of numbers one sample takes on its way forward through a
    group's layers, for comparing workers with each other.

    Each parameter counts once for every place of the output that it is used for: a step of a
    sequence (T, D), a pixel of a map (C, H, W). Each output counts once more.
    """
    found = 0
    for node in group.members:
        for parameters, shape in _layers(node, allow_import):
            places = shape[1:] if len(shape) >= 3 else shape[:-1]
            found += parameters * math.prod(places) + math.prod(shape)
    return found


def _parameters(node: Node, allow_import: Allowed) -> int:
    """Return how many parameters the layers of a stage have."""
    return sum(parameters for parameters, _ in _layers(node, allow_import))


def _layers(node: Node, allow_import: Allowed) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield the parameters and the output shape of each layer of a stage; layers without a `size`,
    such as a user's own, have 0 parameters."""
    shape = node.joined_shape
    for index, spec in enumerate(node.layers):
        where = f"{node.place}.layers[{index}]"
        layer: Any = make_layer(spec, where=where, allow_import=allow_import)
        size = getattr(layer, "size", None)
        parameters = size(shape) if callable(size) else 0
        shape = tuple(layer.output_shape(shape))
        yield parameters, shape


def _exit_parameters(network: Network, group: Group) -> int:
    """Return how many parameters the generator or local head at the worker's exit has."""
    model = group.schedule.predictor
    if group.exit is None or model is None:
        return 0
    node = network.node(group.exit)
    _, outputs = network.target_of(node)
    return model.size(network.row_shape(node.output_shape), outputs)


def _input_parameters(network: Network, group: Group) -> int:
    """Return how many parameters the worker's input models have."""
    options, data = group.schedule.input_predictor, math.prod(network.data_shape)
    if options is None or not group.synthetic_inputs:
        return 0
    members = {node.name for node in group.members}
    producers = {name for node in group.members for name in node.inputs} - members - {DATA}
    inputs = data + network.outputs * options.labels
    widths = (math.prod(network.node(name).output_shape) for name in producers)
    return sum(chain_size((inputs, *options.hidden, width)) for width in widths)


def memory_bytes() -> int:
    """Return this machine's memory in bytes; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0
