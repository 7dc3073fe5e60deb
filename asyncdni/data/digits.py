"""10,000 training and 2,000 test images of MNIST, embedded in the package: no download is needed.

Each class has 1,000 training and 200 test images, spread evenly over MNIST's own order, which is
not uniform (the second half of its test set is the harder one). Of the n images of a class in file
order, numbered 0 … n - 1, those numbered floor(i n / m) for i = 0 … m - 1 are chosen, where m is
1,000 or 200. The chosen images stay in file order. `tests/make_digits.py` builds the file again.
"""

from __future__ import annotations

from pathlib import Path

from asyncdni import config
from asyncdni.data import mnist, npz
from asyncdni.data.base import Dataset
from asyncdni.data.meta import Meta

__all__ = ["FILE", "META", "describe", "load"]

FILE = Path(__file__).with_name("digits.npz")

#: The shapes and counts: those of MNIST, with fewer samples.
META = Meta(
    input_shape=(784,), targets="classes", outputs=10, train_samples=10_000, test_samples=2_000
)


def describe(data: config.Digits) -> Meta:
    """Return the shapes and counts: `META`, or the same for image planes; reads no file."""
    return mnist.described_as(META, planes=data.planes)


def load(data: config.Digits, seed: int) -> Dataset:
    """Return the embedded images; nothing in them depends on the seed."""
    images = Dataset("digits", **npz.read(FILE), classes=META.outputs)
    return mnist.as_planes(images, planes=data.planes)
