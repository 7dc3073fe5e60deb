"""The graph of stages: order, shapes, joins, losses, and every refusal in its words."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
from each import each
from hypothesis import given
from hypothesis import strategies as st

from asyncdni.data.meta import Meta
from asyncdni.errors import ConfigError
from asyncdni.experiment import parse
from asyncdni.messages import DATA
from asyncdni.network import Network, make_network

META = Meta(input_shape=(20,), targets="classes", outputs=4, train_samples=100, test_samples=30)
VALUES = Meta(input_shape=(20,), targets="values", outputs=4, train_samples=100, test_samples=30)


def stage(name: str, width: int = 8, **keys: Any) -> dict[str, Any]:
    return {"name": name, "layers": [{"dense": width}, "relu"], **keys}


def top(name: str = "top", **keys: Any) -> dict[str, Any]:
    return {"name": name, "layers": [{"dense": 4}], "loss": "cross_entropy", **keys}


def network(*stages: dict[str, Any], meta: Meta = META) -> Network:
    return make_network(parse({"data": {"name": "digits"}, "stages": list(stages)}), meta)


def refusal(*stages: dict[str, Any], meta: Meta = META) -> str:
    with pytest.raises(ConfigError) as caught:
        network(*stages, meta=meta)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_chain_reads_the_stage_before() -> None:
    nodes = network(stage("a", 16), stage("b"), top()).nodes
    assert [node.inputs for node in nodes] == [(DATA,), ("a",), ("b",)]
    assert [node.consumers for node in nodes] == [("b",), ("top",), ()]
    assert [node.joined_shape for node in nodes] == [(20,), (16,), (8,)]
    assert [node.output_shape for node in nodes] == [(16,), (8,), (4,)]
    assert [node.place for node in nodes][1] == "stages[1] (b)"


def test_a_fork_to_three_is_joined_again() -> None:
    found = network(
        stage("a", 16),
        stage("b", 5, inputs=["a"]),
        stage("c", 6, inputs=["a"]),
        stage("d", 7, inputs=["a"]),
        top(inputs=["d", "b", DATA]),
        top("side", inputs=["c"]),
    )
    assert found.node("a").consumers == ("b", "c", "d")
    assert found.node("top").inputs == ("d", "b", DATA)
    assert found.node("top").input_shapes == ((7,), (5,), (20,))
    assert found.node("top").joined_shape == (32,)


def test_a_sum_keeps_the_shape() -> None:
    found = network(stage("a"), stage("b", inputs=[DATA]), top(inputs=["a", "b"], join="sum")).node(
        "top"
    )
    assert (found.input_shapes, found.joined_shape) == (((8,), (8,)), (8,))


class Flatten:
    """A layer of the user's own: (H, W) to (H * W,)."""

    params: ClassVar[dict[str, Any]] = {}
    grads: ClassVar[dict[str, Any]] = {}
    buffers: ClassVar[dict[str, Any]] = {}
    fresh = True

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(shape),)

    def build(self, shape: tuple[int, ...], dtype: Any, streams: Any) -> tuple[int, ...]:
        return self.output_shape(shape)

    def forward(self, x: Any, slot: Any) -> Any:
        return x.reshape(len(x), -1)

    def backward(self, grad_y: Any, slot: Any, *, learn: bool, send: bool) -> Any:
        return grad_y

    def evaluate(self, x: Any) -> Any:
        return x.reshape(len(x), -1)


def test_feature_maps_are_joined_along_their_channels() -> None:
    meta = Meta(
        input_shape=(3, 6, 4), targets="classes", outputs=4, train_samples=9, test_samples=9
    )
    maps = {"name": "maps", "layers": [{"conv2d": {"channels": 2, "kernel": 3, "padding": "same"}}]}
    flat = top(layers=["flatten", {"dense": 4}], inputs=[DATA, "maps"])
    experiment = parse({"data": {"name": "digits"}, "stages": [maps, flat]})
    found = make_network(experiment, meta).node("top")
    assert found.joined_shape == (5, 6, 4)
    maps["layers"] = [{"conv2d": {"channels": 2, "kernel": 3}}]
    experiment = parse({"data": {"name": "digits"}, "stages": [maps, flat]})
    with pytest.raises(ConfigError, match=r"differ in the channel axis only, got data \(3, 6, 4\)"):
        make_network(experiment, meta)


def test_windows_are_joined_along_their_last_axis() -> None:
    meta = Meta(input_shape=(3, 2), targets="classes", outputs=4, train_samples=9, test_samples=9)
    images = [{"name": name, "layers": ["relu"], "inputs": [DATA]} for name in "ab"]
    flat = top(layers=[{f"{__name__}:Flatten": {}}, {"dense": 4}], inputs=["b", "a"])
    experiment = parse({"data": {"name": "digits"}, "stages": [*images, flat]})
    found = make_network(experiment, meta, allow_import=True).node("top")
    assert found.joined_shape == (3, 4)


def test_images_are_not_joined_with_vectors() -> None:
    meta = Meta(input_shape=(3, 2), targets="classes", outputs=4, train_samples=9, test_samples=9)
    flat = {"name": "flat", "layers": [{f"{__name__}:Flatten": {}}]}
    experiment = parse({"data": {"name": "digits"}, "stages": [flat, top(inputs=[DATA, "flat"])]})
    with pytest.raises(ConfigError, match="shapes that differ in the last axis only, got data"):
        make_network(experiment, meta, allow_import=True)


