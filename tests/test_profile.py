"""All workers in one process, what that measures, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import networks
import pytest
from each import each
from threadpoolctl import threadpool_info, threadpool_limits

from asyncdni.drivers.virtual.costs import SENDING
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.errors import ConfigError
from asyncdni.messages import Message
from asyncdni.profiling import measurement
from asyncdni.profiling.measurement import Measurement, OpTime, Rehearsal, measure
from asyncdni.profiling.report import document
from asyncdni.schedules.base import Op
from asyncdni.stages.numpy.block import Block

LOCKED = {"name": "locked"}
WHOLE = {"name": "locked", "split_backward": False}
SYNTHETIC = {"name": "synthetic", "generator": {"kind": "linear"}, "fit_every": 4}


class Listener:
    """Writes down ops and messages."""

    def __init__(self) -> None:
        self.ops: list[tuple[str, str]] = []
        self.sizes: list[tuple[str, str, Message, Sequence[int]]] = []

    def op(self, worker: str, op: Op, cpu_s: float) -> None:
        assert cpu_s >= 0
        self.ops.append((worker, str(op)))

    def handled(self, cpu_s: float) -> None:
        assert cpu_s >= 0

    def message(self, sender: str, to: str, message: Message, frames: Sequence[int]) -> None:
        self.sizes.append((sender, to, message, frames))


# --- rehearsal -----------------------------------------------------------------------------------


def test_a_rehearsal_does_all_that_a_batch_asks_of_a_stage_before_the_next_stage() -> None:
    design = networks.design(networks.chain(3), {**SYNTHETIC, "fit_every": 1})
    heard = Listener()
    Rehearsal(design, heard, segments=1, batches=1).advance()
    assert [f"{worker} {op}" for worker, op in heard.ops] == [
        *("s0 R0", "s0 F0", "s0 P0", "s0 B0", "s0 U0"),
        *("s1 F0", "s1 P0", "s1 B0", "s1 U0"),
        *("top F0", "top B0", "top U0"),
        *("s1 T0", "s1 b0", "s0 T0"),
    ]


@each(
    "schedule",
    [
        *(LOCKED, WHOLE, SYNTHETIC, {**SYNTHETIC, "correct": True}),
        *({"name": "delayed"}, {"name": "local_loss"}),
    ],
)
@each(
    "stages", [networks.chain(1), networks.fork(), networks.diamond(), networks.several_readers()]
)
def test_a_rehearsal_does_the_ops_of_a_run(stages: networks.Tables, schedule: Any) -> None:
    """Those that the simulator does on as many batches, whatever their order."""
    data = {"examples": 40, "test_examples": 5}
    design = networks.design(stages, schedule, data=data, run={"epochs": 1})
    heard = Listener()
    rehearsal = Rehearsal(design, heard, segments=2, batches=4)
    rehearsal.advance()
    rehearsal.advance()
    simulated = simulate(design, seed=0, maths=False).ops
    expected = {
        (worker, f"{op}{batch}") for worker, ops in simulated.items() for op, batch, *_ in ops
    }
    assert {one for one in heard.ops if not one[1].endswith("-1")} == {
        one for one in expected if not one[1].endswith("-1")
    }


# --- measuring -----------------------------------------------------------------------------------


def test_every_op_of_every_stage_is_measured_and_each_message_weighed() -> None:
    data = {"examples": 40, "batch_size": 10}
    run = {"split": [2, 1]}
    design = networks.design(networks.chain(3), SYNTHETIC, data=data, run=run)
    measured = measure(design, 12)
    counts = {
        stage: {letter: one.count for letter, one in ops.items()}
        for stage, ops in measured.times.items()
    }
    both = {"F": 24, "U": 24}
    assert counts == {
        "s0": {**both, "R": 24, "P": 12, "B": 24, "T": 3},
        "s1": {**both, "P": 12, "B": 12, "b": 15, "W": 12, "T": 3},
        "top": {**both, "B": 9, SENDING: 3, "b": 12, "W": 12},
    }
    tensors = 10 * networks.WIDTH * 4
    targets = 10 * networks.BITS * 4
    assert {(one.sender, one.to, one.kind): one.tensor_bytes for one in measured.edges} == {
        ("s0", "s1", "activation"): tensors + targets,
        ("s1", "top", "activation"): tensors + targets,
        ("top", "s1", "gradient"): tensors,
        ("s1", "s0", "gradient"): tensors,
    }
    assert all(one.header_bytes > 0 for one in measured.edges)
    assert measured.parameters["top"] == networks.WIDTH * networks.BITS + networks.BITS


@pytest.mark.parametrize(("schedule", "back"), [(LOCKED, {"b", "W"}), (WHOLE, {SENDING})])
def test_a_locked_experiment_is_measured_with_its_own_options(
    schedule: dict[str, Any], back: set[str]
) -> None:
    """The backward of s0 is whole in any case: its inputs are data."""
    design = networks.design(networks.chain(3), schedule, data={"examples": 40})
    times = measure(design, 4).times
    assert times["s0"].keys() == {"R", "F", "B", "U"}
    assert times["s1"].keys() == times["top"].keys() == {"F", *back, "U"}


def test_a_rare_fit_is_measured_more_often_than_it_is_done_and_charged_as_it_is_done() -> None:
    schedule = {**SYNTHETIC, "fit_every": 50}
    design = networks.design(networks.chain(2), schedule, data={"examples": 40})
    measured = measure(design, 8)
    assert measured.times["s0"]["T"].count == 2
    found = document(design, measured, cores=2, workers=[2])
    stage = found["stages"][0]
    ops = {letter: one["median_s"] for letter, one in stage["ops"].items()}
    expected = sum(ops[letter] for letter in "RFPBU") + ops["T"] / 50
    assert stage["batch_s"]["synthetic"] == pytest.approx(expected)


def test_ops_are_measured_with_one_blas_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()

    def forward(self: Block, *args: Any) -> Any:
        pools = [one for one in threadpool_info() if one["user_api"] == "blas"]
        seen.update(one["num_threads"] for one in pools)
        return original(self, *args)

    original = Block.forward
    monkeypatch.setattr(Block, "forward", forward)
    with threadpool_limits(2):
        measure(networks.design(networks.chain(2), LOCKED), 1)
    assert seen <= {1}


def test_before_a_cold_measurement_s_turns_caches_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    forward = Block.forward

    def noted(self: Block, *args: Any) -> Any:
        calls.append("F")
        return forward(self, *args)

    monkeypatch.setattr(Block, "forward", noted)
    monkeypatch.setattr(measurement, "make_cache_flush", lambda: lambda: calls.append("flush"))
    measure(networks.design(networks.chain(2), LOCKED), 1)
    assert "flush" not in calls
    calls.clear()
    found = measure(networks.design(networks.chain(2), LOCKED), 1, cold=True)
    counted = calls[calls.index("flush") :]
    assert "F" in counted
    assert all(counted[at - 1] == "flush" for at, call in enumerate(counted) if call == "F")
    assert found.event.count > 0 and found.event.low_s > 0


def test_both_are_measured_with_one_warm_up_and_end_when_the_time_is_over() -> None:
    design = networks.design(networks.chain(2), LOCKED)
    warm, cold = measurement.measure_both(design, 20, 5)
    assert (warm.batches, cold.batches) == (20, 5)
    assert {one.count for one in warm.times["top"].values()} == {20}
    assert {one.count for one in cold.times["top"].values()} == {5}
    short, _ = measurement.measure_both(design, 1000, 5, limit_s=0.0)
    assert 0 < short.batches < 1000 and short.times["top"]["F"].count == short.batches


# --- the document --------------------------------------------------------------------------------


def known(**stages: dict[str, float]) -> Measurement:
    """Microseconds."""
    return Measurement(
        batches=9,
        parameters=dict.fromkeys(stages, 1),
        times={
            name: {letter: OpTime(9, us * 1e-6, us * 1e-6, us * 1e-6) for letter, us in ops.items()}
            for name, ops in stages.items()
        },
        edges=(),
        event=OpTime(9, 1e-5, 1e-5, 1e-5),
    )


MEASURED = known(
    s0={"R": 10, "F": 100, "P": 20, "B": 100, "U": 30, "T": 40},
    s1={"F": 80, "P": 20, "B": 80, "b": 70, "W": 90, "U": 30, "T": 40},
    top={"F": 20, "B": 20, SENDING: 40, "b": 15, "W": 30, "U": 10},
)


@pytest.fixture
def found() -> dict[str, Any]:
    design = networks.design(networks.chain(3), SYNTHETIC, data={"examples": 40, "batch_size": 10})
    return document(design, MEASURED, cores=2, workers=[1, 2, 3])


def test_known_costs_give_the_ceilings_computed_by_hand(found: dict[str, Any]) -> None:
    """s0 10 + 100 + 20 + 100 + 30 + 10, s1 80 + 20 + 80 + 30 + 10 + 17.5, top 20 + 25 + 10."""
    synthetic = found["given"]["schedules"]["synthetic"]
    assert synthetic["worker_s"] == pytest.approx({"s0": 270e-6, "s1": 237.5e-6, "top": 55e-6})
    assert (synthetic["limit"], synthetic["slowest"]) == ("cores", "s0")
    assert synthetic["samples_per_s"] == pytest.approx(10 / (562.5e-6 / 2))


def test_single_does_what_locked_does_in_one_process(found: dict[str, Any]) -> None:
    """R 10, F 200, B 100 + 40 and the halves 70 + 90 of the one that was not measured, U 70."""
    assert found["single"]["batch_s"] == pytest.approx(580e-6)
    assert found["splits"][0]["schedules"]["synthetic"]["speed_up"] == pytest.approx(1.0)


def test_locking_lets_only_reading_and_what_nobody_waits_for_overlap(found: dict[str, Any]) -> None:
    """F 200, b of top and s1 15 + 70, B and U of s0 100 + 30."""
    locked = found["given"]["schedules"]["locked"]
    assert locked["worker_s"] == pytest.approx({"s0": 240e-6, "s1": 270e-6, "top": 75e-6})
    assert locked["limit"] == "locking"
    assert locked["samples_per_s"] == pytest.approx(10 / 415e-6)
    assert locked["speed_up"] == pytest.approx(580 / 415)


def test_locking_without_halves_waits_for_whole_backwards() -> None:
    """F 200, B 40 + 160 + 100, the update of s0 30."""
    design = networks.design(networks.chain(3), WHOLE, data={"examples": 40, "batch_size": 10})
    measured = known(
        s0={"R": 10, "F": 100, "B": 100, "U": 30},
        s1={"F": 80, SENDING: 160, "U": 30},
        top={"F": 20, SENDING: 40, "U": 10},
    )
    found = document(design, measured, cores=2, workers=[1])
    assert found["given"]["schedules"]["locked"]["samples_per_s"] == pytest.approx(10 / 530e-6)
    assert found["single"]["batch_s"] == pytest.approx(580e-6)


def test_the_best_split_leaves_out_the_generator_that_it_can(found: dict[str, Any]) -> None:
    """s1 + top: F 100, B of s1 on every fourth batch 160 and else 80, B of top 40, U 40."""
    two = found["splits"][1]
    assert two["split"] == [1, 2]
    fused = two["schedules"]["synthetic"]["worker_s"]["s1+top"]
    assert fused == pytest.approx((100 + 0.25 * 160 + 0.75 * 80 + 40 + 40) * 1e-6)
    assert two["schedules"]["synthetic"]["limit"] == "worker"


def test_more_cores_move_the_limit_to_the_slowest_worker() -> None:
    design = networks.design(networks.chain(3), SYNTHETIC)
    found = document(design, MEASURED, cores=3, workers=[3])
    assert found["given"]["schedules"]["synthetic"]["limit"] == "worker"


def test_a_locked_experiment_has_the_ceilings_of_locked_alone() -> None:
    design = networks.design(networks.chain(3), LOCKED)
    found = document(design, MEASURED, cores=2, workers=[3])
    assert list(found["given"]["schedules"]) == ["locked"]


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_a_pipeline_is_priced_by_its_microbatches(name: str) -> None:
    """Five of two samples, all with b and W but those of s0; U 30 / 5, 30 / 5 and 10 / 5."""
    schedule = {"name": name, "microbatches": 5}
    data = {"examples": 40, "batch_size": 10}
    design = networks.design(networks.chain(3), schedule, data=data)
    found = document(design, MEASURED, cores=3, workers=[3])
    ceiling = found["given"]["schedules"][name]
    assert ceiling["worker_s"] == pytest.approx({"s0": 216e-6, "s1": 246e-6, "top": 67e-6})
    assert (found["batch_size"], found["microbatches"]) == (2, 5)
    assert (ceiling["limit"], ceiling["slowest"]) == ("worker", "s1")
    assert ceiling["samples_per_s"] == pytest.approx(2 / 246e-6)
    assert found["single"]["samples_per_s"] == pytest.approx(2 / 580e-6)
    measured = measure(design, 4)
    assert {one.tensor_bytes for one in measured.edges if one.kind == "gradient"} == {
        2 * networks.WIDTH * 4
    }


def test_a_stage_with_a_local_loss_asks_its_head_and_sends_nothing_back() -> None:
    """s0 10 + 100 + 20 + 100 + 30, s1 80 + 20 + 80 + 30, top 20 + 20 + 10."""
    design = networks.design(networks.chain(3), {"name": "local_loss"})
    found = document(design, MEASURED, cores=3, workers=[3])
    costs = found["given"]["schedules"]["local_loss"]["worker_s"]
    assert costs == pytest.approx({"s0": 260e-6, "s1": 210e-6, "top": 50e-6})
    assert measure(design, 4).times["s1"].keys() >= {"F", "P", "B", "U"}


def test_a_delayed_pipeline_does_what_locked_does_without_waiting() -> None:
    design = networks.design(networks.chain(3), {"name": "delayed"})
    schedules = document(design, MEASURED, cores=3, workers=[3])["given"]["schedules"]
    assert schedules["delayed"]["worker_s"] == schedules["locked"]["worker_s"]
    assert schedules["delayed"]["limit"] == "worker"
    assert schedules["locked"]["limit"] == "locking"


@each(
    "options, words",
    [
        ({"mix": 0.5}, "schedule.mix is set: which ops a batch takes then varies"),
        ({"update_probability": 0.5}, "schedule.update_probability is set"),
        ({"synthetic_inputs": True}, "schedule.synthetic_inputs is set"),
        ({"guard": {}}, "schedule.guard is set"),
        ({"target": "half"}, "schedule.target is 'half'"),
    ],
)
def test_ops_that_vary_from_batch_to_batch_are_not_priced(
    options: dict[str, Any], words: str
) -> None:
    design = networks.design(networks.chain(3), {"name": "synthetic", **options})
    with pytest.raises(ConfigError, match=words):
        measure(design, 4)


def test_a_stage_with_a_schedule_of_its_own_is_not_priced() -> None:
    first, *others = networks.chain(3)
    stages = [{**first, "schedule": {"name": "locked"}}, *others]
    with pytest.raises(ConfigError, match="stage s0 has a schedule of its own"):
        measure(networks.design(stages, {"name": "synthetic"}), 4)


def test_splits_that_can_not_be_are_not_found() -> None:
    """Any worker with the root of a fork and one of its branches would send on both."""
    design = networks.design(networks.fork(), LOCKED)
    ops = {"F": 10.0, "B": 10.0, "b": 10.0, "W": 10.0, "U": 10.0}
    measured = known(**{node.name: ops for node in design.network.nodes})
    found = document(design, measured, cores=2, workers=[2])
    assert [one["split"] for one in found["splits"]] == [[1, 4]]
