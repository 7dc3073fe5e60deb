"""Builds the embedded digits out of MNIST: `python -m asyncdni.data.make_digits [FILE]`.

Which images are chosen is documented in `digits`. The arrays depend on nothing but MNIST's
published files; the bytes of the file may differ between versions of zlib.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from asyncdni.data import digits, mnist
from asyncdni.data.base import ARRAYS, Dataset
from asyncdni.data.download import data_folders
from asyncdni.data.meta import Array

__all__ = ["subset"]

_CLASSES = digits.META.outputs


def subset(full: Dataset) -> dict[str, Array]:
    """The four arrays of the embedded file, uint8, taken from all of MNIST."""
    train = _chosen(full.y_train, digits.META.train_samples // _CLASSES)
    test = _chosen(full.y_test, digits.META.test_samples // _CLASSES)
    arrays = (full.x_train[train], full.y_train[train], full.x_test[test], full.y_test[test])
    return dict(zip(ARRAYS, arrays, strict=True))


def _chosen(labels: Array, count: int) -> Array:
    """Positions of `count` samples of each class, spread evenly, in file order."""
    chosen = []
    for label in range(_CLASSES):
        positions = np.flatnonzero(labels == label)
        chosen.append(positions[np.arange(count) * len(positions) // count])
    return np.sort(np.concatenate(chosen))


def _main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else digits.FILE
    arrays = subset(mnist.read(data_folders("", "mnist")))
    np.savez_compressed(
        path,
        x_train=arrays["x_train"],
        y_train=arrays["y_train"],
        x_test=arrays["x_test"],
        y_test=arrays["y_test"],
    )
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    _main()
