"""Simulated workers give what plain backpropagation in one process gives, to the last bit."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from each import case, each

from asyncdni import config
from asyncdni.core.events import Finish
from asyncdni.data import load
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.experiment import stage_optimizer
from asyncdni.messages import DATA, Gradient
from asyncdni.network import Node
from asyncdni.nn.layers import make_layer
from asyncdni.nn.losses import make_loss
from asyncdni.nn.optimizers import Adam, Sgd, flatten
from asyncdni.nn.streams import layer_streams
from asyncdni.plan.build import Design, make_stage
from asyncdni.plan.plan import Group
from asyncdni.plan.rules import is_repeatable, repeatable_words
from asyncdni.schedules import SCHEDULES
from asyncdni.schedules.base import Source
from asyncdni.stages.base import Forwarded
from asyncdni.stages.numpy.block import Block, Pace
from asyncdni.stages.numpy.stage import NumpyStage

LOCKED = {"name": "locked"}
SYNTHETIC = {"name": "synthetic", "generator": {"kind": "linear", "learning_rate": 0.01}}
SHAKEN = {"costs": Costs(jitter=0.9), "links": Links(jitter=1.0)}

Weights = dict[str, dict[str, Any]]


# --- the reference: no worker, no stage object, only layers, losses and optimizers ---------------


class Plain:
    """The layers of one declared stage, trained by backpropagation."""

    def __init__(self, node: Node, options: Any, dtype: np.dtype[Any], seed: int) -> None:
        self.node, self.rate = node, options.learning_rate
        self.layers = [make_layer(spec, where=node.name) for spec in node.layers]
        shape = node.joined_shape
        for i, layer in enumerate(self.layers):
            shape = layer.build(shape, dtype, layer_streams(seed, f"{node.name}.{i}"))
        self.params, self.grads = flatten(self.layers)
        self.optimizer = Adam() if isinstance(options, config.Adam) else Sgd(options.momentum)
        self.loss = make_loss(node.loss) if node.loss else None

    def forward(self, inputs: list[Any], targets: Any) -> Any:
        self.slots: list[Any] = [{} for _ in self.layers]
        self.loss_slot: dict[str, Any] = {}
        x = inputs[0]
        if len(inputs) > 1:
            x = sum(inputs[1:], inputs[0]) if self.node.join == "sum" else np.hstack(inputs)
        for layer, slot in zip(self.layers, self.slots, strict=True):
            x = layer.forward(x, slot)
        if self.loss is not None:
            self.loss.forward(x, targets, self.loss_slot)
        return x

    def backward(self, terms: list[Any]) -> list[Any]:
        """From the consumers' gradients in declared order to the gradient of each input."""
        own = [self.loss.backward(self.loss_slot)] if self.loss is not None else []
        first, *others = own + terms
        grad = sum(others, first)
        for layer, slot in zip(self.layers[::-1], self.slots[::-1], strict=True):
            grad = layer.backward(grad, slot, learn=True, send=True)
        if self.node.join == "sum":
            return [grad] * len(self.node.inputs)
        edges = np.cumsum([shape[-1] for shape in self.node.input_shapes])[:-1]
        return [np.ascontiguousarray(part) for part in np.split(grad, edges, axis=-1)]

    def update(self, samples: int) -> None:
        self.grads *= 1.0 / samples
        self.optimizer.step(self.params, self.grads, self.rate)
        for layer in self.layers:
            layer.fresh = True


def reference(design: Design) -> Weights:
    """Weights and running statistics after the whole run."""
    run, options = design.experiment.run, design.experiment.optimizer
    dtype, batch_size = np.dtype(run.dtype), design.experiment.data.batch_size
    dataset = load(design.experiment.data, run.seed)
    stages = {n.name: Plain(n, options, dtype, run.seed) for n in design.network.nodes}
    for epoch in range(run.epochs):
        for index in range(dataset.batches_per_epoch(batch_size)):
            x, y = dataset.batch(epoch, index, batch_size, run.seed, dtype)
            known = {DATA: x}
            for name, stage in stages.items():
                known[name] = stage.forward([known[n] for n in stage.node.inputs], y)
            grads: dict[str, dict[str, Any]] = {name: {} for name in known}
            for name, stage in reversed(stages.items()):
                terms = [grads[name][consumer] for consumer in stage.node.consumers]
                for producer, grad in zip(stage.node.inputs, stage.backward(terms), strict=True):
                    grads[producer][name] = grad
            for stage in stages.values():
                stage.update(len(x))
    return {
        name: {
            f"{i}.{key}": array
            for i, layer in enumerate(stage.layers)
            for key, array in [*layer.params.items(), *layer.buffers.items()]
        }
        for name, stage in stages.items()
    }


