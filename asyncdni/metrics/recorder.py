"""What a run leaves behind: `metrics.jsonl` line by line, and the summary at its end.

A line of `metrics.jsonl` is one record of the coordinator: {"kind": …, "time_s": …, …}. Kinds:
joined, refused, rejected (no message), start, report (one worker's counters since the start),
guard (a stage waits for true gradients, or does no longer), drained, evaluation, saved, resume.
What the counters mean stands in docs/telemetry.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from asyncdni import __version__
from asyncdni.core.tally import EDGE_NAMES, read_distribution
from asyncdni.errors import CheckpointError

__all__ = ["DISTRIBUTIONS", "STAGE_FIELDS", "Recorder"]

#: Fields of each entry of the summary's `stages`; None where a field has no meaning.
#: `ops` is {letter of the op: {"count": …, "wall_s": …, "cpu_s": …}}. For the others see
#: `runtime.meter`, `core.worker` and `DISTRIBUTIONS`.
STAGE_FIELDS = (
    "batches",
    "samples",
    "updates",
    "wall_s",
    "busy_fraction",
    "ops",
    "compute_s",
    "generator_s",
    "transport_s",
    "wait_s",
    "slowed_s",
    "stream_s",
    "stream_samples",
    "cpu_s",
    "op_cpu_s",
    "memory_start_bytes",
    "memory_bytes",
    "staleness_mean",
    "staleness_max",
    "lag_max",
    "agreements",
    "gradient_cosine",
    "target_cosine",
    "gradient_error",
    "generator_loss",
    "dropped",
    "late",
    "skipped",
    "missed",
    "replays",
    "fallbacks",
    "waiting",
    "window",
    "bytes_sent",
    "bytes_received",
    "messages",
)

#: Tallies that a stage's entry has as tables beside those fields, and whether they count whole
#: numbers: {"mean": …, "max": …, "p50": …, "p95": …, "bins": {upper edge: count}}, or None.
#: staleness: updates. lag: batches. age_ms: milliseconds. queue: batches. See `core.worker`.
DISTRIBUTIONS = {"staleness": True, "lag": True, "age_ms": False, "queue": True}


class Recorder:
    """Keeps the latest report of every worker and each evaluation."""

    def __init__(self, workers: tuple[str, ...], facts: Mapping[str, Any], folder: Path | None):
        """`facts` (schedule, seed, …) go into the summary as they are."""
        self.history: list[dict[str, Any]] = []
        self.reports: dict[str, dict[str, Any]] = {name: {} for name in workers}
        self.train_loss: float | None = None  # mean of the last report that had one
        self.guard: list[dict[str, Any]] = []  # time_s since the first record, stage, waiting, …
        self._with_loss: set[str] = set()  # workers that carry a loss
        self._facts = dict(facts)
        self._began_s: float | None = None
        self._started_s: float | None = None
        self._ended_s = 0.0
        self._file = _open(folder / "metrics.jsonl") if folder else None

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Take note of one record. Raises `CheckpointError` where it can't be written."""
        time_s = values["time_s"]
        if self._began_s is None:
            self._began_s = time_s
        self._ended_s = time_s
        if kind == "start":
            self._started_s = time_s
        elif kind == "report":
            self._report(values["stage"], values["values"])
        elif kind == "guard":
            self.guard.append({**values, "time_s": round(time_s - self._began_s, 6)})
        elif kind == "evaluation":
            keys = ("samples", "train_s", "accuracy", "loss")
            self.history.append({key: values[key] for key in keys})
        if self._file is not None:
            line = {"kind": kind, **values, "time_s": round(time_s - self._began_s, 6)}
            with _writing(self._file):
                self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Raises `CheckpointError` where the last records can't be written."""
        if self._file is not None:
            with _writing(self._file):
                self._file.close()

    def summary(self, train_s: float) -> dict[str, Any]:
        """The run in numbers; `train_s` is its training time alone, drains included.

        Samples count once they have reached the loss: where there are several, all of them.
        `stream_samples_per_s` leaves the filling and the draining of the pipe out.
        """
        samples = self.loss_samples
        streams = [_stream(report) for report in self._loss_reports()]
        known = [rate for rate in streams if rate is not None]
        last = self.history[-1] if self.history else {"accuracy": None, "loss": None}
        began_s = self._began_s or 0.0
        return {
            "version": __version__,
            **self._facts,
            "workers": len(self.reports),
            "train_samples": samples,
            "wall_s": self._ended_s - began_s,
            "startup_s": self._started_s - began_s if self._started_s is not None else None,
            "train_s": train_s,
            "samples_per_s": samples / train_s if train_s > 0 and samples else None,
            "stream_samples_per_s": min(known) if len(known) == len(streams) > 0 else None,
            "cpu_s": sum(report.get("cpu_s") or 0.0 for report in self.reports.values()),
            "test_accuracy": last["accuracy"],
            "test_loss": last["loss"],
            "history": self.history,
            "guard": self.guard,
            "stages": [_stage(name, one, train_s) for name, one in self.reports.items()],
        }

    @property
    def loss_samples(self) -> int:
        """Training samples that have reached every loss."""
        return min((_count(r.get("samples")) for r in self._loss_reports()), default=0)

    def _loss_reports(self) -> list[dict[str, Any]]:
        """Of the workers that carry a loss; of all while none has reported one."""
        return [r for name, r in self.reports.items() if name in self._with_loss] or [
            *self.reports.values()
        ]

    def _report(self, stage: str, values: Mapping[str, Any]) -> None:
        self.reports[stage] = dict(values)
        if values["loss_samples"]:
            self._with_loss.add(stage)
            self.train_loss = values["loss_sum"] / values["loss_samples"]


