"""Workers and batches: splits of chains and graphs, barriers, names, lone samples."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdni.data.meta import Meta
from asyncdni.errors import ConfigError
from asyncdni.experiment import parse
from asyncdni.messages import DATA
from asyncdni.network import make_network
from asyncdni.plan.plan import EVALUATIONS_MAX, Plan, barriers, make_plan


def meta(train_samples: int = 100) -> Meta:
    return Meta(
        input_shape=(20,),
        targets="classes",
        outputs=4,
        train_samples=train_samples,
        test_samples=30,
    )


def stage(name: str, *inputs: str, loss: bool = False, **keys: Any) -> dict[str, Any]:
    layers = [{"dense": 4}]
    table = {"name": name, "layers": layers, "loss": "cross_entropy" if loss else None, **keys}
    return {**table, "inputs": list(inputs)} if inputs else table


CHAIN = [stage("a"), stage("b"), stage("c"), stage("d", loss=True)]
GRAPH = [
    stage("a", DATA),
    stage("b", "a"),
    stage("c", "a", DATA),
    stage("d", "a"),
    stage("e", "d", "b", loss=True),
    stage("f", "c", DATA, loss=True),
]


def plan(
    stages: list[dict[str, Any]],
    split: list[int] | None = None,
    *,
    batch_size: int = 10,
    train_samples: int = 100,
    schedule: dict[str, Any] | None = None,
    checkpoint: dict[str, Any] | None = None,
    **run: Any,
) -> Plan:
    experiment = parse(
        {
            "data": {"name": "digits", "batch_size": batch_size},
            "stages": stages,
            "schedule": schedule or {"name": "synthetic"},
            "checkpoint": checkpoint or {},
            "run": {"split": split, **run},
        }
    )
    data = meta(train_samples)
    return make_plan(experiment, make_network(experiment, data), data)


def refusal(*arguments: Any, **keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(*arguments, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_split_each_stage_has_a_worker() -> None:
    groups = plan(CHAIN).groups
    assert [group.name for group in groups] == ["a", "b", "c", "d"]
    assert [group.producers for group in groups] == [(DATA,), ("a",), ("b",), ("c",)]
    assert [group.consumers for group in groups] == [("b",), ("c",), ("d",), ()]
    assert [group.exit for group in groups] == ["a", "b", "c", None]
    assert [group.has_loss for group in groups] == [False, False, False, True]
    assert [group.reads_data for group in groups] == [True, False, False, False]


def test_a_chain_is_split_as_asked() -> None:
    groups = plan(CHAIN, [2, 1, 1]).groups
    assert [group.name for group in groups] == ["a+b", "c", "d"]
    assert [group.producers for group in groups] == [(DATA,), ("a+b",), ("c",)]
    assert groups[0].exit == "b"
    assert [node.name for node in groups[0].members] == ["a", "b"]


def test_one_worker_may_have_all() -> None:
    (group,) = plan(GRAPH, [6]).groups
    assert (group.exit, group.producers, group.consumers) == (None, (DATA,), ())


def test_a_graph_names_its_neighbours_in_order_and_who_reads_data() -> None:
    found = plan(GRAPH)
    by_name = {group.name: group for group in found.groups}
    assert by_name["a"].consumers == ("b", "c", "d")
    assert by_name["e"].producers == ("d", "b")
    assert by_name["f"].producers == ("c", DATA)
    assert (found.host, found.feeds) == (0, ("c", "f"))


def test_a_fused_group_of_a_graph_has_one_exit() -> None:
    groups = plan(GRAPH, [1, 1, 1, 2, 1]).groups
    fused = groups[3]
    assert (fused.name, fused.producers, fused.consumers) == ("d+e", ("a", "b"), ())


def test_a_split_of_the_wrong_size_gives_both_numbers() -> None:
    assert refusal(CHAIN, [2, 1]) == (
        "run.split: [2, 1] gives 3 stages to workers, expected 4, as many as the network has"
    )
    assert "gives 0 stages" in refusal(CHAIN, [])


def test_two_exits_of_one_worker_are_refused_by_name() -> None:
    assert refusal(GRAPH, [2, 1, 1, 1, 1]) == (
        "run.split: worker a+b would send on the activations of a and b, expected those of one "
        "stage; split so that they are in different workers, or their readers in the same one"
    )


def test_stages_out_of_order_are_split_in_sorted_order() -> None:
    first, *others = CHAIN
    named = [
        {**one, "inputs": [before["name"]]} for before, one in zip(CHAIN, others, strict=False)
    ]
    groups = plan([*reversed(named), {**first, "inputs": [DATA]}], [3, 1]).groups
    assert [group.name for group in groups] == ["a+b+c", "d"]


@given(st.data())
def test_whatever_the_split_activations_only_flow_forward(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 7))
    names = [f"s{i}" for i in range(count)]
    stages = []
    for i, name in enumerate(names):
        known = st.sampled_from([DATA, *names[:i]])
        inputs = data.draw(st.lists(known, min_size=1, unique=True))
        stages.append(stage(name, *inputs, loss=True))
    split = []
    while sum(split) < count:
        split.append(data.draw(st.integers(1, count - sum(split))))
    try:
        groups = plan(data.draw(st.permutations(stages)), split).groups
    except ConfigError as error:
        assert "would send on the activations of" in str(error)
        return
    index = {group.name: group.index for group in groups} | {DATA: -1}
    for group in groups:
        assert all(index[name] < group.index for name in group.producers)
        assert all(group.name in groups[index[name]].producers for name in group.consumers)
        assert (group.exit is None) == (group.consumers == ())
    assert [len(group.members) for group in groups] == split


# --- batches -------------------------------------------------------------------------------------


def test_batches_are_counted_with_the_smaller_last_one() -> None:
    found = plan(CHAIN, batch_size=16, train_samples=100, epochs=3)
    assert (found.batches_per_epoch, found.test_batches, found.batches) == (7, 2, 21)
    assert found.barriers == (7, 14, 21)


def test_microbatches_are_the_batches_that_flow_and_barriers_stand_between_whole_ones() -> None:
    """100 samples in batches of 16 are 6 whole ones and one of 4: of 4 microbatches, it has 1."""
    schedule = {"name": "gpipe", "microbatches": 4}
    found = plan(
        CHAIN, batch_size=16, train_samples=100, epochs=2, evaluate_every=0.5, schedule=schedule
    )
    assert (found.batch_size, found.per_update) == (4, 4)
    assert (found.updates_per_epoch, found.batches_per_epoch, found.batches) == (7, 25, 50)
    assert found.barriers == (16, 25, 37, 50)  # after 4, 7, 7 + 3 and 14 whole batches
    assert found.test_batches == 2  # of 16, as ever


def test_the_last_microbatch_of_an_epoch_may_be_smaller() -> None:
    schedule = {"name": "1f1b", "microbatches": 3}
    found = plan(CHAIN, batch_size=6, train_samples=23, epochs=1, schedule=schedule)
    assert (found.batch_size, found.updates_per_epoch, found.batches_per_epoch) == (2, 4, 12)


def test_microbatches_of_one_sample_are_refused_under_batch_norm() -> None:
    schedule = {"name": "gpipe", "microbatches": 5}
    assert refusal(NORMALISED, batch_size=5, train_samples=20, schedule=schedule) == (
        "stages[0] (a): its batch_norm needs at least 2 samples a batch, but every training batch "
        "would have 1 (data.batch_size = 5 in 5 microbatches, 20 training samples); do without "
        "batch_norm"
    )


def test_depth_counts_workers_down_to_the_farthest_loss() -> None:
    depths = {group.name: group.depth for group in plan(GRAPH).groups}
    assert depths == {"a": 2, "b": 1, "c": 1, "d": 1, "e": 0, "f": 0}
    assert [group.depth for group in plan(CHAIN, [2, 1, 1]).groups] == [2, 1, 0]


def test_synthetic_inputs_give_the_data_to_every_worker_that_has_producers() -> None:
    schedule = {"name": "synthetic", "synthetic_inputs": True}
    found = plan(GRAPH, schedule=schedule)
    assert [group.synthetic_inputs for group in found.groups] == [False, *[True] * 5]
    assert all(group.producers.count(DATA) == 1 for group in found.groups)
    assert found.feeds == ("b", "c", "d", "e", "f")
    assert found.test_feeds == ("c", "f")  # those that read it anyway
    assert plan(GRAPH).feeds == plan(GRAPH).test_feeds == ("c", "f")


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "every", "expected"),
    [
        (0, 40, 1.0, (0,)),
        (1, 40, 1.0, (40,)),
        (3, 40, 1.0, (40, 80, 120)),
        (3, 40, 2.0, (80, 120)),
        (3, 40, 10.0, (120,)),
        (1, 40, 0.25, (10, 20, 30, 40)),
        (1, 10, 0.3, (3, 6, 9, 10)),
        (1, 3, 0.5, (2, 3)),
        (1, 4, 1e-300, (1, 2, 3, 4)),
        (2, 3, 1e308, (6,)),
    ],
)
def test_barriers_stand_at_multiples_and_at_the_end(
    epochs: int, per_epoch: int, every: float, expected: tuple[int, ...]
) -> None:
    assert barriers(epochs * per_epoch, per_epoch, every) == expected


@given(
    st.integers(0, 20),
    st.integers(1, 50),
    st.floats(0, 30, exclude_min=True, allow_subnormal=False),
)
def test_barriers_rise_and_end_with_the_run(epochs: int, per_epoch: int, every: float) -> None:
    found = barriers(epochs * per_epoch, per_epoch, every)
    assert found[-1] == epochs * per_epoch
    assert list(found) == sorted(set(found))
    assert all(position > 0 for position in found[:-1])
    gaps = [b - a for a, b in pairwise([0, *found[:-1]])]
    assert all(abs(gap - max(1.0, every * per_epoch)) <= 1 for gap in gaps)


def test_more_evaluations_than_sensible_are_refused() -> None:
    text = refusal(CHAIN, epochs=10**9)
    assert text == (
        "run.evaluate_every: 1 asks for 1000000000 barriers in 1000000000 epochs, "
        f"expected at most {EVALUATIONS_MAX}; raise it or lower run.epochs"
    )


# --- checkpoints ---------------------------------------------------------------------------------


def test_by_default_checkpoints_go_by_time_and_add_no_barrier() -> None:
    found = plan(CHAIN, epochs=3)
    assert (found.cuts, found.cut_barriers) == ((), ())


def test_checkpoints_by_epochs_are_barriers_of_the_plan() -> None:
    """Ten batches an epoch: evaluations after 10, 20 and 30, checkpoints after 5, 10, …"""
    found = plan(CHAIN, epochs=3, checkpoint={"every": 0.5})
    assert found.cuts == (5, 10, 15, 20, 25, 30)
    assert found.barriers == (5, 10, 15, 20, 25, 30)
    assert found.cut_barriers == (5, 15, 25)  # for nothing else


def test_the_end_is_for_a_checkpoint_and_an_evaluation_whatever_the_steps() -> None:
    found = plan(CHAIN, epochs=3, evaluate_every=2.0, checkpoint={"every": 1.3})
    assert found.barriers == (13, 20, 26, 30)
    assert found.cuts == (13, 26, 30)
    assert found.cut_barriers == (13, 26)


def test_checkpoints_by_epochs_part_no_batch_into_its_microbatches() -> None:
    """100 samples in batches of 16, each of 4 microbatches but the last one of 1: see above."""
    schedule = {"name": "gpipe", "microbatches": 4}
    sizes = {"batch_size": 16, "train_samples": 100, "epochs": 1}
    found = plan(CHAIN, schedule=schedule, checkpoint={"every": 0.3}, **sizes)
    assert found.cuts == (8, 16, 24, 25)
    assert found.barriers == (8, 16, 24, 25)


def test_more_checkpoints_than_sensible_are_refused_by_their_own_name() -> None:
    text = refusal(CHAIN, epochs=10**6, evaluate_every=1e6, checkpoint={"every": 0.1})
    assert text.startswith("checkpoint.every: 0.1 asks for ")


# --- a batch of one sample -----------------------------------------------------------------------

NORMALISED = [stage("a", layers=[{"dense": 8}, "batch_norm"]), stage("b", loss=True)]


@pytest.mark.parametrize("layer", ["batch_norm", {"batch_norm": {"momentum": 0.2}}])
def test_a_lone_last_sample_is_refused_under_batch_norm(layer: object) -> None:
    stages = [stage("a"), stage("b", layers=[layer]), stage("c", loss=True)]
    assert refusal(stages, batch_size=10, train_samples=101) == (
        "stages[1] (b): its batch_norm needs at least 2 samples a batch, but the last training "
        "batch of an epoch would have 1 (data.batch_size = 10, 101 training samples); use "
        "data.batch_size = 11 or do without batch_norm"
    )


def test_batches_of_one_are_refused_under_batch_norm() -> None:
    assert refusal(NORMALISED, batch_size=1, train_samples=5) == (
        "stages[0] (a): its batch_norm needs at least 2 samples a batch, but every training batch "
        "would have 1 (data.batch_size = 1, 5 training samples); use data.batch_size = 3 or do "
        "without batch_norm"
    )


def test_the_cure_is_left_out_where_no_batch_size_helps() -> None:
    assert refusal(NORMALISED, batch_size=10, train_samples=1).endswith(
        "(data.batch_size = 10, 1 training samples); do without batch_norm"
    )


def test_a_generator_with_batch_norm_needs_two_samples_as_well() -> None:
    schedule = {"name": "synthetic", "generator": {"kind": "mlp"}}
    text = refusal(CHAIN, [2, 2], batch_size=10, train_samples=101, schedule=schedule)
    assert text.startswith("the generator of b: its batch_norm needs at least 2 samples a batch")


@pytest.mark.parametrize(
    ("stages", "keys"),
    [
        (NORMALISED, {"train_samples": 102}),
        (CHAIN, {"train_samples": 101}),
        (CHAIN, {"batch_size": 1}),
        (CHAIN[3:], {"batch_size": 1, "schedule": {"generator": {"kind": "mlp"}}}),
    ],
)
def test_other_batches_and_networks_are_taken(stages: Any, keys: Any) -> None:
    assert plan(stages, **keys).batches > 0


# --- names ---------------------------------------------------------------------------------------


def test_the_group_of_a_stage_is_found() -> None:
    found = plan(CHAIN, [2, 1, 1])
    assert found.group_of("b").name == "a+b"
    with pytest.raises(KeyError):
        found.group_of("x")


@pytest.mark.parametrize(
    ("width", "expected"),
    [(21, ["a" * 21 + "+" + "b" * 21 + "+" + "c" * 20]), (22, ["a" * 22 + ".." + "c" * 20])],
)
def test_a_name_that_grows_too_long_is_that_of_the_first_and_the_last_stage(
    width: int, expected: list[str]
) -> None:
    stages = [stage("a" * width), stage("b" * width), stage("c" * 20, loss=True)]
    assert [group.name for group in plan(stages, [3]).groups] == expected


def test_shortened_names_are_those_that_neighbours_know() -> None:
    names = [f"a_rather_long_name_of_stage_{n}" for n in range(6)]
    stages = [stage(name, loss=name == names[-1]) for name in names]
    first, second = plan(stages, [3, 3]).groups
    assert first.name == f"{names[0]}..{names[2]}"
    assert second.producers == (first.name,) and first.consumers == (second.name,)
