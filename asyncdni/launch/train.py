"""Train a network: the coordinator runs in this process, each worker in one of its own.

The command line and `import asyncdni` share the function `train`.
"""

from __future__ import annotations

import atexit
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from asyncdni import config, experiment
from asyncdni.data import identify, npz
from asyncdni.data.base import ARRAYS as NAMES
from asyncdni.data.checks import as_numbers
from asyncdni.data.derived import Reconstruction
from asyncdni.data.meta import Array
from asyncdni.errors import CheckpointError, ConfigError, Interrupted
from asyncdni.handover import Handover
from asyncdni.imports import Allowed, allowing, as_allowed, check_may_train
from asyncdni.launch.callbacks import Callback
from asyncdni.launch.conduct import Observer, check_host, conduct
from asyncdni.launch.local import LocalLauncher, worker_command
from asyncdni.launch.model import ModuleOptions, check_no_options, given_model, is_model
from asyncdni.nn.metrics import metric_objects, object_name
from asyncdni.plan.build import Design, check_targets, make_design, worker_libraries
from asyncdni.report.tensorboard import EventFiles
from asyncdni.report.traces import merged_at_end
from asyncdni.store.given import begin_with
from asyncdni.store.mirror import run_here
from asyncdni.store.resume import changed_experiment, is_complete
from asyncdni.store.run import ARRAYS, Result, load_weights, open_run
from asyncdni.wire.address import holds_sockets, private_folder

if TYPE_CHECKING:
    from torch.nn import Module

    from asyncdni.launch.display import Display

__all__ = ["Observer", "conduct", "design_of", "design_of_arrays", "move_arrays", "train"]

#: An experiment, its tables or its file; None: that of a run which is resumed.
_Source = config.Experiment | Mapping[str, Any] | str | Path | None

# --- arrays given in place of a data set ---------------------------------------------------------


def design_of_arrays(
    chosen: config.Experiment,
    data: Mapping[str, ArrayLike],
    arrays: Path,
    folder: Path,
    *,
    allow_import: Allowed,
) -> Design:
    """Check `data`, write it to `arrays`, and make the run's design.

    The file is later moved to the run's folder, as `data.npz`. Raises `ConfigError` unless the
    arrays are x_train, y_train, x_test and y_test, `DataError` for what can't be trained on, and
    `CheckpointError` if `arrays` can't be written.
    """
    given = _given(data)
    changed = msgspec.structs.replace(chosen, data=_npz(folder.resolve() / ARRAYS, chosen.data))
    parsed = experiment.parse(experiment.tables(changed))
    assert isinstance(parsed.data, config.Npz)
    found = npz.dataset("data", given, parsed.data.targets)
    found.validate()
    _save(arrays, given)
    meta = identify(msgspec.structs.replace(parsed.data, path=str(arrays)))
    design = make_design(parsed, meta, allow_import=allow_import)
    to_itself = parsed.data.targets == "inputs"
    check_targets(design, (Reconstruction(found) if to_itself else found).targets())
    return design


def move_arrays(source: Path, target: Path) -> None:
    """Move the file of arrays. Raises `CheckpointError`."""
    try:
        shutil.move(source, target)
    except OSError as error:
        raise CheckpointError(f"can't write {target}: {error.strerror}") from error


def _save(path: Path, arrays: Mapping[str, Array]) -> None:
    try:
        np.savez(path, allow_pickle=False, **arrays)
    except OSError as error:
        raise CheckpointError(f"can't write {path}: {error.strerror or error}") from error


def _given(data: Mapping[str, ArrayLike]) -> dict[str, Array]:
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"data is a {type(data).__name__}, expected a dict of the arrays {', '.join(NAMES)}"
        )
    if set(data) != set(NAMES):
        raise ConfigError(f"data has {sorted(map(str, data))}, expected {sorted(NAMES)}")
    # In C order, so that rows can be read one by one.
    return {name: np.ascontiguousarray(as_numbers("data", name, data[name])) for name in NAMES}


def _npz(path: Path, like: config.Data) -> config.Npz:
    """Describe the arrays as an npz data set; settings of `like`, of any kind, are taken over.

    Its target "labels" is not, unless `like` is an npz data set itself.
    """
    targets: config.NpzTargets = "auto"
    if isinstance(like, config.Npz):
        targets = like.targets
    elif getattr(like, "targets", "") == "inputs":
        targets = "inputs"
    return config.Npz(
        path=str(path),
        batch_size=like.batch_size,
        validation=like.validation,
        targets=targets,
    )


