"""Arrays given to `train` in place of a data set: kept in the folder of the run as `data.npz`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from asyncdni import config, experiment
from asyncdni.build import Design, check_targets, make_design
from asyncdni.datasets import identify, npz
from asyncdni.datasets.base import ARRAYS as NAMES
from asyncdni.datasets.base import Array
from asyncdni.datasets.checks import as_numbers
from asyncdni.datasets.reconstruction import Reconstruction
from asyncdni.errors import CheckpointError, ConfigError
from asyncdni.run import ARRAYS

__all__ = ["design_of_arrays", "move_arrays"]


def design_of_arrays(
    chosen: config.Experiment,
    data: Mapping[str, ArrayLike],
    arrays: Path,
    folder: Path,
    *,
    allow_import: bool,
) -> Design:
    """Check `data` and write it to `arrays`, from where it is to be moved to the folder of the run.

    Raises `ConfigError` for other arrays than x_train, y_train, x_test and y_test, and `DataError`
    for what can't be trained on; `CheckpointError` where `arrays` can't be written.
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
    """Raises `CheckpointError`."""
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
    # In C's order, whose rows can be read one by one.
    return {name: np.ascontiguousarray(as_numbers("data", name, data[name])) for name in NAMES}


def _npz(path: Path, like: config.Data) -> config.Npz:
    """`like` may be of any kind: "labels" of another set say nothing of these."""
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
