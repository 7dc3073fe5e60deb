"""Data sets that stay in their files: the same samples as in memory, small, clear errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from each import each

import asyncdni
from asyncdni import config, experiment
from asyncdni import data as datasets
from asyncdni.data import stored
from asyncdni.data.base import Dataset
from asyncdni.data.stored import Stored
from asyncdni.data.torch import TorchBatches
from asyncdni.errors import DataError
from asyncdni.launch.train import design_of, design_of_arrays
from asyncdni.plan.build import make_source

RNG = np.random.default_rng(0)


def arrays(**changed: Any) -> dict[str, Any]:
    good = {
        "x_train": RNG.normal(size=(23, 2, 3)).astype(np.float32),
        "y_train": np.arange(23) % 4,
        "x_test": RNG.normal(size=(7, 2, 3)).astype(np.float32),
        "y_test": np.arange(7) % 4,
    }
    return good | changed


def archive(folder: Path, given: dict[str, Any]) -> config.Npz:
    np.savez(folder / "d.npz", **given)
    return config.Npz(path=str(folder / "d.npz"), batch_size=5)


def shards(folder: Path, given: dict[str, Any]) -> config.Npz:
    """Three files an array, of which the second is empty."""
    for name, array in given.items():
        for number, part in enumerate((array[:3], array[3:3], array[3:])):
            np.save(folder / f"{name}-{number:04}.npy", part)
    return config.Npz(path=str(folder), batch_size=5)


def single(folder: Path, given: dict[str, Any]) -> config.Npz:
    for name, array in given.items():
        np.save(folder / f"{name}.npy", array)
    return config.Npz(path=str(folder), batch_size=5)


@pytest.fixture
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave arrays of any size in their files."""
    monkeypatch.setattr(stored, "_LARGE_BYTES", 0)


def batches(dataset: datasets.Batches) -> list[Any]:
    """Return what is read of a data set, as plain lists with types and shapes."""
    read = [dataset.read(epoch, i, 5, 3, np.float32) for epoch in (0, 1) for i in range(2)]
    read += [dataset.read_test(i, 5, np.float32) for i in range(dataset.test_batches(5))]
    return [(name, a.dtype, a.shape, a.tobytes()) for batch in read for name, a in batch.items()]


# --- the same samples ----------------------------------------------------------------------------


@each("write", [archive, shards, single])
@each(
    "changed, options",
    [
        ({}, {}),
        ({}, {"validation": 6}),
        ({}, {"targets": "inputs"}),
        ({"y_train": np.arange(23.0), "y_test": np.arange(7.0)}, {}),
        ({"y_train": np.ones((23, 2), ">i2"), "y_test": np.ones((7, 2))}, {"targets": "values"}),
        ({"y_train": np.arange(23.0)[:, None] % 3}, {"targets": "classes"}),
        (
            {
                "x_train": np.arange(138, dtype=np.uint8).reshape(23, 6),
                "x_test": np.arange(42, dtype=np.uint8).reshape(7, 6),
            },
            {"validation": 4},
        ),
        (
            {
                "x_train": np.asfortranarray(np.arange(138.0).reshape(23, 6)),
                "x_test": np.ones((7, 6)),
            },
            {},
        ),
    ],
)
def test_what_stays_in_files_is_what_is_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path, dict[str, Any]], config.Npz],
    changed: dict[str, Any],
    options: dict[str, Any],
) -> None:
    given = arrays(**changed)
    monkeypatch.undo()  # of the case before
    in_memory = archive(tmp_path_factory.mktemp("memory"), given)
    in_memory = msgspec.structs.replace(in_memory, **options)
    expected = datasets.identify(in_memory)
    samples = batches(datasets.open_batches(in_memory, 0))

    monkeypatch.setattr(stored, "_LARGE_BYTES", 0)
    in_files = msgspec.structs.replace(write(tmp_path_factory.mktemp("files"), given), **options)
    opened = datasets.open_batches(in_files, 0)
    assert isinstance(opened, Dataset)
    assert isinstance(opened.x_train, Stored) or np.isfortran(given["x_train"])
    assert batches(opened) == samples
    meta = datasets.identify(in_files)
    if write is shards:  # whose checksums are of several files
        assert meta.checksums.keys() == expected.checksums.keys()
        meta = msgspec.structs.replace(meta, checksums=expected.checksums)
    assert meta == expected


def test_rows_come_from_the_files_in_their_order(tmp_path: Path, nothing_is_small: None) -> None:
    given = arrays(x_train=np.arange(46).reshape(23, 2).astype(np.float64))
    given["x_test"] = given["x_train"][:7]
    dataset = datasets.load(shards(tmp_path, given), 0)
    x = dataset.x_train
    assert isinstance(x, Stored)
    assert x[:].tolist() == given["x_train"].tolist()
    rows = np.array([22, 2, 3, 3, 4, 0, 21])
    assert x[rows].tolist() == given["x_train"][rows].tolist()
    chosen = x.choose(np.array([1, 5, 22])).choose(np.array([2, 0]))
    assert chosen[:].tolist() == given["x_train"][[22, 1]].tolist() and chosen.shape == (2, 2)
    assert x[5:5].shape == (0, 2)


