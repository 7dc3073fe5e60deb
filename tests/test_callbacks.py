"""Callbacks and early stopping, and runs that are shorter than their epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from each import each
from test_training import ONE, TINY, arrays

import asyncdni
from asyncdni.errors import ConfigError
from asyncdni.launch.callbacks import EarlyStopping, Training

LOCKED = ["schedule.name=locked"]


class Notes:
    """Notes what it is called with, and may stop the run at an evaluation."""

    def __init__(self, stop_at: int = 0) -> None:
        self.calls: list[tuple[str, Training]] = []
        self.stop_at = stop_at

    def on_start(self, run: Training) -> None:
        self.calls.append(("start", run))

    def on_evaluation(self, run: Training) -> None:
        self.calls.append(("evaluation", run))
        if len(run.history) == self.stop_at:
            run.stop("good enough")

    def on_checkpoint(self, run: Training) -> None:
        self.calls.append(("checkpoint", run))

    def on_end(self, run: Training) -> None:
        self.calls.append(("end", run))


def train(callback: Any, out: Path | None = None, **options: Any) -> asyncdni.Result:
    set_ = [*LOCKED, *options.pop("set", [])]
    return asyncdni.train(ONE, data=arrays(), out=out, set=set_, callbacks=[callback], **options)


def test_callbacks_see_the_run_and_may_end_it_with_the_weights_they_have_seen(
    tmp_path: Path,
) -> None:
    notes = Notes(stop_at=2)
    result = train(notes, tmp_path / "run", set=["run.epochs=9", "checkpoint.every=1"])
    names = [name for name, _ in notes.calls]
    assert names == ["start", "evaluation", "checkpoint", "evaluation", "checkpoint", "end"]
    assert [len(run.history) for _, run in notes.calls] == [0, 1, 1, 2, 2, 2]
    checkpoint = notes.calls[2][1].checkpoint
    assert checkpoint is not None and (checkpoint / "hidden.safetensors").is_file()
    summary = notes.calls[-1][1].summary
    assert summary is not None
    assert summary["ended_early"] == result.summary["ended_early"] == "good enough"
    assert [entry["samples"] for entry in result.history] == [128, 256]
    assert (tmp_path / "run" / "final" / "top.safetensors").is_file()
    shorter = asyncdni.train(ONE, data=arrays(), set=[*LOCKED, "run.epochs=2"])
    for name, array in shorter.weights.items():
        np.testing.assert_array_equal(result.weights[name], array, err_msg=name)
    assert asyncdni.train(resume=tmp_path / "run").history == result.history  # it is complete


def test_an_exception_stops_the_run_with_its_weights_saved(tmp_path: Path) -> None:
    class Broken:
        def on_evaluation(self, run: Training) -> None:
            raise ValueError("a slip")

    with pytest.raises(ValueError, match="a slip") as caught:
        train(Broken(), tmp_path / "run", set=["run.epochs=10000"])
    assert "all is kept in" in caught.value.__notes__[0]
    assert (tmp_path / "run" / "final" / "top.safetensors").is_file()


@each("callback, words", [(object(), "no method"), (type("Late", (), {"on_stop": 1})(), "on_stop")])
def test_an_object_that_would_never_be_called_is_refused(callback: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        train(callback)


# --- early stopping ------------------------------------------------------------------------------


def reasons(accuracies: list[float | None], losses: list[float], **options: Any) -> list[str]:
    """What is said at each evaluation in turn; "" where the run goes on."""
    told, found = EarlyStopping(**options), []
    for count in range(1, len(losses) + 1):
        why: list[str] = []
        history = [
            {"accuracy": accuracy, "loss": loss}
            for accuracy, loss in zip(accuracies[:count], losses, strict=False)
        ]
        told.on_evaluation(Training(TINY, None, history, stop=why.append))
        found.append("".join(why))
    return found


def test_a_run_stops_after_so_many_evaluations_without_a_better_one() -> None:
    accuracies = [0.5, 0.6, 0.6, 0.55, 0.7, 0.7, 0.7]
    assert reasons(accuracies, [1.0] * 7, patience=2) == [
        *["", "", ""],
        "accuracy has not improved in 2 evaluations",
        *["", ""],
        "accuracy has not improved in 2 evaluations",
    ]


def test_losses_are_better_if_they_are_smaller_by_more_than_the_least_difference() -> None:
    losses = [1.0, 0.9, 0.899, 0.7]
    none: list[float | None] = [None] * 4
    assert reasons(none, losses, patience=1, min_delta=0.01) == [
        *["", ""],
        "loss has not improved in 1 evaluation",
        "",
    ]


def test_metrics_of_the_run_may_decide() -> None:
    """Of bits smaller ones are better, of one's own metrics larger ones."""
    for metric, values, stops in (("bits", [3.0, 2.0, 1.0], False), ("f1", [3.0, 2.0, 1.0], True)):
        why: list[str] = []
        history = [{"accuracy": 0.5, "loss": 1.0, "metrics": {metric: one}} for one in values]
        training = Training(TINY, None, history, stop=why.append)
        EarlyStopping(metric, patience=2).on_evaluation(training)
        assert bool(why) is stops, metric


