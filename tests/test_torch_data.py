"""Data sets of PyTorch: whole arrays, sample by sample, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn.utils.rnn import pad_sequence  # noqa: E402
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset  # noqa: E402

from asyncdni.data.meta import Field, mismatch  # noqa: E402
from asyncdni.data.torch import TorchBatches, data_set_of, first_form, opened  # noqa: E402
from asyncdni.errors import DataError  # noqa: E402
from asyncdni.nn.streams import stream  # noqa: E402

X = torch.arange(30.0).reshape(10, 3)
Y = torch.arange(10) % 4
WHOLE = TensorDataset(X, Y)


class Pairs(Dataset[Any]):
    """Samples one by one; `noise` draws from PyTorch's generator, as transforms do."""

    def __init__(self, x: Any = X, y: Any = Y, noise: bool = False) -> None:
        self.x, self.y, self.noise = x, y, noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        added = torch.rand(3) if self.noise else 0
        return self.x[index] + added, self.y[index]


class Flow(IterableDataset[Any]):
    """Samples in a row; it says how many, as some do."""

    def __len__(self) -> int:
        return len(X)

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


def _doubled(samples: list[Any]) -> tuple[Any, Any]:
    """Batches of two times the inputs."""
    x, y = zip(*samples, strict=True)
    return 2 * torch.stack(x), torch.stack(y)


def batches(train: Any, test: Any = WHOLE, classes: int = 4) -> TorchBatches:
    return opened("made", train, test, classes)


@pytest.mark.parametrize(
    "given",
    [
        Pairs(),
        Flow(),
        [(x.numpy(), int(y)) for x, y in WHOLE],
        DataLoader(WHOLE, batch_size=3),
        Subset(TensorDataset(X.flip(0), Y.flip(0)), range(9, -1, -1)),
        Subset(Pairs(), range(10)),
    ],
)
def test_all_kinds_give_the_same_batches(given: Any) -> None:
    expected, found = batches(WHOLE), batches(given)
    assert found.meta == expected.meta
    for index in range(3):
        one, other = (b.read(1, index, 4, 7, np.float32) for b in (expected, found))
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
        assert [one[name].dtype for name in one] == [other[name].dtype for name in one]


def test_an_epoch_has_every_sample_once_in_an_order_of_the_seed() -> None:
    found = batches(WHOLE)
    reads = [found.read(0, index, 4, 7, np.float32) for index in range(found.batches_per_epoch(4))]
    firsts = np.concatenate([read["h"][:, 0] for read in reads])
    assert sorted(firsts) == X[:, 0].tolist()
    assert firsts.tolist() != X[:, 0].tolist()
    tests = [found.read_test(index, 4, np.float32)["y"] for index in range(found.test_batches(4))]
    assert np.concatenate(tests).tolist() == Y.tolist()


def test_transforms_draw_the_same_numbers_in_each_run_and_others_in_each_epoch() -> None:
    one, other = batches(Pairs(noise=True)), batches(Pairs(noise=True))
    first = one.read(0, 0, 10, 7, np.float32)["h"]
    assert np.array_equal(first, other.read(0, 0, 10, 7, np.float32)["h"])
    again = one.read(1, 0, 10, 7, np.float32)["h"]
    assert not np.array_equal(np.sort(first[:, 0]), np.sort(again[:, 0]))


def test_without_a_number_of_classes_the_labels_are_looked_through() -> None:
    assert batches(WHOLE, classes=0).meta.outputs == 4
    assert batches(Pairs(), Pairs(y=Y + 2), classes=0).meta.outputs == 6


def test_with_a_number_of_classes_no_label_is_looked_at_before_its_turn() -> None:
    found = batches(Pairs(y=Y + 1))
    assert found.meta.outputs == 4
    with pytest.raises(DataError, match=r"training sample \d is of class 4, expected 0 to 3"):
        for index in range(3):
            found.read(0, index, 4, 0, np.float32)


def test_values_are_targets_of_one_row_a_sample() -> None:
    found = batches(TensorDataset(X, X[:, :2]), TensorDataset(X, X[:, :2]))
    assert (found.meta.targets, found.meta.outputs) == ("values", 2)
    assert found.read_test(0, 4, np.float64)["y"].tolist() == X[:4, :2].tolist()


