"""`[data] validation`: which samples are held out of training, and what is said of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncdni import config, experiment
from asyncdni import data as datasets
from asyncdni.data.base import Dataset
from asyncdni.data.derived import described, hold_out
from asyncdni.data.meta import Meta
from asyncdni.errors import ConfigError
from asyncdni.evaluation import evaluate
from asyncdni.launch.train import design_of, train
from asyncdni.plan.build import make_design

ROOT = Path(__file__).parents[1]


def numbered(samples: int = 20) -> Dataset:
    """A data set whose sample i holds the number i, in x and in y; test samples hold -1."""
    x = np.arange(samples, dtype=np.float32)[:, None]
    return Dataset("d", x, np.arange(samples), x[:3] * 0 - 1, np.zeros(3, int), classes=samples)


def saved(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def every_set(folder: Path) -> list[config.Data]:
    """One of each kind that needs no download, with 3 samples held out."""
    x, y = np.arange(20.0)[:, None], np.arange(20) % 3
    path = saved(folder / "d.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    return [
        config.Digits(validation=3),
        config.Addition(validation=3),
        config.Npz(path=path, validation=3),
    ]


def test_held_out_and_kept_samples_are_the_training_set_in_stored_order() -> None:
    parts = hold_out(numbered(), 6)
    assert len(parts.y_train) == 14 and len(parts.y_test) == 6
    assert sorted([*parts.y_train, *parts.y_test]) == list(range(20))
    for x, y in ((parts.x_train, parts.y_train), (parts.x_test, parts.y_test)):
        assert (x[:, 0] == y).all() and (np.diff(y) > 0).all()
    assert parts.classes == 20 and parts.source == "d"


def test_held_out_samples_are_drawn_from_all_over_the_training_set() -> None:
    """So that a set that is sorted by class loses some of each."""
    held = hold_out(numbered(2_000), 200).y_test
    per_quarter = np.bincount(held // 500, minlength=4)
    assert (per_quarter > 25).all() and per_quarter.sum() == 200


def test_a_larger_part_holds_the_smaller_one() -> None:
    small, large = (set(hold_out(numbered(), count).y_test) for count in (4, 9))
    assert small < large


def test_nothing_held_out_changes_nothing() -> None:
    whole = numbered()
    assert hold_out(whole, 0) is whole
    assert described(whole.meta, 0) == whole.meta


def test_every_run_holds_out_the_same_samples_whatever_its_seed() -> None:
    first, second = (datasets.load(config.Digits(validation=500), seed) for seed in (0, 1))
    assert (first.x_test == second.x_test).all() and (first.y_test == second.y_test).all()
    assert (first.x_train == second.x_train).all()


def test_no_test_sample_is_left_where_samples_are_held_out() -> None:
    assert (hold_out(numbered(), 5).x_test >= 0).all()


def test_every_data_set_is_described_as_it_is_loaded(tmp_path: Path) -> None:
    for data in every_set(tmp_path):
        meta, loaded = datasets.describe(data), datasets.load(data, seed=1)
        assert meta == loaded.meta, data
        whole = datasets.describe(type(data)(**{**fields(data), "validation": 0}))
        assert meta.train_samples == whole.train_samples - 3 and meta.test_samples == 3
        assert meta.outputs == whole.outputs and meta.input_shape == whole.input_shape


def fields(data: config.Data) -> dict[str, Any]:
    return {name: getattr(data, name) for name in data.__struct_fields__}


def test_classes_that_only_the_test_set_has_still_count(tmp_path: Path) -> None:
    """Options are chosen with the very network that is tested later."""
    x = np.zeros((8, 1))
    path = saved(
        tmp_path / "d.npz", x_train=x, y_train=np.arange(8) % 2, x_test=x[:1], y_test=np.array([5])
    )
    assert datasets.describe(config.Npz(path=path, validation=2)).outputs == 6
    assert datasets.load(config.Npz(path=path, validation=2), seed=0).meta.outputs == 6


@pytest.mark.parametrize("count", [100, 101])
def test_a_part_that_leaves_nothing_to_train_on_is_refused(count: int) -> None:
    data = config.Addition(examples=100, validation=count)
    words = rf"data\.validation: {count} leaves nothing to train on; expected less than 100"
    with pytest.raises(ConfigError, match=words):
        datasets.describe(data)
    with pytest.raises(ConfigError, match=words):
        datasets.load(data, seed=0)
    assert datasets.describe(config.Addition(examples=100, validation=99)).train_samples == 1


def test_a_negative_part_is_refused_by_its_place() -> None:
    with pytest.raises(ConfigError, match=r"data\.validation: .*-1"):
        experiment.load(ROOT / "launch" / "digits.toml", ["data.validation=-1"])


def test_mnist_is_split_as_studies_split_it_without_touching_a_file() -> None:
    chosen = experiment.load(
        ROOT / "launch" / "mnist.toml", ["data.validation=5000", "data.path=nowhere"]
    )
    design = design_of(chosen)
    pixels = datasets.Inputs("uint8", 0, 255)
    assert design.meta == Meta((784,), "classes", 10, 55_000, 5_000, inputs=pixels)
    assert design.plan.batches_per_epoch == -(-55_000 // 256)
    assert design.plan.test_batches == -(-5_000 // 256)


def test_mnist_loses_some_of_each_class() -> None:
    """Needs the full MNIST in $ASYNCDNI_DATA."""
    if not os.environ.get("ASYNCDNI_DATA"):
        pytest.skip("ASYNCDNI_DATA is not set: no MNIST to split")
    parts = datasets.load(config.Mnist(validation=5_000), seed=0)
    assert len(parts.x_train) == 55_000 and parts.x_test.shape == (5_000, 784)
    assert np.bincount(parts.y_test).min() > 350


def test_a_batch_of_one_left_over_by_the_split_is_seen_before_the_run() -> None:
    tables = experiment.tables(experiment.load(ROOT / "launch" / "digits.toml"))
    tables["data"]["batch_size"], tables["data"]["validation"] = 100, 99
    chosen = experiment.parse(tables)
    with pytest.raises(ConfigError, match="9901 training samples"):
        make_design(chosen, datasets.describe(chosen.data))


def test_a_run_trains_on_the_rest_and_is_scored_on_what_was_held_out() -> None:
    tables = {
        "data": {"name": "addition", "examples": 90, "test_examples": 7, "validation": 40},
        "stages": [{"layers": [{"dense": 8}], "loss": "sigmoid_cross_entropy"}],
        "schedule": {"name": "locked"},
        "run": {"epochs": 2},
    }
    result = train(tables)
    assert result.summary["train_samples"] == 2 * 50
    assert result.meta.test_samples == 40
    again = evaluate(result)
    assert again["samples"] == 40
    assert (
        again["accuracy"] == result.test_accuracy and again["loss"] == result.summary["test_loss"]
    )
