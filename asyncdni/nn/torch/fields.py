"""Inputs of several tensors, such as `input_ids` and `attention_mask`, which travel as one.

```
 {"input_ids": (B, T), "attention_mask": (B, T)}  ──►  h (B, 2 T), floating  ──►  model(**fields)
```

A sample's numbers lie behind one another. Whole numbers up to 2^24 come through unchanged.

Where batches differ in length, all of these tensors have the steps in front, and the numbers of
each step lie behind one another: h is (B, T, 2). In the form of an input such an axis is written as
a negative number, -T for up to T steps.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from asyncdni.errors import ConfigError

__all__ = [
    *("Field", "as_kind", "call_joined", "fields_of", "join", "named", "part"),
    *("separate", "separated", "take", "varies"),
]

Shape = tuple[int, ...]


class Field(NamedTuple):
    """One tensor of a sample."""

    name: str  # of an argument of the model's forward; empty: by its place
    kind: str  # "float", "int" or "bool"
    shape: Shape  # of one sample; -T in front: up to T steps


def fields_of(form: Sequence[Any]) -> tuple[Shape, tuple[Field, ...]]:
    """The shape of a sample's numbers, the longest where batches differ, and its fields, of what an
    experiment says of its input: a shape, or a list of [name, kind, shape] where there are several
    tensors."""
    if not form or not isinstance(form[0], Sequence):
        return tuple(map(abs, form)), ()
    fields = tuple(Field(name, kind, tuple(shape)) for name, kind, shape in form)
    if varies(form):
        return (-fields[0].shape[0], sum(math.prod(one.shape[1:]) for one in fields)), fields
    return (sum(math.prod(one.shape) for one in fields),), fields


def varies(form: Sequence[Any]) -> bool:
    """Whether batches of such inputs differ in length."""
    shape = form[0][2] if form and isinstance(form[0], Sequence) else form
    return bool(shape) and shape[0] < 0


def separated(x: torch.Tensor, fields: Sequence[tuple[str, str, Shape]]) -> list[torch.Tensor]:
    """The tensors (B, …) of which x (B, N), or (B, T, N), is made."""
    steps = fields[0][2][:1] < (0,)
    parts = part(x, [shape[steps:] for _, _, shape in fields], steps=steps)
    return [as_kind(one, kind) for one, (_, kind, _) in zip(parts, fields, strict=True)]


def join(tensors: Sequence[torch.Tensor], *, steps: bool) -> torch.Tensor:
    """Tensors (B, …) as one (B, N), or with `steps` (B, T, …) as one (B, T, N)."""
    axis = 2 if steps else 1
    return torch.cat([one.reshape(*one.shape[:axis], -1) for one in tensors], axis)


def part(x: torch.Tensor, shapes: Sequence[Shape], *, steps: bool) -> list[torch.Tensor]:
    """What `join` was given, of these shapes without the axes that are joined along."""
    axis = 2 if steps else 1
    parts = torch.split(x, [math.prod(shape) for shape in shapes], axis)
    return [one.reshape(*x.shape[:axis], *shape) for one, shape in zip(parts, shapes, strict=True)]


def as_kind(x: torch.Tensor, kind: str) -> torch.Tensor:
    """The tensor x in the type of a field of that kind."""
    if kind == "int":
        return x.round().long()
    return x > 0.5 if kind == "bool" else x


def take(parts: Sequence[torch.Tensor], index: int) -> torch.Tensor:
    """One of several tensors."""
    return parts[index]


def named(model: nn.Module, fields: Sequence[Field]) -> tuple[Field, ...]:
    """The fields by the names of the arguments of the model's forward. Raises `ConfigError` for
    fields that it does not take, and for arguments that it needs besides."""
    parameters = inspect.signature(model.forward).parameters.values()
    known = {one.name: one for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD}
    names = [one.name or place for one, place in zip(fields, [*known, *fields], strict=False)]
    strange = [name for name in names if name not in known]
    if strange:
        what = strange[0] if isinstance(strange[0], str) else f"number {len(known) + 1}"
        raise ConfigError(
            f"the samples have a tensor {what}, which the model's forward does not take: it takes "
            f"{', '.join(known)}; leave it out in the data set, or wrap the model"
        )
    missing = [n for n, one in known.items() if one.default is one.empty and n not in names]
    if missing:
        raise ConfigError(
            f"the model's forward needs {missing[0]}, and the samples have "
            f"{', '.join(map(str, names))}; add it in the data set, or wrap the model"
        )
    return tuple(one._replace(name=str(name)) for one, name in zip(fields, names, strict=True))


def call_joined(model: nn.Module, x: torch.Tensor, fields: Sequence[Field]) -> Any:
    """What the model returns for x, which is made of fields, unless it is one tensor."""
    if not fields:
        return model(x)
    tensors = zip(named(model, fields), separated(x, fields), strict=True)
    return model(**{field.name: tensor for field, tensor in tensors})


def separate(graph: fx.Graph, fields: Sequence[Field]) -> None:
    """Let a graph whose arguments are the fields have one argument x in their place."""
    arguments = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_before(arguments[0]):
        x = graph.placeholder("x")
    by_name = {str(node.target): node for node in arguments}
    plain: Any = tuple(tuple(one) for one in fields)
    with graph.inserting_after(arguments[-1]):
        parts = graph.call_function(separated, (x, plain))
    at = parts
    for index, field in enumerate(fields):
        with graph.inserting_after(at):
            at = graph.call_function(take, (parts, index))
        by_name[field.name].replace_all_uses_with(at)
        graph.erase_node(by_name[field.name])
