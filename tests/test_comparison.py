"""Statistics of comparisons on known numbers, their verdicts, and the runs they are made of."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from asyncdni import comparison as running
from asyncdni.errors import ConfigError
from asyncdni.metrics.comparison import (
    Comparison,
    Estimate,
    Result,
    difference,
    estimate,
    ratio,
    student_t,
)
from asyncdni.metrics.machine import cores, describe_machine
from asyncdni.metrics.verdict import accuracy_verdict, speed_verdict, verdict

# --- statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees", "confidence", "quantile"),
    [
        (1, 0.95, 12.706204736),
        (2, 0.95, 4.302652730),
        (3, 0.95, 3.182446305),
        (4, 0.95, 2.776445105),
        (9, 0.95, 2.262157163),
        (30, 0.95, 2.042272456),
        (1000, 0.95, 1.962339081),
        (1, 0.5, 1.0),
        (2, 0.99, 9.924843201),
        (5, 0.99, 4.032142984),
    ],
)
def test_quantiles_of_student_t_are_those_of_the_tables(
    degrees: int, confidence: float, quantile: float
) -> None:
    assert student_t(degrees, confidence) == pytest.approx(quantile, rel=1e-8)


@pytest.mark.parametrize(("degrees", "confidence"), [(0, 0.95), (3, 0.0), (3, 1.0)])
def test_a_quantile_that_does_not_exist_is_refused(degrees: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="degrees"):
        student_t(degrees, confidence)


def test_an_interval_is_the_mean_and_t_standard_errors_to_each_side() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None
    half = 4.302652730 / math.sqrt(3)
    assert (found.mean, found.n) == (2.0, 3)
    assert found.low == pytest.approx(2 - half)
    assert found.high == pytest.approx(2 + half)


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert estimate([5.0]) == Estimate(5.0, None, None, 1)
    assert estimate([]) is None
    assert ratio([]) is None
    assert difference([(3.0, 1.0)]) == Estimate(2.0, None, None, 1)


def test_a_ratio_is_a_geometric_mean_and_its_inverse_the_other_way_round() -> None:
    pairs = [(2.0, 1.0), (8.0, 1.0)]
    found, inverse = ratio(pairs), ratio([(b, a) for a, b in pairs])
    assert found is not None and found.low and found.high
    assert inverse is not None and inverse.low and inverse.high
    assert found.mean == pytest.approx(4.0)
    # Logarithms log 2 and log 8: mean log 4, standard error log 2.
    assert found.high == pytest.approx(4 * 2**12.706204736)
    assert inverse.low == pytest.approx(1 / found.high)


def test_pairs_that_move_together_give_a_narrow_interval() -> None:
    apart = difference([(10.0, 9.0), (20.0, 19.0), (30.0, 29.0)])
    assert apart == Estimate(1.0, 1.0, 1.0, 3)
    assert apart.excludes(0.0)
    assert not apart.excludes(1.0)


def test_without_an_interval_nothing_is_excluded() -> None:
    assert not Estimate(5.0, None, None, 1).excludes(0.0)


# --- recorded summaries --------------------------------------------------------------------------

#: samples/s and test accuracy by seed, as recorded on two cores.
RECORDED = {
    "locked": [(34972, 0.9635), (38883, 0.9605), (37722, 0.9615)],
    "synthetic": [(66732, 0.9605), (66762, 0.9580), (65792, 0.9585)],
    "single": [(63987, 0.9630), (63252, 0.9625), (86674, 0.9600)],
}


def result(name: str, seed: int, speed: float | None, accuracy: float | None) -> Result:
    summary = {
        "samples_per_s": speed,
        "test_accuracy": accuracy,
        "test_loss": 0.15,
        "train_s": 100_000 / speed if speed else 0.0,
        "cpu_s": 2.75,
        "workers": 1 if name == "single" else 4,
        "threads": 2 if name == "single" else 1,
    }
    return Result(name, seed, summary)


def recorded(seeds: int = 3, **changes: list[tuple[float, float | None]]) -> Comparison:
    rows = RECORDED | changes
    results = [
        result(name, seed, *values)
        for name, found in rows.items()
        for seed, values in enumerate(found[:seeds])
    ]
    return Comparison(tuple(rows), tuple(results))


def test_schedules_are_compared_seed_by_seed() -> None:
    found = recorded().ratio("synthetic", "locked")
    assert found is not None and found.low and found.high
    logs = [math.log(66732 / 34972), math.log(66762 / 38883), math.log(65792 / 37722)]
    mean, half = statistics.mean(logs), 4.302652730 * statistics.stdev(logs) / math.sqrt(3)
    expected = [math.exp(mean), math.exp(mean - half), math.exp(mean + half)]
    assert [found.mean, found.low, found.high] == pytest.approx(expected)


def test_a_seed_that_only_one_has_run_is_left_out_of_pairs() -> None:
    partial = Comparison(("a", "b"), (result("a", 0, 10, 0.5), result("b", 0, 5, 0.5)))
    more = Comparison(("a", "b"), (*partial.results, result("a", 1, 99, 0.5)))
    assert more.ratio("a", "b") == partial.ratio("a", "b")
    mean = more.estimate("a", "samples_per_s")
    assert mean is not None and (mean.mean, mean.n) == (54.5, 2)


def test_a_run_that_trained_nothing_counts_nowhere() -> None:
    empty = Comparison(("a", "b"), (result("a", 0, None, None), result("b", 0, 5, 0.5)))
    assert empty.estimate("a", "samples_per_s") is None
    assert empty.ratio("a", "b") is None
    assert empty.ranking() == ["b"]
    assert verdict(empty) == []


def test_the_leader_of_the_ranking_has_no_ratio_below_one() -> None:
    """By arithmetic means a would lead, by 55 to 50; seed by seed b is the faster one."""
    results = [result("a", s, v, 0.5) for s, v in enumerate((10, 100))]
    results += [result("b", s, v, 0.5) for s, v in enumerate((50, 50))]
    made = Comparison(("a", "b"), tuple(results))
    assert made.ranking() == ["b", "a"]
    found = made.ratio("b", "a")
    assert found is not None and found.mean > 1


# --- verdicts ------------------------------------------------------------------------------------


def test_the_verdict_says_what_is_clear_and_what_is_not() -> None:
    assert speed_verdict(recorded()) == (
        "Fastest: single, 1.90 times as fast as locked (95 % interval 1.23 to 2.94); "
        "not clearly faster than the rest: 1.06 times as fast as synthetic "
        "(95 % interval 0.67 to 1.69)."
    )


def test_the_verdict_fires_when_synthetic_is_slower() -> None:
    slow = recorded(synthetic=[(17000, 0.96), (19000, 0.96), (18500, 0.96)])
    assert speed_verdict(slow).startswith("Fastest: single, 1.90 times as fast as locked")
    assert "times as fast as synthetic" in speed_verdict(slow)
    no_single = Comparison(("locked", "synthetic"), slow.results)
    assert speed_verdict(no_single).startswith("Fastest: locked, 2.05 times as fast as synthetic")


def test_the_verdict_fires_when_synthetic_is_fastest() -> None:
    fast = recorded(synthetic=[(170000, 0.96), (171000, 0.96), (172000, 0.96)])
    assert speed_verdict(fast).startswith("Fastest: synthetic, 2.42 times as fast as single")
    assert "not clearly" not in speed_verdict(fast)


def test_equal_speeds_have_no_winner() -> None:
    same = [(50000.0, 0.96), (60000.0, 0.96), (40000.0, 0.96)]
    equal = recorded(locked=same, synthetic=same, single=same)
    assert speed_verdict(equal).startswith("None is clearly the fastest: ")


def test_one_seed_is_told_to_be_too_few() -> None:
    assert speed_verdict(recorded(seeds=1)) == (
        "Fastest: synthetic, 1.04 times as fast as single and 1.91 times as fast as locked. "
        "One seed shows no spread: compare over more (--seeds 3)."
    )


def test_accuracies_are_mentioned_where_they_differ_beyond_the_interval() -> None:
    assert accuracy_verdict(recorded()) == (
        "Test accuracies differ: locked is better by 0.28 points than synthetic "
        "(95 % interval 0.21 to 0.36)."
    )
    close = recorded(synthetic=[(66732, 0.9637), (66762, 0.9600), (65792, 0.9614)])
    assert accuracy_verdict(close) == ""
    assert accuracy_verdict(recorded(seeds=1)) == ""


def test_losses_without_right_answers_have_no_accuracy_verdict() -> None:
    none = [(50000.0, None), (51000.0, None)]
    assert accuracy_verdict(recorded(locked=none, synthetic=none, single=none)) == ""


# --- runs ----------------------------------------------------------------------------------------


def test_runs_are_interleaved_and_the_order_rotates_from_seed_to_seed() -> None:
    assert running.order(["a", "b", "c"], [7, 8]) == [
        ("a", 7),
        ("b", 7),
        ("c", 7),
        ("b", 8),
        ("c", 8),
        ("a", 8),
    ]


def test_over_as_many_seeds_as_names_each_is_at_each_place_once() -> None:
    names = ["a", "b", "c"]
    runs = running.order(names, range(3))
    places = {(name, index % 3) for index, (name, _) in enumerate(runs)}
    assert len(places) == 9


EXPERIMENT = """
[data]
name = "addition"

