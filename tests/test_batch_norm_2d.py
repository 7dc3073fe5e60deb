"""Batch norm of feature maps: torch's numbers, running statistics, and vectors as before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from asyncdni.errors import DataError
from asyncdni.nn.layers import normalisation as batch_norm_2d
from asyncdni.nn.layers.normalisation import BatchNorm, BatchNorm2d
from asyncdni.nn.streams import layer_streams, stream

CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def numbers(*shape: int, key: int = 0) -> np.ndarray:
    return 3 + 2 * stream(0, "numbers", "test", key).normal(size=shape)


def built(kind: Any, shape: tuple[int, ...], dtype: str = "float64", **options: Any) -> Any:
    layer = kind(**options)
    assert layer.build(shape, np.dtype(dtype), layer_streams(0, "norm")) == shape
    for index, value in enumerate(layer.params.values()):
        value[...] = numbers(*value.shape, key=10 + index)
    return layer


@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 1, 1), (1, 7, 7)])
def test_three_batches_do_to_it_what_they_do_to_torchs(shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    layer = built(BatchNorm2d, shape, momentum=0.3, epsilon=1e-3)
    peer = torch.nn.BatchNorm2d(shape[0], momentum=0.3, eps=1e-3).double()
    state = {name: torch.from_numpy(value.copy()) for name, value in layer.params.items()}
    peer.load_state_dict(state, strict=False)
    slot: dict[str, Any] = {}
    for batch, samples in enumerate((6, 4, 2)):  # neither side clears its gradients: they add up
        x = numbers(samples, *shape, key=batch)
        tensor = torch.from_numpy(x.copy()).requires_grad_()
        expected = peer(tensor)
        grad_y = numbers(*x.shape, key=20 + batch)
        expected.backward(torch.from_numpy(grad_y.copy()))
        np.testing.assert_allclose(layer.forward(x, slot), expected.detach().numpy(), **CLOSE)
        grad_x = layer.backward(grad_y, slot, learn=True, send=True)
        np.testing.assert_allclose(grad_x, tensor.grad.numpy(), **CLOSE)
        for name, param in peer.named_parameters():
            np.testing.assert_allclose(layer.grads[name], param.grad.numpy(), **CLOSE)
    for name, value in layer.buffers.items():
        np.testing.assert_allclose(value, getattr(peer, name).numpy(), **CLOSE)
    x = numbers(1, *shape, key=9)
    with torch.no_grad():
        np.testing.assert_allclose(
            layer.evaluate(x), peer.eval()(torch.from_numpy(x)).numpy(), **CLOSE
        )


def test_samples_taken_a_few_at_a_time_give_what_all_at_once_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for size in (1 << 20, 2 * 3 * 5 * 4 * 8):
        monkeypatch.setattr(batch_norm_2d, "_CHUNK_BYTES", size)
        layer = built(BatchNorm2d, (3, 5, 4))
        slot: dict[str, Any] = {}
        y = layer.forward(numbers(7, 3, 5, 4), slot)
        grad_x = layer.backward(numbers(*y.shape, key=1), slot, learn=True, send=True)
        found.append([y, grad_x, *layer.grads.values(), *layer.buffers.values()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


def test_a_mean_far_from_zero_does_not_cost_the_deviation_its_digits() -> None:
    """Squares of numbers near 1000 leave float32 no room for a variance of 1."""
    layer = built(BatchNorm2d, (2, 8, 8), "float32")
    x = (1000 + stream(0, "numbers", "test").normal(size=(32, 2, 8, 8))).astype("float32")
    y = layer.forward(x, {})
    normal = (y - layer.params["bias"][:, None, None]) / layer.params["weight"][:, None, None]
    np.testing.assert_allclose(normal.std(axis=(0, 2, 3)), 1, rtol=1e-3)


def test_vectors_are_normalised_to_the_same_bits_as_before() -> None:
    layers = [built(kind, (5,)) for kind in (BatchNorm, BatchNorm2d)]
    results = []
    for layer in layers:
        slot: dict[str, Any] = {}
        y = layer.forward(numbers(6, 5), slot)
        grad_x = layer.backward(numbers(6, 5, key=1), slot, learn=True, send=True)
        arrays = [y, grad_x, layer.evaluate(numbers(2, 5)), *layer.grads.values()]
        results.append([*arrays, *layer.buffers.values()])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_sample_has_a_variance_where_it_has_several_places() -> None:
    layer = built(BatchNorm2d, (2, 3, 3))
    assert np.isfinite(layer.forward(numbers(1, 2, 3, 3), {})).all()
    with pytest.raises(DataError, match="training batch of 1 sample of 1 x 1 planes"):
        built(BatchNorm2d, (2, 1, 1)).forward(numbers(1, 2, 1, 1), {})


def test_a_batch_that_is_not_finite_leaves_the_running_statistics_alone() -> None:
    layer = built(BatchNorm2d, (2, 3, 3))
    before = {name: value.copy() for name, value in layer.buffers.items()}
    x = numbers(4, 2, 3, 3)
    x[1, 0, 2, 2] = np.nan
    layer.forward(x, {})
    for name, value in before.items():
        np.testing.assert_array_equal(layer.buffers[name], value)
