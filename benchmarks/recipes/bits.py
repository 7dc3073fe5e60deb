"""How wrong a network is about the bits of sums, on all examples, at each evaluation of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from asyncdni import config
from asyncdni.data import describe, open_batches
from asyncdni.data.base import Dataset
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.errors import AsyncDNIError
from asyncdni.nn.base import Array
from asyncdni.nn.layers.activations import sigmoid
from asyncdni.plan.build import Design, make_design, make_stage
from asyncdni.plan.plan import Group
from asyncdni.stages.base import Context, Forwarded
from asyncdni.stages.numpy.stage import NumpyStage

__all__ = ["Point", "train"]


@dataclass(frozen=True)
class Point:
    """Of one set of weights. An error is |y - ŷ|, a bit is wrong where it is above 1/2: means over
    the bits of all training examples, and of all test examples."""

    epoch: float
    error: float
    wrong: float
    test_error: float
    test_wrong: float


class _Watch:
    """Looks at all stages, which hold the weights of one moment, whenever they are evaluated."""

    def __init__(self, design: Design) -> None:
        found = open_batches(design.experiment.data, design.experiment.run.seed)
        assert isinstance(found, Dataset)
        self._data = found
        self._design = design
        self._stages: dict[int, NumpyStage] = {}
        self._batches = 0  # of the test set, evaluated
        self.points: list[Point] = []

    def make(self, design: Design, group: Group) -> NumpyStage:
        """The worker's stage; the last one's evaluations are noticed."""
        stage = self._stages[group.index] = make_stage(design, group)
        if group.index == len(design.plan.groups) - 1:
            evaluate = stage.evaluate

            def noticed(
                inputs: Mapping[str, Array], context: Context, copy: int | None = None
            ) -> Forwarded:
                if self._batches % design.plan.test_batches == 0:
                    self.points.append(self._look())
                self._batches += 1
                return evaluate(inputs, context, copy)

            stage.evaluate = noticed  # type: ignore[method-assign]
        return stage

    def _look(self) -> Point:
        data, epoch = (
            self._data,
            (len(self.points) + 1) * self._design.experiment.run.evaluate_every,
        )
        trained = self._errors(data.x_train, data.y_train)
        return Point(epoch, *trained, *self._errors(data.x_test, data.y_test))

    def _errors(self, x: Array, y: Array) -> tuple[float, float]:
        known: dict[str, Array] = {"data": np.ascontiguousarray(x)}
        for _, stage in sorted(self._stages.items()):
            known = stage.outputs(known)
        out: Any = known[self._design.network.nodes[-1].name]
        if self._design.network.nodes[-1].loss == "sigmoid_cross_entropy":
            out = sigmoid(out, np.empty_like(out))  # of logits
        distance = np.abs(out - y)
        return float(distance.mean()), float((distance > 0.5).mean())


def train(experiment: config.Experiment) -> list[Point]:
    """One run of real workers in virtual time, without lag: a point for each of its evaluations.

    Raises `AsyncDNIError` where the run fails."""
    design = make_design(experiment, describe(experiment.data))
    watch = _Watch(design)
    seed = experiment.run.seed
    result = simulate(design, seed=seed, maths=True, check=False, stages=watch.make)
    if result.failure is not None:
        raise AsyncDNIError(result.failure.text)
    return watch.points
