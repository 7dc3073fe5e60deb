"""The models that stand in for what has not come: generators, local heads, input models.

All are built from the experiment's seed and the name of a declared stage, so that they are the same
in every process and under every split.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
import numpy as np

from asyncdni import config
from asyncdni.datasets.base import Meta
from asyncdni.messages import DATA
from asyncdni.network import Network, Node
from asyncdni.nn.generators import MAP_GENERATORS, make_generator
from asyncdni.nn.generators.base import Generator
from asyncdni.nn.generators.head import LocalHead
from asyncdni.nn.input_model import InputModel
from asyncdni.nn.streams import layer_streams
from asyncdni.plan import Group

__all__ = ["make_exit_generator", "make_input_models"]


def make_exit_generator(
    schedule: config.Schedule, network: Network, group: Group, run: config.Run
) -> Generator | None:
    """What gives the group's exit a gradient at once; None where it waits, or has no consumers."""
    if group.exit is None:
        return None
    node = network.node(group.exit)
    row = network.row_shape(node.output_shape)
    loss, outputs = network.target_of(node)
    build = partial(
        _build,
        width=_size(row),
        outputs=outputs,
        loss=loss,
        dtype=np.dtype(run.dtype),
        streams=layer_streams(run.seed, f"{node.name}.generator"),
    )
    match schedule:
        case config.LocalLoss(head=head):
            return build(LocalHead(hidden=head.hidden, learning_rate=head.learning_rate))
        case config.Synthetic(generator=options) if schedule.mix < 1:
            kind, values = str(options.__struct_config__.tag), msgspec.structs.asdict(options)
            if len(row) == 3 and kind in MAP_GENERATORS:
                return build(MAP_GENERATORS[kind](**values), shape=row)
            values.pop("cells", None)  # of feature maps
            return build(make_generator(kind, **values))
    return None


def _build(generator: Generator, **options: Any) -> Generator:
    generator.build(**options)
    return generator


def make_input_models(
    schedule: config.Schedule, network: Network, group: Group, meta: Meta, run: config.Run
) -> dict[str, InputModel]:
    """By declared producer in another group; none where inputs are waited for."""
    if not (group.synthetic_inputs and isinstance(schedule, config.Synthetic)):
        return {}
    members = {node.name for node in group.members}
    found: dict[str, InputModel] = {}
    for node in group.members:
        for name in node.inputs:
            if name != DATA and name not in members and name not in found:
                found[name] = _input_model(schedule.input_model, network, node, name, meta, run)
    return found


def _input_model(
    options: config.InputModel,
    network: Network,
    reader: Node,
    producer: str,
    meta: Meta,
    run: config.Run,
) -> InputModel:
    loss, outputs = network.target_of(reader)
    model = InputModel(
        hidden=options.hidden, labels=options.labels, learning_rate=options.learning_rate
    )
    model.build(
        inputs=_size(meta.input_shape),
        outputs=outputs,
        width=_size(network.node(producer).output_shape),
        loss=loss,
        dtype=np.dtype(run.dtype),
        streams=layer_streams(run.seed, f"{reader.name}.input.{producer}"),
    )
    return model


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))
