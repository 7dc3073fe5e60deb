"""A network as a checked graph of stages: named inputs, fan-in, fan-out, losses, shapes.

    data ─► hidden1 ─┬─► hidden2 ─┐
                     └─► hidden3 ─┴─► top (joins both, carries the loss)

Stages may stand in the file in any order. The network sorts them so that each comes after those it
reads, and otherwise as declared; "declared order" means this order everywhere.

Several stages may use one set of weights:

    [[stages]]
    name = "stamp2"
    layers = [{ dense = 64 }, "tanh"]     # the same as those of stamp1
    weights = "stamp1"

Each of them has a copy of the weights. All copies start alike and make the same steps, on the sum
of the gradients of all. Running statistics, random masks and generators stay each stage's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from asyncdni import config
from asyncdni.data.meta import Meta
from asyncdni.errors import ConfigError
from asyncdni.experiment.schema import nearest, shown, stage_place
from asyncdni.imports import Allowed
from asyncdni.messages import DATA
from asyncdni.nn.layers import make_layer
from asyncdni.nn.losses import is_own

__all__ = ["LayerSpec", "Network", "Node", "Shape", "check_alike", "check_sharing", "make_network"]

#: Layers that pass on the numbers they get.
_PASSING = frozenset({"flatten", "reshape", "step"})

# --- shared weights ------------------------------------------------------------------------------

#: What must be equal for stages to share weights: (joined shape of the inputs, layers).
_Form = tuple[tuple[int, ...], Sequence[object]]


def check_sharing(stages: Sequence[config.Stage]) -> None:
    """Check which stage uses the weights of which. Raises `ConfigError` where `weights` names no
    other stage with weights of its own, or one set of weights has two optimizers."""
    by_name = {stage.name: stage for stage in stages}
    for index, stage in enumerate(stages):
        if not stage.weights:
            continue
        place = f"{stage_place(index, stage.name)}.weights"
        owner = by_name.get(stage.weights)
        if owner is None:
            close = nearest(stage.weights, by_name) or ";"
            raise ConfigError(
                f"{place}: there is no stage {shown(stage.weights)}{close} known: "
                f"{', '.join(by_name)}"
            )
        if owner is stage:
            raise ConfigError(f"{place}: the stage names itself; leave it out, or name another")
        if owner.weights:
            raise ConfigError(
                f"{place}: {owner.name} itself uses the weights of {shown(owner.weights)}; "
                "expected the stage that has them"
            )
        if stage.optimizer:
            raise ConfigError(
                f"{stage_place(index, stage.name)}.optimizer: the weights are those of "
                f"{owner.name}, whose optimizer moves them; set it there"
            )


def check_alike(place: str, own: _Form, owner: str, there: _Form) -> None:
    """Raise `ConfigError` if the stage at `place` can't use the weights of the stage `owner`."""
    if own[0] != there[0]:
        raise ConfigError(
            f"{place}.weights: its layers get shape {own[0]}, those of {owner} {there[0]}; "
            "expected the same, as they use one set of weights"
        )
    if list(own[1]) != list(there[1]):
        raise ConfigError(
            f"{place}.weights: its layers are {shown(list(own[1]))}, those of {owner} "
            f"{shown(list(there[1]))}; expected the same, as they use one set of weights"
        )


# --- the graph -----------------------------------------------------------------------------------

Shape = tuple[int, ...]  # of one sample, without the batch axis
LayerSpec = str | dict[str, Any]

_AXES = {-1: "last", -3: "channel"}


@dataclass(frozen=True)
class Node:
    """One declared stage, with its place in the graph."""

    name: str
    index: int  # in the network
    place: str  # in the file: "stages[1] (hidden2)"
    inputs: tuple[str, ...]  # as declared; includes DATA if the stage reads data
    consumers: tuple[str, ...]
    join: Literal["concat", "sum"]
    input_shapes: tuple[Shape, ...]
    joined_shape: Shape  # what the first layer gets
    output_shape: Shape
    loss: str | None
    answers: bool  # whether right answers can be counted for its loss
    own_loss: bool  # a layer has a loss of its own, such as the divergence of a gaussian
    layers: tuple[LayerSpec, ...] = field(hash=False)
    weights: str = ""  # the stage whose weights it uses; empty: its own
    # whether its activation must not be rounded: it is ids or other data passed on, or made of
    # several tensors, some of which may be masks
    exact: bool = False
    # whether the first axis of each input, and of its output, is the batch's length; shapes have
    # the most
    inputs_vary: tuple[bool, ...] = ()
    varying: bool = False

    @property
    def owner(self) -> str:
        """The stage whose weights this stage uses: another, or itself."""
        return self.weights or self.name

    @property
    def scored(self) -> bool:
        """Whether the stage adds to the test loss."""
        return self.loss is not None or self.own_loss

    @property
    def join_axis(self) -> int:
        """The axis along which concat joins: channels of feature maps (C, H, W), else the last
        axis."""
        return _join_axis(self.joined_shape)