def train(
    source: _Source | Module = None,
    *,
    schedule: str | None = None,
    seed: int | None = None,
    set: Sequence[str] = (),
    data: Mapping[str, ArrayLike] | tuple[Any, Any] | None = None,
    out: str | Path | None = None,
    init: str | Path | Mapping[str, ArrayLike] | None = None,
    resume: str | Path | None = None,
    observers: Sequence[Observer] = (),
    callbacks: Sequence[Callback | Any] = (),
    progress: bool = True,
    trace: bool = False,
    tensorboard: bool = False,
    metrics: Mapping[str, Callable[[Array, Array], float]] | Sequence[str] | None = None,
    allow_import: bool | str | Sequence[str] = False,
    **module: Unpack[ModuleOptions],
) -> Result:
    """Train a network, one worker process a stage, and return weights, history and summary.

    Args:
        source: an experiment, its tables, or the path of an experiment file; or a module of
            PyTorch, which is cut into stages and itself stays as it is: see `Result.load_into`.
        schedule: a schedule in place of that of `source`, by its name.
        seed: a seed in place of that of `source`.
        set: changes to a file, such as "run.epochs=3", as on the command line.
        data: arrays x_train, y_train, x_test, y_test to train on, instead of the experiment's data;
            kept as DIR/data.npz. For a module also (training set, test set) of PyTorch.
        out: folder to write the run to, new or empty; None: keep nothing on disk.
        init: weights to begin with, in place of `run.init`: a path as there, or arrays
            "STAGE.0.weight" such as `Result.weights`; kept as DIR/init.
        resume: the folder of a run that goes on, in place of `source`, `data`, `init` and `out`:
            from its newest whole checkpoint, or newer snapshots. One that is complete is only read.
            Of a run at a URL (`run.store`) a copy goes on, in a new folder in runs/.
        observers: called with every record while the run goes on.
        callbacks: objects with methods such as `on_evaluation`: see `asyncdni.Callback`.
        progress: show the run while it goes on, where standard output is a terminal or a notebook.
        trace: write every op, message and wait of all workers to DIR/trace.json (for
            https://ui.perfetto.dev), and each worker's own to DIR/trace.
        tensorboard: write event files to DIR/tensorboard; needs the extra of that name, and `out`.
        metrics: names of metrics of the test set, in place of `run.metrics`; or {name: function},
            each of which maps arrays, outputs (N, K) and targets (N,) or (N, K), to their mean.
        allow_import: let workers import what the experiment names as "module:Class": all of it, or
            what is of modules whose names begin so (["mymodels"]).
        module: for a module of PyTorch loss, stages, optimizer, …: see `ModuleOptions`.

    A stop (Ctrl-C, SIGTERM, SIGHUP, an exception of a callback or observer, in a thread the
    program's end) lets the current update end and saves all; a second one ends the run at once.

    Raises:
        AsyncDNIError: one of its classes; whatever ends a run names its place and its cure.
        KeyboardInterrupt: after a stop, with what is kept; see its cause, `errors.Interrupted`.
    """
    check_may_train()
    given = {"source": source, "schedule": schedule, "seed": seed, "data": data, "out": out}
    with ExitStack() as stack:
        if resume is None:
            job = _new_job(stack, set, module, **given, init=init, metrics=metrics)
        else:
            resume = run_here(resume)
            job = _resumed_job(resume, set, **given, init=init, metrics=metrics)
            if is_complete(resume, job.experiment):
                return open_run(resume)
        ways = {"progress": progress, "trace": trace, "tensorboard": tensorboard}
        return _trained(stack, job, observers, callbacks, as_allowed(allow_import), **ways)


@dataclass(frozen=True)
class _Job:
    """What is to be trained: see `train`."""

    experiment: config.Experiment
    data: Any = None
    init: str | Path | Mapping[str, ArrayLike] | None = None
    out: str | Path | None = None
    handover: Handover | None = None
    resumed: bool = False  # the run in `out` goes on

    @property
    def arrays(self) -> Mapping[str, ArrayLike] | None:
        """The arrays to train on, where such were given in place of a data set."""
        return self.data if isinstance(self.data, Mapping) else None


def _new_job(
    stack: ExitStack,
    changes: Sequence[str],
    options: ModuleOptions,
    *,
    source: Any,
    schedule: Any,
    seed: Any,
    data: Any,
    out: Any,
    init: Any,
    metrics: Any,
) -> _Job:
    """What a run is to do that begins, as `train` was told."""
    described, handover = _described(stack, source, data, options, metrics)
    changes = [*changes, *_init_setting(init), *_metrics_setting(metrics, handover)]
    return _Job(_resolve(described, schedule, seed, changes), data, init, out, handover)


