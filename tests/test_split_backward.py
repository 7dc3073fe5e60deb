"""A backward in two halves (b, W) gives what a whole one gives, to the last bit."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from each import each
from processes import TINY, Site, make_site, weights

from asyncdni.core.events import Finish
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.messages import DATA
from asyncdni.nn.base import Array
from asyncdni.plan.build import make_stage
from asyncdni.plan.plan import Group
from asyncdni.schedules.base import Source
from asyncdni.stages.numpy.stage import NumpyStage

LOCKED = {"name": "locked"}
SHAKEN = {"costs": Costs(jitter=0.9), "links": Links(jitter=1.0)}


# --- one worker: b and W against B ---------------------------------------------------------------


def middle_loss() -> networks.Tables:
    """The second of three stages has a loss of its own, beside what comes back from the third."""
    first, second, top = networks.chain(3, norm=True)
    return [first, {**second, "layers": [{"dense": 4}], "loss": "sigmoid_cross_entropy"}, top]


def late_fork() -> networks.Tables:
    """Two stages take the activation of the second, which has a producer."""
    first, second, *_ = networks.chain(3, norm=True)
    left, right = (
        {"name": name, "inputs": ["s1"], "layers": [{"dense": 5}, "tanh"]} for name in "lr"
    )
    return [first, second, left, right, {**networks.chain(1)[0], "inputs": ["l", "r"]}]


def joined() -> networks.Tables:
    """`aside` reads the data and is joined with what comes from `low`; the join goes on."""
    low, _, top = networks.chain(3, norm=True)
    aside = {"name": "aside", "inputs": [DATA], "layers": [{"dense": 5}, "batch_norm", "sigmoid"]}
    mixed = {"name": "mixed", "inputs": ["aside", "s0"], "layers": [{"dense": 5}, "relu"]}
    return [low, aside, mixed, top]


#: Stages, split, and the worker that is looked at.
WORKERS: dict[str, tuple[networks.Tables, list[int] | None, int]] = {
    "chain with batch norm": (networks.chain(3, norm=True), None, 1),
    "last of a chain": (networks.chain(3), None, 2),
    "several fused": (networks.chain(5, norm=True), [1, 3, 1], 1),
    "own loss": (middle_loss(), None, 1),
    "own loss inside": (middle_loss(), [1, 2], 1),
    "loss without consumers": (networks.diamond(), None, 3),
    "several consumers": (late_fork(), None, 1),
    "a fork inside": (late_fork(), [1, 4], 1),
    "no relay before the join": (joined(), [1, 2, 1], 1),
    "no relay before the loss": (networks.several_readers(), [1, 2], 1),
}
each_worker = each("stages, split, index", WORKERS.values())


class Bench:
    """One worker's stage, and random inputs, targets and gradients by batch."""

    def __init__(self, stages: networks.Tables, split: list[int] | None, index: int) -> None:
        design = networks.design(stages, LOCKED, run={"split": split})
        self.group: Group = design.plan.groups[index]
        self.stage: NumpyStage = make_stage(design, self.group)
        self._names = {node.name for node in self.group.members}

    def forward(self, batch: int, samples: int) -> None:
        rng = np.random.default_rng(batch)
        inputs = {
            name: rng.normal(size=(samples, *shape)).astype(np.float32)
            for node in self.group.members
            for name, shape in zip(node.inputs, node.input_shapes, strict=True)
            if name not in self._names
        }
        targets = rng.integers(0, 2, size=(samples, networks.BITS)).astype(np.float32)
        self.stage.forward(batch, inputs, {"y": targets})

    def gradients(self, batch: int, samples: int) -> dict[str, Array]:
        """From each consumer outside."""
        rng = np.random.default_rng(1000 + batch)
        return {
            name: rng.normal(size=(samples, *node.output_shape)).astype(np.float32)
            for node in self.group.members
            for name in node.consumers
            if name not in self._names
        }

    def back(self, batch: int, samples: int, *, learn: bool) -> dict[str, dict[str, Array]]:
        given = self.gradients(batch, samples)
        return self.stage.backward(batch, given, source=Source.TRUE, learn=learn, send=True)

    def accumulated(self) -> dict[str, bytes]:
        """Gradients of the weights since the last update, stage by stage."""
        return {name: block._grads.tobytes() for name, block in self.stage._blocks.items()}

    def state(self) -> dict[str, dict[str, bytes]]:
        """Weights and running statistics."""
        state = self.stage.state()
        return {
            name: {key: array.tobytes() for key, array in own.items()}
            for name, own in state.items()
        }

    def release(self, batch: int) -> None:
        self.stage.release(batch, lambda: True)


def bits(sent: Mapping[str, Mapping[str, Array]]) -> dict[str, dict[str, bytes]]:
    return {to: {name: array.tobytes() for name, array in own.items()} for to, own in sent.items()}


