"""Layer norm: torch's numbers, and options that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from each import each

from asyncdni.errors import ConfigError
from asyncdni.nn.layers import make_layer
from asyncdni.nn.layers.normalisation import LayerNorm
from asyncdni.nn.streams import layer_streams, stream

CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def built(layer: LayerNorm, shape: tuple[int, ...]) -> LayerNorm:
    layer.build(shape, np.dtype("float64"), layer_streams(0, "norm"))
    for index, value in enumerate(layer.params.values()):
        value[...] = stream(0, "parameters", "test", index).normal(size=value.shape)
    return layer


@pytest.mark.parametrize(
    ("shape", "axes"), [((7,), 1), ((3, 7), 1), ((3, 7), 2), ((2, 3, 4), 3), ((2, 3, 1), 2)]
)
def test_output_and_gradients_are_torchs(shape: tuple[int, ...], axes: int) -> None:
    torch = pytest.importorskip("torch")
    layer = built(LayerNorm(axes=axes, epsilon=1e-3), shape)
    peer = torch.nn.LayerNorm(shape[-axes:], eps=1e-3).double()
    peer.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in layer.params.items()})
    slot: dict[str, Any] = {}
    for batch in range(2):  # neither side clears its gradients: they add up
        x = 3 + 2 * stream(0, "x", "test", batch).normal(size=(5 - batch, *shape))
        tensor = torch.from_numpy(x.copy()).requires_grad_()
        expected = peer(tensor)
        grad_y = stream(0, "grad", "test", batch).normal(size=x.shape)
        expected.backward(torch.from_numpy(grad_y.copy()))
        np.testing.assert_allclose(layer.forward(x, slot), expected.detach().numpy(), **CLOSE)
        grad_x = layer.backward(grad_y, slot, learn=True, send=True)
        np.testing.assert_allclose(grad_x, tensor.grad.numpy(), **CLOSE)
        for name, param in peer.named_parameters():
            np.testing.assert_allclose(layer.grads[name], param.grad.numpy(), **CLOSE)


def test_a_sample_does_not_depend_on_the_others() -> None:
    layer = built(LayerNorm(), (6,))
    x = stream(0, "x", "test").normal(size=(4, 6))
    np.testing.assert_allclose(layer.evaluate(x)[:1], layer.evaluate(x[:1]), rtol=1e-14)


def test_a_constant_sample_becomes_the_bias() -> None:
    layer = built(LayerNorm(), (6,))
    y = layer.forward(np.full((2, 6), 0.1), {})
    np.testing.assert_allclose(y, np.tile(layer.params["bias"], (2, 1)), atol=1e-12)


@each(
    "options, message",
    [
        ({"axes": 0}, "axes 0: expected how many of the last axes"),
        ({"axes": True}, "axes True"),
        ({"epsilon": 0}, "epsilon 0: expected a number above 0"),
        (3, "takes no value on its own"),
    ],
)
def test_a_norm_that_can_not_be_made_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_layer({"layer_norm": options}, where="stages[0], layer 1")


def test_inputs_of_too_few_axes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"over the last 2 axes.*not of shape \(5,\)"):
        LayerNorm(axes=2).output_shape((5,))
