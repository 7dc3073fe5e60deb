"""Windows of sequences: flags, idle windows, what is coming, reading them in any order."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from each import each

from asyncdni import config
from asyncdni import data as datasets
from asyncdni.config import Copy, RepeatCopy, Trigonometry, Windows
from asyncdni.data.base import Source
from asyncdni.data.meta import Meta, Tensor, mismatch
from asyncdni.data.sequences import Sequence, Sequences, describe_windows, one_hot
from asyncdni.errors import ConfigError, DataError
from asyncdni.schedules.base import Op, OpKind

STREAMS, STEPS, AHEAD = 3, 2, 3


class Counting:
    """Sequences of 3 windows in even epochs and 2 in odd ones; step s of stream b holds 100 b + s,
    its target is the negative of that, and only odd steps count."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int | None, int]] = []

    def windows(self, epoch: int | None) -> int:
        return 2 if epoch is not None and epoch % 2 else 3

    def sequence(self, seed: int, epoch: int | None, number: int) -> Sequence:
        self.asked.append((seed, epoch, number))
        steps = np.arange(self.windows(epoch) * STEPS)
        x = 100.0 * np.arange(STREAMS)[:, None] + steps + 1000 * number
        mask = np.broadcast_to(steps % 2 == 1, x.shape)
        return Sequence(x[..., None], -x[..., None], mask)


def counting(task: Counting | None = None, *, windows: int = 7) -> Sequences:
    one = Meta((STEPS, 1), "values", 1, train_samples=windows, test_samples=3, steps=STEPS)
    meta = describe_windows(one, streams=STREAMS, ahead=AHEAD, masked=True)
    return Sequences("counting", meta, task or Counting(), streams=STREAMS, ahead=AHEAD, seed=0)


def epoch_of(data: Sequences, epoch: int) -> list[dict[str, Any]]:
    count = data.batches_per_epoch(STREAMS)
    return [data.read(epoch, index, STREAMS, 0, np.float32) for index in range(count)]


# --- windows -------------------------------------------------------------------------------------


def test_windows_laid_end_to_end_are_the_sequences() -> None:
    windows = epoch_of(counting(), 0)[:6]
    x = np.concatenate([window["h"] for window in windows], axis=1)[..., 0]
    steps = np.concatenate([np.arange(6), 1000 + np.arange(6)])
    assert (x == steps + np.array([[0], [100], [200]])).all()
    assert (np.concatenate([window["y"] for window in windows], axis=1)[..., 0] == -x).all()


@pytest.mark.parametrize(
    ("epoch", "first", "last"),
    [(0, [0, 3, 6], [2, 5, 6]), (1, [0, 2, 4, 6], [1, 3, 5, 6])],
)
def test_sequences_begin_and_end_where_the_flags_say(
    epoch: int, first: list[int], last: list[int]
) -> None:
    windows = epoch_of(counting(), epoch)
    for name, expected in (("first", first), ("last", last)):
        flags = np.array([window[name] for window in windows])
        assert flags.dtype == np.bool_ and flags.shape == (7, STREAMS)
        assert np.flatnonzero(flags.all(axis=1)).tolist() == expected
        assert np.flatnonzero(flags.any(axis=1)).tolist() == expected


def test_windows_too_few_for_a_sequence_stand_idle() -> None:
    *used, idle = epoch_of(counting(), 0)
    assert all(window["mask"].any() for window in used)
    for name in ("h", "y", "mask", "coming"):
        assert not idle[name].any(), name
        assert idle[name].shape == used[0][name].shape
        assert idle[name].dtype == used[0][name].dtype


def test_what_is_coming_are_the_targets_after_the_window_and_zero_beyond_the_end() -> None:
    windows = epoch_of(counting(), 0)
    coming = [window["coming"][1].tolist() for window in windows[:3]]
    assert coming == [[-102, -103, -104], [-104, -105, 0], [0, 0, 0]]


def test_hints_take_the_place_of_the_targets_in_what_is_coming() -> None:
    class Hinting(Counting):
        def sequence(self, seed: int, epoch: int | None, number: int) -> Sequence:
            plain = super().sequence(seed, epoch, number)
            return Sequence(plain.x, plain.y, plain.mask, np.repeat(plain.x, 2, axis=2))

    one = Meta((STEPS, 1), "values", 1, train_samples=7, test_samples=3, steps=STEPS)
    meta = describe_windows(one, streams=STREAMS, ahead=AHEAD, masked=True, hints=2)
    data = Sequences("hinting", meta, Hinting(), streams=STREAMS, ahead=AHEAD, seed=0)
    data.validate()
    assert epoch_of(data, 0)[1]["coming"][0].tolist() == [4, 4, 5, 5, 0, 0]
    assert not epoch_of(data, 0)[6]["coming"].any()


