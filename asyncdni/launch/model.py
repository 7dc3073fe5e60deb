"""A model of PyTorch, given to `train` as an object, as an experiment.

The experiment names it `given:model-1`. Workers get its structure through a file that they inherit
(`handover`), and its weights like those of any run that begins with given ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeGuard

from asyncdni.data.meta import Field
from asyncdni.data.torch import data_set_of, first_form
from asyncdni.errors import ConfigError
from asyncdni.handover import Handover

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ModuleOptions", "check_no_options", "given_model", "is_model"]

_BATCH_SIZE = 256


class ModuleOptions(TypedDict, total=False):
    """What `train` may be told besides for a module: what a file says in the places named here."""

    loss: str | Callable[..., Any]  # `model.loss`; a callable: the mean over samples
    stages: str | int | list[str]  # `model.stages`
    optimizer: Mapping[str, Any]  # `[optimizer]`
    epochs: int  # `run.epochs`
    batch_size: int  # `data.batch_size`; of a loader its own, if none is given


def is_model(source: object) -> TypeGuard[nn.Module]:
    """Whether `source` is a module of PyTorch. PyTorch is not imported for this: who has a module
    has imported it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.nn.Module)


def check_no_options(options: Mapping[str, Any], data: object) -> None:
    """Raises `ConfigError` where an experiment is given what only a module takes."""
    _check_known(options)
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(
            f"{', '.join(given)}: only for a module of PyTorch; to change an experiment, "
            "use set=[…]"
        )
    if not (data is None or isinstance(data, Mapping)):
        raise ConfigError(f"data is a {type(data).__name__}; only a module takes data sets")


def given_model(
    model: nn.Module, data: object, options: ModuleOptions, objects: Mapping[str, Any]
) -> tuple[dict[str, Any], Handover]:
    """The tables of the experiment that trains a model, and what its workers are handed: `objects`
    as well.

    Raises `ConfigError` for objects that can't be sent to another process, and `DataError` for
    data sets without samples."""
    _check_known(options)
    from asyncdni.nn.torch.layer import empty_copy

    structure, classes = empty_copy(model, "meta"), 0
    given: dict[str, Any] = {"model": structure, **objects}
    if not isinstance(data, Mapping):
        given["data"] = _two_sets(data)
        classes = _width(structure, *first_form(given["data"]))
    loss = options.get("loss", "cross_entropy")
    if not isinstance(loss, str):
        given["loss"] = loss
    handover = Handover(given, {"initial model": model})
    tables: dict[str, Any] = {
        "model": {
            "build": handover.name_of("model"),
            "loss": loss if isinstance(loss, str) else handover.name_of("loss"),
            "stages": options.get("stages", "auto"),
        },
        "data": {"batch_size": options.get("batch_size") or _batch_size(data) or _BATCH_SIZE},
    }
    if "data" in given:
        tables["data"] |= {"name": "torch", "build": handover.name_of("data"), "classes": classes}
    else:
        tables["data"]["name"] = "digits"  # until the arrays take its place
    if options.get("optimizer") is not None:
        tables["optimizer"] = dict(options["optimizer"])
    if options.get("epochs") is not None:
        tables["run"] = {"epochs": options["epochs"]}
    return tables, handover


def _check_known(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in ModuleOptions.__annotations__:
            raise TypeError(f"train() got an unexpected keyword argument {name!r}")


def _two_sets(data: object) -> tuple[Any, Any]:
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ConfigError(
            f"data is a {_kind(data)}, expected (training set, test set), or a dict of the arrays "
            "x_train, y_train, x_test and y_test"
        )
    train, test = data
    return data_set_of(train), data_set_of(test)


def _kind(data: object) -> str:
    items = f" of {len(data)}" if isinstance(data, tuple | list) else ""
    return f"{type(data).__name__}{items}"


def _width(structure: nn.Module, shape: tuple[int, ...], given: Sequence[Field]) -> int:
    """How many outputs a sample has, or each of its steps: so many classes are told apart. 0 where
    the model does not take such samples, which is reported once it is cut."""
    import torch

    from asyncdni.nn.torch.compiler import without_compiler
    from asyncdni.nn.torch.fields import call_joined, fields_of
    from asyncdni.nn.torch.huggingface import as_chain
    from asyncdni.nn.torch.layer import main_output
    from asyncdni.nn.torch.recurrent import OneStep

    _, fields = fields_of([(one.name, one.kind, one.shape) for one in given])
    for dtype in (torch.float32, torch.int64):
        try:
            with torch.no_grad(), without_compiler(), OneStep():
                x = torch.zeros((2, *shape), dtype=dtype, device="meta")
                outputs = call_joined(as_chain(structure), x, fields)
            return int(main_output(outputs).shape[-1])
        except Exception:  # a model may fail in any way
            continue
    return 0


def _batch_size(data: object) -> int | None:
    """That of the training loader, where loaders are given."""
    first = data[0] if isinstance(data, tuple | list) and data else None
    found = getattr(first, "batch_size", None)
    return found if isinstance(found, int) else None
