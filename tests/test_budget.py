"""A comparison's time budget and its repeats: invented costs and loads, and no real runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recorded import ADDITION, result

from asyncdni.__main__ import main
from asyncdni.cli import compare
from asyncdni.errors import ConfigError
from asyncdni.launch import budget as budgets
from asyncdni.launch import compare as launch_compare
from asyncdni.launch.budget import Budget, Cost, Deadline, OutOfTime, fit, parse_budget
from asyncdni.report.load import Load
from asyncdni.report.statistics import Result

# --- decisions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found_s"), [("90s", 90.0), ("2min", 120.0), ("1.5 h", 5400.0), (" 10s ", 10.0)]
)
def test_a_budget_is_a_time(text: str, found_s: float) -> None:
    assert parse_budget(text) == found_s


@pytest.mark.parametrize("text", ["", "2", "0s", "-1min", "2 days", "1e3s", "nan h", "inf s"])
def test_a_budget_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a time such as 90s, 2min or 1h"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("left_s", "seeds_epochs"),
    [
        (1000.0, (5, 20)),  # a seed takes 2 + 20 x 1 s
        (109.0, (4, 20)),
        (44.0, (2, 20)),
        (43.0, (2, 19)),
        (6.0, (2, 1)),
        (5.0, (1, 3)),
        (3.0, (1, 1)),
        (2.5, (1, 0.5)),
        (1.9, (1, 0.0)),  # not even the fixed parts fit
    ],
)
def test_seeds_are_dropped_first_then_epochs_then_the_second_seed_then_a_part_of_the_epoch(
    left_s: float, seeds_epochs: tuple[int, float]
) -> None:
    costs = [Cost(0.5, 0.25), Cost(1.5, 0.75)]
    assert fit(costs, 5, 20, left_s) == seeds_epochs


def test_one_seed_that_was_asked_for_stays_one() -> None:
    assert fit([Cost(1.0, 1.0)], 1, 9, 5.0) == (1, 4)


def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands at the number in the list."""
    now = [0.0]
    monkeypatch.setattr(budgets, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_runs_of_the_first_seed_that_end_in_time_leave_room_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = clock(monkeypatch)
    budget = Budget("100s", 100.0, 0.0)
    now[0] = 20.0
    costs = [Cost(5.0, 1.0), Cost(5.0, 1.0)]  # a seed of 5 epochs takes 20 s, and 60 s are planned
    assert budget.shortened(costs, 9, 5, whole=True) == (4, 5)
    assert budget.shortened(costs, 3, 5, whole=True) == (3, 5)
    assert budget.shortened(costs, 9, 5, whole=False) == (3, 5)


def test_a_budget_in_which_no_run_can_begin_and_end_is_refused_with_what_would_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = clock(monkeypatch)
    budget = Budget("30s", 30.0, 0.0)
    now[0] = 10.0
    assert budget.shortened([Cost(5.0, 20.0)], 2, 5, whole=False) == (1, 0.5)
    with pytest.raises(ConfigError, match=r"takes 21 s here .* 20 s are left; give at least 38s"):
        budget.shortened([Cost(21.0, 20.0)], 2, 5, whole=False)


def test_a_deadline_stops_a_run_and_tells_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock(monkeypatch)
    recorder: Any = SimpleNamespace(loss_samples=0)
    design: Any = SimpleNamespace(meta=SimpleNamespace(train_samples=100))
    deadline = Deadline(end_s=50.0, limit_s=5.0)
    now[0] = 4.0
    deadline(design, recorder, "start", {})
    now[0] = 5.0
    deadline(design, recorder, "report", {})  # over its limit, but nothing trained yet
    assert deadline.cost() is None
    now[0], recorder.loss_samples = 5.5, 200
    deadline(design, recorder, "report", {})  # too early to tell
    now[0], recorder.loss_samples = 8.0, 400
    with pytest.raises(OutOfTime):
        deadline(design, recorder, "report", {})
    now[0] = 8.5  # it has ended
    assert deadline.cost() == Cost(fixed_s=4.5, epoch_s=1.0)


def test_at_the_end_of_the_budget_a_run_stops_that_has_not_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = clock(monkeypatch)
    deadline = Deadline(end_s=50.0)
    now[0] = 50.0
    recorder: Any = SimpleNamespace(loss_samples=0)
    design: Any = SimpleNamespace(meta=SimpleNamespace(train_samples=100))
    with pytest.raises(OutOfTime):
        deadline(design, recorder, "joined", {})


# --- whole comparisons, whose runs are invented --------------------------------------------------

QUIET = Load(0.02, 0.0, 0.01, 20.0, 100.0, 97.0)
BUSY = replace(QUIET, others=0.5)

Invented = Callable[[Sequence[str], str, int], Load]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `asyncdni compare` with invented runs; returns its document, and what was run.

    Without plots, which would take nine tenths of the time.
    """
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "a.toml").write_text(f"{ADDITION}\n[run]\nepochs = 10\n")
    runs: list[str] = []

    def run(
        load_of: Callable[[str], Load],
        *arguments: str,
        epochs_most: float = 99,
        epoch_s: float = 8.0,
    ) -> Any:
        def invented(entry: Any, folder: Path, observers: Any, **_: object) -> Result:
            runs.append(entry.title)
            (folder / entry.folder).mkdir()
            deadline = next((one for one in observers if isinstance(one, Deadline)), None)
            if deadline:  # a run of 10 epochs is too long, and one of fewer is not
                deadline.cost = lambda: Cost(1.0, epoch_s)  # type: ignore[method-assign]
            if entry.epochs > epochs_most:
                raise OutOfTime
            made = result(entry.name, entry.seed, 1000.0 + len(runs), 0.9)
            steps = {"epochs": entry.experiment.run.epochs, "steps": entry.experiment.run.max_steps}
            summary = {**made.summary, **steps}
            return replace(made, summary=summary, load=load_of(entry.title))

        monkeypatch.setattr(compare, "run_entry", invented)
        out = tmp_path / "out"
        flags = ["--schedules", "locked", "--out", str(out), "--quiet", *arguments]
        assert main(["compare", str(tmp_path / "a.toml"), *flags]) == 0
        return json.loads((out / "compare.json").read_text()), runs

    return run


def test_a_disturbed_run_is_made_again(made: Any) -> None:
    loads = iter([BUSY, QUIET, QUIET, QUIET, QUIET])
    found, runs = made(lambda _: next(loads))
    assert runs[:3] == ["locked, seed 0", "locked, seed 0", "single, seed 0"]
    assert [run["load"]["repeats"] for run in found["runs"]] == [1, 0, 0, 0]
    assert [run["disturbed"] for run in found["runs"]] == [""] * 4
    assert found["remarks"] == []
    assert "fastest" in found["verdict"].lower()


def test_on_a_machine_that_stays_busy_repeats_end_and_there_is_no_verdict(made: Any) -> None:
    found, runs = made(lambda _: BUSY)
    assert runs[:3] == ["locked, seed 0"] * 3
    assert len(runs) == 3 + 3
    assert found["remarks"] == [
        "locked, seed 0 was still disturbed after 2 repeats, so later runs were not repeated."
    ]
    assert found["verdict"].startswith("The machine was busy: no verdict on speed (disturbed runs:")
    assert [row["disturbed"] for row in found["rows"]] == [2, 2]


def test_repeats_can_be_left_out(made: Any) -> None:
    _, runs = made(lambda _: BUSY, "--repeats", "0")
    assert len(runs) == 4


def test_a_small_budget_means_fewer_epochs_and_says_so(made: Any) -> None:
    # Two runs a seed, each of 1 + 8 s an epoch: 4 runs of 3 epochs take 100 s, of 2 epochs 68 s.
    found, runs = made(lambda _: QUIET, "--budget", "2min", epochs_most=9)
    assert runs[:2] == ["locked, seed 0", "single, seed 0"]  # tried out, and stopped
    assert runs[2:] == [
        *("locked, seed 0", "single, seed 0"),
        *("single, seed 1", "locked, seed 1"),
    ]
    assert {run["summary"]["epochs"] for run in found["runs"]} == {2}
    assert found["complete"]
    assert found["remarks"] == [
        "The time budget of 2min allows 2 seeds of 2 epochs in place of 2 seeds of 10 epochs: "
        "accuracies are those of shorter training."
    ]


def test_a_budget_for_less_than_an_epoch_means_a_part_of_one_for_all_rows_alike(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three runs a seed, of 1 + 100 s an epoch: 90 s are planned for, and 29 s are left for each.
    rows = ["--schedules", "locked,delayed", "--set", "schedule.accumulate=2"]
    small = ["--budget", "2min", "--set", "data.batch_size=2", *rows]
    found, runs = made(lambda _: QUIET, *small, epochs_most=1, epoch_s=100.0)
    assert len(runs) == 6 and found["complete"]
    batches = {run["name"]: run["summary"]["steps"] for run in found["runs"]}
    assert batches["locked"] == batches["single"] == 2 * batches["delayed"] > 0
    [remark] = found["remarks"]
    assert remark.startswith("The time budget of 2min allows 1 seed of 0.2")
    assert " epochs in place of 2 seeds of 10 epochs" in remark
    monkeypatch.setattr(launch_compare, "_is_whole", lambda *_: True)
    again, _ = made(lambda _: QUIET, *small, "--resume", str(tmp_path / "out"))
    assert again["runs"] == found["runs"]


def test_rows_for_which_the_budget_leaves_no_trial_are_made_last(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = ["--set", "data.batch_size=2"]
    left = iter([50.0] * 4 + [5.0] * 9)  # after one trial less than half of it is left
    monkeypatch.setattr(Budget, "left_s", property(lambda _: next(left)))
    found, runs = made(lambda _: QUIET, "--budget", "2min", *tiny, epochs_most=1, epoch_s=100.0)
    assert runs == ["locked, seed 0", "locked, seed 0", "single, seed 0"]
    assert len(found["runs"]) == 2 and found["complete"]


def test_what_the_budget_left_out_is_made_later_with_as_many_epochs(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([120.0] * 4 + [1.0] * 9)  # the last runs do not fit any more
    monkeypatch.setattr(Budget, "left_s", property(lambda _: next(left)))
    found, _ = made(lambda _: QUIET, "--budget", "2min", epochs_most=9)
    done = len(found["runs"])
    assert not found["complete"] and 0 < done < 4
    remark = found["remarks"][0]
    assert "2 seeds of 2 epochs in place of" in remark
    monkeypatch.setattr(Budget, "left_s", property(lambda _: 120.0))
    monkeypatch.setattr(launch_compare, "_is_whole", lambda *_: True)
    again, _ = made(lambda _: QUIET, "--budget", "2min", "--resume", str(tmp_path / "out"))
    assert again["complete"] and again["remarks"] == [remark]
    assert len(again["runs"]) == 4 and again["runs"][:done] == found["runs"]


def test_an_ample_budget_changes_nothing(made: Any) -> None:
    found, runs = made(lambda _: QUIET, "--budget", "1h")
    assert len(runs) == 4 and found["complete"] and found["remarks"] == []
    assert {run["summary"]["epochs"] for run in found["runs"]} == {10}


def test_a_disturbed_run_is_not_repeated_where_the_budget_leaves_no_time(made: Any) -> None:
    # Runs take 81 s: there is time for all four, but not for one more before the last two.
    found, runs = made(lambda _: BUSY, "--budget", "230s")
    assert runs[:3] == ["locked, seed 0", "single, seed 0", "single, seed 1"]
    assert found["remarks"][0] == (
        "locked, seed 0 was disturbed; the budget leaves no time to repeat it."
    )
