"""MNIST: where its files are looked for, how they are checked, and the digits made of it."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import sys
from pathlib import Path
from typing import Any

import make_digits
import numpy as np
import pytest

from asyncdni import config
from asyncdni import data as datasets
from asyncdni.data import download as folders
from asyncdni.data import download as transfer
from asyncdni.data import mnist
from asyncdni.data import mnist as idx
from asyncdni.data.base import ARRAYS
from asyncdni.data.meta import Meta
from asyncdni.errors import DataError

DIGITS_SHA256 = {
    "x_train": "6c71c08d40f6fee52ef20eaef1edb5a9f850dfeb024fd892e01b614150078b8d",
    "y_train": "46ebd549aa1179618816237ffabe1f6c3a16daa09b90185f66bb527d4ecd31b0",
    "x_test": "3f79ca610d726c969becb1b592ae3aed527684cd9de00a3180c2312d772b5d6c",
    "y_test": "aa166efde2c452d3d6b143794d8fe296e45e20ccd95b7a11cad120bf095946eb",
}


def test_the_embedded_digits_are_those_that_were_chosen() -> None:
    dataset = datasets.load(config.Digits(), seed=0)
    sums = {name: hashlib.sha256(getattr(dataset, name)).hexdigest() for name in ARRAYS}
    assert sums == DIGITS_SHA256
    assert all(getattr(dataset, name).dtype == np.uint8 for name in ARRAYS)


def test_the_digits_are_balanced_and_described_as_they_are() -> None:
    dataset = datasets.load(config.Digits(), seed=0)
    assert np.bincount(dataset.y_train).tolist() == [1000] * 10
    assert np.bincount(dataset.y_test).tolist() == [200] * 10
    assert dataset.meta == datasets.describe(config.Digits())


def test_the_digits_can_be_made_again_from_mnist() -> None:
    """Needs the full MNIST in $ASYNCDNI_DATA."""
    if not os.environ.get("ASYNCDNI_DATA"):
        pytest.skip("ASYNCDNI_DATA is not set: no MNIST to make the digits from")
    full = datasets.load(config.Mnist(), seed=0)
    assert full.meta == mnist.META
    embedded = datasets.load(config.Digits(), seed=0)
    for name, array in make_digits.subset(full).items():
        assert (array == getattr(embedded, name)).all(), name


def test_the_subset_is_spread_evenly_and_in_file_order() -> None:
    labels = np.tile(np.arange(10), 4)
    chosen = make_digits._chosen(labels, 2)
    assert chosen.tolist() == [*range(10), *range(20, 30)]


def idx_bytes(array: Any) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def small_mnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """Contents of four small files that stand for the published ones; no folder has them yet."""
    rng = np.random.default_rng(0)
    contents = {}
    for file, samples in zip(mnist.FILES, (20, 20, 10, 10), strict=True):
        shape = (samples, 28, 28) if file.axes == 3 else (samples,)
        contents[file.name] = idx_bytes(rng.integers(0, 10, shape))
    files = [
        file._replace(size=len(raw), sha256=hashlib.sha256(raw).hexdigest())
        for file, raw in zip(mnist.FILES, contents.values(), strict=True)
    ]
    monkeypatch.setattr(mnist, "FILES", tuple(files))
    monkeypatch.delenv("ASYNCDNI_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return contents


def place(folder: Path, contents: dict[str, bytes], *, packed: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in contents.items():
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(raw) if packed else raw)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dotted", [True, False])
def test_mnist_is_read_packed_or_plain_under_both_names(
    small_mnist: dict[str, bytes], tmp_path: Path, packed: bool, dotted: bool
) -> None:
    named = {
        name.replace("-idx", ".idx") if dotted else name: raw for name, raw in small_mnist.items()
    }
    place(tmp_path / "given", named, packed=packed)
    dataset = datasets.load(config.Mnist(path=str(tmp_path / "given")), seed=0)
    assert dataset.meta == Meta((784,), "classes", 10, 20, 10)
    assert dataset.x_train.tobytes() == small_mnist["train-images-idx3-ubyte"][16:]
    assert dataset.y_test.tobytes() == small_mnist["t10k-labels-idx1-ubyte"][8:]


@pytest.mark.parametrize("where", ["data", "data/mnist", "cache/asyncdni/mnist"])
def test_mnist_is_looked_for_where_the_error_says(
    small_mnist: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("ASYNCDNI_DATA", str(tmp_path / "data"))
    with pytest.raises(DataError) as caught:
        datasets.load(config.Mnist(), seed=0)
    text = str(caught.value)
    assert str(tmp_path / where) in text and "`asyncdni data mnist`" in text and "\n" not in text
    assert all(name in text for name in small_mnist)
    place(tmp_path / where, small_mnist)
    assert datasets.load(config.Mnist(), seed=0).meta.train_samples == 20


@pytest.mark.parametrize("where", ["given", "given/mnist"])
def test_a_given_folder_is_the_only_one_that_is_looked_at(
    small_mnist: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("ASYNCDNI_DATA", str(tmp_path / "data"))
    place(tmp_path / "data", small_mnist)
    place(tmp_path / "cache" / "asyncdni" / "mnist", small_mnist)
    data = config.Mnist(path=str(tmp_path / "given"))
    with pytest.raises(DataError) as caught:
        datasets.load(data, seed=0)
    text = str(caught.value)
    assert f"`asyncdni data mnist --folder {tmp_path / 'given'}`" in text and "data.path" in text
    assert str(tmp_path / where) in text and str(tmp_path / "data") not in text
    place(tmp_path / where, small_mnist)
    assert datasets.load(data, seed=0).meta.train_samples == 20


def test_only_files_that_are_missing_are_called_so(
    small_mnist: dict[str, bytes], tmp_path: Path
) -> None:
    del small_mnist["t10k-labels-idx1-ubyte"]
    place(tmp_path, small_mnist)
    with pytest.raises(DataError, match=r"no t10k-labels-idx1-ubyte \(plain or .gz\) in any of"):
        datasets.load(config.Mnist(path=str(tmp_path)), seed=0)


def packed_but_cut(raw: bytes) -> bytes:
    return gzip.compress(raw)[:-10]


def packed_with_damage(raw: bytes) -> bytes:
    packed = bytearray(gzip.compress(raw))
    packed[len(packed) // 2] ^= 0xFF
    return bytes(packed)


DAMAGE = [
    (packed_but_cut, "damaged gzip file (Compressed file ended"),
    (packed_with_damage, "damaged gzip file ("),
    (lambda raw: raw[:-1], "bytes; expected"),
    (lambda raw: raw[:6], "has 6 bytes; expected a header of 8"),
    (lambda raw: b"<html>" + raw[6:], "starts with 0x3c68746d; expected 0x00000801, an IDX file"),
    (lambda raw: raw[:-1] + b"\x0b", "sha256 of the uncompressed bytes is"),
    (lambda raw: gzip.compress(raw + b"\0"), "longer than the 28 bytes that were expected"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_a_damaged_file_is_named_with_what_was_expected(
    small_mnist: dict[str, bytes], tmp_path: Path, damage: Any, words: str
) -> None:
    place(tmp_path, small_mnist, packed=False)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        datasets.load(config.Mnist(path=str(tmp_path)), seed=0)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and words in text and "\n" not in text
    assert text.endswith(f"`asyncdni data mnist --folder {tmp_path}`")


def test_idx_refuses_a_header_that_claims_too_much() -> None:
    with pytest.raises(DataError, match=r"f: has 10 bytes; expected 4294967303 for shape"):
        idx.parse(bytes([0, 0, 8, 1]) + b"\xff" * 4 + b"ab", "f", axes=1)


def test_the_cache_folder_is_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(sys, "platform", "linux")
    assert folders.cache_folder() == Path("/home/someone/.cache/asyncdni")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert folders.cache_folder() == Path("/home/someone/Library/Caches/asyncdni")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert folders.cache_folder() == Path("/local/asyncdni")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert folders.cache_folder() == Path("/xdg/asyncdni")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user id has no name."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    for name in ("XDG_CACHE_HOME", "ASYNCDNI_DATA"):
        monkeypatch.delenv(name, raising=False)
    for data in (config.Mnist(), config.Cifar10(), config.Text()):
        with pytest.raises(DataError, match=r"in any of .*ASYNCDNI_DATA, which is not set"):
            datasets.open_batches(data, seed=0)
    with pytest.raises(DataError, match=r"no home folder .*--folder"):
        transfer.base_folder()
    monkeypatch.setenv("ASYNCDNI_DATA", "/data")
    assert transfer.base_folder() == Path("/data")
    assert folders.data_folders("", "mnist") == [Path("/data"), Path("/data/mnist")]
