"""Runs one after another in one process leave nothing of theirs behind, however they end."""

from __future__ import annotations

from pathlib import Path

import benchmarking
import pytest

LEAKS = "faults/leaks.py"


@pytest.mark.long
def test_a_run_of_each_way_leaves_no_file_thread_process_or_temporary_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leaks = benchmarking.module(LEAKS)
    # The worker is killed as training starts: no run ends without it, however short.
    monkeypatch.setattr(leaks, "KILLED_EPOCHS", 20)
    found = leaks.run_all(2 * len(leaks.WAYS))
    first, last = found[len(leaks.WAYS) - 1], found[-1]
    kept = ("files", "threads", "processes", "temporary")
    assert [last[key] for key in kept] == [first[key] for key in kept]
    assert last["processes"] == last["temporary"] == 0


def test_what_is_left_is_seen(tmp_path: Path) -> None:
    leaks = benchmarking.module(LEAKS)
    before = leaks.left(tmp_path)
    with (tmp_path / "kept").open("w"):
        after = leaks.left(tmp_path)
    assert (after.files, after.temporary) == (before.files + 1, before.temporary + 1)
