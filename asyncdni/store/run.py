"""A run folder: what training writes, and what evaluation, prediction and users read.

```
DIR/experiment.toml   the resolved experiment        DIR/final/STAGE.safetensors   the last weights
DIR/metrics.jsonl     one record a line              DIR/best/STAGE.safetensors    the best ones
                                                     … and a manifest.json with their checksums
DIR/summary.json      the run in numbers             DIR/logs/WORKER.log           what workers said
```

Of a run that may have to go on: `checkpoints/NUMBER` with the state of all stages and a manifest,
`snapshots/STAGE.safetensors` with that of each by itself (see `checkpoint`), and while a
coordinator has the folder, `lock`, `owners` (see `store.claims`) and `reports.jsonl` (see
`report.records`).
`data.json` says what is known of the data: shapes, kind and range of inputs, checksums, and where
they lie as seen from here. So a run that was interrupted can be read without them, other samples
are not taken for them, and a folder that has moved together with its data still finds them.
`data.npz` is there as well if the caller of `train` gave arrays, and after `--init` a copy of the
weights that it has begun with, `init/STAGE.safetensors`; after `--trace` so are
`trace/WORKER.npz`, and `trace.json` for Perfetto; after `--tensorboard` the event files of
`tensorboard`; and `model.safetensors`, the last weights by their names in PyTorch, where the
network has modules of it.
`summary.json` is written last: a folder without one holds a run that did not finish.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from asyncdni import config, experiment
from asyncdni.data import checksums, identify
from asyncdni.data.meta import Meta, other_parts
from asyncdni.errors import CheckpointError, ConfigError, DataError
from asyncdni.files import read_file
from asyncdni.store.checkpoint import latest
from asyncdni.store.claims import OWNERS
from asyncdni.store.manifest import WeightsManifest, compare, identity
from asyncdni.store.names import has_modules, named_weights
from asyncdni.store.tensors import encoded, write_atomically
from asyncdni.store.weights import read_weights, settle_weights

__all__ = [
    "ARRAYS",
    "CHECKPOINTS",
    "DATA",
    "EXPERIMENT",
    "INIT",
    "METRICS",
    "MODEL",
    "SNAPSHOTS",
    "SUMMARY",
    "Result",
    "by_stage",
    "create_folder",
    "discard_folder",
    "known_data",
    "load_experiment",
    "load_weights",
    "open_run",
    "reopen_folder",
    "write_data",
    "write_model",
    "write_summary",
]

#: The experiment with all its defaults, the summary, and the records of the coordinator.
EXPERIMENT = "experiment.toml"
SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
REPORTS = "reports.jsonl"
DATA = "data.json"
_LOGS = "logs"
#: Weights that are kept, by name.
_WEIGHTS = ("final", "best")
#: Folders of states that belong to a run; `messages.Rejoin` names them so too.
CHECKPOINTS = "checkpoints"
SNAPSHOTS = "snapshots"
#: The arrays of a run that was given them as such.
ARRAYS = "data.npz"
#: The weights that it was given to begin with: see `given`.
INIT = "init"
#: The last weights of a network with modules of PyTorch, as PyTorch names them.
MODEL = "model.safetensors"


@dataclass(frozen=True)
class Result:
    """A run that has been trained."""

    #: Everything in `summary.json`: schedule, seed, samples_per_s, history, stages, …
    summary: dict[str, Any] = field(repr=False)
    #: Final weights and running statistics, `"stage.0.weight"`, as `torch.nn` would name them, but
    #: for recurrent layers: see `named_weights`.
    weights: dict[str, NDArray[Any]] = field(repr=False)
    experiment: config.Experiment = field(repr=False)
    #: What the network fits: `predict` needs no more of the data set.
    meta: Meta = field(repr=False)
    folder: Path | None = None  # None: nothing was kept on disk
    #: What keeps the model and data sets that `train` was given as objects, if it was.
    given: object = field(default=None, repr=False, compare=False)

    def save(self, path: str | Path) -> None:
        """Write all weights to one safetensors file, "STAGE.0.weight": for `--init`. For
        `load_state_dict` of PyTorch see `save_model`. Raises `CheckpointError`."""
        write_atomically(Path(path), encoded(self.weights))

    def save_model(self, path: str | Path) -> None:
        """Write the weights to one safetensors file with the names of `state_dict`. Raises
        `CheckpointError`, and `ConfigError` as `named_weights`."""
        write_atomically(Path(path), encoded(self.named_weights()))

    def state_dict(self) -> dict[str, Any]:
        """The weights as tensors of PyTorch, by the names of `named_weights`: for
        `load_state_dict`."""
        import torch

        return {
            name: torch.from_numpy(array.copy()) for name, array in self.named_weights().items()
        }

    def load_into(self, model: Any) -> None:
        """Load the weights into a module of PyTorch, such as the one that was given to `train`.

        Raises `ConfigError` where it has other names or shapes. What its forward does not use is
        not part of the run, and stays as it is."""
        try:
            others = model.load_state_dict(self.state_dict(), strict=False).unexpected_keys
        except RuntimeError as error:
            raise ConfigError(f"the weights do not fit the model: {error}") from error
        if others:
            raise ConfigError(
                f"the weights do not fit the model: it has no {', '.join(others[:5])}"
                f"{f' and {len(others) - 5} more' if len(others) > 5 else ''}"
            )

    def named_weights(self) -> dict[str, NDArray[Any]]:
        """The weights by the names of the module that was cut into stages; of a chain of other
        layers, by those of an equal `nn.Sequential`, whose layers are all counted. Recurrent layers
        have the names of `nn.LSTM` and `nn.RNN`, with a second bias of zeros.

        Raises `ConfigError` for a network that is no chain."""
        return named_weights(self.experiment, self.weights, self.summary)

    def __repr__(self) -> str:
        schedule, accuracy = self.summary.get("schedule"), self.test_accuracy
        shown = "unknown" if accuracy is None else f"{accuracy:.4f}"
        return f"Result(schedule={schedule!r}, test_accuracy={shown}, folder={self.folder})"

    def plot(self) -> Any:
        """Draw loss and accuracy over samples.

        Returns a `report.plots.Plot`, which notebooks show and `save("FILE.png")` writes. Raises
        `ConfigError` without the extra `plot`."""
        from asyncdni.report.result import plot_run

        return plot_run(self)

    def timeline(self, ms: float = 20.0, *, at: float = 0.5, messages: bool = False) -> Any:
        """Draw which op each worker ran when, in `ms` milliseconds of a run with `trace=True` that
        begin at the fraction `at` of it; `messages` adds a line for each activation and gradient.

        Returns a `report.timeline.Drawing`, which notebooks show and `save("FILE.svg")` writes.
        Raises `ConfigError` for a run that has kept no trace."""
        from asyncdni.report.result import draw_timeline

        return draw_timeline(self, ms / 1e3, at=at, messages=messages)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: figures, curves, evaluations and stages."""
        from asyncdni.report.result import run_html

        return run_html(self)

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry an evaluation: batches, samples, train_s (training time alone), accuracy and
        loss of the test set, metrics where the run has some; and since the evaluation before
        train_loss (the mean), samples_per_s, and the learning_rate that was reached."""
        history: list[dict[str, Any]] = self.summary["history"]
        return history

    @property
    def test_accuracy(self) -> float | None:
        """The accuracy of the final weights, from 0 to 1; None where no loss has right answers."""
        accuracy: float | None = self.summary["test_accuracy"]
        return accuracy

    @property
    def test_metrics(self) -> dict[str, float | None]:
        """The values of `run.metrics` for the final weights, by name; None: not a finite number."""
        return dict(self.summary.get("test_metrics", {}))


def create_folder(path: Path, tables: config.Experiment) -> Path:
    """Make the folder of a new run and write its experiment there.

    Raises `ConfigError` for one that holds anything, or can't be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()) or not _made(path / _LOGS):
            raise ConfigError(
                f"--out {path}: the folder is not empty; expected a new or an empty one, "
                "so that no earlier run is lost"
            )
        _write_experiment(path, tables)
    except OSError as error:
        raise ConfigError(f"--out {path}: can't be written: {error.strerror}") from error
    except CheckpointError as error:
        raise ConfigError(f"--out {path}: {error}") from error
    return path.resolve()


