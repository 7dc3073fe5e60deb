"""`asyncdni profile`: tables on standard output, all figures as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import TINY

from asyncdni.__main__ import main


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "tiny.toml").write_text(TINY)
    return str(tmp_path / "tiny.toml")


def test_stages_messages_splits_and_limits_are_shown(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "profile.json"
    given = ["--batches", "8", "--cores", "2", "--json", str(path)]
    assert main(["profile", file, *given]) == 0
    found = json.loads(path.read_text())
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    heading = ["stage", "R", "F", "P", "B", "B+send", "b", "W", "U", "T", "locked", "synthetic"]
    assert heading in lines
    stage = found["stages"][0]
    assert [stage["name"], f"{stage['ops']['R']['median_s'] * 1e6:,.0f}"] == next(
        line[:2] for line in lines if line[:1] == ["hidden"]
    )
    stage = found["stages"][1]
    shown = dict(zip(heading, next(line for line in lines if line[:1] == ["top"]), strict=True))
    assert shown["W"] == f"{stage['ops']['W']['median_s'] * 1e6:,.0f}" and shown["R"] == "-"
    message = next(one for one in found["edges"] if one["kind"] == "activation")
    assert f"{message['tensor_bytes']:,} + {message['header_bytes']}" in out
    assert message["tensor_bytes"] == 10 * 8 * 4 + 10 * 3 * 4
    two = found["splits"][1]["schedules"]["synthetic"]
    assert f"{two['samples_per_s']:,.0f} ({two['speed_up']:.2f})" in out
    text = " ".join(out.split())
    assert "times single." in text and "messages and waiting are not in these figures" in text


def test_json_on_standard_output_has_it_for_itself(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", file, "--batches", "4", "--workers", "2", "--json", "-"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [one["workers"] for one in found["splits"]] == [2]
    assert found["batches"] == 4 and "best split" in captured.err


def test_a_locked_experiment_is_told_how_to_profile_generators(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", file, "--batches", "4", "--set", "schedule.name=locked"]) == 0
    assert "--set schedule.name=synthetic" in " ".join(capsys.readouterr().out.split())


def test_ops_that_are_done_on_few_batches_are_named(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", file, "--batches", "8", "--set", "schedule.fit_every=3"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "only every 3rd batch sends gradients: no B+send, b, T on the others." in text


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--workers", "3"], "--workers 3: expected at most 2"),
        (["--json", "nowhere/profile.json"], "there is no folder nowhere"),
        (["--set", "schedule.fit_every=0"], "schedule.fit_every"),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(
    flags: list[str], text: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", file, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("asyncdni: ") and text in error and error.count("\n") == 1


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_numbers_below_one_are_refused(
    number: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["profile", file, f"--batches={number}"])
    assert f"expected a whole number from 1, got '{number}'" in capsys.readouterr().err
