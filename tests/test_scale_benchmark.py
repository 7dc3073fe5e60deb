"""The benchmark of predictions runs on a tiny setting, goes on where it stopped, judges right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarking import module, run


def scale(results: Path, *more: object, code: int = 0) -> Any:
    tiny = ["--data", "digits", "--width", 8, "--workers", 2, "--schedules", "synthetic"]
    short = ["--latencies", "0ms", "1ms", "--seconds", 0.02, "--batches", 4, "--seeds", 1]
    return run("scale/run.py", *tiny, *short, "--results", results, *more, code=code)


@pytest.mark.long
def test_every_run_is_predicted_and_made(tmp_path: Path) -> None:
    results = tmp_path / "runs.json"
    shown = scale(results).stdout
    kept = json.loads(results.read_text())
    assert [one["key"] for one in kept["runs"]] == [
        f"{latency}, 2 workers: synthetic/0" for latency in ("0ms", "1ms")
    ]
    for one in kept["runs"]:
        assert one["samples_per_s"] > 0 and one["predicted"]["samples_per_s"] > 0
        assert one["train_samples"] % 256 == 0
    assert "of 2 settings are predicted within 15%" in shown
    assert "--resume goes on" in scale(results, code=1).stderr

    del kept["runs"][1]
    results.write_text(json.dumps(kept))
    again = scale(results, "--resume")
    assert again.stderr.count("\n") == 1 and again.stderr.startswith("1ms, 2 workers: synthetic/0 ")


def test_a_prediction_is_judged_by_the_medians_over_seeds(tmp_path: Path) -> None:
    tables, sweep = module("scale/scale_tables.py"), module("shared/sweep.py")
    runs = sweep.Runs(tmp_path / "none.json")
    for seed, (rate, told) in enumerate([(100.0, 110.0), (10.0, 112.0), (90.0, 20.0)]):
        key = f"0ms, 2 workers: locked/{seed}"
        own = {"cpu_s_per_batch": 1e-3, "idle": {"a": 0.5}, "staleness": {"a": None}}
        predicted = {**own, "samples_per_s": told}
        runs.found[key] = {"key": key, "samples_per_s": rate, **own, "predicted": predicted}
    runs.machine = {"blas": [], "cores": 2, "cpu": "none", "numpy": "0"}
    found = tables.tables_of(runs, tmp_path / "none.json")
    row = "| 0ms, 2 workers: locked | 90 | 10 to 100 | 110 | +22% | missed |"
    assert row in found["rates"]
    assert found["claim"].startswith("0 of 1 settings are predicted within 15%")
    assert found["events"] == "Not measured yet."


def test_the_simulator_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, results = module("scale/events.py"), tmp_path / "events.json"
    words = f"--results {results} --stages 2 --rounds 1 --predicted-stages 4 --only delayed"
    script.main(words.split())
    found = json.loads(results.read_text())
    (events,), (prediction,) = found["events"], found["predictions"]
    assert events["without"] > events["with_codec_and_check"] > 0
    assert prediction["stages"] == 4 and prediction["batches_per_s"] > 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_what_advise_says_is_held_against_runs() -> None:
    advised = module("scale/advised.py")
    near = advised.Check("digits: locked", 110.0, 90.0, 120.0, 100.0, 0.0)
    far = advised.Check("digits: delayed", 80.0, 60.0, 90.0, 100.0, 0.0)
    lines = advised.report([near, far]).splitlines()
    assert "| digits: locked | 110 | 90 to 120 | 100 | +10% | held |" in lines
    assert "| digits: delayed | 80 | 60 to 90 | 100 | -20% | MISSED |" in lines
    assert lines[-1].startswith("1 of 2 ranges held; predictions are off by 15% in the middle")
