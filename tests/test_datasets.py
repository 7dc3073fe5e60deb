"""Data sets in memory: batches, order, and what is refused with which words."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from each import each

from asyncdni import config
from asyncdni import data as datasets
from asyncdni.data import digits, mnist
from asyncdni.data.base import Dataset, Source
from asyncdni.errors import DataError
from asyncdni.schedules.base import Op, OpKind


def numbered(samples: int = 10, test: int = 3) -> Dataset:
    """A data set whose sample i holds the number i, in x and in y."""
    x = np.arange(samples, dtype=np.float32)[:, None] * np.ones((1, 2), dtype=np.float32)
    return Dataset("numbered", x, np.arange(samples), x[:test], np.arange(test), classes=samples)


def epoch_of(dataset: Dataset, epoch: int, batch_size: int, seed: int) -> list[int]:
    batches = range(dataset.batches_per_epoch(batch_size))
    read = [dataset.batch(epoch, index, batch_size, seed, np.float32) for index in batches]
    assert all((x[:, 0] == y).all() for x, y in read), "x and y of a sample have come apart"
    return [int(label) for _, y in read for label in y]


# --- batches -------------------------------------------------------------------------------------


def test_an_epoch_holds_every_sample_once() -> None:
    assert sorted(epoch_of(numbered(), 0, 4, seed=7)) == list(range(10))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    order = epoch_of(numbered(50), 2, 8, seed=7)
    assert order == epoch_of(numbered(50), 2, 8, seed=7)
    assert order == epoch_of(numbered(50), 2, 50, seed=7), "the batch size changed the order"
    assert order != epoch_of(numbered(50), 3, 8, seed=7)
    assert order != epoch_of(numbered(50), 2, 8, seed=8)
    assert order != list(range(50))


def test_the_order_that_is_told_is_the_one_that_is_read() -> None:
    dataset = numbered(50)
    order = dataset.order(7, 2)
    assert order.tolist() == epoch_of(dataset, 2, 8, seed=7)
    with pytest.raises(ValueError, match="read-only"):
        order[0] = 1


def test_batches_can_be_read_in_any_order_and_again() -> None:
    dataset = numbered(50)
    first = dataset.batch(0, 1, 8, 7, np.float32)
    dataset.batch(1, 0, 8, 7, np.float32)
    again = dataset.batch(0, 1, 8, 7, np.float32)
    assert (first[0] == again[0]).all() and (first[1] == again[1]).all()


def test_the_last_batch_holds_what_is_left() -> None:
    dataset = numbered(10, test=3)
    assert dataset.batches_per_epoch(4) == 3
    assert len(dataset.batch(0, 2, 4, 0, np.float32)[0]) == 2
    assert dataset.test_batches(2) == 2
    assert dataset.test_batch(1, 2, np.float32)[1].tolist() == [2]
    assert dataset.batches_per_epoch(5) == 2 and dataset.batches_per_epoch(11) == 1


def test_test_batches_come_in_stored_order() -> None:
    dataset = numbered(10, test=5)
    labels = [int(y) for i in range(3) for y in dataset.test_batch(i, 2, np.float32)[1]]
    assert labels == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_outside_the_epoch_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match=f"batch {index} of 4 samples"):
        numbered(10).batch(0, index, 4, 0, np.float32)


@each("stored", [np.uint8, np.float16, np.float32, np.float64])
@each("dtype", [np.float32, np.float64])
def test_x_comes_contiguous_in_the_wanted_dtype(stored: Any, dtype: Any) -> None:
    x = np.asfortranarray(np.arange(24).reshape(4, 2, 3).astype(stored))
    dataset = Dataset("d", x, np.arange(4), x, np.arange(4), classes=4)
    expected = x.astype(np.float64) / (255 if stored == np.uint8 else 1)
    for got, y in (dataset.batch(0, 0, 4, 0, dtype), dataset.test_batch(0, 4, dtype)):
        assert got.dtype == dtype and got.flags.c_contiguous
        assert y.dtype == np.int64
        np.testing.assert_allclose(got, expected[y], rtol=2e-7)


def test_white_ink_is_exactly_one() -> None:
    x = np.array([[0, 255]], dtype=np.uint8)
    dataset = Dataset("d", x, np.zeros(1, int), x, np.zeros(1, int), classes=1)
    for dtype in (np.float32, np.float64):
        assert dataset.batch(0, 0, 1, 0, dtype)[0].tolist() == [[0.0, 1.0]]


@each("stored", [np.uint8, np.float32, np.float64])
def test_batches_in_buffers_of_the_caller_stay_apart(stored: Any) -> None:
    x = np.arange(10, dtype=stored)[:, None] * np.ones(3, dtype=stored)
    dataset = Dataset("d", x, np.arange(10), x, np.arange(10), classes=10)
    buffers = [np.full((4, 3), np.nan, dtype=np.float32) for _ in range(3)]
    read = [dataset.batch(0, i, 4, 0, np.float32, out=buffers[i]) for i in range(3)]
    for index, (got, y) in enumerate(read):
        assert np.shares_memory(got, buffers[index])
        assert (got == dataset.batch(0, index, 4, 0, np.float32)[0]).all()
        assert len(got) == len(y)
    assert np.isnan(buffers[2][2:]).all(), "the smaller last batch wrote beyond its samples"
    out = dataset.test_batch(0, 4, np.float32, out=buffers[0])[0]
    assert np.shares_memory(out, buffers[0])


def test_batches_are_read_by_name_as_well() -> None:
    dataset = numbered(50)
    x, y = dataset.batch(1, 2, 8, 7, np.float64)
    read = dataset.read(1, 2, 8, 7, np.float64)
    assert read.keys() == {"h", "y"} and (read["h"] == x).all() and (read["y"] == y).all()
    x, y = dataset.test_batch(1, 2, np.float32)
    read = dataset.read_test(1, 2, np.float32)
    assert (read["h"] == x).all() and (read["y"] == y).all() and read["h"].dtype == np.float32


def test_a_read_goes_into_the_buffer_of_the_caller() -> None:
    out = np.empty((8, 2), np.float32)
    assert np.shares_memory(numbered(50).read(0, 0, 8, 0, np.float32, out)["h"], out)


def test_all_targets_are_there_to_be_held_against_a_loss() -> None:
    train, test = numbered(10, test=3).targets().values()
    assert train.tolist() == list(range(10)) and test.tolist() == [0, 1, 2]


def test_batches_are_copies_of_the_data() -> None:
    dataset = numbered()
    dataset.test_batch(0, 3, np.float32)[0][:] = -1
    dataset.batch(0, 0, 3, 0, np.float32)[0][:] = -1
    assert (dataset.x_test >= 0).all() and (dataset.x_train >= 0).all()


@each(
    "out",
    [
        np.empty((4, 2), dtype=np.float64),
        np.empty((3, 2), dtype=np.float32),
        np.empty((4, 3), dtype=np.float32),
        np.empty((2, 4), dtype=np.float32).T,
    ],
)
def test_a_buffer_that_does_not_fit_is_refused(out: Any) -> None:
    with pytest.raises(ValueError, match=r"expected C-contiguous float32 of \(4, 2\)"):
        numbered().batch(0, 0, 4, 0, np.float32, out=out)


# --- what is refused -----------------------------------------------------------------------------


def arrays(**changed: Any) -> dict[str, Any]:
    good = {
        "x_train": np.zeros((6, 2), np.float32),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": np.zeros((3, 2), np.float32),
        "y_test": np.array([0, 1, 2]),
    }
    return good | changed


def with_value(shape: tuple[int, ...], where: tuple[int, ...], value: float) -> Any:
    array = np.zeros(shape)
    array[where] = value
    return array


REFUSED = [
    ({"x_train": with_value((6, 2), (4, 1), np.nan)}, "f: x_train has nan in sample 4; expected"),
    ({"x_test": with_value((3, 2), (1, 0), -np.inf)}, "f: x_test has -inf in sample 1; expected"),
    ({"x_test": with_value((3, 2), (1, 0), 1e39)}, "x_test has 1e+39 in sample 1; expected finite"),
    ({"y_train": np.array([0, 1, 9, 0, 1, 2])}, "y_train has label 9 in sample 2; expected 0 to 2"),
    ({"y_test": np.array([0, 1, -1])}, "y_test has label -1 in sample 2; expected 0 to 2"),
    (
        {"y_test": np.array([0.0, 1.5, 1])},
        "y_test has shape (3,) and dtype float64; expected class ids (samp",
    ),
    ({"y_test": np.zeros((3, 1), int)}, "y_test has shape (3, 1) and dtype int64; expected class"),
    (
        {"y_train": np.zeros(5, int)},
        "x_train has 6 samples and y_train 5; expected as many of each",
    ),
    (
        {"x_test": np.zeros((3, 4))},
        "x_train have shape (2,) and those of x_test (4,); expected the",
    ),
    (
        {"x_test": np.zeros((3, 2), np.uint8)},
        "x_train is of dtype float32 and x_test uint8; expecte",
    ),
    (
        {"x_train": np.zeros((6, 2), int)},
        "x_train is of dtype int64; expected uint8 (scaled by 1/2",
    ),
    ({"x_train": np.zeros((6, 2), bool)}, "x_train is of dtype bool; expected uint8"),
    ({"x_train": np.zeros(6)}, "x_train has shape (6,); expected (samples, features"),
    ({"x_train": np.zeros((0, 2)), "y_train": np.zeros(0, int)}, "x_train is empty: shape (0, 2)"),
    ({"x_test": np.zeros((3, 0))}, "x_test is empty: shape (3, 0)"),
]


@each("changed, words", REFUSED)
def test_what_cannot_be_trained_on_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        Dataset("f", **arrays(**changed), classes=3).validate()
    assert words in str(caught.value) and str(caught.value).startswith("f: ")
    assert "\n" not in str(caught.value)


def test_values_are_checked_too() -> None:
    values = {"y_train": np.zeros((6, 2)), "y_test": with_value((3, 2), (2, 0), np.nan)}
    with pytest.raises(DataError, match="y_test has nan in sample 2"):
        Dataset("f", **arrays(**values), classes=None).validate()
    with pytest.raises(DataError, match=r"y_train has shape \(6,\) and dtype int64"):
        Dataset("f", **arrays(), classes=None).validate()


def test_a_bad_sample_far_behind_is_named_by_its_number() -> None:
    x = with_value((5000, 2), (4999, 1), np.nan)
    with pytest.raises(DataError, match="x_train has nan in sample 4999"):
        Dataset("f", **arrays(x_train=x, y_train=np.zeros(5000, int)), classes=3).validate()


def test_describe_touches_no_file_of_the_built_in_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"opened {args}")

    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr("builtins.open", opened)
    monkeypatch.setattr(Path, "read_bytes", opened)
    for data in (config.Digits(), config.Mnist(path="nowhere"), config.Addition()):
        datasets.describe(data)
    assert datasets.describe(config.Mnist()) == mnist.META
    assert digits.META.train_samples == 10_000


def test_buffers_have_no_more_rows_than_the_data_set_has_samples() -> None:
    source = Source(numbered(10), batch_size=1_000, seed=0, dtype=np.dtype(np.float32))
    x = source.read(Op(OpKind.FORWARD, 0))["h"]
    assert x.shape == (10, 2)
    assert x.base is None or x.base.nbytes < x.nbytes + 128  # with room to be aligned
