"""A network for Graphviz: stages in the clusters of their workers, drawn by `dot` where it is.

    data ─► [ worker a: stage ─► stage ┈ generator ] ─► [ worker b: … ]

The language: Gansner, Koutsofios and North, "Drawing graphs with dot" (2015).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

from asyncdni.build import Design
from asyncdni.describe import (
    Model,
    layer_text,
    models_of,
    parameters,
    schedule_text,
    shape_text,
)
from asyncdni.errors import ConfigError, LaunchError
from asyncdni.messages import DATA
from asyncdni.network import Node
from asyncdni.plan import Group

__all__ = ["FORMATS", "dot", "draw"]

#: That `draw` can be asked for.
FORMATS = ("svg", "png", "pdf")

_INDENT = " " * 4


def dot(design: Design) -> str:
    """The graph in Graphviz' language: a box a stage with its layers, loss and parameters, a
    cluster a worker with its schedule, an ellipse a generator or other model with its size; edges
    carry the shape of one sample of what flows along them."""
    lines = [
        "rankdir=LR",
        "fontname=Helvetica",
        "node [shape=box fontname=Helvetica]",
        "edge [fontname=Helvetica fontsize=11]",
    ]
    for group in design.plan.groups:
        lines += _cluster(design, group)
    for node in design.network.nodes:
        for name, shape in zip(node.inputs, node.input_shapes, strict=True):
            lines.append(f"{_quoted(name)} -> {_quoted(node.name)} [{_label(shape_text(shape))}]")
    return "\n".join(["digraph network {", *(_INDENT + line for line in lines), "}"]) + "\n"


def draw(text: str, form: str) -> bytes:
    """What Graphviz makes of `text`, in one of `FORMATS`.

    Raises `ConfigError` where Graphviz is not installed and `LaunchError` where it fails.
    """
    program = shutil.which("dot")
    if program is None:
        raise ConfigError(
            f"{form.upper()} is drawn by Graphviz, whose program dot is not on the PATH; install "
            "it (apt install graphviz, brew install graphviz), or give --out a name that ends in "
            ".dot"
        )
    try:
        done = subprocess.run([program, f"-T{form}"], input=text.encode(), capture_output=True)
    except OSError as error:
        raise LaunchError(f"{program} can't be started: {error.strerror}") from error
    if done.returncode != 0 or not done.stdout:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise LaunchError(
            f"{program} -T{form} ended with exit code {done.returncode}: "
            f"{said[0] if said else 'it said nothing'}; --out with a name that ends in .dot writes "
            "the graph without it"
        )
    return done.stdout


def _cluster(design: Design, group: Group) -> Iterator[str]:
    """The data are read, and kept, by the worker that hosts them."""
    yield f'subgraph "cluster_{group.index}" {{'
    title = _label(f"worker {group.name} ({schedule_text(design, group)})")
    yield f"{_INDENT}{title} labeljust=l style=rounded color=gray50"
    if group.index == design.plan.host:
        name = str(design.experiment.data.__struct_config__.tag)
        label = _label(DATA, name, shape_text(design.network.data_shape))
        yield f"{_INDENT}{_quoted(DATA)} [{label} shape=cylinder]"
    for node in group.members:
        yield f"{_INDENT}{_quoted(node.name)} [{_label(*_stage(design, node))}]"
    for model in models_of(design, group):
        yield from (_INDENT + line for line in _model(model))
    yield "}"


def _stage(design: Design, node: Node) -> list[str]:
    number = f"{parameters(node, allow_import=design.allow_import):,} parameters"
    weights = f"weights of {node.weights}" if node.weights else number
    joined = [f"{node.join} of {len(node.inputs)}"] if len(node.inputs) > 1 else []
    loss = [f"loss: {node.loss}"] if node.loss else []
    layers = map(layer_text, node.layers)
    return [node.name, *joined, *layers, *loss, weights]


def _model(model: Model) -> Iterator[str]:
    name = _quoted(f"{model.stage}: {model.title}")  # no stage has a colon in its name
    label = _label(model.title, f"{model.parameters:,} parameters")
    yield f"{name} [{label} shape=ellipse style=dashed]"
    stage = _quoted(model.stage)
    yield f"{stage} -> {name} [style=dashed dir=both]"
    yield f"{{ rank=same {stage} {name} }}"  # beside its stage, not in the way to the next one


def _label(*lines: str) -> str:
    """Of several lines."""
    return "label=" + _quoted("\n".join(lines))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
