"""Train: the coordinator in this process, a worker process a stage on this machine.

`train` is what the command line calls, and what `import asyncdni` offers.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from asyncdni import config, experiment
from asyncdni.build import Design, make_design, make_roster
from asyncdni.core.coordinator import Coordinator
from asyncdni.core.roster import Roster
from asyncdni.datasets import describe
from asyncdni.errors import CheckpointError, ConfigError
from asyncdni.launchers.local import LocalLauncher, worker_command
from asyncdni.metrics.recorder import Recorder
from asyncdni.metrics.tensorboard import EventFiles
from asyncdni.metrics.trace_events import merged_at_end
from asyncdni.run import (
    ARRAYS,
    Result,
    create_folder,
    discard_folder,
    load_weights,
    write_summary,
)
from asyncdni.runtime.coordinate import Launcher, coordinate
from asyncdni.transports.address import private_folder
from asyncdni.transports.zeromq import CoordinatorTransport

__all__ = ["Observer", "conduct", "design_of", "train"]

#: Called with each record of the coordinator; see `metrics.recorder`.
Observer = Callable[[Design, Recorder, str, Mapping[str, Any]], None]

_LINGER_S = 0.3


def train(
    source: config.Experiment | Mapping[str, Any] | str | Path,
    *,
    schedule: str | None = None,
    seed: int | None = None,
    set: Sequence[str] = (),
    data: Mapping[str, ArrayLike] | None = None,
    out: str | Path | None = None,
    observers: Sequence[Observer] = (),
    trace: bool = False,
    tensorboard: bool = False,
    allow_import: bool = False,
) -> Result:
    """Train a network, one worker process a stage, and return weights, history and summary.

    Args:
        source: an experiment, its tables, or the path of an experiment file.
        schedule, seed, set: changes to a file, as on the command line.
        data: arrays x_train, y_train, x_test, y_test to train on, instead of the experiment's data;
            kept as DIR/data.npz.
        out: folder to write the run to, new or empty; None: keep nothing on disk.
        observers: called with every record while the run goes on.
        trace: write every op, message and wait of all workers to DIR/trace.json (for
            https://ui.perfetto.dev), and each worker's own to DIR/trace.
        tensorboard: write event files to DIR/tensorboard while the run goes on; needs the extra of
            that name, and `out`.
        allow_import: let workers import the layers that the experiment names as "module:Class".

    Raises:
        AsyncDNIError: one of its classes; whatever ends a run names its place and its cure.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(private_folder()))
        folder = Path(out) if out is not None else scratch / "run"
        chosen = _resolve(source, schedule, seed, set)
        if data is None:
            design = design_of(chosen, allow_import=allow_import)
        else:
            _save_arrays(data, scratch / ARRAYS)
            design = _design_of_arrays(chosen, scratch / ARRAYS, folder, allow_import)
            chosen = design.experiment
        if trace and out is not None:
            names = [group.name for group in design.plan.groups]
            stack.enter_context(merged_at_end(folder, names))  # once the launcher has seen them out
        launcher = stack.enter_context(LocalLauncher(folder / "logs", chosen.run.threads))

        def launch(address: str) -> LocalLauncher:
            if data is not None:
                _move(scratch / ARRAYS, folder / ARRAYS)
            launcher.start(_worker_commands(design, address))
            return launcher

        bind = f"ipc://{scratch / 'coordinator'}"
        if tensorboard:
            observers = [*observers, stack.enter_context(_event_files(out))]
        summary = conduct(design, bind, folder, launch=launch, observers=observers, trace=trace)
        weights = load_weights(folder / "final", chosen)
        kept = folder.resolve() if out is not None else None
        return Result(summary, weights, chosen, design.meta, kept)


def _worker_commands(design: Design, address: str) -> dict[str, Sequence[str]]:
    return {
        group.name: worker_command(group.name, address, allow_import=design.allow_import)
        for group in design.plan.groups
    }


def _event_files(out: str | Path | None) -> EventFiles:
    if out is None:
        raise ConfigError("tensorboard: event files need a run folder to be kept in, give out=DIR")
    return EventFiles(Path(out))


def design_of(chosen: config.Experiment, *, allow_import: bool = False) -> Design:
    """The experiment laid out over its data set. Raises `ConfigError` and `DataError`."""
    return make_design(chosen, describe(chosen.data), allow_import=allow_import)


