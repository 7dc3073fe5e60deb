"""Use a trained network: all of its stages run in this process, with running statistics."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from asyncdni import config
from asyncdni.core.ledger import Scores
from asyncdni.data import checksums, identify, open_batches
from asyncdni.data.checks import (
    as_numbers,
    check_contents,
    check_inputs,
    measured,
    other_kind,
    other_scale,
)
from asyncdni.data.meta import Inputs, Meta, other_parts
from asyncdni.errors import DataError, DataWarning
from asyncdni.handover import GIVEN, is_here
from asyncdni.imports import Allowed, allowing
from asyncdni.messages import Evaluated
from asyncdni.nn.base import fits
from asyncdni.nn.metrics import metric_name
from asyncdni.plan.build import Design, make_design, make_whole_stage
from asyncdni.stages.base import Score
from asyncdni.stages.numpy.stage import NumpyStage
from asyncdni.store.run import Result, by_stage

__all__ = ["evaluate", "predict"]

Array = NDArray[Any]


def evaluate(run: Result, *, allow_import: Allowed = False) -> dict[str, Any]:
    """Test a run's weights on its test set: {"samples", "accuracy", "loss"}, and where the run has
    metrics of its own {"metrics": {name: value}}.

    Batches, precision, order and threads are those of the run, so the results repeat its
    `test_accuracy` and `test_loss` exactly.

    Raises `DataError` if the data set can no longer be read, or has other shapes or counts than the
    run's, or inputs on another scale. Other samples of the same shapes give a `DataWarning`, and so
    do metrics that were given as objects in another program, which are left out.
    """
    data = run.experiment.data
    if run.folder is None and isinstance(data, config.Npz) and not Path(data.path).exists():
        raise DataError(
            f"the test set of this run, {data.path}, is gone: nothing was kept on disk; "
            "train with out=DIR to evaluate later"
        )
    design = _design(run, allow_import)
    metrics, missing = _metrics(run)
    stage = _stage(design, run, metrics)
    with allowing(allow_import):
        dataset = open_batches(data, run.experiment.run.seed)
    _check_same(run.meta, dataset.meta)
    for text in (*_other_samples(run), *missing):
        warnings.warn(text, DataWarning, stacklevel=2)
    sums = {node.name: Score(node.name) for node in design.network.nodes if node.scored}
    with threadpool_limits(run.experiment.run.threads):
        for index in range(design.plan.test_batches):
            context = dataset.read_test(index, data.batch_size, _dtype(run))
            x = context.pop("h")
            for score in stage.evaluate({"data": x}, context).scores:
                sums[score.stage].add(score)
    return _result(sums)


def predict(
    run: Result,
    x: ArrayLike | Mapping[str, ArrayLike] | tuple[ArrayLike, ...],
    *,
    allow_import: Allowed = False,
) -> dict[str, Array]:
    """Return the output of every stage with a loss, by stage, for inputs x (N, …): floating, or
    uint8, which is scaled by 1/255 as in training. For a network whose samples have several tensors
    x is a table of arrays (N, …) by their names, or a tuple of them.

    Raises `DataError` for inputs that are no numbers, of another shape than the network's, NaN or
    infinite, and if only one of training data and inputs is uint8 and their scales differ. Inputs
    much larger or smaller than those of training give a `DataWarning`.
    """
    x = as_numbers("inputs", "x", _joined(run.meta, x))
    for text in _check_inputs(run.meta, x):
        warnings.warn(text, DataWarning, stacklevel=2)
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


def _joined(meta: Meta, x: Any) -> Any:
    """Return inputs of several tensors with the numbers of a sample, or of a step where batches
    differ in length, behind one another, and all others as they are. Raises `DataError` for a table
    without one of the names."""
    if not meta.fields or not isinstance(x, Mapping | tuple):
        return x
    names = [one.name for one in meta.fields]
    if isinstance(x, Mapping) and (missing := [name for name in names if name not in x]):
        raise DataError(f"x has no {missing[0]}, expected arrays named {', '.join(names)}")
    if len(x) < len(names):
        raise DataError(f"x has {len(x)} arrays, expected {len(names)}")
    arrays = [np.asarray(x[n] if isinstance(x, Mapping) else x[i]) for i, n in enumerate(names)]
    axis = 2 if meta.varying else 1
    flat = [one.reshape(*one.shape[:axis], -1).astype(np.float64) for one in arrays]
    return np.concatenate(flat, axis=axis)


def _check_inputs(meta: Meta, x: Array) -> Iterator[str]:
    """Check inputs and yield doubts about them. Raises `DataError` if they can't be used."""
    if x.ndim < 1 or not fits(x.shape[1:], meta.input_shape, meta.varying) or not len(x):
        fewer = ", or fewer steps" if meta.varying else ""
        raise DataError(f"x is {x.shape}, expected (samples, {_listed(meta.input_shape)}){fewer}")
    check_inputs("inputs", "x", x)
    check_contents("inputs", {"x": x}, None)
    yield from _check_scale("x is", meta.inputs, measured(x))


