"""The lines of compare.csv and compare-evaluations.csv: every run's own numbers, in full."""

from __future__ import annotations

import csv
import io
from typing import Any

from reported import CURVES, at_latencies, document, run

from asyncdni.report.columns import evaluations_csv, flat_runs, runs_csv


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def of(name: str, seed: int, found: dict[str, Any] | None = None) -> dict[str, str]:
    read = lines(runs_csv(found or document()))
    (one,) = (line for line in read if (line["name"], line["seed"]) == (name, str(seed)))
    return one


def test_there_is_a_line_a_run_in_the_order_they_were_run() -> None:
    read = lines(runs_csv(document()))
    assert [(line["name"], line["seed"]) for line in read[:5]] == [
        *(("locked", "0"), ("synthetic", "0"), ("synthetic-zero", "0"), ("other", "0")),
        ("locked", "1"),
    ]
    assert len(read) == 8


def test_numbers_are_written_in_full() -> None:
    found = document()
    found["runs"][0]["summary"]["samples_per_s"] = 1 / 3
    assert float(of("locked", 0, found)["samples_per_s"]) == 1 / 3


def test_time_to_a_target_is_that_of_the_first_of_two_evaluations_in_a_row() -> None:
    assert of("locked", 0)["time_to_0.9_s"] == "2.0"
    assert of("locked", 0)["time_to_0.96_s"] == "3.0"
    assert of("synthetic", 0)["time_to_0.9_s"] == "0.5"


def test_one_lucky_evaluation_reaches_no_target() -> None:
    assert of("synthetic", 1)["time_to_0.9_s"] == "", "0.91, 0.89, 0.94, 0.89"


def test_a_target_that_was_not_reached_leaves_its_cell_empty() -> None:
    assert of("locked", 1)["time_to_0.96_s"] == "", "reached by the last evaluation alone"
    assert of("synthetic-zero", 0)["time_to_0.9_s"] == ""


def test_counters_are_sums_over_the_workers_and_the_greatest_staleness() -> None:
    one = of("locked", 0)
    assert (one["compute_s"], one["staleness_max"], one["bytes_sent"]) == ("2.5", "3", "2000000")
    assert one["generator_s"] == "", "no worker has one"


def test_runs_of_other_programs_leave_what_they_do_not_tell_empty() -> None:
    one = of("other", 0)
    assert one["samples_per_s"] == "1600.0"
    assert {one[key] for key in ("workers", "cpu_s", "updates", "test_accuracy")} == {""}


def test_runs_of_controls_are_marked() -> None:
    marked = {line["name"] for line in lines(runs_csv(document())) if line["control"] == "True"}
    assert marked == {"synthetic-zero"}


def test_names_with_commas_quotes_and_line_ends_come_back_as_they_were() -> None:
    name = 'a, "b"\nc'
    found = document(runs=[{**run("other", 0), "name": name}])
    assert [line["name"] for line in lines(runs_csv(found))] == [name]


def test_a_comparison_without_runs_has_headings_alone() -> None:
    assert runs_csv(document(runs=[])) == "name,seed\n"
    assert flat_runs(document(runs=[])) == []


def test_every_evaluation_is_a_line() -> None:
    read = lines(evaluations_csv(document()))
    assert len(read) == 8 * 4
    unknown = dict.fromkeys(("train_loss", "learning_rate", "samples_per_s"), "")
    assert read[4:6] == [
        {
            **{"name": "synthetic", "seed": "0", "samples": "1000", "train_s": "0.5"},
            **{"accuracy": "0.92", "loss": str(1 - 0.92)},
            **unknown,
        },
        {
            **{"name": "synthetic", "seed": "0", "samples": "2000", "train_s": "1.0"},
            **{"accuracy": "0.93", "loss": str(1 - 0.93)},
            **unknown,
        },
    ]


def test_metrics_of_any_run_have_columns_and_others_leave_them_empty() -> None:
    found = document()
    summary = found["runs"][0]["summary"]
    summary["test_metrics"] = {"top5": 0.99}
    summary["history"] = [{**one, "metrics": {"top5": 0.5}} for one in summary["history"]]
    assert [of(name, 0, found)["test_top5"] for name in ("locked", "synthetic")] == ["0.99", ""]
    read = lines(evaluations_csv(found))
    assert {(line["name"], line["seed"]) for line in read if line["test_top5"] == "0.5"} == {
        ("locked", "0")
    }


def test_runs_without_evaluations_have_no_such_lines() -> None:
    bare = {"name": "other", "seed": 0, "summary": {"samples_per_s": 1.0}}
    assert lines(evaluations_csv(document(runs=[bare]))) == []


def test_at_several_latencies_every_line_says_which_was_its() -> None:
    read = lines(runs_csv(at_latencies()))
    assert list(read[0])[:3] == ["name", "latency_s", "seed"]
    found = {(line["name"], line["latency_s"]) for line in read}
    assert found == {
        *((name, at) for name in CURVES if name != "other" for at in ("0.0", "0.01")),
        ("other", ""),
    }
    first = lines(evaluations_csv(at_latencies()))[0]
    assert list(first)[:3] == ["name", "latency_s", "seed"]
    assert "latency_s" not in lines(runs_csv(document()))[0]