def assert_same_bits(result: Result, expected: Weights) -> None:
    assert isinstance(result.end, Finish), result.end
    assert result.weights.keys() == expected.keys()
    for stage, arrays in expected.items():
        assert result.weights[stage].keys() == arrays.keys()
        for name, array in arrays.items():
            found = result.weights[stage][name]
            assert found.dtype == array.dtype, (stage, name)
            assert found.tobytes() == array.tobytes(), (stage, name)


# --- one seed, one result ------------------------------------------------------------------------


@each(
    "options",
    [
        *({"name": name} for name in SCHEDULES),
        {"name": "local_loss", "replay": 2},
        {"name": "local_loss", "on_full": "skip"},
    ],
)
def test_a_run_says_whether_its_seed_repeats_it(options: dict[str, Any]) -> None:
    """However long ops and messages take; what does not repeat shows it sooner or later."""
    options = {"microbatches": 5, **options} if options["name"] in ("gpipe", "1f1b") else options
    tight = {"limits": {"window": 1}, "slow": {"s2": {"factor": 3}}}
    apart = networks.design(networks.chain(4), options, run={"epochs": 2}, **tight)
    found = {weights_digest(simulate(apart, seed=s, maths=True, **SHAKEN)) for s in range(3)}
    assert is_repeatable(apart.experiment, apart.plan) == (len(found) == 1)
    alone = networks.design(networks.chain(4), options, run={"epochs": 1, "split": [4]})
    assert is_repeatable(alone.experiment, alone.plan)
    found = {weights_digest(simulate(alone, seed=s, maths=True, **SHAKEN)) for s in range(2)}
    assert len(found) == 1


def test_weights_that_workers_share_are_repeatable_only_where_all_wait() -> None:
    stages = networks.chain(4)
    stages[2]["weights"] = "s1"
    for name, repeats in (("locked", True), ("local_loss", False)):
        made = networks.design(stages, {"name": name})
        assert is_repeatable(made.experiment, made.plan) is repeats


def test_each_schedule_is_among_those_that_repeat_or_among_those_that_do_not() -> None:
    repeated, _, others = repeatable_words().partition(";")
    for name, options in SCHEDULES.items():
        assert name in (repeated if options.repeatable else others)


def weights_digest(result: Result) -> str:
    assert isinstance(result.end, Finish), result.end
    digest = hashlib.sha256()
    for arrays in result.weights.values():
        for array in arrays.values():
            digest.update(array.tobytes())
    return digest.hexdigest()


# --- locked --------------------------------------------------------------------------------------


@each("split", [None, [4], [2, 2], [1, 3], [1, 2, 1], [2, 1, 1]])
def test_locked_is_backpropagation_under_every_split(split: list[int] | None) -> None:
    """Four workers, one, two, two, three, three; the last batch of each epoch is smaller."""
    design = networks.design(networks.chain(4), LOCKED, run={"epochs": 5, "split": split})
    assert design.meta.train_samples % design.experiment.data.batch_size
    assert_same_bits(simulate(design, seed=1, maths=True, **SHAKEN), reference(design))


@each("length", [2, 3, 4])
@each("optimizer", ["adam", "momentum"])
def test_locked_is_backpropagation_over_any_number_of_workers(length: int, optimizer: str) -> None:
    options = {"name": "adam"}
    if optimizer == "momentum":
        options = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}
    design = networks.design(networks.chain(length), LOCKED, optimizer=options, run={"epochs": 4})
    assert_same_bits(simulate(design, seed=2, maths=True, **SHAKEN), reference(design))


def test_locked_is_backpropagation_with_batch_norm() -> None:
    """Running statistics included."""
    stages = networks.chain(3, norm=True)
    design = networks.design(stages, LOCKED, run={"epochs": 4})
    expected = reference(design)
    assert "1.running_mean" in expected["s0"]
    assert_same_bits(simulate(design, seed=3, maths=True, **SHAKEN), expected)


