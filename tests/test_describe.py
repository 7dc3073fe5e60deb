"""The table and the Graphviz text of a network."""

from __future__ import annotations

from asyncdni.datasets.base import Meta
from asyncdni.describe import describe, dot, parameters
from asyncdni.experiment import parse
from asyncdni.network import make_network

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


def test_the_graph_names_nodes_and_the_shapes_between_them() -> None:
    assert dot(NETWORK) == (
        "digraph network {\n"
        "    rankdir=LR\n"
        "    node [shape=box]\n"
        '    "data" [label="data\\n20"]\n'
        '    "a" [label="a\\ndense 8\\nbatch_norm\\nrelu"]\n'
        '    "b" [label="b\\ndense width=8 bias=false"]\n'
        '    "top" [label="top\\ndense 4\\nloss: cross_entropy"]\n'
        '    "data" -> "a" [label="20"]\n'
        '    "a" -> "b" [label="8"]\n'
        '    "a" -> "top" [label="8"]\n'
        '    "b" -> "top" [label="8"]\n'
        "}\n"
    )
