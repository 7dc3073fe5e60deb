"""A run that has ended before its time is taken up again: with what, and from where.

From the newest whole checkpoint; or, where every stage learns by itself and all of them have left a
rolling snapshot that is newer, from those.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from asyncdni import config, experiment
from asyncdni.core.ledger import Ledger
from asyncdni.data.meta import other_parts
from asyncdni.errors import CheckpointError, ConfigError, DataError
from asyncdni.files import read_file
from asyncdni.plan.build import Design, make_roster
from asyncdni.store.checkpoint import latest, next_cut, read_state
from asyncdni.store.manifest import Manifest, differences
from asyncdni.store.run import (
    CHECKPOINTS,
    EXPERIMENT,
    SNAPSHOTS,
    SUMMARY,
    known_data,
    load_experiment,
    load_weights,
)

__all__ = [
    "Beginning",
    "changed_experiment",
    "continued_experiment",
    "find_beginning",
    "is_complete",
]

#: What may be changed about a run that has begun: all that makes neither another network nor other
#: samples, nor gives them in another order. So its state means the same before and after.
_CHANGEABLE = (
    *("run.epochs", "run.max_steps", "run.early_stopping", "run.evaluate_every", "run.metrics"),
    *("run.split", "run.place", "run.threads", "run.pin", "run.store", "data.path"),
    # rates, decay, weight decay, clipping: not the kind, whose state is kept
    *("optimizer", "stages.NAME.optimizer"),
    *("schedule", "stages.NAME.schedule", "staleness", "links", "slow"),
    *("checkpoint", "recovery", "elastic", "limits", "numbers"),
)

#: Of generators and their like.
_RATES = ("learning_rate", "head_learning_rate", "rate", "refresh")

#: A place in an experiment, and what is there before and after.
Change = tuple[str, Any, Any]


@dataclass(frozen=True)
class Beginning:
    """Where a run goes on."""

    ledger: Ledger
    passed_over: list[str] = field(default_factory=list)  # broken checkpoints, each with what is
    changes: list[Change] = field(default_factory=list)  # of the experiment, since it was left


def changed_experiment(folder: Path, changes: Sequence[str]) -> config.Experiment:
    """The experiment of the run in `folder`, with `changes` (`section.key=value`).

    Raises `ConfigError` for a folder without a run, and for a change of the network, the data, the
    seed, or anything else that would make another run of it.
    """
    path = folder / EXPERIMENT
    if not path.is_file():
        raise ConfigError(f"--resume {folder}: there is no run in it: it has no {EXPERIMENT}")
    there = load_experiment(folder)
    chosen = experiment.change(experiment.tables(there), changes)
    _check_changes(folder, there, chosen, f"--resume {folder}:")
    return chosen


def continued_experiment(folder: Path, asked: config.Experiment) -> config.Experiment:
    """The experiment that the run in `folder` goes on with where `asked` is asked for again: that
    one, with the weights that the run has begun with.

    Raises `ConfigError` where the run there is another one: see `changed_experiment`.
    """
    there = load_experiment(folder)
    begun = {name: getattr(there.run, name) for name in ("init", "init_sha256", "init_stages")}
    chosen = msgspec.structs.replace(asked, run=msgspec.structs.replace(asked.run, **begun))
    _check_changes(folder, there, chosen, f"--out {folder}: another run is there:")
    return chosen


def _check_changes(
    folder: Path, there: config.Experiment, chosen: config.Experiment, refusal: str
) -> None:
    """Raise `ConfigError`, which begins with `refusal`, unless the run in `folder` may go on with
    the experiment `chosen`."""
    for place, old, new in _differences(experiment.tables(there), experiment.tables(chosen)):
        if not _may_change(place):
            raise ConfigError(
                f"{refusal} {place} is {_shown(old)} there and {_shown(new)} here, which "
                f"makes another run; only {', '.join(_CHANGEABLE)} may change"
            )
    _check_optimizers(folder, there, chosen)
    _check_models(folder, there, chosen)


def _may_change(place: str) -> bool:
    head, *rest = place.split(".")
    general = ".".join([head, "NAME", *rest[1:]]) if head == "stages" else place
    return any(general == one or general.startswith(f"{one}.") for one in _CHANGEABLE)


def _check_optimizers(folder: Path, there: config.Experiment, here: config.Experiment) -> None:
    """What an optimizer remembers is kept, so it must mean something to the one that goes on."""
    for old, new in zip(there.stages, here.stages, strict=True):
        before = _remembers(experiment.stage_optimizer(there, old))
        after = _remembers(experiment.stage_optimizer(here, new))
        if before != after:
            raise ConfigError(
                f"--resume {folder}: the optimizer of stage {old.name} is {before} there and "
                f"{after} here, but its state is kept; rates, decay, weight_decay and clip_norm "
                "may change, and momentum from one value above 0 to another"
            )


def _check_models(folder: Path, there: config.Experiment, here: config.Experiment) -> None:
    """So is what generators, local heads and input models have learned, where both have some."""
    for old, new in zip(there.stages, here.stages, strict=True):
        before = _models(experiment.stage_schedule(there, old))
        after = _models(experiment.stage_schedule(here, new))
        for name in before.keys() & after.keys():
            if before[name] != after[name]:
                raise ConfigError(
                    f"--resume {folder}: the {name} of stage {old.name} is {_shown(before[name])} "
                    f"there and {_shown(after[name])} here, but what it has learned is kept; its "
                    "rates may change"
                )


def _models(schedule: config.Schedule) -> dict[str, dict[str, Any]]:
    """What they are made of, by name, without their rates."""
    found = {}
    for name, model in schedule.models.items():
        options = msgspec.to_builtins(model)
        if options.get("kind") != "zero":  # which learns nothing
            found[name] = {key: one for key, one in options.items() if key not in _RATES}
    return found


def _remembers(optimizer: config.Optimizer) -> str:
    """The kind of an optimizer's state, in words."""
    if isinstance(optimizer, config.Sgd):
        return "sgd with momentum" if optimizer.momentum else "sgd without momentum"
    return str(optimizer.__struct_config__.tag)


