"""Embedding: torch's numbers, equal ids, and ids that have no row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from each import each

from asyncdni.errors import ConfigError, DataError
from asyncdni.nn.layers import make_layer
from asyncdni.nn.layers.embedding import Embedding
from asyncdni.nn.streams import layer_streams, stream

TOKENS, WIDTH = 6, 3


def built(dtype: str = "float64") -> Embedding:
    layer = Embedding(TOKENS, width=WIDTH)
    layer.build((4,), np.dtype(dtype), layer_streams(0, "embedding"))
    return layer


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
@pytest.mark.parametrize("kind", ["int64", "uint8", "float32"])
def test_output_and_gradient_are_torchs(shape: tuple[int, ...], kind: str) -> None:
    torch = pytest.importorskip("torch")
    layer = built()
    peer = torch.nn.Embedding(TOKENS, WIDTH).double()
    peer.load_state_dict({"weight": torch.from_numpy(layer.params["weight"].copy())})
    slot: dict[str, Any] = {}
    for batch in range(2):  # neither side clears its gradients: they add up
        ids = stream(0, "ids", "test", batch).integers(0, TOKENS, (5 - batch, *shape))
        expected = peer(torch.from_numpy(ids))
        grad_y = stream(0, "grad", "test", batch).normal(size=expected.shape)
        expected.backward(torch.from_numpy(grad_y.copy()))
        y = layer.forward(ids.astype(kind), slot)
        np.testing.assert_array_equal(y, expected.detach().numpy())
        layer.backward(grad_y, slot, learn=True, send=False)
        np.testing.assert_allclose(layer.grads["weight"], peer.weight.grad.numpy(), rtol=1e-12)


def test_rows_that_no_id_points_to_have_a_gradient_of_zero() -> None:
    layer = built()
    layer.grads["weight"].fill(np.nan)
    slot: dict[str, Any] = {}
    layer.forward(np.array([[1, 1], [4, 1]]), slot)
    layer.backward(np.ones((2, 2, WIDTH)), slot, learn=True, send=False)
    np.testing.assert_array_equal(layer.grads["weight"][:, 0], [0, 3, 0, 0, 1, 0])


def test_ids_get_a_gradient_of_zeros_of_the_weights_type() -> None:
    layer = built("float32")
    slot: dict[str, Any] = {}
    y = layer.forward(np.zeros((2, 4), np.int64), slot)
    grad_x = layer.backward(y, slot, learn=False, send=True)
    assert grad_x is not None and grad_x.dtype == np.float32
    assert grad_x.shape == (2, 4) and not grad_x.any()


@each("given, shown", [(TOKENS, "6"), (-1, "-1"), (1.5, "1.5"), (np.nan, "nan"), (np.inf, "inf")])
def test_an_id_without_a_row_is_refused(given: float, shown: str) -> None:
    with pytest.raises(DataError, match=f"the id {shown}: expected a whole number from 0 to 5"):
        built().forward(np.array([[0, given]]), {})
    with pytest.raises(DataError, match="raise tokens"):
        built().evaluate(np.array([[given, 0]]))


@each(
    "options, message",
    [
        (27, "needs 'width'"),
        ({"tokens": 0, "width": 3}, "tokens 0: expected a positive whole number"),
        ({"tokens": 5, "width": 2.0}, "width 2.0"),
        ({"tokens": 5, "width": 2, "init": "ones"}, "unknown init 'ones'"),
    ],
)
def test_an_embedding_that_can_not_be_made_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_layer({"embedding": options}, where="stages[0], layer 0")
