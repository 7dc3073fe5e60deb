"""Use a trained network: all of its stages in this process, with running statistics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from asyncdni import config
from asyncdni.backends.base import Score
from asyncdni.backends.numpy import NumpyStage
from asyncdni.build import Design, make_design, make_whole_stage
from asyncdni.core.scores import Scores
from asyncdni.datasets import open_batches
from asyncdni.datasets.checks import check_contents
from asyncdni.datasets.meta import Meta
from asyncdni.errors import DataError
from asyncdni.messages import Evaluated
from asyncdni.run import Result, by_stage

__all__ = ["evaluate", "predict"]

Array = NDArray[Any]


def evaluate(run: Result, *, allow_import: bool = False) -> dict[str, float | int | None]:
    """Test samples, accuracy and loss of the run's weights on its test set.

    Batches, precision, order and threads are those of the run, so the results repeat its
    `test_accuracy` and `test_loss` exactly.

    Raises `DataError` where the data set is gone, or has other shapes or counts than the run's.
    """
    data = run.experiment.data
    if run.folder is None and isinstance(data, config.Npz) and not Path(data.path).exists():
        raise DataError(
            f"the test set of this run, {data.path}, is gone: nothing was kept on disk; "
            "train with out=DIR to evaluate later"
        )
    design = _design(run, allow_import)
    stage = _stage(design, run)
    dataset = open_batches(data, run.experiment.run.seed)
    _check_same(run.meta, dataset.meta)
    sums = {node.name: Score(node.name) for node in design.network.nodes if node.scored}
    with threadpool_limits(run.experiment.run.threads):
        for index in range(design.plan.test_batches):
            context = dataset.read_test(index, data.batch_size, _dtype(run))
            x = context.pop("h")
            for score in stage.evaluate({"data": x}, context).scores:
                sums[score.stage].add(score)
    return _result(sums)


def predict(run: Result, x: Array, *, allow_import: bool = False) -> dict[str, Array]:
    """Output of every stage with a loss for inputs x (N, …), uint8 scaled as in training.

    Raises `DataError` for inputs of another shape than the network's, and for NaN and infinity.
    """
    meta = run.meta
    if x.ndim < 1 or x.shape[1:] != meta.input_shape or not len(x):
        raise DataError(f"x is {x.shape}, expected (samples, {_listed(meta.input_shape)})")
    if x.dtype.kind not in "fu" or (x.dtype.kind == "u" and x.dtype != np.uint8):
        raise DataError(f"x is {x.dtype}, expected floating-point numbers, or uint8 images")
    check_contents("inputs", {"x": x}, None)
    design = _design(run, allow_import)
    stage = _stage(design, run)
    losses = [node.name for node in design.network.nodes if node.loss]
    parts: dict[str, list[Array]] = {name: [] for name in losses}
    with threadpool_limits(run.experiment.run.threads):
        for batch in _batches(x, run.experiment.data.batch_size, _dtype(run)):
            known = stage.outputs({"data": batch})
            for name in losses:
                parts[name].append(known[name])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _check_same(then: Meta, now: Meta) -> None:
    """What the network fits, and the test part: it may be repeated on nothing else."""
    for name in ("input_shape", "targets", "outputs", "steps", "test_samples", "vocabulary"):
        before, after = getattr(then, name), getattr(now, name)
        if before != after:
            raise DataError(
                f"the data set is not that of the run: its {name} is {after!r}, expected "
                f"{before!r}; mend [data] in experiment.toml, or the file that it names"
            )


def _design(run: Result, allow_import: bool) -> Design:
    return make_design(run.experiment, run.meta, allow_import=allow_import)


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


def _result(sums: dict[str, Score]) -> dict[str, float | int | None]:
    """What the run's coordinator makes of the same sums."""
    scores = Scores()
    for s in sums.values():
        scores.add(Evaluated(0, s.stage, s.samples, s.loss, s.correct, s.outputs, s.steps))
    samples = max((score.samples for score in sums.values()), default=0)
    return {"samples": samples, "accuracy": scores.accuracy, "loss": scores.loss}
