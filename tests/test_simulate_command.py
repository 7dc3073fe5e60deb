"""`asyncdni simulate`: timelines as text, the table, flags, the command that replays a failure."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import networks
import numpy as np
import pytest

from asyncdni.__main__ import main
from asyncdni.drivers.virtual.costs import Costs
from asyncdni.drivers.virtual.simulation import simulate, timeline
from asyncdni.messages import Gradient

EXPERIMENT = """
[data]
name = "addition"
bits = 4
batch_size = 5
examples = 23

[[stages]]
layers = [{ dense = 6 }, "relu"]

[[stages]]
layers = [{ dense = 6 }, "relu"]

[[stages]]
layers = [{ dense = 4 }]
loss = "sigmoid_cross_entropy"

[schedule]
name = "synthetic"
generator = { kind = "linear" }
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "small.toml"
    path.write_text(EXPERIMENT)
    return str(path)


def pictures(output: str) -> dict[str, list[str]]:
    """Rows by schedule, out of what the command has printed."""
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        if line in ("locked", "synthetic"):
            rows = found[line] = []
        elif line.startswith("stage"):
            rows.append(line)
    return found


# --- timelines -----------------------------------------------------------------------------------


def test_locked_as_a_picture() -> None:
    """Only one batch is on its way; what a stage learns (W) and its update overlap with the
    backward above it. Both take longer than a message, so that columns show what overlaps."""
    design = networks.design(networks.chain(3), {"name": "locked"})
    costs = Costs(relay_us=100.0, learn_us=200.0, update_us=150.0)
    result = simulate(design, seed=0, costs=costs, maths=False)
    assert timeline(result.ops, batches=2) == [
        "s0   F0 .  .  .  .  B0 U0 F1 .  .  .  .  B1 U1",
        "s1   .  F0 .  .  b0 W0 U0 .  F1 .  .  b1 W1 U1",
        "top  .  .  F0 b0 W0 U0 .  .  .  F1 b1 W1 U1 .",
    ]


def test_locked_without_halves_as_a_picture() -> None:
    """The stage above waits for a whole backward; an update overlaps with the one above it."""
    design = networks.design(networks.chain(3), {"name": "locked", "split_backward": False})
    result = simulate(design, seed=0, costs=Costs(update_us=350.0), maths=False)
    assert timeline(result.ops, batches=2) == [
        "s0   F0 .  .  .  .  B0 U0 F1 .  .  .  .  B1 U1",
        "s1   .  F0 .  .  B0 U0 -  .  F1 .  .  B1 U1 -",
        "top  .  .  F0 B0 U0 -  .  .  .  F1 B1 U1 -  .",
    ]


def test_synthetic_as_a_picture() -> None:
    """Each stage learns at once; gradients come back later (T0)."""
    schedule = {"name": "synthetic", "generator": {"kind": "linear"}}
    design = networks.design(networks.chain(3), schedule)
    names = ("predict_us", "backward_us", "relay_us", "update_us", "fit_us")
    same = Costs(**dict.fromkeys(names, 100.0))
    rows = timeline(simulate(design, seed=0, costs=same, maths=False).ops, batches=2)
    assert rows == [
        "s0   F0 P0 B0 U0 F1 P1 B1 U1 F2 P2 B2",
        "s1   .  .  F0 P0 B0 U0 F1 P1 B1 U1 T0",
        "top  .  .  .  .  F0 B0 U0 .  F1 B1 U1",
    ]


def test_what_overlaps_in_time_shares_a_column() -> None:
    ops = {"a": [("F", 0, 0.0, 4.0)], "b": [("F", 7, 1.0, 2.0), ("U", 7, 3.0, 5.0)]}
    assert timeline(ops, batches=8) == ["a  F0 -", "b  F7 U7"]


def test_what_follows_in_time_stands_to_the_right_on_every_row() -> None:
    ops = {"a": [("F", 0, 0.0, 1.0)], "b": [("F", 0, 1.0, 2.0), ("U", 0, 2.0, 3.0)]}
    assert timeline(ops, batches=1) == ["a  F0 .  .", "b  .  F0 U0"]


def test_long_timelines_go_on_below_and_names_are_cut() -> None:
    ops = {"a" * 50: [("F", i, float(i), i + 1.0) for i in range(40)]}
    lines = timeline(ops, batches=40, width=60)
    assert max(map(len, lines)) <= 60
    assert lines[1] == ""
    assert re.findall(r"F\d+", " ".join(lines)) == [f"F{i}" for i in range(40)]


def test_no_ops_are_no_lines() -> None:
    assert timeline({"a": [], "b": [("R", 0, 0.0, 1.0)]}) == []


# --- the command ---------------------------------------------------------------------------------


