"""The Python interface: experiments in, weights, history and summary out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncdni
from asyncdni.metrics.recorder import STAGE_FIELDS

STAGES = [
    asyncdni.Stage(name="hidden", layers=[{"dense": 8}, "batch_norm", "relu"]),
    asyncdni.Stage(name="top", layers=[{"dense": 3}], loss="cross_entropy"),
]
TINY = asyncdni.Experiment(
    data=asyncdni.Npz(path="replaced", batch_size=16),
    stages=STAGES,
    run=asyncdni.Run(epochs=3),
)


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
    return asyncdni.train(TINY, data=arrays(), seed=4, set=["run.epochs=20"], out=folder)


def test_arrays_can_be_trained_on_as_they_are(result: asyncdni.Result) -> None:
    assert result.test_accuracy is not None and result.test_accuracy > 0.9
    assert [entry["samples"] for entry in result.history] == [128 * n for n in range(1, 21)]
    assert result.experiment.run.seed == 4


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


def test_the_summary_has_all_fields_and_null_where_they_have_no_meaning(
    result: asyncdni.Result,
) -> None:
    summary = result.summary
    for name in ("schedule", "seed", "workers", "train_samples", "wall_s", "samples_per_s"):
        assert summary[name] is not None
    assert summary["train_samples"] == 20 * 128
    hidden, top = summary["stages"]
    assert set(hidden) == {"name", *STAGE_FIELDS}
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
    two = asyncdni.train(TINY, data=arrays(), schedule="locked", set=["run.epochs=0"])
    assert one.summary["train_samples"] == 0 and one.summary["samples_per_s"] is None
    assert all(np.array_equal(one.weights[name], two.weights[name]) for name in one.weights)
    assert not one.weights["hidden.0.bias"].any() and one.weights["hidden.0.weight"].any()


def test_targets_outside_the_range_of_a_loss_are_refused() -> None:
    values: dict[str, Any] = {
        "stages": [{"layers": [{"dense": 2}], "loss": "sigmoid_cross_entropy"}],
        "data": {"name": "npz", "path": "replaced", "batch_size": 16},
    }
    targets = np.full((160, 2), 5.0)
    with pytest.raises(asyncdni.AsyncDNIError, match="5"):
        asyncdni.train(values, data=arrays(targets))


def test_a_folder_whose_run_failed_before_it_saved_anything_is_used_again(tmp_path: Path) -> None:
    bad = arrays()
    bad["x_train"][7, 2] = np.nan
    with pytest.raises(asyncdni.AsyncDNIError, match="x_train"):
        asyncdni.train(TINY, data=bad, out=tmp_path / "run")
    assert (tmp_path / "run" / "experiment.toml").exists()
    asyncdni.train(TINY, data=arrays(), out=tmp_path / "run")
    with pytest.raises(asyncdni.AsyncDNIError, match="not empty"):
        asyncdni.train(TINY, data=arrays(), out=tmp_path / "run")


def test_the_public_names_are_what_the_package_says() -> None:
    assert asyncdni.__all__ == sorted(asyncdni.__all__)
    assert all(getattr(asyncdni, name) is not None for name in asyncdni.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = asyncdni.nothing