def test_a_metric_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no 'top5' in the history; known: loss"):
        reasons([None], [1.0], metric="top5")


def test_a_file_may_ask_for_it() -> None:
    stopping = {"metric": "loss", "patience": 1, "min_delta": 1e9}
    chosen = msgspec.structs.replace(
        TINY, run=asyncdni.Run(epochs=50, early_stopping=asyncdni.config.EarlyStopping(**stopping))
    )
    result = asyncdni.train(chosen, data=arrays())
    assert len(result.history) == 2
    assert result.summary["ended_early"] == "loss has not improved in 1 evaluation"


@pytest.mark.long
def test_evaluations_behind_the_stream_end_a_run_early_and_have_all_values() -> None:
    stopping = asyncdni.config.EarlyStopping(metric="loss", patience=1, min_delta=1e9)
    run = asyncdni.Run(epochs=500, early_stopping=stopping, evaluate="behind", metrics=["top2"])
    result = asyncdni.train(msgspec.structs.replace(TINY, run=run), data=arrays())
    assert result.summary["ended_early"] == "loss has not improved in 1 evaluation"
    first = result.history[0]
    assert first["behind"] and first["metrics"]["top2"] >= first["accuracy"]
    assert first["train_loss"] > 0 and result.history[-1]["batches"] < 500


def test_a_run_whose_last_evaluation_is_asked_to_end_it_has_not_ended_early() -> None:
    result = train(Notes(stop_at=3))
    assert len(result.history) == 3
    assert result.summary["ended_early"] is None


def test_a_metric_that_the_run_does_not_have_is_refused_before_it() -> None:
    with pytest.raises(ConfigError, match=r"'f1' is not measured; expected one of accuracy, loss"):
        asyncdni.train(TINY, data=arrays(), set=['run.early_stopping.metric="f1"'])


# --- steps ---------------------------------------------------------------------------------------


def test_a_run_may_end_within_an_epoch() -> None:
    """A batch has 16 samples, an epoch 8 batches."""
    result = asyncdni.train(TINY, data=arrays(), set=["run.max_steps=11"])
    assert [entry["samples"] for entry in result.history] == [128, 176]
    assert {stage["updates"] for stage in result.summary["stages"]} == {11}


def test_the_learning_rate_decays_to_the_last_step() -> None:
    cosine = [*LOCKED, 'optimizer.decay={ name = "cosine" }']
    short = asyncdni.train(ONE, data=arrays(), set=[*cosine, "run.epochs=3", "run.max_steps=8"])
    one = asyncdni.train(ONE, data=arrays(), set=[*cosine, "run.epochs=1"])
    for name, array in one.weights.items():
        np.testing.assert_array_equal(short.weights[name], array, err_msg=name)


def test_a_run_goes_on_with_more_steps(tmp_path: Path) -> None:
    asyncdni.train(TINY, data=arrays(), out=tmp_path, set=["run.max_steps=5"])
    result = asyncdni.train(resume=tmp_path, set=["run.max_steps=12"])
    assert [entry["samples"] for entry in result.history] == [80, 128, 192]
