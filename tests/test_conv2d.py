"""Convolution: torch's numbers for every geometry, memory, and options that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from each import each
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from asyncdni.errors import ConfigError
from asyncdni.nn.layers import convolution as conv2d
from asyncdni.nn.layers import correlation, make_layer
from asyncdni.nn.layers import correlation as im2col
from asyncdni.nn.layers.convolution import Conv2d
from asyncdni.nn.streams import layer_streams, stream

CLOSE = {"rtol": 1e-11, "atol": 1e-11}
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
kernels = st.tuples(st.integers(1, 5), st.integers(1, 5))
strides = st.tuples(st.integers(1, 4), st.integers(1, 4))
borders = st.tuples(st.integers(0, 6), st.integers(0, 6))


def numbers(*shape: int, key: int = 0) -> np.ndarray:
    return stream(0, "numbers", "test", key).normal(size=shape)


def built(layer: Conv2d, shape: tuple[int, ...], dtype: str = "float64") -> Conv2d:
    layer.build(shape, np.dtype(dtype), layer_streams(0, "conv"))
    for index, value in enumerate(layer.params.values()):
        value[...] = numbers(*value.shape, key=index)
    return layer


def assert_like_torch(layer: Conv2d, x: np.ndarray, padding: Any) -> None:
    """Output and all gradients."""
    torch = pytest.importorskip("torch")
    params = {name: torch.from_numpy(value.copy()) for name, value in layer.params.items()}
    inputs = {"x": torch.from_numpy(x.copy()), **params}
    for one in inputs.values():
        one.requires_grad_()
    expected = torch.nn.functional.conv2d(
        inputs["x"],
        inputs["weight"],
        inputs.get("bias"),
        stride=layer.windows.stride,
        padding=padding,
    )
    slot: dict[str, Any] = {}
    y = layer.forward(x, slot)
    grad_y = numbers(*y.shape, key=9)
    expected.backward(torch.from_numpy(grad_y.copy()))
    np.testing.assert_allclose(y, expected.detach().numpy(), **CLOSE)
    grad_x = layer.backward(grad_y, slot, learn=True, send=True)
    np.testing.assert_allclose(grad_x, inputs["x"].grad.numpy(), **CLOSE)
    for name, param in params.items():
        np.testing.assert_allclose(layer.grads[name], param.grad.numpy(), **CLOSE)


@settings(max_examples=150, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    size=sizes,
    kernel=kernels,
    stride=strides,
    padding=borders,
    bias=st.booleans(),
)
@example((2, 3), (1, 1), (5, 5), (1, 1), (2, 2), True)  # windows larger than the plane
@example((1, 1), (3, 3), (1, 1), (4, 4), (0, 0), True)  # places that no window sees
@example((6, 6), (2, 2), (2, 2), (1, 3), (6, 6), False)  # windows that see nothing but border
def test_output_and_gradients_are_torchs_for_every_geometry(
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    bias: bool,
) -> None:
    assume(all(size[axis] + 2 * padding[axis] >= kernel[axis] for axis in (0, 1)))
    layer = Conv2d(channels[1], kernel=kernel, stride=stride, padding=padding, bias=bias)
    built(layer, (channels[0], *size))
    assert_like_torch(layer, numbers(3, channels[0], *size), padding)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@each("kernel", [1, 2, 3, 4, [5, 2], [2, 7]])
def test_padding_same_is_torchs(kernel: Any) -> None:
    layer = built(Conv2d(3, kernel=kernel, padding="same"), (2, 6, 5))
    assert layer.output_shape((2, 6, 5)) == (3, 6, 5)
    assert_like_torch(layer, numbers(2, 2, 6, 5), "same")


def test_padding_valid_is_none() -> None:
    assert Conv2d(3, kernel=3, padding="valid").windows == Conv2d(3, kernel=3).windows


def results(layer: Conv2d, samples: int) -> dict[str, np.ndarray]:
    """Of a batch of 6 x 4 maps: output and gradients."""
    slot: dict[str, Any] = {}
    x = numbers(samples, layer.params["weight"].shape[1], 6, 4)
    y = layer.forward(x, slot)
    grad_x = layer.backward(numbers(*y.shape, key=9), slot, learn=True, send=True)
    assert grad_x is not None
    return {"y": y, "grad_x": grad_x, **layer.grads}


def assert_near(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [2, 9])
@pytest.mark.parametrize("size", [1, 6000, 20000])
def test_samples_taken_a_few_at_a_time_give_what_all_at_once_give(
    channels: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"kernel": 3, "padding": 1}
    at_once = results(built(Conv2d(2, **options), (channels, 6, 4)), 10)
    for module in (correlation, im2col):
        monkeypatch.setattr(module, "_CHUNK_BYTES", size)
    assert_near(results(built(Conv2d(2, **options), (channels, 6, 4)), 10), at_once)


@pytest.mark.parametrize("channels", [1, 3, 9])
@pytest.mark.parametrize(
    "options", [{"padding": "same"}, {"stride": [2, 3], "padding": [2, 1]}, {"bias": False}]
)
def test_both_ways_to_correlate_agree(
    channels: int, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for few in (0, 100):
        monkeypatch.setattr(conv2d, "FEW_CHANNELS", few)
        layer = built(Conv2d(5, kernel=[3, 2], **options), (channels, 6, 4))
        found.append(results(layer, 4))
    assert_near(found[1], found[0])


def test_of_a_batch_nothing_is_kept_but_its_input_and_output() -> None:
    layer = built(Conv2d(4, kernel=5, padding="same"), (5, 8, 8))
    slot: dict[str, Any] = {}
    x = numbers(6, 5, 8, 8)
    y = layer.forward(x, slot)
    arrays = [value for value in slot.values() if isinstance(value, np.ndarray)]
    assert len(arrays) == 2
    assert any(np.shares_memory(one, x) for one in arrays)
    assert any(np.shares_memory(one, y) for one in arrays)


def test_initial_weights_have_the_deviation_of_a_window_as_fan_in() -> None:
    layer = Conv2d(64, kernel=[5, 3], init="he_normal")
    layer.build((20, 9, 9), np.dtype("float64"), layer_streams(0, "conv"))
    assert layer.params["weight"].shape == (64, 20, 5, 3)
    assert layer.params["weight"].std() == pytest.approx((2 / 300) ** 0.5, rel=0.02)
    assert not layer.params["bias"].any()


@each(
    "options, message",
    [
        ({"kernel": 3}, "conv2d needs 'channels'"),
        ({"channels": 4}, "conv2d needs 'kernel'"),
        ({"channels": 0, "kernel": 3}, "channels 0: expected a positive whole number"),
        ({"channels": 4, "kernel": [3]}, r"kernel \[3\]: expected a whole number of at least 1"),
        ({"channels": 4, "kernel": [3, 2.5]}, r"kernel \[3, 2.5\]"),
        ({"channels": 4, "kernel": 3, "stride": 0}, "stride 0: .* at least 1, or two"),
        ({"channels": 4, "kernel": 3, "padding": -1}, "padding -1: .* at least 0"),
        ({"channels": 4, "kernel": 3, "padding": True}, "padding True"),
        ({"channels": 4, "kernel": 3, "padding": "full"}, "padding 'full': expected \"same\""),
        (
            {"channels": 4, "kernel": 3, "padding": "same", "stride": 2},
            'padding "same" goes with a stride of 1, not 2',
        ),
        ({"channels": 4, "kernel": 3, "bias": "no"}, "bias 'no': expected true or false"),
        ({"channels": 4, "kernel": 3, "init": "he"}, "unknown init 'he'"),
    ],
)
def test_a_convolution_that_can_not_be_made_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_layer({"conv2d": options}, where="stages[0], layer 0")


@each(
    "shape, message",
    [
        ((784,), r"takes inputs of shape \(C, H, W\), not \(784,\): a reshape layer"),
        ((28, 28), r"\(C, H, W\), not \(28, 28\)"),
        ((1, 3, 9), "windows of 5 x 5, which do not fit into planes of 3 x 9, with padding 3 x 9"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Conv2d(4, kernel=5).output_shape(shape)
