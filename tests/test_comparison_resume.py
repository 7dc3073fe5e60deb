"""Which runs of an interrupted comparison are kept, and when going on is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded import ADDITION, result

from asyncdni import experiment
from asyncdni.data import checksums
from asyncdni.errors import ConfigError
from asyncdni.launch.compare import (
    COMPARISON,
    Entry,
    discard_unfinished,
    document,
    finished_runs,
    plan_runs,
)
from asyncdni.report.statistics import Result
from asyncdni.store.run import create_folder

Folder = tuple[Path, list[Entry], list[Result]]


def plan(
    path: Path,
    *changes: str,
    seeds: int = 2,
    schedules: str = "locked,synthetic",
    latencies: Sequence[str] = (),
) -> Any:
    file = path / "addition.toml"
    file.write_text(ADDITION)
    return plan_runs(file, changes, schedules.split(","), seeds, cores=2, latencies=latencies)


@pytest.fixture
def interrupted(tmp_path: Path) -> Folder:
    """Two of six runs are finished, and the third has begun."""
    folder, entries = tmp_path / "comparison", plan(tmp_path)
    for entry in entries[:3]:
        (folder / entry.folder).mkdir(parents=True)
        (folder / entry.folder / "experiment.toml").write_text(experiment.dumps(entry.experiment))
    results = [result(entry.name, entry.seed, 5e4, 0.96) for entry in entries[:2]]
    write(folder, document(entries, results))
    return folder, entries, results


def write(folder: Path, found: Any) -> None:
    (folder / COMPARISON).write_text(json.dumps(found))


def test_finished_runs_are_kept_with_their_summaries(interrupted: Folder) -> None:
    folder, entries, results = interrupted
    assert finished_runs(folder, entries) == results


def test_a_comparison_without_a_finished_run_begins_anew(interrupted: Folder) -> None:
    folder, entries, _ = interrupted
    write(folder, document(entries, []))
    assert finished_runs(folder, entries) == []


def test_a_run_whose_folder_is_gone_is_done_again(interrupted: Folder) -> None:
    folder, entries, results = interrupted
    (folder / entries[0].folder / "experiment.toml").unlink()
    assert finished_runs(folder, entries) == results[1:]


def test_what_others_left_in_the_folder_stays(interrupted: Folder) -> None:
    folder, entries, results = interrupted
    (folder / "notes").mkdir()
    assert discard_unfinished(folder, entries, results) == [folder / entries[2].folder]
    left = {path.name for path in folder.iterdir()}
    assert left == {COMPARISON, "notes", entries[0].folder, entries[1].folder}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"seeds": 3}, r"seeds is \[0, 1\] there and \[0, 1, 2\] here"),
        ({"schedules": "synthetic"}, r'rows is \["locked", "synthetic", "single"\] there'),
        ({"change": "run.epochs=9"}, "experiment.run.epochs is 5 there and 9 here"),
        ({"change": "data.batch_size=20"}, "experiment.data.batch_size is 10 there and 20 here"),
        (
            {"change": "stages.hidden.layers=[{dense=9},'tanh']"},
            r"it holds runs of another network: hidden.layers\[0\].dense is 8 there and 9 here",
        ),
        ({"change": "data.examples=50"}, "another network: data.examples is 100 there and 50 here"),
        ({"latencies": ["0ms", "1ms"]}, r"latencies is \[\] there and \[0.0, 0.001\] here"),
        (
            {"change": "schedule.fit_every=4"},
            "experiment of synthetic-seed0.schedule.fit_every is 1 there and 4 here",
        ),
    ],
)
def test_another_comparison_is_refused_with_what_differs(
    interrupted: Folder, tmp_path: Path, other: dict[str, Any], words: str
) -> None:
    changes = [other.pop("change")] if "change" in other else []
    with pytest.raises(ConfigError, match=words) as caught:
        finished_runs(interrupted[0], plan(tmp_path, *changes, **other))
    assert "\n" not in str(caught.value)


def test_runs_at_several_latencies_are_kept_each_by_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    entries = plan(tmp_path, latencies=["0ms", "10ms"], seeds=1)
    results = []
    for entry in entries[1:3]:  # synthetic at 0 ms, locked at 10 ms
        (folder / entry.folder).mkdir(parents=True)
        (folder / entry.folder / "experiment.toml").write_text(experiment.dumps(entry.experiment))
        one = result(entry.name, entry.seed, 5e4, 0.96)
        results.append(replace(one, latency_s=entry.latency_s))
    write(folder, document(entries, results))
    assert finished_runs(folder, entries) == results
    assert discard_unfinished(folder, entries, results) == []
    assert discard_unfinished(folder, entries, results[1:]) == [folder / "synthetic-0ms-seed0"]


def test_runs_of_another_machine_are_not_mixed_with_those_of_this_one(
    interrupted: Folder,
) -> None:
    folder, entries, results = interrupted
    found = document(entries, results)
    write(folder, found | {"machine": found["machine"] | {"cores": 4096}})
    with pytest.raises(ConfigError, match=r"machine.cores is 4096 there and \d+ here"):
        finished_runs(folder, entries)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "there is no compare.json in it"),
        (lambda path: path.write_text("{"), "can't be read"),
        (lambda path: path.write_bytes(b"\xff"), "can't be read"),
        (lambda path: path.write_text("[]"), "lacks some of experiment, machine"),
        (lambda path: path.write_text('{"rows": []}'), "not written by this version"),
    ],
    ids=["missing", "torn", "no text", "no table", "an older one"],
)
def test_a_folder_without_a_whole_comparison_is_refused(
    interrupted: Folder, spoil: Callable[[Path], object], words: str
) -> None:
    folder, entries, _ = interrupted
    spoil(folder / COMPARISON)
    with pytest.raises(ConfigError, match=words):
        finished_runs(folder, entries)


def test_an_experiment_that_can_not_be_read_is_named(interrupted: Folder) -> None:
    folder, entries, _ = interrupted
    (folder / entries[0].folder / "experiment.toml").write_text("=")
    with pytest.raises(ConfigError, match=r"--resume .*experiment.toml: not TOML"):
        finished_runs(folder, entries)


# --- the samples ---------------------------------------------------------------------------------


def on_arrays(folder: Path, y_test: Sequence[int] = (0, 1)) -> list[Entry]:
    """The same comparison on samples of the user's own, in `folder`."""
    folder.mkdir(exist_ok=True)
    x, y = np.zeros((2, 3), np.float32), np.array([0, 1])
    np.savez(folder / "d.npz", x_train=x, y_train=y, x_test=x, y_test=np.array(y_test))
    (folder / "own.toml").write_text(
        'data = { name = "npz", path = "d.npz" }\n'
        '[[stages]]\nlayers = [{ dense = 2 }]\nloss = "cross_entropy"\n'
    )
    return plan_runs(folder / "own.toml", [], ["locked"], 1, cores=1)


