"""Lets a trained network produce samples: a text, a curve, images from a prior, reconstructions and
predictions of test images.

What is possible depends on the data set and the stages of a run, never on its recipe's name.

`evaluation` runs whole networks on batches shaped as in training. To go on step by step, or to
start in the middle, this module builds the layers one by one, with windows of another length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from asyncdni import config
from asyncdni.config import Cifar10, DigitPairs, Trigonometry
from asyncdni.data import load
from asyncdni.data.meta import Array
from asyncdni.data.text import decode, encode
from asyncdni.data.trigonometry import points
from asyncdni.errors import CheckpointError, ConfigError
from asyncdni.evaluation import predict
from asyncdni.imports import Allowed
from asyncdni.messages import DATA
from asyncdni.network import Node, make_network
from asyncdni.nn.base import Layer
from asyncdni.nn.layers import make_layer
from asyncdni.nn.layers.noise import Gaussian
from asyncdni.nn.layers.recurrent import Recurrent
from asyncdni.nn.streams import layer_streams, stream
from asyncdni.store.run import Result

__all__ = [
    "Curve",
    "Predictions",
    "Reconstructions",
    "Stepper",
    "TrainedStage",
    "applied",
    "as_csv",
    "as_images",
    "classifies_images",
    "continue_curve",
    "continue_text",
    "draw_images",
    "has_prior",
    "image_shape",
    "joined",
    "load_stages",
    "predict_images",
    "reconstruct",
    "tells_characters",
    "tells_points",
]

# --- stages --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedStage:
    """A declared stage with the weights of a run."""

    node: Node
    layers: list[Layer]
    shapes: list[tuple[int, ...]]  # of each layer's output, without the batch axis


def load_stages(
    run: Result, *, steps: int | None = None, allow_import: Allowed = False
) -> list[TrainedStage]:
    """Return the stages of a run with its weights, each after those it reads. They take windows of
    `steps` steps, by default those of the run.

    Raises `ConfigError` where layers can't take windows of another length, and `CheckpointError`
    for weights that don't fit.
    """
    network = make_network(run.experiment, run.meta, allow_import=allow_import)
    data = tuple(run.meta.input_shape)
    shapes = {DATA: data if steps is None else (steps, *data[1:])}
    stages = []
    for node in network.nodes:
        shape = _joined_shape(node, [shapes[name] for name in node.inputs])
        layers, outputs = list[Layer](), list[tuple[int, ...]]()
        for i, spec in enumerate(node.layers):
            layer = make_layer(
                spec, where=f"stage {node.name}, layer {i}", allow_import=allow_import
            )
            shape = _build(layer, shape, run, f"{node.name}.{i}")
            _load(layer, run.weights, f"{node.name}.{i}")
            layers.append(layer)
            outputs.append(shape)
        shapes[node.name] = shape
        stages.append(TrainedStage(node, layers, outputs))
    return stages


def joined(node: Node, known: Mapping[str, Array]) -> Array:
    """Return the input of the first layer of `node`, from the outputs (B, …) of the stages that it
    reads."""
    xs = [known[name] for name in node.inputs]
    if len(xs) == 1:
        return xs[0]
    if node.join == "concat":
        return np.concatenate(xs, axis=node.join_axis)
    total = xs[0] + xs[1]  # in declared order, as in training
    for x in xs[2:]:
        total += x
    return total


def applied(layers: Sequence[Layer], x: Array) -> Array:
    """Return the output of the layers for x (B, …), with running statistics."""
    for layer in layers:
        x = layer.evaluate(x)
    return x


def _joined_shape(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape that `joined` gives. Nothing is checked: only the length of windows can
    differ from the shapes that `make_network` has checked."""
    shape = list(shapes[0])
    if node.join == "concat":
        shape[node.join_axis] = sum(one[node.join_axis] for one in shapes)
    return tuple(shape)


def _build(layer: Layer, shape: tuple[int, ...], run: Result, name: str) -> tuple[int, ...]:
    settings = run.experiment.run
    try:
        return tuple(
            layer.build(shape, np.dtype(settings.dtype), layer_streams(settings.seed, name))
        )
    except ConfigError as error:
        raise ConfigError(f"layer {name} can't go step by step: {error}") from error


