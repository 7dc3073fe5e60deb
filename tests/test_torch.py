"""Layers, losses and optimizers against torch, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from asyncdni.nn.base import Layer
from asyncdni.nn.layers.activations import Relu, Sigmoid, Tanh
from asyncdni.nn.layers.dense import Dense
from asyncdni.nn.layers.normalisation import BatchNorm
from asyncdni.nn.losses import make_loss
from asyncdni.nn.optimizers import Adam, Sgd
from asyncdni.nn.streams import layer_streams, stream

torch = pytest.importorskip("torch")

SAMPLES, INPUTS, OUTPUTS = 7, 5, 4
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def numbers(*shape: int, key: int = 0) -> np.ndarray:
    return stream(0, "numbers", "test", key).normal(size=shape)


@pytest.mark.parametrize(
    ("layer", "make_peer"),
    [
        pytest.param(Dense(OUTPUTS), lambda: torch.nn.Linear(INPUTS, OUTPUTS), id="dense"),
        pytest.param(
            Dense(OUTPUTS, bias=False),
            lambda: torch.nn.Linear(INPUTS, OUTPUTS, bias=False),
            id="dense_without_bias",
        ),
        pytest.param(
            BatchNorm(momentum=0.3, epsilon=1e-3),
            lambda: torch.nn.BatchNorm1d(INPUTS, momentum=0.3, eps=1e-3),
            id="batch_norm",
        ),
        pytest.param(Relu(), lambda: torch.nn.ReLU(), id="relu"),
        pytest.param(Tanh(), lambda: torch.nn.Tanh(), id="tanh"),
        pytest.param(Sigmoid(), lambda: torch.nn.Sigmoid(), id="sigmoid"),
    ],
)
def test_a_layer_does_what_its_peer_of_the_same_names_does(
    layer: Layer, make_peer: Callable[[], Any]
) -> None:
    peer = make_peer().double()
    layer.build((INPUTS,), np.dtype("float64"), layer_streams(0, "layer"))
    for index, param in enumerate(layer.params.values()):
        param[...] = numbers(*param.shape, key=100 + index)
    state = {name: torch.from_numpy(value.copy()) for name, value in layer.params.items()}
    assert not peer.load_state_dict(state, strict=False).unexpected_keys
    slot: dict[str, Any] = {}
    for batch in range(3):
        _same_batch(layer, peer, slot, 1 + 2 * numbers(SAMPLES - batch, INPUTS, key=batch))
    for name, value in layer.buffers.items():
        np.testing.assert_allclose(value, getattr(peer, name).numpy(), **CLOSE)
    x = numbers(1, INPUTS, key=9)
    with torch.no_grad():
        expected = peer.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(layer.evaluate(x), expected, **CLOSE)


def _same_batch(layer: Layer, peer: Any, slot: dict[str, Any], x: np.ndarray) -> None:
    x_torch = torch.from_numpy(x.copy()).requires_grad_()
    y_torch = peer(x_torch)
    grad_y = numbers(*y_torch.shape, key=50)
    y_torch.backward(torch.from_numpy(grad_y.copy()))
    np.testing.assert_allclose(layer.forward(x, slot), y_torch.detach().numpy(), **CLOSE)
    grad_x = layer.backward(grad_y, slot, learn=True, send=True)
    np.testing.assert_allclose(grad_x, x_torch.grad.numpy(), **CLOSE)
    for name, param in peer.named_parameters():  # neither side clears: batches add up
        np.testing.assert_allclose(layer.grads[name], param.grad.numpy(), **CLOSE)


_CLASSES = np.array([0, 3, 1, 1, 2, 0, 3])
_VALUES = numbers(SAMPLES, OUTPUTS, key=1)
_FUNCTIONAL = torch.nn.functional


@pytest.mark.parametrize(
    ("name", "y", "peer"),
    [
        ("cross_entropy", _CLASSES, lambda x, y: _FUNCTIONAL.cross_entropy(x, y, reduction="sum")),
        (
            "sigmoid_cross_entropy",
            1 / (1 + np.exp(-_VALUES)),
            lambda x, y: _FUNCTIONAL.binary_cross_entropy_with_logits(x, y, reduction="sum"),
        ),
        ("mse", _VALUES, lambda x, y: SAMPLES * _FUNCTIONAL.mse_loss(x, y)),
    ],
)
def test_a_loss_and_its_gradient_are_those_of_torch(
    name: str, y: np.ndarray, peer: Callable[[Any, Any], Any]
) -> None:
    x = 3 * numbers(SAMPLES, OUTPUTS)
    x_torch = torch.from_numpy(x.copy()).requires_grad_()
    expected = peer(x_torch, torch.from_numpy(y))
    expected.backward()
    loss, slot = make_loss(name), {}
    assert loss.forward(x, y, slot)[0] == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(loss.backward(slot), x_torch.grad.numpy(), **CLOSE)


_MOMENTUM = {"momentum": 0.9, "weight_decay": 0.05}


@pytest.mark.parametrize(
    ("optimizer", "make_peer"),
    [
        pytest.param(Sgd(), lambda p: torch.optim.SGD([p]), id="sgd"),
        pytest.param(Sgd(0.9), lambda p: torch.optim.SGD([p], momentum=0.9), id="momentum"),
        pytest.param(
            Sgd(weight_decay=0.05), lambda p: torch.optim.SGD([p], weight_decay=0.05), id="decay"
        ),
        pytest.param(
            Sgd(nesterov=True, **_MOMENTUM),
            lambda p: torch.optim.SGD([p], nesterov=True, **_MOMENTUM),
            id="nesterov",
        ),
        pytest.param(Adam(), lambda p: torch.optim.Adam([p]), id="adam"),
        pytest.param(
            Adam(beta1=0.5, beta2=0.9, epsilon=1e-3),
            lambda p: torch.optim.Adam([p], betas=(0.5, 0.9), eps=1e-3),
            id="adam_options",
        ),
        pytest.param(
            Adam(weight_decay=0.1),
            lambda p: torch.optim.AdamW([p], weight_decay=0.1),
            id="adamw",
        ),
    ],
)
def test_an_optimizer_goes_the_way_of_its_peer_for_50_steps(
    optimizer: Sgd | Adam, make_peer: Callable[[Any], Any]
) -> None:
    params = numbers(20)
    param = torch.from_numpy(params.copy()).requires_grad_()
    peer = make_peer(param)
    magnitudes = 10.0 ** np.linspace(-10, 2, 20)  # down to where Adam's epsilon counts
    for number in range(50):
        rate = 0.1 / (1 + number)
        grads = numbers(20, key=number) * magnitudes
        peer.param_groups[0]["lr"] = rate
        param.grad = torch.from_numpy(grads.copy())
        peer.step()
        optimizer.step(params, grads, rate)
    np.testing.assert_allclose(params, param.detach().numpy(), **CLOSE)


def test_the_last_bits_of_float32_are_all_that_adam_differs_by_from_torch() -> None:
    params = numbers(1000).astype("float32")
    param = torch.from_numpy(params.copy()).requires_grad_()
    optimizer, peer = Adam(), torch.optim.Adam([param], lr=1e-3)
    for number in range(50):
        grads = numbers(1000, key=number).astype("float32")
        param.grad = torch.from_numpy(grads.copy())
        peer.step()
        optimizer.step(params, grads, 1e-3)
    np.testing.assert_allclose(params, param.detach().numpy(), rtol=0, atol=2e-6)
