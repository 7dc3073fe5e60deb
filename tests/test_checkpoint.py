"""Checkpoints on disk: committed whole or not at all, found again, refused when damaged."""

from __future__ import annotations

import builtins
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from asyncdni.errors import CheckpointError
from asyncdni.store import checkpoint
from asyncdni.store.checkpoint import (
    commit,
    cut_folder,
    latest,
    next_cut,
    read_state,
    write_state,
)
from asyncdni.store.manifest import Manifest

STAGES = "low", "top"
COUNTS = {"batches": 5, "missed": 1}


def state(seed: int) -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return {
        stage: {
            "0.weight": rng.normal(size=(3, 4)).astype("f4"),
            "optimizer.first": rng.normal(size=15),
            "optimizer.steps": np.array(seed, np.int64),
            "empty": np.empty((0, 3), "f4"),
            "mask": rng.random(3) < 0.5,
        }
        for stage in STAGES
    }


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(
        one[stage].keys() == other[stage].keys()
        and all(
            (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
            for a, b in ((one[stage][name], other[stage][name]) for name in one[stage])
        )
        for stage in one
    )


def manifest(number: int, files: dict[str, str], **fields: Any) -> Manifest:
    plain: dict[str, Any] = {"start": 40, "planned": 1, "barrier": 2, "identity": {}}
    return Manifest(number=number, files=files, **{**plain, **fields})


def cut(root: Path, number: int, keep: int = 2, **fields: Any) -> Manifest:
    """Write and commit one; its state is that of its number."""
    files = write_state(cut_folder(root, number), state(number), COUNTS, durable=True)
    made = manifest(number, files, **fields)
    commit(root, made, keep)
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


# --- files of stages -------------------------------------------------------------------------


def test_what_is_read_is_what_was_written_to_the_bit(root: Path) -> None:
    digests = write_state(root / "000001", state(1), COUNTS, durable=True)
    found, counts = read_state(root / "000001", STAGES, digests)
    assert same(found, state(1)) and counts == COUNTS
    found, _ = read_state(root / "000001", ["top"], None)
    assert same(found, {"top": state(1)["top"]})


def test_files_are_plain_safetensors(root: Path) -> None:
    write_state(root / "000001", state(1), COUNTS, durable=True)
    assert same({"low": load_file(root / "000001/low.safetensors")}, {"low": state(1)["low"]})


def test_stages_of_several_workers_have_the_counts_of_the_one_that_is_behind(root: Path) -> None:
    for stage, batches in (("low", 7), ("top", 5)):
        own = {stage: state(1)[stage]}
        write_state(root / "000001", own, {"batches": batches, "missed": 7 - batches}, durable=True)
    assert read_state(root / "000001", STAGES, None)[1] == {"batches": 5, "missed": 2}


def test_arrays_that_no_such_file_can_hold_are_refused_by_name(root: Path) -> None:
    with pytest.raises(CheckpointError, match=r"0\.phase is complex128.*expected one of float64"):
        write_state(root, {"low": {"0.phase": np.zeros(2, complex)}}, {}, durable=True)


def test_arrays_in_any_order_and_byte_order_are_written_as_they_read(root: Path) -> None:
    odd = {
        "turned": np.arange(6.0).reshape(2, 3).T,
        "other": np.arange(3, dtype=">f4"),
        "every": np.arange(8)[::2],
    }
    write_state(root / "000001", {"low": odd}, {}, durable=True)
    found = read_state(root / "000001", ["low"], None)[0]["low"]
    for name, array in odd.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "no state of stage low: .* is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:40]), "cut off"),
        (lambda path: path.write_bytes(b""), "cut off"),
        (lambda path: path.write_bytes(b"\xff" * 300), "cut off"),
        (lambda path: path.write_bytes(b"\x02" + bytes(7) + b"{}"), "damaged"),
        (lambda path: (path.unlink(), path.mkdir()), "can't read"),
        (lambda path: path.write_bytes((path.parent / "top.safetensors").read_bytes()), "'top'"),
    ],
)
def test_a_damaged_file_is_named(root: Path, damage: Any, words: str) -> None:
    digests = write_state(root / "000001", state(1), COUNTS, durable=True)
    path = root / "000001/low.safetensors"
    damage(path)
    with pytest.raises(CheckpointError, match=words) as found:
        read_state(root / "000001", STAGES, None)
    assert str(path) in str(found.value) and "\n" not in str(found.value)
    with pytest.raises(CheckpointError, match=r"low\.safetensors"):
        read_state(root / "000001", STAGES, digests)