[[stages]]
name = "hidden"
layers = [{ dense = 8 }, "tanh"]

[[stages]]
name = "output"
layers = [{ dense = 8 }]
loss = "sigmoid_cross_entropy"

[schedule]
name = "synthetic"
fit_every = 3

[run]
epochs = 1
seed = 5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "addition.toml"
    path.write_text(EXPERIMENT)
    return path


def plan(file: Path, *changes: str, schedules: str = "locked,synthetic", seeds: int = 2) -> Any:
    return running.plan_runs(file, changes, schedules.split(","), seeds, cores=6)


def test_every_schedule_and_single_get_the_same_network_data_and_seeds(file: Path) -> None:
    entries = plan(file)
    assert [(entry.name, entry.seed) for entry in entries] == [
        ("locked", 5),
        ("synthetic", 5),
        ("single", 5),
        ("synthetic", 6),
        ("single", 6),
        ("locked", 6),
    ]
    assert all(entry.experiment.run.seed == entry.seed for entry in entries)
    assert all(entry.experiment.stages == entries[0].experiment.stages for entry in entries)
    assert len({entry.folder for entry in entries}) == 6


def test_single_is_one_worker_in_strict_order_on_all_cores(file: Path) -> None:
    single = plan(file, "run.split=[1,1]", "run.threads=1")[2].experiment
    assert (single.run.split, single.run.threads) == ([2], 6)
    assert single.schedule.__struct_config__.tag == "locked"


