"""Generators of feature maps: what they see, what they learn from, and what they keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from each import each
from gradcheck import assert_gradient

from asyncdni.errors import ConfigError, NumericalError
from asyncdni.nn.base import Array, Slot
from asyncdni.nn.generators.error import ErrorGenerator, FeatureMapErrorGenerator
from asyncdni.nn.generators.regression import ConvolutionalGenerator
from asyncdni.nn.losses import make_loss
from asyncdni.nn.streams import layer_streams

MAP, OUTPUTS = (3, 5, 4), 4
WIDTH = 60
LOSSES = "cross_entropy", "sigmoid_cross_entropy", "mse"
KINDS = "error", "convolutional"
each_kind = pytest.mark.parametrize("kind", KINDS)


def built(kind: str, loss: str = "cross_entropy", dtype: Any = np.float64, **options: Any) -> Any:
    if kind == "error":
        generator: Any = FeatureMapErrorGenerator(**{"cells": 2, **options})
    else:
        generator = ConvolutionalGenerator(**{"hidden": (2,), "kernel": 3, **options})
    streams = layer_streams(7, "stage")
    generator.build(WIDTH, OUTPUTS, loss, np.dtype(dtype), streams, shape=MAP)
    return generator


def batch(
    seed: int, samples: int = 6, loss: str = "cross_entropy", dtype: Any = np.float64
) -> tuple[Array, Array, Array]:
    """Activations (B, C H W), targets that fit the loss, and a gradient (B, C H W)."""
    rng = np.random.default_rng(seed)
    h, grad = rng.standard_normal((2, samples, WIDTH)).astype(dtype)
    if loss == "cross_entropy":
        return h, rng.integers(0, OUTPUTS, samples), grad
    return h, rng.random((samples, OUTPUTS)).astype(dtype), grad


def shake(generator: Any, seed: int = 0) -> None:
    """Takes the parameters away from zero."""
    rng = np.random.default_rng(seed)
    for value in generator.params.values():
        value[...] = 0.5 * rng.standard_normal(value.shape)


def train(generator: Any, seeds: range) -> None:
    for seed in seeds:
        slot: Slot = {}
        h, y, grad = batch(seed)
        generator.predict(h, y, slot, 1.0)
        generator.fit(grad, slot, 1.0)


class Recorder:
    """An optimizer that notes the gradient and stands still."""

    def step(self, params: Array, grads: Array, rate: float) -> None:
        self.grads = grads.copy()
        self.rate = rate


# --- both ------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("loss", LOSSES)
def test_the_first_prediction_is_exactly_zero(kind: str, loss: str) -> None:
    h, y, _ = batch(1, loss=loss)
    prediction = built(kind, loss).predict(h, y, {}, 1.0)
    np.testing.assert_array_equal(prediction, np.zeros_like(h))


@each_kind
@pytest.mark.parametrize("loss", LOSSES)
def test_predictions_move_towards_gradients_that_follow_from_the_targets(
    kind: str, loss: str
) -> None:
    rng = np.random.default_rng(2)
    still = {"head_learning_rate": 1e-6} if kind == "error" else {"learning_rate": 1e-2}
    generator = built(kind, loss, **still)
    h, y, _ = batch(1, 32, loss)
    grad = make_loss(loss).error(np.zeros((32, OUTPUTS)), y, np.empty((32, OUTPUTS)))
    channels = grad @ rng.standard_normal((OUTPUTS, MAP[0]))
    grad = np.repeat(channels, MAP[1] * MAP[2], axis=1)
    for _ in range(200):
        slot: Slot = {}
        prediction = generator.predict(h, y, slot, 1.0)
        generator.fit(grad, slot, 1.0)
    cosine = np.vdot(prediction, grad) / np.linalg.norm(prediction) / np.linalg.norm(grad)
    assert cosine > 0.8


@each_kind
def test_a_prediction_stays_as_it_is_while_others_are_made_and_fitted(kind: str) -> None:
    generator = built(kind)
    train(generator, range(3))
    slot: Slot = {}
    h, y, grad = batch(5)
    prediction = generator.predict(h, y, slot, 1.0)
    assert prediction.any()
    kept = prediction.copy()
    h[...] = 0  # the slot does not rely on the caller's arrays
    y[...] = 0
    train(generator, range(10, 13))
    generator.fit(grad, slot, 1.0)
    np.testing.assert_array_equal(prediction, kept)


@each_kind
def test_a_smaller_batch_uses_the_memory_of_the_larger_one(kind: str) -> None:
    used, fresh = built(kind), built(kind)
    slots: list[Slot] = [{}, {}]
    large = used.predict(*batch(1)[:2], slots[0], 1.0)
    fresh.predict(*batch(1)[:2], {}, 1.0)
    h, y, grad = batch(2, samples=3)
    small = used.predict(h, y, slots[0], 1.0)
    np.testing.assert_array_equal(small, fresh.predict(h, y, slots[1], 1.0))
    assert np.shares_memory(small, large)
    used.fit(grad, slots[0], 1.0)
    fresh.fit(grad, slots[1], 1.0)
    for name, value in used.params.items():
        np.testing.assert_array_equal(value, fresh.params[name])


@each_kind
def test_a_restored_generator_goes_on_to_the_same_bits(kind: str) -> None:
    original, restored = built(kind), built(kind)
    train(original, range(4))
    for name, value in original.params.items():
        restored.params[name][...] = value
    for name, value in original.buffers.items():
        restored.buffers[name][...] = value
    for generator in (original, restored):
        train(generator, range(4, 8))
    for name, value in (original.params | original.buffers).items():
        found = (restored.params | restored.buffers)[name]
        np.testing.assert_array_equal(found, value)


@each_kind
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_arithmetic_is_in_the_dtype_asked_for(kind: str, dtype: Any) -> None:
    generator = built(kind, dtype=dtype)
    slot: Slot = {}
    h, y, grad = batch(1, dtype=dtype)
    for _ in range(2):
        assert generator.predict(h, y, slot, 0.5).dtype == dtype
        generator.fit(grad, slot, 0.5)
    assert {value.dtype for value in generator.params.values()} == {np.dtype(dtype)}


@each_kind
def test_a_gradient_that_is_not_finite_is_not_learned_from(kind: str) -> None:
    generator = built(kind)
    train(generator, range(2))
    slot: Slot = {}
    h, y, grad = batch(3)
    generator.predict(h, y, slot, 1.0)
    before = {name: value.copy() for name, value in generator.params.items()}
    grad[2, 7] = np.inf
    with pytest.raises(NumericalError), np.errstate(invalid="ignore", over="ignore"):
        generator.fit(grad, slot, 1.0)
    for name, value in generator.params.items():
        np.testing.assert_array_equal(value, before[name])


# --- the error of a pooled head --------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_the_head_follows_the_local_loss_of_pooled_maps(loss: str) -> None:
    torch = pytest.importorskip("torch")
    generator = built("error", loss, head_learning_rate=0.5)
    shake(generator)
    generator.optimizer = recorder = Recorder()
    h, y, _ = batch(1, loss=loss)
    generator.predict(h, y, {}, 0.25)
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(h.reshape(6, *MAP)), 2)
    features = pooled.reshape(6, -1).numpy()
    weight, bias = generator.params["head.weight"], generator.params["head.bias"]
    assert weight.shape == (OUTPUTS, MAP[0] * 4)

    def local_loss() -> float:
        return make_loss(loss).forward(features @ weight.T + bias, y, {})[0] / len(h)

    assert_gradient(recorder.grads[: weight.size].reshape(weight.shape), local_loss, weight)
    assert_gradient(recorder.grads[weight.size :], local_loss, bias)
    assert recorder.rate == 0.125


def test_the_prediction_is_the_error_before_the_heads_step_through_the_map() -> None:
    generator = built("error")
    shake(generator)
    h, y, _ = batch(1)
    slot: Slot = {}
    prediction = generator.predict(h, y, slot, 1.0)
    np.testing.assert_allclose(prediction, slot["error"] @ generator.params["map"], rtol=1e-12)
    np.testing.assert_allclose(slot["error"].sum(axis=1), 0, atol=1e-12)


def test_the_map_of_every_place_converges_to_the_true_one() -> None:
    generator = built("error", rate=1.0, head_learning_rate=1e-3)
    true_map = np.random.default_rng(0).standard_normal((OUTPUTS, WIDTH))
    true_map -= true_map.mean(axis=0)  # e sums to 0 over classes: the rest can't be seen
    for seed in range(200):
        slot: Slot = {}
        generator.predict(*batch(seed, 32)[:2], slot, 1.0)
        generator.fit(slot["error"] @ true_map, slot, 1.0)
    np.testing.assert_allclose(generator.params["map"], true_map, atol=1e-6)


def test_planes_smaller_than_the_cells_are_seen_as_they_are() -> None:
    generator = FeatureMapErrorGenerator(cells=7)
    streams = layer_streams(0, "a")
    generator.build(12, 4, "cross_entropy", np.dtype(float), streams, shape=(3, 2, 2))
    assert generator.params["head.weight"].shape == (4, 12)


@each("shape", [(), (60,), (12, 5)])
def test_of_other_activations_it_is_the_error_generator_to_the_last_bit(shape: Any) -> None:
    generators = FeatureMapErrorGenerator(), ErrorGenerator()
    streams = layer_streams(7, "stage")
    generators[0].build(WIDTH, OUTPUTS, "mse", np.dtype(float), streams, shape=shape)
    generators[1].build(WIDTH, OUTPUTS, "mse", np.dtype(float), streams)
    for seed in range(3):
        slots: tuple[Slot, Slot] = {}, {}
        h, y, grad = batch(seed, loss="mse")
        predictions = [g.predict(h, y, s, 1.0) for g, s in zip(generators, slots, strict=True)]
        np.testing.assert_array_equal(*predictions)
        for generator, slot in zip(generators, slots, strict=True):
            generator.fit(grad, slot, 1.0)
    assert predictions[0].any()
    for name, value in generators[1].params.items():
        np.testing.assert_array_equal(generators[0].params[name], value)


@each("cells", [0, 2.0, True])
def test_a_number_of_cells_that_is_none_is_refused(cells: Any) -> None:
    with pytest.raises(ConfigError, match=r"cells .*: expected a positive whole number"):
        FeatureMapErrorGenerator(cells=cells)


# --- convolutions with labels as channels ------------------------------------------------------


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_targets_are_constant_planes_beside_the_activation(loss: str) -> None:
    generator = built("convolutional", loss)
    h, y, _ = batch(1, loss=loss)
    slot: Slot = {}
    generator.predict(h, y, slot, 1.0)
    z = slot["inputs"].reshape(6, MAP[0] + OUTPUTS, *MAP[1:])
    values = np.eye(OUTPUTS)[y] if loss == "cross_entropy" else y
    np.testing.assert_array_equal(z[:, : MAP[0]], h.reshape(6, *MAP))
    np.testing.assert_array_equal(
        z[:, MAP[0] :], np.broadcast_to(values[:, :, None, None], (6, OUTPUTS, *MAP[1:]))
    )


def test_activations_that_are_no_maps_are_refused() -> None:
    generator = ConvolutionalGenerator()
    with pytest.raises(ConfigError, match=r"takes inputs of shape \(C, H, W\), not \(60,\)"):
        generator.build(60, 4, "mse", np.dtype(float), layer_streams(0, "a"), shape=(60,))


def test_labels_are_seen_only_where_they_are_asked_for() -> None:
    h, y, _ = batch(1)
    for labels in (True, False):
        generator = built("convolutional", labels=labels)
        shake(generator)
        first = generator.predict(h, y, {}, 1.0)
        other = generator.predict(h, (y + 1) % OUTPUTS, {}, 1.0)
        assert np.array_equal(first, other) is not labels


@pytest.mark.parametrize("scale_targets", [True, False])
def test_a_fit_follows_the_mean_gradient_of_the_squared_error(scale_targets: bool) -> None:
    generator = built("convolutional", scale_targets=scale_targets, learning_rate=0.5)
    shake(generator)
    generator.network.optimizer = recorder = Recorder()
    slot: Slot = {}
    h, y, grad = batch(1)
    generator.predict(h, y, slot, 1.0)
    generator.fit(grad, slot, 0.25)
    z = slot["inputs"].copy()
    target = grad / np.sqrt(np.mean(grad**2)) if scale_targets else grad

    def objective() -> float:
        return 0.5 * float(np.sum((generator.forward(z) - target) ** 2)) / len(h)

    start = 0
    for value in generator.params.values():
        found = recorder.grads[start : start + value.size].reshape(value.shape)
        assert_gradient(found, objective, value, tolerance=1e-7)
        start += value.size
    assert recorder.rate == 0.125


def test_every_layer_starts_from_numbers_of_its_own_and_the_last_from_zero() -> None:
    generator = built("convolutional", hidden=(3, 3), labels=False)
    weights = [value for value in generator.params.values() if value.ndim == 4]
    assert len(weights) == 3
    assert not np.array_equal(weights[0], weights[1])
    assert not weights[2].any()
