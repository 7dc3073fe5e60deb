"""The copy benchmark: its task, its curriculum, and that it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarking import BENCHMARKS, module, run

from asyncdni.nn.streams import stream


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Any:
    return module("copy/tasks.py")


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS / "copy"))
    return module("copy/train.py")


def test_the_bits_shown_are_asked_for_after_the_delimiter(tasks: Any) -> None:
    drawn = tasks.draw(stream(0, "data", "test"), 5, 3, 2, 4)
    assert drawn.x.shape == (5, 12, tasks.INPUTS)  # 3 + 1 + 6 steps, in windows of 4
    bits = drawn.x[:, :3, 0]
    assert (np.abs(bits) == 1).all() and (drawn.x[:, :3, 1] == 1).all()
    assert (drawn.x[:, 3, 2] == 1).all() and not drawn.x[:, 4:].any()
    np.testing.assert_array_equal(drawn.target[:, 4:10], np.tile(bits, 2))
    assert not drawn.target[:, :4].any() and not drawn.target[:, 10:].any()
    assert drawn.asked == 5 * 6


def test_windows_tell_where_sequences_begin_and_end_and_what_is_coming(tasks: Any) -> None:
    drawn = tasks.draw(stream(0, "data", "test"), 2, 4, 1, 3)
    pieces = list(drawn.windows(3, 5))
    assert [bool(p.context["first"].all()) for p in pieces] == [True, False, False]
    assert [bool(p.context["last"].any()) for p in pieces] == [False, False, True]
    np.testing.assert_array_equal(np.concatenate([p.x for p in pieces], axis=1), drawn.x)
    coming = pieces[0].context["coming"]
    np.testing.assert_array_equal(coming[:, :5], drawn.target[:, 3:8])
    np.testing.assert_array_equal(coming[:, 5:], [[0, 0, 1, 1, 1]] * 2)
    assert not pieces[-1].context["coming"].any()


def test_copy_counts_up_its_bits_and_repeat_copy_its_repeats_first(tasks: Any) -> None:
    copy, repeat = tasks.Curriculum(False), tasks.Curriculum(True)
    seen = []
    for _ in range(6 * 19):  # 0.9^19 < 0.15 < 0.9^18
        copy.see(0.0)
        repeat.see(0.0)
        seen.append((repeat.bits, repeat.repeats))
    assert (copy.bits, copy.repeats, copy.solved) == (7, 1, 6)
    assert list(dict.fromkeys(seen)) == [(1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 3), (4, 4)]
    assert repeat.solved == 12
    copy.see(1.0)
    assert copy.bits == 7


def test_an_error_that_stays_high_solves_nothing(tasks: Any) -> None:
    copy = tasks.Curriculum(False)
    for _ in range(200):
        copy.see(0.2)
    assert (copy.bits, copy.solved) == (1, 0)


@pytest.mark.long
def test_a_network_with_a_future_learns_to_copy_one_bit(training: Any) -> None:
    future = {"lambda": 1.0, "scale": 0.3, "cell": False}
    settings = training.Settings(2, future=future, ahead=4, units=16, budget=6000)
    assert training.train(settings).solved >= 1


@pytest.mark.long
def test_the_benchmark_keeps_its_runs_and_goes_on_with_them(tmp_path: Path) -> None:
    file = tmp_path / "lengths.json"
    tiny = ["--tasks", "copy", "--windows", 4, "--seeds", 1, "--budget", 40, "--jobs", 1]
    shown = run("copy/run.py", "--results", file, *tiny, "--only", "DNI").stdout
    assert "| DNI | - | - | 0 | - |" in shown
    refused = run("copy/run.py", "--results", file, *tiny, code=1).stderr
    assert "has 1 of these runs: --resume goes on with it" in refused
    run("copy/run.py", "--results", file, *tiny, "--resume")
    kept = json.loads(file.read_text())["runs"]
    assert sorted(one["key"] for one in kept) == [
        "copy/BPTT, rate 0.001/4/0",
        "copy/BPTT, rate 0.002/4/0",
        "copy/DNI/4/0",
    ]
