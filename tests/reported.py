"""A comparison's document with numbers that are easy to follow, for tests of what is made of it.

Two seeds each of `locked`, of `synthetic`, twice as fast, of its control, which never gets
anywhere, and of another program that tells little of itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asyncdni import experiment
from asyncdni.launch.train import design_of
from asyncdni.report.records import Recorder
from asyncdni.store.run import create_folder, write_data

TARGETS = (0.9, 0.96)
#: Test accuracies of seed 0 and of seed 1 after each 1000 samples.
CURVES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "locked": ((0.85, 0.91, 0.96, 0.97), (0.80, 0.92, 0.95, 0.97)),
    "synthetic": ((0.92, 0.93, 0.95, 0.96), (0.91, 0.89, 0.94, 0.89)),
    "synthetic-zero": ((0.50, 0.60, 0.60, 0.60), (0.50, 0.50, 0.50, 0.50)),
    "other": ((0.85, 0.90, 0.91, 0.97), (0.85, 0.90, 0.91, 0.97)),
}
SPEEDS = {
    "locked": (1000.0, 1250.0),
    "synthetic": (2000.0, 2500.0),
    "synthetic-zero": (2500.0, 2500.0),
    "other": (1600.0, 1600.0),
}


def estimate(
    mean: float, low: float | None = None, high: float | None = None, n: int = 2
) -> dict[str, Any]:
    return {"mean": mean, "low": low, "high": high, "n": n}


def document(**changes: Any) -> dict[str, Any]:
    """As `asyncdni compare` writes it to compare.json; a new one each time."""
    return {
        "complete": True,
        "machine": {
            "cores": 2,
            "cpu": "Abacus 2000",
            "system": "Linux",
            "blas": [{"internal_api": "openblas", "version": "0.3", "architecture": None}],
            "asyncdni": "0.1.0",
        },
        "experiment": {
            "data": {"name": "mnist", "batch_size": 256, "path": ""},
            "schedule": {"name": "locked"},
            "stages": [{"name": "a", "layers": [{"dense": 10}, "relu"], "inputs": None}],
        },
        "seeds": [0, 1],
        "targets": list(TARGETS),
        "rows": rows(),
        "verdict": "Fastest: synthetic, 2.00 times as fast as locked.",
        "runs": [run(name, seed) for seed in (0, 1) for name in CURVES],
        **changes,
    }


def rows() -> list[dict[str, Any]]:
    locked = {
        **_row("locked", 1125.0, 1.0),
        "ceiling_samples_per_s": estimate(1500.0, 1400.0, 1600.0),
        "efficiency": estimate(0.75, 0.7, 0.8),
        "overhead_cpu": estimate(0.125, 0.12, 0.13),
        "shares": _shares(0.4, 0.0),
        "targets": [_target(0.9, 2, 1.8, 1.0), _target(0.96, 2, 3.1, 1.0)],
    }
    synthetic = {
        **_row("synthetic", 2250.0, 2.0),
        "shares": _shares(0.6, 0.25),
        "targets": [_target(0.9, 1, None, 4.0, pairs=1), _target(0.96, 0, None, None)],
    }
    zero = {
        **_row("synthetic-zero", 2500.0, 2.236),
        "control": True,
        "targets": [_target(0.9, 0, None, None), _target(0.96, 0, None, None)],
    }
    other = {"name": "other", "runs": 2, "samples_per_s": estimate(1600.0, 1600.0, 1600.0)}
    return [locked, synthetic, zero, other]


def run(name: str, seed: int) -> dict[str, Any]:
    speed = SPEEDS[name][seed]
    summary: dict[str, Any] = {
        "samples_per_s": speed,
        "train_s": 4000 / speed,
        "history": [
            {"samples": 1000 * k, "train_s": 1000 * k / speed, "accuracy": a, "loss": 1 - a}
            for k, a in enumerate(CURVES[name][seed], 1)
        ],
    }
    if name != "other":
        summary |= {"workers": 2, "threads": 1, "test_accuracy": CURVES[name][seed][-1]}
        summary |= {"stages": [_stage(2.0, 3), _stage(0.5, 1)]}
    return {"name": name, "seed": seed, "folder": f"{name}-seed{seed}", "summary": summary}


def _row(name: str, speed: float, speedup: float) -> dict[str, Any]:
    same = name == "locked"
    return {
        "name": name,
        "runs": 2,
        "workers": 2,
        "threads": 1,
        "control": False,
        "samples_per_s": estimate(speed, 0.9 * speed, 1.1 * speed),
        "test_accuracy": estimate(0.9, 0.88, 0.92),
        "test_loss": None,
        "train_s": estimate(3.6, 3.5, 3.7),
        "cpu_s": None,
        "speedup_over_locked": estimate(speedup, None if same else 0.9 * speedup, 1.1 * speedup),
        "speedup_over_single": None,
        "ceiling_samples_per_s": None,
        "efficiency": None,
        "overhead_cpu": None,
        "shares": None,
    }


def _target(
    accuracy: float, reached: int, time_s: float | None, sooner: float | None, pairs: int = 2
) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "reached": reached,
        "time_s": None if time_s is None else estimate(time_s, time_s - 0.5, time_s + 0.5),
        "samples": None if time_s is None else estimate(1000 * time_s),
        "speedup_over_locked": None if sooner is None else estimate(sooner, n=pairs),
        "speedup_over_single": None,
    }


def _shares(layers: float, generator: float) -> dict[str, float]:
    rest = 1.0 - layers - generator
    return {
        **{"layers": layers, "generator": generator, "transport": 0.0},
        **{"waiting": rest - 0.01, "other": 0.01},
    }


def _stage(compute_s: float, staleness: int) -> dict[str, Any]:
    return {
        "compute_s": compute_s,
        "generator_s": None,
        "updates": 10,
        "staleness_max": staleness,
        "messages": 7,
        "bytes_sent": 1_000_000,
        "dropped": 0,
    }


LATENCIES = (0.0, 0.01)


def at_latencies() -> dict[str, Any]:
    """The same at two latencies, where `locked` has a tenth of its speed; `other` has no links."""
    slow = {"locked": 0.1, "synthetic": 0.98, "synthetic-zero": 1.0}
    found = document(latencies=list(LATENCIES), verdict=["At 0 ms: this.", "At 10 ms: that."])
    found["rows"] = [
        {**_scaled(row, slow.get(row["name"], 1.0) if latency_s else 1.0), "latency_s": latency_s}
        for latency_s in LATENCIES
        for row in rows()
    ]
    found["runs"] = []
    for latency_s in LATENCIES:
        for name in CURVES:
            for seed in (0, 1):
                one = run(name, seed)
                one["summary"]["samples_per_s"] *= slow.get(name, 1.0) if latency_s else 1.0
                where = None if name == "other" else latency_s
                if where == latency_s or latency_s == 0.0:
                    found["runs"].append({**one, "latency_s": where})
    return found


def _scaled(row: dict[str, Any], factor: float) -> dict[str, Any]:
    speed = {key: factor * row["samples_per_s"][key] for key in ("mean", "low", "high")}
    has_links = row["name"] != "other"
    return {
        **row,
        "samples_per_s": {**speed, "n": 2},
        "stream_samples_per_s": {**speed, "n": 2} if has_links else None,
        "kept_samples_per_s": estimate(factor) if has_links else None,
        "kept_stream_samples_per_s": estimate(factor) if has_links else None,
    }


def keep_run(folder: Path, *, said: str) -> None:
    """Leave the folder of a run of two workers, one of which has died; that is what was `said` of
    it, and what it has logged."""
    stages = [
        {"name": "hidden", "layers": [{"dense": 8}, "tanh"]},
        {"name": "output", "layers": [{"dense": 8}], "loss": "sigmoid_cross_entropy"},
    ]
    tables = {"data": {"name": "addition"}, "stages": stages, "run": {"epochs": 10}}
    design = design_of(experiment.parse(tables))
    create_folder(folder, design.experiment)
    write_data(folder, design.experiment, design.meta)
    (folder / "logs" / "hidden.log").write_text(said)
    recorder = Recorder(("hidden", "output"), {}, folder)
    recorder.record("start", {"time_s": 0.0})
    for step in range(1, 9):
        counted = dict.fromkeys(("updates", "batches", "samples"), 100 * step)
        times = {"wall_s": step, "compute_s": step / 2, "wait_s": step / 2, "cpu_s": step}
        for name in ("hidden", "output"):
            values = {"loss_sum": 50.0 / step, "loss_samples": 100, **counted, **times}
            recorder.record("report", {"time_s": float(step), "stage": name, "values": values})
        score = {"samples": 100 * step, "train_s": 0.5 * step, "accuracy": 0.75, "loss": 0.6}
        recorder.record("evaluation", {"time_s": step + 0.1, **score})
    recorder.record("lost", {"time_s": 8.5, "stage": "hidden", "text": said})
    recorder.close()
