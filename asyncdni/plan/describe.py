"""Describe a network and its workers for people: as text tables, and as drawings by Graphviz."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asyncdni.errors import ConfigError, LaunchError
from asyncdni.imports import Allowed
from asyncdni.messages import DATA
from asyncdni.network import LayerSpec, Network, Node, Shape
from asyncdni.nn.base import Layer
from asyncdni.nn.layers import make_layer
from asyncdni.nn.layers.recurrent import Recurrent
from asyncdni.plan.build import Design, make_exit_generator, make_input_models
from asyncdni.plan.conditions import link_encodings
from asyncdni.plan.plan import Group, Plan
from asyncdni.plan.sizes import context_bytes, stage_flops

__all__ = [
    "FORMATS",
    "Model",
    "count",
    "describe",
    "describe_flops",
    "describe_links",
    "describe_workers",
    "dot",
    "draw",
    "layer_text",
    "models_of",
    "parameters",
    "shape_text",
]


@dataclass(frozen=True, slots=True)
class Model:
    """A model that predicts a gradient or input which has not arrived yet."""

    title: str  # "error generator", "local head", "input model of hidden1"
    stage: str  # the stage whose activation it sees, or predicts
    parameters: int  # how many numbers it learns


# --- tables --------------------------------------------------------------------------------------


def describe(network: Network, *, allow_import: Allowed = False) -> str:
    """Return a table with a line for each stage: inputs, layers, output shape, loss, parameters.

    Weights that several stages share are counted once, at the stage that owns them.
    """
    rows = [("stage", "inputs", "layers", "output", "loss", "parameters")]
    total = 0
    for node in network.nodes:
        count = f"of {node.weights}"
        if not node.weights:
            own = parameters(node, allow_import=allow_import)
            count, total = f"{own:,}", total + own
        layers = ", ".join(map(layer_text, node.layers))
        output = shape_text(node.output_shape, node.varying)
        rows.append((node.name, _inputs(node), layers, output, node.loss or "-", count))
    rows.append(("total", "", "", "", "", f"{total:,}"))
    return _aligned(rows)


def describe_workers(design: Design) -> str:
    """Return a table with a line for each worker: its schedule, what it sends to whom, and the
    models that spare it waiting for others."""
    rows = [("worker", "schedule", "sends", "to", "models", "their parameters")]
    for group in design.plan.groups:
        models = models_of(design, group)
        sends, to = "-", "-"
        if group.exit is not None:
            node = design.network.node(group.exit)
            shape = shape_text(node.output_shape, node.varying)
            sends, to = f"{group.exit} {shape}", ", ".join(group.consumers)
        titles = ", ".join(model.title for model in models) or "-"
        total = f"{sum(model.parameters for model in models):,}"
        rows.append((group.name, group.schedule.text, sends, to, titles, total))
    return _aligned(rows)


def describe_flops(design: Design) -> str:
    """Return a table with a line for each stage: the floating-point operations of its products on
    one sample (see `plan.sizes.stage_flops`). A dash stands for what is not known."""
    rows = [("of one sample", "FLOPs forward", "FLOPs backward")]
    samples = min(design.plan.batch_size, design.meta.train_samples)
    known: list[tuple[int, int]] = []
    for node in design.network.nodes:
        send = any(name != DATA for name in node.inputs)
        found = stage_flops(node, samples, send=send, allow_import=design.allow_import)
        known += [found] if found else []
        rows.append((node.name, *_each(found, samples)))
    whole = len(known) == len(design.network.nodes)
    total = sum(one[0] for one in known), sum(one[1] for one in known)
    rows.append(("total", *_each(total if whole else None, samples)))
    return _aligned(rows, numbers=2)


def _each(flops: tuple[int, int] | None, samples: int) -> tuple[str, str]:
    """Write the operations on a batch of `samples` as those on one of them."""
    forward, backward = (f"{round(one / samples):,}" for one in flops) if flops else ("-", "-")
    return forward, backward


def describe_links(design: Design) -> str:
    """Return a table with a line for each link that tensors of training travel on: what they are,
    as what they travel, and the mean bytes of a sample, without the headers of messages. Empty
    where there is one worker."""
    plan, network, chosen = design.plan, design.network, design.experiment
    encodings, context = link_encodings(chosen, plan), context_bytes(chosen, network, design.meta)
    itemsize = np.dtype(chosen.run.dtype).itemsize
    rows = [("link", "tensors", "travel as", "bytes a sample")]

    def add(sender: str, to: str, what: str, shape: Shape, times: float, beside: int) -> None:
        encoding = None if what == "data" else encodings.get((sender, to))
        size = math.prod(shape) * itemsize
        name = encoding.name if encoding is not None else chosen.run.dtype
        size = size if encoding is None else encoding.sample_bytes(shape, chosen.data.batch_size)
        rows.append((f"{sender}->{to}", what, name, f"{size * times + beside:,.0f}"))

    for to in plan.feeds:
        add(plan.groups[plan.host].name, to, "data", network.data_shape, 1, context)
    for group in plan.groups:
        shape = () if group.exit is None else network.node(group.exit).output_shape
        asked = group.schedule.asked.every  # batches for each one whose gradient comes back
        for to in group.consumers:
            add(group.name, to, "activations", shape, 1, context)
            readers = sum(group.exit in node.inputs for node in _members(plan, to))
            if asked:
                add(to, group.name, "gradients", shape, readers / asked, 0)
    return _aligned(rows) if len(rows) > 1 else ""


def _members(plan: Plan, worker: str) -> Sequence[Node]:
    return next(group.members for group in plan.groups if group.name == worker)


# --- sizes ---------------------------------------------------------------------------------------


def parameters(node: Node, *, allow_import: Allowed = False) -> int:
    """Return how many numbers the stage learns; its layers are built to count them."""
    return sum(count(layer) for layer in _built(node, allow_import))


def models_of(design: Design, group: Group) -> list[Model]:
    """Return the models of one worker, built to count their parameters.

    They are the generator or local head at its exit, its input models, and the generators of its
    recurrent layers, which predict the gradient from the steps after a window.
    """
    options, run = group.schedule.predictor, design.experiment.run
    found = []
    generator = make_exit_generator(design, group, empty=True)
    if generator is not None and options is not None and group.exit is not None:
        found.append(Model(options.title, group.exit, count(generator)))
    inputs = make_input_models(design.network, group, design.meta, run)
    for producer, model in inputs.items():
        reader = next(node.name for node in group.members if producer in node.inputs)
        found.append(Model(f"input model of {producer}", reader, count(model)))
    for node in group.members:
        found += _futures(node, design.allow_import)
    return found


def count(model: Any) -> int:
    """Return how many numbers the `params` of a layer or model hold."""
    return sum(int(value.size) for value in model.params.values())


def _futures(node: Node, allow_import: Allowed) -> list[Model]:
    """Return the generators of recurrent layers. Their weights are among the layer's buffers, as
    the stage's optimizer does not update them."""
    if not any("future" in layer_text(spec) for spec in node.layers):
        return []  # no layer has one
    return [
        Model("future generator", node.name, int(layer.buffers["future.weight"].size))
        for layer in _built(node, allow_import)
        if isinstance(layer, Recurrent) and layer.future is not None
    ]


