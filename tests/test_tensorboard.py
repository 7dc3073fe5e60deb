"""Event files: known records in, what TensorBoard's own reader finds out."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import asyncdni
from asyncdni.core.counts import Tally
from asyncdni.errors import CheckpointError, ConfigError
from asyncdni.report.tensorboard import EventFiles, stage_scalars

needs_tensorboard = pytest.mark.skipif(
    find_spec("tensorboard") is None,
    reason="needs TensorBoard: pip install 'asyncdni[tensorboard]'",
)

ADDITION = {
    "data": {"name": "addition", "bits": 3, "examples": 40, "test_examples": 20},
    "stages": [
        {"name": "hidden", "layers": [{"dense": 8}, "sigmoid"]},
        {"name": "top", "layers": [{"dense": 3}], "loss": "sigmoid_cross_entropy"},
    ],
    "run": {"epochs": 2},
}


def report(samples: int, wall_s: float, **values: Any) -> dict[str, Any]:
    known = {"loss_sum": 0.0, "loss_samples": 0, "samples": samples, "wall_s": wall_s}
    return known | {"bytes_sent": 4 * samples, "updates": samples // 10, **values}


def counted(*values: float, prefix: str = "staleness") -> dict[str, Any]:
    tally = Tally()
    for value in values:
        tally.add(value)
    return tally.counters(prefix)


FIRST = report(100, 1.0, compute_s=0.5, generator_s=0.25, wait_s=0.125, **counted(0, 3, 3, 3))
SECOND = report(
    500, 3.0, compute_s=0.75, generator_s=0.5, wait_s=1.625, **counted(0, 3, 3, 3, 7, 8)
)


# --- what two reports say ------------------------------------------------------------------------


def test_times_are_shares_of_the_time_since_the_last_report() -> None:
    first, second = stage_scalars(FIRST, {}), stage_scalars(SECOND, FIRST)
    shares = ("time/busy", "time/generator", "time/waiting", "time/transport")
    assert [first[tag] for tag in shares] == [0.75, 0.25, 0.125, 0.0]
    assert [second[tag] for tag in shares] == [0.25, 0.125, 0.75, 0.0]


def test_rates_are_those_since_the_last_report() -> None:
    found = stage_scalars(SECOND, FIRST)
    assert found["speed/samples_per_s"] == 200.0
    assert found["speed/updates_per_s"] == 20.0
    assert found["wire/bytes_sent_per_s"] == 800.0


def test_staleness_is_that_of_the_gradients_since_the_last_report() -> None:
    first, second = stage_scalars(FIRST, {}), stage_scalars(SECOND, FIRST)
    assert (first["staleness/updates_mean"], first["staleness/updates_max"]) == (2.25, 3)
    assert second["staleness/updates_mean"] == pytest.approx(7.5)
    assert second["staleness/updates_p50"] in (5, 6, 7, 8)


def test_agreement_is_the_mean_since_the_last_report() -> None:
    before = {**FIRST, "agreements": 2, "gradient_cosine": 0.5, "generator_loss": None}
    now = {**SECOND, "agreements": 6, "gradient_cosine": 0.75, "generator_loss": 2.0}
    found = stage_scalars(now, before)
    assert found["generator/cosine"] == pytest.approx((6 * 0.75 - 2 * 0.5) / 4)
    assert "generator/relative_error" not in found
    assert "generator/cosine" not in stage_scalars(now, now)


def test_what_did_not_happen_has_no_curve() -> None:
    found = stage_scalars(SECOND, FIRST)
    assert not any(tag.startswith(("batches/", "guard/", "queue")) for tag in found)
    assert stage_scalars(SECOND, SECOND).keys().isdisjoint(found.keys() & {"time/busy"})
    found = stage_scalars({**SECOND, "skipped": 3, "waiting": 0}, {**FIRST, "waiting": 1})
    assert (found["batches/skipped"], found["guard/waiting"]) == (3, 0)


# --- files ---------------------------------------------------------------------------------------


def read(folder: Path) -> Any:
    """One run of TensorBoard's."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    return found.Reload()


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(one.step, one.value) for one in read(folder).Scalars(tag)]


def feed(files: EventFiles, records: Iterable[tuple[str, dict[str, Any]]]) -> None:
    for time_s, (kind, values) in enumerate(records):
        files(None, None, kind, {"time_s": 50.0 + time_s, **values})


RECORDS = [
    ("start", {}),
    ("report", {"stage": "a", "values": report(0, 0.0)}),
    ("report", {"stage": "a", "values": FIRST}),
    ("report", {"stage": "b", "values": report(90, 1.0, loss_sum=45.0, loss_samples=90)}),
    ("evaluation", {"samples": 90, "train_s": 1.0, "accuracy": 0.875, "loss": 0.5}),
    ("guard", {"stage": "a", "waiting": True, "cosine": -0.5}),
    ("report", {"stage": "a", "values": SECOND}),
    ("evaluation", {"samples": 500, "train_s": 3.0, "accuracy": None, "loss": 0.25}),
]