def test_ids_are_read_as_one_hot_vectors_where_the_inputs_have_one_axis_more() -> None:
    class Letters:
        def windows(self, epoch: int | None) -> int:
            return 2

        def sequence(self, seed: int, epoch: int | None, number: int) -> Sequence:
            ids = np.array([[0, 1, 2, 0]], np.uint8)
            return Sequence(ids, np.roll(ids, -1))

    one = Meta((2, 3), "classes", 3, train_samples=2, test_samples=2, steps=2)
    meta = describe_windows(one, streams=1, ahead=1, masked=False)
    data = Sequences("letters", meta, Letters(), streams=1, ahead=1, seed=0)
    data.validate()
    first, second = (data.read(0, index, 1, 0, np.float64) for index in (0, 1))
    assert first["h"].tolist() == [[[1, 0, 0], [0, 1, 0]]]
    assert first["y"].tolist() == [[1, 2]] and first["y"].dtype == np.int64
    assert first["coming"].tolist() == [[1, 0, 0]] and first["coming"].dtype == np.float64
    assert second["coming"].tolist() == [[0, 0, 0]]
    assert one_hot(np.array([2, 0]), 3, np.float32).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_a_sequence_is_made_once_while_its_windows_are_read_in_order() -> None:
    task = Counting()
    data = counting(task)
    epoch_of(data, 1)
    assert task.asked == [(0, 1, 0), (0, 1, 1), (0, 1, 2), (0, 1, 0)]


# --- replay and refusals -------------------------------------------------------------------------

KINDS: list[Windows] = [
    Copy(batch_size=4, window=3, length=5, grow=1, sequences=4, ahead=2),
    RepeatCopy(batch_size=4, window=2, length=3, repeats=2, grow=1, sequences=3, ahead=4),
    Trigonometry(batch_size=2, points=30, ahead=1),
]
each_kind = each("data", KINDS)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@each_kind
def test_a_window_is_the_same_whenever_and_wherever_it_is_read(data: Windows) -> None:
    size = data.batch_size
    once, again = datasets.open_batches(data, 5), datasets.open_batches(data, 5)
    count = once.batches_per_epoch(size)
    places = [(epoch, index) for epoch in range(3) for index in range(count)]
    in_order = {place: once.read(*place, size, 5, np.float32) for place in places}
    np.random.default_rng(0).shuffle(places)
    for i, place in enumerate(places):
        again.read_test(i % again.test_batches(size), size, np.float32)
        assert same(again.read(*place, size, 5, np.float32), in_order[place]), place


@each_kind
def test_windows_are_described_as_they_are(data: Windows) -> None:
    opened = datasets.open_batches(data, 1)
    meta, size = opened.meta, data.batch_size
    assert datasets.describe(data) == meta
    assert meta.train_samples == size * opened.batches_per_epoch(size)
    assert meta.test_samples == size * opened.test_batches(size)
    for dtype in (np.float32, np.float64):
        for tensors in (opened.read(0, 0, size, 1, dtype), opened.read_test(0, size, dtype)):
            assert mismatch(meta, tensors, size, dtype) is None
            assert tensors["h"].shape == (size, *meta.input_shape)
            assert tensors["h"].dtype == dtype
            assert tensors.keys() == {"h", "y", *meta.context}
            assert all(array.flags.c_contiguous for array in tensors.values())
    assert [y.shape for y in opened.targets().values()] == [(size, meta.steps, meta.outputs)] * 2


@each_kind
def test_an_epoch_begins_with_first_and_a_test_part_too(data: Windows) -> None:
    opened, size = datasets.open_batches(data, 1), data.batch_size
    for tensors in (
        *(opened.read(epoch, 0, size, 1, np.float32) for epoch in range(4)),
        opened.read_test(0, size, np.float32),
    ):
        assert tensors["first"].all()
    end = opened.test_batches(size) - 1
    assert opened.read_test(end, size, np.float32)["last"].all()


def test_windows_come_in_buffers_of_the_caller_and_share_nothing_with_the_data() -> None:
    data, out = counting(), np.full((STREAMS, STEPS, 1), np.nan, np.float32)
    got = data.read(0, 0, STREAMS, 0, np.float32, out)
    assert np.shares_memory(got["h"], out) and not np.isnan(out).any()
    before = {name: array.copy() for name, array in got.items()}
    for array in got.values():
        array[...] = True
    assert same(data.read(0, 0, STREAMS, 0, np.float32), before)
    with pytest.raises(ValueError, match="expected C-contiguous float32"):
        data.read(0, 0, STREAMS, 0, np.float32, out[:2])