@each("join", ["concat", "sum"])
@each("seed", range(6))
def test_a_fork_to_three_and_its_join_are_backpropagation_in_any_order(
    join: str, seed: int
) -> None:
    """Gradients reach the root in shuffled order, and are summed in declared order."""
    orders: dict[int, list[str]] = {}

    def watch(sender: str, to: str, message: object) -> bool:
        if isinstance(message, Gradient) and to == "root":
            orders.setdefault(message.batch, []).append(sender)
        return False

    design = networks.design(networks.fork(join), LOCKED, run={"epochs": 4})
    result = simulate(design, seed=seed, maths=True, lose=watch, **SHAKEN)
    assert len({tuple(order) for order in orders.values()}) > 2
    assert_same_bits(result, reference(design))


@each("stages", [networks.diamond(), networks.several_readers()])
@each("codec", [False, True])
def test_other_graphs_are_backpropagation(stages: Any, codec: bool) -> None:
    """A loss on the way and paths of unequal length; data that several stages read."""
    design = networks.design(stages, LOCKED, run={"epochs": 4})
    result = simulate(design, seed=4, maths=True, codec=codec, **SHAKEN)
    assert_same_bits(result, reference(design))


def test_locked_is_backpropagation_on_arrays_of_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(41, 7)), rng.normal(size=(41, networks.BITS))
    path = tmp_path / "arrays.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x[:7], y_test=y[:7])
    stages = [{**one, **({"loss": "mse"} if "loss" in one else {})} for one in networks.chain(3)]
    data = {"name": "npz", "path": str(path), "batch_size": 8}
    design = networks.design(stages, LOCKED, data=data, run={"epochs": 3, "dtype": "float64"})
    assert_same_bits(simulate(design, seed=5, maths=True, **SHAKEN), reference(design))


# --- synthetic -----------------------------------------------------------------------------------


class Oracle:
    """A generator that asks the stages downstream for the true gradient of their weights now."""

    params: dict[str, Any]
    buffers: dict[str, Any]

    def __init__(self, exit_name: str, downstream: list[tuple[str, NumpyStage]]) -> None:
        self.params, self.buffers = {}, {}
        self._exit = exit_name
        self._downstream = downstream
        self.differences: list[float] = []

    def build(self, *args: Any, **options: Any) -> None:
        raise AssertionError("there is nothing to build")

    def predict(self, h: Any, y: Any, slot: dict[str, Any], rate_scale: float) -> Any:
        name = self._exit
        producers = []
        for own, stage in self._downstream:
            h = stage.forward(-1, {name: h}, {"y": y}).activation
            producers.append(name)
            name = own
        grads: dict[str, Any] = {}
        for (_, stage), producer in zip(self._downstream[::-1], producers[::-1], strict=True):
            sent = stage.backward(-1, grads, source=Source.TRUE, learn=False, send=True)
            grads = sent[producer]
            stage.release(-1, lambda: True)
        (gradient,) = grads.values()
        slot["prediction"] = gradient.copy()
        return slot["prediction"]

    def fit(self, grad: Any, slot: dict[str, Any], rate_scale: float) -> None:
        self.differences.append(float(np.abs(grad - slot["prediction"]).max()))


def with_oracles(design: Design, oracles: list[Oracle]) -> Any:
    """Stages of a chain, each generator of which sees all stages below it."""
    built: dict[str, NumpyStage] = {}
    downstream: dict[str, list[tuple[str, NumpyStage]]] = {}

    def build(design: Design, group: Group) -> NumpyStage:
        (node,) = group.members
        downstream[node.name] = []
        oracle = Oracle(node.name, downstream[node.name]) if group.exit else None
        run, plan = design.experiment.run, design.plan
        options = stage_optimizer(design.experiment, design.experiment.stages[node.index])
        pace = Pace(plan.batches_per_epoch, plan.batches)
        block = Block(node, options, dtype=np.dtype(run.dtype), seed=run.seed, pace=pace)
        stage = NumpyStage([block], group.exit, oracle)
        oracles.extend([oracle] if oracle else [])
        for name in built:
            downstream[name].append((node.name, stage))
        built[node.name] = stage
        return stage

    return build


