"""`asyncdni check`, and the same on the first batch of a run: each mistake has its line."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from each import each

from asyncdni import config
from asyncdni.__main__ import main
from asyncdni.errors import ConfigError
from asyncdni.network import Node
from asyncdni.nn.check import Finding, FirstBatch, check_generator, check_layer
from asyncdni.nn.generators import make_generator
from asyncdni.nn.layers import LAYERS, make_layer
from asyncdni.stages.numpy.block import Block, Pace

Array = np.ndarray


class Scale:
    """y = a x, with one learned number; right in all that the package asks for."""

    def __init__(self) -> None:
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self.fresh = True

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def build(self, shape: tuple[int, ...], dtype: Any, streams: Any) -> tuple[int, ...]:
        self.params = {"a": np.ones(1, dtype)}
        self.grads = {"a": np.zeros(1, dtype)}
        return shape

    def forward(self, x: Array, slot: dict[str, Any]) -> Array:
        slot["x"] = x
        return x * self.params["a"]

    def gradient(self, grad_y: Array, slot: dict[str, Any]) -> float:
        return float(np.sum(grad_y * slot["x"]))

    def backward(
        self, grad_y: Array, slot: dict[str, Any], *, learn: bool, send: bool
    ) -> Array | None:
        if learn:
            grad = self.gradient(grad_y, slot)
            self.grads["a"][0] = grad if self.fresh else self.grads["a"][0] + grad
            self.fresh = False
        return grad_y * self.params["a"] if send else None

    def evaluate(self, x: Array) -> Array:
        return x * self.params["a"]


class WrongSign(Scale):
    def gradient(self, grad_y: Array, slot: dict[str, Any]) -> float:
        return -super().gradient(grad_y, slot)


class Mean(Scale):
    def gradient(self, grad_y: Array, slot: dict[str, Any]) -> float:
        return super().gradient(grad_y, slot) / len(grad_y)


class AlwaysFloat64(Scale):
    def forward(self, x: Array, slot: dict[str, Any]) -> Array:
        return super().forward(x, slot).astype(np.float64)


class OneShort(Scale):
    def forward(self, x: Array, slot: dict[str, Any]) -> Array:
        return super().forward(x, slot)[:, :-1]


class ColumnsFirst(Scale):
    def forward(self, x: Array, slot: dict[str, Any]) -> Array:
        return np.asfortranarray(super().forward(x, slot))


class Forgetful(Scale):
    """Keeps a batch in the layer, so that the next one takes its place."""

    def forward(self, x: Array, slot: dict[str, Any]) -> Array:
        self.x = x
        return super().forward(x, slot)

    def gradient(self, grad_y: Array, slot: dict[str, Any]) -> float:
        return super().gradient(grad_y, {"x": self.x})


class OneArray(Scale):
    """Returns the same array from every backward."""

    def backward(
        self, grad_y: Array, slot: dict[str, Any], *, learn: bool, send: bool
    ) -> Array | None:
        found = super().backward(grad_y, slot, learn=learn, send=send)
        if found is None:
            return None
        kept = slot.setdefault("kept", np.empty_like(found))[: len(found)]
        kept[...] = found
        return kept


class Overwrites(Scale):
    def backward(
        self, grad_y: Array, slot: dict[str, Any], *, learn: bool, send: bool
    ) -> Array | None:
        self.fresh = True
        return super().backward(grad_y, slot, learn=learn, send=send)


class Dice(Scale):
    """Draws numbers that are not keyed by the batch."""

    draws = 0

    def forward(self, x: Array, slot: dict[str, Any]) -> Array:
        self.draws += 1
        return super().forward(x, slot) + np.asarray(self.draws, x.dtype)


class Greedy(Scale):
    def backward(
        self, grad_y: Array, slot: dict[str, Any], *, learn: bool, send: bool
    ) -> Array | None:
        grad_y *= 2
        return super().backward(grad_y, slot, learn=learn, send=send)


class Evaluates(Scale):
    def evaluate(self, x: Array) -> Array:
        self.params["a"] *= 2
        return super().evaluate(x)


def wrong(findings: list[Finding]) -> dict[str, str]:
    return {one.what: one.wrong for one in findings if one.wrong}


def test_a_right_layer_has_nothing_wrong() -> None:
    found = check_layer(Scale, (5,))
    assert wrong(found) == {} and len(found) == 12


@each(
    "kind, what, words",
    [
        (WrongSign, "gradient of a", "its sign is reversed"),
        (Mean, "gradient of a", "divided by the number of samples, which the stage does"),
        (
            AlwaysFloat64,
            "forward and backward in float32: shapes and dtypes",
            "forward returned float64 (4, 5), expected float32 (4, 5)",
        ),
        (
            OneShort,
            "forward and backward in float64: shapes and dtypes",
            "forward returned float64 (4, 4), expected float64 (4, 5)",
        ),
        (ColumnsFirst, "forward and backward in float32: shapes and dtypes", "not in C order"),
        (Forgetful, "slots: two batches in flight", "keep what backward needs in the slot"),
        (OneArray, "replay: a batch pushed back twice", "overwrote the gradient that the first"),
        (Overwrites, "backward: fresh and added gradients", "was not added to"),
        (Dice, "replay: a batch forwarded again", "by the batch's id, slot['batch']"),
        (Greedy, "forward and backward in float64: shapes and dtypes", "is not its own"),
        (Evaluates, "evaluate: shape, dtype, no traces", "evaluate changed params or buffers"),
    ],
)
def test_each_mistake_has_its_line(kind: type[Scale], what: str, words: str) -> None:
    found = wrong(check_layer(kind, (5,)))
    assert words in found[what]


def test_a_layer_that_can_not_be_built_has_one_line() -> None:
    class Broken(Scale):
        def build(self, shape: tuple[int, ...], dtype: Any, streams: Any) -> tuple[int, ...]:
            raise ValueError("out of tune\nand more")

    assert [one.wrong for one in check_layer(Broken, (5,))] == ["ValueError: out of tune"]


#: A shape, and options, for each layer of the package that takes floating numbers.
TAKEN: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "dense": ({"width": 3}, (4,)),
    "batch_norm": ({}, (2, 3, 3)),
    "relu": ({}, (4,)),
    "tanh": ({}, (4,)),
    "sigmoid": ({}, (4,)),
    "conv2d": ({"channels": 2, "kernel": 3}, (2, 4, 4)),
    "max_pool": ({"kernel": 2}, (2, 4, 4)),
    "average_pool": ({"kernel": 2}, (2, 4, 4)),
    "flatten": ({}, (2, 3)),
    "reshape": ({"shape": [3, 2]}, (6,)),
    "dropout": ({"p": 0.5}, (4,)),
    "layer_norm": ({}, (4,)),
    "gaussian": ({}, (4,)),
    "rnn": ({"units": 3}, (2, 3)),
    "lstm": ({"units": 3}, (2, 3)),
}


@each("name", TAKEN)
def test_the_layers_of_the_package_pass(name: str) -> None:
    options, shape = TAKEN[name]
    assert name in LAYERS
    found = check_layer(lambda: make_layer({name: options}, where="test"), shape)
    assert wrong(found) == {}


@each("name", ["error", "linear", "mlp", "zero", "low_rank"])
def test_the_generators_of_the_package_pass(name: str) -> None:
    for loss in ("cross_entropy", "mse"):
        found = check_generator(partial(make_generator, name), (4,), 3, loss)
        assert wrong(found) == {} and len(found) == 6


def test_a_generator_that_learns_the_wrong_way_is_told() -> None:
    class Away:
        def __init__(self) -> None:
            self.params: dict[str, Array] = {}
            self.buffers: dict[str, Array] = {}

        def build(self, width: int, outputs: int, loss: str, dtype: Any, streams: Any) -> None:
            self.params = {"g": np.zeros(width, dtype)}

        def predict(self, h: Array, y: Array, slot: Any, rate_scale: float) -> Array:
            return np.tile(self.params["g"], (len(h), 1))

        def fit(self, grad: Array, slot: Any, rate_scale: float) -> None:
            self.params["g"] -= grad.mean(axis=0)

    found = wrong(check_generator(Away, (4,), 3, "mse"))
    assert "expected it to come nearer" in found["fit: a step towards the true gradient"]


# --- the command ---------------------------------------------------------------------------------


def test_the_command_prints_a_line_each_and_fails_where_something_is_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["check", "dense", "--shape", "4", "--option", "width=3"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "ok     build: shapes and dtypes of parameters"
    assert out[-1] == "13 checks, nothing wrong"
    assert main(["check", f"{__name__}:WrongSign", "--shape", "4"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if line.startswith("WRONG  gradient of a: it is ")]
    assert main(["check", "error", "--generator", "--shape", "2,3"]) == 0


def test_modules_of_pytorch_are_checked_as_layers_and_as_generators(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("torch")
    linear = ["--option", "in_features=4", "--option", "out_features=3"]
    assert main(["check", "torch.nn:Linear", "--shape", "4", *linear]) == 0
    assert "ok     gradient of weight" in capsys.readouterr().out
    assert main(["check", "torch.nn:Bilinear", "--shape", "4", "--generator"]) in (1, 2)


@each(
    "arguments, words",
    [
        (["nothing", "--shape", "4"], "unknown layer 'nothing'"),
        (["dense", "--shape", "4"], "dense needs 'width'"),
        (["dense", "--shape", "4", "--option", "width"], "expected NAME=VALUE"),
        (["nowhere:Class", "--shape", "4"], "can't import 'nowhere'"),
        (["nothing", "--generator", "--shape", "4"], "generator 'nothing' is unknown"),
        (["error", "--generator", "--shape", "4", "--outputs", "0"], "expected at least 1"),
    ],
)
def test_what_can_not_be_checked_is_refused_with_a_reason(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *arguments]) == 2
    assert words in capsys.readouterr().err


# --- the first batch of a run --------------------------------------------------------------------


def test_a_run_looks_at_the_first_output_and_gradient_of_each_layer() -> None:
    first = FirstBatch(["stage a, layer 0 (x:Y)", "stage a, layer 1 (relu)"], [(4,), (3,), (3,)],
                       np.dtype("float32"))  # fmt: skip
    y = np.zeros((2, 3), np.float32)
    first.check_output(0, y, 2)
    assert first.outputs == {1}
    with pytest.raises(ConfigError) as raised:
        first.check_output(1, y.astype(np.float64), 2)
    assert str(raised.value) == (
        "stage a, layer 1 (relu): its forward returned float64 (2, 3), expected float32 (2, 3)"
    )
    with pytest.raises(ConfigError, match=r"layer 0 .x:Y.: its backward returned a NoneType"):
        first.check_gradient(0, None, 2)
    assert first.gradients == {1}


@each(
    "kind, words",
    [
        (AlwaysFloat64, "its forward returned float64 (4, 5), expected float32 (4, 5)"),
        (OneShort, "its forward returned float32 (4, 4), expected float32 (4, 5)"),
        (ColumnsFirst, "its forward returned an array that is not in C order"),
    ],
)
def test_a_stage_names_the_layer_that_returns_something_else(kind: type[Scale], words: str) -> None:
    block = Block(
        _node(f"{__name__}:{kind.__name__}"),
        config.Sgd(),
        dtype=np.dtype("float32"),
        seed=0,
        pace=Pace(1, 1),
        allow_import=True,
    )
    with pytest.raises(ConfigError) as raised:
        block.forward(1, [np.ones((4, 5), np.float32)], {}, block.slot())
    assert f"stage low, layer 0 ({__name__}:{kind.__name__}): {words}" in str(raised.value)


def _node(layer: str) -> Node:
    """A stage of one layer for samples (5,), without a loss."""
    return Node(
        *("low", 0, "stages[0] (low)", ("data",), ("top",), "concat", ((5,),), (5,), (5,), None),
        answers=False,
        own_loss=False,
        layers=(layer,),
    )
