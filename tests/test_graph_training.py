"""Any graph trains: workers of random graphs give what one process gives, to the last bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from each import each
from random_graphs import Draw, draw_design, draw_maps, draw_windows, images, letters
from random_runs import DrawnRun, assert_complete
from single_process import train

from asyncdni.core.events import Finish
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.plan.build import Design

SHAKEN = {"costs": Costs(jitter=0.9), "links": Links(jitter=1.0)}
SEEDS = range(20)
OPTIMIZERS: list[dict[str, Any]] = [
    {"name": "adam", "learning_rate": 0.01},
    {"name": "sgd", "learning_rate": 0.002, "momentum": 0.9},
]


def assert_same_bits(design: Design, seed: int) -> None:
    result = simulate(design, seed=seed, maths=True, codec=seed % 2 == 0, **SHAKEN)
    assert isinstance(result.end, Finish), result.end
    expected = train(design)
    assert result.weights.keys() == expected.keys()
    for stage, arrays in expected.items():
        assert result.weights[stage].keys() == arrays.keys()
        for name, array in arrays.items():
            assert result.weights[stage][name].tobytes() == array.tobytes(), (seed, stage, name)


def drawn(seed: int, draw: Draw, data: dict[str, Any], **more: Any) -> Design:
    source = random.Random(seed)
    optimizer = source.choice(OPTIMIZERS)
    return draw_design(source, draw, data, run={"epochs": 2}, optimizer=optimizer, **more)


@each("seed", SEEDS)
def test_a_graph_of_feature_maps_and_vectors_trains_as_in_one_process(
    seed: int, tmp_path: Path
) -> None:
    """The last of three batches is smaller."""
    assert_same_bits(drawn(seed, draw_maps, images(tmp_path, 11)), seed)


@each("seed", SEEDS)
def test_a_graph_of_windows_trains_as_in_one_process(seed: int, tmp_path: Path) -> None:
    """Three windows an epoch, whose states are carried on."""
    assert_same_bits(drawn(seed, draw_windows, letters(tmp_path, 3)), seed)


def traits(design: Design) -> set[str]:
    """What is special about a graph, and the names of its layers."""
    nodes, groups = design.network.nodes, design.plan.groups
    place = {group.name: group.index for group in groups}
    joins = [(node.join, len(node.joined_shape)) for node in nodes if len(node.inputs) > 1]
    found = {f"{join} of {rank} axes" for join, rank in joins}
    found |= {next(iter(spec)) if isinstance(spec, dict) else spec
              for node in nodes for spec in node.layers}  # fmt: skip
    special = {
        "fan-out": any(len(node.consumers) > 1 for node in nodes),
        "several losses": sum(node.loss is not None for node in nodes) > 1,
        "a loss on the way": any(node.loss and node.consumers for node in nodes),
        "workers passed by": any(
            place[other] > group.index + 1 for group in groups for other in group.consumers
        ),
    }
    return found | {trait for trait, holds in special.items() if holds}


def test_the_graphs_drawn_have_all_that_graphs_can_have(tmp_path: Path) -> None:
    common = {"fan-out", "several losses", "a loss on the way", "workers passed by"}
    common |= {"dense", "layer_norm", "dropout", "tanh", "sum of 2 axes", "concat of 2 axes"}
    maps = {"conv2d", "batch_norm", "max_pool", "flatten", "reshape", "relu", "gaussian"}
    maps |= {f"{join} of {rank} axes" for join in ("sum", "concat") for rank in (1, 3)}
    for draw, data, own in (
        (draw_maps, images(tmp_path, 11), common - {"sum of 2 axes", "concat of 2 axes"} | maps),
        (draw_windows, letters(tmp_path, 3), common | {"embedding", "lstm", "rnn"}),
    ):
        found = set().union(*(traits(drawn(seed, draw, data)) for seed in SEEDS))
        assert own - found == set()


UNLOCKED: list[dict[str, Any]] = [
    {"name": "synthetic"},
    {"name": "synthetic", "generator": {"kind": "linear"}, "fit_every": 2},
    {"name": "synthetic", "target": "bootstrap"},
    {"name": "synthetic", "correct": True},
    {"name": "local_loss"},
    {"name": "delayed"},
]


@each("schedule", UNLOCKED)
@each("seed", range(3))
def test_unlocked_a_graph_trains_as_well(
    seed: int, schedule: dict[str, Any], tmp_path: Path
) -> None:
    """Generators of feature maps, vectors and steps at the exits of workers."""
    data = (draw_maps, images(tmp_path, 11)), (draw_windows, letters(tmp_path, 3))
    for draw, one in data:
        design = drawn(seed, draw, one, schedule=schedule)
        result = simulate(design, seed=seed, maths=True, **SHAKEN)
        assert_complete(DrawnRun(design, SHAKEN["costs"], SHAKEN["links"]), result)
