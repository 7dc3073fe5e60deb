"""Which runs a comparison is made of, and the training of one.

Rows: each schedule; on request `synthetic-zero`, its control, whose generators always predict zero;
`single`, one process with all cores; on request more of it, with other numbers of threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asyncdni import config, experiment
from asyncdni.datasets import describe
from asyncdni.errors import AsyncDNIError, ConfigError
from asyncdni.experiment.overrides import parse_setting
from asyncdni.experiment.schema import SECTIONS
from asyncdni.experiment.wording import unknown, variants
from asyncdni.messages import DATA
from asyncdni.metrics.comparison import Result
from asyncdni.training import Observer, design_of, train

__all__ = [
    "BASELINE",
    "SINGLE",
    "ZERO",
    "Entry",
    "check_schedules",
    "order",
    "plan_runs",
    "run_entry",
]

#: All stages in one worker process with all cores, always part of a comparison.
SINGLE = "single"
#: The other row that speed-ups are over, where it is part of a comparison.
BASELINE = "locked"
#: The control of `synthetic`: what is learned without any gradient from a generator.
ZERO = "synthetic-zero"

_CONTROLLED = "synthetic"
_SCHEDULES = variants(SECTIONS["schedule"].type)


@dataclass(frozen=True)
class Entry:
    """One run of a comparison."""

    name: str  # of its row
    seed: int
    experiment: config.Experiment
    #: By worker, the workers whose activations it takes; without it a run has no ceiling.
    producers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Of the run, inside the comparison's."""
        return f"{self.name}-seed{self.seed}"


@dataclass(frozen=True)
class _Row:
    name: str
    schedule: str
    changes: Sequence[str]


def order(names: Sequence[str], seeds: Iterable[int]) -> list[tuple[str, int]]:
    """(name, seed) of each run: all names for the first seed, then, rotated by one, the next."""
    return [
        (names[(turn + k) % len(names)], seed)
        for turn, seed in enumerate(seeds)
        for k in range(len(names))
    ]


def check_schedules(names: Sequence[str]) -> None:
    """Raises `ConfigError` for none, one twice, an unknown one, and SINGLE."""
    if not names:
        raise ConfigError(f"--schedules: none given; known: {', '.join(_SCHEDULES)}")
    for index, name in enumerate(names):
        if name == SINGLE:
            raise ConfigError(f"--schedules: {SINGLE} is always compared with; leave it out")
        if name not in _SCHEDULES:
            raise ConfigError(f"--schedules: {unknown('schedule', name, _SCHEDULES)}")
        if name in names[:index]:
            raise ConfigError(f"--schedules: {name} is given twice; expected each once")


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

    Raises `ConfigError` and `DataError` before anything runs.
    """
    check_schedules(schedules)
    first = experiment.load(path, _fitting(changes, schedules[0], schedules), schedule=schedules[0])
    if first.run.epochs == 0:
        raise ConfigError("run.epochs: 0 leaves nothing to compare; expected at least 1")
    changes = [*changes, *_evaluations(first, evaluate_every)]
    rows = [_Row(name, name, _fitting(changes, name, schedules)) for name in schedules]
    rows += [_zero(changes, schedules)] if zero_control else []
    baseline = _fitting(changes, BASELINE, schedules)
    counts = dict.fromkeys((cores, *single_threads))
    rows += [_single(threads, cores, baseline, first) for threads in counts]
    return _entries(path, rows, range(first.run.seed, first.run.seed + seeds), allow_import)


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
        raise type(error)(f"{entry.name}, seed {entry.seed}: {error}") from error
    return Result(entry.name, entry.seed, finished.summary)


# --- rows ----------------------------------------------------------------------------------------


def _zero(changes: Sequence[str], schedules: Sequence[str]) -> _Row:
    if _CONTROLLED not in schedules:
        raise ConfigError(
            f"--zero-control: {_CONTROLLED} is not compared, so there is nothing to control; "
            f"name it with --schedules, given: {','.join(schedules)}"
        )
    own = [text for text in changes if parse_setting(text)[0][:2] != ("schedule", "generator")]
    fitting = _fitting(own, _CONTROLLED, schedules)
    return _Row(ZERO, _CONTROLLED, [*fitting, 'schedule.generator={kind="zero"}'])


def _single(threads: int, cores: int, changes: Sequence[str], first: config.Experiment) -> _Row:
    name = SINGLE if threads == cores else f"{SINGLE}-{threads}"
    alone = [f"run.split=[{len(first.stages)}]", f"run.threads={threads}"]
    return _Row(name, BASELINE, [*changes, *alone])


def _evaluations(first: config.Experiment, samples: int | None) -> list[str]:
    if samples is None:
        return []
    return [f"run.evaluate_every={samples / describe(first.data).train_samples!r}"]


def _entries(
    path: str | Path, rows: Sequence[_Row], seeds: Iterable[int], allow_import: bool
) -> list[Entry]:
    """What fits and who sends to whom are the same for all seeds."""
    by_name = {row.name: row for row in rows}
    producers: dict[str, Mapping[str, tuple[str, ...]]] = {}
    entries = []
    for name, seed in order(list(by_name), seeds):
        row = by_name[name]
        chosen = experiment.load(path, row.changes, schedule=row.schedule, seed=seed)
        if name not in producers:
            producers[name] = _producers(chosen, allow_import)
        entries.append(Entry(name, seed, chosen, producers[name]))
    return entries


def _producers(chosen: config.Experiment, allow_import: bool) -> dict[str, tuple[str, ...]]:
    groups = design_of(chosen, allow_import=allow_import).plan.groups
    return {group.name: tuple(p for p in group.producers if p != DATA) for group in groups}


# --- options of schedules ------------------------------------------------------------------------


def _fitting(changes: Sequence[str], schedule: str, schedules: Sequence[str]) -> list[str]:
    """`changes` without options that only others of `schedules` know.

    What none of them knows stays in, to be refused with the names that are known.
    """
    return [text for text in changes if _fits(text, schedule, schedules)]


def _fits(text: str, schedule: str, schedules: Sequence[str]) -> bool:
    keys, _ = parse_setting(text)
    if keys[0] != "schedule":
        return True
    if len(keys) == 1 or keys[1] == "name":
        raise ConfigError(f"--set {text}: name the schedules to compare with --schedules")
    owners = [name for name in schedules if keys[1] in _options(name)]
    return not owners or schedule in owners


def _options(schedule: str) -> set[str]:
    return {field.encode_name for field in _SCHEDULES[schedule].fields}
