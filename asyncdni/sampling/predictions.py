"""Test images with what the network takes them for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asyncdni import config
from asyncdni.config.data import Cifar10, DigitPairs
from asyncdni.datasets import load
from asyncdni.datasets.meta import Array
from asyncdni.evaluation import predict
from asyncdni.run import Result
from asyncdni.sampling.images import as_images, image_shape

__all__ = ["Predictions", "predict_images", "tells_images_apart"]

#: Of the CIFAR-10 binary files, in the order of their labels (Krizhevsky 2009).
_CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@dataclass(frozen=True)
class Predictions:
    """Test images, what they are and what the network says."""

    images: Array  # (N, H, W) or (N, H, W, 3), in [0, 1]
    truth: list[str]
    told: list[str]

    @property
    def right(self) -> int:
        """How many are told as what they are."""
        return sum(one == other for one, other in zip(self.truth, self.told, strict=True))


def tells_images_apart(run: Result) -> bool:
    """Whether the run is of a network that says what images show."""
    data = run.experiment.data
    images = isinstance(data, config.Digits | config.Mnist | DigitPairs | Cifar10)
    labels = getattr(data, "targets", "labels") == "labels"
    return images and labels and image_shape(run.meta.input_shape) is not None


def predict_images(run: Result, *, count: int = 20, allow_import: bool = False) -> Predictions:
    """The first `count` test images. Raises `DataError` where the data set is gone."""
    data = run.experiment.data
    dataset = load(data, run.experiment.run.seed)
    x, y = dataset.x_test[:count], dataset.y_test[:count]
    outputs = list(predict(run, x, allow_import=allow_import).values())[-1]
    names = _names(data)
    if dataset.classes is None:  # one output: of the second kind's odds the logarithm, or 0 to 1
        losses = [stage.loss for stage in run.experiment.stages if stage.loss]
        told = outputs[:, 0] > (0 if losses[-1] == "sigmoid_cross_entropy" else 0.5)
        truth = y[:, 0] > 0.5
    else:
        told, truth = outputs.argmax(axis=1), y
    scaled = x / np.float32(255) if x.dtype == np.uint8 else x
    return Predictions(
        as_images(scaled, run.meta.input_shape),
        [names[int(one)] for one in truth],
        [names[int(one)] for one in told],
    )


def _names(data: config.Data) -> list[str]:
    if isinstance(data, DigitPairs):
        return [str(data.first), str(data.second)]
    return list(_CIFAR10) if isinstance(data, Cifar10) else [str(digit) for digit in range(10)]
