"""delayed: true gradients late, through the weights of the forward or today's; equal to what it
must equal, and to a reference of its own."""

from __future__ import annotations

import weakref
from typing import Any

import msgspec
import networks
import numpy as np
import pytest
from accumulation import Bits, accumulated, bits
from each import each
from random_runs import skip_connections

from asyncdni import config
from asyncdni.core.events import Finish
from asyncdni.data import load
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.messages import DATA
from asyncdni.nn.base import Array
from asyncdni.plan.build import Design, make_design, make_stage
from asyncdni.plan.rules import is_repeatable
from asyncdni.schedules.base import Source
from asyncdni.stages.numpy.block import Block
from asyncdni.stages.numpy.stage import NumpyStage
from asyncdni.stages.numpy.versions import DoubleBuffer

SHAKEN: dict[str, Any] = {"costs": Costs(jitter=0.9), "links": Links(jitter=1.0)}
NETWORKS: dict[str, tuple[networks.Tables, list[int] | None]] = {
    "chain": (networks.chain(4, norm=True), None),
    "fused": (networks.chain(5), [1, 3, 1]),
    "fork": (networks.fork(), None),
    "two losses": (networks.diamond(), None),
    "skip connections": (skip_connections(), None),
    "several readers": (networks.several_readers(), None),
}
each_network = each("stages, split", list(NETWORKS.values()))


def run(
    stages: networks.Tables, schedule: dict[str, Any], seed: int = 1, **more: Any
) -> tuple[Design, Result]:
    tables = {key: more.pop(key) for key in ("run", "optimizer", "staleness") if key in more}
    design = networks.design(stages, schedule, **{"run": {"epochs": 4}, **tables})
    result = simulate(design, seed=seed, maths=True, **{**SHAKEN, **more})
    assert isinstance(result.end, Finish)
    return design, result


# --- what it must equal --------------------------------------------------------------------------


@each_network
@each("options", [{}, {"weights": "current"}, {"split_backward": False}, {"anneal_epochs": 2.0}])
def test_with_one_batch_in_flight_it_is_locked(
    stages: networks.Tables, split: list[int] | None, options: dict[str, Any]
) -> None:
    """To the last bit, and so backpropagation in one process. (Nothing is stale, so no learning
    rate is lowered.)"""
    one = {"run": {"epochs": 3, "split": split}, "staleness": {"lag": 0}}
    design, result = run(stages, {"name": "delayed", **options}, **one)
    assert bits(result.weights) == accumulated(design)
    assert {own["staleness_max"] for own in result.counters.values()} == {0}


@pytest.mark.long
@each_network
@each("lag", [None, 1, 5])
def test_a_mix_of_true_gradients_alone_is_delayed(
    stages: networks.Tables, split: list[int] | None, lag: int | None
) -> None:
    """The same ops at the same times, and the same weights to the last bit."""
    more = {"run": {"epochs": 3, "split": split}, "staleness": {} if lag is None else {"lag": lag}}
    current = {"name": "delayed", "weights": "current", "split_backward": False}
    expected = run(stages, current, **more)[1]
    found = run(stages, {"name": "synthetic", "mix": 1.0}, **more)[1]
    assert found.ops == expected.ops
    assert bits(found.weights) == bits(expected.weights)
    stale = [own["staleness_max"] or 0 for own in expected.counters.values()]
    assert max(stale) > 0


def test_late_gradients_are_not_backpropagation() -> None:
    """The control of the first test."""
    design, result = run(networks.chain(4), {"name": "delayed"})
    assert bits(result.weights) != accumulated(design)


def test_stashed_and_current_weights_are_two_rules() -> None:
    stashed = run(networks.chain(4), {"name": "delayed", "split_backward": False})[1]
    current = run(networks.chain(4), {"name": "delayed", "weights": "current"})[1]
    assert bits(stashed.weights) != bits(current.weights)


# --- its order -----------------------------------------------------------------------------------


