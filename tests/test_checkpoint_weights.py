"""The best and the final weights: of one moment whatever is killed, and damage is found."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncdni.errors import CheckpointError
from asyncdni.store import weights
from asyncdni.store.claims import Claim
from asyncdni.store.manifest import WeightsManifest
from asyncdni.store.tensors import save_stages
from asyncdni.store.weights import commit_weights, read_weights, settle_weights, write_weights

STAGES = "low", "top"


def state(value: float, *stages: str) -> dict[str, dict[str, Any]]:
    return {stage: {"0.weight": np.full((3, ord(stage[0])), value)} for stage in stages or STAGES}


def manifest(files: dict[str, str], batches: int) -> WeightsManifest:
    result = {"batches": batches, "accuracy": 0.5, "loss": None}
    return WeightsManifest(tag="best", files=files, **result, identity={}, experiment="")


def save(folder: Path, value: int) -> None:
    """As two workers and their coordinator do."""
    files: dict[str, str] = {}
    for stage in STAGES:
        files |= write_weights(folder, state(value, stage), None)
    commit_weights(folder, manifest(files, value))


def value_of(folder: Path) -> int:
    """Of what is there, which must be the same everywhere."""
    found, known = read_weights(folder, STAGES)
    values = {float(one) for own in found.values() for one in own["0.weight"].ravel()}
    assert known is not None and values == {float(known.batches)}
    return known.batches


class Killed(BaseException):
    """Where a process died."""


class Steps:
    """Calls that change the disk, the last of which never comes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left = left
        calls = (os, "rename"), (os, "replace"), (shutil, "rmtree"), (os, "unlink")
        for module, name in (*calls, (weights, "_exchange")):
            monkeypatch.setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, real: Any) -> Any:
        def call(*given: Any, **more: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Killed
            return real(*given, **more)

        return call


def killed_after(steps: int, folder: Path, value: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    with monkeypatch.context() as patch:
        Steps(patch, steps)
        try:
            save(folder, value)
        except Killed:
            return True
    return False


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_kill_at_any_step_leaves_the_old_weights_or_the_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_step: bool
) -> None:
    """Also where the system can't let two folders change places."""
    if not in_one_step:
        monkeypatch.setattr(weights, "_exchange", lambda *_: False)
    seen = set()
    for before in (0, 1):  # none at all, or some
        steps = 0
        while True:
            folder = tmp_path / f"{before}-{steps}" / "best"
            folder.parent.mkdir()
            if before:
                save(folder, 1)
            if not killed_after(steps, folder, 2, monkeypatch):
                break
            steps += 1
            try:
                found = value_of(folder)
            except CheckpointError:
                assert not before
                found = 0
            seen.add((before, found))
            for _ in range(2):
                settle_weights(folder)
                if found:
                    assert value_of(folder) >= found
                left = [path.name for path in folder.parent.iterdir()]
                assert left == ["best"] * len(left)
            killed_after(steps // 2, folder, 3, monkeypatch)  # and once more
            save(folder, 4)
            assert value_of(folder) == 4
        assert steps > 4
    assert seen >= {(0, 0), (0, 2), (1, 1), (1, 2)}


@pytest.mark.skipif(sys.platform != "linux", reason="needs renameat2")
def test_on_linux_there_are_weights_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "best"
    save(folder, 1)
    steps = 0
    while killed_after(steps, folder, 2, monkeypatch):
        assert {path.name for path in folder.iterdir()} >= {"low.safetensors", "top.safetensors"}
        steps += 1
    one, other = tmp_path / "one", tmp_path / "other"
    assert not weights._exchange(one, other)  # neither is there


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "best"
    save(folder, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match="No space left"):
            save(folder, 2)
    assert value_of(folder) == 1
    save(folder, 3)
    assert value_of(folder) == 3


def full(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_files_that_are_damaged_missing_or_others_are_named(tmp_path: Path) -> None:
    folder, other = tmp_path / "best", tmp_path / "other"
    save(other, 9)
    low = "low.safetensors"
    damages: dict[str, Any] = {
        "no weights of stage low": lambda: (folder / low).unlink(),
        "low.safetensors is damaged, or": lambda: shutil.copy(other / low, folder / low),
        "top.safetensors is damaged, or": lambda: shutil.copy(
            folder / low, folder / "top.safetensors"
        ),
        "manifest.json is not JSON": lambda: (folder / "manifest.json").write_text("{"),
        "manifest.json was edited by hand": lambda: edit(folder / "manifest.json"),
    }
    for words, damage in damages.items():
        save(folder, 1)
        damage()
        with pytest.raises(CheckpointError, match=words):
            read_weights(folder, STAGES)
    save(folder, 1)
    for place in range(0, (folder / low).stat().st_size, 97):
        content = bytearray((folder / low).read_bytes())
        content[place] ^= 4
        (folder / low).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"low\.safetensors is damaged, or"):
            read_weights(folder, STAGES)
        content[place] ^= 4
        (folder / low).write_bytes(content)
    assert value_of(folder) == 1


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace('"batches": 1', '"batches": 2'))


def test_weights_of_early_versions_are_read_as_they_are(tmp_path: Path) -> None:
    save_stages(tmp_path / "best", state(5))
    found, known = read_weights(tmp_path / "best", STAGES)
    assert known is None and found["top"]["0.weight"][0, 0] == 5
    save(tmp_path / "best", 6)
    assert value_of(tmp_path / "best") == 6


def test_weights_that_are_replaced_while_they_are_read_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "best"
    save(folder, 1)
    real, calls = weights.load_stage, []

    def load(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            save(folder, 2)
        return real(*given)

    monkeypatch.setattr(weights, "load_stage", load)
    assert value_of(folder) == 2


def test_a_process_that_has_been_replaced_writes_no_weights(tmp_path: Path) -> None:
    claim = Claim(tmp_path, ("low",), (3, 1))
    write_weights(tmp_path / "best", state(1, "low"), claim)
    Claim(tmp_path, ("low",), (3, 2)).make()
    with pytest.raises(CheckpointError, match="a later process has taken over stage low"):
        write_weights(tmp_path / "best", state(2, "low"), claim)


def test_weights_of_which_a_stage_is_missing_are_not_committed(tmp_path: Path) -> None:
    folder = tmp_path / "best"
    save(folder, 1)
    files = write_weights(folder, state(2, "low"), None)
    with pytest.raises(CheckpointError, match="lacks the weights of top"):
        commit_weights(folder, manifest({**files, "top": "0" * 64}, 2))
    assert value_of(folder) == 1
