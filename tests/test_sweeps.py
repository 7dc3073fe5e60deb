"""Benchmarks that train in virtual time: each on a tiny setting, and that a lag is what was set."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import pytest
from benchmarking import module, run

from asyncdni import experiment

TINY = ["--data", "digits", "--validation", 9488, "--epochs", 1, "--seeds", 1, "--jobs", 1]


@pytest.mark.long
def test_staleness_runs_each_setting_once_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    results = tmp_path / "found.json"
    only = ["--only", "4 layers, lag 4: error, true", "4 layers: backprop"]
    arguments = ["--results", results, *TINY, "--more-seeds", 0, *only]
    shown = run("staleness/run.py", *arguments).stdout
    kept = results.read_bytes()
    names = [one["key"] for one in json.loads(kept)["runs"]]
    assert sorted(names) == ["4 layers, lag 4: error, true/0", "4 layers: backprop/0"]
    refused = run("staleness/run.py", *arguments, code=1).stderr
    assert "--resume" in refused and refused.count("\n") == 1
    assert run("staleness/run.py", *arguments, "--resume").stdout == shown
    assert results.read_bytes() == kept


@pytest.mark.parametrize("lag", [0, 3])
def test_a_lag_is_what_was_set_at_every_stage(lag: int) -> None:
    sweep = module("shared/sweep.py")
    data = {"name": "digits", "validation": 4000}
    schedule = {"name": "delayed"}
    tables = sweep.layered(3, schedule, data, {"name": "sgd"}, epochs=1, lag=lag)
    (job,) = sweep.seeded("one", 1, tables=tables, lag=lag)
    found = sweep.measure(job)
    assert found["lags"] == {"hidden1": lag, "hidden2": lag, "classifier": 0}


@pytest.mark.long
def test_paper_mnist_fills_a_row_of_its_table(tmp_path: Path) -> None:
    results = tmp_path / "found.json"
    arguments = ["--results", results, *TINY, "--layers", 3, "--only", "backprop", "cDNI"]
    shown = run("paper-mnist/run.py", *arguments).stdout
    names = {one["key"] for one in json.loads(results.read_text())["runs"]}
    assert {"3 layers: backprop/0", "3 layers: cDNI/0", "3 layers: no backprop/0"} <= names
    assert "cDNI, true targets" in shown and "| 3 |" in shown
    assert run("paper-mnist/run.py", *arguments, "--resume").stdout == shown


@pytest.mark.long
def test_random_updates_runs_each_row_once_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    results = tmp_path / "found.json"
    arguments = ["--results", results, "--epochs", 1, "--seeds", 1, "--data", "digits"]
    arguments += ["--validation", 9488, "--jobs", 1, "--only", "p = 0.2"]
    shown = run("random-updates/run.py", *arguments).stdout
    kept = json.loads(results.read_text())["runs"]
    assert [one["key"].rpartition(": p = ")[2] for one in kept] == 3 * ["0.2/0"]
    assert all(0 < one["error"] < 100 for one in kept)
    assert "p = 0.05 has not been run" in shown
    refused = run("random-updates/run.py", *arguments, code=1).stderr
    assert "--resume" in refused and refused.count("\n") == 1
    assert run("random-updates/run.py", *arguments, "--resume").stdout == shown


def test_random_updates_asks_for_every_probability_with_and_without_synthetic_inputs() -> None:
    script = module("random-updates/run.py")
    args = argparse.Namespace(
        data="digits", validation=0, epochs=1, seeds=2, only=None, results=None
    )
    jobs = script.plan(args)
    asked = {
        (one.get("synthetic_inputs", False), one["update_probability"])
        for one in (job.tables["schedule"] for job in jobs)
        if one["generator"]["kind"] == "error"
    }
    assert asked == set(itertools.product((False, True), (1.0, 0.5, 0.2, 0.1, 0.05)))
    assert len({job.key for job in jobs}) == len(jobs) == 2 * (10 + 2)
    for job in jobs:
        experiment.parse(job.tables)