def is_complete(folder: Path, chosen: config.Experiment) -> bool:
    """The run in `folder` has been trained to its end, its final weights are whole, and `chosen`
    asks for no more epochs or steps.

    Raises `ConfigError` where it asks for fewer.
    """
    try:
        summary = json.loads(read_file(folder / SUMMARY))
        epochs, steps = summary["epochs"], summary.get("max_steps")
    except (OSError, ValueError, KeyError, TypeError):
        return False  # the summary is the last thing that a run writes
    if chosen.run.epochs < epochs:
        raise ConfigError(
            f"--resume {folder}: run.epochs = {chosen.run.epochs}, but it has been trained for "
            f"{epochs} already"
        )
    try:
        load_weights(folder / "final", chosen)
    except CheckpointError:
        return False  # its last checkpoint has them
    return bool((chosen.run.epochs, chosen.run.max_steps) == (epochs, steps))


def find_beginning(
    folder: Path, design: Design, history: list[dict[str, Any]], trained_s: float
) -> Beginning:
    """Where the run in `folder` goes on with `design`.

    `history` has all evaluations so far, `trained_s` is all training time: it stays spent. A run of
    which nothing has been kept yet begins anew. Raises `ConfigError` for a checkpoint of another
    network, `DataError` for other samples, and `CheckpointError` where there are checkpoints, but
    none that is whole.
    """
    _check_samples(folder, design)
    manifest, passed_over = latest(folder / CHECKPOINTS)
    ledger = Ledger()
    if manifest is not None:
        found = differences(manifest, design.experiment, design.meta)
        if found:
            raise ConfigError(f"--resume {folder}: {'; '.join(found)}")
        ledger = _ledger(manifest)
    ledger.taken_up(_snapshot_counts(folder, design), history, design.plan.barriers)
    _fit(folder, ledger, design)
    ledger.train_s = max(ledger.train_s, trained_s)
    ledger.cut = next_cut(folder / CHECKPOINTS) - 1
    there = experiment.tables(load_experiment(folder))
    changes = list(_differences(there, experiment.tables(design.experiment)))
    return Beginning(ledger, passed_over, changes)


def _check_samples(folder: Path, design: Design) -> None:
    known = known_data(folder)
    others = other_parts(known.checksums, design.meta.checksums) if known else []
    if others:
        raise DataError(
            f"--resume {folder}: {getattr(design.experiment.data, 'path', 'the data set')} does "
            "not hold the samples that the run was trained on: other contents in "
            f"{', '.join(others)}; put the data back, or begin a new run with these"
        )


def _ledger(manifest: Manifest) -> Ledger:
    try:
        return Ledger.restored(manifest.coordinator, f"{CHECKPOINTS}/{manifest.number:06d}")
    except KeyError as error:
        raise CheckpointError(
            f"checkpoint {manifest.number} does not say {error} of its coordinator"
        ) from None


def _snapshot_counts(folder: Path, design: Design) -> list[dict[str, int]]:
    """What each worker had done by its snapshot; nothing where one has none that is whole, or can't
    go on from its own."""
    if not make_roster(design).learns_alone:
        return []
    names = [[node.name for node in group.members] for group in design.plan.groups]
    try:
        return [read_state(folder / SNAPSHOTS, stages, None)[1] for stages in names]
    except CheckpointError:
        return []


def _fit(folder: Path, ledger: Ledger, design: Design) -> None:
    """The ledger to a run that may have become too short, and to its workers."""
    batches = design.plan.batches
    if ledger.start > batches:
        raise ConfigError(
            f"--resume {folder}: run.epochs and run.max_steps make {batches} batches, but it has "
            f"been trained for {ledger.start} already"
        )
    names = {group.name for group in design.plan.groups}
    ledger.samples = {name: count for name, count in ledger.samples.items() if name in names}


def _differences(there: Any, here: Any, place: str = "") -> Iterator[Change]:
    """(place, old, new) of every value that is not the same."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in {**there, **here}:
            yield from _differences(there.get(key), here.get(key), f"{place}.{key}".lstrip("."))
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for index, (old, new) in enumerate(zip(there, here, strict=True)):
            name = old.get("name", index) if isinstance(old, Mapping) else index
            yield from _differences(old, new, f"{place}.{name}")
    elif there != here:
        yield place, there, here


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
