"""Pooling: torch's numbers for every geometry, ties among them, and options that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from each import each
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asyncdni.errors import ConfigError
from asyncdni.nn.layers import make_layer, pooling
from asyncdni.nn.layers.pooling import AveragePool, MaxPool
from asyncdni.nn.streams import layer_streams, stream

both = pytest.mark.parametrize("kind", [MaxPool, AveragePool])


def built(layer: Any, shape: tuple[int, ...]) -> Any:
    layer.build(shape, np.dtype("float64"), layer_streams(0, "pool"))
    return layer


@both
@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    share=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)),
    levels=st.integers(1, 5),
)
def test_output_and_gradient_are_torchs_for_every_geometry(
    kind: Any,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    share: tuple[float, float],
    levels: int,
) -> None:
    """Values of few levels, as a relu leaves them: most windows have equal largest elements."""
    torch = pytest.importorskip("torch")
    padding = tuple(int(share[axis] * kernel[axis]) for axis in (0, 1))
    assume(all(size[axis] + 2 * padding[axis] >= kernel[axis] for axis in (0, 1)))
    layer = built(kind(kernel, stride=stride, padding=padding), (2, *size))
    peer = {MaxPool: torch.nn.MaxPool2d, AveragePool: torch.nn.AvgPool2d}[kind]
    rng = stream(0, "numbers", "test", levels)
    x = np.maximum(rng.integers(-levels, levels, (3, 2, *size)), 0).astype("float64")
    tensor = torch.from_numpy(x.copy()).requires_grad_()
    expected = peer(kernel, stride, padding)(tensor)
    slot: dict[str, Any] = {}
    y = layer.forward(x, slot)
    grad_y = rng.normal(size=y.shape)
    expected.backward(torch.from_numpy(grad_y.copy()))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-13)
    grad_x = layer.backward(grad_y, slot, learn=True, send=True)
    np.testing.assert_allclose(grad_x, tensor.grad.numpy(), rtol=1e-12, atol=1e-13)


def test_the_gradient_of_equal_elements_goes_to_the_first_in_rows() -> None:
    layer = built(MaxPool(2), (1, 2, 4))
    slot: dict[str, Any] = {}
    x = np.array([[0.0, 5, 7, 7], [5, 5, 7, 7]]).reshape(1, 1, 2, 4)
    layer.forward(x, slot)
    grad_x = layer.backward(np.array([[[[2.0, 3]]]]), slot, learn=False, send=True)
    np.testing.assert_array_equal(grad_x[0, 0], [[0, 2, 3, 0], [0, 0, 0, 0]])


def test_the_border_never_wins_and_counts_as_zeros_in_a_mean() -> None:
    x = np.full((1, 1, 2, 2), -3.0)
    largest = built(MaxPool(2, padding=1), (1, 2, 2)).forward(x, {})
    mean = built(AveragePool(2, padding=1), (1, 2, 2)).forward(x, {})
    np.testing.assert_array_equal(largest, np.full((1, 1, 2, 2), -3.0))
    np.testing.assert_array_equal(mean, np.full((1, 1, 2, 2), -0.75))


@both
def test_samples_taken_a_few_at_a_time_give_what_all_at_once_give(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for size in (1 << 20, 2 * 3 * 9 * 8 * 8):
        monkeypatch.setattr(pooling, "_CHUNK_BYTES", size)
        layer = built(kind(3, stride=2, padding=1), (3, 7, 6))
        slot: dict[str, Any] = {}
        y = layer.forward(stream(0, "x", "test").normal(size=(7, 3, 7, 6)), slot)
        grad_y = stream(0, "grad", "test").normal(size=y.shape)
        found.append((y, layer.backward(grad_y, slot, learn=False, send=True)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@both
def test_the_stride_is_the_kernels_size_where_it_is_not_given(kind: Any) -> None:
    assert kind([2, 3]).output_shape((4, 9, 9)) == (4, 4, 3)


@each("name", ["max_pool", "average_pool"])
@each(
    "options, message",
    [
        ({}, "needs 'kernel'"),
        (0, "kernel 0: expected a whole number of at least 1"),
        ({"kernel": 2, "stride": [1, 0]}, r"stride \[1, 0\]"),
        ({"kernel": 3, "padding": 2}, "padding 2: expected at most half of the kernel 3"),
    ],
)
def test_a_pool_that_can_not_be_made_is_refused(name: str, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_layer({name: options}, where="stages[0], layer 1")


@both
def test_inputs_that_do_not_fit_are_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"_pool layer takes inputs of shape \(C, H, W\), not"):
        kind(2).output_shape((16,))
    with pytest.raises(ConfigError, match=r"windows of 3 x 3.*planes of 2 x 8"):
        kind(3).output_shape((1, 2, 8))