@each_worker
def test_two_halves_are_one_whole_backward_to_the_last_bit(
    stages: networks.Tables, split: list[int] | None, index: int
) -> None:
    """What is sent, what is accumulated over one and two batches, and the weights after Adam; in
    slots that are used again, also for a smaller batch."""
    whole, halves = Bench(stages, split, index), Bench(stages, split, index)
    started = halves.state()
    for batch, samples in enumerate([6, 6, 3, 6, 5, 6]):
        sent = []
        for bench, learn in ((whole, True), (halves, False)):
            bench.forward(batch, samples)
            sent.append(bits(bench.back(batch, samples, learn=learn)))
        halves.stage.learn(batch)
        assert sent[0] == sent[1] and sent[0]
        assert halves.accumulated() == whole.accumulated()
        for bench in (whole, halves):
            if batch % 2:
                bench.stage.update()
            bench.release(batch)
        assert halves.state() == whole.state()
    assert all(
        own[name] != started[stage][name]
        for stage, own in halves.state().items()
        for name in own
        if "weight" in name
    )


@each_worker
def test_halves_of_several_batches_in_flight_do_not_mix(
    stages: networks.Tables, split: list[int] | None, index: int
) -> None:
    whole, halves = Bench(stages, split, index), Bench(stages, split, index)
    for batch in range(3):
        for bench, learn in ((whole, True), (halves, False)):
            bench.forward(batch, 5)
            bench.back(batch, 5, learn=learn)
    for batch in range(3):
        halves.stage.learn(batch)
    assert halves.accumulated() == whole.accumulated()
    for bench in (whole, halves):
        bench.stage.update()
    assert halves.state() == whole.state()


@each_worker
def test_the_first_half_learns_nothing(
    stages: networks.Tables, split: list[int] | None, index: int
) -> None:
    bench = Bench(stages, split, index)
    bench.forward(0, 5)
    accumulated, state = bench.accumulated(), bench.state()
    bench.back(0, 5, learn=False)
    assert (bench.accumulated(), bench.state()) == (accumulated, state)
    assert not any(block.learned for block in bench.stage._blocks.values())


@pytest.mark.parametrize("name", ["chain with batch norm", "no relay before the join"])
def test_the_gradient_that_came_is_let_go_once_it_is_learnt_from(name: str) -> None:
    """Its memory may be a message's, and the slot of the batch is kept for later ones."""
    bench = Bench(*WORKERS[name])
    bench.forward(0, 5)
    given = bench.gradients(0, 5)
    (came,) = (weakref.ref(array) for array in given.values())
    bench.stage.backward(0, given, source=Source.TRUE, learn=False, send=True)
    del given
    assert came() is not None  # still to be learnt from
    bench.stage.learn(0)
    assert came() is None


def test_a_gradient_that_is_only_passed_on_is_let_go_with_its_batch() -> None:
    """As under `synthetic`, where no learning follows."""
    bench = Bench(*WORKERS["chain with batch norm"])
    bench.forward(0, 5)
    given = bench.gradients(0, 5)
    (came,) = (weakref.ref(array) for array in given.values())
    bench.stage.backward(0, given, source=Source.TRUE, learn=False, send=True)
    del given
    bench.release(0)
    assert came() is None


# --- whole runs ----------------------------------------------------------------------------------


@each(
    "stages, split",
    [
        (networks.chain(4, norm=True), None),
        (networks.chain(4), [1, 2, 1]),
        (networks.fork(), None),
        (networks.fork("sum"), [1, 4]),
        (networks.diamond(), [1, 2, 1]),
        (networks.several_readers(), None),
        (networks.several_readers(), [1, 2]),
        (middle_loss(), None),
        (late_fork(), [1, 1, 3]),
        (joined(), [1, 2, 1]),
    ],
)
def test_locked_gives_the_weights_of_one_process_with_and_without_halves(
    stages: networks.Tables, split: list[int] | None
) -> None:
    def trained(split: list[int] | None, **options: bool) -> Any:
        design = networks.design(stages, {**LOCKED, **options}, run={"epochs": 4, "split": split})
        result = simulate(design, seed=1, maths=True, **SHAKEN)
        assert isinstance(result.end, Finish)
        letters = {op[0] for ops in result.ops.values() for op in ops}
        assert letters >= ({"b", "W"} if options.get("split_backward") else {"B"})
        return bits(result.weights)

    alone = trained([len(stages)])
    assert trained(split, split_backward=True) == alone
    assert trained(split, split_backward=False) == alone


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        made.write("tiny.toml", TINY)
        yield made


@pytest.mark.long
def test_locked_over_processes_gives_the_weights_of_one_with_and_without_halves(site: Site) -> None:
    changes = {
        "halves": "schedule.split_backward=true",
        "whole": "schedule.split_backward=false",
        "alone": "run.split=[2]",
    }
    for out, change in changes.items():
        args = ("--schedule", "locked", "--set", change, "--out", out)
        assert site.call("train", "tiny.toml", *args).code == 0
    halves, whole, alone = (weights(site.folder / out) for out in changes)
    assert halves == whole == alone
