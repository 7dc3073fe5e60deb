"""Generators: what they predict, what they learn from, and what a slot keeps for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from each import each

from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array, Slot
from asyncdni.nn.generators import GENERATORS, MAP_GENERATORS, generator_options, make_generator
from asyncdni.nn.losses import make_loss
from asyncdni.nn.streams import layer_streams

WIDTH, OUTPUTS = 6, 4
LOSSES = "cross_entropy", "sigmoid_cross_entropy", "mse"
LEARNING = "error", "linear", "low_rank", "mlp"
REGRESSIONS = "linear", "low_rank", "mlp"


def built(kind: str, loss: str = "cross_entropy", dtype: Any = np.float64, **options: Any) -> Any:
    if kind == "low_rank":
        options.setdefault("rank", 3)
    if kind == "mlp":
        options.setdefault("hidden", (5,))
    generator = make_generator(kind, **options)
    generator.build(WIDTH, OUTPUTS, loss, np.dtype(dtype), layer_streams(7, "stage"))
    return generator


def batch(
    seed: int, samples: int = 8, loss: str = "cross_entropy", dtype: Any = np.float64
) -> tuple[Array, Array, Array]:
    """Activations (B, D), targets that fit the loss, and a gradient (B, D)."""
    rng = np.random.default_rng(seed)
    h = rng.standard_normal((samples, WIDTH)).astype(dtype)
    grad = rng.standard_normal((samples, WIDTH)).astype(dtype)
    if loss == "cross_entropy":
        return h, rng.integers(0, OUTPUTS, samples), grad
    return h, rng.random((samples, OUTPUTS)).astype(dtype), grad


def shake(generator: Any, seed: int = 0) -> None:
    """Takes the parameters away from zero."""
    rng = np.random.default_rng(seed)
    for value in generator.params.values():
        value[...] = rng.standard_normal(value.shape)


def train(generator: Any, seeds: range, **kind: Any) -> None:
    for seed in seeds:
        slot: Slot = {}
        h, y, grad = batch(seed, **kind)
        generator.predict(h, y, slot, 1.0)
        generator.fit(grad, slot, 1.0)


def slopes(objective: Callable[[], float], value: Array, step: float = 1e-6) -> Array:
    """Central differences of `objective` by each element of `value`."""
    found = np.zeros_like(value)
    for index in np.ndindex(value.shape):
        kept = value[index]
        value[index] = kept + step
        above = objective()
        value[index] = kept - step
        found[index] = (above - objective()) / (2 * step)
        value[index] = kept
    return found


class Recorder:
    """An optimizer that notes the gradient and stands still."""

    def step(self, params: Array, grads: Array, rate: float) -> None:
        self.grads = grads.copy()
        self.rate = rate


# --- what they learn from --------------------------------------------------------------------


@each("loss", LOSSES)
def test_the_head_follows_the_mean_gradient_of_the_local_loss(loss: str) -> None:
    generator = built("error", loss, head_learning_rate=0.5)
    shake(generator)
    generator.optimizer = recorder = Recorder()
    h, y, _ = batch(1, loss=loss)
    generator.predict(h, y, {}, 0.25)
    weight, bias = generator.params["head.weight"], generator.params["head.bias"]

    def local_loss() -> float:
        return make_loss(loss).forward(h @ weight.T + bias, y, {})[0] / len(h)

    expected = [slopes(local_loss, weight).ravel(), slopes(local_loss, bias)]
    np.testing.assert_allclose(recorder.grads, np.concatenate(expected), rtol=1e-6, atol=1e-9)
    assert recorder.rate == 0.125


def test_the_map_takes_a_normalised_step_down_its_squared_error() -> None:
    generator = built("error", rate=0.5)
    shake(generator)
    slot: Slot = {}
    h, y, grad = batch(1)
    generator.predict(h, y, slot, 1.0)
    e, before = slot["error"].copy(), generator.params["map"].copy()
    downhill = slopes(
        lambda: 0.5 * np.sum((e @ generator.params["map"] - grad) ** 2), generator.params["map"]
    )
    generator.fit(grad, slot, 0.25)
    expected = before - 0.5 * 0.25 * downhill / np.sum(e**2)
    np.testing.assert_allclose(generator.params["map"], expected, rtol=1e-5)


@each("kind", REGRESSIONS)
@each("labels", [True, False])
@each("scale_targets", [True, False])
def test_a_fit_follows_the_mean_gradient_of_the_squared_error(
    kind: str, labels: bool, scale_targets: bool
) -> None:
    generator = built(kind, labels=labels, scale_targets=scale_targets, learning_rate=0.5)
    shake(generator)
    generator.network.optimizer = recorder = Recorder()
    slot: Slot = {}
    h, y, grad = batch(1)
    generator.predict(h, y, slot, 1.0)
    generator.fit(grad, slot, 0.25)
    inputs = np.hstack([h, np.eye(OUTPUTS)[y]]) if labels else h
    target = grad / np.sqrt(np.mean(grad**2)) if scale_targets else grad

    def objective() -> float:
        return 0.5 * float(np.sum((generator.forward(inputs) - target) ** 2)) / len(h)

    expected = [slopes(objective, value).ravel() for value in generator.params.values()]
    np.testing.assert_allclose(recorder.grads, np.concatenate(expected), rtol=1e-5, atol=1e-7)
    assert recorder.rate == 0.125


@each("kind", LEARNING)
def test_nothing_moves_at_a_rate_scale_of_zero(kind: str) -> None:
    generator = built(kind)
    shake(generator)
    before = {name: value.copy() for name, value in generator.params.items()}
    slot: Slot = {}
    h, y, grad = batch(1)
    generator.predict(h, y, slot, 0.0)
    generator.fit(grad, slot, 0.0)
    for name, value in generator.params.items():
        np.testing.assert_array_equal(value, before[name])


# --- what they predict -----------------------------------------------------------------------


@each("kind", GENERATORS)
@each("loss", LOSSES)
def test_the_first_prediction_is_exactly_zero(kind: str, loss: str) -> None:
    h, y, _ = batch(1, loss=loss)
    prediction = built(kind, loss).predict(h, y, {}, 1.0)
    np.testing.assert_array_equal(prediction, np.zeros_like(h))


@each("kind", LEARNING)
@each("loss", LOSSES)
def test_predictions_move_towards_the_gradients_that_came_back(kind: str, loss: str) -> None:
    # A head at rest, as the gradient here does not change with it.
    generator = built(kind, loss, **({"head_learning_rate": 1e-6} if kind == "error" else {}))
    h, y, _ = batch(1, 64, loss)
    grad = make_loss(loss).error(np.zeros((64, OUTPUTS)), y, np.empty((64, OUTPUTS)))
    grad = grad @ np.random.default_rng(2).standard_normal((OUTPUTS, WIDTH))
    for _ in range(300):
        slot: Slot = {}
        prediction = generator.predict(h, y, slot, 1.0)
        generator.fit(grad, slot, 1.0)
    cosine = np.vdot(prediction, grad) / np.linalg.norm(prediction) / np.linalg.norm(grad)
    assert cosine > 0.8


def test_the_zero_generator_predicts_zero_whatever_came_back() -> None:
    generator = built("zero")
    slot: Slot = {}
    h, y, grad = batch(1)
    generator.predict(h, y, slot, 1.0)[...] = 1  # a backward may use it as scratch
    generator.fit(grad, slot, 1.0)
    assert not generator.predict(h, y, slot, 1.0).any()


def test_the_map_converges_to_the_true_one() -> None:
    generator = built("error", rate=1.0, head_learning_rate=1e-3)
    true_map = np.random.default_rng(0).standard_normal((OUTPUTS, WIDTH))
    true_map -= true_map.mean(axis=0)  # e sums to 0 over classes: the rest can't be seen
    for seed in range(200):
        slot: Slot = {}
        h, y, _ = batch(seed, 32)
        generator.predict(h, y, slot, 1.0)
        generator.fit(slot["error"] @ true_map, slot, 1.0)
    np.testing.assert_allclose(generator.params["map"], true_map, atol=1e-6)


def test_an_error_of_zero_leaves_the_map_as_it_is() -> None:
    generator = built("error", "mse")
    slot: Slot = {}
    h, _, grad = batch(1)
    generator.predict(h, np.zeros((8, OUTPUTS)), slot, 1.0)
    generator.fit(grad, slot, 1.0)
    assert not generator.params["map"].any()


@each("size", [1e-4, 1.0, 1e4])
def test_predictions_are_right_whatever_the_size_of_the_targets(size: float) -> None:
    generator = built("linear", learning_rate=1e-2)
    rng = np.random.default_rng(0)
    by_h, by_y = rng.standard_normal((WIDTH, WIDTH)), rng.standard_normal((OUTPUTS, WIDTH))
    for seed in range(2000):
        slot: Slot = {}
        h, y, _ = batch(seed, 32)
        grad = size * (h @ by_h + by_y[y])
        prediction = generator.predict(h, y, slot, 1.0)
        generator.fit(grad, slot, 1.0)
    assert np.linalg.norm(prediction - grad) < 0.05 * np.linalg.norm(grad)


@each("kind", REGRESSIONS)
def test_labels_are_seen_only_where_they_are_asked_for(kind: str) -> None:
    h, y, _ = batch(1)
    for labels in (True, False):
        generator = built(kind, labels=labels)
        shake(generator)
        slots: tuple[Slot, Slot] = {}, {}
        first = generator.predict(h, y, slots[0], 1.0)
        other = generator.predict(h, (y + 1) % OUTPUTS, slots[1], 1.0)
        assert np.array_equal(first, other) is not labels


@each("kind", REGRESSIONS)
def test_targets_that_are_no_classes_are_fed_as_they_are(kind: str) -> None:
    generator = built(kind, "mse")
    shake(generator)
    slot: Slot = {}
    h, y, _ = batch(1, loss="mse")
    prediction = generator.predict(h, y, slot, 1.0)
    np.testing.assert_array_equal(prediction, generator.forward(np.hstack([h, y])))


@each("kind", LEARNING)
def test_class_ids_may_be_bytes_beside_a_wide_activation(kind: str) -> None:
    narrow, wide = make_generator(kind), make_generator(kind)
    h, (_, y, _) = np.random.default_rng(0).standard_normal((8, 300)), batch(1)
    for generator, ids in ((narrow, y.astype(np.uint8)), (wide, y)):
        generator.build(300, OUTPUTS, "cross_entropy", np.dtype(float), layer_streams(7, "stage"))
        slot: Slot = {}
        generator.predict(h, ids, slot, 1.0)
        generator.fit(-h, slot, 1.0)
    expected = wide.predict(h, y, {}, 1.0)
    assert expected.any()
    np.testing.assert_array_equal(narrow.predict(h, y.astype(np.uint8), {}, 1.0), expected)


@each("kind", GENERATORS)
@each("dtype", [np.float32, np.float64])
def test_all_arithmetic_is_in_the_dtype_asked_for(kind: str, dtype: Any) -> None:
    generator = built(kind, dtype=dtype)
    slot: Slot = {}
    h, y, grad = batch(1, dtype=dtype)
    for _ in range(2):
        assert generator.predict(h, y, slot, 0.5).dtype == dtype
        generator.fit(grad, slot, 0.5)
    for value in generator.params.values():
        assert value.dtype == dtype
        assert np.isfinite(value).all()


# --- what a slot keeps -----------------------------------------------------------------------


def test_late_fits_of_the_error_generator_equal_the_rule_written_out() -> None:
    generator = built("error", rate=0.3)
    slots: list[Slot] = [{}, {}, {}]
    errors = []
    for seed, slot in enumerate(slots):
        h, y, _ = batch(seed)
        logits = h @ generator.params["head.weight"].T + generator.params["head.bias"]
        odds = np.exp(logits)
        errors.append(odds / odds.sum(axis=1, keepdims=True) - np.eye(OUTPUTS)[y])
        generator.predict(h, y, slot, 1.0)
    expected = np.zeros((OUTPUTS, WIDTH))
    for seed in (2, 0, 1):
        grad, e = batch(seed)[2], errors[seed]
        generator.fit(grad, slots[seed], 1.0)
        expected -= 0.3 * e.T @ (e @ expected - grad) / np.sum(e**2)
    np.testing.assert_allclose(generator.params["map"], expected, rtol=1e-4)


@each("kind", REGRESSIONS)
def test_late_fits_equal_fits_at_once_in_the_same_order(kind: str) -> None:
    late, prompt = built(kind), built(kind)
    order = (2, 0, 1)
    slots: list[Slot] = [{}, {}, {}]
    for seed, slot in enumerate(slots):
        late.predict(*batch(seed)[:2], slot, 1.0)
    for seed in order:
        late.fit(batch(seed)[2], slots[seed], 1.0)
        train(prompt, range(seed, seed + 1))
    for name, value in late.params.items():
        np.testing.assert_array_equal(value, prompt.params[name])


@each("kind", GENERATORS)
def test_a_prediction_stays_as_it_is_while_others_are_made_and_fitted(kind: str) -> None:
    generator = built(kind)
    train(generator, range(3))
    slot: Slot = {}
    h, y, grad = batch(5)
    prediction = generator.predict(h, y, slot, 1.0)
    kept = prediction.copy()
    h[...] = 0  # the slot does not rely on the caller's arrays
    y[...] = 0
    train(generator, range(10, 13))
    generator.fit(grad, slot, 1.0)
    np.testing.assert_array_equal(prediction, kept)


@each("kind", GENERATORS)
def test_a_smaller_batch_uses_the_memory_of_the_larger_one(kind: str) -> None:
    used, fresh = built(kind), built(kind)
    slot: Slot = {}
    h, y, _ = batch(1)
    large = used.predict(h, y, slot, 1.0)
    fresh.predict(h, y, {}, 1.0)
    h, y, grad = batch(2, samples=3)
    other: Slot = {}
    small = used.predict(h, y, slot, 1.0)
    np.testing.assert_array_equal(small, fresh.predict(h, y, other, 1.0))
    assert np.shares_memory(small, large)
    used.fit(grad, slot, 1.0)
    fresh.fit(grad, other, 1.0)
    for name, value in used.params.items():
        np.testing.assert_array_equal(value, fresh.params[name])


# --- checkpoints, names ----------------------------------------------------------------------


@each("kind", GENERATORS)
def test_a_restored_generator_goes_on_to_the_same_bits(kind: str) -> None:
    original, restored = built(kind), built(kind)
    train(original, range(5))
    for source, target in (
        (original.params, restored.params),
        (original.buffers, restored.buffers),
    ):
        assert source.keys() == target.keys()
        for name, value in source.items():
            target[name][...] = value
    for generator in (original, restored):
        train(generator, range(5, 10))
    for name, value in original.params.items():
        np.testing.assert_array_equal(value, restored.params[name])
    for name, value in original.buffers.items():
        np.testing.assert_array_equal(value, restored.buffers[name])
    h, y, _ = batch(20)
    np.testing.assert_array_equal(original.predict(h, y, {}, 1.0), restored.predict(h, y, {}, 1.0))


def test_every_layer_of_a_generator_starts_from_numbers_of_its_own() -> None:
    generator = built("mlp", hidden=(WIDTH, WIDTH), labels=False)
    first, second = generator.params["0.weight"], generator.params["3.weight"]
    assert first.shape == second.shape
    assert not np.array_equal(first, second)


def test_generators_and_their_tables_in_the_experiment_file_agree() -> None:
    for kind, table in generator_options().items():
        assert table.__struct_config__.tag == kind
        if table.in_torch:
            continue
        fields = {field.name: field.default for field in msgspec.structs.fields(table)}
        found = {}
        for made in (GENERATORS.get(kind), MAP_GENERATORS.get(kind)):
            parameters = inspect.signature(made).parameters.values() if made is not None else ()
            found.update({option.name: option.default for option in parameters})
        assert found == fields


def test_an_unknown_name_or_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'lineer' is unknown.*error, linear"):
        make_generator("lineer")
    with pytest.raises(ConfigError, match=r"no option 'rnk'.*rank, labels"):
        make_generator("low_rank", rnk=3)
    with pytest.raises(ConfigError, match="'rate'; it takes none"):
        make_generator("zero", rate=1.0)
