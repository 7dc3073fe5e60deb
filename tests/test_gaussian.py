"""Sampling by reparametrisation: its noise, its gradients and its divergence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from each import each
from gradcheck import assert_gradient

from asyncdni.errors import ConfigError, DataError
from asyncdni.nn.layers.noise import Gaussian
from asyncdni.nn.streams import layer_streams, stream

SAMPLES, CODES = 6, 3


def built(
    *, seed: int = 0, name: str = "code.1", dtype: str = "float64", **options: Any
) -> Gaussian:
    layer = Gaussian(**options)
    assert layer.build((2 * CODES,), np.dtype(dtype), layer_streams(seed, name)) == (CODES,)
    return layer


def inputs(samples: int = SAMPLES, dtype: str = "float64") -> np.ndarray:
    x = stream(0, "test", "x", samples).normal(size=(samples, 2 * CODES)).astype(dtype)
    x.flags.writeable = False
    return x


def grad_for(y: np.ndarray, key: int = 0) -> np.ndarray:
    return stream(0, "test", "grad", key).normal(size=y.shape).astype(y.dtype)


@each("weight", [0.0, 1.0, 0.3])
def test_gradients_match_finite_differences_of_output_and_divergence(weight: float) -> None:
    layer, slot = built(weight=weight), {"batch": 5}
    x = inputs().copy()
    grad_y = grad_for(layer.forward(x, slot))

    def value() -> float:
        other: dict[str, Any] = {"batch": 5}
        return float(np.vdot(layer.forward(x, other), grad_y)) + other["loss"]

    assert_gradient(layer.backward(grad_y, slot, learn=True, send=True), value, x)


def test_the_divergence_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    layer, slot = built(weight=2.0), {"batch": 0}
    x = inputs()
    layer.forward(x, slot)
    mean, deviation = torch.tensor(x[:, :CODES]), torch.tensor(np.exp(0.5 * x[:, CODES:]))
    normal = torch.distributions.Normal
    divergence = torch.distributions.kl_divergence(normal(mean, deviation), normal(0.0, 1.0))
    np.testing.assert_allclose(slot["loss"], 2 * divergence.sum().item(), rtol=1e-12)


def test_the_prior_itself_has_no_divergence_and_no_gradient_of_it() -> None:
    layer, slot = built(), {"batch": 0}
    y = layer.forward(np.zeros((SAMPLES, 2 * CODES)), slot)
    assert slot["loss"] == 0
    grad_x = layer.backward(np.zeros_like(y), slot, learn=False, send=True)
    assert grad_x is not None and not grad_x.any()


def test_samples_have_the_mean_and_the_variance_that_came_in() -> None:
    x = np.tile(np.array([1.0, -2.0, 0.0, 0.0, 2 * np.log(3.0), -50.0]), (20_000, 1))
    y = built().forward(x, {"batch": 0})
    np.testing.assert_allclose(y.mean(axis=0), [1, -2, 0], atol=0.08)
    np.testing.assert_allclose(y.std(axis=0), [1, 3, 0], rtol=0.03, atol=1e-9)


def test_noise_goes_by_seed_name_and_batch_and_by_nothing_else() -> None:
    def drawn(batch: int, **key: Any) -> np.ndarray:
        return built(**key).forward(inputs(), {"batch": batch})

    one = drawn(3)
    np.testing.assert_array_equal(drawn(3), one)
    for other in (drawn(4), drawn(3, seed=1), drawn(3, name="code.2")):
        assert (other != one).all()
    layer = built()
    layer.forward(inputs(), {"batch": 9})
    np.testing.assert_array_equal(layer.forward(inputs(), {"batch": 3}), one)
    np.testing.assert_allclose(
        built(dtype="float32").forward(inputs(dtype="float32"), {"batch": 3}), one, rtol=1e-4
    )


def test_a_second_backward_may_leave_the_divergence_out() -> None:
    layer, slot = built(), {"batch": 0}
    grad_y = grad_for(layer.forward(inputs(), slot))
    whole = layer.backward(grad_y, slot, learn=True, send=True)
    assert whole is not None
    kept = whole.copy()
    slot["own_loss"] = False
    bare = layer.backward(grad_y, slot, learn=True, send=True)
    assert bare is not None
    np.testing.assert_array_equal(whole, kept)
    x = inputs()
    own = np.concatenate((x[:, :CODES], (np.exp(x[:, CODES:]) - 1) / 2), axis=1)
    np.testing.assert_allclose(whole - bare, own, rtol=1e-10, atol=1e-12)


def test_batches_in_flight_do_not_touch_each_other() -> None:
    layer, slots = built(), ({"batch": 0}, {"batch": 1})
    outputs = [layer.forward(inputs(), slot) for slot in slots]
    expected = layer.backward(grad_for(outputs[0]), slots[0], learn=True, send=True)
    alone: dict[str, Any] = {"batch": 0}
    y = built().forward(inputs(), alone)
    np.testing.assert_array_equal(outputs[0], y)
    found = built().backward(grad_for(y), alone, learn=True, send=True)
    np.testing.assert_array_equal(found, expected)


def test_a_slot_takes_a_shorter_last_batch() -> None:
    layer, slot = built(), {"batch": 0}
    layer.forward(inputs(), slot)
    slot["batch"] = 1
    y = layer.forward(inputs(2), slot)
    alone: dict[str, Any] = {"batch": 1}
    np.testing.assert_array_equal(y, layer.forward(inputs(2), alone))
    grads = [layer.backward(grad_for(y), own, learn=False, send=True) for own in (slot, alone)]
    np.testing.assert_array_equal(*grads)
    assert slot["loss"] == alone["loss"]


def test_evaluation_gives_the_means() -> None:
    np.testing.assert_array_equal(built().evaluate(inputs()), inputs()[:, :CODES])


def test_float32_stays_float32() -> None:
    layer, slot = built(dtype="float32"), {"batch": 0}
    y = layer.forward(inputs(dtype="float32"), slot)
    grad_x = layer.backward(grad_for(y), slot, learn=True, send=True)
    assert grad_x is not None
    assert y.dtype == grad_x.dtype == np.float32
    assert layer.backward(grad_for(y), slot, learn=True, send=False) is None


def test_a_batch_without_an_id_is_refused() -> None:
    with pytest.raises(DataError, match="needs the batch's id"):
        built().forward(inputs(), {})


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"shape \(2 Z,\), .* not \(3,\)"):
        Gaussian().output_shape((3,))
    with pytest.raises(ConfigError, match="weight -1: expected a number of at least 0"):
        Gaussian(weight=-1)


def test_the_test_loss_has_the_divergence_of_training_in_it() -> None:
    layer, slot = built(weight=0.5), {"batch": 0}
    x = inputs()
    layer.forward(x, slot)
    assert layer.own_loss(x) == pytest.approx(slot["loss"], rel=1e-12)
