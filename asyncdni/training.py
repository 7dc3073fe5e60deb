"""Train: the coordinator in this process, a worker process a stage on this machine.

`train` is what the command line calls, and what `import asyncdni` offers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from asyncdni import config, experiment
from asyncdni.build import Design, make_design, make_roster
from asyncdni.core.coordinator import Coordinator
from asyncdni.datasets import describe
from asyncdni.errors import ConfigError
from asyncdni.launchers.local import LocalLauncher, worker_command
from asyncdni.metrics.recorder import Recorder
from asyncdni.run import Result, create_folder, keep_arrays, load_weights, write_summary
from asyncdni.runtime.coordinate import Launcher, coordinate
from asyncdni.transports.address import private_folder
from asyncdni.transports.zeromq import CoordinatorTransport

__all__ = ["Observer", "conduct", "design_of", "train"]

#: Called with each record of the coordinator; see `metrics.recorder`.
Observer = Callable[[Design, Recorder, str, Mapping[str, Any]], None]

_LINGER_S = 0.5


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
        trace: write when each op ran to DIR/trace.
        allow_import: let workers import the layers that the experiment names as "module:Class".

    Raises:
        AsyncDNIError: one of its classes; whatever ends a run names its place and its cure.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(private_folder()))
        chosen = _resolve(source, schedule, seed, set)
        if data is not None:
            chosen = _with_arrays(chosen, data, scratch)
        design = design_of(chosen, allow_import=allow_import)
        folder = Path(out) if out is not None else scratch / "run"
        launcher = stack.enter_context(LocalLauncher(folder / "logs", chosen.run.threads))

        def launch(address: str) -> LocalLauncher:
            launcher.start(
                {
                    group.name: worker_command(group.name, address, allow_import=allow_import)
                    for group in design.plan.groups
                }
            )
            return launcher

        bind = f"ipc://{scratch / 'coordinator'}"
        summary = conduct(design, bind, folder, launch=launch, observers=observers, trace=trace)
        weights = load_weights(folder / "final", chosen)
        if data is not None and out is not None:
            chosen = keep_arrays(folder, chosen)
        return Result(summary, weights, chosen, folder.resolve() if out is not None else None)


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

    `out` is the folder of the run, made once the address is bound; None: nothing is written.
    `launch` starts the workers once the address is known; without it they are started by hand.
    """
    chosen = design.experiment
    with ExitStack() as stack:
        transport = CoordinatorTransport(bind, chosen.limits)
        stack.callback(transport.close, _LINGER_S)
        folder = create_folder(out, chosen) if out is not None else None
        roster = make_roster(design, folder=str(folder) if folder else "", trace=trace)
        recorder = Recorder(roster.workers, _facts(chosen), folder)
        stack.callback(recorder.close)
        machine = Coordinator(roster)

        def observe(kind: str, values: Mapping[str, Any]) -> None:
            recorder.record(kind, values)
            for observer in observers:
                observer(design, recorder, kind, values)

        bound = {"address": transport.address, "launched": launch is not None}
        observe("bound", {"time_s": time.monotonic(), **bound})
        coordinate(machine, transport, observe, launch)
    summary = recorder.summary(machine.train_s)
    if folder is not None:
        write_summary(folder, summary)
    return summary


def _facts(chosen: config.Experiment) -> dict[str, Any]:
    return {
        "schedule": str(chosen.schedule.__struct_config__.tag),
        "seed": chosen.run.seed,
        "batch_size": chosen.data.batch_size,
        "epochs": chosen.run.epochs,
        "threads": chosen.run.threads,
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


def _with_arrays(
    chosen: config.Experiment, data: Mapping[str, ArrayLike], scratch: Path
) -> config.Experiment:
    expected = {"x_train", "y_train", "x_test", "y_test"}
    if set(data) != expected:
        raise ConfigError(f"data has {sorted(data)}, expected {sorted(expected)}")
    path = scratch / "data.npz"
    np.savez(path, allow_pickle=False, **{name: np.asarray(a) for name, a in data.items()})
    changed = {"name": "npz", "path": str(path), "batch_size": chosen.data.batch_size}
    return experiment.parse({**experiment.tables(chosen), "data": changed})
