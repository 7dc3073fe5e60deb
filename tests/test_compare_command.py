"""`asyncdni compare`: real comparisons of a tiny network; its table has tests of its own."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from recorded import ADDITION
from test_report_page import Page

from asyncdni.__main__ import main
from asyncdni.cli.compare import add_arguments

EXPERIMENT = (
    ADDITION
    + """
[run]
epochs = 1
"""
)
#: What a comparison says on speed: the second on a busy machine.
SPEED_VERDICT = "Fastest: |The machine was busy: no verdict on speed"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "addition.toml"
    path.write_text(EXPERIMENT)
    return path


def command(file: Path, *arguments: str) -> list[str]:
    """Disturbed runs are not repeated: how many there were would depend on the machine."""
    head = [sys.executable, "-m", "asyncdni", "compare", str(file)]
    return [*head, "--repeats", "0", *arguments]


# --- real comparisons ----------------------------------------------------------------------------


def test_a_comparison_runs_every_schedule_and_leaves_table_and_json(
    file: Path, tmp_path: Path
) -> None:
    out, copy = tmp_path / "out", tmp_path / "copy.json"
    arguments = ("--seeds", "1", "--out", str(out), "--json", str(copy))
    done = subprocess.run(command(file, *arguments), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads((out / "compare.json").read_text())
    assert found == json.loads(copy.read_text())
    assert found["complete"]
    assert [run["name"] for run in found["runs"]] == ["locked", "synthetic", "single"]
    assert [run["summary"]["workers"] for run in found["runs"]] == [2, 2, 1]
    assert all(run["summary"]["train_samples"] == 100 for run in found["runs"])
    for run in found["runs"]:
        assert json.loads((out / run["folder"] / "summary.json").read_text()) == run["summary"]
    for line in ("run 1 of 3: locked, seed 0: test accuracy", "single: all stages in"):
        assert line in done.stdout
    assert re.search(SPEED_VERDICT, done.stdout)
    for run in found["runs"]:
        assert run["load"]["cores_s"] > 0 and run["load"]["start_gflops"] > 0
    assert (out / "compare.csv").is_file()
    kept = Page((out / "compare.html").read_text()).kept["news"].values()
    assert [one["title"] for one in kept] == [f"{run['name']}, seed 0" for run in found["runs"]]


@pytest.mark.long
def test_json_on_standard_output_has_it_to_itself(file: Path, tmp_path: Path) -> None:
    arguments = ("--schedules", "locked", "--seeds", "1", "--json", "-")
    done = subprocess.run(
        command(file, *arguments), capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert [row["name"] for row in found["rows"]] == ["locked", "single"]
    assert re.search(SPEED_VERDICT, done.stderr)
    kept = tmp_path / "runs" / "addition-compare" / "compare.json"
    assert json.loads(kept.read_text()) == found


@pytest.mark.long
def test_ctrl_c_ends_the_comparison_and_keeps_finished_runs(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--out", str(out), "--seeds", "2", "--set", "run.epochs=60")
    process = subprocess.Popen(
        command(file, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if line.startswith("run 2 of 6: synthetic, seed 0: synthetic, 2 workers"):
                process.send_signal(signal.SIGINT)
                break
        said = process.stderr.read()
    assert process.returncode == 130
    found = json.loads((out / "compare.json").read_text())
    assert not found["complete"]
    assert 1 <= len(found["runs"]) < 6
    assert f"finished runs: {len(found['runs'])} of 6, in {out}; to go on, give" in said
    assert (out / "locked-seed0" / "summary.json").is_file()


@pytest.mark.long
def test_every_kind_of_row_is_run_and_measured(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--seeds", "1", "--out", str(out), "--zero-control", "--single-threads", "1,7"]
    arguments += ["--target-accuracy", "0.1,100%", "--evaluate-every", "20", "--quiet"]
    done = subprocess.run(command(file, *arguments), capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = json.loads((out / "compare.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert {"locked", "synthetic", "synthetic-zero", "single", "single-7"} <= rows.keys()
    for run in found["runs"]:
        samples = [one["samples"] for one in run["summary"]["history"]]
        assert samples == [20, 40, 60, 80, 100]
    for name in ("locked", "synthetic"):
        assert rows[name]["ceiling_samples_per_s"]["mean"] > 0
        assert rows[name]["efficiency"]["mean"] > 0
        assert 0 < rows[name]["overhead_cpu"]["mean"] < 1
    assert rows["single"]["ceiling_samples_per_s"] is None
    assert all(abs(sum(row["shares"].values()) - 1) < 1e-9 for row in rows.values())
    reached = {target["accuracy"]: target["reached"] for target in rows["locked"]["targets"]}
    assert reached == {0.1: 1, 1.0: 0}


@pytest.mark.long
def test_schedules_are_compared_at_every_latency_and_gone_on_with(
    file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["--schedules", "locked,gpipe,synthetic", "--latencies", "0ms,5ms", "--seeds", "1"]
    arguments += ["--set", "schedule.microbatches=5", "--out", str(out)]
    done = subprocess.run(command(file, *arguments), capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    assert "run 4 of 7: locked at 5 ms, seed 0: test accuracy" in done.stdout
    assert re.search("At 5 ms links (synthetic is |the machine was busy: )", done.stdout)
    found = json.loads((out / "compare.json").read_text())
    assert found["complete"] and found["latencies"] == [0.0, 0.005]
    assert len(found["runs"]) == 7 and len(found["rows"]) == 8
    rows = {(row["name"], row["latency_s"]): row for row in found["rows"]}
    # 10 batches a way down and back apart, each at least 2 x 5 ms: what was asked, at the least
    assert rows["locked", 0.005]["train_s"]["mean"] >= 10 * 2 * 0.005
    assert rows["locked", 0.005]["efficiency"]["mean"] <= 1.0
    for name in ("compare.csv", "compare.html"):
        assert "synthetic" in (out / name).read_text()

    whole = dict(found)
    shutil.rmtree(out / "synthetic-5ms-seed0")
    again = subprocess.run(
        command(file, *arguments, "--resume", str(out)),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (again.returncode, again.stderr) == (0, "")
    assert "6 of 7 runs are finished already" in again.stdout
    found = json.loads((out / "compare.json").read_text())
    assert found["runs"][0] == whole["runs"][0]
    assert {run["folder"] for run in found["runs"]} == {run["folder"] for run in whole["runs"]}


# --- refused before anything runs ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--schedules", "locked,synthtic"], "did you mean 'synthetic'"),
        (["--schedules", "locked,locked"], "locked is given twice"),
        (["--json", "nowhere/found.json"], "--json nowhere/found.json: there is no folder nowhere"),
        (["--set", "run.epochs=0"], "run.epochs"),
        (["--schedules", "locked", "--zero-control"], "--zero-control"),
        (["--latencies", "0ms,soon"], "--latencies: expected a time from 0s to 60s"),
        (["--latencies", "1ms,0.001s"], "--latencies: 1ms and 0.001s are the same"),
        (["--latency=-5ms"], "--latencies: expected a time"),
        (["--slow", "hidden"], "--slow 'hidden': expected NAME=FACTOR"),
        (["--schedules", "gpipe", "--set", "schedule.microbatches=3"], "gpipe: schedule.microb"),
        (["--budget", "soon"], "--budget soon: expected a time such as 90s, 2min or 1h"),
        (["--resume"], "--resume: which comparison?"),
        (["--resume", "nowhere"], "--resume nowhere: there is no compare.json in it"),
        (["--resume", "one", "--out", "two"], "--resume one, --out two: two folders"),
    ],
)
def test_a_comparison_that_can_not_be_is_refused_with_a_reason(
    file: Path,
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", str(file), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_holds_something_is_refused(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(file), "--out", str(tmp_path)]) == 2
    assert "the folder is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "0"], "expected at least 1"),
        (["--repeats", "-1"], "expected at least 0"),
        (["--evaluate-every", "0"], "expected at least 1"),
        (["--single-threads", "1,two"], "expected numbers, such as 1,2"),
        (["--target-accuracy", "97"], "97: expected an accuracy above 0 and up to 1"),
        (["--target-accuracy", "0.9,,0.8"], "expected an accuracy"),
        (["--target-accuracy", "high%"], "expected an accuracy"),
        (["--target-accuracy", "nan"], "expected an accuracy"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(
    file: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["compare", str(file), *arguments])
    assert words in capsys.readouterr().err


def test_accuracies_are_given_as_parts_of_one_or_in_percent() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["x.toml", "--target-accuracy", "97.4%, 0.95,0.974"])
    assert args.target_accuracy == [0.95, 0.974]
