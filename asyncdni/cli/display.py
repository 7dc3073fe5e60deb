"""What a run shows while it goes on: a picture on a terminal, plain lines anywhere else.

Everything is drawn from within the observer's calls, a few times a second at most: no thread of its
own competes with the workers. Times are those of the records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from asyncdni.build import Design
from asyncdni.cli import mishaps, panel
from asyncdni.metrics.recorder import Recorder

__all__ = ["Display", "Lines", "Picture", "Quiet", "make_display", "say"]

_DRAW_EVERY_S = 0.25
_LINE_EVERY_S = 10.0
#: Rare, and possibly followed by a long silence: drawn at once.
_AT_ONCE = frozenset({"bound", "joined", "refused", "rejected", "start"})


class Display(Protocol):
    """A context manager that observes a run; see `training.Observer`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def __call__(
        self, design: Design, recorder: Recorder, kind: str, values: Mapping[str, Any]
    ) -> None: ...

    def finish(self, summary: Mapping[str, Any], folder: Path | None) -> None:
        """The run is over: show what it came to."""


def make_display(quiet: bool, console: Console | None = None, title: str = "") -> Display:
    """A picture where `console` (default: standard output) is a terminal, else lines.

    `title` says which one of several runs it is; each of them leaves but one line behind.
    """
    if quiet:
        return Quiet()
    chosen = console or Console(highlight=False)
    if chosen.is_terminal and not chosen.is_dumb_terminal:
        return Picture(chosen, title)
    return Lines(chosen, title)


class Quiet:
    """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(
        self, design: Design, recorder: Recorder, kind: str, values: Mapping[str, Any]
    ) -> None:
        pass

    def finish(self, summary: Mapping[str, Any], folder: Path | None) -> None:
        pass


class _Gathering:
    """Who is still awaited, and how to start them where that is the user's part."""

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
        elif kind == "lost":
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
        if address.startswith("tcp://0.0.0.0:"):
            say(self._console, "On other hosts put this host's name in place of 127.0.0.1.")


class Lines:
    """Plain lines: the start, each evaluation, what guards do, progress now and then, the end."""

    def __init__(self, console: Console, title: str = "") -> None:
        """With a `title`, one of several runs: it starts each; evaluations have none."""
        self._console = console
        self._title = title
        self._gathering = _Gathering(console)
        self._started_s = 0.0
        self._said_s = 0.0

    def __enter__(self) -> Self:
        return self

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
            self._say(now, panel.facts(design))
        elif kind == "evaluation" and not self._title:
            self._say(now, _evaluation(design, values))
        elif kind == "report" and now - self._said_s >= _LINE_EVERY_S:
            progress = panel.measure(design, recorder, now - self._started_s)
            self._say(now, panel.progress_line(progress))
        elif kind == "guard" and not self._title:
            self._say(now, panel.guard_line(values))
        elif (line := mishaps.line(kind, values)) is not None:
            self._say(now, line)

    def finish(self, summary: Mapping[str, Any], folder: Path | None) -> None:
        _finish(self._console, self._title, summary, folder)

    def _say(self, now: float, line: str) -> None:
        self._said_s = now
        say(self._console, f"{self._title}: {line}" if self._title else line)


class Picture:
    """A terminal's picture, redrawn in place; removed at the end, kept after a failure."""

    def __init__(self, console: Console, title: str = "") -> None:
        """`title` says which one of several runs it is."""
        self._console = console
        self._title = title
        self._gathering = _Gathering(console)
        self._live: Live | None = None
        self._started_s: float | None = None
        self._drawn_s = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop(keep=kind is not None)

    def __call__(
        self, design: Design, recorder: Recorder, kind: str, values: Mapping[str, Any]
    ) -> None:
        self._gathering.observe(design, kind, values)
        now: float = values["time_s"]
        if kind == "start":
            self._started_s = now
        elif kind == "guard" and not self._title:
            say(self._console, panel.guard_line(values))
        elif (line := mishaps.line(kind, values)) is not None:
            say(self._console, f"{self._title}: {line}" if self._title else line)
        if kind in _AT_ONCE or now - self._drawn_s >= _DRAW_EVERY_S:
            self._drawn_s = now
            self._draw(self._picture(design, recorder, now))

    def finish(self, summary: Mapping[str, Any], folder: Path | None) -> None:
        self._stop(keep=False)
        _finish(self._console, self._title, summary, folder)

    def _picture(self, design: Design, recorder: Recorder, now: float) -> RenderableType:
        head = [self._title] if self._title else []
        head.append(panel.facts(design))
        if self._started_s is None:
            return Group(*map(Text, head), Text(self._gathering.text))
        progress = panel.measure(design, recorder, now - self._started_s)
        return panel.frame(head, progress, recorder.reports)

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


def say(console: Console, line: str) -> None:
    """One line as it is: not wrapped, so that it can be copied."""
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def _evaluation(design: Design, values: Mapping[str, Any]) -> str:
    epoch = values["samples"] / design.meta.train_samples
    line = f"epoch {epoch:.4g} of {design.experiment.run.epochs}"
    shown = panel.score(values["accuracy"], values["loss"])
    speed = values["samples"] / values["train_s"] if values["train_s"] else 0.0
    loss = "" if values["accuracy"] is None else f", test loss {values['loss']:.4g}"
    return f"{line}, {shown}{loss}, {speed:,.0f} samples/s"


def _finish(console: Console, title: str, summary: Mapping[str, Any], folder: Path | None) -> None:
    if title:
        say(console, f"{title}: {panel.outcome(summary)}")
        return
    console.print(panel.stage_table(summary["stages"], ("cpu_s",)))
    written = f"written to {folder}" if folder else "nothing written"
    say(console, f"{panel.outcome(summary)} of training, {written}")
