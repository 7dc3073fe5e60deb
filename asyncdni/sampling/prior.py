"""Images from a variational autoencoder: drawn from the prior of its codes, and made again.

The codes of a trained autoencoder lie near N(0, 1) (Kingma and Welling 2014), so a code drawn from
there and sent through what follows the `gaussian` layer gives an image like those of the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from asyncdni.datasets import load
from asyncdni.datasets.meta import Array
from asyncdni.errors import ConfigError
from asyncdni.evaluation import predict
from asyncdni.nn.layers import Gaussian
from asyncdni.nn.streams import stream
from asyncdni.run import Result
from asyncdni.sampling.images import as_images, image_shape
from asyncdni.sampling.stages import TrainedStage, applied, joined, load_stages

__all__ = ["Reconstructions", "draw_images", "has_prior", "reconstruct"]


@dataclass(frozen=True)
class Reconstructions:
    """Test images, and what their codes' means give."""

    images: Array  # (N, H, W) or (N, H, W, 3), in [0, 1]
    made: Array  # likewise


def has_prior(run: Result) -> bool:
    """Whether the run is of an autoencoder of images with a `gaussian` layer in it."""
    to_itself = getattr(run.experiment.data, "targets", "labels") == "inputs"
    named = [_name(spec) for stage in run.experiment.stages for spec in stage.layers]
    shown = image_shape(run.meta.input_shape) is not None
    return to_itself and shown and named.count("gaussian") == 1


def draw_images(
    run: Result, *, count: int = 60, seed: int = 0, allow_import: bool = False
) -> Array:
    """`count` images, (N, H, W) or (N, H, W, 3) in [0, 1], of codes drawn from N(0, 1).

    Raises `ConfigError` for a count below 1, and where an image takes more than its code.
    """
    if count < 1:
        raise ConfigError(f"count {count}: expected a number of images, 1 or more")
    stages = load_stages(run, allow_import=allow_import)
    codes = stream(seed, "sample", "codes").standard_normal((count, _code_width(stages)))
    with threadpool_limits(run.experiment.run.threads):
        x = _decoded(stages, codes.astype(run.experiment.run.dtype))
    return as_images(_shown(run, x), run.meta.input_shape)


def reconstruct(run: Result, *, count: int = 20, allow_import: bool = False) -> Reconstructions:
    """The first `count` test images and their reconstructions.

    Raises `DataError` where the data set is gone."""
    data = run.experiment.data
    x = load(data, run.experiment.run.seed).x_test[:count]
    outputs = predict(run, x, allow_import=allow_import)
    made = _shown(run, list(outputs.values())[-1])
    shape = run.meta.input_shape
    scaled = x / np.float32(255) if x.dtype == np.uint8 else x
    return Reconstructions(as_images(scaled, shape), as_images(made, shape))


def _name(spec: object) -> object:
    """Of a layer as it stands in the experiment file."""
    return next(iter(spec)) if isinstance(spec, dict) else spec


def _place(stage: TrainedStage) -> int | None:
    """Of the gaussian layer in the stage."""
    places = [i for i, layer in enumerate(stage.layers) if isinstance(layer, Gaussian)]
    return places[0] if places else None


def _code_width(stages: list[TrainedStage]) -> int:
    for stage in stages:
        place = _place(stage)
        if place is not None:
            return stage.shapes[place][0]
    raise AssertionError("see has_prior")


def _decoded(stages: list[TrainedStage], codes: Array) -> Array:
    """The network's output for codes (N, Z): of what lies behind them alone."""
    known: dict[str, Array] = {}
    for stage in stages:
        place, name = _place(stage), stage.node.name
        if place is not None:
            known[name] = applied(stage.layers[place + 1 :], codes)
        elif all(one in known for one in stage.node.inputs):
            known[name] = applied(stage.layers, joined(stage.node, known))
    last = [stage.node for stage in stages if stage.node.loss][-1]
    if last.name not in known:
        raise ConfigError(
            f"an image can't be drawn from a code alone: stage {last.name}, which makes it, needs "
            "more than the output of the gaussian layer; evaluate and predict can be used"
        )
    return known[last.name]


def _shown(run: Result, x: Array) -> Array:
    """Outputs as brightness in [0, 1]: probabilities of logits, or the values themselves."""
    losses = [stage.loss for stage in run.experiment.stages if stage.loss]
    if losses[-1] == "sigmoid_cross_entropy":
        x = 0.5 + 0.5 * np.tanh(0.5 * x)  # the sigmoid, without overflow
    return np.clip(x, 0, 1)
