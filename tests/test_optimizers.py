"""Optimizers on one flat vector: rules of state and blocks. (Against torch: test_torch.py.)"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from each import each

from asyncdni.errors import ConfigError, NumericalError
from asyncdni.nn import optimizers
from asyncdni.nn.base import Optimizer
from asyncdni.nn.layers.activations import Relu
from asyncdni.nn.layers.dense import Dense
from asyncdni.nn.layers.normalisation import BatchNorm
from asyncdni.nn.optimizers import Adam, Sgd, clip_by_norm, finite_norm, flatten, norm
from asyncdni.nn.streams import layer_streams, stream

Make = Callable[[], Optimizer]
every_optimizer = pytest.mark.parametrize(
    "make",
    [
        pytest.param(Sgd, id="sgd"),
        pytest.param(lambda: Sgd(0.9, nesterov=True, weight_decay=0.1), id="nesterov"),
        pytest.param(Adam, id="adam"),
        pytest.param(lambda: Adam(weight_decay=0.1), id="adamw"),
    ],
)


def vector(size: int = 10, *, key: int = 0, dtype: str = "float64") -> np.ndarray:
    return stream(0, "vector", "test", size, key).normal(size=size).astype(dtype)


def run(
    optimizer: Optimizer, params: np.ndarray, steps: range, rates: float | None = None
) -> np.ndarray:
    for number in steps:
        grads = vector(params.size, key=number + 1, dtype=str(params.dtype))
        optimizer.step(params, grads, rates or 0.01 * (number + 1))
    return params


def test_sgd_moves_against_the_gradient() -> None:
    params = np.array([1.0, 2.0])
    Sgd().step(params, np.array([10.0, -10.0]), 0.1)
    np.testing.assert_allclose(params, [0.0, 3.0])


def test_momentum_remembers_the_last_gradient() -> None:
    params, optimizer = np.zeros(1), Sgd(momentum=0.5)
    for _ in range(2):
        optimizer.step(params, np.array([1.0]), 1.0)
    np.testing.assert_allclose(params, [-(1 + 1.5)])


def test_the_first_step_of_adam_is_the_rate_whatever_the_gradient() -> None:
    params = np.zeros(3)
    Adam().step(params, np.array([1e-3, 1.0, -1e3]), 0.1)
    np.testing.assert_allclose(params, [-0.1, -0.1, 0.1], rtol=1e-4)


def test_weight_decay_of_adam_does_not_depend_on_the_gradient() -> None:
    plain, decayed = vector(), vector()
    run(Adam(), plain, range(1), 0.1)
    run(Adam(weight_decay=0.5), decayed, range(1), 0.1)
    np.testing.assert_allclose(decayed, plain - 0.1 * 0.5 * vector())


@every_optimizer
def test_a_step_moves_the_vector_in_place_and_keeps_its_type(make: Make) -> None:
    params, optimizer = vector(dtype="float32"), make()
    before = params.copy()
    run(optimizer, params, range(2))
    assert (params != before).all()
    moments = [value for value in optimizer.state.values() if value.ndim]
    assert {value.dtype for value in [params, *moments]} == {np.dtype("float32")}


@every_optimizer
def test_the_size_of_blocks_does_not_change_a_bit(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(make(), vector(1000), range(3))
    for block in (7, 64, 999):
        monkeypatch.setattr(optimizers, "_BLOCK", block)
        np.testing.assert_array_equal(run(make(), vector(1000), range(3)), whole)


@every_optimizer
def test_a_run_goes_on_from_saved_state_to_the_last_bit(make: Make) -> None:
    straight = run(make(), vector(), range(6))
    first, second = make(), make()
    params = run(first, vector(), range(3))
    saved = {name: value.copy() for name, value in first.state.items()}
    second.start(params)
    assert second.state.keys() == saved.keys()
    for name, value in saved.items():
        second.state[name][...] = value
    np.testing.assert_array_equal(run(second, params, range(3, 6)), straight)


@every_optimizer
def test_state_that_was_put_there_before_the_first_step_is_kept(make: Make) -> None:
    first, second = make(), make()
    params = run(first, vector(), range(3))
    second.state.update({name: value.copy() for name, value in first.state.items()})
    straight = run(first, params.copy(), range(3, 6))
    np.testing.assert_array_equal(run(second, params, range(3, 6)), straight)


@every_optimizer
def test_state_is_written_in_place(make: Make) -> None:
    optimizer, params = make(), vector()
    run(optimizer, params, range(1))
    held = dict(optimizer.state)
    run(optimizer, params, range(1, 3))
    assert all(optimizer.state[name] is value for name, value in held.items())


@every_optimizer
def test_an_empty_vector_is_no_trouble(make: Make) -> None:
    assert run(make(), np.empty(0), range(2)).size == 0


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ConfigError, match="momentum above 0"):
        Sgd(nesterov=True)


def test_clipping_scales_a_long_gradient_and_leaves_a_short_one() -> None:
    grads = np.array([3.0, 4.0])
    assert norm(grads) == 5.0
    clip_by_norm(grads, 5.0, 10.0)
    np.testing.assert_array_equal(grads, [3.0, 4.0])
    clip_by_norm(grads, 5.0, 1.0)
    np.testing.assert_allclose(grads, [0.6, 0.8])


@each("bad", [np.nan, np.inf, -np.inf, 1e20])
def test_a_norm_tells_of_any_element_that_is_not_finite_or_can_t_be_squared(bad: float) -> None:
    """1e20 has no square in float32."""
    assert finite_norm(np.array([1.0, 2.0, 2.0], "float32")) == 3.0
    with pytest.raises(NumericalError, match="norm of a gradient is"):
        finite_norm(np.array([1.0, bad], "float32"))


# --- flatten ---------------------------------------------------------------------------------


def network(dtype: str = "float32") -> list[Dense | BatchNorm | Relu]:
    layers: list[Dense | BatchNorm | Relu] = [Dense(4), BatchNorm(), Relu(), Dense(2, bias=False)]
    shape: tuple[int, ...] = (3,)
    for index, layer in enumerate(layers):
        shape = layer.build(shape, np.dtype(dtype), layer_streams(0, str(index)))
    return layers


def test_flatten_lays_out_layers_in_order_and_keeps_their_values() -> None:
    layers = network()
    values = [value.copy() for layer in layers for value in layer.params.values()]
    params, grads = flatten(layers)
    assert params.dtype == np.float32 and params.flags.c_contiguous
    assert params.shape == grads.shape == (4 * 3 + 4 + 4 + 4 + 2 * 4,)
    np.testing.assert_array_equal(params, np.concatenate([value.ravel() for value in values]))


def test_moving_the_vector_moves_the_layers() -> None:
    layers = network()
    params, _ = flatten(layers)
    params[...] = np.arange(params.size)
    np.testing.assert_array_equal(layers[0].params["weight"], np.arange(12).reshape(4, 3))
    np.testing.assert_array_equal(layers[3].params["weight"], np.arange(24, 32).reshape(2, 4))


def test_a_backward_writes_into_the_flat_gradient() -> None:
    layers = network()
    _, grads = flatten(layers)
    slot: dict[str, np.ndarray] = {}
    x = vector(6, dtype="float32").reshape(2, 3)
    y = layers[0].forward(x, slot)
    layers[0].backward(np.ones_like(y), slot, learn=True, send=False)
    np.testing.assert_array_equal(grads[:12], layers[0].grads["weight"].ravel())
    np.testing.assert_array_equal(grads[12:16], [2, 2, 2, 2])


def test_layers_without_parameters_give_empty_vectors() -> None:
    params, grads = flatten([Relu()])
    assert params.shape == grads.shape == (0,)
