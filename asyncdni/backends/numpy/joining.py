"""A stage's inputs become one array, and its gradient that of each input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asyncdni.network import Node
from asyncdni.nn.base import Array, Slot
from asyncdni.nn.layers.slots import rows

__all__ = ["add_in_order", "join", "split"]


def join(node: Node, inputs: Sequence[Array], own: Slot) -> Array:
    """Their sum or concatenation, as `node` says, in an array of the slot; one alone as it is."""
    if len(inputs) == 1:
        return inputs[0]
    joined = rows(own, "joined", (len(inputs[0]), *node.joined_shape), inputs[0].dtype)
    if node.join == "concat":
        return np.concatenate(inputs, axis=node.join_axis, out=joined)
    return add_in_order(inputs, joined)


def split(node: Node, grad: Array) -> list[Array]:
    """The gradient of each input in declared order, from that of what they were joined to."""
    shapes = node.input_shapes
    if len(shapes) == 1 or node.join == "sum":
        return [grad] * len(shapes)
    axis = node.join_axis
    edges = np.cumsum([shape[axis] for shape in shapes])[:-1]
    return [np.ascontiguousarray(part) for part in np.split(grad, edges, axis=axis)]


def add_in_order(terms: Sequence[Array], out: Array) -> Array:
    """Their sum, in the order given and never in another: floating-point sums depend on it."""
    np.add(terms[0], terms[1], out=out)
    for term in terms[2:]:
        out += term
    return out
