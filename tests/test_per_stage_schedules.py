"""Stages with a schedule of their own: decoupled at one boundary, locked inside groups."""

from __future__ import annotations

from typing import Any

import networks
import numpy as np
import pytest
from accumulation import accumulated, bits
from each import each
from test_fit_every import Fixed

from asyncdni.core.events import Finish
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.messages import Gradient
from asyncdni.plan import build as models
from asyncdni.plan.build import Design

SHAKEN: dict[str, Any] = {"costs": Costs(jitter=0.9), "links": Links(latency_us=500.0, jitter=1.0)}


def locked(stages: networks.Tables, *names: str) -> networks.Tables:
    """The same stages, those named locked to their consumers."""
    return [
        {**stage, "schedule": {"name": "locked"}} if stage["name"] in names else stage
        for stage in stages
    ]


def run(
    stages: networks.Tables, schedule: dict[str, Any], seed: int = 0, **more: Any
) -> tuple[Design, Result]:
    settings = {"epochs": 4, **more.pop("run", {})}
    design = networks.design(stages, schedule, run=settings)
    result = simulate(design, seed=seed, maths=True, **{**SHAKEN, **more})
    assert isinstance(result.end, Finish)
    return design, result


#: A chain of five in two groups, and what is fused where the workers are the groups.
GROUPED = locked(networks.chain(5, norm=True), "s0", "s1", "s3")
FUSED = networks.chain(5, norm=True), [3, 2]


@pytest.mark.parametrize("seed", range(4))
def test_groups_locked_inside_are_fused_stages_to_the_last_bit(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a generator that does not learn, under any timing: what each group learns from does
    not depend on when a gradient comes back."""
    monkeypatch.setattr(models, "make_generator", lambda kind, **options: Fixed())
    for target in ("true", "bootstrap"):
        schedule = {"name": "synthetic", "target": target}
        grouped = run(GROUPED, schedule, seed)[1]
        stages, split = FUSED
        fused = run(stages, schedule, seed, run={"split": split})[1]
        assert bits(grouped.weights) == bits(fused.weights)


@each("options", [{}, {"fit_every": 2}, {"target": "bootstrap"}])
def test_they_are_with_generators_that_learn_where_each_batch_is_over_before_the_next(
    options: dict[str, Any],
) -> None:
    slow = {"costs": Costs(read_us=200_000.0)}
    schedule = {"name": "synthetic", "generator": {"kind": "linear"}, **options}
    grouped = run(GROUPED, schedule, **slow)[1]
    stages, split = FUSED
    fused = run(stages, schedule, run={"split": split}, **slow)[1]
    assert bits(grouped.weights) == bits(fused.weights)
    assert not np.array_equal(
        grouped.weights["s0"]["0.weight"],
        run(stages, schedule, **slow)[1].weights["s0"]["0.weight"],
    )


@each("seed", range(4))
def test_so_are_groups_that_end_in_a_local_head(seed: int) -> None:
    """Heads learn from the forward alone: equal under any timing."""
    schedule = {"name": "local_loss"}
    stages, split = FUSED
    grouped = run(GROUPED, schedule, seed)[1]
    fused = run(stages, schedule, seed, run={"split": split})[1]
    assert bits(grouped.weights) == bits(fused.weights)


@each(
    "stages",
    [
        locked(networks.chain(4), "s0", "s1", "s2"),
        locked(networks.fork(), "root", "a", "b", "c"),
        locked(networks.fork("sum"), "root", "a", "b", "c", "top"),
        locked(networks.diamond(), "root", "long"),
    ],
)
@each("name", ["synthetic", "local_loss"])
def test_a_network_that_is_locked_throughout_is_backpropagation(
    stages: networks.Tables, name: str
) -> None:
    design, result = run(stages, {"name": name})
    assert bits(result.weights) == accumulated(design)


def test_a_fork_may_be_locked_to_consumers_that_learn_from_their_own_predictions() -> None:
    """The root learns from the sum of what its three consumers learn from."""
    stages = locked(networks.fork(), "root")
    sent: dict[int, set[str]] = {}

    def watch(sender: str, to: str, message: object) -> bool:
        if isinstance(message, Gradient) and to == "root":
            sent.setdefault(message.batch, set()).add(sender)
        return False

    design, result = run(stages, {"name": "synthetic"}, lose=watch)
    assert sent == {batch: {"a", "b", "c"} for batch in range(design.plan.batches)}
    letters = {letter for letter, *_ in result.ops["root"]}
    assert letters == set("RFBUE") - {"E"}
    assert "b" not in {letter for letter, *_ in result.ops["a"]}  # sent at once, not relayed


def test_a_locked_stage_has_one_batch_in_flight_and_its_generator_is_not_built() -> None:
    design, result = run(locked(networks.chain(4), "s1"), {"name": "synthetic"})
    ops = [letter for letter, *_ in result.ops["s1"]]
    assert "".join(ops) == "FbWU" * design.plan.batches
    assert "P" in {letter for letter, *_ in result.ops["s0"]}


def test_gradients_above_a_locked_stage_go_up_as_often_as_the_run_asks() -> None:
    """Stage s1 has a gradient of each batch, and s0, which is decoupled, wants every third."""
    up: list[int] = []

    def watch(sender: str, to: str, message: object) -> bool:
        up.extend([message.batch] if isinstance(message, Gradient) and to == "s0" else [])
        return False

    stages = locked(networks.chain(4), "s1")
    design, _ = run(stages, {"name": "synthetic", "fit_every": 3}, lose=watch)
    assert up == list(range(0, design.plan.batches, 3))


def test_under_local_loss_nothing_goes_up_from_a_locked_stage_to_one_that_is_not() -> None:
    up: list[str] = []

    def watch(sender: str, to: str, message: object) -> bool:
        up.extend([to] if isinstance(message, Gradient) else [])
        return False

    run(locked(networks.chain(4), "s1"), {"name": "local_loss"}, lose=watch)
    assert set(up) == {"s1"}


def test_a_stage_may_have_another_generator_than_the_rest() -> None:
    stages = networks.chain(3)
    stages[0]["schedule"] = {"generator": {"kind": "zero"}}
    design, result = run(stages, {"name": "synthetic", "generator": {"kind": "linear"}})
    initial = networks.design(stages, {"name": "synthetic"}, run={"epochs": 0})
    start = simulate(initial, seed=0, maths=True).weights
    assert np.array_equal(result.weights["s0"]["0.weight"], start["s0"]["0.weight"])
    assert not np.array_equal(result.weights["s1"]["0.weight"], start["s1"]["0.weight"])
    assert design.plan.batches == result.counters["s0"]["updates"]
