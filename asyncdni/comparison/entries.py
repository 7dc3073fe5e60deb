"""Which runs a comparison is made of, and the training of one.

Rows: each schedule; on request `synthetic-zero`, its control, whose generators always predict zero;
`single`, one process with all cores; on request more of it, with other numbers of threads. At
several latencies of links each row is run at each of them, but for `single`, which has no links.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from asyncdni import config, experiment
from asyncdni.build import Design
from asyncdni.comparison.rows import (
    Row,
    at_latencies,
    check_schedules,
    fitting,
    single_row,
    zero_row,
)
from asyncdni.datasets import describe
from asyncdni.errors import AsyncDNIError, ConfigError
from asyncdni.experiment.overrides import parse_setting
from asyncdni.given import begin_with
from asyncdni.messages import DATA
from asyncdni.metrics.comparison import Result
from asyncdni.metrics.latencies import latency_words, suffix
from asyncdni.training import Observer, design_of, train

__all__ = [
    "Entry",
    "Key",
    "order",
    "plan_runs",
    "run_entry",
]

_SEEDS_MAX = 10_000

#: Name, latency in seconds (or None), seed.
Key = tuple[str, float | None, int]
T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One run of a comparison."""

    name: str  # of its row
    seed: int
    experiment: config.Experiment
    #: By worker, the workers whose activations it takes; without it a run has no ceiling.
    producers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Seconds, one way, where latencies are compared; None otherwise, and for a run without links.
    latency_s: float | None = None

    @property
    def key(self) -> Key:
        """What tells it from all other runs of the comparison."""
        return self.name, self.latency_s, self.seed

    @property
    def title(self) -> str:
        """`locked at 10 ms, seed 0`."""
        where = "" if self.latency_s is None else f" at {latency_words(self.latency_s)}"
        return f"{self.name}{where}, seed {self.seed}"

    @property
    def folder(self) -> str:
        """Of the run, inside the comparison's."""
        return f"{self.name}{suffix(self.latency_s)}-seed{self.seed}"


def order(names: Sequence[T], seeds: Iterable[int]) -> list[tuple[T, int]]:
    """(name, seed) of each run: all names for the first seed, then, rotated by one, the next."""
    return [
        (names[(turn + k) % len(names)], seed)
        for turn, seed in enumerate(seeds)
        for k in range(len(names))
    ]


def plan_runs(
    path: str | Path,
    changes: Sequence[str],
    schedules: Sequence[str],
    seeds: int,
    *,
    cores: int,
    single_threads: Sequence[int] = (),
    zero_control: bool = False,
    evaluate_every: int | None = None,
    latencies: Sequence[str] = (),
    allow_import: bool = False,
) -> list[Entry]:
    """All runs in their order, each checked; seeds count up from the file's.

    Args:
        path, changes: the experiment file and `--set`; options of a schedule go to those schedules
            that know them.
        schedules: a row each.
        cores: BLAS threads of the row SINGLE.
        single_threads: further rows `single-N` of one process with N BLAS threads.
        zero_control: a row ZERO.
        evaluate_every: samples between evaluations, in place of `run.evaluate_every`.
        latencies: one-way latencies of all links, such as 10ms, each of which is compared; one
            alone is that of every run, none is as the file says.

    Raises `ConfigError` and `DataError` before anything runs.
    """
    check_schedules(schedules)
    if seeds > _SEEDS_MAX:
        raise ConfigError(f"--seeds: expected at most {_SEEDS_MAX} runs of each, got {seeds}")
    file = experiment.load(path, [text for text in changes if not _is_of_schedule(text)])
    if file.run.epochs == 0:
        raise ConfigError("run.epochs: 0 leaves nothing to compare; expected at least 1")
    changes = [*changes, *_evaluations(file, evaluate_every)]
    rows = [Row(name, name, fitting(file, changes, name, schedules)) for name in schedules]
    rows += [zero_row(file, changes, schedules)] if zero_control else []
    rows = at_latencies(rows, latencies)
    rows += [
        single_row(file, changes, schedules, threads=threads, cores=cores)
        for threads in dict.fromkeys((cores, *single_threads))
    ]
    first = file.run.seed
    return _entries(path, rows, range(first, first + seeds), allow_import)


def run_entry(
    entry: Entry, folder: Path, observers: Sequence[Observer] = (), *, allow_import: bool = False
) -> Result:
    """Train in `folder`/`entry.folder`. Raises what training raises, with the run's name."""
    try:
        finished = train(
            entry.experiment,
            out=folder / entry.folder,
            observers=observers,
            allow_import=allow_import,
        )
    except AsyncDNIError as error:
        raise type(error)(f"{entry.title}: {error}") from error
    return Result(entry.name, entry.seed, finished.summary, entry.latency_s)


def _is_of_schedule(text: str) -> bool:
    keys, _ = parse_setting(text)
    return keys[0] == "schedule"


def _evaluations(file: config.Experiment, samples: int | None) -> list[str]:
    if samples is None:
        return []
    return [f"run.evaluate_every={samples / describe(file.data).train_samples!r}"]


def _entries(
    path: str | Path, rows: Sequence[Row], seeds: Iterable[int], allow_import: bool
) -> list[Entry]:
    """What fits and who sends to whom are the same for all seeds and latencies."""
    designs: dict[str, Design] = {}
    entries = []
    for row, seed in order(rows, seeds):
        chosen = experiment.load(path, row.changes, schedule=row.schedule, seed=seed)
        if row.name not in designs:
            designs[row.name] = _design(row.name, chosen, allow_import)
        design = designs[row.name]
        given = design.experiment.run.init_sha256  # the same weights for all
        run = msgspec.structs.replace(chosen.run, init_sha256=given)
        chosen = msgspec.structs.replace(chosen, run=run)
        entries.append(Entry(row.name, seed, chosen, _producers(design), row.latency_s))
    return entries


def _design(name: str, chosen: config.Experiment, allow_import: bool) -> Design:
    """Raises, with the row's name, what a run of it would raise before it begins."""
    try:
        design = begin_with(design_of(chosen, allow_import=allow_import))
    except AsyncDNIError as error:
        raise type(error)(f"{name}: {error}") from error
    return replace(design, init=None)


def _producers(design: Design) -> dict[str, tuple[str, ...]]:
    groups = design.plan.groups
    return {group.name: tuple(p for p in group.producers if p != DATA) for group in groups}