def _load(layer: Layer, weights: Mapping[str, Array], name: str) -> None:
    """Load parameters and running statistics; buffers that the weights lack serve training
    alone."""
    arrays: dict[str, Any] = {**layer.params, **layer.buffers}
    for key, array in arrays.items():
        given = weights.get(f"{name}.{key}")
        if given is None and key in layer.buffers:
            continue
        if given is None or given.shape != array.shape:
            found = "missing" if given is None else f"{given.shape}"
            raise CheckpointError(
                f"weights of layer {name}: {key} is {found}, expected {array.shape}; the layer "
                "can't be used with these inputs"
            )
        np.copyto(array, given)


# --- stepping ------------------------------------------------------------------------------------


class Stepper:
    """A trained network of windows, run one step at a time; its recurrent layers carry their
    states, which start at zero."""

    def __init__(self, run: Result, *, allow_import: Allowed = False) -> None:
        """Raises `ConfigError` where no stage carries a state, or a layer can't go step by step."""
        self._stages = load_stages(run, steps=1, allow_import=allow_import)
        self._dtype = np.dtype(run.experiment.run.dtype)
        self._states: dict[tuple[str, int], Array] = {}
        #: The last stage in declared order that has a loss: its output is the network's.
        self._output = [stage.node.name for stage in self._stages if stage.node.loss][-1]
        if not any(isinstance(one, Recurrent) for stage in self._stages for one in stage.layers):
            raise ConfigError(
                "the network has no recurrent layer, so nothing of what came before reaches the "
                "next step; expected an rnn or lstm among its stages"
            )

    def step(self, x: Array) -> Array:
        """Return the network's output (B, K) for the next step's inputs (B, …); B must stay the
        same."""
        known = {DATA: np.ascontiguousarray(x[:, None], self._dtype)}
        for stage in self._stages:
            h = joined(stage.node, known)
            for i, layer in enumerate(stage.layers):
                h = self._apply(layer, h, (stage.node.name, i))
            known[stage.node.name] = h
        return known[self._output][:, 0]

    def _apply(self, layer: Layer, x: Array, place: tuple[str, int]) -> Array:
        if not isinstance(layer, Recurrent):
            return layer.evaluate(x)
        y, self._states[place] = layer.continued(x, self._states.get(place))
        return y


# --- text ----------------------------------------------------------------------------------------


def tells_characters(run: Result) -> bool:
    """Return whether the run was trained on the characters of a text."""
    return bool(run.meta.vocabulary)


def continue_text(
    run: Result,
    *,
    length: int = 500,
    prompt: str = "",
    temperature: float = 1.0,
    seed: int = 0,
    allow_import: Allowed = False,
) -> str:
    """Continue the text `prompt` by `length` characters, drawn from softmax(logits / temperature).

    A `temperature` of 0 takes the likeliest character each time. An empty prompt is replaced by the
    end of a line, as if a new line began.

    Raises `ConfigError` for a length below 0 or a temperature that is negative or not finite, and
    `DataError` for characters in the prompt that the network has never seen."""
    if length < 0:
        raise ConfigError(f"length {length}: expected a number of characters, 0 or more")
    if not 0 <= temperature < math.inf:
        raise ConfigError(f"temperature {temperature}: expected a finite number, 0 or more")
    vocabulary = run.meta.vocabulary
    start = prompt or ("\n" if "\n" in vocabulary else vocabulary[0])
    given = [int(one) for one in encode(start, vocabulary)]
    stepper = Stepper(run, allow_import=allow_import)
    rng = stream(seed, "sample", "text")
    inputs = _inputs(run)
    for one in given[:-1]:
        stepper.step(inputs[one : one + 1])
    last, drawn = given[-1], list[int]()
    for _ in range(length):
        logits = stepper.step(inputs[last : last + 1])[0]
        last = _draw(logits, temperature, rng)
        drawn.append(last)
    return decode(drawn, vocabulary)


def _inputs(run: Result) -> Array:
    """Return the network's input for each character id: one-hot vectors (V, V), or the ids (V,)
    themselves."""
    count = len(run.meta.vocabulary)
    return np.eye(count) if len(run.meta.input_shape) == 2 else np.arange(count, dtype=np.float64)