def finished_on_arrays(folder: Path, **summary: Any) -> list[Entry]:
    entries = on_arrays(folder)
    results = [result(entry.name, entry.seed, 5e4, 0.96) for entry in entries]
    results = [replace(one, summary={**one.summary, **summary}) for one in results]
    for entry in entries:
        create_folder(folder / "runs" / entry.folder, entry.experiment)
    write(folder / "runs", document(entries, results))
    return entries


def test_a_comparison_that_has_moved_with_its_samples_goes_on(tmp_path: Path) -> None:
    known = checksums(on_arrays(tmp_path / "a")[0].experiment.data)
    finished_on_arrays(tmp_path / "a", data={"checksums": known})
    (tmp_path / "a").rename(tmp_path / "b")
    entries = on_arrays(tmp_path / "b")
    assert len(finished_runs(tmp_path / "b" / "runs", entries)) == len(entries)


def test_a_comparison_on_other_samples_is_not_gone_on_with(tmp_path: Path) -> None:
    known = checksums(on_arrays(tmp_path / "a")[0].experiment.data)
    finished_on_arrays(tmp_path / "a", data={"checksums": known})
    with pytest.raises(ConfigError, match=r"runs on other samples: .*d\.npz .* contents in y_test"):
        finished_runs(tmp_path / "a" / "runs", on_arrays(tmp_path / "a", (1, 0)))


def test_samples_of_which_nothing_is_known_must_lie_where_they_lay(tmp_path: Path) -> None:
    entries = finished_on_arrays(tmp_path / "a")
    assert len(finished_runs(tmp_path / "a" / "runs", entries)) == len(entries)
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"data\.path"):
        finished_runs(tmp_path / "b" / "runs", on_arrays(tmp_path / "b"))