def test_steps_have_a_class_each() -> None:
    found = batches(
        TensorDataset(X, Y[:, None].repeat(1, 3)), TensorDataset(X, Y[:, None].repeat(1, 3))
    )
    assert (found.meta.steps, found.meta.output_shape) == (3, (3, 4))


class Failing(Pairs):
    def __getitem__(self, index: int) -> tuple[Any, Any]:
        raise OSError("the disk is gone")


class Ragged(Pairs):
    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.x[index][: 3 - index % 2], self.y[index]


class Broken(Flow):
    def __iter__(self) -> Iterator[Any]:
        yield X[0], Y[0]
        raise ValueError("torn")


def test_inputs_of_several_tensors_lie_behind_one_another() -> None:
    pairs = [({"ids": torch.tensor([i, 2]), "on": torch.tensor(i > 0), "x": X[i]}, 1)
             for i in range(3)]  # fmt: skip
    found = batches(pairs, pairs)
    assert found.meta.fields == (
        *(Field("ids", "int", (2,)), Field("on", "bool", ()), Field("x", "float", (3,))),
    )
    assert found.meta.input_shape == (6,)
    h = found.read_test(0, 3, np.float32)["h"]
    assert h.tolist() == [[i, 2, i > 0, *X[i].tolist()] for i in range(3)]
    assert first_form((pairs, pairs)) == ((6,), found.meta.fields)
    places = batches(*[[((X[0], Y[:2]), 1)]] * 2)
    assert places.meta.fields == (Field("", "float", (3,)), Field("", "int", (2,)))


def test_all_tensors_with_a_step_for_each_target_are_padded() -> None:
    def sample(steps: int) -> Any:
        ids = torch.arange(1, steps + 1)
        return {"ids": ids, "mask": torch.ones_like(ids), "kind": torch.tensor([7])}, ids

    found = batches([sample(2), sample(4)], [sample(3)], classes=0)
    assert [one.shape for one in found.meta.fields] == [(4,), (4,), (1,)]
    batch = found.read_test(0, 1, np.float32)
    assert batch["h"].tolist() == [[1, 2, 3, 0, 1, 1, 1, 0, 7]]
    assert batch["mask"].tolist() == [[True, True, True, False]]


def test_a_collate_function_may_make_tables() -> None:
    def tables(samples: list[Any]) -> Any:
        return {"x": torch.stack([x for x, _ in samples])}, torch.stack([y for _, y in samples])

    found = batches(*[data_set_of(DataLoader(WHOLE, collate_fn=tables))] * 2)
    assert found.meta.fields == (Field("x", "float", (3,)),)


