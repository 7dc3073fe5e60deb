"""Compute from shapes only how large messages get, how much memory workers need, and how many
floating-point operations stages do.

The memory of a worker is a lower bound. Each parameter counts four times: the weight, its gradient,
and two numbers that an optimizer keeps. Buffers of batches in flight and of layers come on top.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from asyncdni import config, experiment
from asyncdni.data.meta import Meta
from asyncdni.errors import ConfigError, ProtocolError
from asyncdni.imports import Allowed
from asyncdni.messages import DATA, Welcome
from asyncdni.network import Network, Node, Shape
from asyncdni.nn.fused import PAYS_FROM
from asyncdni.nn.layers import LAYERS, is_module, make_layer
from asyncdni.plan.plan import Group, Plan, shared_with
from asyncdni.plan.readout import readout_forms
from asyncdni.tables import chain_size
from asyncdni.wire.codec import encode

__all__ = [
    "LayerWork",
    "check_memory",
    "check_messages",
    "context_bytes",
    "memory_bytes",
    "stage_flops",
    "stage_work",
    "takes_loops",
    "worker_bytes",
    "worker_operations",
]

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
            lower = "schedule.microbatches" if what == "Shared" else "data.batch_size"
            raise ConfigError(
                f"worker {sender} would send more than it may: with its header the {what} of "
                f"{size} bytes is over limits.message_bytes = {limit}; raise it, or lower {lower}"
            )


def _messages(
    chosen: config.Experiment, network: Network, plan: Plan, meta: Meta, allow_import: Allowed
) -> Iterable[tuple[str, str, int]]:
    """Yield the largest message of each kind on each link: (sender, kind, bytes of its tensors)."""
    itemsize, context = np.dtype(chosen.run.dtype).itemsize, context_bytes(chosen, network, meta)
    trained = min(plan.batch_size, meta.train_samples)
    samples = max(trained, min(chosen.data.batch_size, meta.test_samples))
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
            yield group.name, "Shared", plan.per_update * shared * itemsize


def context_bytes(chosen: config.Experiment, network: Network, meta: Meta) -> int:
    """Return the bytes of what travels beside the activation of one sample: targets, and see
    `data.meta`."""
    itemsize = np.dtype(chosen.run.dtype).itemsize
    targets = 8 if network.targets == "classes" else network.outputs * itemsize
    context = targets * max(1, network.steps)
    return context + sum(math.prod(tensor.shape) * itemsize for tensor in meta.context.values())


# --- operations ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerWork:
    """What one layer does with one batch: the floating-point operations of its matrix products and
    convolutions, and how many numbers it works on."""

    forward: int  # operations of a forward
    learn: int  # of the gradients of its weights
    push: int  # of the gradient of its inputs
    weights: int  # numbers; without biases
    inputs: int  # numbers of the whole batch
    outputs: int  # numbers of the whole batch
    columns: int  # features or channels that its product makes
    in_torch: bool  # whether it is a module of PyTorch


def stage_work(
    node: Node, samples: int, *, allow_import: Allowed = False
) -> list[LayerWork] | None:
    """Return what the layers of a stage do with a batch of `samples`.

    None if their operations are not known: a layer of the user's own has no method `flops` (see
    `nn.base.Layer.output_shape`), or a module can't be run on the meta device.
    """
    shapes = [shape for _, shape in _layers(node, allow_import)] + [node.output_shape]
    found = []
    for index, (layer, shape) in enumerate(_layers(node, allow_import)):
        flops = _layer_flops(layer, shape, samples)
        if flops is None:
            return None
        output = shapes[index + 1]
        work = LayerWork(
            *flops,
            weights=layer.size(shape) if hasattr(layer, "size") else 0,
            inputs=samples * math.prod(shape),
            outputs=samples * math.prod(output),
            columns=(output[0] if len(output) == 3 else output[-1]) if output else 1,
            in_torch=is_module(node.layers[index]),
        )
        found.append(work)
    return found


def _layer_flops(layer: Any, shape: Shape, samples: int) -> tuple[int, int, int] | None:
    """Return the operations of a layer's products in a forward, for the gradients of its weights,
    and for that of its inputs; None if they are not known."""
    if not hasattr(layer, "flops"):
        return (0, 0, 0) if type(layer) in LAYERS.values() else None  # it has no products
    whole = layer.flops(shape, samples, send=True)
    learning = layer.flops(shape, samples, send=False)
    if whole is None or learning is None:
        return None
    return whole[0], learning[1], whole[1] - learning[1]


def stage_flops(
    node: Node, samples: int, *, send: bool, allow_import: Allowed = False
) -> tuple[int, int] | None:
    """Return the floating-point operations of a stage's matrix products and convolutions on a batch
    of `samples`, in (forward, backward); None if they are not known: see `stage_work`.

    The backward learns and, if `send`, computes the gradient of the stage's inputs too.
    """
    work = stage_work(node, samples, allow_import=allow_import)
    if work is None:
        return None
    pushed = work if send else work[1:]
    return sum(one.forward for one in work), (
        sum(one.learn for one in work) + sum(one.push for one in pushed)
    )


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


def worker_operations(network: Network, group: Group, *, allow_import: Allowed = False) -> int:
    """Return about how many operations one sample takes on its way forward through a group's
    stages, for comparing workers with each other: those of products (see `stage_flops`), two for
    each parameter where they are not known, and one for each number that a layer takes."""
    found = 0
    for node in group.members:
        flops = stage_flops(node, 1, send=False, allow_import=allow_import)
        found += 2 * _parameters(node, allow_import) if flops is None else flops[0]
        found += sum(math.prod(shape) for _, shape in _layers(node, allow_import))
    return found


def takes_loops(node: Node, allow_import: Allowed) -> bool:
    """Return whether a stage will load the compiled loops of `nn.fused`, where numba is there."""
    in_torch = any(is_module(layer) for layer in node.layers)
    return not in_torch and _parameters(node, allow_import) >= PAYS_FROM


def _parameters(node: Node, allow_import: Allowed) -> int:
    """Return how many parameters the layers of a stage have; layers without a `size`, such as a
    user's own, count as 0."""
    sized = ((getattr(layer, "size", None), shape) for layer, shape in _layers(node, allow_import))
    return sum(size(shape) for size, shape in sized if callable(size))


def _layers(node: Node, allow_import: Allowed) -> Iterator[tuple[Any, Shape]]:
    """Yield the layers of a stage, not yet built, and the shape of a sample that each is given."""
    shape = node.joined_shape
    for index, spec in enumerate(node.layers):
        where = f"{node.place}.layers[{index}]"
        layer: Any = make_layer(spec, where=where, allow_import=allow_import)
        yield layer, shape
        shape = tuple(layer.output_shape(shape))


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