@each_network
@each("lag", [None, 0, 3])
def test_each_gradient_is_applied_at_once_and_in_order(
    stages: networks.Tables, split: list[int] | None, lag: int | None
) -> None:
    for seed in range(2):
        design, result = run(
            stages,
            {"name": "delayed"},
            seed=seed,
            run={"epochs": 2, "split": split},
            staleness={} if lag is None else {"lag": lag},
        )
        for group in design.plan.groups:
            ops = [op[:2] for op in result.ops[group.name] if op[0] not in "RE"]
            batches = list(range(design.plan.batches))
            for letters in ("F", "bB", "WB", "U"):
                assert [batch for letter, batch in ops if letter in letters] == batches
            assert_updates_follow(ops)
            bound = group.depth if lag is None else lag
            assert most_ahead(ops) <= bound


def assert_updates_follow(ops: list[Any]) -> None:
    """b W U, or B U, without anything between."""
    for i, (letter, batch) in enumerate(ops):
        if letter == "b":
            assert ops[i + 1 : i + 3] == [("W", batch), ("U", batch)]
        elif letter == "B":
            assert ops[i + 1] == ("U", batch)


def most_ahead(ops: list[Any]) -> int:
    """Of a forward, ahead of the oldest batch that has not been pushed back."""
    back, most = 0, 0
    for letter, batch in ops:
        if letter == "F":
            most = max(most, batch - back)
        back += letter in "bB"
    return most


# --- a reference of its own ----------------------------------------------------------------------


class Stage:
    """x Wᵀ + c, then relu but for the last; gradient descent. Nothing of the package is in it."""

    def __init__(self, state: dict[str, Array], *, last: bool, stash: bool) -> None:
        self.weight, self.bias = state["0.weight"].copy(), state["0.bias"].copy()
        self._last, self._stash = last, stash
        self._kept: dict[int, tuple[Any, Any, Any]] = {}
        self._grads: tuple[Any, Any] = (0.0, 0.0)

    def forward(self, batch: int, x: Any) -> Any:
        z = x @ self.weight.T + self.bias
        self._kept[batch] = (x, z, self.weight.copy())
        return z if self._last else np.maximum(z, 0.0)

    def backward(self, batch: int, grad: Any) -> Any:
        x, z, weight = self._kept.pop(batch)
        grad = grad if self._last else grad * (z > 0)
        self._grads = (grad.T @ x / len(x), grad.sum(axis=0) / len(x))
        return grad @ (weight if self._stash else self.weight)

    def update(self, rate: float) -> None:
        self.weight = self.weight - rate * self._grads[0]
        self.bias = self.bias - rate * self._grads[1]


def replayed(design: Design, result: Result, start: Any, *, stash: bool) -> dict[str, Any]:
    """Weights after the forwards, backwards and updates of `result`, in their order in time."""
    names = [group.name for group in design.plan.groups]
    stages = {name: Stage(start[name], last=name == "top", stash=stash) for name in names}
    chosen, plan = design.experiment, design.plan
    dataset = load(chosen.data, chosen.run.seed)
    moments = sorted(
        (began, names.index(name), letter, batch)
        for name in names
        for letter, batch, began, _ in result.ops[name]
        if letter in "FBU"
    )
    down: dict[tuple[int, int], Any] = {}
    up: dict[tuple[int, int], Any] = {}
    for _, index, letter, batch in moments:
        stage = stages[names[index]]
        epoch, number = divmod(batch, plan.batches_per_epoch)
        x, y = dataset.batch(
            epoch, number, chosen.data.batch_size, chosen.run.seed, np.dtype("float64")
        )
        if letter == "F":
            out = down[index, batch] = stage.forward(batch, down[index - 1, batch] if index else x)
            if index == len(names) - 1:
                up[index, batch] = 1.0 / (1.0 + np.exp(-out)) - y
        elif letter == "B":
            up[index - 1, batch] = stage.backward(batch, up[index, batch])
        else:
            stage.update(chosen.optimizer.learning_rate)
    return {
        name: {"0.weight": stage.weight, "0.bias": stage.bias} for name, stage in stages.items()
    }


