"""Loops compiled by numba give the bits of the passes of NumPy that they stand in for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from each import each

from asyncdni import config
from asyncdni.network import Node
from asyncdni.nn import fused
from asyncdni.nn.base import Array, Slot
from asyncdni.nn.layers.activations import Relu
from asyncdni.nn.layers.normalisation import BatchNorm, BatchNorm2d, rectify_in_norms
from asyncdni.nn.optimizers import Adam, Sgd
from asyncdni.stages.numpy.block import Block, Pace

TYPE = np.dtype(np.float32)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pytest.importorskip("numba")
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    fused._is_wanted.cache_clear()
    monkeypatch.setattr(fused, "_prepared", {})
    yield
    fused._is_wanted.cache_clear()


def both(compute: Callable[[], list[Array]]) -> tuple[list[Array], list[Array]]:
    """What NumPy gives, and what the loops give."""
    assert fused.loops_of(np.zeros(1, TYPE)) is None
    with np.errstate(all="ignore"):  # as in a worker
        before = compute()
        fused.prepare(TYPE)
        return before, compute()


def assert_same_bits(found: tuple[list[Array], list[Array]]) -> None:
    for by_numpy, by_loops in zip(*found, strict=True):
        np.testing.assert_array_equal(by_numpy.view(np.uint32), by_loops.view(np.uint32))


def steps(optimizer: Adam | Sgd) -> list[Array]:
    """Parameters and moments after some steps, one of them by gradients with odd numbers."""
    source = np.random.default_rng(3)
    params = source.standard_normal(70_001).astype(TYPE)
    for step in range(4):
        grads = source.standard_normal(params.size).astype(TYPE)
        if step == 2:
            grads[:4] = 0.0, -0.0, 1e-30, 1e18
        optimizer.step(params, grads, 1e-2, 1 / 3)
    return [params, *(moment for moment in optimizer.state.values() if moment.dtype == TYPE)]


def batch_norm() -> list[Array]:
    source = np.random.default_rng(4)
    layer = BatchNorm()
    layer.build((33,), TYPE, lambda name: np.random.default_rng(0))
    layer.params["weight"][:] = source.standard_normal(33)
    layer.params["bias"][:] = source.standard_normal(33)
    x, grad = source.standard_normal((2, 20, 33)).astype(TYPE)
    x.setflags(write=False)  # as what a message has brought
    slot: Slot = {}
    y = layer.forward(x, slot)
    back = layer.backward(grad, slot, learn=True, send=True)
    assert back is not None
    return [y.copy(), back.copy(), *layer.grads.values(), *layer.buffers.values()]


def norm_and_relu(shape: tuple[int, ...], *, joined: bool) -> list[Array]:
    """Outputs, gradients and running statistics of a batch norm and the relu behind it."""
    source = np.random.default_rng(6)
    norm, behind = BatchNorm2d(), Relu()
    for layer in (norm, behind):
        layer.build(shape, TYPE, lambda name: np.random.default_rng(0))
    if joined:
        rectify_in_norms([norm, behind])
    norm.params["weight"][:3] = 0.0, -0.0, -1.5
    x, grad = source.standard_normal((2, 20, *shape)).astype(TYPE)
    x[:, -1] = np.nan  # it stays one
    slots: tuple[Slot, Slot] = {}, {}
    y = behind.forward(norm.forward(x, slots[0]), slots[1])
    back = behind.backward(grad, slots[1], learn=True, send=True)
    assert back is not None
    sent = norm.backward(back, slots[0], learn=True, send=True)
    assert sent is not None
    seen = behind.evaluate(norm.evaluate(x))
    assert joined is ("y" not in slots[1])
    return [y.copy(), sent.copy(), seen, *norm.grads.values(), *norm.buffers.values()]


def relu() -> list[Array]:
    source = np.random.default_rng(5)
    layer = Relu()
    layer.build((33,), TYPE, lambda name: np.random.default_rng(0))
    x, grad = source.standard_normal((2, 20, 33)).astype(TYPE)
    x[0, :3] = 0.0, -0.0, np.nan
    grad[1, :2] = np.inf, np.nan
    slot: Slot = {}
    layer.forward(x, slot)
    back = layer.backward(grad, slot, learn=True, send=True)
    assert back is not None
    return [back.copy()]


def test_loops_give_the_bits_of_numpy_where_they_take_the_arrays(prepared: None) -> None:
    found = both(
        lambda: [
            *steps(Adam()),
            *steps(Adam(beta1=0.8, weight_decay=0.1)),
            *steps(Sgd(momentum=0.9)),
            *steps(Sgd(momentum=0.9, nesterov=True, weight_decay=0.1)),
            *batch_norm(),
            *relu(),
            *norm_and_relu((33,), joined=True),
            *norm_and_relu((33,), joined=False),
        ]
    )
    assert_same_bits(found)
    matrix = np.zeros((4, 4), TYPE)
    assert fused.loops_of(matrix, matrix) is not None
    assert fused.loops_of(matrix, matrix.T) is None  # not contiguous
    assert fused.loops_of(matrix.astype(np.float64)) is None  # not prepared


@each("shape", [(33,), (5, 4, 3)])
def test_a_batch_norm_gives_what_the_relu_behind_it_would(shape: tuple[int, ...]) -> None:
    with np.errstate(all="ignore"):
        apart = norm_and_relu(shape, joined=False)
        assert np.isnan(apart[0]).any() and (apart[0] == 0).any()
        assert_same_bits((apart, norm_and_relu(shape, joined=True)))


@each("width, loaded", [(15, False), (16, True)])
def test_stages_too_small_to_win_back_the_start_do_without(
    prepared: None, width: int, loaded: bool
) -> None:
    shape = (1024,)
    node = Node(
        *("wide", 0, "stages[0] (wide)", ("data",), ("top",), "concat", (shape,), shape, (width,)),
        loss=None,
        answers=False,
        own_loss=False,
        layers=({"dense": {"width": width, "bias": False}},),
    )
    Block(node, config.Adam(), dtype=TYPE, seed=0, pace=Pace(1, 1))
    assert (TYPE in fused._prepared) is loaded


@each("value, wanted", [("1", False), ("0", True)])
def test_numbas_own_variable_turns_them_off(
    prepared: None, monkeypatch: pytest.MonkeyPatch, value: str, wanted: bool
) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", value)
    fused._is_wanted.cache_clear()
    assert fused._is_wanted() is wanted
