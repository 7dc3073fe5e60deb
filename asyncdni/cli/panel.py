"""What a run looks like on a screen: figures out of its records, and tables of its stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from asyncdni.build import Design
from asyncdni.metrics.recorder import Recorder
from asyncdni.rules import is_repeatable

__all__ = [
    "Progress",
    "duration",
    "facts",
    "frame",
    "guard_line",
    "measure",
    "outcome",
    "progress_line",
    "score",
    "stage_table",
]


#: Behind the seed of a run whose weights depend on when messages arrive: see docs/schedules.md.
NO_REPEAT = " (not repeatable)"


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    epoch: float  # samples that went through all stages, or were skipped on the way, in epochs
    epochs: int
    samples_per_s: float | None  # since the start, evaluations left out
    left_s: float | None  # until the end, evaluations included
    train_loss: float | None
    accuracy: float | None  # of the last evaluation
    test_loss: float | None

    @property
    def fraction(self) -> float:
        return min(1.0, self.epoch / self.epochs) if self.epochs else 1.0


def measure(design: Design, recorder: Recorder, elapsed_s: float) -> Progress:
    """`elapsed_s`: wall time since the start of training."""
    train_samples, epochs = design.meta.train_samples, design.experiment.run.epochs
    slowest = min(recorder.reports.values(), key=_passed, default={})
    samples, wall_s = _passed(slowest), slowest.get("wall_s") or 0.0
    last = recorder.history[-1] if recorder.history else {"accuracy": None, "loss": None}
    left = max(0, train_samples * epochs - samples)
    return Progress(
        epoch=samples / train_samples,
        epochs=epochs,
        samples_per_s=_samples(slowest) / wall_s if samples and wall_s else None,
        left_s=elapsed_s * left / samples if samples else None,
        train_loss=recorder.train_loss,
        accuracy=last["accuracy"],
        test_loss=last["loss"],
    )


def _samples(report: Mapping[str, Any]) -> int:
    return int(report.get("samples") or 0)


def _passed(report: Mapping[str, Any]) -> float:
    """Samples that a stage is through with: its own, and those of batches that did not come."""
    samples, batches = _samples(report), report.get("batches") or 0
    missed = report.get("missed") or 0
    return samples * (1 + missed / batches) if batches else 0.0


# --- one line ------------------------------------------------------------------------------------


def facts(design: Design) -> str:
    """`locked, 4 workers, 10 epochs of 10,000 samples, seed 0`, and whether the seed repeats it."""
    run, workers = design.experiment.run, len(design.plan.groups)
    schedule = design.experiment.schedule.__struct_config__.tag
    return ", ".join(
        (
            str(schedule),
            _counted(workers, "worker"),
            f"{_counted(run.epochs, 'epoch')} of {design.meta.train_samples:,} samples",
            f"seed {run.seed}{'' if is_repeatable(design.experiment, design.plan) else NO_REPEAT}",
        )
    )


def score(accuracy: float | None, loss: float | None) -> str:
    """`test accuracy 97.20 %`, or the loss where nothing is right or wrong; may be empty."""
    if accuracy is not None:
        return f"test accuracy {100 * accuracy:.2f} %"
    return "" if loss is None else f"test loss {loss:.4g}"


def outcome(summary: Mapping[str, Any]) -> str:
    """`test accuracy 97.20 %, 66,120 samples/s, 15.1 s`, the time being that of training."""
    speed = summary["samples_per_s"]
    parts = (
        score(summary["test_accuracy"], summary["test_loss"]) or "no test set",
        f"{speed:,.0f} samples/s" if speed else "nothing trained",
        f"{summary['train_s']:.1f} s",
    )
    return ", ".join(parts)


def progress_line(progress: Progress) -> str:
    """`epoch 3.2 of 10, loss 0.1234, 67,475 samples/s, 0:12 left`."""
    parts = [f"epoch {progress.epoch:.1f} of {progress.epochs}"]
    if progress.train_loss is not None:
        parts.append(f"loss {progress.train_loss:.4f}")
    if progress.samples_per_s is not None:
        parts.append(f"{progress.samples_per_s:,.0f} samples/s")
    if progress.left_s is not None:
        parts.append(f"{duration(progress.left_s)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """`0:07`, `12:30`, `3:05:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def guard_line(values: Mapping[str, Any]) -> str:
    """What a stage's guard has decided: `hidden1 waits for true gradients: …`."""
    agree = "" if values.get("cosine") is None else f" by {values['cosine']:.2f}"
    if values["waiting"]:
        return f"{values['stage']} waits for true gradients: its generator's agree{agree} only"
    return f"{values['stage']} goes on with synthetic gradients: they agree{agree}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


# --- several lines -------------------------------------------------------------------------------


def frame(
    head: Sequence[str], progress: Progress, reports: Mapping[str, Mapping[str, Any]]
) -> Group:
    """A whole picture of a run under way, redrawn again and again."""
    bar = Table.grid(padding=(0, 2), expand=True)
    bar.add_column(no_wrap=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True, justify="right")
    left = "" if progress.left_s is None else f"{duration(progress.left_s)} left"
    bar.add_row(
        f"epoch {progress.epoch:.1f} of {progress.epochs}",
        ProgressBar(total=1.0, completed=progress.fraction),
        left or "starting",
    )
    stages = [{"name": name, **report} for name, report in reports.items()]
    title = [Text(line, style="bold") for line in head[:1]] + [Text(line) for line in head[1:]]
    return Group(*title, bar, Text(_figures(progress)), Text(), stage_table(stages, ("queue",)))


def _figures(progress: Progress) -> str:
    loss, speed = progress.train_loss, progress.samples_per_s
    parts = (
        "" if loss is None else f"loss {loss:.4f}",
        score(progress.accuracy, progress.test_loss),
        "" if speed is None else f"{speed:,.0f} samples/s",
    )
    return "   ".join(part for part in parts if part)


def _number(value: float) -> str:
    return f"{value:,}"


#: Column by field of a stage's counters: heading, and a value as text.
_COLUMNS = {
    "batches": ("batches", _number),
    "updates": ("updates", _number),
    "busy_fraction": ("busy", "{:.0%}".format),
    "queue": ("queue", _number),
    "cpu_s": ("CPU", "{:.1f} s".format),
    "staleness_mean": ("staleness", "{:.1f}".format),
    "gradient_cosine": ("agreement", "{:.2f}".format),
    "target_cosine": ("with target", "{:.2f}".format),
    "dropped": ("dropped", _number),
    "skipped": ("skipped", _number),
    "missed": ("missed", _number),
    "state": ("", str),
}
_OPTIONAL = ("queue", "cpu_s")
_WHERE_ANY = ("dropped", "skipped", "missed", "target_cosine", "state")


def stage_table(stages: Sequence[Mapping[str, Any]], extra: Iterable[str] = ()) -> Table:
    """A row a stage, of reports or of a summary's entries; `extra` of queue and cpu_s.

    Staleness is the mean age of a gradient in updates, agreement the mean cosine of synthetic and
    true gradient. Batches that were given up (dropped), not sent on (skipped) or did not come
    (missed), the agreement with targets that are synthetic themselves, and how a stage fares
    (waits for true gradients, was made slow) have a column only where there are any.
    """
    rows = [{**stage, "state": _state(stage)} for stage in stages]
    hidden = set(_OPTIONAL) - set(extra)
    hidden |= {field for field in _WHERE_ANY if not any(row.get(field) for row in rows)}
    if "target_cosine" not in hidden and not any(row.get("gradient_cosine") for row in rows):
        hidden.add("gradient_cosine")
    shown = [column for column in _COLUMNS.items() if column[0] not in hidden]
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("stage", no_wrap=True, overflow="ellipsis", max_width=24)
    for _, (heading, _) in shown:
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    for row in rows:
        cells = (_cell(row.get(field), text) for field, (_, text) in shown)
        table.add_row(str(row["name"]), *cells)
    return table


def _state(stage: Mapping[str, Any]) -> str:
    """`waits`, `slow`, both or neither."""
    waits = "waits" if stage.get("waiting") else ""
    return " ".join(filter(None, (waits, "slow" if stage.get("slowed_s") else "")))


def _cell(value: float | None, text: Any) -> str:
    return "-" if value is None else str(text(value))
