"""Rolling snapshots: two files in turn, of which a kill at any byte leaves one whole."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from each import each

from asyncdni.core.events import Origin, Restore
from asyncdni.drivers.real.process import restored_stage
from asyncdni.errors import CheckpointError
from asyncdni.store import checkpoint as snapshots
from asyncdni.store.checkpoint import (
    discard_snapshots,
    read_newest,
    read_state,
    write_state,
)
from asyncdni.store.claims import Claim, new_term

STAGES = "low", "top"


def state(seed: int, *stages: str) -> dict[str, dict[str, Any]]:
    return {stage: {"0.weight": np.full((20, 5), float(seed))} for stage in stages or STAGES}


def write(folder: Path, seed: int, *stages: str) -> None:
    write_state(folder, state(seed, *stages), {"batches": seed}, durable=False)


def read(folder: Path, *stages: str) -> int:
    """The seed of what is there, which must be the same everywhere."""
    found, counts = read_state(folder, stages or STAGES, None)
    values = {float(value) for own in found.values() for value in own["0.weight"].ravel()}
    assert values == {float(counts["batches"])}
    return counts["batches"]


class Killed(Exception):
    """Where a process died."""


class Pieces:
    """Files that are cut off after so many bytes in all, as if by a kill."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left = left
        real = os.fdopen

        def opened(*given: Any) -> Any:
            file = real(*given)
            return Watched(file, self)

        monkeypatch.setattr(snapshots.os, "fdopen", opened)


class Watched:
    """A file of `Pieces`."""

    def __init__(self, file: Any, pieces: Pieces) -> None:
        self.file, self.pieces = file, pieces

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *given: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, piece: Any) -> None:
        whole = bytes(piece)
        part = whole[: self.pieces.left]
        self.file.write(part)
        self.pieces.left -= len(part)
        if len(part) < len(whole):
            raise Killed