def test_small_arrays_and_compressed_ones_are_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arrays()
    for data in (archive(tmp_path, given), shards(tmp_path, given)):
        assert isinstance(datasets.load(data, 0).x_train, np.ndarray)
    monkeypatch.setattr(stored, "_LARGE_BYTES", 0)
    np.savez_compressed(tmp_path / "c.npz", **given)
    assert isinstance(
        datasets.load(config.Npz(path=str(tmp_path / "c.npz")), 0).x_train, np.ndarray
    )
    assert isinstance(datasets.load(config.Npz(path=str(tmp_path / "d.npz")), 0).x_train, Stored)


def test_labels_of_many_samples_take_few_bytes(tmp_path: Path, nothing_is_small: None) -> None:
    data = archive(tmp_path, arrays(y_train=np.arange(23.0) % 4))
    dataset = datasets.load(msgspec.structs.replace(data, targets="classes"), 0)
    assert dataset.y_train.dtype == np.uint8
    assert dataset.batch(0, 0, 5, 0, np.float32)[1].dtype == np.int64


def test_arrays_of_a_caller_may_be_mapped(tmp_path: Path) -> None:
    """`np.load(mmap_mode="r")` gives what the arrays themselves do."""
    given = arrays()
    mapped = {}
    for name, array in given.items():
        np.save(tmp_path / f"{name}.npy", array)
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    tables = {
        "data": {"name": "digits", "batch_size": 5},
        "stages": [{"layers": ["flatten", {"dense": 4}], "loss": "cross_entropy"}],
        "schedule": {"name": "locked"},
        "run": {"epochs": 0},
    }
    one, other = (
        design_of_arrays(
            experiment.parse(tables), data, tmp_path / "a.npz", tmp_path, allow_import=False
        )
        for data in (given, mapped)
    )
    assert one.meta == other.meta


