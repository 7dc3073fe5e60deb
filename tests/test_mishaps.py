"""Deaths and what was done about them: a line each on the screen, a few numbers in the summary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from asyncdni.cli import mishaps
from asyncdni.errors import CheckpointError
from asyncdni.metrics.recorder import Recorder

SHOWN: dict[str, tuple[dict[str, Any], str]] = {
    "lost": ({"stage": "b", "text": "worker b died"}, "lost: worker b died"),
    "stuck": ({"text": "nothing has moved for 60 s"}, "stuck: nothing has moved for 60 s"),
    "launch": ({"stage": "b", "attempt": 2}, "starting b again, attempt 2"),
    "waiting": ({"stage": "b", "command": "x --y"}, "waiting for b; start it: x --y"),
    "accused": ({"stage": "b", "by": "a", "text": "nonsense"}, "a accuses b: nonsense"),
    "note": ({"stage": "b", "text": "no whole snapshot"}, "b: no whole snapshot"),
    "round": (
        {"incarnation": 3, "restore": "keep", "start": 1234},
        "all join again at batch 1,234, each with the state that it has",
    ),
    "back": (
        {"stage": "b", "down_s": 0.514, "lost_updates": 1, "again": False},
        "b is back after 0.51 s, 1 update lost",
    ),
    "numbers": ({"stage": "b", "text": "loss is nan"}, "back to the last checkpoint: loss is nan"),
    "resumed": (
        {"restore": "checkpoints/000002", "start": 20},
        "going on at batch 20, from checkpoints/000002",
    ),
    "passed_over": ({"text": "x is damaged"}, "passed over: x is damaged"),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_each_is_shown_in_a_line(kind: str) -> None:
    values, line = SHOWN[kind]
    assert mishaps.line(kind, values) == line


def test_all_other_records_are_none() -> None:
    assert mishaps.line("report", {"stage": "b", "values": {}}) is None


@pytest.mark.parametrize(
    ("restore", "shown"),
    [
        ("initial", "from the initial weights"),
        ("snapshots", "each from its last snapshot"),
        ("checkpoints/000007", "from checkpoints/000007"),
    ],
)
def test_a_round_says_what_it_starts_from(restore: str, shown: str) -> None:
    values = {"incarnation": 2, "restore": restore, "start": 5}
    assert mishaps.line("round", values) == f"all join again at batch 5, {shown}"
    assert mishaps.line("round", {**values, "incarnation": 1}) is None  # for the first time


def test_what_is_to_be_done_again_is_not_called_lost() -> None:
    back = {"stage": "b", "down_s": 0.514, "lost_updates": 300, "again": True}
    assert mishaps.line("back", back) == "b is back after 0.51 s, 300 updates to be done again"
    told = {"lost_updates": {"a": 800, "b": 300}, "again": True}
    values = {"incarnation": 2, "restore": "initial", "start": 0, **told}
    counted = "of all workers together 1,100 updates to be done again"
    assert mishaps.line("round", values) == (
        f"all join again at batch 0, from the initial weights; {counted}"
    )
    assert mishaps.line("round", {**values, "incarnation": 1}) == counted  # a run taken up again


def test_where_each_keeps_its_state_only_the_one_that_comes_back_is_said_to_have_lost() -> None:
    values = {"incarnation": 2, "restore": "keep", "start": 5, "lost_updates": {"b": 3}}
    line = mishaps.line("round", {**values, "again": False})
    assert line == "all join again at batch 5, each with the state that it has"


# --- the summary ---------------------------------------------------------------------------------


def record(recorder: Recorder, kind: str, time_s: float = 0.0, **values: Any) -> None:
    recorder.record(kind, {"time_s": time_s, **values})


NOTHING = {"loss_sum": 0.0, "loss_samples": 0, "generator_s": 0.0}


def report(recorder: Recorder, stage: str, **values: Any) -> None:
    record(recorder, "report", stage=stage, values={**NOTHING, **values})


def test_the_summary_adds_up_what_deaths_and_checkpoints_have_cost() -> None:
    recorder = Recorder(("a", "b"), {}, None)
    for lost, down_s in ((3, 0.5), (4, 0.25)):
        record(recorder, "launch", stage="a", attempt=1)
        record(recorder, "back", stage="a", lost_updates=lost, down_s=down_s)
    record(recorder, "cut", number=1, took_s=0.125)
    record(recorder, "numbers", stage="b", text="nan")
    record(recorder, "resumed", restore="initial", start=0)
    found = recorder.summary(1.0)
    expected = {"restarts": 2, "lost_updates": 7, "down_s": 0.75, "rollbacks": 1, "resumes": 1}
    assert {name: found[name] for name in expected} == expected
    assert (found["cuts"], found["checkpoint_s"]) == (1, 0.125)


def test_the_summary_counts_what_each_worker_had_done_since_the_state_it_came_back_with() -> None:
    recorder = Recorder(("a", "b"), {}, None)
    for lost in ({"a": 5, "b": 2}, {}, {"b": 1}):
        values = {"incarnation": 2, "restore": "initial", "start": 0, "again": True}
        record(recorder, "round", lost_updates=lost, **values)
        record(recorder, "back", stage="b", lost_updates=9, down_s=0.5, again=True)
    found = recorder.summary(1.0)
    assert found["lost_updates"] == 8
    assert [stage["lost_updates"] for stage in found["stages"]] == [5, 3]


def test_times_add_up_over_the_processes_of_a_worker_and_what_its_state_counts_does_not() -> None:
    recorder = Recorder(("a",), {}, None)
    record(recorder, "joined", stage="a", pid=1, host="h")
    report(recorder, "a", compute_s=1.0, op_F_count=5, op_F_wall_s=1.0, batches=5, queue=3)
    report(recorder, "a", compute_s=2.0, op_F_count=9, op_F_wall_s=2.0, batches=9, queue=1)
    record(recorder, "joined", stage="a", pid=2, host="h")
    report(recorder, "a", compute_s=0.5, op_F_count=2, op_F_wall_s=0.5, batches=8, queue=2)
    (stage,) = recorder.summary(1.0)["stages"]
    assert stage["compute_s"] == 2.5
    assert stage["ops"]["F"] == {"count": 11, "wall_s": 2.5}
    assert stage["batches"] == 8  # its state was of batch 6
    assert recorder.reports["a"]["queue"] == 2


# --- a run that goes on --------------------------------------------------------------------------


def first_part(folder: Path) -> None:
    recorder = Recorder(("a",), {}, folder)
    record(recorder, "joined", 100.0, stage="a", pid=1, host="h")
    record(recorder, "start", 101.0)
    report_at = {**NOTHING, "loss_samples": 4, "samples": 40, "compute_s": 2.0}
    record(recorder, "report", 102.0, stage="a", values=report_at)
    record(recorder, "drained", 103.0, barrier=0)
    scores = {"samples": 40, "train_s": 2.0, "accuracy": 0.5, "loss": 1.0}
    record(recorder, "evaluation", 104.0, **scores)
    record(recorder, "resume", 104.0)
    record(recorder, "launch", 105.5, stage="a", attempt=1)
    recorder.close()


def test_its_records_are_added_to_and_its_summary_is_of_all(tmp_path: Path) -> None:
    first_part(tmp_path)
    again = Recorder(("a",), {}, tmp_path)
    assert [entry["samples"] for entry in again.history] == [40]
    assert again.trained_s == 3.5  # 2 s to the first barrier, 1.5 s behind it up to its death
    record(again, "joined", 7.0, stage="a", pid=2, host="h")  # by the clock of another process
    record(again, "start", 8.0)
    values = {**NOTHING, "loss_samples": 4, "samples": 60, "compute_s": 1.0}
    record(again, "report", 9.0, stage="a", values=values)
    again.close()
    summary = again.summary(10.0)
    assert (summary["train_samples"], summary["restarts"]) == (60, 1)
    assert (summary["wall_s"], summary["startup_s"]) == (7.5, 1.0)
    assert summary["stages"][0]["compute_s"] == 3.0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    times = [line["time_s"] for line in lines]
    assert times == sorted(times) and times[-4:] == [5.5, 5.5, 6.5, 7.5]


def test_a_line_that_a_death_has_cut_short_is_taken_away(tmp_path: Path) -> None:
    first_part(tmp_path)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"kind": "repo')
    again = Recorder(("a",), {}, tmp_path)
    record(again, "bound", 1.0)
    again.close()
    assert path.read_text() == whole + '{"kind": "bound", "time_s": 5.5}\n'


def test_a_folder_that_is_removed_while_the_run_goes_on_ends_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    recorder = Recorder(("a",), {}, folder)
    record(recorder, "bound", 1.0)
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match=f"{folder} was removed while the run went on"):
        record(recorder, "start", 2.0)
    recorder.close()


def test_a_worker_of_another_split_is_left_out(tmp_path: Path) -> None:
    first_part(tmp_path)
    again = Recorder(("a+b",), {}, tmp_path)
    assert set(again.reports) == {"a+b"}
    again.close()


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"kind": "start"}', '{"time_s": "x"}'])
def test_a_file_that_holds_anything_else_is_named_with_the_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "bound", "time_s": 0}\n' + line + "\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2: expected a record"):
        Recorder(("a",), {}, tmp_path)