@dataclass(frozen=True)
class Network:
    """The stages, each after those it reads, and the shapes of the data they are trained on."""

    nodes: tuple[Node, ...]
    data_shape: Shape
    targets: Literal["classes", "values"]
    outputs: int  # classes, or values of one target
    steps: int = 0  # steps of a window, each with its own target; 0: one target per sample

    def row_shape(self, shape: Shape) -> Shape:
        """Return the shape of one sample for a generator of activations of `shape`: that of one
        step if targets have a time axis and `shape` begins with it."""
        timed = self.steps and len(shape) > 1 and shape[0] == self.steps
        return shape[1:] if timed else shape

    def node(self, name: str) -> Node:
        """Return the stage of that name; `KeyError` if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    @property
    def judged(self) -> Node:
        """The stage whose outputs `run.metrics` are of: the last one with a loss."""
        return next(node for node in reversed(self.nodes) if node.loss is not None)

    def sharers(self, name: str) -> tuple[str, ...]:
        """Return all stages that use the weights of this one, itself included, in declared
        order."""
        owner = self.node(name).owner
        return tuple(node.name for node in self.nodes if node.owner == owner)

    def target_of(self, node: Node) -> tuple[str, int]:
        """Return (loss, outputs) by which the stage's generator reads the labels.

        The loss is the stage's own, else the nearest downstream; of equally near ones the first
        declared. In place of a loss of the user's it is that which fits the targets.
        """
        level = [node]
        while True:  # it ends, as `make_network` refuses stages that lead to no loss
            for one in level:
                if one.loss is not None:
                    return self._read_by(one.loss), self.outputs
            names = {name for one in level for name in one.consumers}
            level = [one for one in self.nodes if one.name in names]

    def _read_by(self, loss: str) -> str:
        """Return a loss that can be had of the targets alone, in place of one of the user's."""
        if not is_own(loss):
            return loss
        return "cross_entropy" if self.targets == "classes" else "mse"


def make_network(
    experiment: config.Experiment, meta: Meta, *, allow_import: Allowed = False
) -> Network:
    """Make the checked graph of `experiment.stages` (named, as `experiment.parse` gives them).

    Raises `ConfigError` for edges, shapes or losses that do not fit; nothing is allocated.
    `allow_import` permits layers that are the user's own code.
    """
    stages = experiment.stages
    check_sharing(stages)
    inputs = _inputs(stages)
    order = _sorted(stages, inputs)
    _check_losses(stages, inputs, meta)
    shapes: dict[str, Shape] = {DATA: tuple(meta.input_shape)}
    nodes: list[Node] = []
    for index, position in enumerate(order):
        stage = stages[position]
        consumers = tuple(
            stages[other].name for other in order if stage.name in inputs[stages[other].name]
        )
        place = stage_place(position, stage.name)
        exact = {DATA, *(node.name for node in nodes if node.exact)}
        own = inputs[stage.name]
        varying = {DATA: meta.varying} | {node.name: node.varying for node in nodes}
        node = _node(stage, index, place, own, consumers, shapes, exact, meta, allow_import)
        node = replace(node, inputs_vary=tuple(varying[name] for name in own))
        _check_loss(node, meta)
        shapes[node.name] = node.output_shape
        nodes.append(node)
    network = Network(tuple(nodes), tuple(meta.input_shape), meta.targets, meta.outputs, meta.steps)
    for node in network.nodes:
        owner = network.node(node.owner)
        if _are_parts(node, owner):
            continue  # what cut the model has seen that both have the same weights
        forms = [(one.joined_shape, one.layers) for one in (node, owner)]
        check_alike(node.place, forms[0], owner.name, forms[1])
    return network


