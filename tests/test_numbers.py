"""Numbers gone wrong: every policy, poison at every place, and what counts as an explosion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import networks
import numpy as np
import pytest
from each import each
from line import Line, bits
from test_state import SCHEDULES, make

from asyncdni import config
from asyncdni.errors import NumericalError
from asyncdni.nn.layers.normalisation import BatchNorm
from asyncdni.nn.streams import layer_streams
from asyncdni.plan.build import make_stage
from asyncdni.schedules.base import Source
from asyncdni.stages.numpy.block import Watch

BAD = pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
RAISING = each("policy", ["stop", "roll_back"])
SKIP = {"policy": "skip"}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """As in a worker, which notices by its checks."""
    with np.errstate(all="ignore"):
        yield


def line(name: str, numbers: dict[str, Any], **tables: Any) -> Line:
    schedule, lag = SCHEDULES[name]
    return Line(make(schedule, numbers=numbers, **tables), lag)


def skips(one: Line) -> dict[str, int]:
    total = {"skipped_updates": 0, "skipped_fits": 0}
    for stage in one.stages:
        for name, count in stage.skips().items():
            total[name] += count
    return total


def assert_finite(one: Line) -> None:
    for stage, own in one.snapshot().items():
        for name, array in own.items():
            assert np.isfinite(array).all(), (stage, name)


# --- a batch that is poisoned ----------------------------------------------------------------


@BAD
@pytest.mark.parametrize("name", SCHEDULES)
def test_under_skip_a_poisoned_batch_leaves_all_state_finite_and_learning_goes_on(
    name: str, bad: float
) -> None:
    one = line(name, SKIP)
    one.train(0, 4)
    assert sum(skips(one).values()) == 0
    one.poison[4] = bad
    one.train(4, 5)
    assert_finite(one)
    counted = skips(one)
    # 1e30 has no variance in float32, and is normalised to nothing
    assert counted["skipped_updates"] >= (abs(bad) != 1e30)
    before = bits(one.snapshot())
    one.train(5, 8)
    assert_finite(one)
    assert skips(one) == counted
    after = bits(one.snapshot())
    assert after["s0"]["0.weight"] != before["s0"]["0.weight"] or name == "generator-zero"
    assert after["top"]["0.weight"] != before["top"]["0.weight"]


@RAISING
@each("name", SCHEDULES)
def test_otherwise_the_first_stage_that_notices_says_so(name: str, policy: str) -> None:
    one = line(name, {"policy": policy})
    one.train(0, 3)
    one.poison[3] = np.nan
    with pytest.raises(NumericalError, match=r"stage (s0|s1|top).*(nan|inf).*numbers\.policy"):
        one.train(3, 4)


def test_stages_watch_as_the_experiment_says() -> None:
    design = make({"name": "locked"}, numbers={**SKIP, "explode": 7.0})
    stage = make_stage(design, design.plan.groups[0])
    (block,) = stage._blocks.values()
    assert block.watch.means


def test_stop_is_the_default() -> None:
    one = line("locked", {})
    one.poison[0] = np.nan
    with pytest.raises(NumericalError, match="loss of stage top is nan at batch 0: lower"):
        one.train(0, 1)


def test_an_update_that_is_left_out_is_as_if_its_batch_had_not_been() -> None:
    """But for the running statistics of what was forwarded, which this network has none of."""
    design = networks.design(networks.chain(3), {"name": "locked"}, numbers=SKIP)
    poisoned, without = Line(design), Line(design)
    poisoned.poison[3] = np.nan
    poisoned.train(0, 6)
    without.train(0, 3)
    without.train(4, 6)
    assert bits(poisoned.snapshot()) == bits(without.snapshot())
    assert skips(poisoned) == {"skipped_updates": 3, "skipped_fits": 0}


def test_a_microbatch_that_is_poisoned_takes_the_update_of_its_batch_along() -> None:
    data = {"batch_size": 6, "examples": 24}
    design = make({"name": "gpipe", "microbatches": 2}, numbers=SKIP, data=data)
    one = Line(design)
    one.poison[3] = np.nan
    one.train(0, 6)
    assert skips(one)["skipped_updates"] == len(one.stages)
    assert_finite(one)


def test_a_late_correction_of_a_poisoned_batch_does_not_take_the_next_update_along() -> None:
    one = line("corrected", SKIP)
    one.train(0, 2)
    one.poison[2] = np.nan
    one.train(2, 3)
    left_out = skips(one)["skipped_updates"]
    assert left_out == len(one.stages)
    one.train(3, 6)
    assert skips(one)["skipped_updates"] == left_out


def test_no_agreement_is_measured_on_what_is_not_a_number() -> None:
    one = line("generator-error", SKIP)
    stage = one.stages[0]
    x, y = one.batch(0)
    stage.forward(0, {"data": x}, {"y": y})
    stage.predict(0)
    grad = np.full((len(x), networks.WIDTH), np.nan, np.float32)
    assert stage.fit(0, {"s1": grad}) is None
    assert stage.skips() == {"skipped_updates": 0, "skipped_fits": 1}


# --- poison at other places ------------------------------------------------------------------

Poisoning = Callable[[Line], None]


def of(stage: int, name: str) -> Poisoning:
    """The first element of an array of one stage."""

    def poison(one: Line) -> None:
        own = one.snapshot()
        key = list(own)[stage]
        own[key][name].reshape(-1)[0] = np.nan
        one.restore(own)

    return poison


PLACES: dict[str, tuple[str, str, int]] = {
    "weights": ("locked", "0.weight", 1),
    "weights-of-the-loss": ("locked", "0.weight", 3),
    "moments": ("locked", "optimizer.first", 1),
    "generator": ("generator-error", "generator.map", 1),
    "generator-head": ("generator-error", "generator.head.weight", 1),
    "regression": ("generator-mlp", "generator.0.weight", 1),
    "scale": ("generator-linear", "generator.target_square", 1),
    "head": ("deep-head", "head.0.weight", 1),
    "input-model": ("inputs", "input_model.s0.0.weight", 1),
    "look-ahead": ("look-ahead", "versions.ahead", 1),
}


@RAISING
@each("place", [place for place in PLACES if place != "moments"])
def test_poison_in_a_model_ends_the_round_naming_a_stage(place: str, policy: str) -> None:
    name, key, stage = PLACES[place]
    one = line(name, {"policy": policy})
    one.train(0, 2)
    of(stage, key)(one)
    with pytest.raises(NumericalError, match="stage "):
        one.train(2, 5)


@pytest.mark.parametrize("place", [place for place in PLACES if place != "moments"])
def test_under_skip_poison_spreads_no_further_and_ends_the_run_if_it_lasts(place: str) -> None:
    """What is poisoned can't get well by leaving updates out, but for the weights looked ahead
    to, which the next update replaces: those of another stage stay sound."""
    name, key, stage = PLACES[place]
    one = line(name, {**SKIP, "skips_max": 20})
    one.train(0, 2)
    of(stage, key)(one)
    poisoned = list(one.snapshot())[stage]
    try:
        one.train(2, 60)
    except NumericalError as error:
        assert "has left out 20 updates in a row (numbers.skips_max)" in str(error)
        for one_stage in one.stages:
            one_stage.forget()
    assert sum(skips(one).values()) > 0
    for declared, own in one.snapshot().items():
        for array_name, array in own.items():
            if (declared, array_name) != (poisoned, key):
                assert np.isfinite(array).all(), (declared, array_name)


@each("policy", ["stop", "skip", "roll_back"])
def test_a_test_loss_that_is_not_finite_is_an_error_under_every_policy(policy: str) -> None:
    one = line("locked", {"policy": policy})
    x, y = one.batch(0)
    top = one.stages[-1]
    h = np.full((len(x), networks.WIDTH), np.nan, np.float32)
    with pytest.raises(NumericalError, match="loss of stage top is nan on the test set"):
        top.evaluate({"s2": h}, {"y": y})


def test_a_batch_whose_variance_is_not_finite_leaves_the_running_statistics() -> None:
    layer = BatchNorm()
    layer.build((3,), np.dtype("float32"), layer_streams(0, "n"))
    layer.forward(np.arange(12, dtype="f4").reshape(4, 3), {})
    before = {name: array.copy() for name, array in layer.buffers.items()}
    for bad in (np.nan, np.inf, 1e30):
        x = np.ones((4, 3), "f4")
        x[0, 1] = bad
        layer.forward(x, {})
        for name, array in layer.buffers.items():
            np.testing.assert_array_equal(array, before[name])


# --- explosions ------------------------------------------------------------------------------


def watch(**options: Any) -> Watch:
    return Watch(config.Numbers(**options), "s")


def test_a_value_over_so_many_times_its_running_mean_is_a_fault() -> None:
    one = watch(explode=10.0)
    for _ in range(100):
        assert one.fault("gradient", 2.0) is None
    fault = one.fault("gradient", 21.0)
    assert fault == "is 21, more than 10 (numbers.explode) times its running mean of 2"
    assert one.fault("gradient", 19.0) is None
    assert one.fault("loss", 1000.0) is None, "each quantity has a mean of its own"


def test_a_fault_does_not_raise_the_mean_that_it_is_held_against() -> None:
    one = watch(explode=10.0)
    for _ in range(100):
        one.fault("gradient", 2.0)
    for _ in range(100):
        assert one.fault("gradient", 1e6) is not None


def test_nothing_explodes_before_the_mean_says_something_and_zeros_say_nothing() -> None:
    one = watch(explode=2.0)
    for _ in range(1000):
        assert one.fault("gradient", 0.0) is None
    for power in range(100):
        assert one.fault("gradient", 1.5**power) is None
    assert one.fault("gradient", 1e30) is not None


def test_without_a_limit_only_what_is_not_finite_is_a_fault() -> None:
    one = watch()
    for _ in range(200):
        assert one.fault("gradient", 1e-9) is None
    assert one.fault("gradient", 1e300) is None
    assert one.fault("gradient", float("inf")) == "is inf"
    assert one.means == {}


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("quantity", ["loss", "gradient", "true_gradient"])
def test_an_explosion_is_treated_like_nan(policy: str, quantity: str) -> None:
    one = line("generator-error", {"policy": policy, "explode": 50.0})
    one.train(0, 3)
    state = one.snapshot()
    stage, name = ("top", "top") if quantity == "loss" else ("s0", "s0")
    state[stage][f"numbers.{quantity}"][:] = 1e-6, 500
    one.restore(state)
    before = bits(one.snapshot())
    if policy == "stop":
        with pytest.raises(NumericalError, match=rf"stage {name}.*numbers\.explode.*running mean"):
            one.train(3, 4)
        return
    one.train(3, 4)
    assert_finite(one)
    after = bits(one.snapshot())
    kept = "generator.map" if quantity == "true_gradient" else "0.weight"
    assert after[stage][kept] == before[stage][kept]
    assert sum(skips(one).values()) > 0


def test_running_means_are_part_of_a_snapshot() -> None:
    whole = line("generator-error", {**SKIP, "explode": 100.0})
    whole.train(0, 5)
    state = whole.snapshot()
    assert state["s0"]["numbers.gradient"][1] >= 1 and state["top"]["numbers.loss"][1] == 5
    fresh = line("generator-error", {**SKIP, "explode": 100.0})
    assert fresh.restore(state) == []
    assert bits(fresh.snapshot()) == bits(state)
    unwatched = line("generator-error", SKIP)
    assert unwatched.restore(state) == []
    assert fresh.restore(unwatched.snapshot()) == []


def test_updates_left_out_with_others_in_between_never_end_a_run() -> None:
    one = line("locked", {**SKIP, "skips_max": 2})
    one.poison.update({batch: np.nan for batch in range(1, 40, 2)})
    one.train(0, 40)
    assert skips(one)["skipped_updates"] == 20 * len(one.stages)
    one.poison[41] = one.poison[40] = np.nan
    with pytest.raises(NumericalError, match="left out 2 updates in a row"):
        one.train(40, 42)


def test_a_gradient_from_another_worker_that_is_not_finite_is_named() -> None:
    one = line("stash", {})
    stage = one.stages[1]
    x = np.ones((6, networks.WIDTH), np.float32)
    stage.forward(0, {"s0": x}, {})
    stage.backward(0, {"s2": x * np.inf}, source=Source.TRUE, learn=True, send=True)
    with pytest.raises(NumericalError, match="stage s1, update 0: the norm of its gradient is"):
        stage.update()
