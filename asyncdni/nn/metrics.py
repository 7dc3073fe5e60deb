"""Metrics of the test set beside loss and accuracy: built-in ones, and functions of the user's own.

A metric is the mean over rows of a function of outputs (N, K) and targets, class ids (N,) or values
(N, K). A row is a sample or, where the steps of windows have targets of their own, a step that
counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asyncdni.errors import ConfigError
from asyncdni.handover import GIVEN
from asyncdni.imports import Allowed, import_named
from asyncdni.nn.base import Array
from asyncdni.nn.losses import CrossEntropy

__all__ = [
    "Average",
    "Metric",
    "make_metrics",
    "metric_name",
    "metric_names",
    "metric_objects",
    "object_name",
]

#: The names under which loss and accuracy are known already.
_TAKEN = ("accuracy", "loss")
_TOP = re.compile(r"top([1-9]\d*)")
#: How objects that are metrics are named among those that workers are handed: "metric f1".
_OBJECT = "metric "


@dataclass(slots=True)
class Average:
    """The mean of a metric over rows, so that those of several batches can be added."""

    of_mean: Callable[[float], float]
    total: float = 0.0
    rows: int = 0

    def add(self, other: Average) -> None:
        self.total += other.total
        self.rows += other.rows

    @property
    def value(self) -> float | None:
        """The metric; None without rows, and where it is not a finite number."""
        found = self.of_mean(self.total / self.rows) if self.rows else math.nan
        return found if math.isfinite(found) else None


@dataclass(frozen=True)
class Metric:
    """A function of outputs and targets that returns its mean over the rows."""

    name: str
    function: Callable[[Array, Array], Any]
    of_mean: Callable[[float], float] = float  # what is reported, from the mean over the test set

    def average(self, outputs: Array, targets: Array) -> Average:
        """The metric of one batch, which has at least one row.

        Raises `ConfigError` where the function fails, or returns anything but a number."""
        given = f"outputs {_described(outputs)} and targets {_described(targets)}"
        try:
            found = self.function(outputs, targets)
            number = float(found) if np.ndim(found) == 0 else None
        except Exception as error:  # the user's code may fail in any way
            text = " ".join(str(error).split())
            raise ConfigError(
                f"metric {self.name} failed on {given}: {type(error).__name__}: {text}"
            ) from error
        if number is None:
            raise ConfigError(
                f"metric {self.name} returned shape {np.shape(found)} for {given}; expected one "
                "number, the mean over the rows"
            )
        return Average(self.of_mean, number * len(outputs), len(outputs))


def _described(array: Array) -> str:
    return f"{array.dtype} {array.shape}"


# --- names ---------------------------------------------------------------------------------------


def object_name(name: str) -> str:
    """How workers are handed the metric `name` that is an object."""
    return _OBJECT + name


def metric_objects(given: Mapping[str, object]) -> dict[str, object]:
    """Functions that are metrics, by name, as they are named among what workers are handed. Raises
    `ConfigError` for what is no function."""
    for name, function in given.items():
        if not callable(function):
            raise ConfigError(
                f"metrics: {name} is a {type(function).__name__}, expected a function of outputs "
                "and targets; built-in and importable metrics are given as a list of their names"
            )
    return {object_name(name): function for name, function in given.items()}


def metric_name(text: str) -> str:
    """The name of an entry of `run.metrics`: "top5" of "top5" and of "mymetrics:top5"."""
    module, _, attribute = text.rpartition(":")
    if module == GIVEN:  # "metric top5-1": handed over, and numbered
        return attribute.removeprefix(_OBJECT).rpartition("-")[0]
    return attribute.rpartition(".")[2]


def metric_names(texts: Sequence[str]) -> tuple[str, ...]:
    """The names of all entries of `run.metrics`. Raises `ConfigError` where one has none, or two
    have the same."""
    names: list[str] = []
    for text in texts:
        name = metric_name(text)
        if not name.isidentifier():
            raise ConfigError(
                f"run.metrics: {text!r} has no name of letters, digits and _; expected a built-in "
                'metric, or a function of yours as "package.module:function"'
            )
        if name in _TAKEN:
            raise ConfigError(f"run.metrics: {name} is always reported; leave {text!r} out")
        if name in names:
            raise ConfigError(
                f"run.metrics: {text!r} is the second metric with the name {name}; expected "
                "another name"
            )
        names.append(name)
    return tuple(names)


# --- making --------------------------------------------------------------------------------------


def make_metrics(
    texts: Sequence[str], *, classes: int, allow_import: Allowed = False
) -> list[Metric]:
    """Make the metrics that `run.metrics` names, for targets of so many classes (0: they are
    values). Raises `ConfigError`."""
    return [
        _own(text, name, allow_import) if ":" in text else _built_in(name, classes)
        for text, name in zip(texts, metric_names(texts), strict=True)
    ]


def _own(text: str, name: str, allow_import: Allowed) -> Metric:
    found = import_named(text, "metric", allow_import=allow_import)
    if not callable(found):
        raise ConfigError(
            f"metric {text!r} is a {type(found).__name__}, expected a function of outputs and "
            "targets"
        )
    return Metric(name, found)


def _built_in(name: str, classes: int) -> Metric:
    top = _TOP.fullmatch(name)
    if top is None and name not in _OF_CROSS_ENTROPY:
        raise ConfigError(
            f"run.metrics: there is no metric {name!r}; expected {', '.join(_OF_CROSS_ENTROPY)}, "
            'top2, top3, … or a function of yours as "package.module:function"'
        )
    if not classes:
        raise ConfigError(
            f"run.metrics: {name} needs targets that are classes, and those of this data set are "
            "values"
        )
    if top is None:
        return Metric(name, _cross_entropy, _OF_CROSS_ENTROPY[name])
    k = int(top[1])
    if k >= classes:
        raise ConfigError(
            f"run.metrics: {name} of {classes} classes is always 1; expected at most "
            f"top{classes - 1}"
        )
    return Metric(name, lambda outputs, targets: _top(k, outputs, targets))


def _top(k: int, outputs: Array, targets: Array) -> float:
    """The share of rows whose class is among the k largest outputs; of equal outputs the first
    counts as the larger, so that top1 is the accuracy."""
    own = np.take_along_axis(outputs, targets[:, None], axis=1)
    earlier = np.arange(outputs.shape[1]) < targets[:, None]
    larger = (outputs > own) | ((outputs == own) & earlier)
    return float((larger.sum(axis=1) < k).mean())


def _cross_entropy(outputs: Array, targets: Array) -> float:
    """The mean of -log softmax(x)[y], in nats."""
    return CrossEntropy().forward(outputs, targets, {})[0] / len(outputs)


def _bits(nats: float) -> float:
    return nats / math.log(2)


def _perplexity(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf  # beyond, it is no float any more


_OF_CROSS_ENTROPY = {"perplexity": _perplexity, "bits": _bits}
