"""Rolling snapshots: two files in turn, of which a kill at any byte leaves one whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncdni.checkpoint import discard_snapshots, read_state, snapshots, write_state
from asyncdni.errors import CheckpointError

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


@pytest.mark.parametrize("before", [1, 2, 3])
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
