"""What is learned in spite of everything, with real maths: the same bits, where nothing is lost."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from each import case, each

from asyncdni.core.events import Fail, Finish
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.faults import Faults
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.plan.build import Design
from asyncdni.store.checkpoint import latest
from asyncdni.store.resume import find_beginning
from asyncdni.store.run import create_folder

SYNCHRONOUS: dict[str, dict[str, Any]] = {
    "locked": {"name": "locked"},
    "gpipe": {"name": "gpipe", "microbatches": 2},
    "1f1b": {"name": "1f1b", "microbatches": 2},
}
NETWORKS = {
    "chain": networks.chain(3, norm=True),
    "fork": networks.fork(),
    "diamond": networks.diamond(),
}
ASYNCHRONOUS: dict[str, dict[str, Any]] = {
    "delayed": {"name": "delayed"},
    "local_loss": {"name": "local_loss", "replay": 2, "uses_max": 3},
    "synthetic": {"name": "synthetic"},
    "bootstrapped": {"name": "synthetic", "target": "bootstrap", "fit_every": 2},
    "corrected": {"name": "synthetic", "correct": True},
    "mixed": {"name": "synthetic", "mix": 0.5},
    "synthetic inputs": {"name": "synthetic", "synthetic_inputs": True},
    "skipping": {"name": "synthetic", "on_full": "skip"},
}


def bits(result: Result) -> dict[str, dict[str, bytes]]:
    return {
        stage: {name: array.tobytes() for name, array in arrays.items()}
        for stage, arrays in result.weights.items()
    }


def losses(result: Result) -> list[float]:
    return [entry["loss"] for entry in result.history]


def design(stages: Any, schedule: Any, **checkpoint: Any) -> Design:
    return networks.design(
        stages,
        schedule,
        data={"batch_size": 6, "examples": 32},
        run={"epochs": 5},
        checkpoint={"every": 0.5, **checkpoint},
        recovery={"restarts": 1000},
        limits={"stuck_s": 5.0, "window": 3},
    )


# --- synchronous schedules -----------------------------------------------------------------------


@functools.cache
def undisturbed(schedule: str, stages: str) -> tuple[Design, Result]:
    """The run of one of the schedules and networks in which nothing goes wrong."""
    chosen = design(NETWORKS[stages], SYNCHRONOUS[schedule])
    return chosen, simulate(chosen, seed=0, maths=True)


@pytest.mark.parametrize(
    "seeds", [range(1, 2), pytest.param([0, 2, 3], marks=pytest.mark.long)], ids=["one", "three"]
)
@each("schedule", SYNCHRONOUS)
@each("stages", NETWORKS)
def test_synchronous_schedules_end_with_the_same_bits(
    schedule: str, stages: str, seeds: Sequence[int]
) -> None:
    """Whatever dies, pauses, breaks or is torn, the coordinator included."""
    chosen, plain = undisturbed(schedule, stages)
    for seed in seeds:
        faults = Faults(
            crashes=8,
            coordinator_crashes=0.5 * (seed % 2),
            pauses=1,
            pause_s=1,
            breaks=10,
            torn_saves=0.05,
            most=6,
        )
        with case(seed=seed):
            result = simulate(chosen, seed=seed, maths=True, faults=faults)
            assert isinstance(result.end, Finish) and sum(result.fault_counts.values()) > 1
            assert bits(result) == bits(plain) and losses(result) == losses(plain)


def test_without_going_back_the_bits_would_differ() -> None:
    """The control: a schedule that goes on does not repeat what was lost."""
    chosen = design(networks.chain(3), {"name": "synthetic"}, every="never")
    plain = simulate(chosen, seed=0, maths=True)
    crash = Faults(script=("crash s1 at 108ms",))
    result = simulate(chosen, seed=0, maths=True, faults=crash)
    assert isinstance(result.end, Finish) and result.fault_counts == {"crash": 1}
    assert bits(result) != bits(plain)


# --- going on from a cut -------------------------------------------------------------------------

#: Stages of different speed, and gradients that come late.
UNEVEN: dict[str, Any] = {
    "costs": Costs(scale={"s1": 3.0, "a": 2.0, "long": 2.5}),
    "links": Links(latency_us=900.0, control_latency_us=500.0),
}


UNEVEN_NETWORKS = {
    "chain": networks.chain(4),
    "fork": networks.fork(),
    "diamond": networks.diamond(),
}
#: Each schedule on one network, and each on every one.
PAIRS = [(name, list(UNEVEN_NETWORKS)[number % 3]) for number, name in enumerate(ASYNCHRONOUS)]
ALL_PAIRS = itertools.product(ASYNCHRONOUS, UNEVEN_NETWORKS)


@pytest.mark.parametrize(
    "pairs",
    [PAIRS, pytest.param(sorted({*ALL_PAIRS} - {*PAIRS}), marks=pytest.mark.long)],
    ids=["few", "others"],
)
def test_an_asynchronous_run_goes_on_from_a_cut_to_the_same_bits(
    pairs: list[tuple[str, str]],
) -> None:
    """Its coordinator dies behind a barrier; another resumes from there. Nothing of what decides
    the order of events may get lost."""
    for schedule, stages in pairs:
        with case(schedule=schedule, stages=stages):
            _assert_goes_on(ASYNCHRONOUS[schedule], UNEVEN_NETWORKS[stages])


def _assert_goes_on(schedule: Any, stages: Any) -> None:
    chosen = design(stages, schedule, every=1.0, snapshot_every="never", keep=3)
    plain = simulate(chosen, seed=0, maths=True, **UNEVEN)
    assert max(own["staleness_max"] or 0 for own in plain.counters.values()) or (
        schedule["name"] == "local_loss"
    )
    cuts = [values["time_s"] for kind, values in plain.records if kind == "cut"]
    for cut_s in cuts[1:4:2]:
        crash = Faults(script=(f"crash coordinator at {cut_s + 0.004:.6f}s",))
        result = simulate(chosen, seed=0, maths=True, faults=crash, **UNEVEN)
        (again,) = (values for kind, values in result.records if kind == "round")
        assert again["restore"].startswith("checkpoints/") and again["start"] > 0
        assert bits(result) == bits(plain) and losses(result) == losses(plain)


@pytest.mark.parametrize("schedule", [{"name": "locked"}, {"name": "synthetic"}])
def test_a_simulated_run_is_resumed_from_real_files_by_the_code_of_real_runs(
    schedule: Any, tmp_path: Path
) -> None:
    chosen = design(networks.chain(3), schedule, every=1.0, snapshot_every="never")
    plain = simulate(chosen, seed=0, maths=True)
    cuts = [values["time_s"] for kind, values in plain.records if kind == "cut"]
    create_folder(tmp_path, chosen.experiment)
    simulate(chosen, seed=0, maths=True, folder=tmp_path, until_s=cuts[2] + 0.004)
    manifest, passed_over = latest(tmp_path / "checkpoints")
    assert manifest is not None and manifest.number == 3 and not passed_over
    ledger = find_beginning(tmp_path, chosen, [], 0.0).ledger
    result = simulate(chosen, seed=0, maths=True, folder=tmp_path, ledger=ledger)
    assert bits(result) == bits(plain) and losses(result) == losses(plain)


@pytest.mark.parametrize("schedule", SYNCHRONOUS.values(), ids=SYNCHRONOUS)
def test_a_run_that_was_stopped_anywhere_goes_on_to_the_same_bits(
    schedule: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also between the microbatches of a group: whenever one was read or learned from."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nobody pulls the plug here
    chosen = networks.design(
        networks.chain(3, norm=True),
        schedule,
        data={"batch_size": 4, "examples": 10},
        run={"epochs": 2},
        checkpoint={"every": "never", "snapshot_every": "never"},
    )
    shaken: dict[str, Any] = {"costs": Costs(read_us=200.0, jitter=0.5), "links": UNEVEN["links"]}
    plain = simulate(chosen, seed=0, maths=True, **shaken)
    moments = [end for letter, *_, end in plain.ops["s0"] if letter in "RU"]
    stopped = set()
    for number, moment in enumerate(moments[:-1]):
        folder = create_folder(tmp_path / str(number), chosen.experiment)
        first = simulate(
            chosen, seed=0, maths=True, folder=folder, stop_at_s=moment + 1e-6, **shaken
        )
        assert isinstance(first.end, Fail) and first.end.kind == "Interrupted"
        ledger = find_beginning(folder, chosen, [], 0.0).ledger
        stopped.add(ledger.start)
        result = simulate(chosen, seed=1, maths=True, folder=folder, ledger=ledger, **shaken)
        assert bits(result) == bits(plain) and losses(result) == losses(plain)
    assert len(stopped) >= 4


# --- decoupled learning --------------------------------------------------------------------------


@pytest.mark.long
def test_synthetic_learns_although_its_stages_keep_dying() -> None:
    """The only copy of a stage, again and again: the accuracy stays within a few points."""
    chosen = networks.design(
        networks.chain(3),
        {"name": "synthetic"},
        data={"batch_size": 16, "examples": 256, "test_examples": 256},
        optimizer={"name": "adam", "learning_rate": 0.01},
        run={"epochs": 60, "evaluate_every": 30.0},
        checkpoint={"every": "never", "snapshot_every": "20ms"},
        recovery={"restarts": 1000},
    )
    costs = Costs(read_us=3000.0, startup_us=20_000.0)
    plain = simulate(chosen, seed=0, maths=True, costs=costs)
    faults = Faults(crashes=3, most=12)
    result = simulate(chosen, seed=0, maths=True, costs=costs, faults=faults)
    assert isinstance(result.end, Finish) and result.fault_counts["crash"] > 5
    accuracies = [run.history[-1]["accuracy"] for run in (plain, result)]
    assert accuracies[0] > 0.8
    assert np.diff(accuracies)[0] > -0.05


@functools.cache
def without_cuts(schedule: str) -> Result:
    return simulate(
        design(networks.chain(3), SYNCHRONOUS[schedule], every="never"), seed=0, maths=True
    )


@pytest.mark.long
@each("every", ["1ms", "3ms", "7ms", 0.5])
@each("schedule", SYNCHRONOUS)
def test_cuts_at_any_moment_leave_what_is_learned_as_it_is(schedule: str, every: Any) -> None:
    """Also where a batch is being read in the middle of a group of microbatches."""
    costs = Costs(read_us=300.0, jitter=0.5)
    chosen = design(networks.chain(3), SYNCHRONOUS[schedule], every=every)
    often = simulate(chosen, seed=0, maths=True, costs=costs)
    never = without_cuts(schedule)
    assert len([kind for kind, _ in often.records if kind == "cut"]) > 4
    assert bits(often) == bits(never)
