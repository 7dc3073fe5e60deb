"""Binary addition."""

from __future__ import annotations

import numpy as np
from each import each

from asyncdni import config
from asyncdni import data as datasets
from asyncdni.data.meta import Meta


@each("bits", [2, 8, 62])
def test_the_target_of_addition_is_the_sum(bits: int) -> None:
    dataset = datasets.load(config.Addition(bits=bits, examples=50, test_examples=7), seed=3)
    for x, y in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)):
        for row, total in zip(x.astype(int), y.astype(int), strict=True):
            first, second, given = (
                int("".join(map(str, part)), 2) for part in (row[:bits], row[bits:], total)
            )
            assert first + second == given
            assert max(first, second) < 2 ** (bits - 1)


def test_addition_is_described_as_it_is() -> None:
    data = config.Addition(bits=5, examples=4, test_examples=3)
    meta = datasets.describe(data)
    assert meta == datasets.load(data, seed=0).meta == Meta((10,), "values", 5, 4, 3)
    x, y = datasets.load(data, seed=0).batch(0, 0, 4, 0, np.float64)
    assert x.shape == (4, 10) and y.shape == (4, 5) and x.dtype == y.dtype == np.float64


def test_addition_depends_on_the_seed_and_nothing_else() -> None:
    data = config.Addition(examples=30, test_examples=30)
    first, again, other = (datasets.load(data, seed) for seed in (0, 0, 1))
    assert (first.x_train == again.x_train).all() and (first.x_test == again.x_test).all()
    assert (first.x_train != other.x_train).any() and (first.x_train != first.x_test).any()
    more = datasets.load(config.Addition(examples=60, test_examples=30), seed=0)
    assert (more.x_test == first.x_test).all(), "more training examples changed the test set"