def _are_parts(*nodes: Node) -> bool:
    """Tell whether all of the nodes are parts of one module of PyTorch."""
    parts = [layer.get("part") for one in nodes for layer in one.layers if isinstance(layer, dict)]
    builds = {part["build"] if part else "" for part in parts}
    return len(parts) == len(nodes) and len(builds) == 1 and "" not in builds


def _inputs(stages: Sequence[config.Stage]) -> dict[str, tuple[str, ...]]:
    """Map each stage to the nodes it reads. Raises `ConfigError` for nodes that are unknown, given
    twice, or the stage itself."""
    names = [DATA, *(stage.name for stage in stages)]
    result = {}
    for index, stage in enumerate(stages):
        inputs = tuple(stage.inputs) if stage.inputs is not None else (names[index],)
        place = f"{stage_place(index, stage.name)}.inputs"
        for name in inputs:
            if name not in names:
                close = nearest(name, names) or ";"
                raise ConfigError(
                    f"{place}: nothing produces {shown(name)} (edge {name} -> {stage.name}){close} "
                    f"known: {', '.join(names)}"
                )
            if name == stage.name:
                raise ConfigError(f"{place}: the stage reads itself (edge {name} -> {name})")
            if inputs.count(name) > 1:
                raise ConfigError(
                    f"{place}: {name!r} is given {inputs.count(name)} times; expected each input "
                    "once"
                )
        result[stage.name] = inputs
    return result


def _sorted(stages: Sequence[config.Stage], inputs: Mapping[str, tuple[str, ...]]) -> list[int]:
    """Return positions in the file, sorted so that each stage follows its inputs, else as declared
    (Kahn 1962). Raises `ConfigError` for a cycle."""
    order: list[int] = []
    done = {DATA}
    while len(order) < len(stages):
        for position, stage in enumerate(stages):
            if stage.name not in done and done.issuperset(inputs[stage.name]):
                order.append(position)
                done.add(stage.name)
                break
        else:
            raise ConfigError(f"stages: {_cycle(inputs, done)}; expected a graph without cycles")
    return order


def _cycle(inputs: Mapping[str, tuple[str, ...]], done: set[str]) -> str:
    """Return the edges of one cycle among the stages that are not done."""
    path = [next(name for name in inputs if name not in done)]
    while path[-1] not in path[:-1]:
        path.append(next(name for name in inputs[path[-1]] if name not in done))
    loop = path[path.index(path[-1]) :][::-1]  # from reader to producer, turned around
    edges = ", ".join(f"{a} -> {b}" for a, b in itertools.pairwise(loop))
    return f"the edges {edges} form a cycle"


def _check_losses(
    stages: Sequence[config.Stage], inputs: Mapping[str, tuple[str, ...]], meta: Meta
) -> None:
    if all(stage.loss is None for stage in stages):
        fitting = " or ".join(f'"{loss}"' for loss in _fitting(meta))
        raise ConfigError(
            f"stages: none has a loss, so nothing would be learned; expected loss = {fitting} in "
            "the last one"
        )
    read = {name for names in inputs.values() for name in names}
    for index, stage in enumerate(stages):
        name = stage.name
        if stage.loss is None and name not in read:
            raise ConfigError(
                f"{stage_place(index, name)}: no stage reads its output (edge {name} -> nothing) "
                f"and it has no loss; give it a loss, name {name!r} in the inputs of another, or "
                "remove it"
            )


def _node(
    stage: config.Stage,
    index: int,
    place: str,
    inputs: tuple[str, ...],
    consumers: tuple[str, ...],
    shapes: Mapping[str, Shape],
    exact: Set[str],
    meta: Meta,
    allow_import: Allowed,
) -> Node:
    given = tuple(shapes[name] for name in inputs)
    joined = _joined(stage.join, inputs, given, place)
    output, varying = _output_form(stage.layers, joined, place, allow_import)
    return Node(
        name=stage.name,
        index=index,
        place=place,
        inputs=inputs,
        consumers=consumers,
        join=stage.join,
        input_shapes=given,
        joined_shape=joined,
        output_shape=output,
        loss=stage.loss,
        answers=meta.answers and (stage.loss is None or output == meta.output_shape),
        own_loss=_own_loss(stage.layers, place, allow_import),
        layers=tuple(stage.layers),
        weights=stage.weights,
        exact=_is_exact(stage.layers, not exact.isdisjoint(inputs), place, allow_import),
        varying=varying,
    )


