"""The file of records and the numbers of the summary."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from asyncdni.errors import CheckpointError
from asyncdni.metrics.recorder import STAGE_FIELDS, Recorder


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
    assert set(busy) == {"name", *STAGE_FIELDS}


def test_the_summary_tells_what_memory_a_worker_held_at_first_and_at_last() -> None:
    recorder = Recorder(("a",), {}, None)
    for size in (200, 300):
        recorder.record("report", report("a", memory_bytes=size, memory_start_bytes=200))
    (stage,) = recorder.summary(1.0)["stages"]
    assert (stage["memory_start_bytes"], stage["memory_bytes"]) == (200, 300)