def _made(folder: Path) -> bool:
    """Whether this process has; of several that begin a run there in the same moment one will."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def reopen_folder(folder: Path, tables: config.Experiment) -> Path:
    """The folder of a run that is taken up again, with this experiment; it is not finished any
    more. Raises `CheckpointError`."""
    for tag in _WEIGHTS:
        settle_weights(folder / tag)
    _write_experiment(folder, tables)
    try:
        for name in (SUMMARY, MODEL):
            (folder / name).unlink(missing_ok=True)
        (folder / _LOGS).mkdir(exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} can't be written: {error.strerror}") from error
    return folder.resolve()


def discard_folder(folder: Path, *, made: bool) -> None:
    """Take back what a run has written before it began to train.

    Nothing else is touched; the folder itself goes too if the run has `made` it.
    """
    with contextlib.suppress(OSError):
        for name in (EXPERIMENT, METRICS, REPORTS, DATA, ARRAYS):
            (folder / name).unlink(missing_ok=True)
        for name in (_LOGS, CHECKPOINTS, SNAPSHOTS, OWNERS, INIT):
            shutil.rmtree(folder / name, ignore_errors=True)
        if made:
            folder.rmdir()


def write_data(folder: Path, chosen: config.Experiment, meta: Meta) -> None:
    """Note what is known of the data of the run. Raises `CheckpointError`."""
    path = getattr(chosen.data, "path", "")
    content = {"meta": msgspec.to_builtins(meta)}
    if path:
        with contextlib.suppress(ValueError):  # on another drive there is no such path
            content["path_from_here"] = os.path.relpath(path, folder.resolve())
    write_atomically(folder / DATA, (json.dumps(content, indent=2) + "\n").encode())


def known_data(folder: Path) -> Meta | None:
    """What a run knows of its data; None for a folder of an earlier version without a summary.

    Raises `CheckpointError`."""
    for name, key in ((DATA, "meta"), (SUMMARY, "data")):
        found = _read_json(folder / name)
        if key in found:
            try:
                return msgspec.convert(found[key], Meta)
            except msgspec.ValidationError as error:
                raise CheckpointError(f"{folder / name}: {key}: {error}") from error
    return None


def load_experiment(folder: Path) -> config.Experiment:
    """The experiment of the run in `folder`; its data are found again where the folder, or what it
    lies in, has been moved, renamed or copied.

    Raises `CheckpointError` for a folder without a run, and `ConfigError` as `experiment.load`.
    """
    if not (folder / EXPERIMENT).is_file():
        raise CheckpointError(f"{folder} is no run folder: it has no {EXPERIMENT}")
    chosen = experiment.load(folder / EXPERIMENT)
    path = getattr(chosen.data, "path", "")
    if not path:
        return chosen
    own, beside = folder / ARRAYS, _read_json(folder / DATA).get("path_from_here")
    # Runs of earlier versions say where they were made.
    at_first = [own] if beside is None and Path(path).name == ARRAYS else []
    then = [folder / beside] if isinstance(beside, str) else []
    there = [os.path.abspath(p) for p in (*at_first, path, *then) if os.path.exists(p)]
    found = [
        msgspec.structs.replace(chosen.data, path=place) for place in dict.fromkeys(there)
    ] or [chosen.data]
    if len(found) > 1:
        known = known_data(folder)
        found.sort(key=lambda data: known is not None and _differs(known, data))
    return msgspec.structs.replace(chosen, data=found[0])


def _differs(known: Meta, data: config.Data) -> bool:
    try:
        return bool(other_parts(known.checksums, checksums(data)))
    except DataError:
        return True


def _read_json(path: Path) -> dict[str, Any]:
    """Empty for a file that is not there. Raises `CheckpointError`."""
    try:
        found = json.loads(read_file(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} can't be read: it holds no table")
    return found


def _write_experiment(folder: Path, chosen: config.Experiment) -> None:
    """Data that lie in the folder are named as seen from there."""
    path = getattr(chosen.data, "path", "")
    if path and Path(path).is_relative_to(folder.resolve()):
        inside = str(Path(path).relative_to(folder.resolve()))
        data = msgspec.structs.replace(chosen.data, path=inside)
        chosen = msgspec.structs.replace(chosen, data=data)
    write_atomically(folder / EXPERIMENT, experiment.dumps(chosen).encode())


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """The last file of a run."""
    write_atomically(folder / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())


def write_model(folder: Path, chosen: config.Experiment, summary: Mapping[str, Any]) -> None:
    """Write `model.safetensors`, where the network has modules of PyTorch and its layers have names
    there. Raises `CheckpointError`."""
    if has_modules(chosen):
        with contextlib.suppress(ConfigError):  # a network that is no chain
            named = named_weights(chosen, load_weights(folder / "final", chosen), summary)
            write_atomically(folder / MODEL, encoded(named))


def open_run(folder: str | Path, weights: str = "final") -> Result:
    """A run from its folder; `weights` is "final" or "best".

    Raises `CheckpointError` for a folder without a whole run.
    """
    folder = Path(folder)
    found = load_experiment(folder)
    # Interrupted: weights may be here.
    summary = _read_json(folder / SUMMARY) or {"history": [], "test_accuracy": None}
    loaded, manifest = _checked_weights(folder, weights, found)
    meta = known_data(folder) or identify(found.data)
    if manifest is not None:
        _check_belongs(folder, manifest, identity(found, meta))
    return Result(summary, loaded, found, meta, folder)


def load_weights(folder: Path, found: config.Experiment) -> dict[str, NDArray[Any]]:
    """All stages' arrays, `"stage.0.weight"`. Raises `CheckpointError` for any that is missing or
    damaged, and names what is whole in its place."""
    return _checked_weights(folder.parent, folder.name, found)[0]


def _checked_weights(
    folder: Path, tag: str, found: config.Experiment
) -> tuple[dict[str, NDArray[Any]], WeightsManifest | None]:
    names = [stage.name for stage in found.stages]
    try:
        state, manifest = read_weights(folder / tag, names)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_in_its_place(folder, tag, names)}") from error
    arrays = {f"{name}.{key}": one for name in names for key, one in state[name].items()}
    return arrays, manifest


def _in_its_place(folder: Path, tag: str, names: list[str]) -> str:
    """What can be used where the weights `tag` can't."""
    for other in _WEIGHTS:
        with contextlib.suppress(CheckpointError):
            if other != tag and read_weights(folder / other, names)[1] is not None:
                return f"; its {other} weights are whole: use those (--weights {other})"
    with contextlib.suppress(CheckpointError):
        newest, _ = latest(folder / CHECKPOINTS)
        if newest is not None and tag == "final":
            return (
                f"; checkpoint {newest.number} is whole: `asyncdni train --resume {folder}` goes "
                "on from there and writes them again"
            )
    return ""


def _check_belongs(folder: Path, manifest: WeightsManifest, now: Mapping[str, Any]) -> None:
    """Raises `CheckpointError` for weights of another network, seed or precision."""
    about = ("network", "run")  # whether the data are those of the run is asked where they are read
    then = {name: manifest.identity.get(name) for name in about}
    found = list(compare(then, {name: now[name] for name in about}, of="the weights"))
    if found:
        raise CheckpointError(
            f"the weights in {folder / manifest.tag} are of another experiment than "
            f"{folder / EXPERIMENT}: {'; '.join(found)}"
        )


def by_stage(weights: dict[str, NDArray[Any]]) -> dict[str, dict[str, NDArray[Any]]]:
    """The same, `{stage: {"0.weight": array}}`."""
    stages: dict[str, dict[str, NDArray[Any]]] = {}
    for key, array in weights.items():
        stage, _, name = key.partition(".")
        stages.setdefault(stage, {})[name] = np.asarray(array)
    return stages
