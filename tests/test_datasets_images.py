"""Image planes, pairs of digits, and CIFAR-10 from generated files in its binary format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from each import each

from asyncdni import config
from asyncdni import data as datasets
from asyncdni.config import Cifar10, DigitPairs
from asyncdni.data import cifar10
from asyncdni.errors import ConfigError, DataError

# --- planes --------------------------------------------------------------------------------------


def test_planes_are_the_same_digits_in_another_shape() -> None:
    flat, planes = (datasets.load(config.Digits(planes=planes), 0) for planes in (False, True))
    assert planes.meta.input_shape == (1, 28, 28) and flat.meta.input_shape == (784,)
    x, y = flat.batch(1, 2, 16, 3, np.float32)
    x_planes, y_planes = planes.batch(1, 2, 16, 3, np.float32)
    assert x_planes.shape == (16, 1, 28, 28) and (x_planes.reshape(16, 784) == x).all()
    assert (y == y_planes).all()


@pytest.mark.parametrize("validation", [0, 100])
def test_planes_are_described_without_a_file(validation: int) -> None:
    meta = datasets.describe(config.Mnist(planes=True, path="nowhere", validation=validation))
    assert meta.input_shape == (1, 28, 28) and meta.test_samples == (validation or 10_000)
    digits = config.Digits(planes=True, validation=validation)
    assert datasets.describe(digits) == datasets.load(digits, 0).meta


# --- digit pairs ---------------------------------------------------------------------------------


def test_a_pair_has_images_of_both_kinds_and_of_no_other() -> None:
    data = DigitPairs(first=3, second=8, examples=60, test_examples=40)
    whole, pairs = datasets.load(config.Digits(), 0), datasets.load(data, 0)
    for part in ("train", "test"):
        images, labels = getattr(whole, f"x_{part}"), getattr(whole, f"y_{part}")
        known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
        drawn, targets = getattr(pairs, f"x_{part}"), getattr(pairs, f"y_{part}")
        assert len({image.tobytes() for image in drawn}) == len(drawn)
        named = [known[image.tobytes()] for image in drawn]
        assert (targets[:, 0] == (np.array(named) == 8)).all() and set(named) == {3, 8}


def test_the_seed_draws_the_pairs() -> None:
    one, again, other = (datasets.load(DigitPairs(), seed) for seed in (0, 0, 1))
    assert (one.x_train == again.x_train).all() and (one.x_train != other.x_train).any()
    more = datasets.load(DigitPairs(examples=200), 0)
    assert (more.x_test == one.x_test).all() and (more.x_train[:100] == one.x_train).all()


def test_pairs_are_described_as_they_are() -> None:
    for data in (DigitPairs(), DigitPairs(steps=2, validation=10), DigitPairs(test_examples=400)):
        assert datasets.describe(data) == datasets.load(data, 0).meta, data
    meta = datasets.describe(DigitPairs(steps=2))
    assert meta.input_shape == (2, 784) and (meta.targets, meta.outputs) == ("values", 1)
    assert (meta.train_samples, meta.test_samples) == (100, 20)


def test_every_time_stamp_shows_the_same_image() -> None:
    plain, stamped = (datasets.load(DigitPairs(steps=steps), 0) for steps in (1, 3))
    x, _ = stamped.batch(0, 0, 10, 0, np.float32)
    assert x.shape == (10, 3, 784)
    assert (x == plain.batch(0, 0, 10, 0, np.float32)[0][:, None]).all()


@each(
    "options, words",
    [
        ({"first": 4, "second": 4}, "data.second: 4 is data.first too"),
        ({"examples": 2001}, "data.examples: 2001 are more than the 2000 images of 0 and 1 in"),
        ({"test_examples": 401}, "data.test_examples: 401 are more than the 400 images of 0 and 1"),
    ],
)
def test_pairs_that_there_are_not_are_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        datasets.load(DigitPairs(**options), 0)


def test_pairs_of_mnist_name_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="MNIST is incomplete"):
        datasets.load(DigitPairs(source="mnist", path=str(tmp_path)), 0)


def test_pairs_are_drawn_from_mnist() -> None:
    """Needs the full MNIST in $ASYNCDNI_DATA."""
    if not os.environ.get("ASYNCDNI_DATA"):
        pytest.skip("ASYNCDNI_DATA is not set: no MNIST to draw from")
    data = DigitPairs(source="mnist", examples=12_000, test_examples=2_000)
    assert 0.45 < datasets.load(data, 0).y_train.mean() < 0.55


# --- CIFAR-10 ------------------------------------------------------------------------------------


def records(count: int, seed: int) -> tuple[Any, Any]:
    """Labels (N,) and images (N, 3, 32, 32)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count, dtype=np.uint8)
    return labels, rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def binary(labels: Any, images: Any) -> bytes:
    return b"".join(
        bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True)
    )


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """A folder of small files: 1, 2, … 5 training images, 4 to test on."""
    folder = tmp_path / "cifar"
    folder.mkdir()
    for number, name in enumerate(cifar10.FILES, 1):
        (folder / name).write_bytes(binary(*records(number, number)))
    (folder / cifar10.TEST_FILE).write_bytes(binary(*records(4, 0)))
    return folder


