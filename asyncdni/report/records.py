"""What a run records: `metrics.jsonl` line by line, and the summary at its end.

A line of `metrics.jsonl` is one record of the coordinator: {"kind": …, "time_s": …, …}. The kinds:

```
joined, refused, rejected   a worker was admitted, was not; a message was invalid
start, drained, resume      training begins, stops for an evaluation or a checkpoint, goes on
report                      the counters of one worker since the start: docs/telemetry.md
guard                       a stage begins, or ceases, to wait for true gradients
evaluation, saved, cut      the test set was evaluated; weights, a checkpoint of the run were saved
lost, stuck                 a worker has died; nothing has moved for too long
accused                     a worker was accused of breaking the protocol
launch, waiting             a process is started; the user has to start one
moved                       a worker leaves at a barrier, to go on elsewhere
round, back                 all workers join anew; a lost worker, or one that has moved, is there
note                        a state could not be restored, a link carries nothing, a worker moves
numbers                     numbers went wrong, and the run goes back to a checkpoint
stopping                    the progress of a stop by the user
resumed, changed            the run was resumed; a change of the experiment at that time
passed_over                 a checkpoint was broken, and not used
```

A resumed run appends to its file, and its summary covers the whole file.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from asyncdni import __version__
from asyncdni.core.counts import EDGE_NAMES, read_distribution
from asyncdni.errors import CheckpointError

__all__ = [
    "DISTRIBUTIONS",
    "STAGE_FIELDS",
    "Barriers",
    "Incidents",
    "Processes",
    "RecordFile",
    "Recorder",
    "Thinning",
    "recorded",
]

# --- the file ------------------------------------------------------------------------------------

_BLOCK_BYTES = 65536
#: The file beside `metrics.jsonl` with the newest report of each worker that is not in there yet.
_NEWEST = "reports.jsonl"
#: The least and the greatest time between two reports that are kept.
_GAP_MIN_S = 0.5
_GAP_MAX_S = 60.0  # or one second for each worker, if that is more: many workers write no more
#: How much sooner than due a report may come.
_UNPUNCTUAL_S = 0.1
#: The most barriers that are kept without a pause between them.
_BARRIERS = 30.0
#: Significant digits of numbers in reports: for a quarter of an hour times are exact to 1 µs.
_DIGITS = 9


class Thinning:
    """Decides which reports are kept: the older a worker's process, the fewer.

    Every worker reports twice a second as long as a run lasts. All reports are shown. The time
    between two that are kept is `share` of the age of the process, at least half a second and at
    most a minute. So the beginning is kept in detail, and a worker adds some 3 MB a day.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._began_s: dict[str, float] = {}  # start of each worker's present process
        self._kept_s: dict[str, float] = {}  # time of each worker's last kept report

    def joined(self, stage: str, time_s: float) -> None:
        """Start again: a new process has taken the worker's place."""
        self._began_s[stage] = time_s
        self._kept_s.pop(stage, None)

    def keeps(self, stage: str, time_s: float) -> bool:
        """Tell whether to keep a report that comes now; if so, it counts as kept."""
        kept_s = self._kept_s.get(stage)
        if kept_s is not None:
            age_s = kept_s - self._began_s.setdefault(stage, kept_s)
            longest_s = max(_GAP_MAX_S, float(len(self._kept_s)))
            gap_s = min(longest_s, max(_GAP_MIN_S, self._share * age_s))
            if kept_s <= time_s < kept_s + gap_s - _UNPUNCTUAL_S:
                return False
        self._kept_s[stage] = time_s
        return True


class Barriers:
    """Decides which barriers are kept: one a second on average, and up to 30 without a pause.

    For all others the records `drained`, `evaluation` and `resume` are left out.
    """

    def __init__(self) -> None:
        self._credit = _BARRIERS
        self._last_s = 0.0

    def keeps(self, time_s: float) -> bool:
        """Tell whether to keep a barrier that comes now; if so, it counts as kept."""
        self._credit = min(_BARRIERS, self._credit + max(0.0, time_s - self._last_s))
        self._last_s = time_s
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True


