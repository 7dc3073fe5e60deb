"""The Python interface: experiments in, weights, history and summary out."""

from __future__ import annotations

import atexit
import dataclasses
import io
import pydoc
import shutil
import signal
import sys
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from each import each
from threadpoolctl import threadpool_limits

import asyncdni
from asyncdni import evaluation
from asyncdni.errors import CheckpointError, ConfigError, DataError, DataWarning, Interrupted
from asyncdni.launch.train import _awaited_at_exit
from asyncdni.plan.build import Design
from asyncdni.report.records import DISTRIBUTIONS, STAGE_FIELDS, Recorder
from asyncdni.report.result import draw_run
from asyncdni.store.checkpoint import latest

STAGES = [
    asyncdni.Stage(name="hidden", layers=[{"dense": 8}, "batch_norm", "relu"]),
    asyncdni.Stage(name="top", layers=[{"dense": 3}], loss="cross_entropy"),
]
TINY = asyncdni.Experiment(
    data=asyncdni.Npz(path="replaced", batch_size=16),
    stages=STAGES,
    run=asyncdni.Run(epochs=3),
)
#: In one process, for what is the same over several: half the start-up.
ONE = msgspec.structs.replace(TINY, run=asyncdni.Run(epochs=3, split=[2]))


def arrays(targets: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Three blobs that a linear map tells apart."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 160)
    x = rng.normal(size=(160, 4)).astype(np.float32) + 4 * np.eye(3, 4, dtype=np.float32)[labels]
    y = labels if targets is None else targets
    return {"x_train": x[:128], "y_train": y[:128], "x_test": x[128:], "y_test": y[128:]}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> asyncdni.Result:
    folder = tmp_path_factory.mktemp("run") / "out"
    return asyncdni.train(
        TINY, data=arrays(), seed=4, set=["run.epochs=20"], out=folder, trace=True
    )


def test_arrays_can_be_trained_on_as_they_are(result: asyncdni.Result) -> None:
    assert result.test_accuracy is not None and result.test_accuracy > 0.9
    assert [entry["samples"] for entry in result.history] == [128 * n for n in range(1, 21)]
    assert result.experiment.run.seed == 4


def test_the_history_tells_how_training_went_since_the_evaluation_before() -> None:
    """One batch an evaluation, at a rate that falls with each step."""
    short = ["schedule.name=locked", "run.evaluate_every=0.125", "run.epochs=1"]
    decay = 'optimizer={ name = "sgd", learning_rate = 0.5, decay = { name = "cosine" } }'
    found = asyncdni.train(ONE, data=arrays(), set=[*short, decay])
    halves = [(1 + np.cos(np.pi * step / 8)) / 2 for step in range(8)]
    rates = [entry["learning_rate"] for entry in found.history]
    assert rates == pytest.approx([0.5 * half for half in halves])
    first, *_, last = found.history
    assert first["samples_per_s"] == pytest.approx(16 / first["train_s"])
    assert first["train_loss"] > last["train_loss"] > 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@each("progress, out, shows", [(True, Terminal, 1), (False, Terminal, 0), (True, io.StringIO, 0)])
def test_progress_is_shown_on_a_terminal_alone(
    progress: bool, out: type[io.StringIO], shows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")  # lines, in place of a picture
    monkeypatch.setattr(sys, "stdout", written := out())
    asyncdni.train(ONE, data=arrays(), set=["run.epochs=1"], progress=progress)
    assert ("epoch 1 of 1, test accuracy" in written.getvalue()) == shows
    assert ("of training, nothing written" in written.getvalue()) == shows


def test_weights_go_by_the_names_and_shapes_of_torch(result: asyncdni.Result) -> None:
    shapes = {name: array.shape for name, array in result.weights.items()}
    assert shapes == {
        "hidden.0.weight": (8, 4),
        "hidden.0.bias": (8,),
        "hidden.1.weight": (8,),
        "hidden.1.bias": (8,),
        "hidden.1.running_mean": (8,),
        "hidden.1.running_var": (8,),
        "top.0.weight": (3, 8),
        "top.0.bias": (3,),
    }


def test_a_run_on_arrays_can_be_evaluated_from_its_folder_later(result: asyncdni.Result) -> None:
    assert result.folder is not None
    again = asyncdni.open_run(result.folder)
    assert asyncdni.evaluate(again)["accuracy"] == result.test_accuracy
    (outputs,) = asyncdni.predict(again, arrays()["x_test"]).values()
    right = outputs.argmax(axis=1) == arrays()["y_test"]
    assert right.mean() == result.test_accuracy


def test_a_folder_that_has_moved_still_finds_its_arrays(
    result: asyncdni.Result, tmp_path: Path
) -> None:
    assert result.folder is not None
    shutil.copytree(result.folder, tmp_path / "moved")
    again = asyncdni.open_run(tmp_path / "moved")
    assert asyncdni.evaluate(again)["accuracy"] == result.test_accuracy


def test_evaluating_on_other_samples_is_warned_of(result: asyncdni.Result, tmp_path: Path) -> None:
    assert result.folder is not None
    shutil.copytree(result.folder, tmp_path / "moved")
    again = asyncdni.open_run(tmp_path / "moved")
    for change, words in (
        (
            {"y_test": arrays()["y_test"][::-1]},
            "other contents in y_test; the result is that",
        ),
        (
            {"y_train": arrays()["y_train"][::-1]},
            "other contents in y_train; the test set is",
        ),
    ):
        np.savez(tmp_path / "moved" / "data.npz", **{**arrays(), **change})
        with pytest.warns(DataWarning, match=words):
            asyncdni.evaluate(again)
    pixels = {name: array.astype(np.uint8) for name, array in arrays().items() if name[0] == "x"}
    np.savez(tmp_path / "moved" / "data.npz", **{**arrays(), **pixels})
    with pytest.raises(DataError, match="x_train is uint8, scaled by 1/255, from"):
        asyncdni.evaluate(again)


def test_inputs_on_another_scale_are_warned_of_or_refused(result: asyncdni.Result) -> None:
    x = arrays()["x_test"]
    with pytest.warns(DataWarning, match="x is floating numbers from .* but the run was trained o"):
        asyncdni.predict(result, x * 100)
    with pytest.raises(DataError, match="x is uint8, scaled by 1/255, from"):
        asyncdni.predict(result, np.abs(x).astype(np.uint8))
    old = dataclasses.replace(result, meta=msgspec.structs.replace(result.meta, inputs=None))
    assert asyncdni.predict(old, x * 100)["top"].shape == (32, 3)


def test_inputs_may_be_whatever_holds_numbers(result: asyncdni.Result) -> None:
    x = arrays()["x_test"]
    expected = asyncdni.predict(result, x)["top"]
    for given in (x.tolist(), x.astype(">f4"), np.asfortranarray(x)):
        assert (asyncdni.predict(result, given)["top"] == expected).all()
    for given, words in ((None, "x is None"), ([[1, 2], [3]], "x is a list that can't be read")):
        with pytest.raises(DataError, match=words):
            asyncdni.predict(result, given)


def test_arrays_that_can_not_be_trained_on_are_refused_by_name(tmp_path: Path) -> None:
    labels = arrays()["y_train"]
    for name, given, words in (
        ("y_test", None, "y_test is None"),
        ("x_train", arrays()["x_train"].astype(object), "x_train holds numbers as Python objects"),
        ("x_train", [[1, 2], [3]], "x_train is a list that can't be read as an array"),
        ("y_train", labels - 1, "y_train .* has label -1 in sample"),
        ("y_train", labels + 0.5, r"y_train .* has label \d.5 in sample 0"),
    ):
        with pytest.raises(DataError, match=f"^data: {words}"):
            asyncdni.train(TINY, data={**arrays(), name: given}, out=tmp_path / "run")
    values = ["stages.top.loss=sigmoid_cross_entropy", "stages.top.layers=[{dense=1}]"]
    with pytest.raises(DataError, match=r"^y_train: .* was given a target of 2 \(sample"):
        asyncdni.train(TINY, data=arrays(), set=values, out=tmp_path / "run")
    for data, words in (([1], "data is a list"), ({**arrays(), "z": 1}, "data has .*'z'")):
        with pytest.raises(ConfigError, match=words):
            asyncdni.train(TINY, data=data, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mean_squared_error_has_no_accuracy() -> None:
    change = ["stages.top.loss=mse", "stages.top.layers=[{dense=1}]", "run.epochs=1"]
    found = asyncdni.train(ONE, data=arrays(), set=change)
    assert found.test_accuracy is None and found.summary["test_loss"] > 0
    assert found.experiment.data.targets == "values"


def test_predicting_needs_no_data_set(result: asyncdni.Result, tmp_path: Path) -> None:
    assert result.folder is not None
    moved = tmp_path / "moved"
    shutil.copytree(result.folder, moved)
    (moved / "data.npz").unlink()
    outputs = asyncdni.predict(asyncdni.open_run(moved), arrays()["x_test"])
    assert outputs["top"].shape == (32, 3)


def test_the_summary_has_all_fields_and_null_where_they_have_no_meaning(
    result: asyncdni.Result,
) -> None:
    summary = result.summary
    for name in ("schedule", "seed", "workers", "train_samples", "wall_s", "samples_per_s"):
        assert summary[name] is not None
    assert summary["train_samples"] == 20 * 128
    hidden, top = summary["stages"]
    further = {"name", "lag_by_link", "bytes_by_link", "lost_updates"}
    assert set(hidden) == {*further, *STAGE_FIELDS, *DISTRIBUTIONS}
    assert hidden["staleness"]["max"] == hidden["staleness_max"]
    assert hidden["updates"] == top["updates"] == 160
    assert hidden["gradient_cosine"] is not None and top["gradient_cosine"] is None
    assert top["generator_s"] == 0 and top["staleness_max"] == 0


def test_the_agreement_with_bootstrapped_targets_has_a_name_of_its_own() -> None:
    found = asyncdni.train(TINY, data=arrays(), set=["schedule.target=bootstrap"])
    hidden = found.summary["stages"][0]
    assert hidden["target_cosine"] is not None and hidden["gradient_cosine"] is None
    assert found.folder is None


def test_no_epochs_leave_the_initial_weights() -> None:
    one = asyncdni.train(TINY, data=arrays(), set=["run.epochs=0"])
    two = asyncdni.train(ONE, data=arrays(), schedule="locked", set=["run.epochs=0"])
    assert one.summary["train_samples"] == 0 and one.summary["samples_per_s"] is None
    assert all(np.array_equal(one.weights[name], two.weights[name]) for name in one.weights)
    assert not one.weights["hidden.0.bias"].any() and one.weights["hidden.0.weight"].any()


FORK = [
    {"name": "root", "layers": [{"dense": 6}, "batch_norm", "relu"]},
    {"name": "left", "inputs": ["root"], "layers": [{"dense": 5}, "tanh"]},
    {"name": "middle", "inputs": ["root"], "layers": [{"dense": 5}, "relu"]},
    {"name": "right", "inputs": ["root", "data"], "layers": [{"dense": 5}, "sigmoid"]},
    {
        "name": "top",
        "inputs": ["left", "middle", "right"],
        "layers": [{"dense": 3}],
        "loss": "cross_entropy",
    },
]


@pytest.mark.long
def test_a_graph_over_processes_gives_the_weights_of_one_process_to_the_last_bit() -> None:
    tables: dict[str, Any] = {
        "data": {"name": "npz", "path": "replaced", "batch_size": 24},  # 128 = 5 x 24 + 8
        "stages": FORK,
        "schedule": {"name": "locked"},
        "run": {"epochs": 4},
    }
    spread = asyncdni.train(tables, data=arrays())
    single = asyncdni.train(tables, data=arrays(), set=["run.split=[5]"])
    fused = asyncdni.train(tables, data=arrays(), set=["run.split=[1, 4]"])
    initial = asyncdni.train(tables, data=arrays(), set=["run.epochs=0"])
    assert [r.summary["workers"] for r in (spread, single, fused)] == [5, 1, 2]
    for name, weights in single.weights.items():
        assert np.array_equal(spread.weights[name], weights), name
        assert np.array_equal(fused.weights[name], weights), name
    moved = single.weights["root.0.weight"] != initial.weights["root.0.weight"]
    assert moved.all()


def test_targets_outside_the_range_of_a_loss_are_refused() -> None:
    values: dict[str, Any] = {
        "stages": [{"layers": [{"dense": 2}], "loss": "sigmoid_cross_entropy"}],
        "data": {"name": "npz", "path": "replaced", "batch_size": 16},
    }
    targets = np.full((160, 2), 5.0)
    with pytest.raises(asyncdni.AsyncDNIError, match="5"):
        asyncdni.train(values, data=arrays(targets))


def test_a_run_that_fails_before_it_trains_leaves_no_folder_and_may_be_tried_again(
    tmp_path: Path,
) -> None:
    broken = [raising(DataError("no more"), "joined")]
    with pytest.raises(DataError, match="no more"):
        asyncdni.train(ONE, data=arrays(), out=tmp_path / "run", observers=broken)
    assert not (tmp_path / "run").exists()
    asyncdni.train(ONE, data=arrays(), out=tmp_path / "run")
    with pytest.raises(asyncdni.AsyncDNIError, match="not empty"):
        asyncdni.train(ONE, data=arrays(), out=tmp_path / "run")


def test_a_run_that_fails_early_empties_a_folder_that_was_there(tmp_path: Path) -> None:
    broken = [raising(DataError("no more"), "joined")]
    with pytest.raises(DataError, match="no more"):
        asyncdni.train(ONE, data=arrays(), out=tmp_path, observers=broken)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["experiment.toml", "metrics.jsonl"])
def test_a_folder_with_a_file_of_the_users_own_is_refused_and_kept(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("# precious")
    with pytest.raises(ConfigError, match="not empty"):
        asyncdni.train(TINY, data=arrays(), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "# precious"


def raising(
    error: Exception, at: str
) -> Callable[[Design, Recorder, str, Mapping[str, Any]], None]:
    """An observer that fails at the first record of one kind."""

    def observe(design: Design, recorder: Recorder, kind: str, values: Mapping[str, Any]) -> None:
        if kind == at:
            raise error

    return observe


def test_what_failed_with_a_traceback_keeps_its_logs(tmp_path: Path) -> None:
    error = ValueError("a bug")
    error.add_note("Traceback …")
    with pytest.raises(ValueError, match="a bug"):
        asyncdni.train(
            TINY, data=arrays(), out=tmp_path / "run", observers=[raising(error, "joined")]
        )
    assert {path.name for path in (tmp_path / "run" / "logs").iterdir()} == {
        "hidden.log",
        "top.log",
    }


def test_a_run_that_ends_while_it_trains_keeps_its_folder_and_its_arrays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="halfway"):
        asyncdni.train(
            ONE,
            data=arrays(),
            out=tmp_path / "run",
            observers=[raising(ValueError("halfway"), "evaluation")],
        )
    assert 'path = "data.npz"' in (tmp_path / "run" / "experiment.toml").read_text()
    kept = asyncdni.load(tmp_path / "run" / "experiment.toml").data
    assert isinstance(kept, asyncdni.Npz)
    assert Path(kept.path) == tmp_path / "run" / "data.npz"
    with np.load(kept.path) as found:
        assert np.array_equal(found["x_train"], arrays()["x_train"])


# --- stops ---------------------------------------------------------------------------------------


def stopping(
    at: str, stop: Callable[[], object]
) -> Callable[[Design, Recorder, str, Mapping[str, Any]], None]:
    """An observer that calls `stop` at the first record of one kind."""
    seen: list[str] = []

    def observe(design: Design, recorder: Recorder, kind: str, values: Mapping[str, Any]) -> None:
        if kind == at and not seen:
            seen.append(kind)
            stop()

    return observe


def train_endlessly(out: Path | None, observer: Any) -> None:
    endless = ["run.epochs=1000000", "run.evaluate_every=10"]
    asyncdni.train(ONE, data=arrays(), set=endless, out=out, observers=[observer])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_script_gets_a_keyboard_interrupt_that_says_where_all_is_kept(
    tmp_path: Path, number: int
) -> None:
    """So that `except Exception` around many runs does not go on with the next one."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match=r"all is kept in .*run: `asyncdni train") as caught:
        train_endlessly(out, stopping("evaluation", lambda: signal.raise_signal(number)))
    assert type(caught.value) is KeyboardInterrupt  # of others Python makes an exit code of 1
    stop = caught.value.__cause__
    assert isinstance(stop, Interrupted)
    assert (stop.folder, stop.exit_code, stop.result) == (out, 128 + number, None)
    manifest, _ = latest(out / "checkpoints")
    assert manifest is not None and manifest.start >= 80


def test_without_a_folder_the_interrupt_carries_what_was_learned() -> None:
    interrupt = stopping("evaluation", lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match=r"nothing is kept.*result") as caught:
        train_endlessly(None, interrupt)
    stop = caught.value.__cause__
    assert isinstance(stop, Interrupted) and stop.folder is None
    assert isinstance(stop.result, asyncdni.Result)
    assert stop.result.history[-1]["accuracy"] == stop.result.test_accuracy
    assert stop.result.weights["top.0.weight"].shape == (3, 8)


@pytest.mark.parametrize(
    "error", [ValueError("mine"), SystemExit(7)], ids=lambda e: type(e).__name__
)
def test_an_observer_that_raises_loses_nothing_of_what_was_learned(
    tmp_path: Path, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        train_endlessly(tmp_path / "run", stopping("evaluation", fail))
    assert caught.value is error
    (note,) = error.__notes__
    assert "all is kept" in note
    assert latest(tmp_path / "run" / "checkpoints")[0] is not None
    assert (note in capsys.readouterr().err) == isinstance(error, SystemExit)


def test_a_program_that_ends_waits_for_the_run_of_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Callable[[], object]] = []
    monkeypatch.setattr(atexit, "register", asked.append)
    monkeypatch.setattr(atexit, "unregister", asked.remove)
    during = []

    def run() -> None:
        with _awaited_at_exit():
            during.extend(asked)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    (wait,) = during
    wait()  # which is over by now
    assert asked == []
    with _awaited_at_exit():  # the main thread ends with the program anyway
        assert asked == []


def test_weights_that_are_not_there_in_the_end_are_named(tmp_path: Path) -> None:
    path = tmp_path / "run" / "final" / "top.safetensors"

    def lose(design: Design, recorder: Recorder, kind: str, values: Mapping[str, Any]) -> None:
        if kind == "saved" and values["tag"] == "final":
            path.unlink()

    with pytest.raises(CheckpointError, match=f"no weights of stage top at {path}") as caught:
        asyncdni.train(ONE, data=arrays(), out=tmp_path / "run", observers=[lose])
    assert "--weights best" in str(caught.value)


def test_a_result_in_memory_predicts_and_says_that_its_test_set_is_gone() -> None:
    found = asyncdni.train(ONE, data=arrays(), set=["run.epochs=1"])
    (outputs,) = asyncdni.predict(found, arrays()["x_test"]).values()
    assert (outputs.argmax(axis=1) == arrays()["y_test"]).mean() == found.test_accuracy
    with pytest.raises(DataError, match=r"is gone: nothing was kept on disk; train with out=DIR"):
        asyncdni.evaluate(found)


def test_a_network_is_used_with_the_threads_of_its_run(
    result: asyncdni.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []

    def limited(threads: int) -> threadpool_limits:
        limits.append(threads)
        return threadpool_limits(threads)

    monkeypatch.setattr(evaluation, "threadpool_limits", limited)
    evaluated = asyncdni.evaluate(result)
    assert evaluated["loss"] == result.summary["test_loss"]
    asyncdni.predict(result, arrays()["x_test"])
    assert limits == [result.experiment.run.threads] * 2


def test_a_run_is_opened_by_its_path_as_text(result: asyncdni.Result) -> None:
    again = asyncdni.open_run(str(result.folder))
    assert (again.folder, again.meta) == (result.folder, result.meta)


def test_workers_of_many_stages_have_names_that_files_can_have(tmp_path: Path) -> None:
    deep = [asyncdni.Stage(name=f"identity_number_{n}", layers=["tanh"]) for n in range(31)]
    many = asyncdni.Experiment(
        data=TINY.data, stages=[*deep, STAGES[1]], run=asyncdni.Run(epochs=1, split=[31, 1])
    )
    found = asyncdni.train(many, data=arrays(), out=tmp_path / "run", trace=True)
    names = [stage["name"] for stage in found.summary["stages"]]
    assert names == ["identity_number_0..identity_number_30", "top"]
    assert (tmp_path / "run" / "logs" / f"{names[0]}.log").exists()


def test_the_public_names_are_what_the_package_says() -> None:
    assert asyncdni.__all__ == sorted(asyncdni.__all__)
    assert {"train", "Experiment", "AsyncDNIError", "Result", *asyncdni.__all__} <= {*dir(asyncdni)}
    assert all(getattr(asyncdni, name) is not None for name in dir(asyncdni))
    assert len(pydoc.render_doc(asyncdni).splitlines()) < 200
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = asyncdni.nothing


def test_a_result_shows_its_curves_and_its_table(result: asyncdni.Result) -> None:
    """`<script>` is no markup, whoever has put it into the summary."""
    summary = {**result.summary, "schedule": "<script>"}
    named = dataclasses.replace(result, summary=summary)
    page = ElementTree.fromstring(named._repr_html_().replace("<br>", ""))
    assert page.find("p/b").text == "<script>"  # type: ignore[union-attr]
    stages = [row[0].text for row in page.findall("table")[1].find("tbody")]  # type: ignore[union-attr]
    assert stages == [stage["name"] for stage in result.summary["stages"]]
    pytest.importorskip("matplotlib")
    loss, accuracy = draw_run(result).axes
    drawn = [y for _, y in loss.lines[0].get_xydata()]
    assert drawn == [entry["loss"] for entry in result.history]
    assert accuracy.get_ylabel() == "accuracy of the test set"
    assert ElementTree.fromstring(result.plot()._repr_svg_()).tag.endswith("svg")


def test_a_result_draws_the_timeline_of_a_traced_run(
    result: asyncdni.Result, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"train\(\.\.\., out=DIR, trace=True\)"):
        dataclasses.replace(result, folder=None).timeline()
    drawing = result.timeline(ms=1000, at=0)
    assert "F0: " in drawing._repr_svg_()
    drawing.save(tmp_path / "timeline.svg")
    assert (tmp_path / "timeline.svg").read_text() == drawing._repr_svg_()
    with pytest.raises(ConfigError, match=r"ends in \.svg or \.png"):
        drawing.save(tmp_path / "timeline.txt")