def test_a_whole_file_that_is_not_the_manifest_s_is_refused(root: Path) -> None:
    digests = write_state(root / "000001", state(1), COUNTS, durable=True)
    write_state(root / "000001", state(2), COUNTS, durable=True)
    with pytest.raises(CheckpointError, match="not the file that its manifest describes"):
        read_state(root / "000001", STAGES, digests)
    with pytest.raises(CheckpointError, match="not the file"):
        read_state(root / "000001", STAGES, {})


# --- commit and latest -----------------------------------------------------------------------


def test_the_newest_cut_is_found_with_all_that_its_manifest_says(root: Path) -> None:
    history = [{"accuracy": 0.5, "loss": float("nan"), "train_s": 1 / 3}]
    cut(root, 1)
    made = cut(root, 2, start=99, coordinator={"history": history, "best": None})
    found, passed = latest(root)
    assert found is not None and passed == []
    assert (found.number, found.start, found.files) == (2, 99, made.files)
    assert str(found.coordinator) == str({"best": None, "history": history})


def test_without_a_manifest_there_is_no_cut(root: Path) -> None:
    assert latest(root) == (None, [])
    write_state(cut_folder(root, 1), state(1), COUNTS, durable=True)
    found, passed = latest(root)
    assert found is None and len(passed) == 1 and "000001 has no manifest.json" in passed[0]


def test_a_torn_cut_is_passed_over_by_name_and_removed_by_the_next(root: Path) -> None:
    cut(root, 1)
    write_state(cut_folder(root, 2), state(2), COUNTS, durable=True)
    found, passed = latest(root)
    assert found is not None and found.number == 1
    assert len(passed) == 1 and "000002 has no manifest.json: it was not finished" in passed[0]
    assert next_cut(root) == 3
    cut(root, 3)
    assert sorted(path.name for path in root.iterdir()) == ["000001", "000003"]


def test_the_last_so_many_are_kept(root: Path) -> None:
    for number in range(1, 6):
        cut(root, number, keep=3)
    assert sorted(path.name for path in root.iterdir()) == ["000003", "000004", "000005"]
    cut(root, 6, keep=1)
    assert [path.name for path in root.iterdir()] == ["000006"]


def test_broken_cuts_do_not_count_among_those_that_are_kept(root: Path) -> None:
    for number in range(1, 4):
        cut(root, number, keep=3)
    (root / "000003/manifest.json").write_text("{}")
    cut(root, 4, keep=2)
    assert sorted(path.name for path in root.iterdir()) == ["000002", "000004"]


def test_cuts_after_the_millionth_are_found_in_order(root: Path) -> None:
    cut(root, 999_999)
    cut(root, 1_000_000)
    found, _ = latest(root)
    assert found is not None and found.number == 1_000_000


def test_what_is_no_cut_is_left_alone(root: Path) -> None:
    root.mkdir()
    for name in ("notes.txt", "12", "0000001", "old-000001"):
        (root / name).mkdir()
    cut(root, 1, keep=1)
    cut(root, 2, keep=1)
    found, passed = latest(root)
    assert found is not None and found.number == 2 and passed == []
    assert len(list(root.iterdir())) == 5


def test_leftovers_of_a_worker_that_died_writing_go_with_the_commit(root: Path) -> None:
    files = write_state(cut_folder(root, 1), state(1), COUNTS, durable=True)
    (cut_folder(root, 1) / ".low.safetensors.x1y2").write_bytes(b"half")
    commit(root, manifest(1, files), 2)
    names = sorted(path.name for path in cut_folder(root, 1).iterdir())
    assert names == ["low.safetensors", "manifest.json", "top.safetensors"]