def test_cifar10_is_read_record_by_record(generated: Path) -> None:
    dataset = datasets.load(Cifar10(path=str(generated)), 0)
    parts = [records(number, number) for number in range(1, 6)]
    assert (dataset.y_train == np.concatenate([labels for labels, _ in parts])).all()
    assert (dataset.x_train == np.concatenate([images for _, images in parts])).all()
    assert (dataset.x_test == records(4, 0)[1]).all() and dataset.x_test.dtype == np.uint8
    x, y = dataset.test_batch(0, 4, np.float32)
    assert x.shape == (4, 3, 32, 32) and x.max() <= 1 and y.dtype == np.int64


@pytest.mark.parametrize("validation", [0, 5])
def test_cifar10_is_described_as_it_is(generated: Path, validation: int) -> None:
    data = Cifar10(path=str(generated), validation=validation)
    meta = datasets.describe(data)
    assert meta == datasets.load(data, 0).meta
    assert meta.input_shape == (3, 32, 32) and meta.outputs == 10
    assert meta.train_samples == 15 - validation and meta.test_samples == (validation or 4)


@pytest.mark.parametrize("where", ["data", "data/cifar10", "data/cifar10/cifar-10-batches-bin"])
def test_cifar10_is_looked_for_in_the_data_folders(
    generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("ASYNCDNI_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError) as caught:
        datasets.describe(Cifar10())
    words = str(caught.value)
    assert str(tmp_path / where) in words and "`asyncdni data cifar10`" in words
    assert all(name in words for name in (*cifar10.FILES, cifar10.TEST_FILE))
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    generated.rename(tmp_path / where)
    assert datasets.describe(Cifar10()).train_samples == 15


def test_only_files_of_cifar10_that_are_missing_are_named(generated: Path) -> None:
    (generated / cifar10.FILES[1]).unlink()
    with pytest.raises(DataError, match=r"no data_batch_2.bin in any of .*mend data.path"):
        datasets.describe(Cifar10(path=str(generated)))


@pytest.mark.parametrize("size", [0, 3072, 3074, 2 * 3073 - 1])
def test_images_of_a_wrong_size_are_refused(generated: Path, size: int) -> None:
    path = generated / cifar10.FILES[2]
    path.write_bytes(bytes(size))
    for use in (datasets.describe, lambda data: datasets.load(data, 0)):
        with pytest.raises(DataError) as caught:
            use(Cifar10(path=str(generated)))
        words = f"{path}: has {size} bytes; expected a multiple of 3073"
        assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_a_label_out_of_range_is_named_with_its_file_and_record(generated: Path) -> None:
    path = generated / cifar10.TEST_FILE
    labels, images = records(4, 0)
    labels[2] = 10
    path.write_bytes(binary(labels, images))
    with pytest.raises(DataError, match=rf"{path}: has label 10 in record 2; expected 0 to 9"):
        datasets.load(Cifar10(path=str(generated)), 0)
