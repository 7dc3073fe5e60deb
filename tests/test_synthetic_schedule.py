"""Synthetic: what is sent, fitted, corrected and given up, batch by batch."""

from __future__ import annotations

import networks
import pytest
from pair import Bench, chain, number
from pictures import bounded
from random_runs import skip_connections

from asyncdni.core.events import Finish
from asyncdni.core.position import Position
from asyncdni.core.worker import Worker
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.messages import DATA, Gradient, Message, Skipped
from asyncdni.schedules.base import Asked
from asyncdni.schedules.synthetic import Synthetic


def gradients(bench: Bench, sender: str, to: str = "") -> list[Gradient]:
    return [m for m in bench.messages(Gradient, sender, to) if isinstance(m, Gradient)]


def letters(bench: Bench, name: str, kind: str) -> list[str]:
    return [op for op in bench.ops(name) if op[0] == kind]


@pytest.mark.parametrize("bootstrap", [False, True])
def test_a_short_last_group_of_fit_every_still_sends_its_first_batch_up(bootstrap: bool) -> None:
    """Five batches in groups of three: 0 1 2 | 3 4."""
    schedule = Synthetic(asked=Asked(every=3), bootstrap=bootstrap)
    bench = Bench(chain(3, barriers=(5,)), schedule).train()
    for name, to in (("stage 1", "stage 0"), ("stage 2", "stage 1")):
        assert [m.batch for m in gradients(bench, name, to)] == [0, 3]
    assert letters(bench, "stage 1", "T") == ["T0", "T3"]
    assert letters(bench, "stage 2", "U") == ["U0", "U1", "U2", "U3", "U4"]


def test_the_first_batches_send_gradients_up_whatever_their_number() -> None:
    bench = Bench(chain(2, barriers=(8,)), Synthetic(asked=Asked(every=4, first=3))).train()
    assert [m.batch for m in gradients(bench, "stage 1")] == [0, 1, 2, 4]


def test_with_a_true_target_only_the_backward_that_passes_it_on_sends() -> None:
    sent = gradients(Bench(chain(3), Synthetic()).train(), "stage 1")
    assert [m.tensors["stage 1"] for m in sent] == [f"b{batch} of stage 1" for batch in range(3)]


def test_with_a_bootstrapped_target_the_synthetic_gradient_is_sent_at_once() -> None:
    sent = gradients(Bench(chain(3), Synthetic(bootstrap=True)).train(), "stage 1")
    assert [m.tensors["stage 1"] for m in sent] == [f"B{batch} of stage 1" for batch in range(3)]


def test_half_and_half_takes_turns_among_the_batches_that_are_asked_for() -> None:
    schedule = Synthetic(half=True, asked=Asked(every=2))
    sent = gradients(Bench(chain(3, barriers=(8,)), schedule).train(), "stage 1")
    found = {m.tensors["stage 1"] for m in sent}
    assert found == {f"{op} of stage 1" for op in ("b0", "B2", "b4", "B6")}


def test_corrections_are_applied_before_the_barrier_and_only_if_there_are_any() -> None:
    for schedule, last in ((Synthetic(correct=True), "U"), (Synthetic(), "T2")):
        bench = Bench(chain(2), schedule).train()
        assert bench.ops("stage 0")[-1] == last
        assert bench.ops("stage 1")[-1] == "U2"  # true gradients need no correction


def test_bootstrapped_targets_are_corrected_without_a_backward_of_their_own() -> None:
    bench = Bench(chain(3), Synthetic(bootstrap=True, correct=True)).train()
    assert bench.ops("stage 1")[:7] == ["F0", "P0", "B0", "U0", "T0", "C0", "F1"]
    assert not letters(bench, "stage 1", "b")


def test_a_mix_of_nothing_but_true_gradients_asks_and_fits_no_generator() -> None:
    bench = Bench(chain(3), Synthetic(mix=1.0)).train()
    assert {op[0] for name in bench.workers for op in bench.ops(name)} == set("FBU")


def test_a_batch_that_is_not_learned_from_is_still_fitted_to_and_passed_on() -> None:
    """Stage 1 learns from no batch; the others from all."""

    def make(position: Position) -> Worker:
        draws = (lambda batch: False) if number(position) == 1 else None
        return Worker(position, Synthetic(draws=draws))

    bench = Bench(chain(3), make).train()
    assert letters(bench, "stage 1", "T") == ["T0", "T1", "T2"]
    assert letters(bench, "stage 1", "b") == ["b0", "b1", "b2"]
    assert not letters(bench, "stage 1", "B") and not letters(bench, "stage 1", "U")
    assert letters(bench, "stage 0", "T") == ["T0", "T1", "T2"]
    assert bench.workers["stage 1"].counts.batches == 3


