"""Copy and Repeat Copy: what is shown, what is asked, and how sequences grow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from each import each
from hypothesis import given
from hypothesis import strategies as st

from asyncdni import data as datasets
from asyncdni.config import Copy, RepeatCopy
from asyncdni.data.copying import Size, next_size, sizes
from asyncdni.errors import ConfigError


def sequences_of(
    data: Copy | RepeatCopy, epoch: int | None, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Whole sequences: the windows of each laid end to end, idle ones left out."""
    opened, size = datasets.open_batches(data, seed), data.batch_size
    if epoch is None:
        count = opened.test_batches(size)
        windows = [opened.read_test(index, size, np.float32) for index in range(count)]
    else:
        count = opened.batches_per_epoch(size)
        windows = [opened.read(epoch, index, size, seed, np.float32) for index in range(count)]
    starts = [i for i, window in enumerate(windows) if window["first"].all()]
    parts = [windows[a:b] for a, b in zip(starts, [*starts[1:], count], strict=True)]
    joined = [
        {name: np.concatenate([w[name] for w in part], axis=1) for name in ("h", "y", "mask")}
        for part in parts
    ]
    return [one for one in joined if one["mask"].any()]


@each("window", [1, 2, 3, 5, 11])
def test_copy_shows_bits_then_a_delimiter_and_asks_for_the_bits(window: int) -> None:
    data = Copy(batch_size=4, window=window, length=5, sequences=2)
    found = sequences_of(data, 0)
    assert len(found) == 2
    for one in found:
        x, y, mask = one["h"], one["y"], one["mask"]
        assert x.shape == (4, -(-11 // window) * window, 3)
        shown = x[:, :5, 0]
        assert set(np.unique(shown)) <= {-1.0, 1.0}
        assert (x[:, :5, 1] == 1).all() and not x[:, 5:, :2].any()
        assert (x[:, 5, 2] == 1).all() and x[..., 2].sum() == 4
        assert (mask == np.isin(np.arange(x.shape[1]), range(6, 11))).all()
        assert (y[:, 6:11, 0] == (shown > 0)).all() and not y[~mask].any()


def test_repeat_copy_tells_how_often_and_asks_for_as_many() -> None:
    data = RepeatCopy(batch_size=3, window=4, length=3, repeats=4, sequences=2)
    for one in sequences_of(data, 0):
        x, y, mask = one["h"], one["y"], one["mask"]
        assert x.shape[2] == 4 and x[:, 3, 3] == pytest.approx(0.4)
        assert np.count_nonzero(x[..., 3]) == 3
        assert mask.sum(axis=1).tolist() == [12, 12, 12]
        assert (y[:, 4:16, 0].reshape(3, 4, 3) == (x[:, None, :3, 0] > 0)).all()


def test_streams_sequences_and_epochs_have_bits_of_their_own() -> None:
    data = Copy(batch_size=2, window=5, length=40, sequences=2)
    parts = [sequences_of(data, epoch) for epoch in (0, 1, None)]
    rows = [tuple(row) for part in parts for one in part for row in one["h"][:, :40, 0]]
    assert len(rows) == 2 * (2 + 2 + 10) and len(set(rows)) == len(rows)
    assert abs(np.mean(rows)) < 0.15


def test_bits_depend_on_the_seed() -> None:
    data = Copy(batch_size=2, length=40, sequences=1)
    first, other = (sequences_of(data, 0, seed=seed)[0]["h"] for seed in (0, 1))
    assert (first != other).any()


def test_what_is_coming_tells_sign_and_whether_it_counts() -> None:
    data = Copy(batch_size=4, window=3, length=2, sequences=1, ahead=4)
    opened = datasets.open_batches(data, 0)
    first, second = (opened.read(0, index, 4, 0, np.float32) for index in (0, 1))
    signs = np.concatenate([first["h"][:, :2, 0], np.zeros((4, 2))], axis=1)
    coming = first["coming"].reshape(4, 4, 2)
    assert (coming[..., 0] == signs).all()
    assert (coming[..., 1] == [1, 1, 0, 0]).all()
    assert second["mask"].any() and not second["coming"].any()


# --- growing -------------------------------------------------------------------------------------


def test_repeat_copy_grows_as_in_the_paper() -> None:
    found = [tuple(size) for size in sizes(Size(3, 5))]
    assert found == [(1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (3, 4), (3, 5)]
    assert [size.bits for size in sizes(Size(4))] == [1, 2, 3, 4]


@given(st.integers(1, 12), st.integers(1, 12))
def test_growing_reaches_the_full_size_one_step_at_a_time(bits: int, repeats: int) -> None:
    found = sizes(Size(bits, repeats))
    assert len(found) == bits + repeats - 1 and found[-1] == (bits, repeats)
    assert next_size(found[-1], found[-1]) == found[-1]


def test_sequences_grow_by_the_epoch_up_to_the_full_length() -> None:
    data = Copy(batch_size=2, window=2, length=3, grow=2, sequences=3)
    asked = [sequences_of(data, epoch)[0]["mask"][0].sum() for epoch in range(8)]
    assert asked == [1, 1, 2, 2, 3, 3, 3, 3]
    assert {one["mask"][0].sum() for one in sequences_of(data, None)} == {3}


def test_an_epoch_of_shorter_sequences_has_more_of_them_and_as_many_windows() -> None:
    data = Copy(batch_size=2, window=2, length=3, grow=1, sequences=3)
    assert datasets.describe(data).train_samples == 2 * 3 * 4
    assert [len(sequences_of(data, epoch)) for epoch in range(3)] == [6, 4, 3]


# --- options -------------------------------------------------------------------------------------


def test_held_out_sequences_are_no_test_sequences_and_the_same_for_every_seed() -> None:
    plain = Copy(batch_size=2, length=30, test_sequences=4)
    held = Copy(batch_size=2, length=30, test_sequences=4, validation=3)
    tested = [one["h"] for one in sequences_of(plain, None)]
    first, other = ([one["h"] for one in sequences_of(held, None, seed=seed)] for seed in (0, 1))
    assert len(tested) == 4 and len(first) == 3
    assert all((a == b).all() for a, b in zip(first, other, strict=True))
    assert all((a != b).any() for a in first for b in tested)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Copy(window=6, length=2), "6 steps are more than the 5 of a sequence of 2 bits"),
        (RepeatCopy(window=9, length=2, repeats=2), "9 steps are more than the 7 of a sequence"),
    ],
)
def test_a_window_longer_than_the_sequence_is_refused(data: Copy | RepeatCopy, words: str) -> None:
    with pytest.raises(ConfigError, match=f"data.window: {words}") as caught:
        datasets.describe(data)
    assert "\n" not in str(caught.value)
