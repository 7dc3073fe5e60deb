"""The benchmark of stacked LSTMs runs as its page says it does, and judges by what it has run."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import pytest
from benchmarking import module

from asyncdni.config import Locked

LETTERS = "".join(map(chr, range(40, 105)))  # as many as the network of the file takes


def a_run(name: str, seed: int, rate: float, ceiling: float | None, *cpu_s: float) -> Any:
    stages = [
        {"name": str(i), "batches": 10, "ops": {"F": {"cpu_s": s}}} for i, s in enumerate(cpu_s)
    ]
    summary = {"samples_per_s": rate, "ceiling": ceiling, "train_samples": 320, "batch_size": 32}
    summary |= {"stages": stages, "workers": len(cpu_s), "test_loss": 1.0}
    return {"name": name, "seed": seed, "summary": summary}


def found_of(synthetic: float) -> dict[str, Any]:
    runs = [
        one
        for seed in (0, 1)
        for one in (
            a_run("single", seed, 500.0, None, 0.5),
            a_run("plain", seed, 550.0, 560.0, 0.2, 0.2, 0.2),
            a_run("locked", seed, 600.0, 700.0, 0.2, 0.2, 0.2),
            a_run("synthetic", seed, synthetic, 1200.0, 0.2, 0.15, 0.2),
        )
    ]
    blas = [{"internal_api": "openblas", "architecture": "Haswell"}]
    machine = {"cores": 2, "cpu": "a processor", "numpy": "2.4", "blas": blas}
    return {"machine": machine, "settings": [], "runs": runs}


@pytest.mark.parametrize(("synthetic", "judged"), [(1080.0, "met"), (1079.0, "missed")])
def test_the_claim_is_judged_by_the_ratio_of_rates(synthetic: float, judged: str) -> None:
    shown = module("layers/stacked.py").tables(found_of(synthetic))
    line = next(line for line in shown.splitlines() if "1.8" in line)
    assert f"| 1.8 | 1.80 (1.80 to 1.80) | {judged} |" in line
    assert line.endswith("| 1.71 (1.71 to 1.71) |")  # 1200 / 700


def test_work_is_of_all_stages_and_the_ceiling_of_one_process_follows_from_it() -> None:
    lines = module("layers/stacked.py").tables(found_of(1000.0)).splitlines()
    rows = {line.split(" | ")[0]: line.split(" | ")[1:] for line in lines}
    single, synthetic = rows["| locked, one process"], rows["| synthetic, three workers"]
    assert single[1:4] == ["640 ± 0", "50.0 ± 0.0", "50.0 ± 0.0"]  # 320 / 0.5 s
    assert synthetic[2:4] == ["55.0 ± 0.0", "20.0 ± 0.0"]


@pytest.mark.long
def test_rows_differ_in_schedule_and_workers_alone_and_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = module("layers/stacked.py")
    letters = random.Random(0).choices(LETTERS, k=2000)
    (tmp_path / "tinyshakespeare.txt").write_text(LETTERS + "".join(letters))
    monkeypatch.setenv("ASYNCDNI_DATA", str(tmp_path))
    small = ["data.batch_size=2", "data.window=3", "schedule.fit_every=2"]
    text = script.beginning(argparse.Namespace(set=small, windows=60))
    (tmp_path / "part.txt").write_text(text)
    changes = [*small, f"data.path={tmp_path / 'part.txt'}", f"data.test_part={script.TEST_PART}"]
    entries = script.plan(changes, 2)
    assert sorted((one.seed, one.name) for one in entries) == [
        (seed, name) for seed in (0, 1) for name in sorted(script.ROWS)
    ]
    chosen = {one.name: one.experiment for one in entries}
    assert chosen["single"].run.split == [3] and chosen["locked"].run.split is None
    assert {one.run.threads for one in chosen.values()} == {1}
    assert chosen["locked"].schedule == Locked()
    assert chosen["plain"].schedule == Locked(split_backward=False)
    assert chosen["synthetic"].schedule.fit_every == 2
    found = script.run(next(one for one in entries if one.name == "synthetic"), tmp_path)
    summary = json.loads(json.dumps(found))["summary"]
    assert (summary["workers"], summary["train_samples"]) == (3, 2 * 60)
    assert summary["ceiling"] > 0
