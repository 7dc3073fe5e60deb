"""The tables of a comparison: recorded runs in, known numbers out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recorded import RECORDED, recorded, result, two_workers

from asyncdni import comparison as running
from asyncdni import experiment
from asyncdni.comparison import Entry
from asyncdni.metrics.comparison import MEASURES, Result
from asyncdni.metrics.machine import cores, describe_machine
from asyncdni.metrics.verdict import verdict

EXPERIMENT = """
[data]
name = "addition"

[[stages]]
name = "a"
layers = [{ dense = 8 }, "tanh"]

[[stages]]
name = "b"
layers = [{ dense = 8 }]
loss = "sigmoid_cross_entropy"
"""


#: The mean ratio of samples/s of synthetic to single, by hand.
GEOMETRIC = (66732 / 63987 * 66762 / 63252 * 65792 / 86674) ** (1 / 3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "addition.toml"
    path.write_text(EXPERIMENT)
    return path


def plan(file: Path, schedules: str = "locked,synthetic", **more: Any) -> list[Entry]:
    return running.plan_runs(file, [], schedules.split(","), 3, cores=2, **more)


def test_the_document_holds_rows_verdict_machine_and_every_summary(file: Path) -> None:
    entries = plan(file)
    found = running.document(entries, recorded().results)
    assert found["complete"]
    assert found["seeds"] == [0, 1, 2]
    assert [row["name"] for row in found["rows"]] == ["locked", "synthetic", "single"]
    synthetic = found["rows"][1]
    assert synthetic["samples_per_s"]["mean"] == pytest.approx(66428.67, abs=0.01)
    assert synthetic["speedup_over_locked"]["mean"] == pytest.approx(1.7878066)
    assert synthetic["speedup_over_single"]["mean"] == pytest.approx(GEOMETRIC)
    assert (synthetic["runs"], synthetic["workers"], synthetic["threads"]) == (3, 4, 1)
    assert found["verdict"] == verdict(recorded())
    assert found["experiment"] == experiment.tables(entries[0].experiment)
    assert found["runs"][0]["folder"] == "locked-seed0"
    assert found["runs"][0]["summary"]["samples_per_s"] == 34972
    assert json.loads(json.dumps(found)) == found


def test_a_document_of_some_runs_says_that_it_is_not_complete(file: Path) -> None:
    entries = plan(file)
    found = running.document(entries, recorded().results[:1])
    assert not found["complete"]
    assert found["rows"][2]["samples_per_s"] is None
    assert found["verdict"] == ""


def test_without_locked_there_is_no_speed_up(file: Path) -> None:
    entries = plan(file, "synthetic")
    results = [one for one in recorded().results if one.name != "locked"]
    rows = running.document(entries, results)["rows"]
    assert [row["speedup_over_locked"] for row in rows] == [None, None]


# --- time to an accuracy -------------------------------------------------------------------------


def targets(file: Path, *accuracies: float, **changes: Any) -> dict[str, list[dict[str, Any]]]:
    found = running.document(plan(file), recorded(**changes).results, accuracies)
    assert found["targets"] == sorted(accuracies)
    return {row["name"]: row["targets"] for row in found["rows"]}


def test_a_target_has_the_mean_time_and_the_paired_speed_ups(file: Path) -> None:
    """All are there after 7500 of 10,000 samples, so times are as speeds are."""
    (found,) = targets(file, 0.955)["synthetic"]
    assert (found["accuracy"], found["reached"]) == (0.955, 3)
    times = [7500 / speed for speed, _ in RECORDED["synthetic"] if speed]
    assert found["time_s"]["mean"] == pytest.approx(sum(times) / 3)
    assert found["samples"] == {"mean": 7500.0, "low": 7500.0, "high": 7500.0, "n": 3}
    assert found["speedup_over_locked"]["mean"] == pytest.approx(1.7878066)
    assert found["speedup_over_single"]["mean"] == pytest.approx(GEOMETRIC)


def test_runs_that_do_not_reach_a_target_leave_no_mean_and_fewer_pairs(file: Path) -> None:
    found = targets(file, 0.955, synthetic=[(66732, 0.96), (66762, 0.95), (65792, 0.96)])
    (synthetic,), (locked,) = found["synthetic"], found["locked"]
    assert (synthetic["reached"], synthetic["time_s"], synthetic["samples"]) == (2, None, None)
    assert synthetic["speedup_over_locked"]["n"] == 2
    assert (locked["reached"], locked["time_s"]["n"]) == (3, 3)


def test_a_target_out_of_reach_has_nothing_but_a_count(file: Path) -> None:
    (found,) = targets(file, 0.999)["single"]
    assert found == {
        "accuracy": 0.999,
        "reached": 0,
        "time_s": None,
        "samples": None,
        "speedup_over_locked": None,
        "speedup_over_single": None,
    }


# --- ceilings and shares -------------------------------------------------------------------------


def test_a_row_of_several_workers_has_its_ceiling_and_where_its_time_went(file: Path) -> None:
    results = [Result("synthetic", seed, two_workers()) for seed in range(3)]
    _, row, single = running.document(plan(file), results)["rows"]
    most = 25_000 / max(4.0, 7.5 / cores())  # the slower worker, or all work on too few cores
    assert row["ceiling_samples_per_s"]["mean"] == pytest.approx(most)
    assert row["efficiency"]["mean"] == pytest.approx(2500 / most)
    assert row["overhead_cpu"]["mean"] == pytest.approx(4.5 / 12)
    assert sum(row["shares"].values()) == pytest.approx(1.0)
    assert row["shares"]["layers"] == pytest.approx(0.35)
    assert single["shares"] is None and single["efficiency"] is None


def test_a_run_without_speed_has_no_efficiency(file: Path) -> None:
    results = [Result("synthetic", 0, two_workers(samples_per_s=None))]
    row = running.document(plan(file), results)["rows"][1]
    assert row["ceiling_samples_per_s"] and row["efficiency"] is None


# --- rows of all kinds ---------------------------------------------------------------------------


def test_the_control_is_marked_as_one(file: Path) -> None:
    found = running.document(plan(file, zero_control=True), recorded().results)
    marked = {row["name"]: row["control"] for row in found["rows"]}
    assert marked == {
        "locked": False,
        "synthetic": False,
        "synthetic-zero": True,
        "single": False,
    }


def test_runs_of_another_program_get_a_row_of_their_own(file: Path) -> None:
    theirs = {"samples_per_s": 90_000.0, "train_s": 0.5, "workers": 1, "threads": 2}
    ours = recorded().results
    found = running.document(plan(file), [*ours, Result("torch", 1, theirs)], [0.9])
    row = found["rows"][-1]
    assert (row["name"], row["runs"], row["workers"], row["threads"]) == ("torch", 1, 1, 2)
    assert row["samples_per_s"]["mean"] == 90_000.0
    assert row["speedup_over_single"]["mean"] == pytest.approx(90_000 / 63252)
    missing = {"test_accuracy", "test_loss", "cpu_s", "shares", "efficiency", "overhead_cpu"}
    assert {name for name in (*MEASURES, *missing) if row[name] is None} == missing
    assert row["targets"][0]["reached"] == 0
    assert found["runs"][-1]["folder"] is None
    assert found["complete"]
    assert json.loads(json.dumps(found)) == found


def test_results_alone_make_a_document(file: Path) -> None:
    found = running.document([], [result("torch", 4, 90_000, 0.96)])
    assert [row["name"] for row in found["rows"]] == ["torch"]
    assert (found["seeds"], found["experiment"]) == ([4], None)


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["cores"] == cores() >= 1
    assert {"cpu", "system", "python", "numpy", "blas", "asyncdni"} < set(machine)