def test_an_index_outside_the_epoch_is_refused() -> None:
    data = counting()
    for index in (-1, 7):
        with pytest.raises(IndexError, match=f"window {index} is not among 7"):
            data.read(0, index, STREAMS, 0, np.float32)
    with pytest.raises(IndexError, match="window 3 is not among 3"):
        data.read_test(3, STREAMS, np.float32)


def test_a_part_of_the_streams_is_rows_of_their_window() -> None:
    data = counting()
    assert (data.batches_per_epoch(1), data.test_batches(1)) == (7 * STREAMS, 3 * STREAMS)
    for window in range(7):
        whole = data.read(0, window, STREAMS, 0, np.float32)
        parts = [data.read(0, window * STREAMS + n, 1, 0, np.float32) for n in range(STREAMS)]
        for name, array in whole.items():
            np.testing.assert_array_equal(np.concatenate([one[name] for one in parts]), array)


@each("size", [2, 4, 0])
def test_streams_are_cut_into_equal_parts_alone(size: int) -> None:
    with pytest.raises(ConfigError, match=f"3 streams were asked for {size} at a time; expected a"):
        counting().batches_per_epoch(size)


def test_the_source_reads_window_after_window_epoch_after_epoch() -> None:
    data = counting()
    source = Source(data, batch_size=STREAMS, seed=0, dtype=np.dtype(np.float32))
    for batch in (0, 6, 7, 15):
        got = source.read(Op(OpKind.READ, batch))
        assert same(dict(got), data.read(batch // 7, batch % 7, STREAMS, 0, np.float32))
        source.release(batch, lambda: True)
    test = source.read(Op(OpKind.READ, 2, evaluate=True))
    assert same(dict(test), data.read_test(2, STREAMS, np.float32))


def test_a_task_that_gives_what_was_not_described_is_refused() -> None:
    data = counting()
    data.meta = msgspec.structs.replace(
        data.meta, context={**data.meta.context, "mask": Tensor((STEPS + 1,), "bool")}
    )
    with pytest.raises(DataError, match=r"^counting: mask is bool \(3, 2\), expected bool \(3, 3"):
        data.validate()


def test_a_task_with_numbers_that_are_not_finite_is_refused() -> None:
    class Broken(Counting):
        def sequence(self, seed: int, epoch: int | None, number: int) -> Sequence:
            found = super().sequence(seed, epoch, number)
            return Sequence(found.x * np.nan, found.y, found.mask)

    with pytest.raises(DataError, match="an input is not a finite number"):
        counting(Broken()).validate()


# --- meta ----------------------------------------------------------------------------------------


def test_a_meta_survives_the_way_to_a_worker() -> None:
    meta = datasets.describe(KINDS[0])
    assert msgspec.convert(msgspec.to_builtins(meta), Meta) == meta


def test_sets_of_samples_are_described_as_they_were_before_there_were_windows() -> None:
    """Checkpoints hold the description: it must not change."""
    assert msgspec.to_builtins(datasets.describe(config.Addition())) == {
        "input_shape": (16,),
        "targets": "values",
        "outputs": 8,
        "train_samples": 100,
        "test_samples": 100,
    }


def test_a_stage_with_a_loss_ends_in_one_output_a_step() -> None:
    assert datasets.describe(KINDS[0]).output_shape == (3, 1)
    assert datasets.describe(config.Addition()).output_shape == (8,)


@each(
    "changed, words",
    [
        ({"y": None}, "y is missing, expected float32 (3, 2, 1)"),
        ({"mask": np.ones((3, 2), np.float32)}, "mask is float32 (3, 2), expected bool (3, 2)"),
        ({"first": np.ones(2, bool)}, "first is bool (2,), expected bool (3,)"),
        ({"coming": np.ones((3, 3))}, "coming is float64 (3, 3), expected float32 (3, 3)"),
    ],
)
def test_arrays_that_do_not_fit_the_description_are_named(
    changed: dict[str, Any], words: str
) -> None:
    data = counting()
    tensors = {**data.read(0, 0, STREAMS, 0, np.float32), **changed}
    tensors = {name: array for name, array in tensors.items() if array is not None}
    assert mismatch(data.meta, tensors, STREAMS, np.float32) == words


def test_sequences_have_no_arrays_to_load() -> None:
    with pytest.raises(ConfigError, match=r"data.name: 'copy' is made of windows of sequences"):
        datasets.load(KINDS[0], 0)