def test_where_the_loss_does_not_learn_its_producers_are_told_that_nothing_comes() -> None:
    def make(position: Position) -> Worker:
        draws = (lambda batch: batch == 1) if number(position) == 2 else None
        return Worker(position, Synthetic(draws=draws))

    bench = Bench(chain(3), make).train()
    told = [m.batch for m in bench.messages(Skipped, "stage 2") if isinstance(m, Skipped)]
    assert told == [0, 2]
    assert [m.batch for m in bench.messages(Skipped, "stage 1") if isinstance(m, Skipped)] == told
    assert letters(bench, "stage 0", "T") == ["T1"]
    assert letters(bench, "stage 0", "U") == ["U0", "U1", "U2"]


# --- at the bound on lag -------------------------------------------------------------------------


def lost_gradients(sender: str, to: str, message: Message) -> bool:
    return isinstance(message, Gradient) and sender == "stage 2"


def with_lag(batches: int, lag: int) -> Bench:
    """No gradient of stage 2 arrives; at the bound the oldest batch is given up."""

    def make(position: Position) -> Worker:
        return Worker(position, Synthetic(), lag=bounded(position, lag, drop=True))

    return Bench(chain(3, barriers=(batches,)), make, withheld=lost_gradients).train()


def test_the_oldest_batch_is_given_up_where_too_many_wait_for_their_gradient() -> None:
    bench = with_lag(6, lag=1)
    middle = bench.workers["stage 1"]
    assert middle.counts.dropped == 4  # 4 and 5 are still waited for
    assert [batch for name, batch in bench.released if name == "stage 1"] == [0, 1, 2, 3]
    skipped = [m.batch for m in bench.messages(Skipped, "stage 1") if isinstance(m, Skipped)]
    assert skipped == [0, 1, 2, 3]
    assert list(middle.view.flights) == [4, 5]
    assert letters(bench, "stage 1", "U") == [f"U{i}" for i in range(6)]


def test_who_waits_for_a_batch_that_was_given_up_gives_it_up_too() -> None:
    bench = with_lag(6, lag=1)
    assert set(range(4)) <= {batch for name, batch in bench.released if name == "stage 0"}
    assert len(bench.workers["stage 0"].view.flights) <= 2


def test_with_no_lag_at_all_each_batch_is_given_up_for_the_next() -> None:
    bench = with_lag(4, lag=0)
    assert letters(bench, "stage 1", "F") == ["F0", "F1", "F2", "F3"]
    assert bench.workers["stage 1"].counts.dropped == 3


def test_a_batch_is_learned_from_before_it_is_given_up() -> None:
    bench = with_lag(6, lag=0)
    assert letters(bench, "stage 1", "B") == [f"B{i}" for i in range(6)]


# --- under any timing ----------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["true", "bootstrap", "half"])
@pytest.mark.parametrize(
    "stages", [networks.chain(4), networks.fork(), networks.diamond(), skip_connections()]
)
def test_what_a_stage_does_with_a_batch_keeps_its_order_under_any_timing(
    stages: networks.Tables, target: str
) -> None:
    """Forwards in order of the ids; P B U at once; then, once and in any order of batches, T and,
    where it is passed on, b. Nothing of a batch comes between P, B and U of another."""
    for seed in range(4):
        schedule = {"name": "synthetic", "target": target, "fit_every": 2}
        design = networks.design(stages, schedule, run={"epochs": 3})
        links = Links(latency_us=[1.0, 300.0, 3000.0, 30.0][seed], jitter=1.0)
        costs = Costs(jitter=0.9, scale={"s1": 4.0, "a": 4.0})
        result = simulate(design, seed=seed, maths=False, costs=costs, links=links)
        assert isinstance(result.end, Finish)
        for group in design.plan.groups:
            ops = [op[:2] for op in result.ops[group.name] if op[0] not in "RE"]
            at_once = "FPBU" if group.consumers else "FBU"
            relayed = any(name != DATA for name in group.producers) and bool(group.consumers)
            text = "".join(letter for letter, _ in ops)
            assert text.count(at_once) == text.count("F") == design.plan.batches
            for batch in range(design.plan.batches):
                sent = target == "true" or (target == "half" and batch // 2 % 2 == 0)
                late = "T" + "b" * (relayed and sent) if group.consumers and batch % 2 == 0 else ""
                own = "".join(letter for letter, number in ops if number == batch)
                assert own == at_once + late
