"""What a run leaves behind: `metrics.jsonl` line by line, and the summary at its end.

A line of `metrics.jsonl` is one record of the coordinator: {"kind": …, "time_s": …, …}. The kinds:

```
joined, refused, rejected   a worker was let in, was not; a message was not understood
start, drained, resume      training begins, stops for an evaluation or a checkpoint, goes on
report                      the counters of one worker since the start: docs/telemetry.md
guard                       a stage waits for true gradients from here on, or no longer does
evaluation, saved, cut      of the test set; of weights; of a checkpoint of the whole run
lost, stuck                 a worker has died; nothing has moved for too long
accused                     a worker was accused of breaking the protocol
launch, waiting             a process is started; one has to be started by hand
round, back                 all join anew; a worker that was lost is there again
note                        a state could not be restored, or a link carries nothing
numbers                     numbers went wrong, and the run goes back to a checkpoint
stopping                    how far a user's stop has come
resumed, changed            the run is taken up again; what is changed of the experiment then
passed_over                 a checkpoint that is broken
```

A run that is taken up again appends to its file: its summary is of all that stands there.
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
]

# --- the file ------------------------------------------------------------------------------------

_BLOCK_BYTES = 65536
#: Beside the file of records: the newest report of each worker that is not in there.
_NEWEST = "reports.jsonl"
#: Between two reports that are kept, at least and at most.
_GAP_MIN_S = 0.5
_GAP_MAX_S = 60.0  # a second for each worker where that is more: so all together add the same
#: Reports come somewhat sooner or later than they should.
_UNPUNCTUAL_S = 0.1
#: Barriers that are kept without a pause between them, at most.
_BARRIERS = 30.0
#: Of a number in a report; times are then right to a microsecond for a quarter of an hour.
_DIGITS = 9


class Thinning:
    """Decides which reports are kept: the older a worker's process, the fewer.

    Reports come twice a second from every worker for as long as a run lasts. All of them are
    shown. Between two that are kept lies `share` of the age of the process, at least half a second
    and at most a minute. So the beginning is kept in detail, and a worker adds some 3 MB a day.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._began_s: dict[str, float] = {}  # of the process that is there, by worker
        self._kept_s: dict[str, float] = {}  # when the last report of its was

    def joined(self, stage: str, time_s: float) -> None:
        """Start again: a new process has taken the worker's place."""
        self._began_s[stage] = time_s
        self._kept_s.pop(stage, None)

    def keeps(self, stage: str, time_s: float) -> bool:
        """Whether to keep a report that comes now; if so, it counts as kept."""
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

    Of any other barrier the records `drained`, `evaluation` and `resume` are left out.
    """

    def __init__(self) -> None:
        self._credit = _BARRIERS
        self._last_s = 0.0

    def keeps(self, time_s: float) -> bool:
        """Whether to keep a barrier that comes now; if so, it counts as kept."""
        self._credit = min(_BARRIERS, self._credit + max(0.0, time_s - self._last_s))
        self._last_s = time_s
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True


class RecordFile:
    """A `metrics.jsonl` that records are appended to, after its last whole line.

    Reports and barriers are thinned: see `Thinning` and `Barriers`. The newest report of each
    worker and the last evaluation are never lost: until they are in the file, `reports.jsonl`
    beside it has them, overwritten again and again.
    """

    def __init__(self, path: Path) -> None:
        """Raises `CheckpointError` where it can't be written."""
        self._file = _opened(path)
        self._thinning = Thinning(1.0)
        self._barriers = Barriers()
        self._leaves_out = False  # the records of the present barrier
        self._evaluation: list[str] = []  # the line of the newest one, if it is not kept
        self._waiting: dict[str, str] = {}  # lines of the newest reports that are not kept, yet
        self._losses: dict[str, tuple[float, int]] = {}  # of reports since: sum, samples
        self._newest = path.with_name(_NEWEST)
        self._newest_s = -math.inf  # when that was written

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record, unless it is thinned out.

        Raises `CheckpointError` where it can't be written.
        """
        _check_there(self._file)
        kind = record["kind"]
        if kind == "report":
            self._report(record)
            return
        if kind in ("drained", "evaluation", "resume") and not self._of_kept_barrier(record):
            return
        if kind in ("lost", "joined"):  # what the last process has done stands before it
            self._keep_waiting(record["stage"])
        if kind == "joined":
            self._thinning.joined(record["stage"], record["time_s"])
        self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record of any kind."""
        self._write(json.dumps(record))

    def close(self) -> None:
        """Append the last report of each worker and close the file.

        Raises `CheckpointError` where they can't be written.
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
        """The values of a report, with the losses of those that were not kept before it.

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
        """Write `reports.jsonl` anew, in place: it is not worth a flush to the disk.

        A reader passes over a line that is torn, and over one that is older than what the file of
        records has.
        """
        lines = [*self._waiting.values(), *self._evaluation]
        content = "".join(f"{line}\n" for line in lines).encode()
        try:
            handle = os.open(self._newest, os.O_WRONLY | os.O_CREAT, 0o666)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.truncate()
        except OSError:
            pass  # a full disk is for the file of records to tell

    def _write(self, line: str) -> None:
        with _writing(self._file):
            self._file.write(line + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{_DIGITS}g}")
    return value


