"""Callbacks: a user's own code at the evaluations and checkpoints of a run, and early stopping.

```
 train ── on_start ──► … ── on_evaluation ── on_checkpoint ──► … ── on_end
                                  │ run.stop("…")
                                  └──► the weights evaluated are the final ones; on_end
```

They run in the coordinator's process. Workers wait while a callback looks at an evaluation, so that
a run which it ends has the very weights that were evaluated, however fast the workers are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from asyncdni import config
from asyncdni.errors import ConfigError
from asyncdni.plan.build import Design
from asyncdni.report.columns import counted
from asyncdni.report.records import Recorder

__all__ = ["Callback", "Callbacks", "EarlyStopping", "Training"]


@dataclass(frozen=True)
class Training:
    """What a callback is told of the run."""

    experiment: config.Experiment
    folder: Path | None  # of the run; None where nothing is kept
    #: One entry an evaluation, the newest last: "samples" learned by then, "train_s" (seconds of
    #: training), "accuracy" (None where the loss has none) and "loss" of the test set.
    history: Sequence[Mapping[str, Any]]
    checkpoint: Path | None = None  # the newest one of this run
    summary: Mapping[str, Any] | None = None  # of the whole run; at its end
    #: Called with the reason, it lets the run end at this evaluation, or at the next one, as if
    #: that had been planned.
    stop: Callable[[str], None] = lambda reason: None


class Callback(Protocol):
    """Any object with one or more of these methods. An exception of one stops the run as Ctrl-C
    does, with all that was learned saved, and is then raised."""

    def on_start(self, run: Training) -> None: ...

    def on_evaluation(self, run: Training) -> None: ...

    def on_checkpoint(self, run: Training) -> None:
        """The checkpoint `run.checkpoint` is whole, and on disk."""

    def on_end(self, run: Training) -> None:
        """The run has come to its end, and its weights are saved. Not called after a stop from
        outside or an error."""


#: By kind of record, the method that is called.
_METHODS = {"start": "on_start", "evaluation": "on_evaluation", "cut": "on_checkpoint"}
_KNOWN = (*_METHODS.values(), "on_end")


class Callbacks:
    """Calls the user's callbacks; an observer of the run's records."""

    def __init__(
        self, callbacks: Sequence[Any], folder: Path | None, stop: Callable[[str], None]
    ) -> None:
        """`stop` takes the reason why the run ends early. Raises `ConfigError` for an object that
        has none of the methods, or a misspelt one."""
        for one in callbacks:
            _check(one)
        self._callbacks = callbacks
        self._folder = folder
        self._stop = stop
        self._checkpoint: Path | None = None

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._callbacks)

    def __call__(
        self, design: Design, recorder: Recorder, kind: str, values: Mapping[str, Any]
    ) -> None:
        if kind == "cut" and self._folder is not None:
            self._checkpoint = self._folder / "checkpoints" / f"{values['number']:06d}"
        if kind in _METHODS:
            self._call(_METHODS[kind], self._told(design, recorder))

    def ended(self, design: Design, recorder: Recorder, summary: Mapping[str, Any]) -> None:
        """Call `on_end`."""
        self._call("on_end", self._told(design, recorder, summary))

    def _told(
        self, design: Design, recorder: Recorder, summary: Mapping[str, Any] | None = None
    ) -> Training:
        history = [dict(entry) for entry in recorder.history]
        chosen = design.given or design.experiment
        return Training(chosen, self._folder, history, self._checkpoint, summary, self._stop)

    def _call(self, method: str, run: Training) -> None:
        for one in self._callbacks:
            if hasattr(one, method):
                getattr(one, method)(run)


def _check(callback: Any) -> None:
    names = [name for name in dir(callback) if name.startswith("on_")]
    strange = [name for name in names if name not in _KNOWN]
    if strange or not names:
        kind = type(callback).__name__
        has = f"has {', '.join(strange)}" if strange else "has no method that is called"
        raise ConfigError(f"callbacks: {kind} {has}; known are {', '.join(_KNOWN)}")


#: Metrics of which smaller values are better; of all others it is the larger ones.
_SMALLER = "loss", "perplexity", "bits"


class EarlyStopping:
    """Ends a run once `patience` evaluations in a row have brought no better value of `metric`.

    `metric` is one of the history: "accuracy", "loss" or one of `run.metrics`; "": the accuracy
    where there is one. Of "loss", "perplexity" and "bits" smaller values are better, of all others
    larger ones. A value is better if it is so by more than `min_delta`. It looks at the history
    alone, so that a run which is resumed stops where it would have.
    """

    def __init__(self, metric: str = "", *, patience: int = 3, min_delta: float = 0.0) -> None:
        self.metric = metric
        self.patience = patience
        self.min_delta = min_delta

    def on_evaluation(self, run: Training) -> None:
        """Raises `ConfigError` for a metric that the history does not have."""
        history = [_measured(entry) for entry in run.history]
        metric = self.metric or ("accuracy" if "accuracy" in history[-1] else "loss")
        if metric not in history[-1]:
            raise ConfigError(
                f"early_stopping.metric: no {metric!r} in the history; known: "
                f"{', '.join(history[-1])}"
            )
        sign = -1 if metric in _SMALLER else 1
        best, since = None, 0
        for value in (sign * entry[metric] for entry in history if metric in entry):
            better = best is None or value > best + self.min_delta
            best, since = (value, 0) if better else (best, since + 1)
        if since >= self.patience:
            run.stop(f"{metric} has not improved in {counted(since, 'evaluation')}")


def _measured(entry: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation by name."""
    found = {"accuracy": entry["accuracy"], "loss": entry["loss"], **entry.get("metrics", {})}
    return {name: value for name, value in found.items() if value is not None}
