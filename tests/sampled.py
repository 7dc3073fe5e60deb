"""Runs to sample from, made without any process: small networks and their folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from asyncdni import experiment
from asyncdni.data import describe
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.plan.build import make_design, make_whole_stage
from asyncdni.store.run import Result, by_stage, create_folder, write_summary
from asyncdni.store.tensors import save_stages

__all__ = ["LAUNCH", "autoencoder", "circle", "kept", "letters", "recipe", "run_of"]

LAUNCH = Path(__file__).parent.parent / "launch"
Tables = dict[str, Any]


def run_of(
    data: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    *,
    train: bool = False,
    rate: float = 1e-2,
    **run: Any,
) -> Result:
    """With its first weights or, after `train`, with what one worker has learnt."""
    tables: Tables = {"data": dict(data), "stages": list(stages), "schedule": {"name": "locked"}}
    tables["optimizer"] = {"name": "adam", "learning_rate": rate}
    tables["run"] = {"split": [len(stages)], **run}
    return _result(experiment.parse(tables), train=train)


def recipe(name: str, *changes: str, train: bool = False) -> Result:
    """The recipe of that name in `launch/`, locked."""
    chosen = experiment.load(LAUNCH / f"{name}.toml", list(changes), schedule="locked")
    return _result(chosen, train=train)


def _result(chosen: Any, *, train: bool) -> Result:
    design = make_design(chosen, describe(chosen.data))
    history: list[dict[str, Any]] = []
    if train:
        found = simulate(design, seed=0, maths=True)
        state, history = found.weights, found.history
    else:
        state = make_whole_stage(design).state()
    weights = {f"{stage}.{key}": one for stage, kept in state.items() for key, one in kept.items()}
    summary = {"history": history, "test_accuracy": None}
    return Result(summary, weights, design.experiment, design.meta)


def kept(run: Result, folder: Path) -> Result:
    """The same in a folder of its own."""
    where = create_folder(folder, run.experiment)
    save_stages(where / "final", by_stage(run.weights))
    write_summary(where, {**run.summary, "data": msgspec.to_builtins(run.meta)})
    return Result(run.summary, run.weights, run.experiment, run.meta, where)


def letters(path: Path, text: str, *, train: bool = False, encoding: str = "one_hot") -> Result:
    """A network that reads the characters of `text`."""
    path.write_text(text)
    data = {"name": "text", "path": str(path), "window": 5, "batch_size": 4, "encoding": encoding}
    front = [{"embedding": {"tokens": len(set(text)), "width": 6}}] if encoding == "ids" else []
    hidden = {"name": "hidden", "layers": [*front, {"lstm": 12}]}
    readout = {"name": "readout", "layers": [{"dense": len(set(text))}], "loss": "cross_entropy"}
    return run_of(data, [hidden, readout], train=train, rate=3e-2, epochs=6, evaluate_every=3)


def circle() -> Result:
    """A network that reads the points of a circle, and has learnt nothing."""
    return recipe("trigonometry")


def autoencoder(**code: Any) -> Result:
    """A small variational autoencoder, untrained; `code` is of the stage that makes the codes."""
    data = {"name": "digits", "targets": "inputs", "batch_size": 50}
    stages = [
        {"name": "encoder", "layers": [{"dense": 12}, "relu"]},
        {"name": "code", "layers": [{"dense": 8}, "gaussian", "tanh"], **code},
        {"name": "decoder", "layers": [{"dense": 784}], "loss": "sigmoid_cross_entropy"},
    ]
    return run_of(data, stages)