def _resumed_job(folder: str | Path, changes: Sequence[str], **given: object) -> _Job:
    """What the run in `folder` has still to do. Raises `ConfigError` for anything in `given`, which
    a run that goes on has already."""
    _check_alone(**given)
    return _Job(changed_experiment(Path(folder), changes), out=folder, resumed=True)


def _described(
    stack: ExitStack,
    source: _Source | Module,
    data: object,
    options: ModuleOptions,
    metrics: Mapping[str, object] | Sequence[str] | None,
) -> tuple[_Source, Handover | None]:
    """An experiment as it is, or that of a module, with what its workers are handed: the model and
    its data sets, functions that are metrics, or nothing."""
    objects = metric_objects(metrics) if isinstance(metrics, Mapping) else {}
    if is_model(source):
        tables, handover = given_model(source, data, options, objects)
        stack.callback(handover.close)
        return tables, handover
    check_no_options(options, data)
    if not objects:
        return cast(_Source, source), None
    handover = Handover(objects, {})
    stack.callback(handover.close)
    return cast(_Source, source), handover


def _metrics_setting(
    metrics: Mapping[str, object] | Sequence[str] | None, handover: Handover | None
) -> list[str]:
    """Return `metrics` as a setting; functions are named as they are handed over."""
    if metrics is None:
        return []
    texts = [metrics] if isinstance(metrics, str) else list(metrics)
    if isinstance(metrics, Mapping) and handover is not None:
        texts = [handover.name_of(object_name(name)) for name in metrics]
    return [f"run.metrics={json.dumps(texts)}"]


def _trained(
    stack: ExitStack,
    job: _Job,
    observers: Sequence[Observer],
    callbacks: Sequence[Any],
    allow_import: Allowed,
    *,
    progress: bool,
    trace: bool,
    tensorboard: bool,
) -> Result:
    stack.enter_context(_raising_keyboard_interrupt())
    stack.enter_context(_awaited_at_exit())
    kept, arrays = job.out, job.arrays
    scratch, sockets = _own_folders(stack, files=kept is None or arrays is not None)
    folder = Path(scratch / "run" if kept is None else kept)
    place = scratch / ARRAYS if arrays is not None else None
    design = _design(job.experiment, arrays, place, folder, allow_import)
    design = design if job.resumed else begin_with(design, _arrays_of(job.init))
    files = _extra_files(stack, design, kept, trace=trace, tensorboard=tensorboard)
    launch = _launch(stack, design, folder, place, job.handover)
    displays = _displays(stack) if progress else []
    bind, heard = f"ipc://{sockets / 'coordinator'}", [*observers, *files, *displays]
    ways = {"launch": launch, "trace": trace, "resume": job.resumed, "callbacks": callbacks}
    result = _run_to_end(design, bind, folder, keep=kept is not None, observers=heard, **ways)
    for display in displays:
        display.finish(result.summary, result.folder)
    return replace(result, given=job.handover)


def _displays(stack: ExitStack) -> list[Display]:
    """The display of a run: none where standard output is neither a terminal nor a notebook, nor
    for runs in threads, which would write over each other."""
    out, thread = sys.stdout, threading.current_thread()
    shown = out is not None and (out.isatty() or "ipykernel" in sys.modules)
    if not shown or thread is not threading.main_thread():
        return []
    from asyncdni.launch.display import make_display  # takes a while to import

    return [stack.enter_context(make_display(quiet=False))]


def _extra_files(
    stack: ExitStack, design: Design, kept: str | Path | None, *, trace: bool, tensorboard: bool
) -> list[Observer]:
    """Arrange for the extra files that were asked for; return those of their writers that need
    records."""
    if trace and kept is not None:  # merged once the launcher has waited for the workers to end
        stack.enter_context(merged_at_end(Path(kept), _workers(design)))
    return [stack.enter_context(_event_files(kept))] if tensorboard else []


def _run_to_end(design: Design, bind: str, folder: Path, *, keep: bool, **options: Any) -> Result:
    """Carry out the run and return its result; for `options` see `conduct`."""
    try:
        summary = conduct(design, bind, folder, keep=keep, **options)
    except Interrupted as stop:
        if stop.orderly and not keep and stop.summary is not None:
            stop.result = _result(design, stop.summary, folder, kept=False)
        raise
    return _result(design, summary, folder, kept=keep)


