"""Who reads out through the last stage's weights: for generators of kind "readout".

The readout's owner is the last worker, whose last stage has the loss; its readers are the workers
with such a generator. What a copy consists of follows from the last stage, which is a part of a
[model] or has layers of its own, and the option `begin`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asyncdni import config
from asyncdni.errors import ConfigError
from asyncdni.handover import GIVEN
from asyncdni.imports import Allowed
from asyncdni.network import Network, Node
from asyncdni.nn.base import Layer
from asyncdni.nn.generators.base import Generator
from asyncdni.nn.generators.readout import LayersReadout
from asyncdni.nn.layers import is_module, make_layer
from asyncdni.nn.layers.recurrent import Recurrent
from asyncdni.nn.streams import layer_streams
from asyncdni.plan.model import check_torch
from asyncdni.plan.plan import Group, Plan, read_by

__all__ = ["Forms", "make_readout_generator", "readout_forms", "readout_stage"]

#: The shape and type of each array of a copy, by its name in the last stage.
Forms = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


def readout_stage(groups: Sequence[Group]) -> str:
    """Return the declared stage that others read out through."""
    return groups[-1].members[-1].name


def readout_forms(plan: Plan, dtype: np.dtype[Any], *, allow_import: Allowed) -> Forms:
    """Return what a copy of the readout consists of; empty where nobody reads it."""
    begins = {
        group.schedule.predictor.begin
        for group in plan.groups
        if group.name in read_by(plan.groups)
        and isinstance(group.schedule.predictor, config.ReadoutGenerator)
    }
    if not begins:
        return {}
    if len(begins) > 1:
        raise ConfigError(
            f"schedule.generator.begin: it is {' and '.join(map(repr, sorted(begins)))}; expected "
            "the same for all stages, as all get the same copy"
        )
    last, begin = plan.groups[-1].members[-1], begins.pop()
    if not _is_part(last):
        layers = _layers(last, begin, allow_import)
        shape = _taken(last, layers, allow_import)
        for position, layer in layers.items():
            shape = layer.build(shape, dtype, layer_streams(0, f"{last.name}.{position}"))
        return {
            f"{position}.{name}": (array.shape, dtype)
            for position, layer in layers.items()
            for name, array in layer.params.items()
        }
    check_torch('schedule.generator: kind = "readout"')
    from asyncdni.nn.torch import readout

    return readout.readout_forms(_part(last), begin, dtype, allow_import=allow_import)


def make_readout_generator(
    network: Network,
    plan: Plan,
    run: config.Run,
    options: config.ReadoutGenerator,
    node: Node,
    *,
    weights: Mapping[str, NDArray[Any]] | None,
    allow_import: Allowed,
) -> Generator:
    """Make the generator at the exit `node`. Its readout begins with the last stage's initial
    `weights`; None: those of the seed. Raises `ConfigError`."""
    last = plan.groups[-1].members[-1]
    if not _is_part(last):
        return _layers_readout(network, run, options, node, last, weights or {}, allow_import)
    check_torch('schedule.generator: kind = "readout"')
    from asyncdni.nn.torch import readout

    part, (kind, outputs) = _part(last), network.target_of(node)
    known = weights is not None or str(part["build"]).startswith(f"{GIVEN}:")
    generator = readout.readout_generator(
        options,
        part,
        shape=node.output_shape,
        steps=network.steps,
        loss=last.loss or kind,
        streams=None if known else layer_streams(run.seed, f"{last.owner}.0"),
        allow_import=allow_import,
    )
    generator.build(
        0,
        outputs,
        kind,
        np.dtype(run.dtype),
        layer_streams(run.seed, f"{node.name}.generator"),
        shape=node.output_shape,
        steps=network.steps,
    )
    if weights is not None:
        generator.readout.read_through(weights)
    return generator


def _is_part(last: Node) -> bool:
    layer = last.layers[0] if len(last.layers) == 1 else ""
    return isinstance(layer, dict) and "part" in layer


def _part(last: Node) -> Mapping[str, Any]:
    layer = last.layers[0]
    assert isinstance(layer, dict)
    part: Mapping[str, Any] = layer["part"]
    return part


# --- last stages with layers of their own --------------------------------------------------------


def _layers_readout(
    network: Network,
    run: config.Run,
    options: config.ReadoutGenerator,
    node: Node,
    last: Node,
    weights: Mapping[str, NDArray[Any]],
    allow_import: Allowed,
) -> LayersReadout:
    for name in ("blocks", "map"):
        if getattr(options, name):
            raise ConfigError(
                f"schedule.generator.{name}: only the readout of a [model] has it; expected "
                f"{getattr(config.ReadoutGenerator(), name)!r} for stages of layers"
            )
    layers = _layers(last, options.begin, allow_import)
    if (taken := _taken(last, layers, allow_import)) != node.output_shape:
        raise ConfigError(
            f"schedule.generator: stage {node.name} has activations {node.output_shape}, and the "
            f"readout, stage {last.name} from layer {min(layers)} on, takes {taken}; make them "
            'alike, give another layer as `begin`, or use kind = "error"'
        )
    own = [layer_streams(run.seed, f"{last.owner}.{position}") for position in layers]
    generator = LayersReadout(layers, own, options)
    _, outputs = network.target_of(node)
    streams = layer_streams(run.seed, f"{node.name}.generator")
    assert last.loss is not None, "a network ends in a loss"
    generator.build(
        0, outputs, last.loss, np.dtype(run.dtype), streams, shape=tuple(node.output_shape)
    )
    generator.readout.read_through(weights)
    return generator


def _layers(last: Node, begin: str, allow_import: Allowed) -> dict[int, Layer]:
    """Return the readout's layers, not built yet, by their position in the last stage. Raises
    `ConfigError` for a stage that has no readout."""
    count = len(last.layers)
    if begin and not (begin.isdecimal() and int(begin) < count):
        raise ConfigError(
            f"schedule.generator.begin: {begin!r} is no layer of stage {last.name}; expected a "
            f"number from 0 to {count - 1} in quotes, or nothing for all of them"
        )
    found = {}
    for position in range(int(begin or 0), count):
        where = f"stage {last.name}, layer {position}"
        layer = make_layer(last.layers[position], where=where, allow_import=allow_import)
        own = isinstance(layer, Recurrent) or hasattr(layer, "own_loss")
        if own or is_module(last.layers[position]):
            raise ConfigError(
                f"schedule.generator: the readout has {where}, which is recurrent, has a loss of "
                "its own or is a module of PyTorch, and no other stage can use a copy of such a "
                "layer; begin behind it, or give the network as [model]"
            )
        found[position] = layer
    return found


def _taken(last: Node, layers: Mapping[int, Layer], allow_import: Allowed) -> tuple[int, ...]:
    """Return the shape of a sample that the readout takes in the last stage."""
    shape = tuple(last.joined_shape)
    for position in range(min(layers)):
        before = make_layer(last.layers[position], where=last.name, allow_import=allow_import)
        shape = tuple(before.output_shape(shape))
    return shape
