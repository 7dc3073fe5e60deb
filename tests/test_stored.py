"""Data sets that stay in their files: the same samples as in memory, little memory, clear errors."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from each import each

import asyncdni
from asyncdni import config
from asyncdni import data as datasets
from asyncdni.data import stored
from asyncdni.data.base import ARRAYS, Dataset
from asyncdni.data.checks import measured
from asyncdni.data.stored import Stored
from asyncdni.errors import DataError
from asyncdni.launch.train import design_of
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
    monkeypatch.undo()
    in_memory = archive(tmp_path_factory.mktemp("memory"), given)
    in_memory = msgspec.structs.replace(in_memory, **options)
    expected = datasets.identify(in_memory), batches(datasets.open_batches(in_memory, 0))
    sums = datasets.checksums(in_memory)

    monkeypatch.setattr(stored, "_LARGE_BYTES", 0)
    in_files = msgspec.structs.replace(write(tmp_path_factory.mktemp("files"), given), **options)
    opened = datasets.open_batches(in_files, 0)
    assert isinstance(opened, Dataset)
    assert isinstance(opened.x_train, Stored) or np.isfortran(given["x_train"])
    meta = datasets.identify(in_files)
    assert batches(opened) == expected[1]
    assert opened.meta == datasets.describe(in_files)
    if write is shards:  # whose checksums are of several files
        assert meta.checksums.keys() == sums.keys()
        meta = msgspec.structs.replace(meta, checksums=sums)
    assert meta == expected[0]
