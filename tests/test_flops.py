"""Floating-point operations of layers and stages: against hand counts, and against what PyTorch
counts of equal modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import networks
import pytest
from each import each

from asyncdni.network import Node
from asyncdni.nn.layers import make_layer
from asyncdni.nn.layers.activations import Relu
from asyncdni.plan.sizes import stage_flops

SAMPLES = 4


@each("spec, shape, forward, backward", [
        ({"dense": 7}, (5,), 280, 560),
        ({"dense": 7}, (3, 5), 840, 1680),
        # 8 channels, 4 x 4 places, each a product with 3 x 3 x 3 numbers
        ({"conv2d": {"channels": 8, "kernel": 3, "stride": 2}}, (3, 9, 9), 27648, 55296),
        # 6 steps of 7 units; the backward goes on to the state before the window
        ({"rnn": 7}, (6, 5), 4032, 8064),
        ({"lstm": 7}, (6, 5), 16128, 32256),
    ])  # fmt: skip
def test_layers_count_their_products(
    spec: dict[str, Any], shape: tuple[int, ...], forward: int, backward: int
) -> None:
    layer: Any = make_layer(spec, where="")
    assert layer.flops(shape, SAMPLES, send=True) == (forward, backward)
    without = layer.flops(shape, SAMPLES, send=False)
    assert without[0] == forward and without[1] < backward


@each("name, options, spec, shape", [
        ("Linear", (5, 7), {"dense": 7}, (5,)),
        ("Conv2d", (3, 8, 3, 2, 1), {"conv2d": {"channels": 8, "kernel": 3, "stride": 2,
                                                "padding": 1}}, (3, 9, 7)),
        ("RNN", (5, 7), {"rnn": 7}, (6, 5)),
        ("LSTM", (5, 7), {"lstm": 7}, (6, 5)),
    ])  # fmt: skip
@each("send", [True, False])
def test_layers_count_what_pytorch_does(
    name: str, options: tuple[int, ...], spec: dict[str, Any], shape: tuple[int, ...], send: bool
) -> None:
    torch = pytest.importorskip("torch")
    from asyncdni.nn.torch.compiler import without_compiler

    recurrent = name in ("RNN", "LSTM")
    more = {"batch_first": True} if recurrent else {}
    with without_compiler(), torch.device("meta"):  # on the CPU an LSTM is one call, not counted
        module = getattr(torch.nn, name)(*options, **more)
        x = torch.zeros((SAMPLES, *shape), requires_grad=send)
        # A layer here has the gradient of the state before its window, too.
        state = torch.zeros((1, SAMPLES, 7), requires_grad=True)
        given = {"RNN": (x, state), "LSTM": (x, (state, torch.zeros_like(state)))}.get(name, (x,))
        expected = counted(lambda: module(*given)[0] if recurrent else module(*given))
    layer: Any = make_layer(spec, where="")
    assert layer.flops(shape, SAMPLES, send=send) == expected


def counted(forward: Callable[[], Any]) -> tuple[int, int]:
    """What PyTorch counts in a forward, and in the backward of what it returns."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as ahead:
        y = forward()
    with FlopCounterMode(display=False) as both:
        y = forward()
        if y.requires_grad:
            y.backward(y.new_ones(y.shape))
    first = int(ahead.get_total_flops())
    return first, int(both.get_total_flops()) - first


# --- stages --------------------------------------------------------------------------------------

STAGES = [
    {"name": "low", "layers": [{"dense": 6}, "relu", {"dense": 5}]},
    {"name": "top", "layers": [{"dense": networks.BITS}], "loss": "sigmoid_cross_entropy"},
]


def node(index: int) -> Node:
    """Of a chain of two stages; the data have two numbers of `BITS` bits each."""
    return networks.design(STAGES, {"name": "locked"}).network.nodes[index]


def test_the_first_layer_of_a_stage_sends_where_the_stage_does() -> None:
    inputs = 2 * networks.BITS
    first, second = 2 * inputs * 6, 2 * 6 * 5
    assert stage_flops(node(0), 1, send=False) == (first + second, first + 2 * second)
    assert stage_flops(node(0), 1, send=True) == (first + second, 2 * (first + second))
    assert stage_flops(node(1), 10, send=True) == (10 * 2 * 5 * 4, 2 * 10 * 2 * 5 * 4)


class Unknown(Relu):
    """A layer of a user's own, which does not tell what it computes."""


def test_a_layer_that_does_not_tell_leaves_its_stage_unknown() -> None:
    name = f"{__name__}:Unknown"
    unknown = replace(node(1), layers=({"dense": 4}, {name: {}}))
    assert stage_flops(unknown, 1, send=True, allow_import=True) is None
    known = replace(node(1), layers=({"dense": 4}, "relu"))
    assert stage_flops(known, 1, send=True) == (40, 80)


@each("build, arguments, shape", [
        ("torch.nn:Linear", {"in_features": 5, "out_features": 7}, (5,)),
        ("torch.nn:Embedding", {"num_embeddings": 9, "embedding_dim": 4}, (3,)),
        ("torch.nn:TransformerEncoderLayer",
         {"d_model": 8, "nhead": 2, "dim_feedforward": 16, "batch_first": True}, (6, 8)),
    ])  # fmt: skip
def test_a_module_counts_what_pytorch_does(
    build: str, arguments: dict[str, Any], shape: tuple[int, ...]
) -> None:
    torch = pytest.importorskip("torch")
    from asyncdni.nn.torch.compiler import without_compiler

    layer: Any = make_layer(
        {"module": {"build": build, "arguments": arguments}}, where="", allow_import=True
    )
    ids = "Embedding" in build
    with without_compiler(), torch.device("meta"):
        module = getattr(torch.nn, build.partition(":")[2])(**arguments)
        x = torch.zeros((SAMPLES, *shape), dtype=torch.int64 if ids else torch.float32)
        expected = counted(lambda: module(x.requires_grad_(not ids)))
    assert layer.flops(shape, SAMPLES, send=True) == expected
    assert ids or expected[0]


def test_a_module_that_takes_no_single_sample_is_unknown_for_one() -> None:
    pytest.importorskip("torch")
    spec = {"module": {"build": "torch.nn:BatchNorm1d", "arguments": {"num_features": 3}}}
    layer: Any = make_layer(spec, where="", allow_import=True)
    assert layer.flops((3,), 1, send=True) is None
    assert layer.flops((3,), 2, send=True) == (0, 0)
