"""Write the records of a run as TensorBoard event files while it goes on.

`DIR/tensorboard` holds the curves of the whole run, and a folder for each worker, which TensorBoard
shows as a run of its own, so that one chart shows a curve for all workers. The horizontal axis is
the samples that the worker has processed; for evaluations, the whole network.

The counters in reports are sums since the start. What is written here is the difference between two
reports of a worker. Not every report is written: see `records.Thinning`. TensorBoard's own
`EventFileWriter` writes the files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from asyncdni.core.counts import EDGES, Distribution, read_distribution
from asyncdni.errors import CheckpointError, ConfigError
from asyncdni.report.records import Thinning

__all__ = ["FOLDER", "EventFiles", "stage_scalars"]

#: The name of the folder of event files, in the folder of a run.
FOLDER = "tensorboard"

_FLUSH_S = 5.0
#: The time between two reports that are written, as a share of the age of the worker's process: a
#: curve gets some hundred points in ten minutes, and one a minute later on.
_SPACING = 0.05
#: Tags of shares of the time between two reports, and the counters in seconds that add up to each.
_SHARES = {
    "time/busy": ("compute_s", "generator_s"),
    "time/generator": ("generator_s",),
    "time/transport": ("transport_s",),
    "time/waiting": ("wait_s",),
    "time/slowed": ("slowed_s",),
}
#: Tags of rates per second, and the counter of each.
_RATES = {
    "speed/samples_per_s": "samples",
    "speed/updates_per_s": "updates",
    "wire/bytes_sent_per_s": "bytes_sent",
    "wire/bytes_received_per_s": "bytes_received",
}
#: Tags of means over a generator's comparisons with true gradients.
_AGREEMENT = {
    "generator/cosine": "gradient_cosine",
    "generator/cosine_with_target": "target_cosine",
    "generator/relative_error": "gradient_error",
    "generator/loss": "generator_loss",
}
#: Tags of counts since the start; they are written only for stages that have any.
_COUNTS = {
    "batches/dropped": "dropped",
    "batches/skipped": "skipped",
    "batches/missed": "missed",
    "batches/replayed": "replays",
    "guard/fallbacks": "fallbacks",
    "guard/waiting": "waiting",
}
#: Tags of distributions, their tallies, and whether they count whole numbers.
_TALLIES = {
    "staleness/updates": ("staleness", True),
    "staleness/age_ms": ("age_ms", False),
    "staleness/lag": ("lag", True),
    "queue": ("queue", True),
}
_HISTOGRAMS = ("staleness/updates", "staleness/age_ms")

Counters = Mapping[str, Any]


def stage_scalars(now: Counters, before: Counters) -> dict[str, float]:
    """Return the changes between two reports of one worker, as numbers by tag.

    `before` is empty for the first report. Values that are unknown or did not occur are left out.
    """
    found: dict[str, float] = {}
    wall_s = _more(now, before, "wall_s")
    if wall_s > 0:
        for tag, keys in _SHARES.items():
            found[tag] = sum(_more(now, before, key) for key in keys) / wall_s
        for tag, key in _RATES.items():
            found[tag] = _more(now, before, key) / wall_s
    for tag, key in _AGREEMENT.items():
        mean = _mean_since(now, before, key)
        if mean is not None:
            found[tag] = mean
    for tag, key in _COUNTS.items():
        if now.get(key) or before.get(key):
            found[tag] = now.get(key) or 0
    for tag, (_, whole) in _TALLIES.items():
        part = _since(now, before, tag)
        if part is not None:
            found[f"{tag}_mean"] = part.mean
            found[f"{tag}_p50"] = part.quantile(0.5, whole=whole)
            found[f"{tag}_p95"] = part.quantile(0.95, whole=whole)
            found[f"{tag}_max"] = part.max  # the maximum since the start
    return found


class EventFiles:
    """Observes a run and writes `DIR/tensorboard`; a context manager that closes the files."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the run's. Raises `ConfigError` without the extra `tensorboard`."""
        self._folder = folder / FOLDER
        try:
            from tensorboard.compat.proto import event_pb2, histogram_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise ConfigError(
                "event files are written with tensorboard, which is not installed: "
                "pip install 'asyncdni[tensorboard]'"
            ) from error
        self._open: Callable[..., Any] = EventFileWriter
        self._event, self._summary, self._histogram = event_pb2, summary_pb2, histogram_pb2
        self._writers: dict[str, Any] = {}  # by worker; "" for the whole run
        self._before: dict[str, Counters] = {}  # the last report of each worker that was written
        #: For each worker, time and values of its newest report, if that has not been written.
        self._waiting: dict[str, tuple[float, Counters]] = {}
        self._thinning = Thinning(_SPACING)
        self._epoch_s: float | None = None  # the time of day at time_s = 0

    def __enter__(self) -> EventFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # The error that ended the run matters more than a failure to write its last records.
        with suppress(CheckpointError) if kind is not None else nullcontext():
            self.close()

    def __call__(
        self, design: object, recorder: object, kind: str, values: Mapping[str, Any]
    ) -> None:
        """Observe one record; see `report.records`. Raises `CheckpointError`.

        Nothing is written before training starts: a run that fails earlier leaves no files.
        """
        if self._epoch_s is None:
            self._epoch_s = time.time() - values["time_s"]
        if kind == "joined":
            self._thinning.joined(values["stage"], values["time_s"])
        elif kind == "report":
            self._report(values["stage"], values["values"], values["time_s"])
        elif kind == "evaluation":
            keys = {"test/accuracy": "accuracy", "test/loss": "loss"}
            known = {tag: values[key] for tag, key in keys.items() if values[key] is not None}
            for name, value in values.get("metrics", {}).items():
                if value is not None:
                    known[f"test/{name}"] = value
            self._write("", values["time_s"], values["samples"], known)
        elif kind == "guard":
            samples = self._before.get(values["stage"], {}).get("samples") or 0
            waiting = {"guard/waiting": float(values["waiting"])}
            self._write(values["stage"], values["time_s"], samples, waiting)

    def close(self) -> None:
        """Write the last reports and close the files.

        Raises `CheckpointError` if they can't be written.
        """
        try:
            for stage, (time_s, now) in self._waiting.items():
                self._write_report(stage, now, time_s)
        finally:
            self._waiting.clear()
            writers, self._writers = self._writers, {}
            with self._writing():
                for writer in writers.values():
                    writer.close()

    def _report(self, stage: str, now: Counters, time_s: float) -> None:
        _, earlier = self._waiting.get(stage, (0.0, {}))
        losses = {key: now[key] + earlier.get(key, 0) for key in ("loss_sum", "loss_samples")}
        self._waiting[stage] = time_s, {**now, **losses}
        if self._thinning.keeps(stage, time_s):
            self._write_report(stage, self._waiting.pop(stage)[1], time_s)

    def _write_report(self, stage: str, now: Counters, time_s: float) -> None:
        before, self._before[stage] = self._before.get(stage, {}), now
        samples = now.get("samples") or 0
        if not samples:
            return  # training has not begun
        histograms = {tag: _since(now, before, tag) for tag in _HISTOGRAMS}
        scalars = stage_scalars(now, before)
        if now["loss_samples"]:
            scalars["train/loss"] = now["loss_sum"] / now["loss_samples"]
        self._write(stage, time_s, samples, scalars, histograms)

    def _write(
        self,
        worker: str,
        time_s: float,
        samples: int,
        scalars: Mapping[str, float],
        histograms: Mapping[str, Distribution | None] | None = None,
    ) -> None:
        value = self._summary.Summary.Value
        found = [value(tag=tag, simple_value=number) for tag, number in scalars.items()]
        for tag, one in (histograms or {}).items():
            if one is not None:
                _, whole = _TALLIES[tag]
                found.append(value(tag=tag, histo=_histogram(self._histogram, one, whole)))
        event = self._event.Event(
            wall_time=(self._epoch_s or 0.0) + time_s,
            step=samples,
            summary=self._summary.Summary(value=found),
        )
        with self._writing():
            self._writer(worker).add_event(event)

    def _writer(self, worker: str) -> Any:
        if worker not in self._writers:
            folder = str(self._folder / worker)
            self._writers[worker] = self._open(folder, flush_secs=_FLUSH_S)
        return self._writers[worker]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise CheckpointError(f"can't write {self._folder}: {reason}") from error


