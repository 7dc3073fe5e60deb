"""Timed runs on real processes, one after another, kept in one JSON file.

Shared by `../latency` and `../straggler`; the file is that of `sweep.Runs`. Timed
runs must not share the machine: run nothing beside them.

A schedule that does two batches a second and one that does four hundred can't train equally long in
batches, so a run's length is set in batches of equal size: `shortened` leaves all others of the
training set to the one evaluation at its end, which takes no training time.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from sweep import Runs, fill_in, table

from asyncdni import config, experiment
from asyncdni.data import describe
from asyncdni.errors import AsyncDNIError, Interrupted, NumericalError
from asyncdni.launch.train import train
from asyncdni.report.machine import describe_machine
from asyncdni.report.records import Recorder
from asyncdni.report.statistics import Comparison, Estimate, Result, crossing

__all__ = [
    "Job",
    "Runs",
    "comparison",
    "fill_in",
    "machine_line",
    "plus_minus",
    "run_in_turn",
    "shortened",
    "table",
    "verdict",
    "wanted",
    "with_interval",
]

#: Of a run's summary, what is kept; and of each stage.
KEPT = (
    *("samples_per_s", "stream_samples_per_s", "train_s", "train_samples", "cpu_s"),
    *("test_accuracy", "history", "batch_size", "workers", "threads"),
)
STAGE_KEPT = (
    *("batches", "updates", "wall_s", "compute_s", "generator_s", "slowed_s", "wait_s"),
    *("skipped", "missed", "dropped", "replays", "staleness_mean", "staleness_max", "lag_max"),
    *("samples", "bytes_by_link"),
)


@dataclass(frozen=True)
class Job:
    """One run."""

    name: str  # of the setting; with the seed it names the run
    seed: int
    experiment: config.Experiment
    stop_at: float | None = None  # test accuracy, 0 to 1; None: the run takes all its epochs

    @property
    def key(self) -> str:
        return f"{self.name}/{self.seed}"

    @property
    def digest(self) -> str:
        """Equal for the same run."""
        told = [experiment.tables(self.experiment), self.stop_at]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def shortened(path: Path, changes: Sequence[str], batches: int) -> list[str]:
    """Further changes that make a run of `batches` batches, none of them short, and one evaluation.

    Less than an epoch is exactly as many, more is the nearest number of whole epochs.
    """
    data = experiment.load(path, [*changes, "data.validation=0"], schedule="locked").data
    samples, size = describe(data).train_samples, data.batch_size
    an_epoch = min(batches, samples // size)
    epochs = max(1, round(batches / an_epoch))
    return [
        f"data.validation={samples - an_epoch * size}",
        f"run.epochs={epochs}",
        f"run.evaluate_every={float(epochs)!r}",
    ]


def wanted(name: str, only: Sequence[str] | None) -> bool:
    """Whether a setting's name has one of `only`, `*` allowed, in it."""
    return not only or any(fnmatch.fnmatch(name, f"*{part}*") for part in only)


# --- one run -------------------------------------------------------------------------------------


def measure(job: Job) -> dict[str, Any]:
    """Train. A run that fails for its numbers has a `failure` and no measurements.

    Raises whatever else ends it.
    """
    began = time.perf_counter()
    try:
        summary = _trained(job)
        stages = {
            stage["name"]: {key: stage.get(key) for key in STAGE_KEPT}
            for stage in summary["stages"]
        }
        found = {**{key: summary[key] for key in KEPT}, "stages": stages}
    except NumericalError as error:
        found = {"failure": str(error)}
    seconds = round(time.perf_counter() - began, 1)
    return {"key": job.key, "digest": job.digest, **found, "seconds": seconds}


def _trained(job: Job) -> Mapping[str, Any]:
    """The summary; where the run is stopped, as of that moment."""
    reached: dict[str, Any] = {}

    def watch(_: object, recorder: Recorder, kind: str, values: Mapping[str, Any]) -> None:
        there = job.stop_at is not None and crossing(recorder.history, job.stop_at)
        if kind == "evaluation" and there and not reached:
            reached.update(recorder.summary(values["train_s"]))
            signal.raise_signal(signal.SIGINT)  # as a user stops a run: its workers leave in order

    try:
        return train(job.experiment, observers=[watch], progress=False).summary
    except KeyboardInterrupt as stop:
        if not reached or not isinstance(stop.__cause__, Interrupted):
            raise
        return reached


# --- all runs ------------------------------------------------------------------------------------


def run_in_turn(
    jobs: Sequence[Job],
    runs: Runs,
    *,
    resume: bool,
    prepare: Callable[[Job], config.Experiment] = lambda job: job.experiment,
) -> None:
    """Run what the file does not have, in the order given; it is written after every run.

    `prepare` gives the experiment of a job just before it runs, where it depends on earlier runs.
    Without `resume` a file that has any of the runs is refused (`AsyncDNIError`).
    """
    missing = [job for job in jobs if not runs.holds(job)]
    if not resume and len(missing) < len(jobs):
        raise AsyncDNIError(
            f"{runs.path} has {len(jobs) - len(missing)} of these runs: --resume goes on with it"
        )
    runs.machine = describe_machine()
    order, before, began = [job.key for job in jobs], runs.wall_s, time.perf_counter()
    for count, job in enumerate(missing, 1):
        run = measure(dataclasses.replace(job, experiment=prepare(job)))
        runs.found[job.key] = {**run, "digest": job.digest}
        runs.wall_s = before + time.perf_counter() - began
        runs.save(order)
        told = run.get("failure") or f"{run['samples_per_s']:,.0f} samples/s"
        print(f"{count} of {len(missing)}: {job.key} {told}", file=sys.stderr, flush=True)


def comparison(runs: Runs, names: Mapping[str, str]) -> Comparison:
    """Of settings, `names` by what they are called in the comparison."""
    results = [
        Result(called, seed, run)
        for called, name in names.items()
        for seed, run in runs.of(name).items()
    ]
    return Comparison(tuple(names), tuple(results))


# --- words ---------------------------------------------------------------------------------------


def plus_minus(one: Estimate | None, digits: int = 0, scale: float = 1.0) -> str:
    """`29,310 ± 120`: mean and half the 95 % interval."""
    if one is None:
        return "-"
    mean = f"{scale * one.mean:,.{digits}f}"
    if one.high is None:
        return mean
    return f"{mean} ± {scale * (one.high - one.mean):,.{digits}f}"


def with_interval(one: Estimate | None, digits: int = 2, scale: float = 1.0) -> str:
    """`1.45 (1.38 to 1.52)`, for ratios, whose intervals are not even."""
    if one is None:
        return "-"
    mean = f"{scale * one.mean:,.{digits}f}"
    if one.low is None or one.high is None:
        return mean
    return f"{mean} ({scale * one.low:,.{digits}f} to {scale * one.high:,.{digits}f})"


def verdict(one: Estimate | None, least: float) -> str:
    """Whether a mean is `least` or more."""
    if one is None:
        return "not measured"
    return "met" if one.mean >= least else "missed"


def machine_line(runs: Runs) -> str:
    """What it was run on, and how long it took."""
    if not runs.found:
        return "Not measured yet."
    machine = runs.machine
    blas = ", ".join(f"{b['internal_api']} {b['architecture']}" for b in machine["blas"])
    return (
        f"{len(runs.found)} runs, one after another, in {math.ceil(runs.wall_s / 60)} minutes on "
        f"{machine['cores']} cores ({machine['cpu']}, NumPy {machine['numpy']} with {blas})."
    )
