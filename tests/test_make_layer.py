"""Layers by name, with their options, and the user's own; what cannot be made is refused."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
from each import each

from asyncdni.errors import ConfigError
from asyncdni.nn.layers import LAYERS, make_layer
from asyncdni.nn.layers.activations import Relu
from asyncdni.nn.layers.dense import Dense
from asyncdni.nn.layers.normalisation import BatchNorm
from asyncdni.nn.streams import layer_streams

WHERE = "stages[1] (hidden2), layer 0"


def test_every_registered_layer_is_made_by_its_name() -> None:
    needed: dict[str, Any] = {
        "dense": 3,
        "conv2d": {"channels": 3, "kernel": 2},
        "max_pool": 2,
        "average_pool": 2,
        "reshape": [2, 2],
        "embedding": {"tokens": 3, "width": 2},
        "rnn": 4,
        "lstm": 4,
        "step": 0,
        "zeros": 4,
    }
    for name, kind in LAYERS.items():
        spec = {name: needed[name]} if name in needed else name
        assert type(make_layer(spec, where="test")) is kind


def test_a_layer_takes_its_options_from_a_table() -> None:
    dense = make_layer({"dense": {"width": 3, "bias": False, "init": "zeros"}}, where="test")
    assert isinstance(dense, Dense)
    assert dense.build((2,), np.dtype("float32"), layer_streams(0, "a")) == (3,)
    assert list(dense.params) == ["weight"] and not dense.params["weight"].any()
    norm = make_layer({"batch_norm": {"momentum": 0.5}}, where="test")
    assert isinstance(norm, BatchNorm) and norm.momentum == 0.5


def test_weights_have_the_shape_that_torch_gives_them() -> None:
    dense = make_layer({"dense": 4}, where="test")
    dense.build((5,), np.dtype("float32"), layer_streams(0, "a"))
    assert dense.params["weight"].shape == (4, 5)
    assert dense.params["bias"].shape == (4,)


@each(
    "spec, message",
    [
        ("rellu", "unknown layer 'rellu'.*dense, batch_norm, relu, tanh, sigmoid"),
        ({"dense": 3, "relu": {}}, "is no layer"),
        (7, "is no layer"),
        ({"dense": {"width": 3, "wdith": 4}}, "no option 'wdith'.*width, bias, init"),
        ({"relu": {"slope": 1}}, "relu has no option 'slope'.*takes no options"),
        ({"relu": 3}, "relu takes no value on its own, given 3"),
        ("dense", "dense needs 'width'"),
        ({"dense": -3}, "width -3: expected a positive whole number"),
        ({"dense": 2.5}, "width 2.5"),
        ({"dense": True}, "width True"),
        ({"dense": {"width": 3, "bias": 1}}, "bias 1: expected true or false"),
        ({"dense": {"width": 3, "init": "hee"}}, "unknown init 'hee'.*he_normal"),
        ({"batch_norm": {"momentum": 0}}, "momentum 0: expected a number above 0 and at most 1"),
        ({"batch_norm": {"epsilon": "small"}}, "epsilon 'small'"),
        ("mine:Layer", "--allow-import"),
    ],
)
def test_a_layer_that_can_not_be_made_is_refused(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_layer(spec, where=WHERE)
    assert str(caught.value).startswith(WHERE)


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ({"dense": 4}, (1, 28, 28), r"\(D,\), or windows .*, not \(1, 28, 28\): flatten them"),
        ("batch_norm", (28, 28), r"\(D,\) or \(C, H, W\), not \(28, 28\)"),
    ],
)
def test_inputs_of_another_number_of_axes_are_refused(
    spec: Any, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_layer(spec, where="test").output_shape(shape)


class Halved(Relu):
    """A layer of the user's own."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        if times < 1:
            raise ValueError("times must be positive")
        self.times = times


class NotALayer:
    def forward(self) -> None: ...


class Forgetful(Relu):
    def __init__(self) -> None:
        self.params = {}


@pytest.fixture
def users_module(monkeypatch: pytest.MonkeyPatch) -> str:
    module = types.ModuleType("users_module")
    module.Halved, module.NotALayer, module.Forgetful = Halved, NotALayer, Forgetful
    monkeypatch.setitem(sys.modules, "users_module", module)
    return "users_module"


def test_a_users_own_class_is_imported_where_that_is_allowed(users_module: str) -> None:
    name = f"{users_module}:Halved"
    assert isinstance(make_layer(name, where="test", allow_import=True), Halved)
    layer = make_layer({name: {"times": 3}}, where="test", allow_import=True)
    assert isinstance(layer, Halved) and layer.times == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module_here:Layer", "can't import 'no_such_module_here'"),
        ("users_module:Missing", "has no 'Missing'"),
        ("users_module:NotALayer", "has no output_shape, build, backward, evaluate"),
        ("users_module:Forgetful", "sets no grads, fresh, buffers"),
        ({"users_module:Halved": {"times": 0}}, "times must be positive"),
        ({"users_module:Halved": {"tmies": 1}}, "no option 'tmies'"),
    ],
)
def test_a_users_class_that_is_no_layer_is_refused(
    spec: Any, message: str, users_module: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_layer(spec, where=WHERE, allow_import=True)
    assert str(caught.value).startswith(WHERE)