def test_a_cut_whose_files_are_not_all_there_is_not_committed(root: Path) -> None:
    cut(root, 1)
    files = write_state(cut_folder(root, 2), state(2), COUNTS, durable=True)
    (cut_folder(root, 2) / "top.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"top\.safetensors is missing"):
        commit(root, manifest(2, files), 1)
    found, _ = latest(root)
    assert found is not None and found.number == 1


def edit(root: Path, change: Any) -> None:
    path = root / "000002/manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: edit(root, lambda c: c.update(start=41)), "edited by hand or is damaged"),
        (lambda root: edit(root, lambda c: c.pop("sha256")), "edited by hand or is damaged"),
        (lambda root: edit(root, lambda c: c.update(version=2)), "version 2; this .* version 1"),
        (lambda root: (root / "000002/manifest.json").write_text('{"nu'), "is not JSON"),
        (lambda root: (root / "000002/manifest.json").write_text("[" * 99999), "is not JSON"),
        (lambda root: (root / "000002/manifest.json").write_text("[]"), "not a list"),
        (lambda root: (root / "000002/manifest.json").write_bytes(b"\xff"), "is not JSON"),
        (lambda root: (root / "000002/low.safetensors").unlink(), r"low\.safetensors is missing"),
        (lambda root: (root / "000002/top.safetensors").write_bytes(b"x"), "top.* is damaged"),
        (lambda root: (root / "000002").rename(root / "000003"), "manifest of cut 2, expected 3"),
    ],
)
def test_a_broken_cut_is_named_and_the_one_before_it_used(
    root: Path, damage: Any, words: str
) -> None:
    cut(root, 1)
    cut(root, 2)
    damage(root)
    found, passed = latest(root)
    assert found is not None and found.number == 1
    assert len(passed) == 1 and "\n" not in passed[0] and "0000" in passed[0]
    with pytest.raises(CheckpointError, match=words):
        raise CheckpointError(passed[0])
    assert same(read_state(cut_folder(root, 1), STAGES, found.files)[0], state(1))


def test_a_manifest_laid_out_differently_is_the_same(root: Path) -> None:
    """The sum is of what it says."""
    cut(root, 1)
    made = cut(root, 2)
    edit(root, lambda content: None)
    assert latest(root) == (made, [])


def test_where_no_cut_is_whole_each_is_named(root: Path) -> None:
    for number in (1, 2):
        cut(root, number)
        (root / f"{number:06d}/low.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"000002/low.*missing; .*000001/low.*missing"):
        latest(root)


# --- disks that fail -------------------------------------------------------------------------


def fail(number: int) -> Any:
    def failing(*given: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return failing


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_full_disk_leaves_no_half_of_a_cut_and_the_one_before_whole(
    root: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(root, 1)
    owner = builtins if step == "open" else os
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, fail(errno.ENOSPC))
        with pytest.raises(CheckpointError, match=r"can't write .*: No space left on device"):
            cut(root, 2)
    found, passed = latest(root)
    assert found is not None and found.number == 1 and len(passed) == 1
    assert [path.name for path in cut_folder(root, 2).iterdir()] == []


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_disk_that_is_full_at_the_commit_leaves_the_cuts_before(
    root: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(root, 1, keep=1)
    files = write_state(cut_folder(root, 2), state(2), COUNTS, durable=True)
    with monkeypatch.context() as patch:
        patch.setattr(builtins if step == "open" else os, step, fail(errno.ENOSPC))
        with pytest.raises(CheckpointError, match="No space left on device"):
            commit(root, manifest(2, files), 1)
    found, _ = latest(root)
    assert found is not None and found.number == 1


@pytest.mark.parametrize("durable", [True, False])
def test_a_run_folder_that_was_removed_is_not_made_again(tmp_path: Path, durable: bool) -> None:
    folder = tmp_path / "run" / ("checkpoints/000001" if durable else "snapshots")
    with pytest.raises(CheckpointError, match=r"can't write to .*: No such file or directory"):
        write_state(folder, state(1), COUNTS, durable=durable)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("durable", [True, False])
def test_a_folder_that_can_t_be_written_is_one_clear_line(tmp_path: Path, durable: bool) -> None:
    (tmp_path / "run").write_text("a file where a folder should be")
    with pytest.raises(CheckpointError, match=r"can't write to .*: Not a directory"):
        write_state(tmp_path / "run/checkpoints/000001", state(1), COUNTS, durable=durable)


def test_removing_an_old_cut_takes_its_manifest_first(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is killed in the middle leaves no cut with a manifest and half of its files."""
    cut(root, 1, keep=1)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *given, **options: None)
    cut(root, 2, keep=1)
    names = sorted(path.name for path in cut_folder(root, 1).iterdir())
    assert names == ["low.safetensors", "top.safetensors"]


def test_a_cut_that_can_t_be_read_just_now_is_not_removed_as_a_torn_one(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(root, 1)

    def unreadable(own: Path, kind: object) -> Manifest:
        raise CheckpointError(f"can't read {own}") from OSError(errno.EMFILE, "no descriptor")

    monkeypatch.setattr(checkpoint, "read_manifest", unreadable)
    cut(root, 2)
    monkeypatch.undo()
    assert sorted(path.name for path in root.iterdir()) == ["000001", "000002"]
