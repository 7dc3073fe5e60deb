"""One set of weights in several stages: the sum of its gradients, and what can not share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from each import each
from gradcheck import assert_gradient
from networks import chain, design
from tied import assert_alike, tied_chain, unrolled

from asyncdni.data import load
from asyncdni.errors import CheckpointError, ConfigError, RemoteProtocolError
from asyncdni.plan.build import Design, make_stage, make_whole_stage
from asyncdni.plan.describe import describe, dot
from asyncdni.schedules.base import Source
from asyncdni.stages.numpy.stage import NumpyStage
from asyncdni.store.manifest import identity

PLAIN = {"name": "sgd", "learning_rate": 1.0}


def one_batch(stages: Any, **run: Any) -> Design:
    """All 23 samples in one batch, float64, one step of plain gradient descent."""
    return design(
        stages,
        {"name": "locked"},
        data={"batch_size": 23},
        optimizer=PLAIN,
        run={"epochs": 1, "dtype": "float64", **run},
    )


def data_of(made: Design) -> tuple[Any, Any]:
    chosen = made.experiment
    dataset = load(chosen.data, chosen.run.seed)
    return dataset.batch(0, 0, 23, chosen.run.seed, np.dtype("float64"))


def moved(made: Design) -> dict[str, dict[str, Any]]:
    """The gradient of the mean loss: what one step of rate 1 has taken off the weights."""
    stage = make_stage(made, made.plan.groups[0])
    before = copied(stage)
    x, y = data_of(made)
    stage.forward(0, {"data": x}, {"y": y})
    stage.backward(0, {}, source=Source.TRUE, learn=True, send=False)
    assert stage.update() == {}
    after = copied(stage)
    return {s: {n: before[s][n] - after[s][n] for n in before[s]} for s in before}


def copied(stage: NumpyStage) -> dict[str, dict[str, Any]]:
    return {s: {n: array.copy() for n, array in own.items()} for s, own in stage.state().items()}


@pytest.mark.parametrize(
    ("stages", "names"), [(tied_chain(), ("s1", "s2", "s3")), (unrolled(), ("h1", "h2"))]
)
def test_the_step_is_the_sum_of_the_gradients_at_every_place(
    stages: Any, names: tuple[str, ...]
) -> None:
    """Against central differences of the loss by the one set of weights."""
    made = one_batch(stages, split=[len(stages)])
    found = moved(made)
    stage = make_whole_stage(made)
    x, y = data_of(made)
    at = stage.state()[names[0]]["0.weight"].copy()

    def loss() -> float:
        for name in names:
            np.copyto(stage.state()[name]["0.weight"], at)
        return sum(score.loss for score in stage.evaluate({"data": x}, {"y": y}).scores) / len(x)

    for name in names:
        assert_gradient(found[name]["0.weight"], loss, at, tolerance=1e-7)


def test_an_unrolled_recurrence_has_the_gradients_of_automatic_differentiation() -> None:
    torch = pytest.importorskip("torch")
    made = one_batch(unrolled(), split=[6])
    found, state = moved(made), copied(make_whole_stage(made))
    x, y = (torch.from_numpy(array.astype("float64")) for array in data_of(made))
    names = [("h1", "0.weight"), ("h1", "0.bias"), ("top", "0.weight"), ("top", "0.bias")]
    leaves = [torch.from_numpy(state[s][n]).requires_grad_() for s, n in names]
    weight, bias, out, offset = leaves
    h = torch.zeros(len(x), len(bias), dtype=torch.float64)
    for step in x.reshape(len(x), 2, -1).unbind(1):
        h = torch.tanh(torch.cat([step, h], dim=1) @ weight.T + bias)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        h @ out.T + offset, y, reduction="sum"
    )
    (loss / len(x)).backward()
    for (stage, name), leaf in zip(names, leaves, strict=True):
        np.testing.assert_allclose(found[stage][name], leaf.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_copies_begin_alike_in_every_worker_and_other_stages_do_not() -> None:
    stages = tied_chain()
    made = design(stages, {"name": "locked"})
    weights: dict[str, Any] = {}
    for group in made.plan.groups:
        weights |= make_stage(made, group).state()
    assert_alike(stages, weights)
    apart = make_whole_stage(design(chain(5), {"name": "locked"})).state()
    np.testing.assert_array_equal(weights["s1"]["0.weight"], apart["s1"]["0.weight"])
    assert not np.array_equal(weights["s2"]["0.weight"], apart["s2"]["0.weight"])


def test_running_statistics_and_masks_stay_each_stages_own() -> None:
    stages = chain(4)
    for stage in stages[:3]:
        stage["layers"] = [{"dense": 6}, "batch_norm", {"dropout": 0.5}]
    stages[2]["weights"] = "s1"
    stage = make_whole_stage(design(stages, {"name": "locked"}))
    ones = np.ones((64, 6), np.float32)
    one, other = stage._blocks["s1"], stage._blocks["s2"]
    given = [block.forward(0, [ones], {}, block.slot())[0] for block in (one, other)]
    assert not np.array_equal(given[0] == 0, given[1] == 0)
    one.forward(1, [3 * ones], {}, one.slot())
    mean = "1.running_mean"
    assert not np.array_equal(stage.state()["s1"][mean], stage.state()["s2"][mean])


def test_a_shared_update_waits_for_the_gradients_of_other_workers() -> None:
    made = design(unrolled(), {"name": "locked"}, run={"split": [3, 2, 1]})
    stage = make_stage(made, made.plan.groups[0])
    x, y = np.ones((5, 8), np.float32), np.ones((5, 4), np.float32)
    before = copied(stage)["h1"]["0.weight"]
    stage.forward(0, {"data": x}, {"y": y})
    gradient = {"h2": np.ones((5, 6), np.float32)}
    stage.backward(0, gradient, source=Source.TRUE, learn=True, send=False)
    given = stage.update()
    assert given.keys() == {"h1"} and given["h1"].shape == (1, 6 * 10 + 6)
    assert np.array_equal(stage.state()["h1"]["0.weight"], before)
    with pytest.raises(AssertionError, match="awaited"):
        stage.snapshot()
    stage.apply(0, {"h2": -given["h1"]})  # both cancel
    np.testing.assert_array_equal(stage.state()["h1"]["0.weight"], before)
    stage.snapshot()


def test_a_gradient_of_another_size_is_not_applied() -> None:
    made = design(unrolled(), {"name": "locked"}, run={"split": [3, 2, 1]})
    stage = make_stage(made, made.plan.groups[0])
    stage.forward(0, {"data": np.ones((5, 8), np.float32)}, {})
    stage.update()
    with pytest.raises(
        RemoteProtocolError, match=r"h1 shares is float32 \(3,\), expected .* \(M, 66\)"
    ):
        stage.apply(0, {"h2": np.ones(3, np.float32)})


# --- the file ------------------------------------------------------------------------------------


def changed(index: int, **changes: Any) -> Any:
    stages = chain(4)
    stages[index] |= changes
    return stages


REFUSED = {
    "unknown": (changed(1, weights="s9"), r"\(s1\).weights: there is no stage 's9'.*known: s0, s1"),
    "itself": (changed(1, weights="s1"), r"\(s1\).weights: the stage names itself"),
    "a chain": (
        [*changed(1, weights="s2")[:2], {**chain(4)[2], "weights": "s1"}, chain(4)[3]],
        r"\(s1\).weights: s2 itself uses the weights of 's1'",
    ),
    "another shape": (
        changed(1, weights="s0"),
        r"\(s1\).weights: its layers get shape \(6,\), those of s0 \(8,\)",
    ),
    "other layers": (
        changed(2, weights="s1", layers=[{"dense": 6}, "tanh"]),
        r"\(s2\).weights: its layers are \[\{'dense': 6\}, 'tanh'\], those of s1 .*'relu'\]",
    ),
    "an optimizer of its own": (
        changed(2, weights="s1", optimizer={"learning_rate": 0.1}),
        r"\(s2\).optimizer: the weights are those of s1, whose optimizer moves them",
    ),
}


@each("case", REFUSED)
def test_stages_that_can_not_share_are_refused(case: str) -> None:
    stages, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as caught:
        design(stages, {"name": "locked"})
    assert "\n" not in str(caught.value)


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("synthetic", {"on_full": "skip"}),
    ("synthetic", {"update_probability": 0.5}),
    ("synthetic", {"correct": True}),
    ("synthetic", {"mix": 0.5}),
    ("synthetic", {"guard": {}}),
    ("local_loss", {"replay": 2}),
    ("delayed", {"anneal_epochs": 1.0}),
]


@each("name, option", OPTIONS)
def test_options_that_leave_updates_out_are_refused_between_workers_alone(
    name: str, option: dict[str, Any]
) -> None:
    (key,) = option
    with pytest.raises(ConfigError, match=f"^schedule.{key}: stage s1 shares its weights with"):
        design(tied_chain(), {"name": name, **option})
    design(tied_chain(), {"name": name, **option}, run={"split": [1, 3, 1]})


def test_an_option_of_a_single_stage_is_refused_as_well() -> None:
    stages = tied_chain()
    stages[2]["schedule"] = {"guard": {}}
    with pytest.raises(ConfigError, match=r"schedule.guard: stage s2 shares"):
        design(stages, {"name": "synthetic"})


# --- what people and checkpoints see -------------------------------------------------------------


def test_a_table_of_the_network_counts_the_weights_once() -> None:
    tied = design(tied_chain(), {"name": "locked"})
    text = describe(tied.network)
    assert text.count("of s1\n") == 2
    total = 8 * 6 + 6 + 6 * 6 + 6 + 6 * 4 + 4
    assert text.endswith(f"{total}\n")
    assert dot(tied).count("weights of s1") == 2


def test_a_checkpoint_belongs_to_the_same_sharing_alone() -> None:
    tied, plain = (design(s, {"name": "locked"}) for s in (tied_chain(), chain(5)))
    own, other = (identity(one.experiment, one.meta)["network"] for one in (tied, plain))
    assert own["s2"]["weights"] == "s1" and "weights" not in other["s2"]
    assert own["s1"] == other["s1"]


def test_the_state_of_one_copy_can_not_be_left_out() -> None:
    made = design(tied_chain(), {"name": "locked"}, run={"split": [5]})
    stage = make_stage(made, made.plan.groups[0])
    state = stage.snapshot()
    del state["s2"]
    with pytest.raises(CheckpointError, match="state of stage s2"):
        stage.restore(state)