def test_it_compares_the_schedule_of_the_file_with_locked(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", file, "--set", "run.evaluate_every=5"]) == 0
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 100
    assert {name: len(rows) % 3 for name, rows in pictures(output).items()} == {
        "locked": 0,
        "synthetic": 0,
    }
    locked, synthetic = output.splitlines()[-2:]
    assert locked.split()[:3:2] == ["locked", "1.00"]
    assert float(synthetic.split()[2]) > 1.5
    assert "accuracy" not in output


def test_the_same_seed_prints_the_same(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(seed: str) -> str:
        assert main(["simulate", file, "--seed", seed, "--vary", "0.5", "--maths"]) == 0
        return capsys.readouterr().out

    assert printed("4") == printed("4") != printed("5")


def test_only_the_schedules_that_were_asked_for(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", file, "--schedule", "synthetic", "--batches", "1"]) == 0
    output = capsys.readouterr().out
    assert list(pictures(output)) == ["synthetic"]
    assert output.splitlines()[-1].split()[2] == "-"  # nothing to compare with


def test_with_the_maths_there_is_an_accuracy(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", file, "--maths", "--schedule", "locked"]) == 0
    accuracy = re.search(r"([\d.]+) %\n$", capsys.readouterr().out)
    assert accuracy is not None and 40 < float(accuracy[1]) <= 100


def test_latency_costs_locked_more(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    def speed_up(latency: str) -> float:
        assert main(["simulate", file, "--latency", latency, "--set", "run.evaluate_every=5"]) == 0
        return float(capsys.readouterr().out.splitlines()[-1].split()[2])

    assert speed_up("0.4ms") > 1.2 * speed_up("0ms")


@pytest.mark.parametrize(
    ("flags", "setting"),
    [
        (["--latency", "2ms"], "links.latency=2ms"),
        (["--jitter", "2ms"], "links.jitter=2ms"),
        (["--bandwidth", "9kB/s"], "links.bandwidth=9kB/s"),
        (["--slow", "stage2=3"], "slow.stage2.factor=3"),
    ],
)
def test_flags_for_conditions_are_short_for_settings(
    file: str, flags: list[str], setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def table(*words: str) -> str:
        assert main(["simulate", file, *words]) == 0
        return capsys.readouterr().out

    assert table(*flags) == table("--set", setting) != table()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--latency", "5"], "links.latency: expected a time"),
        (["--latency", "-1ms"], "links.latency: expected a time"),
        (["--jitter", "0.2"], "links.jitter: expected a time"),
        (["--bandwidth", "fast"], "links.bandwidth: expected a rate"),
        (["--slow", "stage2"], "--slow 'stage2': expected NAME=FACTOR, such as hidden2=3"),
        (
            ["--slow", "stage2=0.5"],
            "slow.stage2.factor: expected a number of at least 1 and of at most 100000, got 0.5",
        ),
        (["--slow", "stage9=2"], "slow.stage9: there is no worker or stage 'stage9'"),
        (["--vary", "1.5"], "--vary '1.5': expected a number from 0 to 1"),
        (["--vary", "nan"], "--vary 'nan'"),
        (["--batches", "0"], "--batches '0': expected a whole number from 1"),
        (["--seed", "x"], "--seed 'x': expected a whole number from 0"),
        (["--schedule", "nope"], "unknown schedule 'nope'"),
        (["--set", "run.epoch=1"], "epoch"),
    ],
)
def test_a_bad_flag_is_one_line(
    file: str, flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # "--latency -1ms" would be an option of its own: give it as one word
    words = ["=".join(flags)] if flags[1].startswith("-") else flags
    assert main(["simulate", file, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("asyncdni: ") and error.count("\n") == 1
    assert told in error


def test_a_failure_prints_the_command_that_replays_it(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--set", 'optimizer={ name = "sgd", learning_rate = 1e30 }', "--maths"]
    flags += ["--seed", "3", "--vary", "0.25", "--latency", "1ms", "--slow", "stage1=2"]
    with np.errstate(all="ignore"):
        assert main(["simulate", file, *flags, "--schedule", "locked"]) == 1
        first = capsys.readouterr().err
        assert "learning_rate" in first
        program, *words = shlex.split(first.partition("replay: ")[2])
        assert program == "asyncdni"
        assert main(words) == 1
    assert capsys.readouterr().err == first


def test_a_hang_prints_the_command_that_replays_it(
    file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from asyncdni.core.liveness import Standstill
    from asyncdni.drivers.virtual.wires import Wires

    monkeypatch.setattr(Standstill, "deadline", lambda _: None)
    send = Wires.send

    def lossy(wires: Wires, sender: str, to: str, message: object, *rest: object, **more: object):
        return None if isinstance(message, Gradient) else send(
            wires, sender, to, message, *rest, **more
        )  # fmt: skip

    monkeypatch.setattr(Wires, "send", lossy)
    assert main(["simulate", file, "--schedule", "locked"]) == 1
    error = capsys.readouterr().err
    assert "hangs" in error and "worker stage1" in error
    assert error.endswith("--schedule locked --vary 0\n")


# --- op times of a profile -----------------------------------------------------------------------


def test_a_profile_gives_the_times_of_ops(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "profile.json"
    assert main(["profile", file, "--batches", "8", "--json", str(profile)]) == 0
    found = json.loads(profile.read_text())
    for stage in found["stages"]:
        stage["ops"] = {letter: {"median_s": 0.0} for letter in stage["ops"]}
        stage["ops"]["F"]["median_s"] = 1.0  # a second
    profile.write_text(json.dumps(found))
    capsys.readouterr()
    given = ["simulate", file, "--schedule", "locked"]
    assert main([*given, "--profile", str(profile)]) == 0
    measured = capsys.readouterr().out
    assert "Measured op times" in measured and "Assumed op times" not in measured
    (row,) = (line.split() for line in measured.splitlines() if line.startswith("locked  "))
    assert row[1] == "2"  # batches of 5 samples, after one another through 3 stages: 5 / 3 a second

    other = ["--set", "run.dtype=float64"]
    assert main([*given, *other, "--profile", str(profile)]) == 2
    assert 'run.dtype: "float32" in the profile' in capsys.readouterr().err
    del found["stages"][0]["ops"]["P"]
    profile.write_text(json.dumps(found))
    assert main([*given[:-1], "synthetic", "--profile", str(profile)]) == 2
    assert "it has no op 'P' of " in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"stages": []}'])
def test_a_file_that_is_no_profile_is_refused(
    content: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "profile.json"
    path.write_text(content)
    assert main(["simulate", file, "--profile", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "asyncdni profile FILE.toml --json" in line
