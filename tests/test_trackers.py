"""Runs kept by trackers of experiments: what they are told, and MLflow's own files."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_training import TINY, arrays

import asyncdni
from asyncdni.errors import ConfigError


def test_a_run_is_kept_in_weights_and_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in: the service itself needs an account."""
    told: list[Any] = []
    run = SimpleNamespace(
        log=lambda numbers, step: told.append((step, numbers)),
        summary={},
        finish=lambda: told.append("finish"),
    )

    def init(**options: Any) -> Any:
        told.append(options)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    result = asyncdni.train(TINY, data=arrays(), callbacks=[asyncdni.Wandb(project="x")])
    options, *evaluations, end = told
    assert options["project"] == "x" and options["config"]["run.epochs"] == "3"
    assert options["config"]["stages.0.name"] == "hidden"
    assert [step for step, _ in evaluations] == [entry["samples"] for entry in result.history]
    assert evaluations[-1][1]["loss"] == result.history[-1]["loss"]
    assert end == "finish" and run.summary["test_accuracy"] == result.test_accuracy


def test_a_run_is_kept_in_the_files_of_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow: Any = importlib.import_module("mlflow")
    mlflow.set_tracking_uri(tmp_path.as_uri())
    callback = asyncdni.Mlflow(experiment_name="tiny", run_name="first")
    result = asyncdni.train(TINY, data=arrays(), callbacks=[callback])
    (kept,) = mlflow.search_runs(experiment_names=["tiny"], output_format="list")
    assert kept.info.status == "FINISHED" and kept.info.run_name == "first"
    assert kept.data.params["run.epochs"] == "3"
    assert kept.data.metrics["test_accuracy"] == result.test_accuracy
    losses = mlflow.MlflowClient().get_metric_history(kept.info.run_id, "loss")
    assert [(one.step, one.value) for one in losses] == [
        (entry["samples"], entry["loss"]) for entry in result.history
    ]


@pytest.mark.parametrize("tracker", [asyncdni.Mlflow, asyncdni.Wandb])
def test_a_tracker_that_is_not_installed_is_named(
    tracker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = tracker.__name__.lower()
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"pip install 'asyncdni\[{name}\]'"):
        tracker()
