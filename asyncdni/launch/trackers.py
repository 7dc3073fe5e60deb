"""Callbacks that keep a run's options and evaluations in MLflow or in Weights & Biases.

Each is one run there: the options of the experiment file as parameters ("run.seed"), the numbers of
each evaluation by samples trained on, and figures of the whole run at its end. A run that fails or
is stopped is marked so by the tracker itself, when the program ends.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from asyncdni import experiment
from asyncdni.errors import ConfigError
from asyncdni.launch.callbacks import Training

__all__ = ["Mlflow", "Wandb"]

#: What is told of the whole run, where it is a number.
_FIGURES = "samples_per_s", "train_s", "wall_s", "test_accuracy", "test_loss", "restarts"


class Mlflow:
    """Keeps a run in MLflow (extra `mlflow`): `train(…, callbacks=[Mlflow(experiment_name="x")])`.

    Where, is MLflow's own setting: MLFLOW_TRACKING_URI, or `mlflow.set_tracking_uri`.
    """

    def __init__(self, experiment_name: str | None = None, run_name: str | None = None) -> None:
        """Raises `ConfigError` where MLflow is not installed."""
        self._mlflow = _library("mlflow")
        self._names = experiment_name, run_name

    def on_start(self, run: Training) -> None:
        experiment_name, run_name = self._names
        if experiment_name is not None:
            self._mlflow.set_experiment(experiment_name)
        self._mlflow.start_run(run_name=run_name)
        self._mlflow.log_params(_options(run))

    def on_evaluation(self, run: Training) -> None:
        self._mlflow.log_metrics(_numbers(run.history[-1]), step=run.history[-1]["samples"])

    def on_end(self, run: Training) -> None:
        self._mlflow.log_metrics(_figures(run))
        self._mlflow.end_run()


class Wandb:
    """Keeps a run in Weights & Biases (extra `wandb`): `train(…, callbacks=[Wandb(project="x")])`.

    The arguments are those of `wandb.init`.
    """

    def __init__(self, **options: Any) -> None:
        """Raises `ConfigError` where wandb is not installed."""
        self._wandb = _library("wandb")
        self._options = options

    def on_start(self, run: Training) -> None:
        self._run = self._wandb.init(**{"config": _options(run), **self._options})

    def on_evaluation(self, run: Training) -> None:
        self._run.log(_numbers(run.history[-1]), step=run.history[-1]["samples"])

    def on_end(self, run: Training) -> None:
        self._run.summary.update(_figures(run))
        self._run.finish()


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"callbacks: {name} is not installed: pip install 'asyncdni[{name}]'"
        ) from error


def _options(run: Training) -> dict[str, str]:
    """The experiment's options by their place in its file: {"run.seed": "0"}."""
    return dict(_flat("", experiment.tables(run.experiment)))


def _flat(place: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [one for key, own in value.items() for one in _flat(f"{place}.{key}", own)]
    if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        return [one for index, own in enumerate(value) for one in _flat(f"{place}.{index}", own)]
    return [(place.lstrip("."), str(value))]


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one evaluation by name, those of `run.metrics` among them."""
    found = {**entry, **entry.get("metrics", {})}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def _figures(run: Training) -> dict[str, float]:
    summary = run.summary or {}
    found = {name: summary.get(name) for name in _FIGURES}
    return {name: value for name, value in found.items() if value is not None}