def test_samples_with_other_tensors_than_the_first_are_refused() -> None:
    found = batches(*[[({"a": X[0]}, 1), ({"b": X[0]}, 1)]] * 2)
    with pytest.raises(
        DataError, match=r"input is b \(float\), that of the first sample a \(float"
    ):
        found.read_test(0, 2, np.float32)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ([], ["training set is empty"]),
        (TensorDataset(X[:0], Y[:0]), ["training set is empty"]),
        (5, ["training set is a int", "expected a data set"]),
        (Failing(), ["training sample 0: OSError: the disk is gone"]),
        (Broken(), ["training set can't be read: ValueError: torn"]),
        ([X[0]], ["training sample 0 is a Tensor, expected (input, target)"]),
        ([{"x": X[0], "y": 1}], ["training sample 0 is a dict", 'item["labels"]']),
        ([({"ids": X[0], "name": "a"}, 1)], ["input 'name' is a str, expected numbers"]),
        ([(X[0], {"a": X[0]})], ["target is a dict of tensors, expected one tensor"]),
        ([({"ids": X[0]}, 1)], ["test sample 0 has the shapes ((3,), ())"]),
        ([("a cat", 1)], ["training sample 0, input is a str, expected numbers"]),
        ([(X[0], "cat")], ["training sample 0, target is a str"]),
        ([(X[0] / 0, 1)], ["input holds NaN or infinity"]),
        ([(torch.tensor([2**25, 0, 0]), 1)], ["whole numbers above 16777216"]),
        (TensorDataset(X, Y, Y), ["has 3 tensors, expected inputs and targets"]),
        (TensorDataset(X.log(), Y), ["inputs holds NaN or infinity"]),
        (
            [(torch.zeros(4), 1)],
            ["test sample 0 has the shapes ((3,), ()) ", "expected ((4,), ())"],
        ),
        ([(X[0], 1.5)], ["targets of the test set are int64", "floating numbers"]),
        (
            [(X[0], np.zeros((2, 2), int))],
            ["targets have shape (2, 2), expected one class a sample, or (T,)"],
        ),
    ],
)
def test_what_can_not_be_used_is_refused_in_one_line(train: Any, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        batches(train)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert text.startswith("made") and "\n" not in text


def test_a_sample_of_another_shape_is_named_with_both_shapes() -> None:
    with pytest.raises(DataError) as caught:
        batches(Ragged()).read(0, 0, 10, 0, np.float32)
    text = str(caught.value)
    assert "training sample" in text and "((2,), ())" in text and "((3,), ())" in text


def test_of_a_loader_its_data_set_is_used() -> None:
    assert data_set_of(DataLoader(WHOLE)) is WHOLE
    assert data_set_of(WHOLE) is WHOLE
    # A collate_fn of the user's is called on the samples of a batch.
    doubled = batches(DataLoader(WHOLE, batch_size=4, collate_fn=_doubled))
    one, other = (made.read(0, 1, 3, 7, np.float32) for made in (doubled, batches(WHOLE)))
    np.testing.assert_array_equal(one["h"], 2 * other["h"])
    np.testing.assert_array_equal(one["y"], other["y"])
    assert not doubled.meta.varying
    with pytest.raises(DataError, match="called for map-style data sets alone"):
        data_set_of(DataLoader(Flow(), collate_fn=_doubled))
    assert first_form((WHOLE, WHOLE)) == ((3,), ())


DATA = """
import torch
from torch.utils.data import TensorDataset


def sets():
    x = torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
    y = (x.sum(1) > 3).long()
    return TensorDataset(x[:40], y[:40]), TensorDataset(x[40:], y[40:])


def network():
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
"""
EXPERIMENT = """
[data]
name = "torch"
build = "samples:sets"
batch_size = 10
[model]
build = "samples:network"
stages = ["2"]
[run]
epochs = 1
"""


def test_sequences_are_padded_to_the_longest_and_ignored_steps_do_not_count() -> None:
    def sample(*ids: int) -> tuple[Any, Any]:
        return torch.tensor(ids), torch.tensor(ids) + 1

    train = [sample(1, 2), sample(5), (torch.tensor([3, 4]), torch.tensor([-100, 9]))]
    made = TorchBatches("made", train, [sample(7, 8, 9)], 11)
    assert (made.meta.input_shape, made.meta.steps, made.meta.outputs) == ((3,), 3, 11)
    got = {"h": [], "y": [], "mask": []}
    for index in range(made.batches_per_epoch(1)):
        batch = made.read(0, index, 1, 0, np.float32)
        assert mismatch(made.meta, batch, 1, np.float32) is None
        for name, rows in got.items():
            rows.append(batch[name][0].tolist())
    assert sorted(got["h"]) == [[1, 2, 0], [3, 4, 0], [5, 0, 0]]
    assert sorted(got["y"]) == [[0, 9, 0], [2, 3, 0], [6, 0, 0]]
    assert sorted(map(sum, got["mask"])) == [1, 1, 2]
    assert made.read_test(0, 1, np.float32)["mask"].all()


def _with_mask(pairs: list[Any]) -> tuple[Any, Any]:
    ids, targets = zip(*pairs, strict=True)
    y = pad_sequence(targets, batch_first=True, padding_value=-100)
    return {"ids": pad_sequence(ids, batch_first=True), "mask": y != -100}, y


def test_a_collate_function_pads_to_the_longest_of_its_batch() -> None:
    pairs = [(torch.arange(n) + n, torch.arange(n)) for n in (2, 5, 3, 4, 2)]
    made = opened("made", *[DataLoader(pairs, collate_fn=_with_mask)] * 2)
    meta = made.meta
    assert (meta.input_shape, meta.steps, meta.outputs, meta.varying) == ((5, 2), 5, 5, True)
    order = stream(7, "data", "shuffle", 0).permutation(5)
    buffer = np.empty((2, 5, 2), np.float32)
    for index in range(3):
        x, y = _with_mask([pairs[row] for row in order[2 * index : 2 * index + 2]])
        batch = made.read(0, index, 2, 7, np.float32, buffer)
        assert np.shares_memory(batch["h"], buffer)
        np.testing.assert_array_equal(batch["h"], torch.stack([x["ids"], x["mask"]], 2))
        np.testing.assert_array_equal(batch["mask"], y != -100)
        np.testing.assert_array_equal(batch["y"], y.clamp(0))
        assert mismatch(meta, batch, len(y), np.float32, y.shape[1]) is None
    # Without a function of one's own the same padding needs no pass over the data.
    plain = opened("made", pairs, pairs, classes=5, max_length=6)
    assert plain.meta.input_shape == (6,)
    np.testing.assert_array_equal(plain.read_test(0, 5, np.float32)["h"][0], [2, 3, 0, 0, 0])


@pytest.mark.parametrize(
    ("collate", "max_length", "told"),
    [
        (lambda pairs: len(pairs) / 0, 0, "batch of samples 0: ZeroDivisionError"),
        (lambda pairs: {"x": pairs}, 0, "collate_fn returns a dict, expected (inputs, targets)"),
        (lambda pairs: (X[:1], Y[:2]), 0, "expected 1 rows of each tensor"),
        (_with_mask, 4, "the longest sample has 5 steps, more than data.max_length = 4"),
        (lambda pairs: ({"n": Y[:1], **_with_mask(pairs)[0]}, _with_mask(pairs)[1]), 0,
         "repeat for each step what belongs to the whole sample"),
        (lambda pairs: (X[: len(pairs), : len(pairs)], Y[: len(pairs)]), 0,
         "has the shapes (2,), () of inputs and targets, expected (1,), ()"),
        (lambda pairs: _with_mask(pairs * len(pairs)), 0, "expected 2 rows of each tensor"),
    ],
)  # fmt: skip
def test_what_a_collate_function_must_not_return(collate: Any, max_length: int, told: str) -> None:
    pairs = [(torch.arange(n) + n, torch.arange(n)) for n in (2, 5)]
    with pytest.raises(DataError) as caught:
        made = opened("made", *[DataLoader(pairs, collate_fn=collate)] * 2, 0, max_length)
        made.read(0, 0, 2, 7, np.float32)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_batch_longer_than_any_sample_alone_is_refused() -> None:
    pairs = [(torch.arange(n) + n, torch.tensor(n % 2)) for n in (2, 5)]

    def both(given: list[Any]) -> tuple[Any, Any]:
        ids, targets = zip(*given, strict=True)
        padded = pad_sequence(ids, batch_first=True)
        return torch.nn.functional.pad(padded, (0, len(ids) - 1)), torch.stack(targets)

    made = opened("made", *[DataLoader(pairs, collate_fn=both)] * 2)
    with pytest.raises(DataError, match="has 6 steps, more than the 5 of the longest sample; give"):
        made.read(0, 0, 2, 7, np.float32)


def test_classes_of_whole_samples_leave_lengths_alone() -> None:
    with pytest.raises(DataError, match=r"only sequences with a class for each step may differ"):
        made = TorchBatches("made", [(X[0], 1), (X[0][:2], 0)], [(X[0], 1)])
        for index in range(2):
            made.read(0, index, 1, 0, np.float32)


def test_commands_read_a_data_set_of_the_users_where_they_may_import_it(tmp_path: Path) -> None:
    (tmp_path / "samples.py").write_text(DATA)
    (tmp_path / "e.toml").write_text(EXPERIMENT)

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "asyncdni", *words]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    for words in (
        ("train", "e.toml", "--out", "run"),
        ("evaluate", "run"),
        ("graph", "e.toml"),
        ("simulate", "e.toml", "--seed", "1"),
        ("advise", "e.toml", "--latency", "20ms"),
        ("compare", "e.toml", "--schedules", "locked", "--seeds", "1", "--set", "model.stages=2"),
    ):
        done = command(*words, "--allow-import")
        assert done.returncode == 0, done.stderr
    refused = command("graph", "e.toml")
    assert refused.returncode == 2 and "--allow-import" in refused.stderr
