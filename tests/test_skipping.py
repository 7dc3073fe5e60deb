"""on_full = "skip": who is out of credit learns on, all are told, and every id is accounted for."""

from __future__ import annotations

from typing import Any

import networks
import numpy as np
import pytest
from each import each
from hand import FORK, LAST, MIDDLE, Hand, activation, sends
from random_runs import skip_connections

from asyncdni.core.events import Compute, Finish, Release
from asyncdni.core.position import FINAL
from asyncdni.data import load
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.messages import DATA, Activation, Barrier, Credit, Drained, Gradient, Skipped, Start
from asyncdni.plan.build import Design, make_whole_stage

NETWORKS = {
    "chain": networks.chain(4),
    "fork": networks.fork(),
    "two losses": networks.diamond(),
    "skip connections": skip_connections(),
    "several readers": networks.several_readers(),
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "synthetic": {"name": "synthetic"},
    "synthetic inputs": {"name": "synthetic", "synthetic_inputs": True},
    "correct": {"name": "synthetic", "correct": True, "fit_every": 2},
    "bootstrap": {"name": "synthetic", "target": "bootstrap"},
    "local_loss": {"name": "local_loss", "replay": 2},
}


# --- one worker ----------------------------------------------------------------------------------


def test_without_credit_it_forwards_learns_and_sends_word_instead() -> None:
    hand = Hand(MIDDLE, window=1, skips=True)
    hand(Start())
    hand(activation(0))
    hand.finish_until("U0")
    hand(activation(1))
    assert str(hand.op) == "F1"
    sent = sends(hand.finish({"h": "h"}))
    assert sent == [("c", Skipped("m", 7, 1))]
    actions = hand.finish_until("U1")
    assert [a.batch for a in actions if isinstance(a, Release)] == [1]  # nothing comes back
    assert sends(actions) == [("p", Skipped("m", 7, 1))]
    counters = hand.worker.counters()
    assert (counters["batches"], counters["updates"], counters["skipped"]) == (2, 2, 1)


def test_of_two_consumers_the_one_with_credit_gets_the_activation() -> None:
    hand = Hand(FORK, window=1, skips=True)
    hand(Start())
    for batch in (0, 1):
        for node in "pq":
            hand(activation(batch, node))
        if batch == 0:
            hand.finish_until("U0")
            hand(Credit("d", 1, "f", taken=1, allowed=2))
    sent = sends(hand.finish({"h": "h"}))
    assert [(to, type(message)) for to, message in sent] == [("c", Skipped), ("d", Activation)]


def test_a_batch_that_a_producer_skips_is_passed_over_and_everyone_is_told() -> None:
    hand = Hand(FORK)
    hand(Start())
    assert hand(Skipped("p", 1, 0)) == []
    actions = hand(activation(0, "q"))
    skip = Skipped("f", 7, 0)
    told = [to for to, message in sends(actions) if message == skip]
    assert sorted(map(str, told)) == ["c", "d", "p", "q"]
    assert not [a for a in actions if isinstance(a, Compute)]
    assert hand.worker.counters()["missed"] == 1 and hand.worker.counts.batches == 0


def test_an_activation_that_came_in_vain_is_granted_again() -> None:
    hand = Hand(FORK, window=1)
    hand(Start())
    hand(Skipped("p", 1, 0))
    assert sends(hand(activation(0, "q")), Credit) == [("q", Credit("f", 7, "q", 1, 2))]


def test_a_gradient_of_a_batch_that_was_passed_over_is_dropped() -> None:
    hand = Hand(MIDDLE)
    hand(Start())
    hand(Skipped("p", 1, 0))
    assert hand(Gradient("c", 1, 0, {"c": "g"})) == []
    assert hand.worker.counts.late == 1


def test_missed_batches_count_as_passed_at_the_barrier() -> None:
    hand = Hand(LAST)
    hand(Start())
    hand(activation(0))
    hand.finish_until("U0")
    hand(Skipped("p", 1, 1))
    (drained,) = sends(hand(Barrier("p", 1, 0, FINAL)), Drained)
    assert drained[1] == Drained(7, 0, FINAL, 2)


def test_a_skipped_batch_does_not_use_up_credit() -> None:
    hand = Hand(MIDDLE, window=1, skips=True)
    hand(Start())
    kinds = []
    for batch in range(4):
        if batch == 3:
            hand(Credit("c", 1, "m", taken=1, allowed=2))
        hand(activation(batch))
        kinds += [type(message) for to, message in sends(hand.finish({"h": "h"})) if to == "c"]
        hand.finish_until(f"U{batch}")
    assert kinds == [Activation, Skipped, Skipped, Activation]


