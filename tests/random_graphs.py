"""Graphs drawn from a seed, of stages over feature maps and vectors, or over windows of sequences.

Stages join by sum or concat what earlier ones give, however far back; every output that nobody
reads goes to a stage with a loss, and some stages with a loss are read by others as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import networks
import numpy as np

from asyncdni.errors import ConfigError
from asyncdni.messages import DATA
from asyncdni.plan.build import Design

__all__ = ["BATCH", "draw_design", "draw_maps", "draw_windows", "images", "letters"]

#: Of a batch, or streams of a window.
BATCH = 4
PLANES = (5, 4)  # rows and columns of all feature maps
CLASSES = 3
WIDTH = 4  # of all vectors, and of all steps of windows
LETTERS = "abcde"
LOCKED = {"name": "locked"}

Shape = tuple[int, ...]
Layers = list[Any]
Draw = Callable[[random.Random, bool], networks.Tables]


class _Drawing:
    """A graph that grows stage by stage; `layers` says what may follow a joined shape."""

    def __init__(self, source: random.Random, data: Shape) -> None:
        self.source = source
        self.stages: networks.Tables = []
        self.shapes: dict[str, Shape] = {DATA: data}

    def add(self, inputs: list[str], layers: Layers, shape: Shape, **more: Any) -> None:
        name = f"s{len(self.stages)}"
        self.stages.append({"name": name, "inputs": inputs, "layers": layers, **more})
        self.shapes[name] = shape

    def draw_inputs(self, *, data: bool) -> tuple[list[str], dict[str, str], Shape]:
        """One to three, of shapes that go together, how they are joined, and the joined shape."""
        first = self.source.choice([name for name in self.shapes if data or name != DATA])
        rank = len(self.shapes[first])
        others = [
            name
            for name, shape in self.shapes.items()
            if name != first and len(shape) == rank and (data or name != DATA)
        ]
        chosen = [
            first,
            *self.source.sample(others, min(len(others), self.source.choice([0, 1, 2]))),
        ]
        return self.join(chosen)

    def join(self, names: list[str]) -> tuple[list[str], dict[str, str], Shape]:
        shapes = [self.shapes[name] for name in names]
        if len(set(shapes)) == 1 and self.source.random() < 0.6:
            return names, {"join": "sum"} if len(names) > 1 else {}, shapes[0]
        axis = 0 if len(shapes[0]) == 3 else len(shapes[0]) - 1
        width = sum(shape[axis] for shape in shapes)
        return names, {}, (*shapes[0][:axis], width, *shapes[0][axis + 1 :])

    def unread(self, rank: int) -> list[str]:
        """Outputs of that rank that nobody reads, and that have no loss."""
        read = {name for stage in self.stages for name in stage["inputs"]}
        return [
            stage["name"]
            for stage in self.stages
            if stage["name"] not in read
            and "loss" not in stage
            and len(self.shapes[stage["name"]]) == rank
        ]

    def shuffled(self) -> networks.Tables:
        self.source.shuffle(self.stages)
        return self.stages


# --- feature maps and vectors --------------------------------------------------------------------


def draw_maps(source: random.Random, noise: bool = True) -> networks.Tables:
    """Over images (2, 5, 4) of three classes. `noise`: with dropout and sampling."""
    drawing = _Drawing(source, (2, *PLANES))
    for _ in range(source.randint(2, 6)):
        inputs, join, shape = drawing.draw_inputs(data=True)
        if len(shape) == 3:
            layers, output = _of_maps(source, shape, noise)
        else:
            layers, output = _of_vectors(source, shape, noise)
        loss = {"loss": "cross_entropy"} if output == (CLASSES,) else {}
        drawing.add(inputs, layers, output, **join, **loss)
    for rank, flat in ((3, ["flatten"]), (1, [])):
        left = drawing.unread(rank)
        if left:
            inputs, join, _ = drawing.join(left)
            top = [*flat, {"dense": CLASSES}]
            drawing.add(inputs, top, (CLASSES,), **join, loss="cross_entropy")
    return drawing.shuffled()


def _of_maps(source: random.Random, shape: Shape, noise: bool) -> tuple[Layers, Shape]:
    conv = {"conv2d": {"channels": 3, "kernel": source.choice([1, 3, [3, 1]]), "padding": "same"}}
    mapped, same = (3, *PLANES), shape
    choices: list[tuple[Layers, Shape]] = [
        ([conv, "relu"], mapped),
        ([conv, "batch_norm", "tanh"], mapped),
        ([{"layer_norm": {"axes": source.choice([1, 2, 3])}}, conv], mapped),
        ([{"max_pool": {"kernel": 3, "stride": 1, "padding": 1}}], same),
        (["relu"], same),  # of a residual sum
        (["flatten", {"dense": WIDTH}, "tanh"], (WIDTH,)),
        (["flatten", {"dense": CLASSES}], (CLASSES,)),  # a loss on the way
    ]
    return source.choice([*choices, *([([{"dropout": 0.3}, conv], mapped)] * noise)])


def _of_vectors(source: random.Random, shape: Shape, noise: bool) -> tuple[Layers, Shape]:
    planes = (1, *PLANES)
    choices: list[tuple[Layers, Shape]] = [
        ([{"dense": WIDTH}, "relu"], (WIDTH,)),
        ([{"dense": WIDTH}, "layer_norm"], (WIDTH,)),
        ([{"dense": 20}, {"reshape": list(planes)}], planes),
        ([{"dense": CLASSES}], (CLASSES,)),
    ]
    noisy: list[tuple[Layers, Shape]] = [
        ([{"dense": 2 * WIDTH}, "tanh", "gaussian"], (WIDTH,)),
        ([{"dropout": 0.3}, {"dense": WIDTH}], (WIDTH,)),
    ]
    return source.choice([*choices, *(noisy * noise)])


def images(folder: Path, samples: int) -> dict[str, Any]:
    """[data] of a file with so many images for `draw_maps`."""
    rng, path = np.random.default_rng(3), folder / "images.npz"
    x = rng.normal(size=(samples, 2, *PLANES))
    y = np.arange(samples) % CLASSES
    np.savez(path, x_train=x, y_train=y, x_test=x[:3], y_test=y[:3])
    return {"name": "npz", "path": str(path), "batch_size": BATCH}


# --- windows -------------------------------------------------------------------------------------


def draw_windows(source: random.Random, noise: bool = True) -> networks.Tables:
    """Over windows of letters, as ids; see `draw_maps`."""
    drawing = _Drawing(source, ())
    embedding = {"embedding": {"tokens": len(LETTERS), "width": WIDTH}}
    for _ in range(source.randint(1, 2)):
        drawing.add([DATA], [embedding], (0, WIDTH))  # the number of steps does not matter here
    for _ in range(source.randint(2, 5)):
        inputs, join, _ = drawing.draw_inputs(data=False)
        layers, width = _of_steps(source, noise)
        loss = {"loss": "cross_entropy"} if width == len(LETTERS) else {}
        drawing.add(inputs, layers, (0, width), **join, **loss)
    inputs, join, _ = drawing.join(drawing.unread(2) or ["s0"])
    top = [{"dense": len(LETTERS)}]
    drawing.add(inputs, top, (0, len(LETTERS)), **join, loss="cross_entropy")
    return drawing.shuffled()


def _of_steps(source: random.Random, noise: bool) -> tuple[Layers, int]:
    future = {"future": {"lambda": source.choice([0.0, 1.0])}} if noise else {}
    choices: list[tuple[Layers, int]] = [
        ([{"lstm": {"units": WIDTH, **future}}], WIDTH),
        ([{"lstm": WIDTH}, "layer_norm"], WIDTH),
        ([{"rnn": {"units": WIDTH, **future}}], WIDTH),
        ([{"dense": WIDTH}, "tanh"], WIDTH),
        ([{"dense": len(LETTERS)}], len(LETTERS)),  # a loss on the way
    ]
    return source.choice([*choices, *([([{"dropout": 0.3}, {"dense": WIDTH}], WIDTH)] * noise)])


def letters(folder: Path, windows: int, steps: int = 3) -> dict[str, Any]:
    """[data] of a text that gives so many windows to train on, and one to test."""
    rng, path = np.random.default_rng(5), folder / "letters.txt"
    train, test = (steps * (BATCH * count + 1) for count in (windows, 1))
    path.write_text("".join(rng.choice(list(LETTERS), train + test)))
    data = {"name": "text", "path": str(path), "batch_size": BATCH, "window": steps}
    return {**data, "encoding": "ids", "test_part": test / (train + test)}


# --- designs -------------------------------------------------------------------------------------


def draw_design(
    source: random.Random,
    draw: Draw,
    data: Mapping[str, Any],
    *,
    schedule: Mapping[str, Any] = LOCKED,
    noise: bool = True,
    run: Mapping[str, Any],
    optimizer: Mapping[str, Any],
) -> Design:
    """Over the first split drawn that no worker of which would send two activations."""
    stages = draw(source, noise)
    while True:
        split = _split(source, len(stages))
        try:
            return networks.design(
                stages, schedule, data=data, run={**run, "split": split}, optimizer=optimizer
            )
        except ConfigError as error:
            if not str(error).startswith("run.split: worker"):
                raise


def _split(source: random.Random, stages: int) -> list[int]:
    parts: list[int] = []
    while sum(parts) < stages:
        parts.append(min(source.choice([1, 1, 2, 3]), stages - sum(parts)))
    return parts
