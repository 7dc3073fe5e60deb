"""Decoupled training of neural networks over worker processes.

>>> import asyncdni
>>> result = asyncdni.train("launch/digits.toml", set=["run.epochs=2"])  # doctest: +SKIP
>>> result.test_accuracy, result.weights["hidden1.0.weight"].shape  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from asyncdni.config import (
    Adam,
    Addition,
    Digits,
    ErrorGenerator,
    Experiment,
    Limits,
    LinearGenerator,
    Locked,
    LowRankGenerator,
    MlpGenerator,
    Mnist,
    Npz,
    Run,
    Sgd,
    Stage,
    Synthetic,
    ZeroGenerator,
)
from asyncdni.errors import AsyncDNIError

if TYPE_CHECKING:
    from asyncdni.evaluation import evaluate, predict
    from asyncdni.experiment import load
    from asyncdni.launch.callbacks import Callback, EarlyStopping, Training
    from asyncdni.launch.train import train
    from asyncdni.store.run import Result, open_run

__all__ = [
    "Adam",
    "Addition",
    "AsyncDNIError",
    "Callback",
    "Digits",
    "EarlyStopping",
    "ErrorGenerator",
    "Experiment",
    "Limits",
    "LinearGenerator",
    "Locked",
    "LowRankGenerator",
    "MlpGenerator",
    "Mnist",
    "Npz",
    "Result",
    "Run",
    "Sgd",
    "Stage",
    "Synthetic",
    "Training",
    "ZeroGenerator",
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
    "Result": "store.run",
    "evaluate": "evaluation",
    "load": "experiment",
    "open_run": "store.run",
    "predict": "evaluation",
    "Training": "launch.callbacks",
    "train": "launch.train",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"asyncdni.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'asyncdni' has no attribute {name!r}")
