"""The tables of a network and its workers."""

from __future__ import annotations

import networks
from each import each
from streaming import copying, recurrent

from asyncdni.data.meta import Meta
from asyncdni.experiment import parse
from asyncdni.network import make_network
from asyncdni.plan.describe import Model, describe, describe_workers, models_of, parameters

META = Meta(input_shape=(20,), targets="classes", outputs=4, train_samples=100, test_samples=30)
NETWORK = make_network(
    parse(
        {
            "data": {"name": "digits"},
            "stages": [
                {"name": "a", "layers": [{"dense": 8}, "batch_norm", "relu"]},
                {"name": "b", "layers": [{"dense": {"width": 8, "bias": False}}]},
                {
                    "name": "top",
                    "inputs": ["a", "b"],
                    "join": "sum",
                    "layers": [{"dense": 4}],
                    "loss": "cross_entropy",
                },
            ],
        }
    ),
    META,
)


def test_the_table_has_a_line_a_stage_and_the_sum() -> None:
    assert describe(NETWORK) == (
        "stage  inputs  layers                     output  loss           parameters\n"
        "a      data    dense 8, batch_norm, relu  8       -                     184\n"
        "b      a       dense width=8 bias=false   8       -                      64\n"
        "top    a + b   dense 4                    4       cross_entropy          36\n"
        "total                                                                   284\n"
    )


def test_parameters_are_weights_biases_and_scales() -> None:
    assert [parameters(node) for node in NETWORK.nodes] == [20 * 8 + 8 + 16, 64, 8 * 4 + 4]


LINEAR = {"kind": "linear", "labels": False}


def test_the_table_of_workers_says_who_sends_what_to_whom_and_by_which_rule() -> None:
    """7 inputs and 4 values: the data are two numbers of 3 bits, their sum has 4."""
    stages = networks.diamond()
    stages[1]["schedule"] = {"name": "locked"}
    design = networks.design(stages, {"name": "synthetic", "generator": LINEAR})
    assert describe_workers(design) == (
        "worker  schedule   sends   to                models            their parameters\n"
        "root    synthetic  root 6  long, top, aside  linear generator                42\n"
        "long    locked     long 6  top               -                                0\n"
        "top     synthetic  -       -                 -                                0\n"
        "aside   synthetic  -       -                 -                                0\n"
    )


def test_stages_of_one_worker_share_a_line_and_a_generator() -> None:
    design = networks.design(
        networks.chain(3), {"name": "gpipe", "microbatches": 5}, run={"split": [2, 1]}
    )
    assert describe_workers(design).splitlines()[1].split() == [
        *("s0+s1", "gpipe,", "5", "microbatches", "s1", "6", "top", "-", "0")
    ]


@each(
    "schedule, expected",
    [
        ({"name": "locked"}, []),
        ({"name": "local_loss"}, [Model("local head", "s0", 6 * 4 + 4)]),
        ({"name": "synthetic"}, [Model("error generator", "s0", 2 * 6 * 4 + 4)]),
        ({"name": "synthetic", "mix": 1}, []),
    ],
)
def test_the_models_of_a_worker_follow_from_its_schedule(
    schedule: dict[str, object], expected: list[Model]
) -> None:
    design = networks.design(networks.chain(2), schedule)
    assert models_of(design, design.plan.groups[0]) == expected
    assert models_of(design, design.plan.groups[1]) == []


def test_models_of_inputs_and_of_the_future_are_counted_too() -> None:
    model = {"hidden": []}
    design = networks.design(
        networks.chain(2),
        {"name": "synthetic", "synthetic_inputs": True, "input_model": model},
    )
    (found,) = models_of(design, design.plan.groups[1])
    width = design.meta.input_shape[0]
    assert found == Model("input model of s0", "top", width * 6 + 6)
    design = copying({"name": "locked"}, recurrent("lstm", labels=6), data={"ahead": 3})
    found = models_of(design, design.plan.groups[0])[0]
    state = 10  # five units, each with a cell
    assert found == Model("future generator", "s0", state * (state + 6 + 1))
