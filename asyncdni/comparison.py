"""Compare schedules by running them: the same network, data and seeds, turn by turn.

Runs are interleaved, seed by seed, and the order rotates from seed to seed, so that a machine that
grows slower or faster with time does so for all alike. The statistics are `metrics.comparison`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asyncdni import config, experiment
from asyncdni.errors import AsyncDNIError, ConfigError
from asyncdni.experiment.overrides import parse_setting
from asyncdni.experiment.schema import SECTIONS
from asyncdni.experiment.wording import unknown, variants
from asyncdni.metrics.comparison import MEASURES, Comparison, Result
from asyncdni.metrics.machine import describe_machine
from asyncdni.metrics.verdict import verdict
from asyncdni.training import Observer, design_of, train

__all__ = [
    "BASELINE",
    "SINGLE",
    "Entry",
    "check_schedules",
    "document",
    "order",
    "plan_runs",
    "run_entry",
    "single_text",
]

#: All stages in one worker process, always part of a comparison.
SINGLE = "single"
#: What speed-ups are over, where it is part of a comparison.
BASELINE = "locked"

_SCHEDULES = variants(SECTIONS["schedule"].type)


@dataclass(frozen=True)
class Entry:
    """One run of a comparison."""

    name: str  # a schedule's, or SINGLE
    seed: int
    experiment: config.Experiment

    @property
    def folder(self) -> str:
        """Of the run, inside the comparison's."""
        return f"{self.name}-seed{self.seed}"


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
    allow_import: bool = False,
) -> list[Entry]:
    """All runs in their order, each checked; seeds count up from the file's.

    `changes` are those of `--set`; options of a schedule go to the schedules that know them.
    Raises `ConfigError` and `DataError` before anything runs.
    """
    check_schedules(schedules)
    first = experiment.load(path, _fitting(changes, schedules[0], schedules), schedule=schedules[0])
    if first.run.epochs == 0:
        raise ConfigError("run.epochs: 0 leaves nothing to compare; expected at least 1")
    alone = [f"run.split=[{len(first.stages)}]", f"run.threads={cores}"]
    entries = []
    for name, seed in order((*schedules, SINGLE), range(first.run.seed, first.run.seed + seeds)):
        schedule = BASELINE if name == SINGLE else name
        fitting = _fitting(changes, schedule, schedules) + (alone if name == SINGLE else [])
        entries.append(
            Entry(name, seed, experiment.load(path, fitting, schedule=schedule, seed=seed))
        )
    for entry in entries[: len(schedules) + 1]:  # seeds don't change what fits
        design_of(entry.experiment, allow_import=allow_import)
    return entries


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


def document(entries: Sequence[Entry], results: Sequence[Result]) -> dict[str, Any]:
    """The comparison so far, fit for JSON: machine, a row a name, verdict, every run's summary."""
    names = tuple(dict.fromkeys(entry.name for entry in entries))
    comparison = Comparison(names, tuple(results))
    folders = {(entry.name, entry.seed): entry.folder for entry in entries}
    return {
        "complete": len(results) == len(entries),
        "machine": describe_machine(),
        "seeds": sorted({entry.seed for entry in entries}),
        "rows": [_row(comparison, name) for name in names],
        "verdict": verdict(comparison),
        "runs": [
            {
                "name": one.name,
                "seed": one.seed,
                "folder": folders[one.name, one.seed],
                "summary": dict(one.summary),
            }
            for one in results
        ],
    }


def single_text(threads: int) -> str:
    """What SINGLE is, for below a table."""
    count = "1 BLAS thread" if threads == 1 else f"{threads} BLAS threads"
    return (
        f"{SINGLE}: all stages in one worker process with {count}, in strict order (schedule "
        f"{BASELINE}), no other worker running: what training without asyncdni would be."
    )


def _row(comparison: Comparison, name: str) -> dict[str, Any]:
    mine = [one.summary for one in comparison.results if one.name == name]
    known = BASELINE in comparison.names
    speedup = comparison.ratio(name, BASELINE) if known else None
    return {
        "name": name,
        "runs": len(mine),
        "workers": mine[0]["workers"] if mine else None,
        "threads": mine[0]["threads"] if mine else None,
        **{measure: _plain(comparison.estimate(name, measure)) for measure in MEASURES},
        f"speedup_over_{BASELINE}": _plain(speedup),
    }


def _plain(one: Any) -> dict[str, Any] | None:
    return None if one is None else asdict(one)


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
