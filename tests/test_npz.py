"""A user's own arrays: what is read, and what is refused with which words."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncdni import config, datasets
from asyncdni.datasets.base import Meta
from asyncdni.errors import DataError


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


def saved(path: Path, **changed: Any) -> config.Npz:
    kept = {name: array for name, array in arrays(**changed).items() if array is not None}
    np.savez(path, **kept)
    return config.Npz(path=str(path))


@pytest.mark.parametrize(
    ("changed", "meta"),
    [
        ({}, Meta((2,), "classes", 3, 6, 3)),
        ({"y_test": np.array([0, 1, 4], np.uint8)}, Meta((2,), "classes", 5, 6, 3)),
        (
            {"x_train": np.zeros((6, 3, 4), np.uint8), "x_test": np.zeros((3, 3, 4), np.uint8)},
            Meta((3, 4), "classes", 3, 6, 3),
        ),
        ({"y_train": np.zeros(6), "y_test": np.zeros(3)}, Meta((2,), "values", 1, 6, 3)),
        (
            {"y_train": np.zeros((6, 4), np.float32), "y_test": np.zeros((3, 4), np.float32)},
            Meta((2,), "values", 4, 6, 3),
        ),
    ],
)
def test_npz_is_described_as_it_is(tmp_path: Path, changed: Any, meta: Meta) -> None:
    data = saved(tmp_path / "d.npz", **changed)
    assert datasets.describe(data) == datasets.load(data, seed=0).meta == meta


def test_npz_keeps_the_numbers(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 2))
    path = tmp_path / "d.npz"
    np.savez_compressed(path, **arrays(x_train=np.asfortranarray(x)))
    dataset = datasets.load(config.Npz(path=str(path)), seed=0)
    order = dataset.batch(0, 0, 6, 0, np.float64)
    assert sorted(order[0].tolist()) == sorted(x.tolist())


@pytest.mark.parametrize("call", [datasets.describe, lambda data: datasets.load(data, seed=0)])
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"y_test": None}, "no array y_test; expected x_train, y_train, x_test, y_test, found x_t"),
        (
            {"x_train": np.array([[None]] * 6)},
            "x_train holds Python objects, a pickle, which is nev",
        ),
        ({"y_test": np.array(["a", "b", "c"])}, "y_test has shape (3,) and dtype <U1; expected"),
        ({"y_train": np.zeros(5, int)}, "x_train has 6 samples and y_train 5"),
        ({"y_test": np.zeros(3)}, "y_test has shape (3, 1) and dtype float64; expected (samples,)"),
        ({"x_test": np.zeros((3, 9))}, "x_train have shape (2,) and those of x_test (9,)"),
    ],
)
def test_an_npz_of_another_form_is_refused_by_load_and_describe(
    tmp_path: Path, call: Any, changed: Any, words: str
) -> None:
    data = saved(tmp_path / "d.npz", **changed)
    with pytest.raises(DataError) as caught:
        call(data)
    assert str(caught.value).startswith(f"{data.path}: ") and words in str(caught.value)


@pytest.mark.parametrize("call", [datasets.describe, lambda data: datasets.load(data, seed=0)])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, call: Any) -> None:
    path = tmp_path / "d.npz"
    data = config.Npz(path=str(path))
    with pytest.raises(DataError, match=r"d.npz: no such file; expected an .npz file with x_train"):
        call(data)
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"d.npz: damaged, or no .npz file at all"):
        call(data)
    saved(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"d.npz: damaged, or no .npz file at all"):
        call(data)
    with pytest.raises(DataError, match="can't be read"):
        call(config.Npz(path=str(tmp_path)))


def test_an_npz_with_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    data = saved(tmp_path / "d.npz", x_train=np.ones((6, 2)))
    content = bytearray(Path(data.path).read_bytes())
    content[content.index(np.ones(2).tobytes())] ^= 1
    Path(data.path).write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        datasets.load(data, seed=0)


def test_a_header_that_claims_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    data = saved(tmp_path / "d.npz")
    with zipfile.ZipFile(data.path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["x_train.npy"] = members["x_train.npy"].replace(b"(6, 2)", b"(9, 9)")
    with zipfile.ZipFile(data.path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(
        DataError, match="x_train is damaged: its header claims 452 bytes, it has 176"
    ):
        datasets.describe(data)


def test_nan_in_an_npz_is_named_with_its_file(tmp_path: Path) -> None:
    data = saved(tmp_path / "d.npz", x_train=with_value((6, 2), (5, 0), np.nan))
    with pytest.raises(DataError, match=r"d.npz: x_train has nan in sample 5; expected finite"):
        datasets.load(data, seed=0)