def _more(now: Counters, before: Counters, key: str) -> float:
    return float((now.get(key) or 0) - (before.get(key) or 0))


def _mean_since(now: Counters, before: Counters, key: str) -> float | None:
    """Return the mean between two reports, from their means since the start over `agreements`
    each."""
    count = _more(now, before, "agreements")
    if count <= 0 or now.get(key) is None:
        return None
    sums = [(one.get(key) or 0.0) * (one.get("agreements") or 0) for one in (now, before)]
    return float(sums[0] - sums[1]) / count


def _since(now: Counters, before: Counters, tag: str) -> Distribution | None:
    prefix, _ = _TALLIES[tag]
    found = read_distribution(now, prefix)
    return None if found is None else found.since(read_distribution(before, prefix))


def _histogram(messages: ModuleType, found: Distribution, whole: bool) -> Any:
    buckets = _buckets(found, whole)
    weights = [(count, (left + right) / 2) for left, right, count in buckets]
    return messages.HistogramProto(
        min=buckets[0][0],
        max=buckets[-1][1],
        num=found.count,
        sum=found.mean * found.count,
        sum_squares=sum(count * middle**2 for count, middle in weights),
        bucket_limit=[right for _, right, _ in buckets],
        bucket=[count for _, _, count in buckets],
    )


def _buckets(found: Distribution, whole: bool) -> list[tuple[float, float, int]]:
    """Return (from, to, count) of each bucket, side by side.

    TensorBoard draws areas, so each bucket needs a width: a whole number n is drawn from n to n +
    1, and an age of 0 goes into the bucket above it.
    """
    edges = (-1.0, *map(float, EDGES), float(found.max))
    counts, shift = list(found.bins), 1.0 if whole else 0.0
    if not whole:
        counts[:2] = [0, counts[0] + counts[1]]
    filled = [number for number, count in enumerate(counts) if count]
    return [
        (edges[number] + shift, edges[number + 1] + shift, counts[number])
        for number in range(filled[0], filled[-1] + 1)
    ]