@each("weights", ["stash", "current"])
@each("seed", range(3))
def test_it_is_pipedream_by_the_book(weights: str, seed: int) -> None:
    """Every gradient is that of its batch's own weights, and is taken off today's."""
    design, result = run(
        networks.chain(4),
        {"name": "delayed", "weights": weights, "split_backward": False},
        seed=seed,
        run={"epochs": 6, "dtype": "float64"},
        optimizer={"name": "sgd", "learning_rate": 0.5},
    )
    initial = networks.design(
        networks.chain(4), {"name": "locked"}, run={"epochs": 0, "dtype": "float64"}
    )
    start = simulate(initial, seed=0, maths=True).weights
    expected = replayed(design, result, start, stash=weights == "stash")
    for name, own in expected.items():
        for key, array in own.items():
            np.testing.assert_allclose(result.weights[name][key], array, rtol=1e-9, atol=1e-12)
    stale = [result.counters[name]["staleness_max"] for name in expected]
    assert stale[0] and stale[0] >= 2


# --- several batches an update -------------------------------------------------------------------


def in_one_process(design: Design, *, double: bool = False) -> Bits:
    """Gradients of the batches of an update summed, divided by their samples, taken off the weights
    at the update's rate. With `double`, they are those of the weights before the last update:
    W(t+1) = W(t) - rate * gradient(W(t-1)), where W(-1) = W(0)."""
    chosen, plan = design.experiment, design.plan
    dataset, size = load(chosen.data, chosen.run.seed), chosen.data.batch_size
    now = alone(design)
    before = alone(design) if double else now
    for epoch in range(chosen.run.epochs):
        batches = range(epoch * plan.batches_per_epoch, (epoch + 1) * plan.batches_per_epoch)
        for first in batches[:: plan.per_update]:
            group, samples = range(first, min(first + plan.per_update, batches.stop)), 0
            for batch in group:
                where = epoch, batch - batches.start
                x, y = dataset.batch(*where, size, chosen.run.seed, np.dtype("float32"))
                before.forward(batch, {DATA: x}, {"y": y})
                before.backward(batch, {}, source=Source.TRUE, learn=True, send=False)
                before.release(batch, lambda: True)
                samples += len(x)
            gradients = [block.gradient.copy() for block in before._blocks.values()]
            before.forget()
            before.load(now.state())
            for block, gradient in zip(now._blocks.values(), gradients, strict=True):
                block.update_on(gradient, samples, batch=group[-1])
    return bits(now.state())


def alone(design: Design) -> NumpyStage:
    """All stages as one, whose weights are the present ones and no others."""
    chosen = design.experiment
    run = msgspec.structs.replace(chosen.run, split=[len(chosen.stages)])
    schedule = msgspec.structs.replace(chosen.schedule, weights="current")
    tables: dict[str, Any] = {"staleness": config.Staleness(), "run": run, "schedule": schedule}
    one = make_design(msgspec.structs.replace(chosen, **tables), design.meta)
    return make_stage(one, one.plan.groups[0])