def _read_records(path: Path) -> Iterator[dict[str, Any] | None]:
    """The records in a `metrics.jsonl`; nothing where there is no file.

    A line that a power cut or a fault of the disk has spoilt is None. A last line without an end
    was never written, and is passed over. Raises `CheckpointError` where the file can't be read.
    """
    if path.exists() and not path.is_file():
        return  # a device: nothing can be read back
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
    """Reports and evaluations that a killed coordinator had not yet put into `path`, its
    `metrics.jsonl`.

    `known_s`: the time of the last record in there, by kind and worker (None for evaluations).
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


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None where it holds none."""
    try:
        record = json.loads(line)
        record["time_s"] = float(record["time_s"])
        record["kind"] = str(record["kind"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return dict(record) if math.isfinite(record["time_s"]) else None


def _opened(path: Path) -> TextIO:
    """The file, opened for appending after its last whole line."""
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
    """Where the last whole line ends."""
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
    """Raises `CheckpointError` if the file was removed, as then the whole run folder is gone."""
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


class Processes:
    """Adds up the reports of one worker over its processes, each of which counts from zero.

    Seconds, bytes and how often something was done add up. Batches, samples and updates do not:
    they go with the state that a new process begins from. All else (means, distributions, lengths
    of queues) is that of the last process.
    """

    def __init__(self) -> None:
        self._earlier: dict[str, float] = {}  # of processes that have ended
        self._last: Mapping[str, Any] = {}

    def joined(self) -> None:
        """Keep the sums of the last process: a new one has taken its place."""
        for key, value in self._last.items():
            if _adds_up(key) and isinstance(value, int | float):
                self._earlier[key] = self._earlier.get(key, 0) + value
        self._last = {}

    def reported(self, counters: Mapping[str, Any]) -> dict[str, Any]:
        """The counters of the present process, with those of earlier ones added."""
        self._last = counters
        total = dict(counters)
        for key, value in self._earlier.items():
            total[key] = (total.get(key) or 0) + value
        return total


def _adds_up(key: str) -> bool:
    return key in _ADDED or key.endswith("_s") or (key.startswith("op_") and key.endswith("_count"))


class Incidents:
    """What a run has survived, in a few numbers, added up from the coordinator's records.

    ```
    restarts            processes started, or asked for, in place of dead ones
    lost_updates        updates that went when workers went back to an earlier state, as far as
                        they had reported them; those that were done again are among them
    down_s              time without one of the workers, summed over deaths
    rollbacks           returns to a checkpoint because numbers had gone wrong
    resumes             how often `--resume` took the run up again
    cuts, checkpoint_s  checkpoints of the whole run, and the time they took
    ```
    """

    def __init__(self) -> None:
        self.lost_updates: Counter[str] = Counter()  # by worker
        self._round_has_updates = False
        sums: dict[str, float] = {"restarts": 0, "down_s": 0.0, "rollbacks": 0, "resumes": 0}
        self._sums = sums | {"cuts": 0, "checkpoint_s": 0.0}

    def note(self, kind: str, values: Mapping[str, Any]) -> None:
        """Count what a record tells."""
        sums = self._sums
        match kind:
            case "launch":
                sums["restarts"] += 1
            case "round":
                self._round_has_updates = "lost_updates" in values
                self.lost_updates.update(values.get("lost_updates", {}))
            case "back":
                if not self._round_has_updates:  # a run of an early version, which has them here
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
        """The numbers above, by name."""
        return {**self._sums, "lost_updates": self.lost_updates.total()}


# --- the whole run -------------------------------------------------------------------------------

#: Fields of each entry of the summary's `history`, beside `batches`: where the data stood (runs of
#: early versions do not say).
_EVALUATION = ("samples", "train_s", "accuracy", "loss")

#: Fields of each entry of the summary's `changes`: what was changed by `--resume --set`, and where
#: the data stood.
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
    *("messages", "snapshots", "snapshot_s"),
)

#: Tallies that a stage's entry has as tables beside those fields, and whether they count whole
#: numbers: {"mean": …, "max": …, "p50": …, "p95": …, "bins": {upper edge: count}}, or None.
#: staleness: updates. lag: batches. age_ms: milliseconds. queue: batches. See `core.worker`.
DISTRIBUTIONS = {"staleness": True, "lag": True, "age_ms": False, "queue": True}


class Recorder:
    """Takes note of all records of a run, writes them to its file, and makes its summary."""

    def __init__(self, workers: tuple[str, ...], facts: Mapping[str, Any], folder: Path | None):
        """`facts` (schedule, seed, …) go into the summary as they are.

        The records that `folder` holds of the run already are read, and new ones appended;
        `damaged` counts the lines there that are no records. Raises `CheckpointError` where the
        files can't be read or written. None: nothing is read or written.
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
        self._losses: dict[str, float] = {}  # of workers that carry one, the last mean
        self._facts = dict(facts)
        self._began_s: float | None = None  # of the first record, on the clock of this process
        self._started_s: float | None = None  # as the following: since the first record of all
        self._ended_s = 0.0
        self._file: RecordFile | None = None
        if folder is not None:
            path = folder / "metrics.jsonl"
            known_s = self._read(_read_records(path))
            newest = _newest_records(path, known_s)
            self._read(newest)
            self._add_segment()  # the coordinator's death has cut it short
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
        """Take note of what an earlier process has recorded.

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
        # These may stand in the file after records that are younger than they are.
        is_late = kind in ("report", "evaluation") and values["time_s"] < self._ended_s
        if kind == "bound":
            self._add_segment()  # of an earlier coordinator, whose death has cut it short
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
        """End a stretch of training at the last record."""
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
        """Reports of the workers that carry a loss; all reports while none has told a loss."""
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
    """A distribution out of a report's flat counters; None where it has none."""
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
    """Samples a second between the first and the last forward of each stretch of training."""
    samples, seconds = report.get("stream_samples"), report.get("stream_s")
    return samples / seconds if samples and seconds else None


def _ops(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Counters by op, out of a report's flat ones: `op_F_cpu_s` is the CPU time of all forwards."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in report.items():
        prefix, _, rest = key.partition("_")
        letter, _, field = rest.partition("_")
        if prefix == "op" and len(letter) == 1:
            found.setdefault(letter, {})[field] = value
    return found


def _busy_fraction(report: Mapping[str, Any], train_s: float) -> float | None:
    """Part of the run's training time that a worker computed.

    That time is the same for all workers: a worker's own clock stops when it is done, which would
    flatter those that are done early.
    """
    if "compute_s" not in report or train_s <= 0:
        return None
    return float(report["compute_s"] + report["generator_s"]) / train_s


def _count(value: object) -> int:
    """A worker's count; 0 where it sent something else."""
    return value if isinstance(value, int) else 0
