"""The tables of a comparison: recorded runs in, known numbers out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import pytest
from recorded import RECORDED, recorded, result, two_workers

from asyncdni import experiment
from asyncdni.errors import ConfigError
from asyncdni.launch import compare as running
from asyncdni.launch.compare import Entry
from asyncdni.report.machine import cores, describe_machine
from asyncdni.report.statistics import MEASURES, Result
from asyncdni.report.verdict import verdict

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
    assert synthetic["samples_per_s"]["mean"] == pytest.approx(
        66427.135, abs=0.01
    )  # the geometric mean
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
    assert found["time_s"]["mean"] == pytest.approx(geometric_mean(times))
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
        **{f"speedup_over_{name}": None for name in ("locked", "gpipe", "1f1b", "single")},
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


def test_a_row_is_held_against_its_roofline(file: Path) -> None:
    entries = plan(file)
    results = [Result(entry.name, entry.seed, two_workers()) for entry in entries]
    for row in running.document(entries, results)["rows"]:
        most = next(one.roofline_samples_per_s for one in entries if one.name == row["name"])
        assert row["roofline_samples_per_s"] == most and most
        assert row["of_roofline"]["mean"] == pytest.approx(2500 / most)
    unknown = [replace(entry, roofline_samples_per_s=None) for entry in entries]
    assert running.document(unknown, results)["rows"][0]["of_roofline"] is None


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
    missing |= {"stream_samples_per_s"}
    assert {name for name in (*MEASURES, *missing) if row[name] is None} == missing
    assert row["targets"][0]["reached"] == 0
    assert found["runs"][-1]["folder"] is None
    assert found["complete"]
    assert json.loads(json.dumps(found)) == found


def test_results_alone_make_a_document(file: Path) -> None:
    found = running.document([], [result("torch", 4, 90_000, 0.96)])
    assert [row["name"] for row in found["rows"]] == ["torch"]
    assert (found["seeds"], found["experiment"]) == ([4], None)


# --- several latencies ---------------------------------------------------------------------------


def runs_at_latencies(entries: list[Entry]) -> list[Result]:
    """Locked is ten times slower at 10 ms, and a little slower from seed to seed."""
    found = []
    for entry in entries:
        speed = 1e4 / (1 + entry.seed) / (10 if entry.name == "locked" and entry.latency_s else 1)
        one = result(entry.name, entry.seed, speed, 0.96)
        found.append(replace(one, latency_s=entry.latency_s))
    return found


def test_at_several_latencies_there_is_a_row_for_each_name_at_each(file: Path) -> None:
    entries = plan(file, latencies=["0ms", "10ms"])
    results = runs_at_latencies(entries)
    found = running.document(entries, results, [0.95])
    assert found["complete"] and found["latencies"] == [0.0, 0.01]
    assert [(row["name"], row["latency_s"]) for row in found["rows"]] == [
        (name, latency_s) for latency_s in (0.0, 0.01) for name in ("locked", "synthetic", "single")
    ]
    assert not running.document(entries, results[1:], [0.95])["complete"]
    assert json.loads(json.dumps(found)) == found


def test_each_latency_has_ratios_of_its_own_and_single_stands_for_all(file: Path) -> None:
    entries = plan(file, latencies=["0ms", "10ms"])
    rows = running.document(entries, runs_at_latencies(entries), [0.95])["rows"]
    found = {(row["name"], row["latency_s"]): row for row in rows}
    over = [found["synthetic", at]["speedup_over_locked"]["mean"] for at in (0.0, 0.01)]
    assert over == pytest.approx([1.0, 10.0])
    for latency_s in (0.0, 0.01):
        single = found["single", latency_s]
        assert single["samples_per_s"]["n"] == 3
        assert found["synthetic", latency_s]["speedup_over_single"]["mean"] == pytest.approx(1.0)
    (target,) = found["synthetic", 0.01]["targets"]
    assert target["speedup_over_locked"]["mean"] == pytest.approx(10.0)


def test_what_is_left_of_the_speed_is_told_of_rows_with_links(file: Path) -> None:
    entries = plan(file, latencies=["0ms", "10ms"])
    rows = running.document(entries, runs_at_latencies(entries))["rows"]
    left = {(row["name"], row["latency_s"]): row["kept_samples_per_s"] for row in rows}
    assert left["locked", 0.01]["mean"] == pytest.approx(0.1)
    assert left["synthetic", 0.01]["mean"] == pytest.approx(1.0)
    assert left["locked", 0.0]["mean"] == 1.0
    assert left["single", 0.01] is None


def test_the_verdict_is_a_sentence_for_each_latency_and_one_over_all(file: Path) -> None:
    entries = plan(file, latencies=["0ms", "10ms"])
    first, second, third = running.document(entries, runs_at_latencies(entries), [0.95])["verdict"]
    assert first.startswith("At 0 ms links synthetic is 1.00 times as fast as locked")
    assert "synthetic reaches 95 % 10.00 times sooner than locked" in second
    assert third.startswith("At 10 ms links, of its samples/s at 0 ms, locked keeps 10 %")


def test_one_seed_at_several_latencies_is_told_to_be_too_few(file: Path) -> None:
    entries = running.plan_runs(file, [], ["locked"], 1, cores=2, latencies=["0ms", "10ms"])
    assert running.document(entries, runs_at_latencies(entries))["verdict"][-1] == (
        "One seed shows no spread: compare over more (--seeds 5)."
    )


def test_latency_lowers_the_ceiling_of_what_waits_for_it(file: Path) -> None:
    entries = running.plan_runs(
        file, [], ["locked", "synthetic"], 1, cores=2, latencies=["0ms", "50ms"]
    )
    results = [
        Result(one.name, one.seed, two_workers(one.name), one.latency_s)
        for one in entries
        if one.name != "single"
    ]
    rows = running.document(entries, results)["rows"]
    found = {
        (row["name"], row["latency_s"]): row["ceiling_samples_per_s"]
        for row in rows
        if row["name"] != "single"
    }
    assert found["synthetic", 0.05] == found["synthetic", 0.0]
    batch_s = [250 / found["locked", latency_s]["mean"] for latency_s in (0.0, 0.05)]
    assert batch_s == pytest.approx([max(0.055, 0.075 / cores()), 0.055 + 2 * 0.05])


# --- what can't be compared ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "stages.a.layers=[{dense=9},'tanh']",
            r"a.layers\[0\].dense is 8 there and 9 here",
        ),
        ("stages.a.name=c", "the stages are a, b there and c, b here"),
        ("stages.b.loss=mse", "b.loss is 'sigmoid_cross_entropy' there and 'mse' here"),
        ("data.examples=50", "data.examples is 100 there and 50 here"),
        ("data.validation=10", "data.validation is 0 there and 10 here"),
    ],
)
def test_runs_of_different_networks_are_refused(file: Path, change: str, words: str) -> None:
    others = running.plan_runs(file, [change], ["synthetic"], 1, cores=2)
    with pytest.raises(ConfigError, match=words) as caught:
        running.document([*plan(file), *others], [])
    assert str(caught.value).startswith("locked, seed 0 and synthetic, seed 0 are of different")
    assert "\n" not in str(caught.value)


def test_runs_that_are_trained_in_other_ways_are_compared(file: Path) -> None:
    changes = ["data.batch_size=20", "optimizer.learning_rate=0.5", "run.epochs=2"]
    others = running.plan_runs(file, changes, ["synthetic"], 1, cores=2)
    assert running.document([*plan(file, "locked"), *others], [])["rows"]


def test_there_is_no_ceiling_where_a_stage_has_a_schedule_of_its_own(file: Path) -> None:
    entries = running.plan_runs(file, ["stages.a.schedule.name=locked"], ["synthetic"], 1, cores=2)
    results = [Result("synthetic", 0, two_workers("synthetic"))]
    assert running.document(entries, results)["rows"][0]["ceiling_samples_per_s"] is None


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["cores"] == cores() >= 1
    assert {"cpu", "system", "python", "numpy", "blas", "asyncdni"} < set(machine)