@each("before", [1, 2, 3])
def test_the_newest_is_read(tmp_path: Path, before: int) -> None:
    for seed in range(1, before + 1):
        write(tmp_path, seed)
    assert read(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 2 * min(2, before)


def size(folder: Path) -> int:
    write(folder, 1, "low")
    return next(folder.iterdir()).stat().st_size


@pytest.mark.parametrize("stages", [("low",), STAGES])
def test_a_kill_at_any_byte_leaves_the_one_before(
    tmp_path: Path, stages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Again and again, without one that succeeds in between: at the end of one of the two stages,
    too, whose files then are of different moments."""
    bytes_each = size(tmp_path / "size") + 8  # the length is written twice
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder, 1, *stages)
    write(folder, 2, *stages)
    for left in range(0, bytes_each * len(stages), 97):
        with monkeypatch.context() as patch:
            Pieces(patch, left)
            with pytest.raises(Killed):
                write(folder, 3, *stages)
        assert read(folder, *stages) == 2
    write(folder, 4, *stages)
    assert read(folder, *stages) == 4
    write(folder, 5, *stages)
    assert read(folder, *stages) == 5


def test_the_first_ever_that_is_torn_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Pieces(patch, 100)
        with pytest.raises(Killed):
            write(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"no whole snapshot: .*0\.safetensors is cut off"):
        read(tmp_path)
    write(tmp_path, 2)
    assert read(tmp_path) == 2


def test_without_any_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no state of stage low"):
        read(tmp_path)


def test_a_damaged_one_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    for path in tmp_path.glob("low.1.*"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert read(tmp_path) == 1
    write(tmp_path, 3)
    assert read(tmp_path) == 3


def test_one_of_another_stage_is_not_taken(tmp_path: Path) -> None:
    write(tmp_path, 1, "other")
    (tmp_path / "other.0.safetensors").rename(tmp_path / "low.0.safetensors")
    with pytest.raises(CheckpointError, match=r"low\.0\.safetensors holds stage 'other'"):
        read(tmp_path, "low")


def test_a_smaller_state_leaves_nothing_of_the_larger_one(tmp_path: Path) -> None:
    for seed in (1, 2):
        write(tmp_path, seed, "low")
    write_state(tmp_path, {"low": {"b": np.zeros(1)}}, {"batches": 3}, durable=False)
    found, counts = read_state(tmp_path, ["low"], None)
    assert counts == {"batches": 3} and found["low"].keys() == {"b"}


def test_those_of_a_later_process_are_newer_whatever_comes_after_them(tmp_path: Path) -> None:
    """An earlier one has been stopped in the middle of writing, and wakes up."""
    folder = tmp_path / "snapshots"
    claims = [Claim(tmp_path, STAGES, order) for order in ((1, 7), (2, 1), (2, 2))]

    def write_as(number: int, seed: int) -> None:
        write_state(folder, state(seed), {"batches": seed}, durable=False, claim=claims[number])

    for number, claim in enumerate(claims):
        for seed in (10 * number + 1, 10 * number + 2, 10 * number + 3):
            write_as(number, seed)
            assert read(folder) == seed
        for earlier in claims[:number]:  # it had looked before the others came
            shutil.rmtree(tmp_path / "owners")
            write_state(folder, state(99), {"batches": 99}, durable=False, claim=earlier)
            assert read(folder) == 10 * number + 3
            write_as(number, 10 * number + 3)
            claim.make()
        claim.make()
        for earlier in claims[:number]:
            with pytest.raises(CheckpointError, match="a later process has taken over stage low"):
                write_state(folder, state(1), {"batches": 1}, durable=False, claim=earlier)
            with pytest.raises(CheckpointError, match="writes nothing more"):
                write_state(tmp_path / "c/000001", state(1), {}, durable=True, claim=earlier)
            with pytest.raises(CheckpointError, match="has taken over"):
                earlier.make()


def test_a_claim_that_is_damaged_or_gone_is_made_again(tmp_path: Path) -> None:
    claim = Claim(tmp_path, STAGES, (5, 3))
    claim.make()
    path = tmp_path / "owners" / "low"
    whole = path.read_bytes()
    for place in range(len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        claim.check()
    path.unlink()
    claim.make()
    assert path.read_bytes() == whole


def test_terms_grow_also_where_the_clock_has_been_put_back(tmp_path: Path) -> None:
    first = new_term(tmp_path)
    Claim(tmp_path, ("coordinator",), (first + 10**15, 0)).make()
    later = Claim(tmp_path, ("coordinator",), (new_term(tmp_path), 0))
    assert later.order[0] > first + 10**15
    assert not later.sees_coordinator
    later.make()
    assert Claim(tmp_path, ("low",), later.order).sees_coordinator
    assert not Claim(tmp_path, ("low",), (first, 0)).sees_coordinator
    with pytest.raises(CheckpointError, match="a later process has taken over the run"):
        Claim(tmp_path, ("coordinator",), (first, 0)).check()


# --- in their place ------------------------------------------------------------------------------

CUTS = ["checkpoints/000003", "checkpoints/000002"]


def run_folder(folder: Path) -> None:
    """Snapshots of batch 5, cuts of 3 and 2."""
    (folder / "checkpoints").mkdir()
    for seed in (2, 3):
        own = folder / "checkpoints" / f"{seed:06d}"
        write_state(own, state(seed), {"batches": seed}, durable=True)
    for seed in (4, 5):
        write(folder / "snapshots", seed)


def newest(folder: Path) -> tuple[str, int, int]:
    """Where the newest state is from, of which batch, and how many were passed over."""
    place, found, counts, wrong = read_newest(folder, STAGES, "snapshots", CUTS)
    assert {float(array[0, 0]) for own in found.values() for array in own.values()} == {
        float(counts["batches"])
    }
    return place, counts["batches"], len(wrong)


def test_without_a_whole_snapshot_the_newest_cut_that_is_whole_is_read(tmp_path: Path) -> None:
    run_folder(tmp_path)
    assert newest(tmp_path) == ("snapshots", 5, 0)
    for path in (tmp_path / "snapshots").glob("top.*"):
        path.write_bytes(b"")
    assert newest(tmp_path) == (CUTS[0], 3, 1)
    path = tmp_path / CUTS[0] / "top.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert newest(tmp_path) == (CUTS[1], 2, 2)
    (tmp_path / CUTS[0] / "low.safetensors").unlink()
    assert newest(tmp_path) == (CUTS[1], 2, 1)
    (tmp_path / CUTS[1] / "top.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no whole snapshot.*000002/top\.safetensors"):
        newest(tmp_path)


def test_a_cut_that_is_newer_than_the_snapshot_is_read_in_its_place(tmp_path: Path) -> None:
    run_folder(tmp_path)
    write_state(tmp_path / CUTS[0], state(6), {"batches": 4, "missed": 2}, durable=True)
    place, _, counts, wrong = read_newest(tmp_path, STAGES, "snapshots", CUTS)
    assert (place, counts["missed"], wrong) == (CUTS[0], 2, [])


class Built:
    """A stage that knows its state."""

    seed = 0.0

    def parameters(self) -> int:
        return 0

    def restore(self, found: dict[str, dict[str, Any]]) -> list[str]:
        self.seed = float(found["low"]["0.weight"][0, 0])
        return []


def test_what_a_stage_begins_with_is_told(tmp_path: Path) -> None:
    run_folder(tmp_path)

    def restored(cut: str) -> tuple[float, str, int]:
        build, farthest = cast(Any, Built), Restore(Origin.FARTHEST, cut)
        stage, answer = restored_stage(build, build, tmp_path, farthest, STAGES)
        assert answer.counts is not None
        assert answer.counts.get("batches", 0) == stage.seed
        return stage.seed, answer.place, len(answer.unusable)

    assert restored(CUTS[0]) == (5.0, "snapshots", 0)
    discard_snapshots(tmp_path / "snapshots")
    assert restored(CUTS[0]) == (3.0, CUTS[0], 1)
    assert restored(CUTS[1]) == (2.0, CUTS[1], 1)  # one that was gone back behind is not looked at
    assert restored("") == (0.0, "", 1)


def test_workers_write_side_by_side(tmp_path: Path) -> None:
    for seed, stage in ((1, "low"), (2, "top"), (3, "low"), (4, "low")):
        write(tmp_path, seed, stage)
    assert (read(tmp_path, "low"), read(tmp_path, "top")) == (4, 2)


def test_all_are_discarded_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "low.safetensors").write_bytes(b"")
    discard_snapshots(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["low.safetensors"]
    discard_snapshots(tmp_path / "nowhere")


def test_without_descriptors_the_newest_snapshot_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "snapshots"
    for seed in (1, 2, 3):
        write(folder, seed)
    real, tries = snapshots.open_file, []

    def opened(path: Path) -> Any:
        tries.append(path)
        if len(tries) <= len(STAGES) * 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path)

    monkeypatch.setattr(snapshots, "open_file", opened)
    with pytest.raises(CheckpointError, match="Too many open files"):
        write(folder, 4)
    monkeypatch.undo()
    assert read(folder) == 3