@each("length", [2, 3, 4])
def test_synthetic_with_a_perfect_generator_is_backpropagation(length: int) -> None:
    """Reading is so slow that every stage has updated before the next batch comes."""
    design = networks.design(networks.chain(length), SYNTHETIC, run={"epochs": 4})
    oracles: list[Oracle] = []
    result = simulate(
        design,
        seed=6,
        costs=Costs(read_us=100_000.0, jitter=0.5),
        maths=True,
        stages=with_oracles(design, oracles),
    )
    assert_same_bits(result, reference(design))
    assert len(oracles) == length - 1
    assert all(oracle.differences for oracle in oracles)


def test_synthetic_without_waiting_is_not_backpropagation() -> None:
    """The control: the same perfect generators, but batches follow each other closely."""
    design = networks.design(networks.chain(3), SYNTHETIC, run={"epochs": 4})
    result = simulate(design, seed=6, maths=True, stages=with_oracles(design, []))
    expected = reference(design)
    assert not np.array_equal(result.weights["s0"]["0.weight"], expected["s0"]["0.weight"])


LEARNING = {
    "data": {"examples": 200, "test_examples": 100, "batch_size": 10},
    "optimizer": {"name": "adam", "learning_rate": 0.01},
    "run": {"epochs": 20, "evaluate_every": 20.0},
}


@functools.cache
def loss_with_zero_gradients() -> float:
    """The control: only the last stage learns."""
    schedule = {"name": "synthetic", "generator": {"kind": "zero"}}
    design = networks.design(networks.chain(3), schedule, **LEARNING)
    return float(simulate(design, seed=7, maths=True, check=False, **SHAKEN).history[-1]["loss"])


WAYS: list[dict[str, Any]] = [
    {},
    {"correct": True},
    {"target": "bootstrap"},
    {"name": "local_loss"},
    {"name": "delayed"},
]
MORE_WAYS: list[dict[str, Any]] = [
    {"fit_every": 2},
    {"correct": True, "fit_every": 3},
    {"target": "bootstrap", "fit_every": 2},
    {"target": "half"},
    {"mix": 0.5},
    {"update_probability": 0.5},
    {"synthetic_inputs": True},
    {"guard": {"window": 8}},
    {"name": "local_loss", "replay": 4, "head": {"hidden": [8]}},
    {"name": "delayed", "weights": "current", "look_ahead": 1.0, "anneal_epochs": 3.0},
]


@pytest.mark.parametrize(
    "ways", [WAYS, pytest.param(MORE_WAYS, marks=pytest.mark.long)], ids=["few", "others"]
)
def test_every_way_of_unlocking_learns(ways: list[dict[str, Any]]) -> None:
    for options in ways:
        with case(options=options):
            design = networks.design(
                networks.chain(3), {"name": "synthetic", **options}, **LEARNING
            )
            result = simulate(design, seed=7, maths=True, check=False, **SHAKEN)
            assert isinstance(result.end, Finish)
            assert result.history[-1]["loss"] < 0.8 * loss_with_zero_gradients()


# --- buffers -------------------------------------------------------------------------------------


class Copying:
    """A stage that never uses an array twice for what it sends."""

    def __init__(self, stage: NumpyStage) -> None:
        self._stage = stage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def forward(self, batch: int, inputs: Any, context: Any) -> Forwarded:
        result = self._stage.forward(batch, inputs, context)
        activation = None if result.activation is None else result.activation.copy()
        return Forwarded(activation, result.scores)

    def backward(self, *args: Any, **options: Any) -> dict[str, dict[str, Any]]:
        sent = self._stage.backward(*args, **options)
        return {to: {name: g.copy() for name, g in own.items()} for to, own in sent.items()}


@each("stages", [networks.chain(4), networks.fork(), networks.several_readers()])
@each("correct", [False, True])
def test_buffers_are_left_alone_until_the_receiver_has_them(stages: Any, correct: bool) -> None:
    """Slow links: many batches are on their way while others are computed. Tensors are read on
    arrival, so a stage that wrote into a buffer too early would change what is learned."""
    schedule = {**SYNTHETIC, "correct": correct}
    design = networks.design(stages, schedule, run={"epochs": 8, "evaluate_every": 4.0})
    conditions = {"costs": Costs(jitter=0.9), "links": Links(latency_us=3000.0, jitter=0.9)}
    plain = simulate(design, seed=8, maths=True, **conditions)

    def copying(design: Design, group: Group) -> Any:
        return Copying(make_stage(design, group))

    copied = simulate(design, seed=8, maths=True, stages=copying, **conditions)
    assert isinstance(plain.end, Finish)
    assert plain.digest == copied.digest
