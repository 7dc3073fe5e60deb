"""A model of PyTorch, given to `train` as an object, as an experiment.

The experiment names it `given:model`. Workers get its structure through a file that they inherit
(`handover`), and its weights like those of any run that begins with given ones.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from asyncdni.errors import ConfigError
from asyncdni.handover import GIVEN, Handover, keep

if TYPE_CHECKING:
    from torch import nn

__all__ = ["given_model", "is_model"]

_BATCH_SIZE = 256


def is_model(source: object) -> TypeGuard[nn.Module]:
    """Whether `source` is a module of PyTorch. PyTorch is not imported for this: who has a module
    has imported it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.nn.Module)


def given_model(
    model: nn.Module,
    data: object,
    *,
    loss: str,
    stages: str | int | list[str],
    optimizer: Mapping[str, Any] | None,
    epochs: int | None,
    batch_size: int | None,
) -> tuple[dict[str, Any], Handover]:
    """The tables of the experiment that trains a model, and what its workers are handed.

    Raises `ConfigError` for objects that can't be sent to another process."""
    from asyncdni.nn.torch.layer import emptied

    tables: dict[str, Any] = {
        "model": {"build": f"{GIVEN}:model", "loss": loss, "stages": stages},
        "data": {"batch_size": batch_size or _batch_size(data) or _BATCH_SIZE},
    }
    given: dict[str, Any] = {"model": emptied(model, "meta")}
    if isinstance(data, Mapping):
        tables["data"]["name"] = "digits"  # until the arrays take its place
    elif isinstance(data, tuple | list) and len(data) == 2:
        tables["data"] |= {"name": "torch", "build": f"{GIVEN}:data"}
        given["data"] = tuple(data)
    else:
        raise ConfigError(
            f"data is a {type(data).__name__}, expected (training set, test set), or a dict of the "
            "arrays x_train, y_train, x_test and y_test"
        )
    if optimizer is not None:
        tables["optimizer"] = dict(optimizer)
    if epochs is not None:
        tables["run"] = {"epochs": epochs}
    keep("initial model", model)
    return tables, Handover(given)


def _batch_size(data: object) -> int | None:
    """That of the training loader, where loaders are given."""
    first = data[0] if isinstance(data, tuple | list) and data else None
    found = getattr(first, "batch_size", None)
    return found if isinstance(found, int) else None
