"""A network for people: a text table, and Graphviz text for `dot -Tsvg`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from asyncdni.messages import DATA
from asyncdni.network import LayerSpec, Network, Node, Shape
from asyncdni.nn.layers import make_layer

__all__ = ["describe", "dot", "parameters"]


def describe(network: Network, *, allow_import: bool = False) -> str:
    """A line a stage: inputs, layers, output shape, loss and number of parameters."""
    rows = [("stage", "inputs", "layers", "output", "loss", "parameters")]
    counts = [parameters(node, allow_import=allow_import) for node in network.nodes]
    for node, count in zip(network.nodes, counts, strict=True):
        layers = ", ".join(map(_layer, node.layers))
        output = _shape(node.output_shape)
        rows.append((node.name, _inputs(node), layers, output, node.loss or "-", f"{count:,}"))
    rows.append(("total", "", "", "", "", f"{sum(counts):,}"))
    return _aligned(rows)


def dot(network: Network) -> str:
    """The graph in Graphviz' language; edges carry the shape of what flows along them."""
    lines = ["digraph network {", "    rankdir=LR", "    node [shape=box]"]
    lines.append(f"    {_node(DATA, DATA, _shape(network.data_shape))}")
    for node in network.nodes:
        loss = [f"loss: {node.loss}"] if node.loss else []
        lines.append(f"    {_node(node.name, node.name, *map(_layer, node.layers), *loss)}")
    for node in network.nodes:
        for name, shape in zip(node.inputs, node.input_shapes, strict=True):
            lines.append(f'    "{name}" -> "{node.name}" [label="{_shape(shape)}"]')
    return "\n".join([*lines, "}"]) + "\n"


def parameters(node: Node, *, allow_import: bool = False) -> int:
    """How many numbers the stage learns. Builds its layers, one at a time, to count them."""
    shape, count = node.joined_shape, 0
    for index, spec in enumerate(node.layers):
        where = f"{node.place}.layers[{index}]"
        layer = make_layer(spec, where=where, allow_import=allow_import)
        shape = layer.build(shape, np.dtype(np.float32), lambda purpose: np.random.default_rng(0))
        count += sum(int(value.size) for value in layer.params.values())
    return count


def _inputs(node: Node) -> str:
    sign = " + " if node.join == "sum" else ", "
    return sign.join(node.inputs)


def _layer(spec: LayerSpec) -> str:
    """As in the file, without the punctuation: `dense 256`, `dense width=256 bias=false`."""
    if isinstance(spec, str):
        return spec
    ((name, options),) = spec.items()
    if not isinstance(options, dict):
        return f"{name} {_option(options)}"
    return " ".join([name, *(f"{key}={_option(value)}" for key, value in options.items())])


def _option(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _shape(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns as wide as their widest cell; the last one, of numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        lines.append("  ".join([*cells, row[-1].rjust(widths[-1])]))
    return "\n".join(lines) + "\n"


def _node(name: str, *lines: str) -> str:
    label = "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return f'"{name}" [label="{label}"]'
