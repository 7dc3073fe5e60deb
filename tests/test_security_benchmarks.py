"""The benchmarks of floods and of encryption do what they say, on a small run."""

from __future__ import annotations

import json
from pathlib import Path

import benchmarking
import pytest

FILE = benchmarking.ROOT / "launch" / "digits.toml"


@pytest.mark.long
def test_a_flooded_run_ends_with_the_weights_of_one_left_in_peace(tmp_path: Path) -> None:
    results = tmp_path / "flood.json"
    size = ["--file", FILE, "--epochs", 5, "--messages", 1000, "--settle", 0]
    which = ["--schedules", "locked", "--wires", "ipc", "--results", results]
    done = benchmarking.run("faults/flood.py", *size, *which)
    assert done.stdout.splitlines()[2].startswith("| locked | ipc | 1,0")
    (run,) = json.loads(results.read_text())["runs"]
    assert run["same_weights"]
    assert sum(run["war"]["flood"]["sent"].values()) >= 1000
    assert run["war"]["records"]["lost"] == 0
    assert set(run["war"]["flood"]["sent"]) == {
        *("coordinator", "hidden1", "hidden2", "hidden3", "classifier")
    }


def test_the_cost_of_keys_is_shown_as_a_ratio_seed_by_seed(capsys: pytest.CaptureFixture) -> None:
    curve = benchmarking.module("faults/curve.py")
    rates = {"plain": [100.0, 200.0, 400.0], "keys": [90.0, 180.0, 360.0]}
    runs = [
        {
            **{"width": 256, "how": how, "seed": seed, "schedule": "locked"},
            **{"samples_per_s": rate, "cpu_s": 1e3 / rate},
        }
        for how, found in rates.items()
        for seed, rate in enumerate(found)
    ]
    row = curve.tables_of(runs)["curve"].splitlines()[2]
    assert row.endswith("| 0.900 (0.900 to 0.900) | 0.85 | 1.111 (1.111 to 1.111) |")
