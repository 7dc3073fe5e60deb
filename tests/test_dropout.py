"""Dropout: whose mask it is, how much it drops, and what it needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from each import each

from asyncdni.errors import ConfigError, DataError
from asyncdni.nn.layers import make_layer
from asyncdni.nn.layers.noise import Dropout
from asyncdni.nn.streams import layer_streams

SHAPE = (20, 30)


def built(p: float = 0.3, *, seed: int = 0, name: str = "stage1.2", dtype: str = "float64") -> Any:
    layer = Dropout(p)
    layer.build(SHAPE, np.dtype(dtype), layer_streams(seed, name))
    return layer


def mask(layer: Dropout, batch: int, samples: int = 8, slot: dict[str, Any] | None = None) -> Any:
    slot = {} if slot is None else slot
    slot["batch"] = batch
    return layer.forward(np.ones((samples, *SHAPE)), slot) > 0


def test_a_batch_sees_its_mask_whatever_was_forwarded_before() -> None:
    """Other orders, other batches in between, another process: the mask goes by the id alone."""
    first, other = built(), built()
    masks = {batch: mask(first, batch) for batch in (3, 1, 2)}
    slot: dict[str, Any] = {}
    for batch in (1, 2, 1, 3):
        np.testing.assert_array_equal(mask(other, batch, slot=slot), masks[batch])


def test_masks_differ_by_batch_by_layer_and_by_seed() -> None:
    own = mask(built(), 5)
    others = [mask(built(), 6), mask(built(name="stage1.3"), 5), mask(built(seed=1), 5)]
    assert not any(np.array_equal(own, other) for other in others)


@each("elements", [1, 3, 4, 5, 600, 601])
def test_the_bits_are_those_that_numpy_draws_as_integers(elements: int) -> None:
    """Masks were made from these: the same weights as ever."""
    bits = layer_streams(0, "stage1.2")("mask.7").integers(0, 1 << 16, elements, np.uint16)
    layer = Dropout(0.3)
    layer.build((elements,), np.dtype("float64"), layer_streams(0, "stage1.2"))
    kept = layer.forward(np.ones((1, elements)), {"batch": 7})[0] > 0
    np.testing.assert_array_equal(kept, bits < round(0.7 * (1 << 16)))


def test_the_gradient_goes_through_the_mask_of_its_own_batch() -> None:
    layer = built()
    slots: list[dict[str, Any]] = [{}, {}]
    masks = [mask(layer, batch, slot=slot) for batch, slot in enumerate(slots)]
    grad_y = np.full((8, *SHAPE), 2.0)
    for _ in range(2):  # a batch may be pushed back again
        for slot, one in zip(slots, masks, strict=True):
            grad_x = layer.backward(grad_y, slot, learn=True, send=True)
            np.testing.assert_allclose(grad_x, 2 * one / 0.7, rtol=1e-4)


@each("p", [0.0, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_is_p_and_the_mean_stays(p: float) -> None:
    y = built(p).forward(np.ones((100, *SHAPE)), {"batch": 0})
    assert (y == 0).mean() == pytest.approx(p, abs=5 * (p * (1 - p) / y.size) ** 0.5 + 1e-5)
    assert y.mean() == pytest.approx(1, abs=0.05)
    assert len(np.unique(y)) == (2 if p else 1)


def test_numbers_of_another_type_have_the_same_mask() -> None:
    y = built(dtype="float32").forward(np.ones((8, *SHAPE), "float32"), {"batch": 4})
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y > 0, mask(built(), 4))


def test_evaluation_drops_nothing() -> None:
    x = np.ones((8, *SHAPE))
    np.testing.assert_array_equal(built(0.9).evaluate(x), x)


@each("slot", [{}, {"batch": None}, {"batch": "3"}])
def test_a_forward_without_the_id_of_its_batch_is_refused(slot: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r'in slot\["batch"\]: expected the id of the batch'):
        built().forward(np.ones((8, *SHAPE)), slot)


@each("p", [1, 1.5, -0.1, True, "half", None])
def test_a_chance_that_is_none_is_refused(p: Any) -> None:
    with pytest.raises(ConfigError, match="expected a number of at least 0 and below 1"):
        make_layer({"dropout": p}, where="stages[0], layer 3")
