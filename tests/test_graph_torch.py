"""Gradients of random graphs over workers against those of torch's autograd, in float64."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_graphs import Draw, draw_design, draw_maps, draw_windows, images, letters

from asyncdni.core.events import Finish
from asyncdni.data import open_batches
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.messages import DATA
from asyncdni.network import LayerSpec, Node
from asyncdni.plan.build import Design, make_whole_stage

torch = pytest.importorskip("torch")
functional = torch.nn.functional

#: One step of which moves the weights by minus their gradient, divided by the samples.
PLAIN = {"name": "sgd", "learning_rate": 1.0}

Tensors = dict[str, Any]


# --- the layers, as torch has them ---------------------------------------------------------------


def _recurrent(step: Callable[[Any, Any, Any], tuple[Any, Any]]) -> Callable[..., Any]:
    """Over windows x (B, T, D) that begin a sequence; `step` gives h and c of (gates, h, c)."""

    def layer(x: Any, p: Tensors, **_: Any) -> Any:
        h = c = x.new_zeros(len(x), p["weight_hh"].shape[1])
        outputs = []
        for t in range(x.shape[1]):
            gates = x[:, t] @ p["weight_ih"].T + h @ p["weight_hh"].T + p["bias"]
            h, c = step(gates, h, c)
            outputs.append(h)
        return torch.stack(outputs, dim=1)

    return layer


def _lstm_step(gates: Any, h: Any, c: Any) -> tuple[Any, Any]:
    i, f, g, o = gates.chunk(4, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _layer_norm(x: Any, p: Tensors, axes: int = 1) -> Any:
    return functional.layer_norm(x, x.shape[-axes:], p["weight"], p["bias"])


PEERS: dict[str, Callable[..., Any]] = {
    "dense": lambda x, p, **_: functional.linear(x, p["weight"], p["bias"]),
    "conv2d": lambda x, p, **_: functional.conv2d(x, p["weight"], p["bias"], padding="same"),
    "batch_norm": lambda x, p: functional.batch_norm(
        x, None, None, p["weight"], p["bias"], training=True
    ),
    "layer_norm": _layer_norm,
    "max_pool": lambda x, p, **options: functional.max_pool2d(
        x, options["kernel"], options["stride"], options["padding"]
    ),
    "embedding": lambda x, p, **_: functional.embedding(x.long(), p["weight"]),
    "lstm": _recurrent(_lstm_step),
    "rnn": _recurrent(lambda gates, h, c: (torch.tanh(gates), c)),
    "flatten": lambda x, p: x.flatten(1),
    "reshape": lambda x, p, shape: x.reshape(len(x), *shape),
    "relu": lambda x, p: torch.relu(x),
    "tanh": lambda x, p: torch.tanh(x),
}


def _options(spec: LayerSpec) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    ((name, given),) = spec.items()
    if isinstance(given, dict):
        return name, given
    return name, {"shape": given} if name == "reshape" else {}


def _stage(node: Node, inputs: list[Any], params: Tensors) -> Any:
    x = inputs[0]
    if len(inputs) > 1 and node.join == "sum":
        x = torch.stack(inputs).sum(dim=0)
    elif len(inputs) > 1:
        x = torch.cat(inputs, dim=1 if x.ndim == 4 else -1)
    for i, spec in enumerate(node.layers):
        name, options = _options(spec)
        own = {key.removeprefix(f"{i}."): p for key, p in params.items() if key.startswith(f"{i}.")}
        x = PEERS[name](x, own, **options)
    return x


def autograd(design: Design, batch: dict[str, Any], weights: dict[str, Tensors]) -> Tensors:
    """Of the sum of all losses on one batch, by (stage, name)."""
    leaves = {
        stage: {key: torch.from_numpy(array.copy()).requires_grad_() for key, array in own.items()}
        for stage, own in weights.items()
    }
    known = {DATA: torch.from_numpy(batch["h"])}
    y, total = torch.from_numpy(batch["y"]).flatten(), 0
    for node in design.network.nodes:
        found = _stage(node, [known[name] for name in node.inputs], leaves[node.name])
        known[node.name] = found
        if node.loss:
            total = total + functional.cross_entropy(
                found.reshape(-1, found.shape[-1]), y, reduction="sum"
            )
    total.backward()
    return {
        (stage, key): leaf.grad.numpy()
        for stage, own in leaves.items()
        for key, leaf in own.items()
        if leaf.grad is not None
    }


# --- the runtime ---------------------------------------------------------------------------------


def assert_same_gradients(seed: int, draw: Draw, data: dict[str, Any]) -> None:
    """One update of all workers, on the only batch there is."""
    source = random.Random(seed)
    run = {"epochs": 1, "dtype": "float64", "seed": seed}
    design = draw_design(source, draw, data, noise=False, run=run, optimizer=PLAIN)
    assert design.plan.batches == 1
    before = make_whole_stage(design).state()
    result = simulate(design, seed=seed, maths=True)
    assert isinstance(result.end, Finish), result.end
    context = open_batches(design.experiment.data, seed)
    batch = context.read(0, 0, design.plan.batch_size, seed, "float64")
    expected = autograd(design, batch, before)
    assert len(expected) > 2
    for (stage, key), grad in expected.items():
        moved = before[stage][key] - result.weights[stage][key]
        np.testing.assert_allclose(
            moved * len(batch["h"]), grad, rtol=1e-9, atol=1e-11, err_msg=f"{stage} {key}"
        )


@pytest.mark.parametrize("seed", range(10))
def test_gradients_of_a_graph_of_feature_maps_are_those_of_autograd(
    seed: int, tmp_path: Path
) -> None:
    assert_same_gradients(seed, draw_maps, images(tmp_path, 4))


@pytest.mark.parametrize("seed", range(10))
def test_gradients_of_a_graph_of_windows_are_those_of_autograd(seed: int, tmp_path: Path) -> None:
    assert_same_gradients(seed, draw_windows, letters(tmp_path, 1))