def _is_exact(
    layers: Sequence[LayerSpec], passed_on: bool, place: str, allow_import: Allowed
) -> bool:
    """Return whether the output of these layers must not be rounded; `passed_on`: whether that is
    so of their inputs."""
    for spec in reversed(layers):
        if (next(iter(spec)) if isinstance(spec, dict) else spec) not in _PASSING:
            layer = make_layer(spec, where=place, allow_import=allow_import)
            packs = getattr(layer, "packs", None)
            return packs is not None and bool(packs())
    return passed_on


def _joined(
    join: Literal["concat", "sum"], inputs: tuple[str, ...], shapes: tuple[Shape, ...], place: str
) -> Shape:
    """Return the shape after fan-in: along one axis for concat, unchanged for sum."""
    first = shapes[0]
    if len(shapes) == 1:
        return first
    if join == "sum":
        fits, result, rule = len(set(shapes)) == 1, first, "equal shapes"
    else:
        axis = len(first) + _join_axis(first)
        fits = first != () and len({(len(s), *s[:axis], *s[axis + 1 :]) for s in shapes}) == 1
        width = sum(one[axis] for one in shapes) if fits else 0
        result = (*first[:axis], width, *first[axis + 1 :])
        rule = f"shapes that differ in the {_AXES[_join_axis(first)]} axis only"
    if not fits:
        given = ", ".join(f"{name} {one}" for name, one in zip(inputs, shapes, strict=True))
        raise ConfigError(f"{place}.inputs: join = {join!r} expects {rule}, got {given}")
    return result


def _join_axis(shape: Shape) -> int:
    return -3 if len(shape) >= 3 else -1


def _output_form(
    layers: Sequence[LayerSpec], shape: Shape, place: str, allow_import: Allowed
) -> tuple[Shape, bool]:
    """Return the shape of a sample of the output, and whether its first axis is the batch's
    length."""
    varying = False
    for index, spec in enumerate(layers):
        where = f"{place}.layers[{index}]"
        layer = make_layer(spec, where=where, allow_import=allow_import)
        try:
            shape = tuple(layer.output_shape(shape))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        varying = getattr(layer, "varying", False)
    return shape, varying


def _own_loss(layers: Sequence[LayerSpec], place: str, allow_import: Allowed) -> bool:
    made = (make_layer(spec, where=place, allow_import=allow_import) for spec in layers)
    return any(hasattr(layer, "own_loss") for layer in made)


def _fitting(meta: Meta) -> tuple[str, ...]:
    """Return the losses that fit the data set's targets."""
    return ("cross_entropy",) if meta.targets == "classes" else ("sigmoid_cross_entropy", "mse")


def _check_loss(node: Node, meta: Meta) -> None:
    if node.loss is None or is_own(node.loss):  # what it fits, only a trial tells: `plan.model`
        return
    kind = f"{meta.outputs} {meta.targets}"
    if node.loss not in _fitting(meta):
        raise ConfigError(
            f"{node.place}.loss: {node.loss} does not fit the data set, whose targets are {kind}; "
            f"expected {' or '.join(_fitting(meta))}"
        )
    if node.output_shape != meta.output_shape:
        raise ConfigError(
            f"{node.place}.loss: {node.loss} over {kind} expects the stage to end in shape "
            f"{meta.output_shape}, got {node.output_shape}; {_target_advice(meta)}"
        )


def _target_advice(meta: Meta) -> str:
    """Describe the targets, and what to do if the last layer does not fit."""
    if meta.vocabulary:
        return f"the text has {meta.outputs} different characters: change the last layer"
    if meta.targets == "classes":
        return (
            f"the labels, y_train and y_test, go up to {meta.outputs - 1}: change the last layer, "
            "or number the labels from 0 without gaps"
        )
    each = "step" if meta.steps else "sample"
    count = f"{meta.outputs} value{'s' if meta.outputs > 1 else ''}"
    return f"the targets have {count} a {each}: change the last layer or the data"
