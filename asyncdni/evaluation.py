"""Use a trained network: all of its stages in this process, with running statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asyncdni.backends.base import Score
from asyncdni.backends.numpy import NumpyStage
from asyncdni.build import Design, make_whole_stage
from asyncdni.datasets import load
from asyncdni.datasets.checks import check_contents
from asyncdni.errors import DataError
from asyncdni.run import Result, by_stage
from asyncdni.training import design_of

__all__ = ["evaluate", "predict"]

Array = NDArray[Any]


def evaluate(run: Result, *, allow_import: bool = False) -> dict[str, float | int | None]:
    """Test samples, accuracy and loss of the run's weights on its test set.

    Batches, precision and order are those of the run, so the accuracy repeats its
    `test_accuracy` exactly.
    """
    design = design_of(run.experiment, allow_import=allow_import)
    stage = _stage(design, run)
    dataset = load(run.experiment.data, run.experiment.run.seed)
    scores: dict[str, Score] = {}
    for index in range(design.plan.test_batches):
        x, y = dataset.test_batch(index, run.experiment.data.batch_size, _dtype(run))
        for score in stage.evaluate({"data": x}, y).scores:
            if score.stage in scores:
                scores[score.stage].add(score)
            else:
                scores[score.stage] = score
    return _result(scores)


def predict(run: Result, x: Array, *, allow_import: bool = False) -> dict[str, Array]:
    """Output of every stage with a loss for inputs x (N, …), uint8 scaled as in training.

    Raises `DataError` for inputs of another shape than the network's, and for NaN and infinity.
    """
    design = design_of(run.experiment, allow_import=allow_import)
    meta = design.meta
    if x.ndim < 1 or x.shape[1:] != meta.input_shape or not len(x):
        raise DataError(f"x is {x.shape}, expected (samples, {_listed(meta.input_shape)})")
    if x.dtype.kind not in "fu" or (x.dtype.kind == "u" and x.dtype != np.uint8):
        raise DataError(f"x is {x.dtype}, expected floating-point numbers, or uint8 images")
    check_contents("inputs", {"x": x}, None)
    stage = _stage(design, run)
    losses = [node.name for node in design.network.nodes if node.loss]
    parts: dict[str, list[Array]] = {name: [] for name in losses}
    for batch in _batches(x, run.experiment.data.batch_size, _dtype(run)):
        known = stage.outputs({"data": batch})
        for name in losses:
            parts[name].append(known[name])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _stage(design: Design, run: Result) -> NumpyStage:
    stage = make_whole_stage(design)
    stage.load(by_stage(run.weights))
    return stage


def _dtype(run: Result) -> np.dtype[Any]:
    return np.dtype(run.experiment.run.dtype)


def _batches(x: Array, size: int, dtype: np.dtype[Any]) -> Iterator[Array]:
    for start in range(0, len(x), size):
        part = x[start : start + size].astype(dtype)
        yield part * dtype.type(1 / 255) if x.dtype == np.uint8 else part


def _listed(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _result(scores: dict[str, Score]) -> dict[str, float | int | None]:
    accuracy = None
    for score in scores.values():
        if score.correct is not None:
            accuracy = score.correct / (score.samples * score.outputs)
    return {
        "samples": max((score.samples for score in scores.values()), default=0),
        "accuracy": accuracy,
        "loss": sum(score.loss / score.samples for score in scores.values()),
    }