# --- whole runs ----------------------------------------------------------------------------------


def straggling(
    stages: networks.Tables, schedule: dict[str, Any], slow: str, *, seed: int = 0, **more: Any
) -> tuple[Design, Result]:
    """One stage takes eight times as long."""
    design = networks.design(
        stages,
        {**schedule, "on_full": more.pop("on_full", "skip")},
        run={"epochs": 6, "evaluate_every": 3.0},
        limits={"window": 2},
    )
    costs = Costs(jitter=0.3, scale={slow: 8.0})
    result = simulate(design, seed=seed, costs=costs, links=Links(jitter=0.9), **more)
    assert isinstance(result.end, Finish)
    return design, result


def learning_s(result: Result, name: str) -> float:
    """From the first op of a worker to the end of its last."""
    return result.ops[name][-1][3] - result.ops[name][0][2]


@pytest.mark.parametrize(
    "slow_ones",
    [slice(1, 2), pytest.param(slice(2, None), marks=pytest.mark.long)],
    ids=["second", "later"],
)
@each("schedule", SCHEDULES.values())
@each("stages", NETWORKS.values())
def test_every_batch_is_accounted_for_by_every_stage(
    stages: networks.Tables, schedule: dict[str, Any], slow_ones: slice
) -> None:
    for slow in [stage["name"] for stage in stages][slow_ones]:
        design, result = straggling(stages, schedule, slow, maths=False)
        for own in result.counters.values():
            assert (own["batches"] or 0) + (own["missed"] or 0) == design.plan.batches
            assert own["in_flight"] == own["queue"] == 0
        losses = [g.name for g in design.plan.groups if g.has_loss]
        shown = result.history[-1]["samples"]
        assert shown == min(result.counters[name]["samples"] or 0 for name in losses)


@pytest.mark.parametrize("schedule", ["synthetic", "local_loss"])
def test_stages_before_a_slow_one_learn_on_where_they_would_have_waited(schedule: str) -> None:
    times: dict[str, float] = {}
    for on_full in ("skip", "wait"):
        _, result = straggling(
            networks.chain(4), SCHEDULES[schedule], "s2", maths=False, on_full=on_full
        )
        times[on_full] = learning_s(result, "s1")
        updates = {name: own["updates"] or 0 for name, own in result.counters.items()}
        learned = {name: own["batches"] or 0 for name, own in result.counters.items()}
        assert updates["s0"] == learned["s0"] == 30  # all
        if on_full == "skip":
            assert learned["s2"] < 25 and (result.counters["s1"]["skipped"] or 0) > 5
            assert learned["top"] == learned["s2"]
        else:
            assert set(learned.values()) == {30}
    assert times["skip"] < 0.7 * times["wait"]


def test_a_join_does_not_wait_for_a_batch_that_one_branch_has_missed() -> None:
    """`b` is slow: the top learns from what has come through all three, and hears of the rest."""
    _, result = straggling(networks.fork(), SCHEDULES["synthetic"], "b", maths=False)
    counters = {name: own["batches"] or 0 for name, own in result.counters.items()}
    assert counters["root"] == counters["a"] == counters["c"] == 30
    assert 0 < counters["top"] <= counters["b"] < 30
    for name in ("b", "top"):
        assert result.counters[name]["missed"] == 30 - counters[name]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
def test_tests_see_one_set_of_weights_and_all_samples(schedule: dict[str, Any]) -> None:
    """The last accuracy and loss are those of the last weights in one process: no test batch is
    skipped, whatever the credit, and none goes through synthetic inputs."""
    design, result = straggling(networks.chain(3), schedule, "s1", maths=True)
    assert (result.counters["s1"]["missed"] or 0) > 0
    whole = make_whole_stage(design)
    whole.load(result.weights)
    data = load(design.experiment.data, design.experiment.run.seed)
    x, y = np.asarray(data.x_test, np.float32), data.y_test
    score = whole.evaluate({DATA: x}, {"y": np.asarray(y, np.float32)}).scores[0]
    last = result.history[-1]
    assert score.correct is not None
    assert last["accuracy"] == pytest.approx(score.correct / (score.samples * score.outputs))
    assert last["loss"] == pytest.approx(score.loss / score.samples, rel=1e-5)


def test_waiting_is_the_default_and_skips_nothing() -> None:
    design = networks.design(
        networks.chain(3), {"name": "synthetic"}, limits={"window": 1}, run={"epochs": 3}
    )
    result = simulate(design, seed=0, maths=False, costs=Costs(scale={"s1": 9.0}))
    for own in result.counters.values():
        assert own["skipped"] == own["missed"] == own["dropped"] == 0
        assert own["batches"] == design.plan.batches