@needs_tensorboard
def test_each_worker_is_a_run_with_its_curves_over_samples(tmp_path: Path) -> None:
    with EventFiles(tmp_path) as files:
        feed(files, RECORDS)
    folder = tmp_path / "tensorboard"
    assert curve(folder / "a", "time/busy") == [(100, 0.75), (500, 0.25)]
    assert curve(folder / "a", "guard/waiting") == [(100, 1.0)]
    assert curve(folder / "b", "train/loss") == [(90, 0.5)]
    assert "train/loss" not in read(folder / "a").Tags()["scalars"]
    seconds = [one.wall_time for one in read(folder / "a").Scalars("time/busy")]
    assert seconds[1] - seconds[0] == pytest.approx(4.0, abs=1e-3)


@needs_tensorboard
def test_the_older_a_run_the_wider_its_points_are_apart(tmp_path: Path) -> None:
    reports = [report(tick, float(tick), loss_sum=3.0, loss_samples=1) for tick in range(1, 1001)]
    with EventFiles(tmp_path) as files:
        feed(files, [("report", {"stage": "a", "values": values}) for values in reports])
    found = curve(tmp_path / "tensorboard" / "a", "train/loss")
    assert len(found) < 150 and found[0][0] == 1 and found[-1][0] == 1000
    assert {loss for _, loss in found} == {3.0}


@needs_tensorboard
def test_evaluations_are_those_of_the_whole_run(tmp_path: Path) -> None:
    with EventFiles(tmp_path) as files:
        feed(files, RECORDS)
    folder = tmp_path / "tensorboard"
    assert curve(folder, "test/accuracy") == [(90, 0.875)]  # the later one has none
    assert curve(folder, "test/loss") == [(90, 0.5), (500, 0.25)]


@needs_tensorboard
def test_staleness_has_a_histogram_with_every_number_in_its_place(tmp_path: Path) -> None:
    with EventFiles(tmp_path) as files:
        feed(files, RECORDS)
    first, second = read(tmp_path / "tensorboard" / "a").Histograms("staleness/updates")
    assert (first.step, second.step) == (100, 500)
    shown = first.histogram_value
    # One 0 drawn from 0 to 1, no 1 and no 2, three of 3 or 4 drawn from 3 to 5.
    assert (shown.min, list(shown.bucket_limit), list(shown.bucket)) == (
        *(0.0, [1.0, 2.0, 3.0, 5.0], [1.0, 0.0, 0.0, 3.0]),
    )
    assert (shown.num, shown.sum) == (4, 9)
    assert (second.histogram_value.min, list(second.histogram_value.bucket)) == (5.0, [2.0])


@needs_tensorboard
def test_tensorboard_itself_can_show_the_histograms(tmp_path: Path) -> None:
    """Its data layer refuses, or mangles, buckets that are empty, reversed or without a width."""
    from tensorboard import data_compat
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    ages = report(10, 1.0, **counted(0.0, 0.4, 30.0, 9000.0, prefix="age_ms"))
    with EventFiles(tmp_path) as files:
        feed(files, [("report", {"stage": "a", "values": ages})])
    (path,) = (tmp_path / "tensorboard" / "a").iterdir()
    values = [v for e in LegacyEventFileLoader(str(path)).Load() for v in e.summary.value]
    (histogram,) = [
        value for value in values if value.tag == "staleness/age_ms" and value.histo.num
    ]
    table = make_ndarray(data_compat.migrate_value(histogram).tensor)
    left, right, count = table.T
    assert (left < right).all() and (left[1:] == right[:-1]).all()
    assert count.sum() == 4 and (left[0], right[-1]) == (0.0, 9000.0)


@needs_tensorboard
def test_nothing_is_written_before_training(tmp_path: Path) -> None:
    with EventFiles(tmp_path) as files:
        feed(files, [("bound", {}), ("joined", {"stage": "a"}), *RECORDS[:2]])
    assert list(tmp_path.iterdir()) == []


@needs_tensorboard
def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with EventFiles(tmp_path) as files, pytest.raises(CheckpointError) as caught:
        feed(files, RECORDS)
    assert str(caught.value).startswith(f"can't write {tmp_path / 'tensorboard'}: ")


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    expected = r"not installed: pip install 'asyncdni\[tensorboard\]'"
    with pytest.raises(ConfigError, match=expected):
        EventFiles(tmp_path)
    with pytest.raises(ConfigError, match=expected):
        asyncdni.train(ADDITION, out=tmp_path / "run", tensorboard=True)
    assert list(tmp_path.iterdir()) == []


# --- a run ---------------------------------------------------------------------------------------


@needs_tensorboard
def test_a_run_leaves_its_curves(tmp_path: Path) -> None:
    result = asyncdni.train(ADDITION, out=tmp_path / "run", tensorboard=True)
    folder = tmp_path / "run" / "tensorboard"
    losses = [value for _, value in curve(folder, "test/loss")]
    assert losses == pytest.approx([one["loss"] for one in result.history])
    steps = [step for step, _ in curve(folder / "top", "train/loss")]
    assert steps[-1] == result.summary["train_samples"]
    assert "time/busy" in read(folder / "hidden").Tags()["scalars"]


def test_event_files_need_a_folder() -> None:
    with pytest.raises(ConfigError, match="need a run folder"):
        asyncdni.train(ADDITION, tensorboard=True)