def test_stages_in_any_order_are_sorted_and_otherwise_stay_as_declared() -> None:
    found = network(
        top(inputs=["c", "a"]),
        stage("c", inputs=["b"]),
        stage("a", inputs=[DATA]),
        stage("b", inputs=[DATA]),
    )
    assert [node.name for node in found.nodes] == ["a", "b", "c", "top"]
    assert [node.index for node in found.nodes] == [0, 1, 2, 3]
    assert found.node("top").place == "stages[0] (top)"


@given(st.data())
def test_sorted_stages_follow_all_they_read(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 7))
    names = [f"s{i}" for i in range(count)]
    stages = [
        top(name, inputs=data.draw(st.lists(st.sampled_from([DATA, *names[:i]]), min_size=1,
                                            unique=True)))
        for i, name in enumerate(names)
    ]  # fmt: skip
    found = network(*data.draw(st.permutations(stages)))
    seen = {DATA}
    for node in found.nodes:
        assert seen.issuperset(node.inputs)
        assert all(node.name in found.node(other).inputs for other in node.consumers)
        seen.add(node.name)
    assert seen == {DATA, *names}


def test_a_target_is_the_own_loss_or_the_nearest_downstream() -> None:
    found = network(
        stage("a", 4),
        top("b", loss="mse", inputs=["a"]),
        top("c", loss="sigmoid_cross_entropy", inputs=["d"]),
        stage("d", 4, inputs=["a"]),
        top("e", loss="mse", inputs=["c"]),
        meta=VALUES,
    )
    targets = {node.name: found.target_of(node) for node in found.nodes}
    assert targets["a"] == ("mse", 4)
    assert targets["d"] == targets["c"] == ("sigmoid_cross_entropy", 4)
    assert targets["b"] == targets["e"] == ("mse", 4)


REFUSALS = [
    (
        [stage("hidden"), top(inputs=["hiden"])],
        "stages[1] (top).inputs: nothing produces 'hiden' (edge hiden -> top), did you mean "
        "'hidden'? known: data, hidden, top",
    ),
    (
        [stage("a"), top(inputs=["top"])],
        "stages[1] (top).inputs: the stage reads itself (edge top -> top)",
    ),
    (
        [stage("a"), top(inputs=["a", "a"])],
        "stages[1] (top).inputs: 'a' is given 2 times; expected each input once",
    ),
    (
        [
            stage("z"),
            stage("a", inputs=["c", "z"]),
            stage("b", inputs=["a"]),
            stage("c", inputs=["b"]),
            top(inputs=["c"]),
        ],
        "stages: the edges a -> b, b -> c, c -> a form a cycle; expected a graph without cycles",
    ),
    (
        [stage("a"), stage("b")],
        "stages: none has a loss, so nothing would be learned; expected loss = "
        '"cross_entropy" in the last one',
    ),
    (
        [stage("a"), stage("unread", inputs=["a"]), top(inputs=["a"])],
        "stages[1] (unread): no stage reads its output (edge unread -> nothing) and it has no "
        "loss; give it a loss, name 'unread' in the inputs of another, or remove it",
    ),
    (
        [stage("a", 8), stage("b", 9, inputs=[DATA]), top(inputs=["a", "b"], join="sum")],
        "stages[2] (top).inputs: join = 'sum' expects equal shapes, got a (8,), b (9,)",
    ),
    (
        [stage("a"), top(loss="mse")],
        "stages[1] (top).loss: mse does not fit the data set, whose targets are 4 classes; "
        "expected cross_entropy",
    ),
    (
        [stage("a"), top(layers=[{"dense": 5}])],
        "stages[1] (top).loss: cross_entropy over 4 classes expects the stage to end in shape "
        "(4,), got (5,); the labels, y_train and y_test, go up to 3: change the last layer, or "
        "number the labels from 0 without gaps",
    ),
]


@each("stages, message", REFUSALS)
def test_a_network_that_does_not_fit_is_refused(stages: list[dict[str, Any]], message: str) -> None:
    assert refusal(*stages) == message


def test_values_need_a_loss_of_values() -> None:
    assert refusal(top(), meta=VALUES) == (
        "stages[0] (top).loss: cross_entropy does not fit the data set, whose targets are 4 "
        "values; expected sigmoid_cross_entropy or mse"
    )
    assert refusal(stage("a"), meta=VALUES).endswith(
        'expected loss = "sigmoid_cross_entropy" or "mse" in the last one'
    )


def test_a_layer_that_gets_another_shape_is_named_with_both_shapes() -> None:
    meta = Meta(
        input_shape=(1, 6, 4), targets="classes", outputs=4, train_samples=9, test_samples=9
    )
    text = refusal({"name": "top", "layers": [{"dense": 4}], "loss": "cross_entropy"}, meta=meta)
    assert text.startswith("stages[0] (top).layers[0]: a dense layer takes inputs of shape (D,)")
    assert "(1, 6, 4)" in text


def test_a_layer_that_can_not_be_made_is_named() -> None:
    text = refusal(stage("a"), top(layers=["relu", "dens"]))
    assert text.startswith("stages[1] (top).layers[1]: unknown layer 'dens'")


def test_code_of_the_user_is_imported_only_on_request() -> None:
    text = refusal(top(layers=["asyncdni.nn.layers.dense:Dense"]))
    assert text.startswith("stages[0] (top).layers[0]: ") and "--allow-import" in text
    layer = {"asyncdni.nn.layers.dense:Dense": 4}
    experiment = parse({"data": {"name": "digits"}, "stages": [top(layers=[layer])]})
    assert make_network(experiment, META, allow_import=True).nodes[0].output_shape == (4,)
