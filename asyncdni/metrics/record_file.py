"""The file of a run's records, a line of JSON each: added to, thinned, and read again.

Reports come twice a second from every worker for as long as a run lasts. All of them are shown, but
not all are kept: from one kept report of a worker's process to the next it takes as long as the
process is old by then, half a second at first and a minute at last. So the beginning is told in
detail, and a worker adds some 3 MB a day. The newest report of each worker is never lost: until it
is in the file, `reports.jsonl` beside it has it, overwritten again and again.

Barriers are kept one a second: half a minute's worth whenever they come. Of others their
evaluation is left out, and with it that the run drained and went on; but for the last evaluation,
which waits as reports do.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from asyncdni.errors import CheckpointError

__all__ = ["Barriers", "RecordFile", "Thinning", "newest_records", "read_records"]

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
    """Which reports are kept, of processes that grow older.

    `share`: of the age of a process, from one kept report to the next.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._began_s: dict[str, float] = {}  # of the process that is there, by worker
        self._kept_s: dict[str, float] = {}  # when the last report of its was

    def joined(self, stage: str, time_s: float) -> None:
        """A new process takes the worker's place: it is told in detail again."""
        self._began_s[stage] = time_s
        self._kept_s.pop(stage, None)

    def keeps(self, stage: str, time_s: float) -> bool:
        """Whether a report that comes now is to be kept. (It then is.)"""
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
    """Which barriers are kept: one a second, and those that were saved up for in half a minute."""

    def __init__(self) -> None:
        self._credit = _BARRIERS
        self._last_s = 0.0

    def keeps(self, time_s: float) -> bool:
        """Whether one that comes now is to be kept. (It then is.)"""
        self._credit = min(_BARRIERS, self._credit + max(0.0, time_s - self._last_s))
        self._last_s = time_s
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True


class RecordFile:
    """A `metrics.jsonl` that is added to, behind its last whole line."""

    def __init__(self, path: Path) -> None:
        """Raises `CheckpointError` where it can't be written."""
        self._file = _opened(path)
        self._thinning = Thinning(1.0)
        self._barriers = Barriers()
        self._leaves_out = False  # what comes of the present barrier
        self._evaluation: list[str] = []  # the line of the newest one, if it is not kept
        self._waiting: dict[str, str] = {}  # lines of the newest reports that are not kept, yet
        self._losses: dict[str, tuple[float, int]] = {}  # of reports since: sum, samples
        self._newest = path.with_name(_NEWEST)
        self._newest_s = -math.inf  # when that was written

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one record, unless it is one that is not kept. Raises `CheckpointError` where it
        can't be written."""
        _check_there(self._file)
        kind = record["kind"]
        if kind == "report":
            self._report(record)
            return
        if kind in ("drained", "evaluation", "resume") and not self._of_kept_barrier(record):
            return
        if kind in ("lost", "joined"):  # before it, all that its last process has done
            self._keep_waiting(record["stage"])
        if kind == "joined":
            self._thinning.joined(record["stage"], record["time_s"])
        self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """One record, whatever it is."""
        self._write(json.dumps(record))

    def close(self) -> None:
        """With the last report of each worker. Raises `CheckpointError` where that can't be
        written."""
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
        """A report's counters are sums since the start, but losses are since the last report."""
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
        """In place, as it is not worth a flush to the disk: a line that is torn is passed over, and
        one that is left of before is older than what the file of records has."""
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


def read_records(path: Path) -> Iterator[dict[str, Any] | None]:
    """The records in a `metrics.jsonl`, None for each line that a power cut or a fault of the disk
    has spoilt; nothing where there is no file.

    A last line without an end was never written, and is passed over. Raises `CheckpointError`
    where the file can't be read.
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


def newest_records(path: Path, known_s: Mapping[Any, float]) -> list[dict[str, Any]]:
    """Reports, and the evaluation, that a coordinator which was killed had not put into its
    `metrics.jsonl`, at `path`, yet; `known_s`: the time of the last one in there, by kind and
    worker (None for evaluations)."""
    try:
        found = list(read_records(path.with_name(_NEWEST)))
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
    """None for what is no record."""
    try:
        record = json.loads(line)
        record["time_s"] = float(record["time_s"])
        record["kind"] = str(record["kind"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return dict(record) if math.isfinite(record["time_s"]) else None


def _opened(path: Path) -> TextIO:
    """To be written at its end, behind the last whole line."""
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
    """Raises `CheckpointError` for a file that has been removed: with it went the whole run."""
    if os.fstat(file.fileno()).st_nlink == 0:
        folder = os.path.dirname(file.name)
        raise CheckpointError(f"{folder} was removed while the run went on: nothing can be kept")


@contextmanager
def _writing(file: TextIO) -> Iterator[None]:
    """Raises `CheckpointError` for what the system says of a write."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"can't write {file.name}: {error.strerror}") from error
