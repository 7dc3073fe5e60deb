"""Input models: what they predict, and that they learn from the activation that came."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
import numpy as np
import pytest
from each import each
from gradcheck import numeric_gradient

from asyncdni import config
from asyncdni.nn.base import Array
from asyncdni.nn.input_model import InputModel
from asyncdni.nn.streams import layer_streams

INPUTS, OUTPUTS, WIDTH = 7, 4, 5
HIDDEN = each("hidden", [(), (6,), (6, 3)])


def built(loss: str = "cross_entropy", dtype: Any = np.float64, **options: Any) -> InputModel:
    model = InputModel(**options)
    streams = layer_streams(7, "stage.input_model")
    model.build(INPUTS, OUTPUTS, WIDTH, loss, np.dtype(dtype), streams)
    return model


def batch(
    seed: int = 1, samples: int = 8, loss: str = "cross_entropy", dtype: Any = np.float64
) -> tuple[Array, Array, Array]:
    """Inputs (B, X), targets, and activations (B, D)."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, INPUTS)).astype(dtype)
    h = rng.standard_normal((samples, WIDTH)).astype(dtype)
    if loss == "cross_entropy":
        return x, rng.integers(0, OUTPUTS, samples), h
    return x, rng.random((samples, OUTPUTS)).astype(dtype), h


def written_out(model: InputModel, z: Array) -> Array:
    """The arithmetic, layer by layer: dense, batch norm, relu; at last dense alone."""
    p = model.params
    positions = range(0, 3 * len(model.hidden), 3)
    for i in positions:
        z = z @ p[f"{i}.weight"].T + p[f"{i}.bias"]
        z = (z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + 1e-5)
        z = np.maximum(z * p[f"{i + 1}.weight"] + p[f"{i + 1}.bias"], 0)
    last = 3 * len(model.hidden)
    return z @ p[f"{last}.weight"].T + p[f"{last}.bias"]


class Recorder:
    """An optimizer that notes the gradient and stands still."""

    def step(self, params: Array, grads: Array, rate: float) -> None:
        self.grads = grads.copy()
        self.rate = rate


@HIDDEN
@each("labels", [True, False])
def test_the_prediction_is_the_networks_answer(hidden: tuple[int, ...], labels: bool) -> None:
    model = built(hidden=hidden, labels=labels)
    x, y, _ = batch()
    z = np.hstack([x, np.eye(OUTPUTS)[y]]) if labels else x
    np.testing.assert_allclose(model.predict(x, y), written_out(model, z), rtol=1e-9)


@HIDDEN
@each("labels", [True, False])
def test_a_fit_follows_the_mean_gradient_of_the_squared_error(
    hidden: tuple[int, ...], labels: bool
) -> None:
    model = built(hidden=hidden, labels=labels, learning_rate=0.5)
    recorder = Recorder()
    model.network.optimizer = recorder  # type: ignore[assignment]
    x, y, h = batch()
    z = np.hstack([x, np.eye(OUTPUTS)[y]]) if labels else x
    model.fit(x, y, h, 0.25)
    expected = [
        numeric_gradient(
            lambda: 0.5 * float(np.sum((written_out(model, z) - h) ** 2)) / len(h), value
        ).ravel()
        for value in model.params.values()
    ]
    np.testing.assert_allclose(recorder.grads, np.concatenate(expected), atol=1e-7)
    assert recorder.rate == 0.125


def test_a_fit_tells_the_mean_squared_error_before_its_step() -> None:
    model = built()
    x, y, h = batch()
    expected = np.mean((model.predict(x, y) - h) ** 2)
    assert model.fit(x, y, h, 1.0) == pytest.approx(expected)
    assert np.mean((model.predict(x, y) - h) ** 2) < expected


@pytest.mark.parametrize("labels", [True, False])
def test_it_learns_activations_that_follow_from_the_input(labels: bool) -> None:
    model = built(labels=labels, learning_rate=1e-2, hidden=(32,))
    weights = np.random.default_rng(0).standard_normal((INPUTS, WIDTH))
    errors = []
    for seed in range(500):
        x, y, _ = batch(seed, 64)
        h = np.maximum(x @ weights, 0)
        errors.append(model.fit(x, y, h, 1.0))
    assert errors[-1] < 0.05 * errors[0]


def test_labels_serve_where_the_input_tells_nothing() -> None:
    """The activation is the class itself, which x does not know."""
    errors = {}
    for labels in (True, False):
        model = built(labels=labels, learning_rate=1e-2, hidden=(16,))
        codes = np.random.default_rng(0).standard_normal((OUTPUTS, WIDTH))
        for seed in range(300):
            x, y, _ = batch(seed, 64)
            errors[labels] = model.fit(x, y, codes[y], 1.0)
    assert errors[True] < 0.1 * errors[False]


def test_labels_are_seen_only_where_they_are_asked_for() -> None:
    x, y, _ = batch()
    for labels in (True, False):
        model = built(labels=labels)
        first, other = model.predict(x, y), model.predict(x, (y + 1) % OUTPUTS)
        assert np.array_equal(first, other) is not labels
    assert built().predict(x, None).shape == (8, WIDTH)


def test_targets_that_are_no_classes_are_fed_as_they_are() -> None:
    model = built("mse", labels=True)
    x, y, _ = batch(loss="mse")
    expected = written_out(model, np.hstack([x, y]))
    np.testing.assert_allclose(model.predict(x, y), expected, rtol=1e-9)


def test_nothing_moves_at_a_rate_scale_of_zero() -> None:
    model, before = built(), built()
    model.fit(*batch(), 0.0)
    for key, value in model.params.items():
        np.testing.assert_array_equal(value, before.params[key])


def test_predictions_are_kept_while_others_are_made_and_fitted() -> None:
    model = built()
    x, y, _ = batch()
    prediction = model.predict(x, y)
    kept = prediction.copy()
    for seed in range(3):
        model.fit(*batch(seed), 1.0)
        model.predict(*batch(seed)[:2])
    np.testing.assert_array_equal(prediction, kept)


def test_batches_of_any_size_take_turns() -> None:
    used, fresh = built(labels=True), built(labels=True)
    used.fit(*batch(1, samples=12), 0.0)
    for model in (used, fresh):
        model.buffers["steps"][...] = 0
        for name in ("first", "second"):
            model.buffers[name][...] = 0
        model.fit(*batch(2, samples=3), 1.0)
    for key, value in used.params.items():
        np.testing.assert_array_equal(value, fresh.params[key])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_arithmetic_is_in_the_dtype_asked_for(dtype: Any) -> None:
    model = built(dtype=dtype, labels=True)
    x, y, h = batch(dtype=dtype)
    model.fit(x, y, h, 0.5)
    assert model.predict(x, y).dtype == dtype
    assert {value.dtype for value in model.params.values()} == {np.dtype(dtype)}


def test_a_restored_model_goes_on_to_the_same_bits() -> None:
    original, restored = built(), built()
    for seed in range(5):
        original.fit(*batch(seed), 1.0)
    for source, target in (
        (original.params, restored.params),
        (original.buffers, restored.buffers),
    ):
        assert source.keys() == target.keys()
        for name, value in source.items():
            target[name][...] = value
    for seed in range(5, 10):
        assert restored.fit(*batch(seed), 1.0) == original.fit(*batch(seed), 1.0)


def test_the_model_and_its_table_in_the_experiment_file_agree() -> None:
    fields = {field.name: field.default for field in msgspec.structs.fields(config.InputModel)}
    options = inspect.signature(InputModel).parameters.values()
    assert {option.name: option.default for option in options} == fields
