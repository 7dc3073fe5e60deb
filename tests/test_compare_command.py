"""`asyncdni compare`: its table, and real comparisons of a tiny network."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from asyncdni.__main__ import main
from asyncdni.cli.compare import make_table

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

[run]
epochs = 1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "addition.toml"
    path.write_text(EXPERIMENT)
    return path


def command(file: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "asyncdni", "compare", str(file), *arguments]


# --- the table -----------------------------------------------------------------------------------


def row(name: str, speed: float, ratio: float | None, seeds: int = 3) -> dict[str, Any]:
    def one(mean: float, half: float) -> dict[str, Any]:
        known = seeds > 1
        low, high = (mean - half, mean + half) if known else (None, None)
        return {"mean": mean, "low": low, "high": high, "n": seeds}

    return {
        "name": name,
        "samples_per_s": one(speed, speed / 50),
        "test_accuracy": one(0.96125, 0.0031),
        "test_loss": one(0.2, 0.01),
        "train_s": one(2.71, 0.2),
        "cpu_s": one(2.84, 0.1),
        "speedup_over_locked": None if ratio is None else one(ratio, ratio / 10),
    }


def printed(rows: list[dict[str, Any]], width: int, *, ascii_only: bool = False) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(make_table({"rows": rows}, width, ascii_only=ascii_only))
    written = console.file
    assert isinstance(written, io.StringIO)
    return [line.rstrip() for line in written.getvalue().splitlines()]


def test_a_wide_table_has_each_interval_beside_its_mean() -> None:
    lines = printed([row("synthetic", 66429, 1.79)], 100)
    assert " ".join(lines[1].split()) == (
        "synthetic 66,429 ± 1,329 96.12 ± 0.31 % 2.7 s 2.8 s 1.79 (1.61 to 1.97)"
    )


def test_a_narrow_table_has_each_interval_below_its_mean() -> None:
    lines = printed([row("synthetic", 1234567, 1.79)], 80)
    assert " ".join(lines[1].split()) == "synthetic 1,234,567 96.12 % 2.7 s 2.8 s 1.79"
    assert " ".join(lines[2].split()) == "± 24,691 ± 0.31 % (1.61 to 1.97)"
    assert max(map(len, lines)) <= 80


def test_one_seed_has_no_intervals_and_no_locked_no_speed_up() -> None:
    lines = printed([row("synthetic", 66429, None, seeds=1)], 80)
    assert " ".join(lines[1].split()) == "synthetic 66,429 96.12 % 2.7 s 2.8 s -"
    assert len(lines) == 2


def test_without_right_answers_the_loss_takes_the_place_of_the_accuracy() -> None:
    lines = printed([row("locked", 66429, 1.0) | {"test_accuracy": None}], 100)
    assert "test loss" in lines[0]
    assert "0.2000 ± 0.0100" in lines[1]


def test_a_terminal_without_unicode_gets_plain_signs() -> None:
    assert "66,429 +- 1,329" in printed([row("locked", 66429, 1.0)], 100, ascii_only=True)[1]


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
    for line in ("run 1 of 3: locked, seed 0: test accuracy", "Fastest: ", "single: all stages in"):
        assert line in done.stdout


def test_json_on_standard_output_has_it_to_itself(file: Path, tmp_path: Path) -> None:
    arguments = ("--schedules", "locked", "--seeds", "1", "--json", "-")
    done = subprocess.run(
        command(file, *arguments), capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert [row["name"] for row in found["rows"]] == ["locked", "single"]
    assert "Fastest: " in done.stderr
    kept = tmp_path / "runs" / "addition-compare" / "compare.json"
    assert json.loads(kept.read_text()) == found


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
    assert f"finished runs: {len(found['runs'])} of 6, in {out}" in said
    assert (out / "locked-seed0" / "summary.json").is_file()


# --- refused before anything runs ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--schedules", "locked,synthtic"], "did you mean 'synthetic'"),
        (["--schedules", "locked,locked"], "locked is given twice"),
        (["--json", "nowhere/found.json"], "--json nowhere/found.json: there is no folder nowhere"),
        (["--set", "run.epochs=0"], "run.epochs"),
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


def test_no_seeds_are_refused(file: Path) -> None:
    with pytest.raises(SystemExit):
        main(["compare", str(file), "--seeds", "0"])
