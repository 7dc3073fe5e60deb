"""What a run leaves behind: `metrics.jsonl` line by line, and the summary at its end.

A line of `metrics.jsonl` is one record of the coordinator: {"kind": …, "time_s": …, …}. Kinds:
joined, refused, rejected (no message), start, report (one worker's counters since the start),
guard (a stage waits for true gradients, or does no longer), drained, evaluation, saved, resume, cut
(a checkpoint). Of deaths: lost, accused (for breaking the protocol), launch, waiting (for a process
to be started by hand), round (all join anew), note (a state that could not be restored, a link that
carries nothing), back, numbers (gone wrong), stuck (nothing has moved for too long). stopping: how
far a user's stop has come. Of a run that is taken up again: resumed, changed (of the experiment,
from there on), passed_over (a broken checkpoint).
What the counters mean stands in docs/telemetry.md.

A run that is taken up again appends to its file: its summary is of all that stands there. Reports
are thinned there as a run gets older: see `record_file`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from asyncdni import __version__
from asyncdni.core.tally import EDGE_NAMES, read_distribution
from asyncdni.metrics.mishaps import Mishaps
from asyncdni.metrics.processes import Processes
from asyncdni.metrics.record_file import RecordFile, newest_records, read_records

__all__ = ["DISTRIBUTIONS", "STAGE_FIELDS", "Recorder"]

#: Fields of each entry of the summary's `history`, beside `batches`: where the data stood (runs of
#: early versions do not say).
_EVALUATION = ("samples", "train_s", "accuracy", "loss")

#: Fields of each entry of the summary's `changes`: what was changed by `--resume --set`, and where
#: the data stood.
_CHANGE = ("batches", "place", "old", "new")

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
    "skipped_updates",
    "skipped_fits",
    "missed",
    "replays",
    "fallbacks",
    "waiting",
    "window",
    "bytes_sent",
    "bytes_received",
    "messages",
    "snapshots",
    "snapshot_s",
)

#: Tallies that a stage's entry has as tables beside those fields, and whether they count whole
#: numbers: {"mean": …, "max": …, "p50": …, "p95": …, "bins": {upper edge: count}}, or None.
#: staleness: updates. lag: batches. age_ms: milliseconds. queue: batches. See `core.worker`.
DISTRIBUTIONS = {"staleness": True, "lag": True, "age_ms": False, "queue": True}


class Recorder:
    """Keeps the latest report of every worker and each evaluation."""

    def __init__(self, workers: tuple[str, ...], facts: Mapping[str, Any], folder: Path | None):
        """`facts` (schedule, seed, …) go into the summary as they are.

        What `folder` holds of the run already is read, and added to; `damaged` counts the lines
        there that are no records. Raises `CheckpointError` where that can't be done.
        """
        self.damaged = 0
        self.history: list[dict[str, Any]] = []
        self.reports: dict[str, dict[str, Any]] = {name: {} for name in workers}
        self.train_loss: float | None = None  # of the last reports, summed over the losses
        self.guard: list[dict[str, Any]] = []  # time_s since the first record, stage, waiting, …
        self.changes: list[dict[str, Any]] = []  # of the experiment: place, old, new, batches
        self.mishaps = Mishaps()
        self.trained_s = 0.0  # training time up to the last record, as far as records tell
        self._training_since_s: float | None = None
        self._processes = {name: Processes() for name in workers}
        self._losses: dict[str, float] = {}  # of workers that carry one, the last mean
        self._facts = dict(facts)
        self._began_s: float | None = None  # of the first record, on the clock of this process
        self._started_s: float | None = None  # as the following: since the first record of all
        self._ended_s = 0.0
        self._file: RecordFile | None = None
        if folder is not None:
            path = folder / "metrics.jsonl"
            known_s = self._read(read_records(path))
            newest = newest_records(path, known_s)
            self._read(newest)
            self._add_segment()  # which a death has cut short
            self._file = RecordFile(path)
            for record in newest:
                self._file.add(record)

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Take note of one record. Raises `CheckpointError` where it can't be written."""
        if self._began_s is None:
            self._began_s = values["time_s"] - self._ended_s
        line = {"kind": kind, **values, "time_s": round(values["time_s"] - self._began_s, 6)}
        self._note(kind, line)
        if self._file is not None:
            self._file.write(line)

    def _read(self, records: Iterable[dict[str, Any] | None]) -> dict[Any, float]:
        """Take note of what an earlier process has recorded; the time of the last record of each
        kind and worker."""
        last_s: dict[Any, float] = {}
        for record in records:
            try:
                if record is None:
                    raise ValueError("no record")
                self._note(record["kind"], record)
                last_s[record["kind"], record.get("stage")] = record["time_s"]
            except (KeyError, TypeError, ValueError, AttributeError):
                self.damaged += 1
        return last_s

    def _note(self, kind: str, values: Mapping[str, Any]) -> None:
        # These may be kept later than what came behind them.
        is_late = kind in ("report", "evaluation") and values["time_s"] < self._ended_s
        if kind == "bound":
            self._add_segment()  # of an earlier process, which a death has cut short
        self._ended_s = self._ended_s if is_late else values["time_s"]
        self.mishaps.note(kind, values)
        if kind in ("start", "resume"):
            self._add_segment()  # where it is not kept that the run drained
            self._training_since_s = self._ended_s
            if self._started_s is None:
                self._started_s = self._ended_s
        elif kind == "drained":
            self._add_segment()
        elif kind == "joined" and values["stage"] in self._processes:
            self._processes[values["stage"]].joined()
        elif kind == "report" and values["stage"] in self._processes:
            self._report(values["stage"], values["values"])
        elif kind == "guard":
            self.guard.append({key: one for key, one in values.items() if key != "kind"})
        elif kind == "changed":
            self.changes.append({key: values[key] for key in _CHANGE})
        elif kind == "evaluation":
            self.trained_s = float(values["train_s"])  # up to here, barriers left out included
            if self._training_since_s is not None:
                self._training_since_s = values["time_s"]
            batches = {"batches": values["batches"]} if "batches" in values else {}
            self.history.append(batches | {key: values[key] for key in _EVALUATION})

    def _add_segment(self) -> None:
        if self._training_since_s is not None:
            self.trained_s += self._ended_s - self._training_since_s
        self._training_since_s = None

    def close(self) -> None:
        """Raises `CheckpointError` where the last records can't be written."""
        if self._file is not None:
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
        return {
            "version": __version__,
            **self._facts,
            "workers": len(self.reports),
            "train_samples": samples,
            "wall_s": self._ended_s,
            "startup_s": self._started_s,
            "train_s": train_s,
            "samples_per_s": samples / train_s if train_s > 0 and samples else None,
            "stream_samples_per_s": min(known) if len(known) == len(streams) > 0 else None,
            "cpu_s": sum(report.get("cpu_s") or 0.0 for report in self.reports.values()),
            "test_accuracy": last["accuracy"],
            "test_loss": last["loss"],
            "history": self.history,
            "guard": self.guard,
            "changes": self.changes,
            **self.mishaps.summary(),
            "stages": [
                {**_stage(name, one, train_s), "lost_updates": self.mishaps.lost_updates[name]}
                for name, one in self.reports.items()
            ],
        }

    @property
    def updates(self) -> dict[str, int]:
        """By worker, as last reported."""
        return {name: _count(report.get("updates")) for name, report in self.reports.items()}

    @property
    def loss_samples(self) -> int:
        """Training samples that have reached every loss."""
        return min((_count(r.get("samples")) for r in self._loss_reports()), default=0)

    def _loss_reports(self) -> list[dict[str, Any]]:
        """Of the workers that carry a loss; of all while none has reported one."""
        return [r for name, r in self.reports.items() if name in self._losses] or [
            *self.reports.values()
        ]

    def _report(self, stage: str, values: Mapping[str, Any]) -> None:
        self.reports[stage] = self._processes[stage].reported(values)
        if values["loss_samples"]:
            self._losses[stage] = values["loss_sum"] / values["loss_samples"]
            self.train_loss = sum(self._losses.values())


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