def test_options_go_to_the_schedules_that_know_them(file: Path) -> None:
    locked, synthetic, single, *_ = plan(file, "schedule.correct=true")
    assert synthetic.experiment.schedule.fit_every == 3
    assert synthetic.experiment.schedule.correct
    assert {type(one.experiment.schedule).__name__ for one in (locked, single)} == {"Locked"}
    assert plan(file, "schedule.fit_every=9", schedules="synthetic")[0].experiment.schedule == (
        type(synthetic.experiment.schedule)(fit_every=9)
    )


@pytest.mark.parametrize(
    ("schedules", "words"),
    [
        ("lokced,synthetic", "unknown schedule 'lokced', did you mean 'locked'"),
        ("unheard", "known: locked, synthetic"),
        ("locked,synthetic,locked", "locked is given twice"),
        ("single", "single is always compared with"),
    ],
)
def test_schedules_that_make_no_comparison_are_refused(
    file: Path, schedules: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(file, schedules=schedules)


def test_no_schedules_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="none given"):
        running.check_schedules([])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("schedule.fit_evry=2", "fit_evry"),
        ("schedule.name=locked", "--schedules"),
        ("run.epochs=0", "nothing to compare"),
        ("run.split=[3]", "run.split"),
    ],
)
def test_what_can_not_run_is_refused_before_anything_runs(
    file: Path, change: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(file, change)


# --- the document --------------------------------------------------------------------------------


def test_the_document_holds_rows_verdict_machine_and_every_summary(file: Path) -> None:
    entries = plan(file, "run.seed=0", seeds=3)
    found = running.document(entries, recorded().results)
    assert found["complete"]
    assert found["seeds"] == [0, 1, 2]
    assert [row["name"] for row in found["rows"]] == ["locked", "synthetic", "single"]
    synthetic = found["rows"][1]
    assert synthetic["samples_per_s"]["mean"] == pytest.approx(66428.67, abs=0.01)
    assert synthetic["speedup_over_locked"]["mean"] == pytest.approx(1.7878066)
    assert (synthetic["runs"], synthetic["workers"], synthetic["threads"]) == (3, 4, 1)
    assert found["verdict"] == verdict(recorded())
    assert found["runs"][0]["folder"] == "locked-seed0"
    assert found["runs"][0]["summary"]["samples_per_s"] == 34972
    assert json.loads(json.dumps(found)) == found


def test_a_document_of_some_runs_says_that_it_is_not_complete(file: Path) -> None:
    entries = plan(file, "run.seed=0", seeds=3)
    found = running.document(entries, recorded().results[:1])
    assert not found["complete"]
    assert found["rows"][2]["samples_per_s"] is None
    assert found["verdict"] == []


def test_without_locked_there_is_no_speed_up(file: Path) -> None:
    entries = plan(file, "run.seed=0", schedules="synthetic", seeds=3)
    results = [one for one in recorded().results if one.name != "locked"]
    rows = running.document(entries, results)["rows"]
    assert [row["speedup_over_locked"] for row in rows] == [None, None]


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["cores"] == cores() >= 1
    assert {"cpu", "system", "python", "numpy", "blas", "asyncdni"} < set(machine)
