"""Optimizers of `torch.optim` on a stage's flat vector, against `torch.optim` itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from each import each

torch = pytest.importorskip("torch")

from asyncdni.errors import ConfigError  # noqa: E402
from asyncdni.nn.streams import stream  # noqa: E402
from asyncdni.nn.torch.optimizer import OPTIMIZERS, TorchOptimizer  # noqa: E402

SHAPES = [(4, 3), (3,), (2, 3, 2, 2), (1,)]
SIZE = sum(int(np.prod(shape)) for shape in SHAPES)
RATES = [0.1, 0.05, 0.2, 0.2, 0.01, 0.3]
SCALE = 1 / 8
FUSED = "SGD", "Adam", "AdamW", "Adagrad"
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in OPTIMIZERS),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("Adam", {"amsgrad": True, "betas": [0.8, 0.99], "weight_decay": 0.1}),
    ("AdamW", {"weight_decay": 0.3, "eps": 1e-6}),
    ("NAdam", {"momentum_decay": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RMSprop", {"centered": True, "momentum": 0.5}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    ("SGD", {"momentum": 0.9, "fused": False}),
    ("Adam", {"weight_decay": 0.1, "fused": False}),
]


def numbers(key: int) -> np.ndarray:
    return stream(0, "optimizer", "test", key).normal(size=SIZE).astype(np.float32)


def plain(kind: str, options: dict[str, Any], steps: int) -> np.ndarray:
    """The weights after so many steps of a plain loop."""
    vector, tensors = torch.from_numpy(numbers(99)), []
    for part, shape in zip(split(vector), SHAPES, strict=True):
        tensors.append(torch.nn.Parameter(part.clone().reshape(shape)))
    fused = {"fused": True} if kind in FUSED and "fused" not in options else {}
    optimizer = getattr(torch.optim, kind)(tensors, **options, **fused)
    for step in range(steps):
        grads = split(torch.from_numpy(numbers(step)))
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = grad.clone().reshape(tensor.shape).mul_(SCALE)
        for group in optimizer.param_groups:
            group["lr"] = RATES[step]
        optimizer.step()
    return np.concatenate([one.detach().numpy().ravel() for one in tensors])


def split(vector: Any) -> Any:
    return torch.split(vector, [int(np.prod(shape)) for shape in SHAPES])


def started(kind: str, options: dict[str, Any]) -> tuple[TorchOptimizer, np.ndarray]:
    optimizer, params = TorchOptimizer(kind, options, SHAPES), numbers(99)
    optimizer.start(params)
    np.testing.assert_array_equal(params, numbers(99))
    return optimizer, params


def step(optimizer: TorchOptimizer, params: np.ndarray, grads: np.ndarray, index: int) -> None:
    grads[...] = numbers(index)  # one vector for all steps, as in a stage
    optimizer.step(params, grads, RATES[index], SCALE)


@each("kind, options", OPTIONS)
def test_steps_are_those_of_a_plain_loop(kind: str, options: dict[str, Any]) -> None:
    optimizer, params = started(kind, options)
    grads = np.empty_like(params)
    for index in range(len(RATES)):
        step(optimizer, params, grads, index)
        np.testing.assert_array_equal(params, plain(kind, options, index + 1))


@each("kind, options", OPTIONS)
def test_a_state_that_is_copied_into_another_goes_on(kind: str, options: dict[str, Any]) -> None:
    first, params = started(kind, options)
    grads = np.empty_like(params)
    for index in range(3):
        step(first, params, grads, index)
    state = {name: array.copy() for name, array in first.state.items()}
    other, moved = started(kind, options)
    assert {n: (a.shape, a.dtype) for n, a in other.state.items()} == {
        n: (a.shape, a.dtype) for n, a in state.items()
    }
    np.copyto(moved, params)
    for name, array in state.items():
        np.copyto(other.state[name], array)
    for index in range(3, len(RATES)):
        step(other, moved, np.empty_like(params), index)
    np.testing.assert_array_equal(moved, plain(kind, options, len(RATES)))


def test_gradients_may_come_in_another_vector_each_time() -> None:
    optimizer, params = started("Adam", {})
    for index in range(3):
        step(optimizer, params, np.empty_like(params), index)
    np.testing.assert_array_equal(params, plain("Adam", {}, 3))


def test_a_stage_without_weights_needs_no_optimizer() -> None:
    TorchOptimizer("Adam", {}, []).start(np.empty(0, np.float32))


@each(
    "kind, options, words",
    [
        ("Adam2", {}, ["optimizer.kind", "'Adam2'", "RMSprop"]),
        ("LBFGS", {}, ["optimizer.kind", "'LBFGS'"]),
        ("Adam", {"beta": 1}, ["optimizer.options", "Adam", "beta"]),
        ("Adam", {"betas": [2, 3]}, ["optimizer.options", "beta"]),
        ("SGD", {"nesterov": True}, ["optimizer.options", "momentum"]),
        ("Adam", {"lr": 0.1}, ["optimizer.options", "optimizer.learning_rate"]),
        ("SGD", {"momentum": 0.9, "dampening": 0.5}, ["optimizer.options", "dampening"]),
        ("Adam", {"foreach": "yes", "fused": "no"}, ["optimizer.options"]),
    ],
)
def test_what_pytorch_does_not_have_is_refused(
    kind: str, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        TorchOptimizer(kind, options, SHAPES)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
