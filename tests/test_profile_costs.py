"""What a worker of several stages is charged, and the best way to cut a network into workers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import networks
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncdni import config
from asyncdni.drivers.virtual.costs import SENDING, Links
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.errors import ConfigError
from asyncdni.messages import Message
from asyncdni.plan.build import Design
from asyncdni.profiling.advice import best_split
from asyncdni.profiling.measurement import Rehearsal
from asyncdni.profiling.prediction import Seconds, worker_costs
from asyncdni.schedules.base import Op
from asyncdni.stages.numpy.block import Block

SYNTHETIC = {"name": "synthetic", "generator": {"kind": "linear"}, "fit_every": 4}


class Deaf:
    """An observer that takes no note."""

    def op(self, worker: str, op: Op, cpu_s: float) -> None:
        pass

    def message(self, sender: str, to: str, message: Message, frames: Sequence[int]) -> None:
        pass

    def handled(self, cpu_s: float) -> None:
        pass


# --- what a worker costs -------------------------------------------------------------------------

SCHEDULES = st.one_of(
    st.fixed_dictionaries({"name": st.just("locked"), "split_backward": st.booleans()}),
    st.fixed_dictionaries(
        {
            "name": st.just("synthetic"),
            "generator": st.just({"kind": "linear"}),
            "target": st.sampled_from(["true", "bootstrap"]),
            "fit_every": st.sampled_from([1, 2, 4]),
            "correct": st.booleans(),
        }
    ),
)
NETWORKS = st.sampled_from(
    [
        *(networks.chain(length) for length in (1, 2, 3, 5)),
        *(networks.fork(), networks.diamond(), networks.several_readers()),
    ]
)


@st.composite
def designs(draw: st.DrawFn) -> Design:
    """Any network, schedule and split that fit together; 8 batches."""
    stages = draw(NETWORKS)
    cuts = draw(st.lists(st.booleans(), min_size=len(stages) - 1, max_size=len(stages) - 1))
    split = [len(list(one)) for one in _runs(cuts)]
    data = {"examples": 40, "test_examples": 5}
    schedule = draw(SCHEDULES)
    try:
        return networks.design(stages, schedule, data=data, run={"epochs": 1, "split": split})
    except ConfigError:  # such a worker would send on the activations of two stages
        return networks.design(stages, schedule, data=data, run={"epochs": 1})


def _runs(cuts: Sequence[bool]) -> list[list[int]]:
    """[cut, no cut, …] between stages, as groups of stages."""
    groups = [[0]]
    for stage, cut in enumerate(cuts, 1):
        if cut:
            groups.append([stage])
        else:
            groups[-1].append(stage)
    return groups


#: One second an op, of all kinds.
ALIKE = dict.fromkeys(["F", "P", "B", SENDING, "U", "T", "b", "W", "C"], 1.0)


@settings(max_examples=60, deadline=None)
@given(designs())
def test_a_worker_is_charged_each_op_as_often_as_a_run_does_it(design: Design) -> None:
    links = Links(latency_us=0.0, control_latency_us=0.0)
    ops = simulate(design, seed=0, links=links, maths=False).ops
    for group in design.plan.groups:
        host = {"R": 1.0} if group.index == design.plan.host else {}
        seconds = {node.name: dict(ALIKE) for node in group.members}
        seconds[group.members[0].name].update(host)
        charged = worker_costs(group.members, seconds, design.experiment.schedule)
        assert charged is not None
        done = Counter(letter for letter, batch, *_ in ops[group.name] if batch >= 0)
        for letter in "RPT":
            assert charged.get(letter, 0.0) == done[letter] / 8
        for letter in "FUBWC":
            assert charged.get(letter, 0.0) == done[letter] / 8 * len(group.members)
        assert bool(charged.get("b")) == bool(done["b"])


#: Prices from whose sum the numbers of each kind can be read.
LEARNS, LEARNS_AND_SENDS, PASSES_ON, LEARNS_THE_REST = 1.0, 1e3, 1e6, 1e9


@settings(max_examples=60, deadline=None)
@given(designs())
def test_a_fused_worker_is_charged_the_backwards_that_its_stages_do(design: Design) -> None:
    prices = {"F": 0.0, "P": 0.0, "U": 0.0, "T": 0.0}
    prices.update({"B": LEARNS, SENDING: LEARNS_AND_SENDS, "C": LEARNS})
    prices.update({"b": PASSES_ON, "W": LEARNS_THE_REST})
    with pytest.MonkeyPatch.context() as patch:
        done = _count_backwards(patch)
        Rehearsal(design, Deaf(), segments=1, batches=8).advance()
    for group in design.plan.groups:
        seconds = {node.name: prices for node in group.members}
        costs = worker_costs(group.members, seconds, design.experiment.schedule)
        assert costs is not None
        expected = sum(done[node.name] for node in group.members) / 8
        assert sum(costs.values()) == pytest.approx(expected)


def _count_backwards(patch: pytest.MonkeyPatch) -> Counter[str]:
    """By stage, at the prices above."""
    done: Counter[str] = Counter()
    backward, rest = Block.backward, Block.learn

    def counted(self: Block, *args: Any, learn: bool, send: bool, **more: Any) -> Any:
        price = LEARNS_AND_SENDS if send else LEARNS
        done[self.node.name] += int(price if learn else PASSES_ON)
        return backward(self, *args, learn=learn, send=send, **more)

    def counted_rest(self: Block, *args: Any) -> None:
        done[self.node.name] += int(LEARNS_THE_REST)
        rest(self, *args)

    patch.setattr(Block, "backward", counted)
    patch.setattr(Block, "learn", counted_rest)
    return done


# What was not measured, as no stage does it alone.

FUSED = networks.design(networks.chain(3), SYNTHETIC, run={"split": [1, 2]}).plan.groups[1].members


def test_the_halves_of_a_backward_stand_for_one_with_the_gradient_of_the_inputs() -> None:
    ops = {"F": 0.0, "U": 0.0, "b": 3.0, "W": 4.0}
    seconds = {"s1": ops, "top": ops}
    locked = worker_costs(FUSED, seconds, config.Locked())
    assert locked == {"F": 0.0, "U": 0.0, "R": 0.0, "b": 6.0, "W": 8.0}
    whole = worker_costs(FUSED, {**seconds, "top": {**ops, SENDING: 5.0}}, config.Synthetic())
    assert whole == {"F": 0.0, "U": 0.0, "R": 0.0, "B": 7.0 + 5.0}


def test_the_second_half_of_a_backward_stands_for_one_that_only_learns() -> None:
    """The branch of a graph that reads the data is not on the way back: W is a backward of all."""
    stages = networks.several_readers()
    design = networks.design(stages, {"name": "locked"}, run={"split": [1, 2]})
    ops = {"F": 0.0, "U": 0.0}
    seconds = {"right": {**ops, "B": 1.0}, "top": {**ops, "b": 10.0, "W": 100.0}}
    costs = worker_costs(design.plan.groups[1].members, seconds, config.Locked())
    assert costs == {"F": 0.0, "U": 0.0, "R": 0.0, "b": 10.0, "W": 1.0 + 110.0}


def test_gradients_that_nobody_asks_for_cost_nothing() -> None:
    """Their ops are never done, so they have not been measured."""
    schedule = {"name": "synthetic", "generator": {"kind": "readout"}}
    design = networks.design(networks.chain(3), schedule)
    seconds = {"s1": {"F": 1.0, "P": 2.0, "B": 4.0, "U": 8.0}}
    costs = worker_costs(design.plan.groups[1].members, seconds, design.experiment.schedule)
    assert costs == {"F": 1.0, "P": 2.0, "B": 4.0, "U": 8.0, "R": 0.0, "T": 0.0, "b": 0.0}


def test_a_worker_that_would_send_on_two_activations_has_no_price() -> None:
    design = networks.design(networks.fork(), SYNTHETIC)
    members = [design.network.node(name) for name in ("a", "b")]
    seconds: Seconds = {"a": ALIKE, "b": ALIKE}
    assert worker_costs(members, seconds, design.experiment.schedule) is None


# --- the best split ------------------------------------------------------------------------------

COSTS = st.one_of(st.none(), st.integers(1, 20).map(float))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_split_has_a_higher_ceiling_than_the_best(data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, 6))
    workers, cores = data.draw(st.integers(1, stages)), data.draw(st.integers(1, 4))
    spans = [(i, j) for i in range(stages) for j in range(i + 1, stages + 1)]
    table = {span: data.draw(COSTS) for span in spans}
    periods = [
        _period([table[span] for span in _spans(split)], cores)
        for split in itertools.product(range(1, stages + 1), repeat=workers)
        if sum(split) == stages
    ]
    possible = [period for period in periods if period is not None]
    found = best_split(stages, workers, cores, lambda i, j: table[i, j])
    if not possible:
        assert found is None
    else:
        assert found is not None and len(found) == workers and sum(found) == stages
        assert _period([table[span] for span in _spans(found)], cores) == min(possible)


def _spans(split: Sequence[int]) -> list[tuple[int, int]]:
    ends = list(itertools.accumulate(split))
    return [(end - count, end) for count, end in zip(split, ends, strict=True)]


def _period(costs: Sequence[float | None], cores: int) -> float | None:
    known = [one for one in costs if one is not None]
    return max(*known, sum(known) / cores) if len(known) == len(costs) else None


def test_of_splits_that_cores_make_equal_the_most_even_one_is_taken() -> None:
    def cost(first: int, end: int) -> float:
        return float(sum([6, 1, 1, 4][first:end]))

    assert best_split(4, 2, 1, cost) == [1, 3]


def test_thirty_stages_are_split_without_trying_all_splits() -> None:
    def cost(first: int, end: int) -> float:
        return sum(1.0 + stage % 7 for stage in range(first, end)) + 0.5 * (end < 30)

    found = best_split(30, 9, 9, cost)
    assert found is not None and sum(found) == 30 and len(found) == 9
