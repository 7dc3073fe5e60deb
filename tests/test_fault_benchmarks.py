"""The benchmarks of simulated faults, in small."""

from __future__ import annotations

import json
from pathlib import Path

import benchmarking
import pytest

SIMULATED, TABLE = "faults/simulated.py", "faults/table.py"


@pytest.mark.long
def test_runs_of_all_schedules_are_added_up_and_more_are_added(tmp_path: Path) -> None:
    results = tmp_path / "simulated.json"
    arguments = ("--runs", 6, "--jobs", 1, "--results", results)
    told = benchmarking.run(SIMULATED, *arguments).stdout
    assert "| all | 6 |" in told and "Faults: " in told
    benchmarking.run(SIMULATED, *arguments, "--more")
    found = json.loads(results.read_text())
    assert {one["runs"] for one in found["schedules"].values()} == {2}
    assert found["next_seed"] == 1_000_002
    assert not any(one["failures"] for one in found["schedules"].values())


def test_a_failure_is_told_with_its_command_and_keeps_its_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated = benchmarking.module(SIMULATED)

    def fails(run: object, result: object) -> None:
        raise AssertionError("it went wrong")

    monkeypatch.setattr(simulated, "assert_survived", fails)
    totals = simulated.do("locked", range(7, 8), tmp_path)
    (failure,) = totals.failures
    assert "it went wrong\nreplay: asyncdni simulate" in failure
    assert "--schedule locked --seed 7" in failure and "--faults" in failure
    assert (tmp_path / "failed-locked-7.toml").is_file()
    assert totals.runs == 1


@pytest.mark.long
def test_the_table_says_what_a_fault_costs_each_kind_of_schedule() -> None:
    table = benchmarking.module(TABLE)
    fault = "kill -9 of a hidden stage"
    plain, killed = table.do("locked", ""), table.do("locked", fault)
    assert table._happens(killed, plain) == "all back to cut 1"
    assert table._loses(killed, plain) == "nothing: same weights"
    assert table._takes(killed, plain).endswith("away 0.5 s")
    plain, killed = table.do("synthetic", ""), table.do("synthetic", fault)
    assert table._happens(killed, plain) == "others go on"
    assert "of 480 batches" in table._loses(killed, plain)


def test_every_schedule_has_a_cell_for_every_fault() -> None:
    table = benchmarking.module(TABLE)
    results = Path(table.RESULTS)
    found = json.loads(results.read_text())
    assert set(found) == {
        f"{name}/{fault}" for name in table.SCHEDULES for fault in ("", *table.FAULTS)
    }
    for text in table.tables_of(found).values():
        assert len(text.splitlines()) == 2 + len(table.FAULTS)