def _draw(logits: Array, temperature: float, rng: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    # Gumbel's trick: the largest of logits + noise is drawn from their softmax, without overflow.
    return int((logits / temperature + rng.gumbel(size=len(logits))).argmax())


# --- curve ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A curve that a network has continued from its first points."""

    truth: Array  # (given + N, 2): cosine and sine of all steps
    generated: Array  # (N, 2): what the network generated, from step `given` on

    @property
    def given(self) -> int:
        """How many points the network was shown."""
        return len(self.truth) - len(self.generated)

    @property
    def error(self) -> float:
        """The mean absolute error over all generated numbers."""
        return float(np.abs(self.generated - self.truth[self.given :]).mean())


def tells_points(run: Result) -> bool:
    """Return whether the run was trained to tell the next point of a curve."""
    return isinstance(run.experiment.data, Trigonometry)


def continue_curve(
    run: Result, *, length: int = 100, start: float = 0.0, allow_import: Allowed = False
) -> Curve:
    """Continue a curve by `length` points after its first window; each output is the next input.

    `start` is the step at which the curve begins; a fraction lies between the points of training.

    Raises `ConfigError` for a length below 1.
    """
    if length < 1:
        raise ConfigError(f"length {length}: expected a number of points, 1 or more")
    data = run.experiment.data
    assert isinstance(data, Trigonometry), "see tells_points"
    given = data.window
    truth = points(np.array([start]), given + length, data.period)[0]
    stepper = Stepper(run, allow_import=allow_import)
    for point in truth[:given]:
        following = stepper.step(point[None])
    generated = [following[0]]
    while len(generated) < length:
        generated.append(stepper.step(generated[-1][None])[0])
    return Curve(truth, np.stack(generated).astype(np.float64))


def as_csv(curve: Curve) -> str:
    """Return CSV with one line per step: its number, the true cosine and sine, and the generated
    ones."""
    lines = ["step,true_cos,true_sin,cos,sin"]
    for step, (cosine, sine) in enumerate(curve.truth):
        made = ("", "")
        if step >= curve.given:
            x, y = curve.generated[step - curve.given]
            made = f"{x:.6f}", f"{y:.6f}"
        lines.append(f"{step},{cosine:.6f},{sine:.6f},{made[0]},{made[1]}")
    return "\n".join(lines) + "\n"


# --- images --------------------------------------------------------------------------------------


def image_shape(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape (H, W), or (H, W, 3) in colour, in which to show a sample of `shape`; None
    where it is no image.

    Images come as planes (1 or 3, H, W), or as the pixels (H W,) of a square. Where an image is
    repeated for several time steps, (T, H W), one of them is shown."""
    if len(shape) == 3 and shape[0] in (1, 3):
        return (*shape[1:], 3) if shape[0] == 3 else shape[1:]
    if len(shape) in (1, 2):
        side = math.isqrt(shape[-1])
        return (side, side) if side * side == shape[-1] and side > 1 else None
    return None


def as_images(x: Array, shape: tuple[int, ...]) -> Array:
    """Return images (N, H, W) or (N, H, W, 3) of the samples x: (N, *shape), or (N, numbers)
    flattened.

    Raises `ValueError` where `shape` is not that of an image."""
    wanted = image_shape(shape)
    if wanted is None:
        raise ValueError(f"{shape} is no shape of an image")
    if len(wanted) == 3:
        return x.reshape(len(x), *shape).transpose(0, 2, 3, 1)
    pixels = wanted[0] * wanted[1]
    return x.reshape(len(x), -1)[:, :pixels].reshape(len(x), *wanted)


# --- variational autoencoders --------------------------------------------------------------------


@dataclass(frozen=True)
class Reconstructions:
    """Test images, and the images that the network makes of the means of their codes."""

    images: Array  # (N, H, W) or (N, H, W, 3), in [0, 1]
    made: Array  # the reconstructions, likewise


def has_prior(run: Result) -> bool:
    """Return whether the run is of an autoencoder of images with a `gaussian` layer in it."""
    reconstructs = getattr(run.experiment.data, "targets", "labels") == "inputs"
    named = [_name(spec) for stage in run.experiment.stages for spec in stage.layers]
    shown = image_shape(run.meta.input_shape) is not None
    return reconstructs and shown and named.count("gaussian") == 1


def draw_images(
    run: Result, *, count: int = 60, seed: int = 0, allow_import: Allowed = False
) -> Array:
    """Make `count` images, (N, H, W) or (N, H, W, 3) in [0, 1], from codes drawn from N(0, 1).

    The codes of a trained variational autoencoder lie near N(0, 1) (Kingma and Welling 2014), so a
    code drawn from there and sent through the layers after the `gaussian` layer gives an image like
    those of the data.

    Raises `ConfigError` for a count below 1, and where an image depends on more than its code.
    """
    if count < 1:
        raise ConfigError(f"count {count}: expected a number of images, 1 or more")
    stages = load_stages(run, allow_import=allow_import)
    codes = stream(seed, "sample", "codes").standard_normal((count, _code_width(stages)))
    with threadpool_limits(run.experiment.run.threads):
        x = _decoded(stages, codes.astype(run.experiment.run.dtype))
    return as_images(_shown(run, x), run.meta.input_shape)


def reconstruct(run: Result, *, count: int = 20, allow_import: Allowed = False) -> Reconstructions:
    """Return the first `count` test images and their reconstructions.

    Raises `DataError` where the data set can no longer be read."""
    data = run.experiment.data
    x = load(data, run.experiment.run.seed).x_test[:count]
    outputs = predict(run, x, allow_import=allow_import)
    made = _shown(run, list(outputs.values())[-1])
    shape = run.meta.input_shape
    return Reconstructions(as_images(_floating(x), shape), as_images(made, shape))


def _name(spec: object) -> object:
    """Return the name of a layer as written in the experiment file."""
    return next(iter(spec)) if isinstance(spec, dict) else spec


def _place(stage: TrainedStage) -> int | None:
    """Return the index of the gaussian layer in the stage; None where it has none."""
    places = [i for i, layer in enumerate(stage.layers) if isinstance(layer, Gaussian)]
    return places[0] if places else None


def _code_width(stages: list[TrainedStage]) -> int:
    for stage in stages:
        place = _place(stage)
        if place is not None:
            return stage.shapes[place][0]
    raise AssertionError("see has_prior")


def _decoded(stages: list[TrainedStage], codes: Array) -> Array:
    """Return the network's output for codes (N, Z), computed from the layers that follow the
    codes."""
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


def _loss(run: Result) -> str:
    """Return the name of the network's loss, which is that of the last stage that has one."""
    return [stage.loss for stage in run.experiment.stages if stage.loss][-1]


def _floating(x: Array) -> Array:
    """Return samples as numbers from 0 to 1, where they are uint8; others as they are."""
    return x / np.float32(255) if x.dtype == np.uint8 else x


def _shown(run: Result, x: Array) -> Array:
    """Return outputs as brightness in [0, 1]: probabilities of logits, or the values themselves."""
    if _loss(run) == "sigmoid_cross_entropy":
        x = 0.5 + 0.5 * np.tanh(0.5 * x)  # the sigmoid, without overflow
    return np.clip(x, 0, 1)


# --- predictions ---------------------------------------------------------------------------------

#: The names of CIFAR-10's classes, in the order of their labels (Krizhevsky 2009).
_CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@dataclass(frozen=True)
class Predictions:
    """Test images, the names of their classes, and those that the network predicts."""

    images: Array  # (N, H, W) or (N, H, W, 3), in [0, 1]
    truth: list[str]
    predicted: list[str]

    @property
    def right(self) -> int:
        """How many predictions are right."""
        return sum(one == other for one, other in zip(self.truth, self.predicted, strict=True))


def classifies_images(run: Result) -> bool:
    """Return whether the run is of a network that classifies images."""
    data = run.experiment.data
    images = isinstance(data, config.Digits | config.Mnist | DigitPairs | Cifar10)
    labels = getattr(data, "targets", "labels") == "labels"
    return images and labels and image_shape(run.meta.input_shape) is not None


def predict_images(run: Result, *, count: int = 20, allow_import: Allowed = False) -> Predictions:
    """Return the first `count` test images with their predictions. Raises `DataError` where the
    data set can no longer be read."""
    data = run.experiment.data
    dataset = load(data, run.experiment.run.seed)
    x, y = dataset.x_test[:count], dataset.y_test[:count]
    outputs = list(predict(run, x, allow_import=allow_import).values())[-1]
    names = _names(data)
    if dataset.classes is None:  # one output: log-odds of the second digit, or a value from 0 to 1
        predicted = outputs[:, 0] > (0 if _loss(run) == "sigmoid_cross_entropy" else 0.5)
        truth = y[:, 0] > 0.5
    else:
        predicted, truth = outputs.argmax(axis=1), y
    return Predictions(
        as_images(_floating(x), run.meta.input_shape),
        [names[int(one)] for one in truth],
        [names[int(one)] for one in predicted],
    )


def _names(data: config.Data) -> list[str]:
    if isinstance(data, DigitPairs):
        return [str(data.first), str(data.second)]
    return list(_CIFAR10) if isinstance(data, Cifar10) else [str(digit) for digit in range(10)]
