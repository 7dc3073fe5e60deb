"""Complete unlock: stages forward before their producers have, and learn their inputs later."""

from __future__ import annotations

from typing import Any

import networks
import numpy as np
import pytest
from each import each
from pair import Bench, fed_chain
from random_runs import skip_connections

from asyncdni.core.events import Finish
from asyncdni.data import load
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.messages import DATA, Activation, Drained
from asyncdni.plan.build import Design, make_stage, make_whole_stage
from asyncdni.plan.plan import Group
from asyncdni.schedules.synthetic import Synthetic

SCHEDULE = {"name": "synthetic", "synthetic_inputs": True}
NETWORKS = {
    "chain": networks.chain(4),
    "fork": networks.fork(),
    "two losses": networks.diamond(),
    "skip connections": skip_connections(),
    "several readers": networks.several_readers(),
}


def run(
    tables: networks.Tables, options: dict[str, Any] | None = None, **more: Any
) -> tuple[Design, Result]:
    design = networks.design(
        tables,
        {**SCHEDULE, **(options or {})},
        run={"epochs": 4, "evaluate_every": more.pop("evaluate_every", 1.0)},
        limits=more.pop("limits", {}),
    )
    result = simulate(design, **{"seed": 0, "maths": True, **more})
    assert isinstance(result.end, Finish)
    return design, result


def started(result: Result, name: str) -> dict[int, float]:
    return {batch: start for letter, batch, start, _ in result.ops[name] if letter == "F"}


def finished(result: Result, name: str) -> dict[int, float]:
    return {batch: end for letter, batch, _, end in result.ops[name] if letter == "F"}


def test_a_stage_does_not_wait_for_the_activation_of_the_one_before() -> None:
    """`s1` is ten times as slow as `top`, which is done with batches that `s1` has not begun."""
    costs = Costs(scale={"s1": 10.0})
    _, result = run(networks.chain(3), costs=costs, links=Links(jitter=0.5))
    begun, over = started(result, "s1"), finished(result, "top")
    assert sum(over[batch] < begun[batch] for batch in begun) > 10
    _, usual = run(networks.chain(3), {"synthetic_inputs": False}, costs=costs)
    begun, over = started(usual, "s1"), finished(usual, "top")
    assert not any(over[batch] < begun[batch] for batch in begun)


def test_a_link_that_takes_long_holds_no_forward_up() -> None:
    """The top has forwarded everything before the first activation gets through to it."""
    links = Links(latency_us=1.0, between={("s1", "top"): 500_000.0})
    _, result = run(
        networks.chain(3),
        evaluate_every=4.0,
        links=links,
        limits={"window": 256},
    )
    letters = [letter for letter, *_ in result.ops["top"]]
    assert "F" not in letters[letters.index("S") :]


@each("stages", NETWORKS.values())
@each("options", [{}, {"fit_every": 2}, {"update_probability": 0.5}])
def test_the_input_model_learns_from_every_activation_once_and_in_order(
    stages: networks.Tables, options: dict[str, Any]
) -> None:
    design, result = run(
        stages, options, costs=Costs(jitter=0.9), links=Links(latency_us=800.0, jitter=0.9)
    )
    batches = list(range(design.plan.batches))
    for group in design.plan.groups:
        ops = [op[:2] for op in result.ops[group.name]]
        assert [batch for letter, batch in ops if letter == "F"] == batches
        fits = [batch for letter, batch in ops if letter == "S"]
        assert fits == (batches if group.synthetic_inputs else [])
    assert any(group.synthetic_inputs for group in design.plan.groups)


def test_a_stage_of_data_alone_predicts_nothing() -> None:
    design, _ = run(networks.several_readers())
    assert [group.synthetic_inputs for group in design.plan.groups] == [False, False, True]


class Spy:
    """A stage that keeps what it is given to forward and to fit its inputs to."""

    def __init__(self, stage: Any) -> None:
        self._stage = stage
        self.forwarded: list[dict[str, Any]] = []
        self.fitted: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def forward(self, batch: int, inputs: Any, context: Any) -> Any:
        self.forwarded.append({name: array.copy() for name, array in inputs.items()})
        return self._stage.forward(batch, inputs, context)

    def fit_input(self, inputs: Any, context: Any) -> None:
        self.fitted.append({name: array.copy() for name, array in inputs.items()})
        self._stage.fit_input(inputs, context)


def test_it_is_fitted_to_the_true_activation_and_the_data_of_one_batch() -> None:
    spies: dict[str, Spy] = {}

    def spying(design: Design, group: Group) -> Any:
        spies[group.name] = Spy(make_stage(design, group))
        return spies[group.name]

    design, _ = run(networks.chain(3), stages=spying, costs=Costs(jitter=0.9))
    run_options, data = design.experiment.run, design.experiment.data
    dataset = load(data, run_options.seed)
    for name in ("s1", "top"):
        for batch, (given, learned) in enumerate(
            zip(spies[name].forwarded, spies[name].fitted, strict=True)
        ):
            epoch, index = divmod(batch, design.plan.batches_per_epoch)
            x, _ = dataset.batch(
                epoch, index, data.batch_size, run_options.seed, np.dtype("float32")
            )
            assert list(given) == [DATA]
            assert np.array_equal(given[DATA], x) and np.array_equal(learned[DATA], x)
            (producer,) = set(learned) - {DATA}
            assert producer == {"s1": "s0", "top": "s1"}[name]
            assert learned[producer].shape == (len(x), networks.WIDTH)
            assert (learned[producer] >= 0).all()  # after a relu


@each("stages", NETWORKS.values())
def test_tests_go_through_true_activations(stages: networks.Tables) -> None:
    """The last loss is that of the last weights in one process."""
    design, result = run(stages, costs=Costs(jitter=0.5))
    whole = make_whole_stage(design)
    whole.load(result.weights)
    data = load(design.experiment.data, design.experiment.run.seed)
    x = np.asarray(data.x_test, np.float32)
    scores = whole.evaluate({DATA: x}, {"y": np.asarray(data.y_test, np.float32)}).scores
    loss = sum(score.loss / score.samples for score in scores)
    assert result.history[-1]["loss"] == pytest.approx(loss, rel=1e-5)


def test_data_travel_to_all_in_training_and_to_readers_alone_in_tests() -> None:
    bench = Bench(fed_chain(3, barriers=(2,), test_batches=2), Synthetic()).train()
    sent = [m for m in bench.messages(Activation, "stage 0") if isinstance(m, Activation)]
    assert len([m for m in sent if m.sender == DATA]) == 4  # two batches to two stages
    assert len(bench.messages(Drained)) == 3
    assert not [m for m in sent if m.evaluate]


def test_windows_hold_for_data_and_activations_apart() -> None:
    """With one of each on its way at a time all goes on."""
    design, result = run(networks.chain(4), limits={"window": 1}, links=Links(latency_us=500.0))
    assert all(own["batches"] == design.plan.batches for own in result.counters.values())
