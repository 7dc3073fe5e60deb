"""Who reads out through the last stage's weights: for generators of kind "readout".

The readout's owner is the last worker, whose last stage has the loss; its readers are the workers
with such a generator. What a copy consists of follows from the model and the option `begin`.
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
from asyncdni.nn.generators.base import Generator
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
    check_torch('schedule.generator: kind = "readout"')
    from asyncdni.nn.torch import readout

    part = _part(plan.groups[-1].members[-1])
    return readout.readout_forms(part, begins.pop(), dtype, allow_import=allow_import)


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
    `weights`; None: those of the seed."""
    check_torch('schedule.generator: kind = "readout"')
    from asyncdni.nn.torch import readout

    last = plan.groups[-1].members[-1]
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
        generator.read_through(weights)
    return generator


def _part(last: Node) -> Mapping[str, Any]:
    """Return the part of a model that the last stage is. Raises `ConfigError` for another one."""
    layer = last.layers[0] if len(last.layers) == 1 else ""
    if last.loss is None or not isinstance(layer, dict) or "part" not in layer:
        raise ConfigError(
            'schedule.generator: kind = "readout" needs the last stage of a [model], '
            f"and stage {last.name} is not part of one; give the network as [model], or use "
            'kind = "error"'
        )
    part: Mapping[str, Any] = layer["part"]
    return part
