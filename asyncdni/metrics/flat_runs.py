"""Every run of a comparison's document as one flat line: for CSV, the page, and dots in plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from asyncdni.metrics.latencies import latencies_of
from asyncdni.metrics.targets import time_to

__all__ = ["COUNTERS", "evaluations_csv", "flat_runs", "runs_csv", "time_key"]

_FROM_SUMMARY = (
    *("workers", "threads", "schedule", "batch_size", "epochs", "train_samples"),
    *(
        "samples_per_s",
        "stream_samples_per_s",
        "train_s",
        "wall_s",
        "startup_s",
        "cpu_s",
        "test_accuracy",
        "test_loss",
    ),
)
_EVALUATION = ("samples", "train_s", "accuracy", "loss")

#: Counter of a stage -> how those of all stages become the run's.
COUNTERS: dict[str, Callable[[Iterable[float]], float]] = {
    "compute_s": sum,
    "generator_s": sum,
    "transport_s": sum,
    "wait_s": sum,
    "op_cpu_s": sum,
    "updates": sum,
    "staleness_max": max,
    "messages": sum,
    "bytes_sent": sum,
    "dropped": sum,
}


def flat_runs(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per run: name, latency where several are compared, seed, its summary's numbers, time to each
    target, counters over all stages.

    Seconds and bytes; None where a run has no such number, or did not reach the target.
    """
    controls = {row["name"] for row in found["rows"] if row.get("control")}
    return [
        {
            **_place(run, found),
            "control": run["name"] in controls,
            **{key: run["summary"].get(key) for key in _FROM_SUMMARY},
            **{
                time_key(target): time_to(target)(run["summary"])
                for target in found.get("targets") or ()
            },
            **_counters(run["summary"].get("stages") or ()),
            "folder": run.get("folder"),
        }
        for run in found["runs"]
    ]


def time_key(target: float) -> str:
    """Key of the training seconds until an accuracy: `time_to_0.975_s`."""
    return f"time_to_{target:g}_s"


def runs_csv(found: Mapping[str, Any]) -> str:
    """One line a run, so that the statistics can be done again by other means."""
    lines = flat_runs(found)
    return _csv(list(lines[0]) if lines else ["name", "seed"], lines)


def evaluations_csv(found: Mapping[str, Any]) -> str:
    """One line an evaluation of a run; `train_s` is training time alone."""
    first = [*_place({"name": "", "seed": 0}, found)]
    return _csv(
        [*first, *_EVALUATION],
        (
            {**_place(run, found), **{key: one.get(key) for key in _EVALUATION}}
            for run in found["runs"]
            for one in run["summary"].get("history") or ()
        ),
    )


def _place(run: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a run from all others."""
    where = {"latency_s": run.get("latency_s")} if latencies_of(found) else {}
    return {"name": run["name"], **where, "seed": run["seed"]}


def _counters(stages: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    found = {}
    for name, over_stages in COUNTERS.items():
        values = [stage[name] for stage in stages if stage.get(name) is not None]
        found[name] = over_stages(values) if values else None
    return found


def _csv(keys: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