class RecordFile:
    """A `metrics.jsonl` that records are appended to, after its last whole line.

    Reports and barriers are thinned: see `Thinning` and `Barriers`. The newest report of each
    worker and the last evaluation are never lost: until the file has them, `reports.jsonl` beside
    it does, which is overwritten again and again.
    """

    def __init__(self, path: Path) -> None:
        """Open the file to append to it. Raises `CheckpointError` if it can't be written."""
        self._file = _opened(path)
        self._thinning = Thinning(1.0)
        self._barriers = Barriers()
        self._leaves_out = False  # whether the present barrier is left out
        self._evaluation: list[str] = []  # the line of the newest evaluation, if it was left out
        self._waiting: dict[str, str] = {}  # each worker's newest line, if it was left out
        self._losses: dict[str, tuple[float, int]] = {}  # sum and samples of reports left out
        self._newest = path.with_name(_NEWEST)
        self._newest_s = -math.inf  # when that was written

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record, unless it is thinned out.

        Raises `CheckpointError` if it can't be written.
        """
        _check_there(self._file)
        kind = record["kind"]
        if kind == "report":
            self._report(record)
            return
        if kind in ("drained", "evaluation", "resume") and not self._of_kept_barrier(record):
            return
        if kind in ("lost", "joined"):  # the last report of the old process comes before it
            self._keep_waiting(record["stage"])
        if kind == "joined":
            self._thinning.joined(record["stage"], record["time_s"])
        self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record of any kind."""
        self._write(json.dumps(record))

    def close(self) -> None:
        """Append the last report of each worker and close the file.

        Raises `CheckpointError` if they can't be written.
        """
        try:
            for stage in list(self._waiting):
                self._keep_waiting(stage)
            for line in self._evaluation:
                self._write(line)
        finally:
            with _writing(self._file):
                self._file.close()
        with contextlib.suppress(OSError):
            self._newest.unlink(missing_ok=True)

    def _of_kept_barrier(self, record: Mapping[str, Any]) -> bool:
        kind = record["kind"]
        if kind == "drained":
            self._leaves_out = not self._barriers.keeps(record["time_s"])
        leaves_out = self._leaves_out
        if record.get("behind"):  # an evaluation behind the stream stands for a barrier
            leaves_out = not self._barriers.keeps(record["time_s"])
        if kind == "evaluation":
            self._evaluation = [json.dumps(record)] if leaves_out else []
        elif kind == "resume":
            self._leaves_out = False
        return not leaves_out

    def _report(self, record: Mapping[str, Any]) -> None:
        stage, time_s = record["stage"], record["time_s"]
        self._waiting[stage] = json.dumps({**record, "values": self._summed(stage, record)})
        if self._thinning.keeps(stage, time_s):
            self._keep_waiting(stage)
        elif time_s >= self._newest_s + _GAP_MIN_S:
            self._newest_s = time_s
            self._overwrite_newest()

    def _summed(self, stage: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a report, with the losses of the reports left out before it.

        Other counters are sums since the start, but losses are since the last report.
        """
        values = {name: _rounded(value) for name, value in record["values"].items()}
        total, samples = self._losses.get(stage, (0.0, 0))
        total += values["loss_sum"]
        samples += values["loss_samples"]
        self._losses[stage] = total, samples
        return {**values, "loss_sum": total, "loss_samples": samples}

    def _keep_waiting(self, stage: str) -> None:
        line = self._waiting.pop(stage, None)
        self._losses.pop(stage, None)
        if line is not None:
            self._write(line)

    def _overwrite_newest(self) -> None:
        """Write `reports.jsonl` anew, in place, without a flush to the disk.

        A reader skips a torn line, and one that is older than the records in the main file.
        """
        lines = [*self._waiting.values(), *self._evaluation]
        content = "".join(f"{line}\n" for line in lines).encode()
        try:
            handle = os.open(self._newest, os.O_WRONLY | os.O_CREAT, 0o666)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.truncate()
        except OSError:
            pass  # the main file reports a full disk

    def _write(self, line: str) -> None:
        with _writing(self._file):
            self._file.write(line + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{_DIGITS}g}")
    return value


def _read_records(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yield the records of a `metrics.jsonl`; nothing if there is no file.

    A line damaged by a power cut or a disk fault is None. A last line without an end was not fully
    written, and is skipped. Raises `CheckpointError` if the file can't be read.
    """
    if path.exists() and not path.is_file():
        return  # a device can't be read back
    try:
        with open(path, "rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield _parsed(line)
    except FileNotFoundError:
        return  # a new run
    except OSError as error:
        raise CheckpointError(f"can't read {path}: {error.strerror}") from error


def _newest_records(path: Path, known_s: Mapping[Any, float]) -> list[dict[str, Any]]:
    """Return reports and evaluations that a killed coordinator had not yet put into `path`, its
    `metrics.jsonl`.

    `known_s` has the time of the last record in there, by kind and worker (None for evaluations).
    """
    try:
        found = list(_read_records(path.with_name(_NEWEST)))
    except CheckpointError:
        return []
    return [
        record
        for record in found
        if record is not None
        and record["kind"] in ("report", "evaluation")
        and record["time_s"] > known_s.get((record["kind"], record.get("stage")), -math.inf)
    ]


def recorded(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of the run in `folder`, which may still go on, in the order in which they
    came; damaged lines are left out.

    Raises `CheckpointError` if they can't be read.
    """
    path = folder / "metrics.jsonl"
    known_s: dict[Any, float] = {}
    for record in _read_records(path):
        if record is not None:
            known_s[record["kind"], record.get("stage")] = record["time_s"]
            yield record
    yield from _newest_records(path, known_s)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line; None if it holds none."""
    try:
        record = json.loads(line)
        record["time_s"] = float(record["time_s"])
        record["kind"] = str(record["kind"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return dict(record) if math.isfinite(record["time_s"]) else None


def _opened(path: Path) -> TextIO:
    """Open the file for appending after its last whole line."""
    try:
        if path.is_fifo():
            raise CheckpointError(f"can't write {path}: it is a pipe, expected a file")
        if path.is_file():
            with open(path, "rb+") as whole:
                whole.truncate(_end_of_lines(whole))
        return open(path, "a", buffering=1, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"can't write {path}: {error.strerror}") from error


def _end_of_lines(file: BinaryIO) -> int:
    """Return where the last whole line ends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK_BYTES)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _check_there(file: TextIO) -> None:
    """Raise `CheckpointError` if the file was removed: then the whole run folder is gone."""
    if os.fstat(file.fileno()).st_nlink == 0:
        folder = os.path.dirname(file.name)
        raise CheckpointError(f"{folder} was removed while the run went on: nothing can be kept")


@contextmanager
def _writing(file: TextIO) -> Iterator[None]:
    """Turn an error of the system in the block into a `CheckpointError` that names the file."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"can't write {file.name}: {error.strerror}") from error


# --- sums over deaths ----------------------------------------------------------------------------

#: Counters that add up over processes, beside times and counts of ops.
_ADDED = (
    *("skipped", "dropped", "late", "replays", "fallbacks"),
    *("stream_samples", "bytes_sent", "bytes_received", "messages"),
    *("snapshots", "skipped_updates", "skipped_fits", "rejected_messages"),
)
#: Begins the names of counters of bytes, by the worker that they were sent to.
_BYTES_TO = "bytes_to_"


class Processes:
    """Adds up the reports of one worker over its processes, each of which counts from zero.

    Seconds, bytes and numbers of ops add up. Batches, samples and updates do not: a new process
    continues them from the state that it starts with. All else (means, distributions, lengths of
    queues) is that of the last process.
    """

    def __init__(self) -> None:
        self._earlier: dict[str, float] = {}  # sums over processes that have ended
        self._last: Mapping[str, Any] = {}

    def joined(self) -> None:
        """Keep the sums of the last process: a new one has taken its place."""
        for key, value in self._last.items():
            if _adds_up(key) and isinstance(value, int | float):
                self._earlier[key] = self._earlier.get(key, 0) + value
        self._last = {}

    def reported(self, counters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the counters of the present process, with those of earlier ones added."""
        self._last = counters
        total = dict(counters)
        for key, value in self._earlier.items():
            total[key] = (total.get(key) or 0) + value
        return total


def _adds_up(key: str) -> bool:
    counts = key.startswith("op_") and key.endswith("_count")
    return key in _ADDED or key.endswith("_s") or key.startswith(_BYTES_TO) or counts


class Incidents:
    """Counts of what has gone wrong in a run, added up from the coordinator's records.

    ```
    restarts            processes started, or asked for, in place of dead ones
    lost_updates        reported updates that were lost when workers went back to an earlier state,
                        including those that were done again
    down_s              time without one of the workers, summed over deaths
    rollbacks           returns to a checkpoint because numbers had gone wrong
    resumes             how often `--resume` continued the run
    cuts, checkpoint_s  checkpoints of the whole run, and the time they took
    ```
    """

    def __init__(self) -> None:
        self.lost_updates: Counter[str] = Counter()  # by worker
        self._round_has_updates = False
        sums: dict[str, float] = {"restarts": 0, "down_s": 0.0, "rollbacks": 0, "resumes": 0}
        self._sums = sums | {"cuts": 0, "checkpoint_s": 0.0}

    def note(self, kind: str, values: Mapping[str, Any]) -> None:
        """Count one record."""
        sums = self._sums
        match kind:
            case "launch":
                sums["restarts"] += 1
            case "round":
                self._round_has_updates = "lost_updates" in values
                self.lost_updates.update(values.get("lost_updates", {}))
            case "back":
                if not self._round_has_updates:  # early versions recorded them with deaths
                    self.lost_updates[values["stage"]] += values["lost_updates"]
                sums["down_s"] += values["down_s"]
            case "numbers":
                sums["rollbacks"] += 1
            case "resumed":
                sums["resumes"] += 1
            case "cut":
                sums["cuts"] += 1
                sums["checkpoint_s"] += values["took_s"]

    def summary(self) -> dict[str, float]:
        """Return the numbers above, by name."""
        return {**self._sums, "lost_updates": self.lost_updates.total()}


# --- the whole run -------------------------------------------------------------------------------

#: Fields of each entry of the summary's `history`, beside `batches`, the position in the data (runs
#: of early versions lack it).
_EVALUATION = ("samples", "train_s", "accuracy", "loss")
#: Further ones, which runs of early versions lack, and metrics also where the run has none.
_LATER = ("train_loss", "learning_rate", "samples_per_s", "metrics")

#: Fields of each entry of the summary's `changes`: what `--resume --set` changed, and the position
#: in the data.
_CHANGE = ("batches", "place", "old", "new")

#: Fields of each entry of the summary's `stages`; None where a field has no meaning.
#: `ops` is {letter of the op: {"count": …, "wall_s": …, "cpu_s": …}}. For the others see
#: `drivers.real.meter`, `core.worker` and `DISTRIBUTIONS`.
STAGE_FIELDS = (
    *("batches", "samples", "updates", "wall_s", "busy_fraction", "ops", "compute_s"),
    *("generator_s", "transport_s", "wait_s", "slowed_s", "stream_s", "stream_samples", "cpu_s"),
    *("op_cpu_s", "memory_start_bytes", "memory_bytes", "staleness_mean", "staleness_max"),
    *("lag_max", "agreements", "gradient_cosine", "target_cosine", "gradient_error"),
    *("generator_loss", "dropped", "late", "skipped", "skipped_updates", "skipped_fits"),
    *("missed", "replays", "fallbacks", "waiting", "window", "bytes_sent", "bytes_received"),
    *("messages", "snapshots", "snapshot_s", "readout_version", "readout_age"),
    "readout_private",
)

#: Tallies that a stage's entry has as tables beside those fields, and whether they count whole
#: numbers: {"mean": …, "max": …, "p50": …, "p95": …, "bins": {upper edge: count}}, or None.
#: staleness: updates. lag: batches. age_ms: milliseconds. queue: batches. See `core.worker`.
DISTRIBUTIONS = {"staleness": True, "lag": True, "age_ms": False, "queue": True}


class Recorder:
    """Takes all records of a run, writes them to its file, and makes its summary."""

    def __init__(self, workers: tuple[str, ...], facts: Mapping[str, Any], folder: Path | None):
        """Read the records that `folder` already holds; new ones are appended.

        `facts` (schedule, seed, …) go into the summary as they are. `damaged` counts the lines that
        are no records. Without a folder nothing is read or written. Raises `CheckpointError` if the
        files can't be read or written.
        """
        self.damaged = 0
        self.history: list[dict[str, Any]] = []
        self.reports: dict[str, dict[str, Any]] = {name: {} for name in workers}
        self.train_loss: float | None = None  # of the last reports, summed over the losses
        self.guard: list[dict[str, Any]] = []  # time_s since the first record, stage, waiting, …
        self.changes: list[dict[str, Any]] = []  # of the experiment: place, old, new, batches
        self.incidents = Incidents()
        self.trained_s = 0.0  # training time up to the last record, as far as records tell
        self._training_since_s: float | None = None
        self._processes = {name: Processes() for name in workers}
        self._losses: dict[str, float] = {}  # the last mean loss of each worker that has a loss
        self._facts = dict(facts)
        self._began_s: float | None = None  # time of the first record, on this process's clock
        self._started_s: float | None = None  # like those below: since the very first record
        self._ended_s = 0.0
        self._file: RecordFile | None = None
        if folder is not None:
            path = folder / "metrics.jsonl"
            known_s = self._read(_read_records(path))
            newest = _newest_records(path, known_s)
            self._read(newest)
            self._add_segment()  # the last coordinator died while training
            self._file = RecordFile(path)
            for record in newest:
                self._file.add(record)

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Take one record. Raises `CheckpointError` if it can't be written."""
        if self._began_s is None:
            self._began_s = values["time_s"] - self._ended_s
        line = {"kind": kind, **values, "time_s": round(values["time_s"] - self._began_s, 6)}
        self._note(kind, line)
        if self._file is not None:
            self._file.write(line)

    def _read(self, records: Iterable[dict[str, Any] | None]) -> dict[Any, float]:
        """Take the records of an earlier process.

        Returns the time of the last record of each kind and worker.
        """
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
        # In the file these may come after younger records.
        is_late = kind in ("report", "evaluation") and values["time_s"] < self._ended_s
        if kind == "bound":
            self._add_segment()  # an earlier coordinator died while training
        self._ended_s = self._ended_s if is_late else values["time_s"]
        self.incidents.note(kind, values)
        if kind in ("start", "resume"):
            self._add_segment()  # in case the record `drained` was thinned out
            self._training_since_s = self._ended_s
            if self._started_s is None:
                self._started_s = self._ended_s
        elif kind == "drained":
            self._add_segment()
        elif kind == "joined" and values["stage"] in self._processes:
            if not values.get("again"):  # otherwise it is the same process
                self._processes[values["stage"]].joined()
        elif kind == "report" and values["stage"] in self._processes:
            self._report(values["stage"], values["values"])
        elif kind == "guard":
            self.guard.append({key: one for key, one in values.items() if key != "kind"})
        elif kind == "changed":
            self.changes.append({key: values[key] for key in _CHANGE})
        elif kind == "evaluation":
            if not values.get("behind"):
                self.trained_s = float(values["train_s"])  # so far, also over barriers left out
                if self._training_since_s is not None:
                    self._training_since_s = values["time_s"]
            more = {key: values[key] for key in ("batches", "behind") if key in values}
            later = {key: values[key] for key in _LATER if key in values}
            self.history.append(more | {key: values[key] for key in _EVALUATION} | later)

    def _add_segment(self) -> None:
        """End a stretch of training at the last record."""
        if self._training_since_s is not None:
            self.trained_s += self._ended_s - self._training_since_s
        self._training_since_s = None

    def close(self) -> None:
        """Write the last records. Raises `CheckpointError` if they can't be written."""
        if self._file is not None:
            self._file.close()

    def summary(self, train_s: float) -> dict[str, Any]:
        """Return the run in numbers; `train_s` is its training time only, drains included.

        Samples count once they have reached the loss, or all losses if there are several.
        `stream_samples_per_s` leaves out the filling and draining of the pipe.
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
            **({"test_metrics": last["metrics"]} if "metrics" in last else {}),
            "history": self.history,
            "guard": self.guard,
            "changes": self.changes,
            **self.incidents.summary(),
            "stages": [
                {**_stage(name, one, train_s), "lost_updates": self.incidents.lost_updates[name]}
                for name, one in self.reports.items()
            ],
        }

    @property
    def updates(self) -> dict[str, int]:
        """The updates that each worker has reported, by worker."""
        return {name: _count(report.get("updates")) for name, report in self.reports.items()}

    @property
    def loss_samples(self) -> int:
        """Training samples that have reached every loss."""
        return min((_count(r.get("samples")) for r in self._loss_reports()), default=0)

    def _loss_reports(self) -> list[dict[str, Any]]:
        """Return the reports of the workers with a loss; all reports until one has a loss."""
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
        "lag_by_link": _by_link(report, "lag_to_"),
        "bytes_by_link": _by_link(report, _BYTES_TO),
        **{key: _table(report, key, whole) for key, whole in DISTRIBUTIONS.items()},
    }


def _by_link(report: Mapping[str, Any], prefix: str) -> dict[str, int]:
    """Return a counter that a worker has for each of its links, by receiver: the greatest lag in
    batches, or the bytes sent while training, all messages included."""
    return {key.removeprefix(prefix): n for key, n in report.items() if key.startswith(prefix)}


def _table(report: Mapping[str, Any], prefix: str, whole: bool) -> dict[str, Any] | None:
    """Return a distribution from a report's flat counters; None if it has none."""
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
    """Return samples per second between the first and the last forward of each stretch of
    training."""
    samples, seconds = report.get("stream_samples"), report.get("stream_s")
    return samples / seconds if samples and seconds else None


def _ops(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return counters by op, from a report's flat ones: `op_F_cpu_s` is the CPU time of all
    forwards."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in report.items():
        prefix, _, rest = key.partition("_")
        letter, _, field = rest.partition("_")
        if prefix == "op" and len(letter) == 1:
            found.setdefault(letter, {})[field] = value
    return found


def _busy_fraction(report: Mapping[str, Any], train_s: float) -> float | None:
    """Return the share of the run's training time during which a worker computed.

    That time is the same for all workers. A worker's own clock stops when it is done, which would
    flatter those that finish early.
    """
    if "compute_s" not in report or train_s <= 0:
        return None
    return float(report["compute_s"] + report["generator_s"]) / train_s


def _count(value: object) -> int:
    """Return a worker's count; 0 if it sent something else."""
    return value if isinstance(value, int) else 0