@each("stages", range(2, 7))
@each("accumulate", [1, 2, 3, 4])
def test_a_batch_crosses_at_most_so_many_updates(stages: int, accumulate: int) -> None:
    """PACI's bound, ceil((N - 1) / a), which is also reached; stage i of N is N - 1 - i ahead."""
    design = networks.design(
        networks.chain(stages),
        {"name": "delayed", "accumulate": accumulate},
        data={"batch_size": 1, "examples": 24},
        run={"epochs": 2, "evaluate_every": 2},
    )
    assert design.plan.batches_per_epoch % accumulate == 0
    result = simulate(design, seed=0, maths=False)
    assert isinstance(result.end, Finish)
    for group in design.plan.groups:
        crossed = result.counters[group.name]["staleness_max"]
        assert crossed == -(-group.depth // accumulate)
        assert result.counters[group.name]["updates"] == design.plan.batches // accumulate


@each_network
@each("weights", ["stash", "current"])
def test_accumulation_with_one_batch_in_flight_is_that_of_one_process(
    stages: networks.Tables, split: list[int] | None, weights: str
) -> None:
    """To the last bit: one update for all samples of its batches, at the rate of the update. An
    epoch has 5 batches, and so 3 updates."""
    tables: dict[str, Any] = {
        "optimizer": {"decay": {"name": "cosine", "warmup_epochs": 0.5}},
        "staleness": {"lag": 0},
    }
    schedule = {"name": "delayed", "accumulate": 2, "weights": weights}
    design, result = run(stages, schedule, run={"epochs": 3, "split": split}, **tables)
    assert (design.plan.batches_per_epoch, design.plan.updates_per_epoch) == (5, 3)
    assert bits(result.weights) == in_one_process(design)


# --- the double buffer ---------------------------------------------------------------------------


DOUBLE = {"name": "delayed", "weights": "double", "accumulate": 3}


@each("seed", range(2))
@each(
    "stages, split",
    [(networks.chain(4), None), (networks.chain(4), [4]), (networks.diamond(), None)],
)
@each("optimizer", [{"name": "sgd", "learning_rate": 0.5}, {"decay": {"name": "cosine"}}])
def test_double_is_the_recurrence_of_2bw_whatever_the_timing_and_the_split(
    stages: networks.Tables, split: list[int] | None, optimizer: dict[str, Any], seed: int
) -> None:
    """To the last bit, also where tests drain the pipeline between two updates."""
    setting = {"epochs": 3, "split": split, "evaluate_every": 0.7}
    design, result = run(stages, DOUBLE, seed=seed, run=setting, optimizer=optimizer)
    assert is_repeatable(design.experiment, design.plan)
    assert bits(result.weights) == in_one_process(design, double=True)
    assert bits(result.weights) != in_one_process(design)


def test_double_begins_with_the_weights_that_a_stage_loads() -> None:
    design = networks.design(networks.chain(1), DOUBLE)
    stage, other = make_stage(design, design.plan.groups[0]), alone(design)
    given = {"top": {name: array + 1 for name, array in stage.state()["top"].items()}}
    scores = []
    for one in (stage, other):
        one.load(given)
        x, y = np.ones((3, 2 * networks.BITS), np.float32), np.ones((3, networks.BITS), np.float32)
        scores.append(one.forward(0, {DATA: x}, {"y": y}).scores)
    assert scores[0] == scores[1]


def test_double_keeps_two_versions_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The present weights, and one vector more that is made once. Where each batch makes an update,
    stashing keeps more copies than that."""
    assert most_kept({"name": "delayed"}, monkeypatch)["s0"] > 1
    made: list[Any] = []
    start = DoubleBuffer.__init__

    def noted(self: Any, *args: Any, **options: Any) -> None:
        start(self, *args, **options)
        made.append((self, self._last))

    monkeypatch.setattr(DoubleBuffer, "__init__", noted)
    assert most_kept(DOUBLE, monkeypatch) == dict.fromkeys(("s0", "s1", "s2", "top"), 0)
    assert len(made) == 4 and all(own._last is vector for own, vector in made)


def most_kept(schedule: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many copies of its weights each stage of four has made that are alive at a time."""
    alive: dict[str, Any] = {}
    most: dict[str, int] = {}
    keep = Block._keep_weights

    def counted(self: Any) -> None:
        keep(self)
        name, vector = self.node.name, self.versions._current.vector
        copies = alive.setdefault(name, [])
        copies += [] if vector is None else [weakref.ref(vector)]
        alive[name] = [one for one in copies if one() is not None]
        most[name] = max(most.get(name, 0), len(alive[name]))

    with monkeypatch.context() as patch:
        patch.setattr(Block, "_keep_weights", counted)
        run(networks.chain(4), schedule)
    return most
