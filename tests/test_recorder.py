"""The file of records and the numbers of the summary."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from each import each

from asyncdni.core.counts import Tally
from asyncdni.errors import CheckpointError
from asyncdni.report.records import DISTRIBUTIONS, STAGE_FIELDS, Recorder


def report(stage: str, **values: Any) -> dict[str, Any]:
    known = {"loss_sum": 0.0, "loss_samples": 0, "samples": 10}
    return {"time_s": 1.0, "stage": stage, "values": {**known, **values}}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
def test_a_full_disk_is_named_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    recorder = Recorder(("a",), {}, tmp_path)
    expected = f"can't write {path}: No space left on device"
    with pytest.raises(CheckpointError) as caught:
        recorder.record("start", {"time_s": 0.0})
    assert str(caught.value) == expected
    with pytest.raises(CheckpointError) as caught:
        recorder.close()  # what is still to be written
    assert str(caught.value) == expected


def test_workers_are_busy_for_a_share_of_the_training_time_of_the_run() -> None:
    recorder = Recorder(("early", "late", "mute"), {}, None)
    busy = {"compute_s": 2.0, "generator_s": 1.0}
    recorder.record("report", report("early", **busy, busy_fraction=1.0))
    recorder.record("report", report("late", **busy, busy_fraction=0.5))
    shares = [stage["busy_fraction"] for stage in recorder.summary(6.0)["stages"]]
    assert shares == [0.5, 0.5, None]
    assert recorder.summary(0.0)["stages"][0]["busy_fraction"] is None


def test_the_summary_has_the_times_of_each_op() -> None:
    recorder = Recorder(("busy", "mute"), {}, None)
    times = {"op_F_count": 8, "op_F_wall_s": 2.0, "op_F_cpu_s": 1.5}
    late = {"op_b_count": 2, "op_b_wall_s": 0.5, "op_b_cpu_s": 0.25}
    recorder.record("report", report("busy", op_cpu_s=1.75, **times, **late))
    busy, mute = recorder.summary(6.0)["stages"]
    assert busy["ops"] == {
        "F": {"count": 8, "wall_s": 2.0, "cpu_s": 1.5},
        "b": {"count": 2, "wall_s": 0.5, "cpu_s": 0.25},
    }
    assert busy["op_cpu_s"] == 1.75
    assert mute["ops"] == {}
    by_link = {"lag_by_link", "bytes_by_link"}
    assert set(busy) == {"name", "lost_updates", *by_link, *STAGE_FIELDS, *DISTRIBUTIONS}


def test_a_stage_has_its_distributions_with_quantiles() -> None:
    tally = Tally()
    for staleness in (0, *[3] * 18, 7):
        tally.add(staleness)
    recorder = Recorder(("a", "mute"), {}, None)
    recorder.record("report", report("a", queue=2, **tally.counters("staleness")))
    a, mute = recorder.summary(1.0)["stages"]
    assert a["staleness"] == {
        **{"mean": 3.05, "max": 7, "p50": 3, "p95": 4},
        "bins": {"0": 1, "4": 18, "8": 1},
    }
    assert (a["staleness_mean"], a["staleness_max"]) == (3.05, 7)
    assert a["queue"] is None and mute["staleness"] is None


@each("field", (*STAGE_FIELDS, *DISTRIBUTIONS))
def test_every_field_is_explained(field: str) -> None:
    page = (Path(__file__).parents[1] / "docs" / "telemetry.md").read_text()
    assert f"`{field}`" in page or f"`{field.rpartition('_')[0]}`" in page


def test_samples_count_once_they_have_reached_the_loss() -> None:
    recorder = Recorder(("reads", "skips", "loss"), {}, None)
    recorder.record("report", report("reads", samples=100))
    assert recorder.summary(2.0)["train_samples"] == 0  # nobody knows yet where the loss is
    recorder.record("report", report("skips", samples=40))
    recorder.record("report", report("loss", samples=60, loss_samples=60, loss_sum=30.0))
    recorder.record("report", report("loss", samples=70))  # none since the last report
    summary = recorder.summary(2.0)
    assert (summary["train_samples"], summary["samples_per_s"]) == (70, 35.0)
    assert [stage["samples"] for stage in summary["stages"]] == [100, 40, 70]


def test_the_rate_between_fills_and_drains_is_that_of_the_slowest_loss() -> None:
    recorder = Recorder(("hidden", "main", "side"), {}, None)
    recorder.record("report", report("hidden", stream_s=1.0, stream_samples=10))
    losses = {"loss_samples": 10, "loss_sum": 5.0}
    recorder.record("report", report("main", stream_s=2.0, stream_samples=100, **losses))
    recorder.record("report", report("side", stream_s=0.0, stream_samples=0, **losses))
    assert recorder.summary(1.0)["stream_samples_per_s"] is None
    recorder.record("report", report("side", stream_s=2.0, stream_samples=80))
    assert recorder.summary(1.0)["stream_samples_per_s"] == 40.0


def test_what_guards_decided_is_kept_with_its_time(tmp_path: Path) -> None:
    recorder = Recorder(("a",), {}, tmp_path)
    recorder.record("start", {"time_s": 5.0})
    recorder.record("guard", {"time_s": 7.5, "stage": "a", "waiting": True, "cosine": -0.1})
    recorder.close()
    expected = {"time_s": 2.5, "stage": "a", "waiting": True, "cosine": -0.1}
    assert recorder.summary(1.0)["guard"] == [expected]
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line == {"kind": "guard", **expected}


def test_the_summary_tells_what_memory_a_worker_held_at_first_and_at_last() -> None:
    recorder = Recorder(("a",), {}, None)
    for size in (200, 300):
        recorder.record("report", report("a", memory_bytes=size, memory_start_bytes=200))
    (stage,) = recorder.summary(1.0)["stages"]
    assert (stage["memory_start_bytes"], stage["memory_bytes"]) == (200, 300)
