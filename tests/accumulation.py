"""Gradient accumulation in one process: the reference that synchronous pipelines must equal."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from asyncdni import config
from asyncdni.data import load
from asyncdni.messages import DATA
from asyncdni.nn.base import Array
from asyncdni.plan.build import Design, make_design, make_stage
from asyncdni.schedules.base import Source
from asyncdni.stages.numpy.stage import NumpyStage

__all__ = ["Bits", "accumulated", "bits"]

Bits = dict[str, dict[str, bytes]]


def bits(weights: Mapping[str, Mapping[str, Array]]) -> Bits:
    """By declared stage and name."""
    return {
        stage: {name: array.tobytes() for name, array in own.items()}
        for stage, own in weights.items()
    }


def accumulated(design: Design, stop: int | None = None) -> Bits:
    """Weights after the run of `design`: all its stages as one, each batch cut into microbatches,
    their gradients added up in order, one update a batch. `stop`: after so many microbatches."""
    run, plan = design.experiment.run, design.plan
    dataset = load(design.experiment.data, run.seed)
    stage = _whole(design)
    left = plan.batches if stop is None else stop
    for epoch in range(run.epochs):
        for index in range(plan.updates_per_epoch):
            x, y = dataset.batch(
                epoch, index, design.experiment.data.batch_size, run.seed, np.dtype(run.dtype)
            )
            starts = range(0, len(x), plan.batch_size)[:left]
            left -= len(starts)
            parts = [slice(start, start + plan.batch_size) for start in starts]
            _learn(stage, [(x[part], y[part]) for part in parts])
    return bits(stage.state())


def _whole(design: Design) -> NumpyStage:
    chosen = design.experiment
    alone = msgspec.structs.replace(
        chosen,
        run=msgspec.structs.replace(chosen.run, split=[len(chosen.stages)]),
        schedule=config.Locked(),
        staleness=config.Staleness(),
        stages=[msgspec.structs.replace(stage, schedule={}) for stage in chosen.stages],
    )
    one = make_design(alone, design.meta)
    return make_stage(one, one.plan.groups[0])


def _learn(stage: NumpyStage, microbatches: list[tuple[Array, Array]]) -> None:
    """Forward all, go back through all, update once."""
    if not microbatches:
        return
    for number, (x, y) in enumerate(microbatches):
        stage.forward(number, {DATA: x}, {"y": y})
    for number in range(len(microbatches)):
        stage.backward(number, {}, source=Source.TRUE, learn=True, send=False)
    stage.update()
    for number in range(len(microbatches)):
        stage.release(number, lambda: True)
