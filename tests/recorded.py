"""Summaries of runs as they were recorded on two cores: known numbers for tests of comparisons."""

from __future__ import annotations

from typing import Any

from asyncdni.report.statistics import Comparison, Result

#: An experiment file that trains within a second; tests append further tables.
ADDITION = """
[data]
name = "addition"

[[stages]]
name = "hidden"
layers = [{ dense = 8 }, "tanh"]

[[stages]]
name = "output"
layers = [{ dense = 8 }]
loss = "sigmoid_cross_entropy"
"""
#: samples/s and test accuracy by seed.
RECORDED: dict[str, list[tuple[float | None, float | None]]] = {
    "locked": [(34972, 0.9635), (38883, 0.9605), (37722, 0.9615)],
    "synthetic": [(66732, 0.9605), (66762, 0.9580), (65792, 0.9585)],
    "single": [(63987, 0.9630), (63252, 0.9625), (86674, 0.9600)],
}
#: Every 2500 of 10,000 samples: the test accuracy, up to the final one.
CURVE = (0.90, 0.95, 0.955)


def result(name: str, seed: int, speed: float | None, accuracy: float | None) -> Result:
    train_s = 10_000 / speed if speed else 0.0
    curve = (*CURVE, accuracy) if accuracy is not None else ()
    summary = {
        "schedule": "locked" if name.startswith("single") else name,
        "samples_per_s": speed,
        "test_accuracy": accuracy,
        "test_loss": 0.15,
        "train_s": train_s,
        "train_samples": 10_000,
        "cpu_s": 2.75,
        "workers": 1 if name.startswith("single") else 4,
        "threads": 2 if name == "single" else 1,
        "history": [
            {"samples": 2500 * k, "train_s": train_s * k / 4, "accuracy": a, "loss": 0.2}
            for k, a in enumerate(curve, 1)
        ],
    }
    return Result(name, seed, summary)


def recorded(
    seeds: int = 3,
    targets: tuple[float, ...] = (),
    controls: dict[str, str] | None = None,
    **changes: list[tuple[float | None, float | None]],
) -> Comparison:
    """`RECORDED` with other rows, or further ones."""
    rows = RECORDED | changes
    results = [
        result(name, seed, *values)
        for name, found in rows.items()
        for seed, values in enumerate(found[:seeds])
    ]
    return Comparison(tuple(rows), tuple(results), targets, controls or {})


def worker(name: str, ops: dict[str, tuple[int, float, float]], **changes: Any) -> dict[str, Any]:
    """A summary's entry of one worker that trained 100 batches in 10 s; `ops` are (count, wall_s,
    cpu_s) by letter."""
    generator_s = sum(ops[letter][1] for letter in "PT" if letter in ops)
    return {
        "name": name,
        "batches": 100,
        "wall_s": 9.0,
        "compute_s": sum(wall_s for _, wall_s, _ in ops.values()) - generator_s,
        "generator_s": generator_s,
        "transport_s": 1.0,
        "wait_s": 1.5,
        "cpu_s": 6.0,
        "op_cpu_s": sum(cpu_s for _, _, cpu_s in ops.values()),
        "ops": {
            letter: {"count": count, "wall_s": wall_s, "cpu_s": cpu_s}
            for letter, (count, wall_s, cpu_s) in ops.items()
        },
        **changes,
    }


def two_workers(schedule: str = "synthetic", **changes: Any) -> dict[str, Any]:
    """A summary of 100 batches in 10 s: `a` sends its activations to `b`."""
    a = {"F": (100, 1.0, 1.0), "P": (100, 0.5, 0.5), "B": (100, 2.0, 1.5), "T": (25, 0.5, 0.5)}
    b = {"F": (100, 1.0, 1.0), "B": (100, 2.0, 2.0), "U": (100, 1.0, 1.0)}
    return {
        "schedule": schedule,
        "workers": 2,
        "threads": 1,
        "train_s": 10.0,
        "train_samples": 25_000,
        "samples_per_s": 2500.0,
        "cpu_s": 12.0,
        "stages": [worker("a", a), worker("b", b)],
        **changes,
    }
