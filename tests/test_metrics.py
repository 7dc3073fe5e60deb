"""Metrics of the test set beside loss and accuracy: built-in ones, and the user's own."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from each import each
from test_training import ONE, TINY, arrays

import asyncdni
from asyncdni.cli import evaluate as command
from asyncdni.errors import ConfigError, DataWarning
from asyncdni.nn.metrics import Average, make_metrics, metric_names

OUTPUTS = np.array([[3, 2, 1, 0], [0, 1, 1, 3], [0, 0, 0, 0]], np.float32)
TARGETS = np.array([1, 1, 2])
NATS = float(np.mean(np.log(np.exp(OUTPUTS).sum(axis=1)) - OUTPUTS[range(3), TARGETS]))


def values(*texts: str, outputs: Any = OUTPUTS, targets: Any = TARGETS) -> list[float | None]:
    return [m.average(outputs, targets).value for m in make_metrics(texts, classes=4)]


def test_a_class_is_among_the_top_k_where_fewer_than_k_outputs_come_before_it() -> None:
    assert values("top1", "top2", "top3") == pytest.approx([0, 2 / 3, 1])


def test_perplexity_and_bits_are_those_of_the_mean_cross_entropy() -> None:
    assert values("perplexity", "bits") == pytest.approx([np.exp(NATS), NATS / np.log(2)])
    (whole,) = make_metrics(["perplexity"], classes=4)
    parts = whole.average(OUTPUTS[:1], TARGETS[:1])
    parts.add(whole.average(OUTPUTS[1:], TARGETS[1:]))
    assert parts.value == pytest.approx(np.exp(NATS)), "not the mean of two perplexities"
    assert values("perplexity", outputs=OUTPUTS * 1e4) == [None], "too large for a float"
    assert Average(float).value is None


@each(
    "texts, words",
    [
        (["top5"], "top5 of 4 classes is always 1; expected at most top3"),
        (["f1"], "there is no metric 'f1'; expected perplexity, bits, top2"),
        (["loss"], "loss is always reported; leave 'loss' out"),
        (["bits", "mine:bits"], "'mine:bits' is the second metric with the name bits"),
        (["a:b c"], "'a:b c' has no name of letters, digits and _"),
        (["mine:f1"], "imports it only if it is started with --allow-import"),
    ],
)
def test_what_is_no_metric_is_refused(texts: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_metrics(texts, classes=4)


def test_built_in_metrics_are_of_classes() -> None:
    with pytest.raises(ConfigError, match="top2 needs targets that are classes"):
        make_metrics(["top2"], classes=0)


def test_names_come_from_the_function_also_where_it_was_handed_over() -> None:
    assert metric_names(["top5", "mine.own:Scores.f1", "given:metric mae-12"]) == (
        *("top5", "f1", "mae"),
    )


def first_output(outputs: np.ndarray, targets: np.ndarray) -> float:
    assert outputs.shape == (len(targets), 3)
    return float(outputs[:, 0].mean())


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> asyncdni.Result:
    folder = tmp_path_factory.mktemp("run") / "out"
    own = {"first": first_output, "hits": lambda x, y: (x.argmax(axis=1) == y).mean()}
    return asyncdni.train(TINY, data=arrays(), metrics=own, out=folder, seed=1)


def test_functions_given_as_objects_are_in_history_and_summary(result: asyncdni.Result) -> None:
    assert [set(entry["metrics"]) for entry in result.history] == [{"first", "hits"}] * 3
    assert result.test_metrics == result.history[-1]["metrics"]
    assert result.test_metrics["hits"] == pytest.approx(result.test_accuracy)
    (outputs,) = asyncdni.predict(result, arrays()["x_test"]).values()
    assert result.test_metrics["first"] == pytest.approx(outputs[:, 0].mean(), rel=1e-6)
    assert asyncdni.evaluate(result)["metrics"] == result.test_metrics


def test_evaluate_leaves_out_objects_of_another_program(result: asyncdni.Result) -> None:
    assert result.folder is not None
    named = msgspec.structs.replace(result.experiment.run, metrics=["given:metric f1-0", "top2"])
    other = msgspec.structs.replace(result.experiment, run=named)
    with pytest.warns(DataWarning, match="metric f1 is left out: it was given to train as an obj"):
        found = asyncdni.evaluate(replace(result, experiment=other))
    assert set(found["metrics"]) == {"top2"}


def test_names_are_computed_over_windows_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine_rows.py").write_text("def rows(outputs, targets):\n    return outputs.ndim\n")
    (tmp_path / "text.txt").write_text("abcd" * 100)
    monkeypatch.syspath_prepend(tmp_path)
    tables = {
        "data": {"name": "text", "path": str(tmp_path / "text.txt"), "batch_size": 2, "window": 4},
        "stages": [
            {"layers": [{"lstm": 4}]},
            {"layers": [{"dense": 4}], "loss": "cross_entropy"},
        ],
        "run": {"epochs": 1, "metrics": ["bits", "perplexity", "mine_rows:rows"]},
    }
    out = tmp_path / "run"
    found = asyncdni.train(tables, out=out, allow_import=["mine_rows"])
    loss = found.summary["test_loss"]
    assert found.test_metrics == {
        "bits": pytest.approx(loss / np.log(2), rel=1e-5),
        "perplexity": pytest.approx(np.exp(loss), rel=1e-5),
        "rows": 2,
    }
    assert json.loads((out / "summary.json").read_text())["test_metrics"] == found.test_metrics
    _evaluate(out, "--allow-import", "mine_rows")
    assert ", bits " in capsys.readouterr().out


def _evaluate(folder: Path, *words: str) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(folder), *words]))


@each(
    "function, words",
    [
        (lambda x, y: x, r"metric f1 returned shape \(16, 3\) for outputs float32 \(16, 3\)"),
        (
            lambda x, y: x.nothing,
            r"metric f1 failed on outputs float32 \(16, 3\) and targets int64 \(16,\): Attribute",
        ),
    ],
)
def test_a_function_that_fails_ends_the_run_and_is_named(function: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        asyncdni.train(ONE, data=arrays(), metrics={"f1": function})


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(ConfigError, match="metrics: f1 is a str, expected a function"):
        asyncdni.train(TINY, data=arrays(), metrics={"f1": "mine:f1"})  # type: ignore[dict-item]
