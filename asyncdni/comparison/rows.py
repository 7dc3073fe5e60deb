"""The rows of a comparison: what each changes about the experiment file.

A row takes from the file, and from `--set`, what its schedule knows: options of schedules go to
those that know them, bounds on lag to those that are ahead of gradients, and a schedule that a
stage has of its own to those that it can stand beside. `single` has no links and no slow worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from asyncdni import config
from asyncdni.errors import ConfigError
from asyncdni.experiment.overrides import parse_setting
from asyncdni.experiment.schema import SECTIONS
from asyncdni.experiment.wording import unknown, variants
from asyncdni.metrics.baselines import SINGLE
from asyncdni.quantities import seconds

__all__ = [
    "BASELINE",
    "ZERO",
    "Row",
    "at_latencies",
    "check_schedules",
    "fitting",
    "single_row",
    "zero_row",
]

#: What `single`, all stages in one worker process with all cores, is trained by.
BASELINE = "locked"
#: The control of `synthetic`: what is learned without any gradient from a generator.
ZERO = "synthetic-zero"

_CONTROLLED = "synthetic"
_SCHEDULES = variants(SECTIONS["schedule"].type)
#: Those in which a stage may have a schedule of its own.
_DECOUPLED = ("local_loss", "synthetic")
#: Those that a bound on lag means something to.
_AHEAD = ("delayed", "synthetic")


@dataclass(frozen=True)
class Row:
    """One line of a comparison, at one latency."""

    name: str
    schedule: str
    changes: Sequence[str]  # as for --set
    latency_s: float | None = None


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


def fitting(
    file: config.Experiment, changes: Sequence[str], schedule: str, schedules: Sequence[str]
) -> list[str]:
    """`changes` that are meant for `schedule`, and what takes back what in `file` is not.

    What none of `schedules` knows stays in, to be refused with the names that are known.
    """
    meant = [text for text in changes if _fits(text, schedule, schedules)]
    return [*meant, *_taken_back(file, schedule)]


def zero_row(file: config.Experiment, changes: Sequence[str], schedules: Sequence[str]) -> Row:
    """The control. Raises `ConfigError` where there is nothing to control."""
    if _CONTROLLED not in schedules:
        raise ConfigError(
            f"--zero-control: {_CONTROLLED} is not compared, so there is nothing to control; "
            f"name it with --schedules, given: {','.join(schedules)}"
        )
    own = [text for text in changes if parse_setting(text)[0][:2] != ("schedule", "generator")]
    meant = fitting(file, own, _CONTROLLED, schedules)
    return Row(ZERO, _CONTROLLED, [*meant, 'schedule.generator={kind="zero"}'])


def single_row(
    file: config.Experiment,
    changes: Sequence[str],
    schedules: Sequence[str],
    *,
    threads: int,
    cores: int,
) -> Row:
    """One process with that many BLAS threads; SINGLE itself has as many as there are cores."""
    name = SINGLE if threads == cores else f"{SINGLE}-{threads}"
    alone = [f"run.split=[{len(file.stages)}]", f"run.threads={threads}", "links={}", "slow={}"]
    return Row(name, BASELINE, [*fitting(file, changes, BASELINE, schedules), *alone])


def at_latencies(rows: Iterable[Row], texts: Sequence[str]) -> list[Row]:
    """`rows` with each latency (10ms) on all links, one after the other; none: as they are.

    One alone is no second key. Raises `ConfigError`.
    """
    rows, found = list(rows), dict[float, str]()
    for text in texts:
        latency_s = seconds(text, "--latencies")
        if latency_s in found:
            raise ConfigError(f"--latencies: {found[latency_s]} and {text} are the same")
        found[latency_s] = text
    if not found:
        return rows
    return [
        replace(
            row,
            changes=[*row.changes, f'links.latency="{text}"'],
            latency_s=latency_s if len(found) > 1 else None,
        )
        for latency_s, text in sorted(found.items())
        for row in rows
    ]


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


def _taken_back(file: config.Experiment, schedule: str) -> list[str]:
    changes = [] if schedule in _AHEAD else ["staleness={}"]
    if schedule == file.schedule.__struct_config__.tag:
        return changes
    return changes + [
        f"stages.{stage.name}.schedule={{}}"
        for stage in file.stages
        if stage.schedule and not _stands_beside(stage.schedule, schedule)
    ]


def _stands_beside(own: Mapping[str, object], schedule: str) -> bool:
    return schedule in _DECOUPLED and own == {"name": BASELINE}
