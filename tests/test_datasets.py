"""Data sets: shapes, batches, order, and what is refused with which words."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncdni import config, datasets
from asyncdni.datasets import digits, folders, idx, make_digits, mnist
from asyncdni.datasets.base import ARRAYS, Dataset, Meta
from asyncdni.errors import DataError

DIGITS_SHA256 = {
    "x_train": "",
    "y_train": "",
    "x_test": "",
    "y_test": "",
}


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


@pytest.mark.parametrize("stored", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
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


@pytest.mark.parametrize("stored", [np.uint8, np.float32, np.float64])
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


def test_batches_are_copies_of_the_data() -> None:
    dataset = numbered()
    dataset.test_batch(0, 3, np.float32)[0][:] = -1
    dataset.batch(0, 0, 3, 0, np.float32)[0][:] = -1
    assert (dataset.x_test >= 0).all() and (dataset.x_train >= 0).all()


@pytest.mark.parametrize(
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
    ({"y_test": np.array([0.0, 1.5, 1])}, "y_test has shape (3,) and dtype float64; expected (samp"),
    ({"y_test": np.zeros((3, 1), int)}, "y_test has shape (3, 1) and dtype int64; expected (sampl"),
    ({"y_train": np.zeros(5, int)}, "x_train has 6 samples and y_train 5; expected as many of each"),
    ({"x_test": np.zeros((3, 4))}, "x_train have shape (2,) and those of x_test (4,); expected the"),
    ({"x_test": np.zeros((3, 2), np.uint8)}, "x_train is of dtype float32 and x_test uint8; expecte"),
    ({"x_train": np.zeros((6, 2), int)}, "x_train is of dtype int64; expected uint8 (scaled by 1/2"),
    ({"x_train": np.zeros((6, 2), bool)}, "x_train is of dtype bool; expected uint8"),
    ({"x_train": np.zeros(6)}, "x_train has shape (6,); expected (samples, features"),
    ({"x_train": np.zeros((0, 2)), "y_train": np.zeros(0, int)}, "x_train is empty: shape (0, 2)"),
    ({"x_test": np.zeros((3, 0))}, "x_test is empty: shape (3, 0)"),
]


@pytest.mark.parametrize(("changed", "words"), REFUSED)
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


# --- digits --------------------------------------------------------------------------------------


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


def test_the_digits_can_be_made_again_from_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
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


# --- MNIST ---------------------------------------------------------------------------------------


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
    named = {name.replace("-idx", ".idx") if dotted else name: raw for name, raw in small_mnist.items()}
    place(tmp_path / "given", named, packed=packed)
    dataset = datasets.load(config.Mnist(path=str(tmp_path / "given")), seed=0)
    assert dataset.meta == Meta((784,), "classes", 10, 20, 10)
    assert dataset.x_train.tobytes() == small_mnist["train-images-idx3-ubyte"][16:]
    assert dataset.y_test.tobytes() == small_mnist["t10k-labels-idx1-ubyte"][8:]


@pytest.mark.parametrize("where", ["given", "given/mnist", "data", "data/mnist", "cache/asyncdni/mnist"])
def test_mnist_is_looked_for_where_the_error_says(
    small_mnist: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("ASYNCDNI_DATA", str(tmp_path / "data"))
    data = config.Mnist(path=str(tmp_path / "given"))
    with pytest.raises(DataError) as caught:
        datasets.load(data, seed=0)
    text = str(caught.value)
    assert str(tmp_path / where) in text and "`asyncdni data mnist`" in text and "\n" not in text
    assert all(name in text for name in small_mnist)
    place(tmp_path / where, small_mnist)
    assert datasets.load(data, seed=0).meta.train_samples == 20


def test_only_files_that_are_missing_are_called_so(
    small_mnist: dict[str, bytes], tmp_path: Path
) -> None:
    labels = small_mnist.pop("t10k-labels-idx1-ubyte")
    place(tmp_path, small_mnist)
    with pytest.raises(DataError, match="no t10k-labels-idx1-ubyte .plain or .gz. in any of"):
        datasets.load(config.Mnist(path=str(tmp_path)), seed=0)
    assert labels


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


# --- addition ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 8, 62])
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


# --- npz -----------------------------------------------------------------------------------------


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
        ({"x_train": np.array([[None]] * 6)}, "x_train holds Python objects, a pickle, which is nev"),
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
    with pytest.raises(DataError, match="d.npz: no such file; expected an .npz file with x_train"):
        call(data)
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match="d.npz: damaged, or no .npz file at all"):
        call(data)
    saved(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="d.npz: damaged, or no .npz file at all"):
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
    with pytest.raises(DataError, match="x_train is damaged: its header claims 452 bytes, it has 176"):
        datasets.describe(data)


def test_nan_in_an_npz_is_named_with_its_file(tmp_path: Path) -> None:
    data = saved(tmp_path / "d.npz", x_train=with_value((6, 2), (5, 0), np.nan))
    with pytest.raises(DataError, match=r"d.npz: x_train has nan in sample 5; expected finite"):
        datasets.load(data, seed=0)


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
