"""Show the progress of a run: a picture on a terminal, plain lines anywhere else.

Displays observe the run's records. They draw only while they handle one, a few times a second at
most, so that no thread of the display competes with the workers. Times come from the records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from asyncdni.launch.incidents import guard_line, incident_line
from asyncdni.plan.build import Design
from asyncdni.plan.rules import is_repeatable
from asyncdni.report.columns import STAGE_COLUMNS, Form, counted, metric_words
from asyncdni.report.records import Recorder

__all__ = [
    "Display",
    "Lines",
    "Picture",
    "Progress",
    "Quiet",
    "StageTable",
    "duration",
    "facts",
    "frame",
    "make_display",
    "measure",
    "outcome",
    "say",
    "score",
    "stage_table",
]

#: Follows the seed if the weights also depend on when messages arrive: see docs/schedules.md.
NO_REPEAT = " (not repeatable)"


@dataclass(frozen=True)
class Progress:
    """The progress of a run."""

    epoch: float  # samples that all stages have processed or skipped, in epochs
    epochs: float
    samples_per_s: float | None  # since the start, evaluations left out
    left_s: float | None  # until the end, evaluations included
    train_loss: float | None
    accuracy: float | None  # of the last evaluation
    test_loss: float | None
    metrics: Mapping[str, float | None]  # of the test set beside those two

    @property
    def fraction(self) -> float:
        return min(1.0, self.epoch / self.epochs) if self.epochs else 1.0


def measure(design: Design, recorder: Recorder, elapsed_s: float) -> Progress:
    """Compute the progress `elapsed_s` seconds of wall time after the start of training."""
    train_samples, epochs = design.meta.train_samples, _epochs(design)
    slowest = min(recorder.reports.values(), key=_passed, default={})
    samples, wall_s = _passed(slowest), slowest.get("wall_s") or 0.0
    empty: dict[str, Any] = {"accuracy": None, "loss": None}
    last = recorder.history[-1] if recorder.history else empty
    left = max(0, train_samples * epochs - samples)
    return Progress(
        epoch=samples / train_samples,
        epochs=epochs,
        samples_per_s=_samples(slowest) / wall_s if samples and wall_s else None,
        left_s=elapsed_s * left / samples if samples else None,
        train_loss=recorder.train_loss,
        accuracy=last["accuracy"],
        test_loss=last["loss"],
        metrics=last.get("metrics", {}),
    )


def _epochs(design: Design) -> float:
    """How many epochs the run has; `run.max_steps` may end it within one."""
    return round(design.plan.updates / design.plan.updates_per_epoch, 2)


def _samples(report: Mapping[str, Any]) -> int:
    return int(report.get("samples") or 0)


def _passed(report: Mapping[str, Any]) -> float:
    """Count the samples that a stage is done with: processed, or in batches that never arrived."""
    samples, batches = _samples(report), report.get("batches") or 0
    missed = report.get("missed") or 0
    return samples * (1 + missed / batches) if batches else 0.0


# --- lines ---------------------------------------------------------------------------------------


def facts(design: Design) -> str:
    """Describe a run: `locked, 4 workers, 10 epochs of 10,000 samples, seed 0`, and whether it is
    repeatable."""
    run, workers = design.experiment.run, len(design.plan.groups)
    schedule = design.experiment.schedule.__struct_config__.tag
    return ", ".join(
        (
            str(schedule),
            counted(workers, "worker", ","),
            f"{counted(_epochs(design), 'epoch', ',g')} of {design.meta.train_samples:,} samples",
            f"seed {run.seed}{'' if is_repeatable(design.experiment, design.plan) else NO_REPEAT}",
        )
    )


def score(accuracy: float | None, loss: float | None) -> str:
    """Return `test accuracy 97.20 %`, or the test loss where there is no accuracy; empty without
    either."""
    if accuracy is not None:
        return f"test accuracy {100 * accuracy:.2f} %"
    return "" if loss is None else f"test loss {loss:.4g}"


def outcome(summary: Mapping[str, Any]) -> str:
    """Return `test accuracy 97.20 %, 66,120 samples/s, 15.1 s`, where the time is that of
    training."""
    speed = summary["samples_per_s"]
    parts = (
        score(summary["test_accuracy"], summary["test_loss"]) or "no test set",
        *metric_words(summary.get("test_metrics", {})),
        f"{speed:,.0f} samples/s" if speed else "nothing trained",
        f"{summary['train_s']:.1f} s",
    )
    return ", ".join(parts)


def _progress_line(progress: Progress) -> str:
    """Return `epoch 3.2 of 10, loss 0.1234, 67,475 samples/s, 0:12 left`."""
    parts = [f"epoch {progress.epoch:.1f} of {progress.epochs:g}"]
    if progress.train_loss is not None:
        parts.append(f"loss {progress.train_loss:.4f}")
    if progress.samples_per_s is not None:
        parts.append(f"{progress.samples_per_s:,.0f} samples/s")
    if progress.left_s is not None:
        parts.append(f"{duration(progress.left_s)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Format seconds as `0:07`, `12:30` or `3:05:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# --- picture -------------------------------------------------------------------------------------


def frame(
    head: Sequence[str], progress: Progress, reports: Mapping[str, Mapping[str, Any]]
) -> Group:
    """Make the picture of a run under way; it is redrawn again and again."""
    bar = Table.grid(padding=(0, 2), expand=True)
    bar.add_column(no_wrap=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True, justify="right")
    left = "" if progress.left_s is None else f"{duration(progress.left_s)} left"
    bar.add_row(
        f"epoch {progress.epoch:.1f} of {progress.epochs:g}",
        ProgressBar(total=1.0, completed=progress.fraction),
        left or "starting",
    )
    stages = [{"name": name, **report} for name, report in reports.items()]
    title = [Text(line, style="bold") for line in head[:1]] + [Text(line) for line in head[1:]]
    return Group(*title, bar, Text(_figures(progress)), Text(), StageTable(stages, ("queue",)))


def _figures(progress: Progress) -> str:
    loss, speed = progress.train_loss, progress.samples_per_s
    parts = (
        "" if loss is None else f"loss {loss:.4f}",
        score(progress.accuracy, progress.test_loss),
        *metric_words(progress.metrics),
        "" if speed is None else f"{speed:,.0f} samples/s",
    )
    return "   ".join(part for part in parts if part)


_OPTIONAL = ("queue", "cpu_s")
_WHERE_ANY = ("dropped", "skipped", "missed", "target_cosine", "state")
#: Columns that are left out where there is no room for them, in this order.
_LEFT_OUT = ("queue", "cpu_s", "skipped", "missed", "batches", "dropped", "target_cosine")
_GAP = 2  # between two columns
_NAME_MIN, _NAME_MAX = 10, 24  # width of the stages' names


@dataclass(frozen=True)
class StageTable:
    """The table of `stage_table`, as wide as whatever it is drawn on allows."""

    stages: Sequence[Mapping[str, Any]]
    extra: Iterable[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        yield stage_table(self.stages, self.extra, options.max_width)


def stage_table(
    stages: Sequence[Mapping[str, Any]], extra: Iterable[str] = (), width: int | None = None
) -> Table:
    """Make a table with a row for each stage, from its report or its entry in the summary.

    Staleness is the mean age of a gradient in updates, agreement the mean cosine of synthetic and
    true gradient. Where `width` characters are too few for all, columns are left out, so that none
    is cut. `extra` may name the columns queue and cpu_s. Further columns appear only if some
    stage needs them: batches given up (dropped), not sent on (skipped) or never received (missed);
    agreement with targets that are synthetic themselves; and a stage's state (it waits for true
    gradients, it was made slow).
    """
    rows = [{**stage, "state": _state(stage)} for stage in stages]
    hidden = set(_OPTIONAL) - set(extra)
    hidden |= {field for field in _WHERE_ANY if not any(row.get(field) for row in rows)}
    if "target_cosine" not in hidden and not any(row.get("gradient_cosine") for row in rows):
        hidden.add("gradient_cosine")
    cells = {
        form.heading: [_cell(form, row.get(field)) for row in rows]
        for field, form in STAGE_COLUMNS.items()
        if field not in hidden
    }
    named = min(_NAME_MAX, max((len(str(row["name"])) for row in rows), default=0))
    if width is not None:
        _leave_out(cells, width - min(named, _NAME_MIN))
        named = max(_NAME_MIN, min(named, width - _room(cells)))
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("stage", no_wrap=True, overflow="ellipsis", max_width=named)
    for heading in cells:
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    for index, row in enumerate(rows):
        table.add_row(str(row["name"]), *(column[index] for column in cells.values()))
    return table


def _cell(form: Form, value: Any) -> str:
    return "-" if value is None else form.text(value)


def _leave_out(cells: dict[str, list[str]], width: int) -> None:
    """Remove columns, the least important first, until the rest needs no more than `width`."""
    for field in _LEFT_OUT:
        if _room(cells) <= width:
            return
        cells.pop(STAGE_COLUMNS[field].heading, None)


def _room(cells: Mapping[str, Sequence[str]]) -> int:
    """Return how many characters a line of these columns takes, with the gaps before them."""
    return sum(_GAP + max(map(len, (heading, *column))) for heading, column in cells.items())


def _state(stage: Mapping[str, Any]) -> str:
    """Return `waits`, `slow`, both or neither."""
    waits = "waits" if stage.get("waiting") else ""
    return " ".join(filter(None, (waits, "slow" if stage.get("slowed_s") else "")))


# --- displays ------------------------------------------------------------------------------------

_DRAW_EVERY_S = 0.25
_LINE_EVERY_S = 10.0
#: Kinds of records that are drawn at once: they are rare, and a long silence may follow.
_AT_ONCE = frozenset({"bound", "joined", "refused", "rejected", "start"})


class Display(AbstractContextManager["Display", None], Protocol):
    """A context manager that observes a run; see `launch.conduct.Observer`."""

    def __call__(
        self, design: Design, recorder: Recorder, kind: str, values: Mapping[str, Any]
    ) -> None: ...

    def finish(self, summary: Mapping[str, Any], folder: Path | None) -> None:
        """Show the result of the run, which has ended."""


def make_display(
    quiet: bool, console: Console | None = None, title: str = "", *, shared: bool = False
) -> Display:
    """Make a picture if `console` (default: standard output) is a terminal, else plain lines.

    `title` names one of several runs; each of them leaves one line behind. A terminal that is
    `shared` with other processes gets lines too: theirs would tear a picture.
    """
    if quiet:
        return Quiet()
    chosen = console or Console(highlight=False, force_jupyter=False)
    if chosen.is_terminal and not chosen.is_dumb_terminal and not shared:
        return Picture(chosen, title)
    return Lines(chosen, title)


class Quiet(AbstractContextManager["Quiet", None]):
    """Shows nothing."""

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(
        self, design: Design, recorder: Recorder, kind: str, values: Mapping[str, Any]
    ) -> None:
        pass

    def finish(self, summary: Mapping[str, Any], folder: Path | None) -> None:
        pass


class _Gathering:
    """Knows which workers are still missing, and prints how to start them if the user has to."""

    def __init__(self, console: Console) -> None:
        self.by_hand = False
        self.missing: list[str] = []
        self._console = console

    def observe(self, design: Design, kind: str, values: Mapping[str, Any]) -> None:
        if kind == "bound":
            self.missing = [group.name for group in design.plan.groups]
            self.by_hand = not values["launched"]
            if self.by_hand:
                self._invite(values["commands"], values["address"])
        elif kind in ("lost", "moved"):
            self.missing = [*self.missing, values["stage"]]
        elif kind == "joined":
            self.missing = [name for name in self.missing if name != values["stage"]]
        elif kind == "refused":
            who = f"process {values['pid']} on {values['host']}"
            say(self._console, f"refused a worker ({who}): {values['text']}")
        elif kind == "rejected":
            what = f"rejected a message (peer {values['peer']}): " if values["peer"] else ""
            say(self._console, f"{what}{values['text']}")

    @property
    def text(self) -> str:
        if not self.missing:
            return "connecting"
        verb = "waiting for" if self.by_hand else "starting"
        return f"{verb} {', '.join(self.missing)}"

    def _invite(self, commands: Iterable[str], address: str) -> None:
        say(self._console, "Start each of these, in any order:")
        for command in commands:
            say(self._console, f"  {command}")
        here = {"tcp://0.0.0.0": "127.0.0.1", "tcp://[::]": "[::1]"}.get(address.rpartition(":")[0])
        if here is not None:
            say(self._console, f"On other hosts put this host's name in place of {here}.")


class Lines(AbstractContextManager["Lines", None]):
    """Prints plain lines: start, evaluations, guards, incidents, progress now and then, end."""

    def __init__(self, console: Console, title: str = "") -> None:
        """`title` names one of several runs: it begins each line, and evaluations and guards are
        left out."""
        self._console = console
        self._title = title
        self._gathering = _Gathering(console)
        self._started_s = 0.0
        self._said_s = 0.0

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(
        self, design: Design, recorder: Recorder, kind: str, values: Mapping[str, Any]
    ) -> None:
        self._gathering.observe(design, kind, values)
        now: float = values["time_s"]
        if kind == "joined" and self._gathering.by_hand:
            self._say(
                now, f"{values['stage']} joined from {values['host']}; {self._gathering.text}"
            )
        elif kind == "start":
            self._started_s = now
            self._say(now, facts(design))
        elif kind == "evaluation" and not self._title:
            self._say(now, _evaluation(design, values))
        elif kind == "report" and now - self._said_s >= _LINE_EVERY_S:
            progress = measure(design, recorder, now - self._started_s)
            self._say(now, _progress_line(progress))
        elif line := _line(kind, values, self._title):
            self._say(now, line)

    def finish(self, summary: Mapping[str, Any], folder: Path | None) -> None:
        _finish(self._console, self._title, summary, folder)

    def _say(self, now: float, line: str) -> None:
        self._said_s = now
        say(self._console, line, self._title)


class Picture(AbstractContextManager["Picture", None]):
    """Shows a picture on a terminal, redrawn in place; it remains there only after a failure."""

    def __init__(self, console: Console, title: str = "") -> None:
        """`title` names one of several runs."""
        self._console = console
        self._title = title
        self._gathering = _Gathering(console)
        self._live: Live | None = None
        self._started_s: float | None = None
        self._drawn_s = float("-inf")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop(keep=kind is not None)

    def __call__(
        self, design: Design, recorder: Recorder, kind: str, values: Mapping[str, Any]
    ) -> None:
        self._gathering.observe(design, kind, values)
        now: float = values["time_s"]
        if kind == "start":
            self._started_s = now
        elif line := _line(kind, values, self._title):
            say(self._console, line, self._title)
        if kind in _AT_ONCE or now - self._drawn_s >= _DRAW_EVERY_S:
            self._drawn_s = now
            self._draw(self._picture(design, recorder, now))

    def finish(self, summary: Mapping[str, Any], folder: Path | None) -> None:
        self._stop(keep=False)
        _finish(self._console, self._title, summary, folder)

    def _picture(self, design: Design, recorder: Recorder, now: float) -> RenderableType:
        head = [self._title] if self._title else []
        head.append(facts(design))
        if self._started_s is None:
            return Group(*map(Text, head), Text(self._gathering.text))
        progress = measure(design, recorder, now - self._started_s)
        return frame(head, progress, recorder.reports)

    def _draw(self, picture: RenderableType) -> None:
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(picture, refresh=True)

    def _stop(self, *, keep: bool) -> None:
        if self._live is not None:
            self._live.transient = not keep
            self._live.stop()
            self._live = None


def say(console: Console, line: str, title: str = "") -> None:
    """Print a line, after the title if there is one. It is not wrapped, so that it can be
    copied."""
    text = f"{title}: {line}" if title else line
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def _line(kind: str, values: Mapping[str, Any], title: str) -> str | None:
    """Describe a record of a guard or an incident; one of several runs leaves guards out."""
    return guard_line(values) if kind == "guard" and not title else incident_line(kind, values)


def _evaluation(design: Design, values: Mapping[str, Any]) -> str:
    epoch = values["samples"] / design.meta.train_samples
    line = f"epoch {epoch:.4g} of {_epochs(design):g}"
    shown = score(values["accuracy"], values["loss"])
    speed = values["samples"] / values["train_s"] if values["train_s"] else 0.0
    loss = "" if values["accuracy"] is None else f", test loss {values['loss']:.4g}"
    more = "".join(f", {text}" for text in metric_words(values.get("metrics", {})))
    return f"{line}, {shown}{loss}{more}, {speed:,.0f} samples/s"


def _finish(console: Console, title: str, summary: Mapping[str, Any], folder: Path | None) -> None:
    if title:
        say(console, outcome(summary), title)
        return
    console.print(StageTable(summary["stages"], ("cpu_s",)))
    written = f"written to {folder}" if folder else "nothing written"
    say(console, f"{outcome(summary)} of training, {written}")