def _check_scale(which: str, trained: Inputs | None, given: Inputs | None) -> Iterator[str]:
    """Check the kind and scale of inputs and yield doubts. Raises `DataError` for another kind."""
    if trained is None or given is None:
        return
    refused = other_kind(trained, given)
    if refused:
        raise DataError(f"{which} {refused}")
    doubted = other_scale(trained, given)
    if doubted:
        yield f"{which} {doubted}"


def _other_samples(run: Result) -> Iterator[str]:
    """Compare the samples' checksums with the run's, and yield how they differ. Raises `DataError`
    for another kind of inputs."""
    data = run.experiment.data
    others = other_parts(run.meta.checksums, checksums(data))
    if not others:
        return
    yield from _check_scale("x_train is", run.meta.inputs, identify(data).inputs)
    held = f"{getattr(data, 'path', 'the data set')} does not hold the samples of the run: "
    untouched = not data.validation and set(others) <= {"x_train", "y_train"}
    of_test = "the test set is the same" if untouched else "the result is that of another test set"
    yield f"{held}other contents in {', '.join(others)}; {of_test}"


def _check_same(then: Meta, now: Meta) -> None:
    """Raise `DataError` unless the data set still fits the network and has as many test samples."""
    names = ("input_shape", "varying", "targets", "outputs", "steps", "test_samples", "vocabulary")
    for name in names:
        before, after = getattr(then, name), getattr(now, name)
        if before != after:
            raise DataError(
                f"the data set is not that of the run: its {name} is {after!r}, expected "
                f"{before!r}; mend [data] in experiment.toml, or the file that it names"
            )


def _design(run: Result, allow_import: Allowed) -> Design:
    return make_design(run.experiment, run.meta, allow_import=allow_import)


def _metrics(run: Result) -> tuple[list[str], list[str]]:
    """Return the run's metrics that this process has or can import, and a warning for each of the
    others."""
    known, missing = [], []
    for text in run.experiment.run.metrics:
        module, _, name = text.partition(":")
        if module == GIVEN and not is_here(name):
            warning = "was given to train as an object, which this process does not have"
            missing.append(f"metric {metric_name(text)} is left out: it {warning}")
        else:
            known.append(text)
    return known, missing


def _stage(design: Design, run: Result, metrics: Sequence[str] = ()) -> NumpyStage:
    stage = make_whole_stage(design, metrics)
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


def _result(sums: dict[str, Score]) -> dict[str, Any]:
    """Return the figures that the run's coordinator would compute from the same sums."""
    scores = Scores()
    for s in sums.values():
        metrics = {name: average.value for name, average in s.metrics.items()}
        scores.add(Evaluated(0, s.stage, s.samples, s.loss, s.correct, s.outputs, s.steps, metrics))
    samples = max((score.samples for score in sums.values()), default=0)
    found = {"samples": samples, "accuracy": scores.accuracy, "loss": scores.loss}
    return found | ({"metrics": scores.metrics} if scores.metrics else {})
