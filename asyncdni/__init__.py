"""Train a neural network with each stage in a process of its own, decoupled or locked.

>>> import asyncdni
>>> result = asyncdni.train("recipe:digits", set=["run.epochs=2"])
>>> result.test_accuracy > 0.5, result.weights["hidden1.0.weight"].shape
(True, (256, 784))

`train` takes an experiment file, `recipe:NAME`, an `Experiment` or a module of PyTorch, and returns
a `Result`. `load` reads an experiment file, `open_run` a run folder; `evaluate` and `predict` use a
trained network. `Experiment` and what it is made of (`Stage`, `Digits`, `Npz`, `Run`, `Synthetic`,
`Adam`, ...) have the options that `asyncdni explain` lists. Every error is an `AsyncDNIError`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Named twice, they are public, and yet `help` does not print all of their methods.
from asyncdni.config import (
    Adam as Adam,
    Addition as Addition,
    Digits as Digits,
    ErrorGenerator as ErrorGenerator,
    Experiment as Experiment,
    Limits as Limits,
    LinearGenerator as LinearGenerator,
    Locked as Locked,
    LowRankGenerator as LowRankGenerator,
    MlpGenerator as MlpGenerator,
    Mnist as Mnist,
    Npz as Npz,
    Run as Run,
    Sgd as Sgd,
    Stage as Stage,
    Synthetic as Synthetic,
    ZeroGenerator as ZeroGenerator,
)
from asyncdni.errors import AsyncDNIError as AsyncDNIError

if TYPE_CHECKING:
    from asyncdni.evaluation import evaluate, predict
    from asyncdni.experiment import load
    from asyncdni.launch.callbacks import (
        Callback as Callback,
        EarlyStopping as EarlyStopping,
        Training as Training,
    )
    from asyncdni.launch.trackers import Mlflow as Mlflow, Wandb as Wandb
    from asyncdni.launch.train import train
    from asyncdni.store.run import Result as Result, open_run

#: What `help` prints and `from asyncdni import *` gives; `dir` has the tables as well.
__all__ = [
    "evaluate",
    "load",
    "open_run",
    "predict",
    "train",
]

__version__ = "0.1.0"

# A worker imports this package too, and has no use for the launcher behind `train`.
_LAZY = {
    "Callback": "launch.callbacks",
    "EarlyStopping": "launch.callbacks",
    "Mlflow": "launch.trackers",
    "Result": "store.run",
    "evaluate": "evaluation",
    "load": "experiment",
    "open_run": "store.run",
    "predict": "evaluation",
    "Training": "launch.callbacks",
    "Wandb": "launch.trackers",
    "train": "launch.train",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"asyncdni.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'asyncdni' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, also those that are imported only when they are asked for."""
    ours = (name for name, value in globals().items() if isinstance(value, type) and name != "Any")
    return sorted({*_LAZY, *ours, "__doc__", "__version__"})