def _open(path: Path) -> TextIO:
    try:
        return open(path, "w", buffering=1, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"can't write {path}: {error.strerror}") from error


@contextmanager
def _writing(file: TextIO) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"can't write {file.name}: {error.strerror}") from error


def _stage(name: str, report: Mapping[str, Any], train_s: float) -> dict[str, Any]:
    return {
        "name": name,
        **{field: report.get(field) for field in STAGE_FIELDS},
        "busy_fraction": _busy_fraction(report, train_s),
        "ops": _ops(report),
        "lag_by_link": _lag_by_link(report),
        **{key: _table(report, key, whole) for key, whole in DISTRIBUTIONS.items()},
    }


def _lag_by_link(report: Mapping[str, Any]) -> dict[str, int]:
    """The greatest lag towards each consumer, in batches."""
    prefix = "lag_to_"
    return {key.removeprefix(prefix): n for key, n in report.items() if key.startswith(prefix)}


def _table(report: Mapping[str, Any], prefix: str, whole: bool) -> dict[str, Any] | None:
    """A distribution of a report's flat counters."""
    found = read_distribution(report, prefix)
    if found is None:
        return None
    bins = zip(EDGE_NAMES, found.bins, strict=True)
    return {
        "mean": found.mean,
        "max": found.max,
        "p50": found.quantile(0.5, whole=whole),
        "p95": found.quantile(0.95, whole=whole),
        "bins": {edge: count for edge, count in bins if count},
    }


def _stream(report: Mapping[str, Any]) -> float | None:
    """Samples a second between the first and the last Forward of each stretch."""
    samples, seconds = report.get("stream_samples"), report.get("stream_s")
    return samples / seconds if samples and seconds else None


def _ops(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A report is flat: `op_F_cpu_s` is the CPU time of all Forwards."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in report.items():
        prefix, _, rest = key.partition("_")
        letter, _, field = rest.partition("_")
        if prefix == "op" and len(letter) == 1:
            found.setdefault(letter, {})[field] = value
    return found


def _busy_fraction(report: Mapping[str, Any], train_s: float) -> float | None:
    """Of the run's training time, the same for all: a worker's own clock stops when it is through,
    which would flatter those that are through early."""
    if "compute_s" not in report or train_s <= 0:
        return None
    return float(report["compute_s"] + report["generator_s"]) / train_s


def _count(value: object) -> int:
    """A worker's count; 0 for what is none."""
    return value if isinstance(value, int) else 0
