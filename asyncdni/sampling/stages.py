"""The layers of a trained network, stage by stage, to be fed with other things than its data.

`evaluation` runs whole networks on batches shaped as in training. To go on step by step, or to
begin in the middle, layers are needed one by one, and windows of another length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asyncdni.datasets.meta import Array
from asyncdni.errors import CheckpointError, ConfigError
from asyncdni.messages import DATA
from asyncdni.network import Node, make_network
from asyncdni.nn.base import Layer
from asyncdni.nn.layers import make_layer
from asyncdni.nn.streams import layer_streams
from asyncdni.run import Result

__all__ = ["TrainedStage", "applied", "joined", "load_stages"]


@dataclass(frozen=True)
class TrainedStage:
    """A declared stage with the weights of a run."""

    node: Node
    layers: list[Layer]
    shapes: list[tuple[int, ...]]  # of what each layer puts out, without the batch axis


def load_stages(
    run: Result, *, steps: int | None = None, allow_import: bool = False
) -> list[TrainedStage]:
    """The stages, each after those it reads, for windows of `steps` in place of the run's.

    Raises `ConfigError` where layers can't take windows of another length, and `CheckpointError`
    for weights that don't fit.
    """
    network = make_network(run.experiment, run.meta, allow_import=allow_import)
    data = tuple(run.meta.input_shape)
    shapes = {DATA: data if steps is None else (steps, *data[1:])}
    stages = []
    for node in network.nodes:
        shape = _joined_shape(node, [shapes[name] for name in node.inputs])
        layers, outputs = list[Layer](), list[tuple[int, ...]]()
        for i, spec in enumerate(node.layers):
            layer = make_layer(
                spec, where=f"stage {node.name}, layer {i}", allow_import=allow_import
            )
            shape = _build(layer, shape, run, f"{node.name}.{i}")
            _load(layer, run.weights, f"{node.name}.{i}")
            layers.append(layer)
            outputs.append(shape)
        shapes[node.name] = shape
        stages.append(TrainedStage(node, layers, outputs))
    return stages


def joined(node: Node, known: Mapping[str, Array]) -> Array:
    """What the first layer of `node` gets, from the outputs (B, …) of those it reads."""
    xs = [known[name] for name in node.inputs]
    if len(xs) == 1:
        return xs[0]
    if node.join == "concat":
        return np.concatenate(xs, axis=node.join_axis)
    total = xs[0] + xs[1]  # in declared order, as in training
    for x in xs[2:]:
        total += x
    return total


def applied(layers: Sequence[Layer], x: Array) -> Array:
    """x (B, …) through the layers, with running statistics."""
    for layer in layers:
        x = layer.evaluate(x)
    return x


def _joined_shape(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The network's checks have been made: only the length of windows may differ."""
    shape = list(shapes[0])
    if node.join == "concat":
        shape[node.join_axis] = sum(one[node.join_axis] for one in shapes)
    return tuple(shape)


def _build(layer: Layer, shape: tuple[int, ...], run: Result, name: str) -> tuple[int, ...]:
    settings = run.experiment.run
    try:
        return tuple(
            layer.build(shape, np.dtype(settings.dtype), layer_streams(settings.seed, name))
        )
    except ConfigError as error:
        raise ConfigError(f"layer {name} can't go step by step: {error}") from error


def _load(layer: Layer, weights: Mapping[str, Array], name: str) -> None:
    """Parameters and running statistics; what is not among the weights serves training alone."""
    arrays: dict[str, Any] = {**layer.params, **layer.buffers}
    for key, array in arrays.items():
        given = weights.get(f"{name}.{key}")
        if given is None and key in layer.buffers:
            continue
        if given is None or given.shape != array.shape:
            found = "missing" if given is None else f"{given.shape}"
            raise CheckpointError(
                f"weights of layer {name}: {key} is {found}, expected {array.shape}; the layer "
                "can't be used with these inputs"
            )
        np.copyto(array, given)