def conduct(
    design: Design,
    bind: str,
    out: Path | None,
    *,
    launch: Callable[[str], Launcher] | None = None,
    observers: Sequence[Observer] = (),
    trace: bool = False,
) -> dict[str, Any]:
    """Be the coordinator of one run at address `bind`; returns the summary.

    `out` is the folder of the run, made once the address is bound; None: nothing is written. A run
    that fails before it trains leaves none, but after an error with a traceback: its logs count.
    `launch` starts the workers once the address is known; without it they are started by hand.

    Raises whatever ends the run, and `CheckpointError` where workers on other hosts have written
    their weights there.
    """
    chosen = design.experiment
    with ExitStack() as stack:
        transport = CoordinatorTransport(bind)
        stack.callback(transport.close, _LINGER_S)
        hosts: dict[str, str] = {}  # of workers
        seen: set[str] = set()  # kinds of records
        folder = stack.enter_context(_new_folder(out, chosen, seen)) if out is not None else None
        roster = make_roster(design, folder=str(folder) if folder else "", trace=trace)
        recorder = Recorder(roster.workers, _facts(design), folder)
        stack.callback(recorder.close)
        machine = Coordinator(roster)

        def observe(kind: str, values: Mapping[str, Any]) -> None:
            seen.add(kind)
            if kind == "joined":
                hosts[values["stage"]] = values["host"]
            recorder.record(kind, values)
            for observer in observers:
                observer(design, recorder, kind, values)

        bound = {"address": transport.address, "launched": launch is not None}
        observe("bound", {"time_s": time.monotonic(), **bound})
        coordinate(machine, transport, observe, launch)
    summary = recorder.summary(machine.train_s)
    if folder is not None:
        write_summary(folder, summary)
        _check_weights(folder / "final", roster, hosts)
    return summary


@contextmanager
def _new_folder(out: Path, chosen: config.Experiment, seen: Container[str]) -> Iterator[Path]:
    """The folder of a run; gone again where the run fails before it starts to train."""
    made = not os.path.exists(out)
    folder = create_folder(out, chosen)
    try:
        yield folder
    except BaseException as error:
        has_traceback = bool(getattr(error, "__notes__", ()))  # a bug: its logs are worth keeping
        if "start" not in seen and not has_traceback:
            discard_folder(folder, made=made)
        raise


def _check_weights(folder: Path, roster: Roster, hosts: Mapping[str, str]) -> None:
    """Raises `CheckpointError` for weights that are not on this host."""
    missing = [
        f"{stage} (written on {hosts[worker]} as {folder / stage}.safetensors)"
        for worker, stages in roster.members.items()
        for stage in stages
        if not (folder / f"{stage}.safetensors").is_file()
    ]
    if missing:
        raise CheckpointError(
            f"{folder} lacks the weights of {', '.join(missing)}: each worker writes to its own "
            "host; copy the files from there, or use a folder that all hosts share"
        )


def _facts(design: Design) -> dict[str, Any]:
    chosen = design.experiment
    return {
        "schedule": str(chosen.schedule.__struct_config__.tag),
        "seed": chosen.run.seed,
        "batch_size": chosen.data.batch_size,
        "epochs": chosen.run.epochs,
        "threads": chosen.run.threads,
        "data": msgspec.to_builtins(design.meta),
    }


def _resolve(
    source: config.Experiment | Mapping[str, Any] | str | Path,
    schedule: str | None,
    seed: int | None,
    changes: Sequence[str],
) -> config.Experiment:
    if isinstance(source, str | Path):
        return experiment.load(source, changes, schedule=schedule, seed=seed)
    tables = experiment.tables(source) if isinstance(source, config.Experiment) else source
    return experiment.change(tables, changes, schedule=schedule, seed=seed)


def _save_arrays(data: Mapping[str, ArrayLike], path: Path) -> None:
    expected = {"x_train", "y_train", "x_test", "y_test"}
    if set(data) != expected:
        raise ConfigError(f"data has {sorted(data)}, expected {sorted(expected)}")
    np.savez(path, allow_pickle=False, **{name: np.asarray(a) for name, a in data.items()})


def _npz(path: Path, like: config.Data) -> config.Npz:
    return config.Npz(path=str(path), batch_size=like.batch_size, validation=like.validation)


def _design_of_arrays(
    chosen: config.Experiment, arrays: Path, folder: Path, allow_import: bool
) -> Design:
    """The arrays are at `arrays` still, and will be in the folder of the run."""
    meta = describe(_npz(arrays, chosen.data))
    return make_design(
        _with_arrays(chosen, folder.resolve() / ARRAYS), meta, allow_import=allow_import
    )


def _with_arrays(chosen: config.Experiment, path: Path) -> config.Experiment:
    changed = msgspec.structs.replace(chosen, data=_npz(path, chosen.data))
    return experiment.parse(experiment.tables(changed))


def _move(source: Path, target: Path) -> None:
    try:
        shutil.move(source, target)
    except OSError as error:
        raise CheckpointError(f"can't write {target}: {error.strerror}") from error
