"""The real Worker and Coordinator, in virtual time."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import networks
import numpy as np
import pytest
from random_runs import draw_run

from asyncdni.core.events import Finish
from asyncdni.core.liveness import Standstill
from asyncdni.core.worker import Worker
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.errors import AsyncDNIError
from asyncdni.messages import Beat, Gradient, Hello
from asyncdni.plan.build import Design, make_stage
from asyncdni.plan.plan import Group
from asyncdni.store.tensors import load_stage

LOCKED = {"name": "locked"}
SYNTHETIC = {"name": "synthetic", "generator": {"kind": "linear"}}


def assert_complete(design: Design, result: Result) -> None:
    """Every worker has done every batch, and nothing is left over."""
    plan, epochs = design.plan, design.experiment.run.epochs
    assert isinstance(result.end, Finish), result.end
    for name, counters in result.counters.items():
        assert counters["batches"] == plan.batches, name
        assert counters["samples"] == epochs * design.meta.train_samples, name
        assert counters["in_flight"] == counters["queue"] == counters["dropped"] == 0, name
        assert counters["late"] == 0, name
        updates = counters["updates"]
        correct = getattr(design.experiment.schedule, "correct", False)
        assert updates >= plan.batches if correct else updates == plan.batches, name
    assert len(result.history) == len(plan.barriers)
    assert [h["samples"] for h in result.history] == sorted(h["samples"] for h in result.history)
    assert ("saved", "final") in [(kind, v.get("tag")) for kind, v in result.records]


def test_another_seed_is_another_run() -> None:
    design = networks.design(networks.chain(3), SYNTHETIC)
    costs = Costs(jitter=0.1)
    digests = {simulate(design, seed=s, costs=costs, maths=False).digest for s in range(8)}
    assert len(digests) == 8


def test_a_seed_replays_its_run_in_another_process() -> None:
    """Whatever the order of Python's sets."""
    code = "from random_runs import draw_run; print(draw_run(7).simulate(maths=True).digest)"
    environment = {**os.environ, "PYTHONHASHSEED": "1234"}
    environment["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), os.getcwd()])
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == draw_run(7).simulate(maths=True).digest


def test_data_reach_every_stage_that_reads_them() -> None:
    design = networks.design(networks.several_readers(), SYNTHETIC, run={"epochs": 3})
    result = simulate(design, seed=0, maths=True, links=Links(jitter=1.0))
    assert_complete(design, result)
    assert set(result.counters) == {"left", "right", "top"}


def test_gradients_of_several_consumers_arrive_in_any_order() -> None:
    orders: dict[int, list[str]] = {}

    def watch(sender: str, to: str, message: object) -> bool:
        if isinstance(message, Gradient) and to == "root":
            orders.setdefault(message.batch, []).append(sender)
        return False

    design = networks.design(networks.fork(), SYNTHETIC, run={"epochs": 8})
    costs = Costs(jitter=0.9)
    result = simulate(design, seed=3, costs=costs, maths=False, lose=watch)
    assert_complete(design, result)
    assert len({tuple(order) for order in orders.values()}) >= 4


def test_no_worker_without_a_batch_to_train_on_is_missing_from_the_evaluation() -> None:
    """No epochs: the initial weights are evaluated and saved."""
    design = networks.design(networks.fork(), LOCKED, run={"epochs": 0})
    result = simulate(design, seed=0, maths=True)
    assert_complete(design, result)
    assert [h["samples"] for h in result.history] == [0]
    assert 0 < result.history[0]["accuracy"] < 1
    for group in design.plan.groups:
        for stage, arrays in make_stage(design, group).state().items():
            for name, array in arrays.items():
                assert np.array_equal(array, result.weights[stage][name])


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_hang_names_every_worker_and_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator would notice a standstill."""
    monkeypatch.setattr(Standstill, "deadline", lambda _: None)
    design = networks.design(networks.chain(3), LOCKED)
    with pytest.raises(AsyncDNIError, match="seed 5") as caught:
        simulate(design, seed=5, maths=False, lose=lambda s, t, m: isinstance(m, Gradient))
    text = str(caught.value)
    assert "worker s0: training" in text and "worker top: training" in text
    assert "in flight [0]" in text and "did F0" in text


def test_a_broken_invariant_is_told_with_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Worker.check

    def check(worker: Worker) -> None:
        honest(worker)
        assert worker.counts.batches < 3, "three are too many"

    monkeypatch.setattr(Worker, "check", check)
    design = networks.design(networks.chain(2), SYNTHETIC)
    with pytest.raises(AsyncDNIError, match=r"seed 9, at \d.*three are too many"):
        simulate(design, seed=9, maths=False)


def test_a_worker_that_never_says_hello_is_replaced_and_then_given_up() -> None:
    tables = {"limits": {"startup_s": 20.0}, "recovery": {"restarts": 1}}
    design = networks.design(networks.chain(3), LOCKED, **tables)
    result = simulate(
        design, seed=0, maths=False, lose=lambda s, t, m: isinstance(m, Hello) and s == "s1",
        until_s=50.0,
    )  # fmt: skip
    assert result.failure is not None and result.failure.kind == "WorkerLost"
    assert "s1 has not joined within 20 s (limits.startup_s); in 2 tries" in result.failure.text


def test_a_worker_whose_first_process_never_says_hello_is_replaced() -> None:
    design = networks.design(networks.chain(3), LOCKED, limits={"startup_s": 20.0})
    lost: list[str] = []

    def lose(sender: str, to: str, message: object) -> bool:
        first = isinstance(message, Hello) and sender == "s1" and not lost
        lost.extend(["s1"] * first)
        return first

    assert_complete(design, simulate(design, seed=0, maths=False, lose=lose))
    assert lost


@pytest.mark.parametrize("silent", [False, True])
def test_long_ops_are_no_sign_of_death_but_silence_is(silent: bool) -> None:
    design = networks.design(networks.chain(2), LOCKED, run={"epochs": 1})
    result = simulate(
        design,
        seed=0,
        costs=Costs(backward_us=10e6),
        maths=False,
        lose=lambda s, t, m: silent and isinstance(m, Beat),
    )
    if silent:
        assert result.failure is not None and result.failure.kind == "WorkerLost"
    else:
        assert_complete(design, result)
        assert result.train_s > 50


def test_a_worker_that_fails_is_the_failure_of_the_run() -> None:
    optimizer = {"name": "sgd", "learning_rate": 1e30}
    design = networks.design(networks.chain(2), LOCKED, optimizer=optimizer, run={"epochs": 20})
    with np.errstate(all="ignore"):
        result = simulate(design, seed=0, maths=True)
    assert result.failure is not None and result.failure.kind == "NumericalError"
    assert "learning_rate" in result.failure.text


# --- decoupling ----------------------------------------------------------------------------------


class Counting:
    """A stage that counts the batches it keeps."""

    def __init__(self, stage: Any) -> None:
        self._stage = stage
        self.kept = self.most = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def forward(self, *args: Any) -> Any:
        self.kept += 1
        self.most = max(self.most, self.kept)
        return self._stage.forward(*args)

    def release(self, *args: Any) -> None:
        self.kept -= 1
        self._stage.release(*args)


def test_hidden_stages_go_on_learning_when_no_gradient_comes_any_more() -> None:
    """From batch 40 on all gradients are lost: generators predict on, memory stays bounded."""
    run = {"epochs": 200, "evaluate_every": 200.0}  # a barrier would wait for what is lost
    design = networks.design(networks.chain(4), SYNTHETIC, run=run, staleness={"lag": 5})
    stages: list[Counting] = []

    def counting(design: Design, group: Group) -> Any:
        stages.append(Counting(make_stage(design, group)))
        return stages[-1]

    def lost(sender: str, to: str, message: object) -> bool:
        return isinstance(message, Gradient) and message.batch >= 40

    def until(moment: float) -> Result:
        stages.clear()
        return simulate(design, seed=1, maths=True, lose=lost, until_s=moment, stages=counting)

    early, late = until(0.15), until(0.25)
    assert early.end is late.end is None
    for name in ("s0", "s1", "s2"):
        then, now = early.counters[name], late.counters[name]
        assert then["batches"] > 50 and then["dropped"] > 0
        assert now["updates"] > then["updates"] + 50
        assert now["in_flight"] <= 6
        assert not np.array_equal(early.weights[name]["0.weight"], late.weights[name]["0.weight"])
    assert [stage.most for stage in stages] == [6, 6, 6, 1]


@pytest.mark.parametrize("stages", [networks.chain(4), networks.fork(), networks.diamond()])
@pytest.mark.parametrize("correct", [False, True])
def test_batches_that_are_given_up_hold_nothing_up(stages: Any, correct: bool) -> None:
    """Gradients come back too late for a few batches in flight; all drain at each barrier."""
    schedule = {**SYNTHETIC, "correct": correct}
    design = networks.design(stages, schedule, run={"epochs": 3}, staleness={"lag": 1})
    links = Links(latency_us=3000.0, jitter=0.9)
    result = simulate(design, seed=0, costs=Costs(jitter=0.5), links=links, maths=False)
    assert isinstance(result.end, Finish)
    assert sum(own["dropped"] for own in result.counters.values()) > 0
    for counters in result.counters.values():
        assert counters["batches"] == design.plan.batches
        assert counters["in_flight"] == 0


@pytest.mark.parametrize("target", ["true", "bootstrap"])
def test_synthetic_outruns_locked_on_four_stages(target: str) -> None:
    conditions = {"costs": Costs(jitter=0.1), "links": Links(jitter=0.5)}
    run = {"epochs": 10, "evaluate_every": 10.0}
    speeds = [
        simulate(design, seed=2, maths=False, **conditions).samples_per_s
        for schedule in (LOCKED, {**SYNTHETIC, "target": target})
        for design in [networks.design(networks.chain(4), schedule, run=run)]
    ]
    assert speeds[1] > 2.5 * speeds[0]


# --- what a result says --------------------------------------------------------------------------


def test_one_stage_is_busy_all_the_time_that_it_trains() -> None:
    """No jitter, no neighbours: 10 batches of read, forward, backward and update, and nothing else
    but the way of Start and Drained."""
    design = networks.design(networks.chain(1), LOCKED, run={"epochs": 2, "evaluate_every": 2.0})
    result = simulate(design, seed=0, maths=False)
    busy_s = 10 * (50 + 100 + 200 + 50) * 1e-6
    assert result.train_s == pytest.approx(busy_s + 200e-6)
    assert result.busy["top"] == pytest.approx(busy_s / result.train_s)
    assert result.samples == 46
    assert result.samples_per_s == pytest.approx(46 / result.train_s)
    letters = "".join(letter for letter, *_ in result.ops["top"])
    assert letters == "RFBU" * 10
    assert all(a[3] <= b[2] for a, b in zip(result.ops["top"], result.ops["top"][1:], strict=False))


def test_a_worker_of_two_stages_takes_the_time_of_both() -> None:
    split = networks.design(networks.chain(2), LOCKED, run={"split": [2]})
    result = simulate(split, seed=0, costs=Costs(scale={"top": 3.0}), maths=False)
    durations = {op[0]: op[3] - op[2] for op in result.ops["s0+top"]}
    assert durations["F"] == pytest.approx(400e-6)
    assert durations["R"] == pytest.approx(50e-6)


def test_staleness_grows_with_latency() -> None:
    def staleness(latency_us: float) -> float:
        run = {"epochs": 20, "evaluate_every": 20.0}
        design = networks.design(networks.chain(3), SYNTHETIC, run=run)
        links = Links(latency_us=latency_us)
        return float(
            simulate(design, seed=0, links=links, maths=False).counters["s0"]["staleness_mean"] or 0
        )

    assert staleness(1.0) < staleness(1000.0) < staleness(5000.0)


def test_saves_go_to_disk_where_a_folder_is_given(tmp_path: Any) -> None:
    design = networks.design(networks.chain(3), SYNTHETIC)
    result = simulate(design, seed=0, maths=True, folder=tmp_path)
    for stage, arrays in result.weights.items():
        saved = load_stage(tmp_path / "final", stage)
        assert {name: array.tolist() for name, array in saved.items()} == {
            name: array.tolist() for name, array in arrays.items()
        }


def test_a_result_can_be_kept_and_compared() -> None:
    design = networks.design(networks.chain(2), LOCKED)
    result = simulate(design, seed=0, maths=False)
    assert dataclasses.replace(result) == result
