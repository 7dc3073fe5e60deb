"""Arrays given to `train` in place of a data set: kept in the folder of the run as `data.npz`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from asyncdni import config, experiment
from asyncdni.build import Design, make_design
from asyncdni.datasets import describe
from asyncdni.errors import CheckpointError, ConfigError
from asyncdni.run import ARRAYS

__all__ = ["design_of_arrays", "move_arrays", "save_arrays"]


def save_arrays(data: Mapping[str, ArrayLike], path: Path) -> None:
    """Raises `ConfigError` for other arrays than x_train, y_train, x_test and y_test."""
    expected = {"x_train", "y_train", "x_test", "y_test"}
    if set(data) != expected:
        raise ConfigError(f"data has {sorted(data)}, expected {sorted(expected)}")
    np.savez(path, allow_pickle=False, **{name: np.asarray(a) for name, a in data.items()})


def design_of_arrays(
    chosen: config.Experiment, arrays: Path, folder: Path, *, allow_import: bool
) -> Design:
    """The arrays are at `arrays` still, and will be in the folder of the run.

    Raises `ConfigError` and `DataError`.
    """
    meta = describe(_npz(arrays, chosen.data))
    changed = msgspec.structs.replace(chosen, data=_npz(folder.resolve() / ARRAYS, chosen.data))
    parsed = experiment.parse(experiment.tables(changed))
    return make_design(parsed, meta, allow_import=allow_import)


def move_arrays(source: Path, target: Path) -> None:
    """Raises `CheckpointError`."""
    try:
        shutil.move(source, target)
    except OSError as error:
        raise CheckpointError(f"can't write {target}: {error.strerror}") from error


def _npz(path: Path, like: config.Data) -> config.Npz:
    return config.Npz(path=str(path), batch_size=like.batch_size, validation=like.validation)