def _built(node: Node, allow_import: Allowed) -> Sequence[Layer]:
    shape, layers = node.joined_shape, []
    for index, spec in enumerate(node.layers):
        where = f"{node.place}.layers[{index}]"
        layer = make_layer(spec, where=where, allow_import=allow_import)
        shape = layer.build(shape, np.dtype(np.float32), lambda purpose: np.random.default_rng(0))
        layers.append(layer)
    return layers


# --- words ---------------------------------------------------------------------------------------


def layer_text(spec: LayerSpec) -> str:
    """Write a layer as in the experiment file, without punctuation: `dense 256`, or `dense
    width=256 bias=false`."""
    if isinstance(spec, str):
        return spec
    ((name, options),) = spec.items()
    if name == "part":
        end = f" up to {options['end']}" if options.get("end") else ""
        return f"{options['build']} from {options.get('begin') or 'its start'}{end}"
    if not isinstance(options, dict):
        return f"{name} {_option(options)}"
    return " ".join([name, *(f"{key}={_option(value)}" for key, value in options.items())])


def shape_text(shape: Shape, varying: bool = False) -> str:
    """Write a shape as `16 x 14 x 14`, or `scalar`; with `varying` as `up to 16 x 14`."""
    return ("up to " if varying else "") + (" x ".join(map(str, shape)) or "scalar")


def _inputs(node: Node) -> str:
    sign = " + " if node.join == "sum" else ", "
    return sign.join(node.inputs)


def _option(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _aligned(rows: Sequence[tuple[str, ...]], numbers: int = 1) -> str:
    """Write the rows as lines of text: each column is as wide as its widest cell, and the last
    ones, which hold `numbers`, are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    words = len(widths) - numbers
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        lines.append(
            "  ".join(
                cell.ljust(width) if index < words else cell.rjust(width)
                for index, (cell, width) in enumerate(cells)
            )
        )
    return "\n".join(lines) + "\n"


# --- graphviz ------------------------------------------------------------------------------------

#: Formats that `draw` can make.
FORMATS = ("svg", "png", "pdf")

_INDENT = " " * 4


def dot(design: Design) -> str:
    """Write the network in the language of Graphviz (Gansner, Koutsofios and North, "Drawing graphs
    with dot", 2015).

        data ─► [ worker a: stage ─► stage ┈ generator ] ─► [ worker b: … ]

    A stage is a box with its layers, loss and parameters, a worker a cluster with its schedule, a
    generator or other model an ellipse with its size. Edges carry the shape of one sample of what
    flows along them."""
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
    """Return the picture that Graphviz draws of `text`, in one of `FORMATS`.

    Raises `ConfigError` if Graphviz is not installed and `LaunchError` if it fails.
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
            f"{said[0] if said else 'without a message'}; --out with a name that ends in .dot "
            "writes the graph without it"
        )
    return done.stdout


def _cluster(design: Design, group: Group) -> Iterator[str]:
    """Yield the lines of one worker's cluster; it includes the data set if the worker hosts it."""
    yield f'subgraph "cluster_{group.index}" {{'
    title = _label(f"worker {group.name} ({group.schedule.text})")
    yield f"{_INDENT}{title} labeljust=l style=rounded color=gray50"
    if group.index == design.plan.host:
        name = design.experiment.data.tag
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
    yield f"{{ rank=same {stage} {name} }}"  # beside its stage, not between it and the next one


def _label(*lines: str) -> str:
    """Make the label attribute of a node or cluster, of several lines."""
    return "label=" + _quoted("\n".join(lines))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
