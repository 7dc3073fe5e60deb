"""`asyncdni simulate --faults … --runs N`: what is told, and what bad lists get."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_simulate_command import EXPERIMENT

from asyncdni.__main__ import main


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "small.toml"
    text = EXPERIMENT + "\n[run]\nepochs = 20\n\n[checkpoint]\nevery = 2.0\n"
    path.write_text(text)
    return str(path)


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["simulate", *words]) == 0
    return capsys.readouterr().out


def test_what_went_wrong_and_what_became_of_it_stands_below_the_picture(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = told(capsys, file, "--schedule", "locked", "--faults", "crash stage2 at 200ms")
    assert "faults: crash 1" in output
    assert re.search(
        r"worker stage2 died with signal 9\n.* round \d begins, from checkpoints/", output
    )
    assert re.search(r"stage2 is back after 0\.\d+ s; \d+ updates? to be done again", output)
    assert max(map(len, output.splitlines())) <= 100


def test_a_fault_that_comes_too_late_is_told_as_such(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = told(capsys, file, "--faults", "crash stage2 at 60s")
    assert output.count("faults: none, as the run was over after") == 2


@pytest.mark.long
def test_many_runs_are_added_up_by_schedule(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [file, "--faults", "crashes=5, breaks=5", "--runs", "4", "--seed", "3"]
    output = told(capsys, *words)
    assert re.search(r"^locked: 4 runs, [\d,]+ events, every sample accounted for", output)
    assert re.search(r"^synthetic: 4 runs", output, re.MULTILINE)
    crashes = [int(count) for count in re.findall(r"crash (\d+)", output)]
    assert len(crashes) == 2 and min(crashes) > 1
    assert told(capsys, *words) == output


def test_many_runs_without_faults_are_fine_too(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = told(capsys, file, "--runs", "3", "--schedule", "locked")
    assert output.startswith("locked: 3 runs") and "faults:" not in output


def test_a_full_disk_is_the_end_that_was_asked_for(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [file, "--faults", "failed_saves=1", "--schedule", "locked"]
    assert "it has ended: " in told(capsys, *words)
    assert "4 ended by a full disk, as they must" in told(capsys, *words, "--runs", "4")


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--faults", "crash stage2"], "expected crash NAME at TIME"),
        (["--faults", "crash nobody at 1s"], "crash nobody: known are stage1, stage2, stage3"),
        (["--faults", "crashes=2, crashes=3"], "crashes is given twice"),
        (["--faults", "no.toml"], "--faults no.toml: can't be read"),
        (["--runs", "0"], "--runs '0': expected a whole number from 1"),
    ],
)
def test_a_list_that_makes_no_sense_is_one_line(
    file: str, flags: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", file, *flags]) == 2
    line = capsys.readouterr().err
    assert error in line and line.count("\n") == 1
