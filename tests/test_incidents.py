"""Deaths and what was done about them: a line each on the screen, a few numbers in the summary."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from asyncdni.errors import CheckpointError
from asyncdni.launch.incidents import incident_line
from asyncdni.report.records import Barriers, Recorder, Thinning

SHOWN: dict[str, tuple[dict[str, Any], str]] = {
    "lost": ({"stage": "b", "text": "worker b died"}, "lost: worker b died"),
    "stuck": ({"text": "nothing has moved for 60 s"}, "stuck: nothing has moved for 60 s"),
    "launch": ({"stage": "b", "attempt": 2}, "starting b again, attempt 2"),
    "waiting": ({"stage": "b", "command": "x --y"}, "waiting for b; start it: x --y"),
    "accused": ({"stage": "b", "by": "a", "text": "nonsense"}, "a reports a fault of b: nonsense"),
    "note": ({"stage": "b", "text": "no whole snapshot"}, "b: no whole snapshot"),
    "round": (
        {"incarnation": 3, "restore": "keep", "start": 1234},
        "all workers go on at batch 1,234, each with its present state",
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
    assert incident_line(kind, values) == line


def test_all_other_records_are_none() -> None:
    assert incident_line("report", {"stage": "b", "values": {}}) is None


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
    assert incident_line("round", values) == f"all workers go on at batch 5, {shown}"
    assert incident_line("round", {**values, "incarnation": 1}) is None  # for the first time


def test_what_is_to_be_done_again_is_not_called_lost() -> None:
    back = {"stage": "b", "down_s": 0.514, "lost_updates": 300, "again": True}
    assert incident_line("back", back) == "b is back after 0.51 s, 300 updates to be done again"
    told = {"lost_updates": {"a": 800, "b": 300}, "again": True}
    values = {"incarnation": 2, "restore": "initial", "start": 0, **told}
    counted = "all workers together: 1,100 updates to be done again"
    assert incident_line("round", values) == (
        f"all workers go on at batch 0, from the initial weights; {counted}"
    )
    assert incident_line("round", {**values, "incarnation": 1}) == counted  # a run taken up again


def test_where_each_keeps_its_state_only_the_one_that_comes_back_is_said_to_have_lost() -> None:
    values = {"incarnation": 2, "restore": "keep", "start": 5, "lost_updates": {"b": 3}}
    line = incident_line("round", {**values, "again": False})
    assert line == "all workers go on at batch 5, each with its present state"


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


def test_damaged_lines_are_passed_over_and_counted(tmp_path: Path) -> None:
    first_part(tmp_path)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    first = Recorder(("a",), {}, tmp_path)
    known = first.summary(1.0)
    first.close()
    damages = [b"nonsense", b"[]", b'{"kind": "start"}', b'{"time_s": "x"}', b"\0" * 5000]
    damages += [b'{"kind": "note", "time_s": NaN}', b'{"kind": "note\xff", "time_s": 0.1}']
    damages += [b'{"kind": "evaluation", "time_s": 1.0, "sampleS": 40}']
    damages += [b'{"kind": "report", "time_s": 1.0, "stagE": "a"}', b"[" * 100_000]
    for line in damages:
        path.write_bytes(line + b"\n" + whole)
        again = Recorder(("a",), {}, tmp_path)
        assert again.damaged == 1, line[:60]
        assert again.summary(1.0) == known
        again.close()


def test_a_file_in_which_any_byte_has_changed_is_read(tmp_path: Path) -> None:
    first_part(tmp_path)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (0x01, 0x20, 0x80):
            changed = bytearray(whole)
            changed[place] ^= bit
            path.write_bytes(changed)
            again = Recorder(("a",), {}, tmp_path)
            assert again.damaged <= 2  # where it was the end of a line, two have become one
            again.close()


# --- thinned -------------------------------------------------------------------------------------


def kept(thinning: Thinning, times: Iterable[float]) -> list[float]:
    return [time_s for time_s in times if thinning.keeps("a", time_s)]


def test_reports_are_kept_the_more_seldom_the_older_their_process_is() -> None:
    thinning = Thinning(1.0)
    thinning.joined("a", 100.0)
    times = kept(thinning, [100.0 + 0.5 * tick for tick in range(1, 2 * 3600)])
    assert times[:3] == [100.5, 101.0, 102.0]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert max(gaps) == 60.0 and len(times) < 80
    ages = [time_s - 100.0 for time_s in times]
    assert all(gap <= max(0.5, age) for gap, age in zip(gaps, ages, strict=False))
    thinning.joined("a", 4000.0)
    assert kept(thinning, [4000.5, 4001.0]) == [4000.5, 4001.0]


@pytest.mark.parametrize(
    ("hours", "every_s"), [(6, 12.0), pytest.param(24, 3.0, marks=pytest.mark.long)]
)
def test_all_workers_together_keep_as_many_reports_a_day_however_many_they_are(
    hours: int, every_s: float
) -> None:
    """They keep some 3,600 an hour, although every worker reports each `every_s` seconds."""
    for workers in (60, 240):
        thinning = Thinning(1.0)
        names = [f"w{number}" for number in range(workers)]
        ticks = range(round(hours * 3_600 / every_s))
        found = sum(thinning.keeps(name, every_s * tick) for tick in ticks for name in names)
        assert found <= 1.1 * 3_600 * hours


def counters(updates: int, losses: int = 1) -> dict[str, Any]:
    return {"loss_sum": 2.0 * losses, "loss_samples": losses, "updates": updates}


def reported(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [one["values"] for one in map(json.loads, lines) if one["kind"] == "report"]


def test_losses_of_reports_that_are_not_kept_go_into_the_next(tmp_path: Path) -> None:
    recorder = Recorder(("a",), {}, tmp_path)
    record(recorder, "joined", 0.0, stage="a", pid=1, host="h")
    for tick in range(1, 200):
        record(recorder, "report", 0.5 * tick, stage="a", values=counters(tick))
    assert len(reported(tmp_path)) < 20
    record(recorder, "lost", 100.0, stage="a", text="killed")
    assert reported(tmp_path)[-1]["updates"] == 199  # what was reported before a death is kept
    record(recorder, "report", 101.0, stage="a", values=counters(200))
    recorder.close()
    found = reported(tmp_path)
    assert found[-1]["updates"] == 200  # and the last one of all
    assert sum(one["loss_samples"] for one in found) == 200
    assert all(one["loss_sum"] == 2.0 * one["loss_samples"] for one in found)
    assert not (tmp_path / "reports.jsonl").exists()


def test_a_kill_loses_no_report(tmp_path: Path) -> None:
    """Whatever is in the file of records, the newest reports are beside it."""
    killed = Recorder(("a", "b"), {}, tmp_path)
    for stage in ("a", "b"):
        record(killed, "joined", 0.0, stage=stage, pid=1, host="h")
    for tick in range(1, 150):
        for stage in ("a", "b"):
            record(killed, "report", 0.5 * tick, stage=stage, values=counters(tick))
    assert reported(tmp_path)[-1]["updates"] < 140
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("metrics.jsonl", "reports.jsonl"):
        shutil.copy(tmp_path / name, copy / name)
    killed.close()
    again = Recorder(("a", "b"), {}, copy)
    assert [again.reports[stage]["updates"] for stage in ("a", "b")] == [149, 148]
    again.close()
    assert [one["updates"] for one in reported(copy)[-2:]] == [149, 148]
    assert [again.reports[stage]["updates"] for stage in ("a", "b")] == [149, 148]


def barrier(recorder: Recorder, number: int, time_s: float) -> None:
    """A tenth of a second of training, and as much of evaluation."""
    record(recorder, "drained", time_s + 0.1, barrier=number)
    scores = {"accuracy": 0.5, "loss": float(number)}
    place = {"batches": number, "samples": number, "train_s": 0.1 * number}
    record(recorder, "evaluation", time_s + 0.15, **place, **scores)
    record(recorder, "resume", time_s + 0.2)


def test_barriers_are_kept_one_a_second_and_half_a_minute_of_them_whenever_they_come() -> None:
    barriers = Barriers()
    assert all(barriers.keeps(float(second)) for second in range(1000))
    often = [0.1 * tick for tick in range(10_000, 20_000)]
    kept = [time_s for time_s in often if barriers.keeps(time_s)]
    assert kept[:30] == often[:30]
    assert len(kept) == pytest.approx(30 + 1000, abs=2)


def test_of_very_many_evaluations_the_last_is_kept_and_all_training_time(tmp_path: Path) -> None:
    killed = Recorder(("a",), {}, tmp_path)
    record(killed, "start", 0.0)
    for number in range(1, 501):
        barrier(killed, number, 0.2 * (number - 1))
        record(killed, "report", 0.2 * number, stage="a", values=counters(number))
    assert len(killed.history) == 500
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("metrics.jsonl", "reports.jsonl"):
        shutil.copy(tmp_path / name, copy / name)
    killed.close()
    for folder, missing in ((tmp_path, 0), (copy, 4)):
        again = Recorder(("a",), {}, folder)
        assert 100 <= len(again.history) <= 200
        assert [entry["batches"] for entry in again.history[:30]] == list(range(1, 31))
        assert again.history[-1]["batches"] >= 500 - missing
        assert again.trained_s == pytest.approx(50.0, abs=0.5)
        again.close()


def test_damage_to_the_newest_reports_does_no_harm(tmp_path: Path) -> None:
    first_part(tmp_path)
    newest = tmp_path / "reports.jsonl"
    old = {"kind": "report", "time_s": 0.5, "stage": "a", "values": {"loss_samples": 0}}
    for content in (b"\0" * 100 + b"\n", b'{"kind": "repo', json.dumps(old).encode() + b"\n"):
        newest.write_bytes(content)
        again = Recorder(("a",), {}, tmp_path)
        assert again.damaged == 0 and again.reports["a"]["compute_s"] == 2.0
        again.close()
