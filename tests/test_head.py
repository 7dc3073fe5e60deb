"""The local head: the gradient it gives its stage, and what it learns from."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
import numpy as np
from each import each
from gradcheck import assert_gradient, numeric_gradient

from asyncdni import config
from asyncdni.nn.base import Array, Slot
from asyncdni.nn.generators.base import Generator
from asyncdni.nn.generators.error import LocalHead
from asyncdni.nn.losses import LOSSES, make_loss
from asyncdni.nn.streams import layer_streams

WIDTH, OUTPUTS = 6, 4
HIDDEN = each("hidden", [(), (5,), (5, 3)])


def built(
    loss: str = "cross_entropy", dtype: Any = np.float64, shaken: bool = True, **options: Any
) -> LocalHead:
    """`shaken`: away from its zeros."""
    head = LocalHead(**options)
    head.build(WIDTH, OUTPUTS, loss, np.dtype(dtype), layer_streams(7, "stage"))
    rng = np.random.default_rng(0)
    for value in head.params.values() if shaken else ():
        value[...] = rng.standard_normal(value.shape)
    return head


def batch(
    seed: int = 1, samples: int = 8, loss: str = "cross_entropy", dtype: Any = np.float64
) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    h = rng.standard_normal((samples, WIDTH)).astype(dtype)
    if loss == "cross_entropy":
        return h, rng.integers(0, OUTPUTS, samples)
    return h, rng.random((samples, OUTPUTS)).astype(dtype)


def summed_loss(head: LocalHead, loss: str, h: Array, y: Array) -> float:
    """The arithmetic written out."""
    names = list(head.params)
    x = h
    for weight, bias in zip(names[::2], names[1::2], strict=True):
        if x is not h:
            x = np.maximum(x, 0)
        x = x @ head.params[weight].T + head.params[bias]
    return make_loss(loss).forward(x, y, {})[0]


class Recorder:
    """An optimizer that notes the gradient and stands still."""

    def step(self, params: Array, grads: Array, rate: float) -> None:
        self.grads = grads.copy()
        self.rate = rate


@HIDDEN
@each("loss", LOSSES)
def test_the_prediction_is_the_gradient_of_the_summed_loss_before_the_step(
    hidden: tuple[int, ...], loss: str
) -> None:
    head, same = built(loss, hidden=hidden), built(loss, hidden=hidden)
    h, y = batch(loss=loss)
    found = head.predict(h, y, {}, 1.0)
    assert_gradient(found, lambda: summed_loss(same, loss, h, y), h)
    assert any(not np.array_equal(head.params[key], same.params[key]) for key in same.params)


@HIDDEN
@each("loss", LOSSES)
def test_the_head_follows_the_mean_gradient_of_its_own_loss(
    hidden: tuple[int, ...], loss: str
) -> None:
    head = built(loss, hidden=hidden, learning_rate=0.5)
    h, y = batch(loss=loss)
    recorder = Recorder()
    head.network.optimizer = recorder  # type: ignore[assignment]
    head.predict(h, y, {}, 0.25)
    expected = [
        numeric_gradient(lambda: summed_loss(head, loss, h, y) / len(h), value).ravel()
        for value in head.params.values()
    ]
    np.testing.assert_allclose(recorder.grads, np.concatenate(expected), atol=1e-8)
    assert recorder.rate == 0.125


@HIDDEN
@each("loss", LOSSES)
def test_only_the_first_gradient_is_zero(hidden: tuple[int, ...], loss: str) -> None:
    head = built(loss, hidden=hidden, shaken=False)
    h, y = batch(loss=loss)
    assert not head.predict(h, y, {}, 1.0).any()
    assert head.predict(h, y, {}, 1.0).any(axis=1).all()


@HIDDEN
def test_a_head_learns_what_an_activation_tells_of_its_class(hidden: tuple[int, ...]) -> None:
    head = built(hidden=hidden, shaken=False)
    rng = np.random.default_rng(0)
    centres = 3 * rng.standard_normal((OUTPUTS, WIDTH))
    slot: Slot = {}

    def points() -> tuple[Array, Array]:
        y = rng.integers(0, OUTPUTS, 64)
        return centres[y] + rng.standard_normal((64, WIDTH)), y

    for _ in range(300):
        head.predict(*points(), slot, 1.0)
    h, y = points()
    assert summed_loss(head, "cross_entropy", h, y) / len(h) < 0.1 < np.log(OUTPUTS)


def test_what_comes_back_teaches_it_nothing() -> None:
    head = built(hidden=(5,))
    slot: Slot = {}
    h, y = batch()
    head.predict(h, y, slot, 1.0)
    before = {key: value.copy() for key, value in head.params.items()}
    head.fit(h, slot, 1.0)
    for key, value in head.params.items():
        np.testing.assert_array_equal(value, before[key])


@HIDDEN
def test_nothing_moves_at_a_rate_scale_of_zero(hidden: tuple[int, ...]) -> None:
    head, before = built(hidden=hidden), built(hidden=hidden)
    assert head.predict(*batch(), {}, 0.0).any()
    for key, value in head.params.items():
        np.testing.assert_array_equal(value, before.params[key])


@HIDDEN
def test_a_prediction_stays_as_it_is_while_others_are_made(hidden: tuple[int, ...]) -> None:
    head = built(hidden=hidden)
    prediction = head.predict(*batch(1), {}, 1.0)
    kept = prediction.copy()
    for seed in range(2, 5):
        head.predict(*batch(seed), {}, 1.0)
    np.testing.assert_array_equal(prediction, kept)


@HIDDEN
def test_a_smaller_batch_uses_the_memory_of_the_larger_one(hidden: tuple[int, ...]) -> None:
    head, fresh = built(hidden=hidden), built(hidden=hidden)
    slot: Slot = {}
    large = head.predict(*batch(1), slot, 1.0)
    fresh.predict(*batch(1), {}, 1.0)
    small = head.predict(*batch(2, samples=3), slot, 1.0)
    np.testing.assert_array_equal(small, fresh.predict(*batch(2, samples=3), {}, 1.0))
    assert np.shares_memory(small, large)


@HIDDEN
@each("dtype", [np.float32, np.float64])
def test_all_arithmetic_is_in_the_dtype_asked_for(hidden: tuple[int, ...], dtype: Any) -> None:
    head = built(dtype=dtype, hidden=hidden)
    assert head.predict(*batch(dtype=dtype), {}, 0.5).dtype == dtype
    assert {value.dtype for value in head.params.values()} == {np.dtype(dtype)}


@HIDDEN
def test_a_restored_head_goes_on_to_the_same_bits(hidden: tuple[int, ...]) -> None:
    original, restored = built(hidden=hidden), built(hidden=hidden, shaken=False)
    for seed in range(5):
        original.predict(*batch(seed), {}, 1.0)
    for source, target in (
        (original.params, restored.params),
        (original.buffers, restored.buffers),
    ):
        assert source.keys() == target.keys()
        for name, value in source.items():
            target[name][...] = value
    for seed in range(5, 10):
        expected = original.predict(*batch(seed), {}, 1.0)
        np.testing.assert_array_equal(restored.predict(*batch(seed), {}, 1.0), expected)


def test_the_head_and_its_table_in_the_experiment_file_agree() -> None:
    fields = {field.name: field.default for field in msgspec.structs.fields(config.LocalHead)}
    options = inspect.signature(LocalHead).parameters.values()
    assert {option.name: option.default for option in options} == fields
    generator: Generator = LocalHead()  # mypy holds it against the protocol
    assert generator.params == {}