class Squares:
    """Samples of a user's own, without PyTorch: a length, and items."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not 0 <= index < 12:
            raise IndexError(index)
        return np.float32([index, index * index]), index % 3


def test_samples_of_ones_own_need_no_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    opened = TorchBatches("mine", Squares(), Squares())
    assert opened.meta.outputs == 3 and opened.meta.train_samples == 12
    read = opened.read(0, 0, 12, 0, np.float32)
    x = read["h"]
    assert sorted(x[:, 0].tolist()) == list(range(12)) and (x[:, 1] == x[:, 0] ** 2).all()
    assert (read["y"] == x[:, 0] % 3).all()


# --- errors --------------------------------------------------------------------------------------


@each("write", [archive, single, shards])
@each(
    "changed",
    [
        {
            "x_train": np.where(np.arange(138).reshape(23, 6) == 125, np.nan, 1),
            "x_test": np.ones((7, 6)),
        },
        {"y_train": np.arange(23) - 3},
        {"y_train": np.where(np.arange(23) == 20, 0.5, 2.0)},
        {"y_test": np.arange(6) % 4},
        {"y_test": np.zeros((7, 2), int)},
    ],
)
def test_an_error_is_the_same_wherever_the_arrays_are(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path, dict[str, Any]], config.Npz],
    changed: dict[str, Any],
) -> None:
    def said(data: config.Npz) -> str:
        with pytest.raises(DataError) as caught:
            datasets.load(msgspec.structs.replace(data, targets="classes"), 0)
        return str(caught.value).removeprefix(data.path)

    given = arrays(**changed)
    monkeypatch.undo()  # of the case before
    expected = said(archive(tmp_path_factory.mktemp("memory"), given))
    monkeypatch.setattr(stored, "_LARGE_BYTES", 0)
    monkeypatch.setattr(stored, "_CHUNK_ROWS", 4)
    assert said(write(tmp_path_factory.mktemp("files"), given)) == expected


@each(
    "harm, words",
    [
        (lambda d: (d / "x_train-0001.npy").unlink(), "x_train-0001.npy is missing: there is x_tr"),
        (lambda d: (d / "x_train-0000.npy").unlink(), "x_train-0000.npy is missing: there is x_tr"),
        (lambda d: (d / "x_train-0002.npy").unlink(), "x_train has 3 samples and y_train 23"),
        (lambda d: cut(d / "x_test-0002.npy", 8), "x_test-0002.npy is damaged: its header claims"),
        (lambda d: cut(d / "x_test-0002.npy", 9999), "x_test-0002.npy is damaged, or no .npy file"),
        (
            lambda d: np.save(d / "x_train-0001.npy", np.zeros((1, 2, 4), np.float32)),
            "x_train-0001.npy has shape (1, 2, 4) and dtype float32; expected rows like those of",
        ),
        (
            lambda d: np.save(d / "y_train-0001.npy", np.zeros(1)),
            "y_train-0001.npy has shape (1,) and dtype float64; expected",
        ),
        (
            lambda d: np.save(d / "y_train.npy", np.zeros(3)),
            "holds both y_train.npy and y_train-0000.npy",
        ),
        (lambda d: np.save(d / "y_train-01.npy", np.zeros(3)), "holds two files with the number 1"),
        (
            lambda d: np.save(d / "y_test-0000.npy", np.array([None]), allow_pickle=True),
            "y_test-0000.npy holds Python objects",
        ),
        (
            lambda d: [p.unlink() for p in d.glob("y_test*")],
            "no array y_test; expected a file y_test.npy, or",
        ),
    ],
)
@each("call", [datasets.describe, lambda data: datasets.load(data, 0)])
def test_a_shard_that_is_missing_or_damaged_is_named(
    tmp_path_factory: pytest.TempPathFactory, call: Any, harm: Callable[[Path], Any], words: str
) -> None:
    folder = tmp_path_factory.mktemp("d")
    data = shards(folder, arrays())
    harm(folder)
    with pytest.raises(DataError) as caught:
        call(data)
    assert str(caught.value).startswith(f"{folder}: ") and words in str(caught.value)
    assert "\n" not in str(caught.value)


def cut(path: Path, count: int) -> None:
    os.truncate(path, max(10, path.stat().st_size - count))


def test_a_flipped_byte_in_an_array_that_stays_is_noticed(
    tmp_path: Path, nothing_is_small: None
) -> None:
    data = archive(tmp_path, arrays(x_train=np.ones((23, 2, 3), np.float32)))
    content = bytearray(Path(data.path).read_bytes())
    content[content.index(np.ones(3, np.float32).tobytes())] ^= 1
    Path(data.path).write_bytes(content)
    with pytest.raises(DataError, match=r"d.npz: damaged, or no .npz file at all \(Bad CRC-32"):
        datasets.load(data, 0)


def test_a_file_that_becomes_shorter_in_a_run_is_named(
    tmp_path: Path, nothing_is_small: None
) -> None:
    opened = datasets.open_batches(single(tmp_path, arrays()), 0)
    cut(tmp_path / "x_train.npy", 100)
    with pytest.raises(DataError, match=r"x_train.npy ends before row \d+; expected that it stays"):
        batches(opened)


def test_a_target_that_no_loss_can_learn_is_found_in_its_part(
    tmp_path: Path, nothing_is_small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    y = np.zeros(23)
    y[9] = 2
    data = archive(tmp_path, arrays(y_train=y, y_test=np.zeros(7)))
    layers: list[Any] = ["flatten", {"dense": 1}]
    stage = config.Stage(name="top", layers=layers, loss="sigmoid_cross_entropy")
    design = design_of(config.Experiment(data=data, stages=[stage]))
    monkeypatch.setattr(stored, "_CHUNK_ROWS", 4)
    with pytest.raises(DataError, match=r"y_train\[8:\]: .* a target of 2.0 \(sample 1, output 0"):
        make_source(design, design.plan.groups[0])


# --- memory --------------------------------------------------------------------------------------


class Memory:
    """A callback that looks at the memory of the worker processes while they are there."""

    def __init__(self) -> None:
        self.found: list[dict[str, int]] = []

    def on_evaluation(self, run: asyncdni.Training) -> None:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                lines = (folder / "status").read_text().splitlines()
            except OSError:
                continue
            fields = dict(line.split(":", 1) for line in lines)
            if int(fields["PPid"]) == os.getpid() and "VmHWM" in fields:
                sizes = {k: v for k, v in fields.items() if v.endswith("kB")}
                self.found.append({k: int(v.split()[0]) for k, v in sizes.items()})


@pytest.mark.long
def test_a_worker_stays_small_however_large_its_data_are(tmp_path: Path) -> None:
    """2 GB of images, all zero, so that the disk holds next to nothing of them."""
    count = 2_000_000_000 // 3072
    for name, rows in (("train", count), ("test", 64)):
        np.lib.format.open_memmap(tmp_path / f"x_{name}.npy", "w+", np.uint8, (rows, 3072))
        np.save(tmp_path / f"y_{name}.npy", (np.arange(rows) % 10).astype(np.uint8))
    assert (tmp_path / "x_train.npy").stat().st_blocks * 512 < 1e6, "the disk holds no sparse files"
    memory = Memory()
    tables = {
        "data": {"name": "npz", "path": str(tmp_path), "batch_size": 64},
        "stages": [{"layers": [{"dense": 10}], "loss": "cross_entropy"}],
        "schedule": {"name": "locked"},
        "run": {"epochs": 1, "max_steps": 50},
    }
    asyncdni.train(tables, callbacks=[memory], progress=False)
    # VmHWM is the largest VmRSS so far, pages of files included.
    assert memory.found and all(one["VmHWM"] < 200_000 for one in memory.found), memory.found