@contextmanager
def _awaited_at_exit() -> Iterator[None]:
    """Make a program that ends wait until the run in one of its threads has stopped."""
    if threading.current_thread() is threading.main_thread():
        yield
        return
    done = threading.Event()
    atexit.register(done.wait)
    try:
        yield
    finally:
        atexit.unregister(done.wait)
        done.set()


@contextmanager
def _raising_keyboard_interrupt() -> Iterator[None]:
    """Turn a stop into `KeyboardInterrupt`, which `except Exception` does not catch, so that loops
    around a run end too."""
    try:
        yield
    except Interrupted as stop:
        hint = "; the run so far is in __cause__.result" if stop.result is not None else ""
        raise KeyboardInterrupt(f"{stop}{hint}") from stop


def design_of(chosen: config.Experiment, *, allow_import: Allowed = False) -> Design:
    """Lay out the experiment over its data set. Raises `ConfigError` and `DataError`."""
    with allowing(allow_import):
        meta = identify(chosen.data)
    return make_design(chosen, meta, allow_import=allow_import)


def _own_folders(stack: ExitStack, *, files: bool) -> tuple[Path, Path]:
    """Make private folders for files, if there will be any, and for sockets; the same one if
    possible."""
    scratch = stack.enter_context(private_folder(sockets=not files))
    if holds_sockets(scratch):
        return scratch, scratch
    return scratch, stack.enter_context(private_folder())


def _result(design: Design, summary: dict[str, Any], folder: Path, *, kept: bool) -> Result:
    weights = load_weights(folder / "final", design.experiment)
    where = folder.resolve() if kept else None
    return Result(summary, weights, design.experiment, design.meta, where)


def _check_alone(**given: object) -> None:
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise ConfigError(
            f"resume: a run goes on as it was, in its own folder, so {' and '.join(names)} can't "
            "be given; for changes that may be made to it use set"
        )


def _init_setting(init: object) -> list[str]:
    """Return `init` as settings. They clear the source's digests, which belong to other weights."""
    path = [f"run.init={json.dumps(str(init))}"] if isinstance(init, str | Path) else []
    return path if init is None else [*path, "run.init_sha256={}"]


def _arrays_of(init: object) -> Mapping[str, ArrayLike] | None:
    return init if isinstance(init, Mapping) else None


def _design(
    chosen: config.Experiment,
    data: Mapping[str, ArrayLike] | None,
    arrays: Path | None,
    folder: Path,
    allow_import: Allowed,
) -> Design:
    if data is None or arrays is None:
        return design_of(chosen, allow_import=allow_import)
    return design_of_arrays(chosen, data, arrays, folder, allow_import=allow_import)


def _launch(
    stack: ExitStack,
    design: Design,
    folder: Path,
    arrays: Path | None,
    handover: Handover | None,
) -> Callable[[str], LocalLauncher]:
    """Return a function that starts the workers once the run's folder is made, and moves `arrays`
    there. Raises `ConfigError` if this machine can't hold the workers."""
    check_host(design)
    launcher = stack.enter_context(
        LocalLauncher(
            folder / "logs",
            design.experiment.run.threads,
            handover,
            libraries=worker_libraries(design),
        )
    )

    def launch(address: str) -> LocalLauncher:
        if arrays is not None:
            move_arrays(arrays, folder / ARRAYS)
        launcher.start(_worker_commands(design, address))
        return launcher

    return launch


def _workers(design: Design) -> list[str]:
    return [group.name for group in design.plan.groups]


def _worker_commands(design: Design, address: str) -> dict[str, Sequence[str]]:
    return {
        name: worker_command(name, address, allow_import=design.allow_import)
        for name in _workers(design)
    }


def _event_files(folder: str | Path | None) -> EventFiles:
    if folder is None:
        raise ConfigError("tensorboard: event files need a run folder to be kept in, give out=DIR")
    return EventFiles(Path(folder))


def _resolve(
    source: _Source,
    schedule: str | None,
    seed: int | None,
    changes: Sequence[str],
) -> config.Experiment:
    if source is None:
        raise ConfigError("train: expected an experiment, or resume=DIR")
    if isinstance(source, str | Path):
        return experiment.load(source, changes, schedule=schedule, seed=seed)
    tables = experiment.tables(source) if isinstance(source, config.Experiment) else source
    return experiment.change(tables, changes, schedule=schedule, seed=seed)
