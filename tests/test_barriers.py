"""Barriers through a worker: closing, draining, evaluation, saving, resuming."""

from __future__ import annotations

from hand import FORK, LAST, activation, drained, sends, trained
from pair import Bench, chain

from asyncdni.core.events import Save, Stored
from asyncdni.core.position import EVALUATE, FINAL
from asyncdni.core.worker import Phase
from asyncdni.messages import (
    COORDINATOR,
    Activation,
    Barrier,
    Credit,
    Drained,
    Evaluate,
    Evaluated,
    Gradient,
    Resume,
    Saved,
)
from asyncdni.messages import Save as SaveOrder
from asyncdni.schedules.base import Op, OpKind
from asyncdni.schedules.synthetic import Synthetic
from asyncdni.stages.base import Score


def test_a_stage_closes_when_the_barrier_is_here_from_all_producers() -> None:
    hand = trained(FORK)
    for consumer in ("c", "d"):
        hand(Gradient(consumer, 1, 0, {consumer: "g"}))
    hand.finish_until("T0")
    hand.finish({"p": {"f": "g"}, "q": {"f": "g"}})
    assert hand(Barrier("q", 1, 0, FINAL)) == []
    barrier = Barrier("f", 7, 0, FINAL)
    sent = sends(hand(Barrier("p", 1, 0, FINAL)))
    assert sent == [("c", barrier), ("d", barrier), (COORDINATOR, Drained(7, 0, FINAL, 1))]


def test_the_barrier_passes_on_at_once_but_the_drain_waits_for_gradients() -> None:
    hand = trained()
    assert sends(hand(Barrier("p", 1, 0, FINAL))) == [("c", Barrier("m", 7, 0, FINAL))]
    assert hand.worker.phase is Phase.TRAINING
    hand(Gradient("c", 1, 0, {"c": "g"}))
    hand.finish_until("T0")
    assert sends(hand.finish({}), Drained) == [(COORDINATOR, Drained(7, 0, FINAL, 1))]
    assert hand.worker.phase is Phase.DRAINED


def test_the_barrier_stays_behind_a_batch_that_waits_for_credit() -> None:
    hand = trained(window=1)
    hand(activation(1))
    assert sends(hand(Barrier("p", 1, 0, FINAL)), Barrier) == []
    hand(Credit("c", 1, "m", taken=1, allowed=2))
    assert str(hand.op) == "F1"
    actions = hand.finish_until("U1")
    assert sends(actions, Barrier) == [("c", Barrier("m", 7, 0, FINAL))]


def test_the_next_barrier_may_come_before_word_to_resume() -> None:
    hand = drained()
    hand(activation(0))
    assert hand(Barrier("p", 1, 1, FINAL)) == []
    hand(Resume(0))
    assert str(hand.op) == "F0"
    assert sends(hand.finish_until("U0")) == [(COORDINATOR, Drained(7, 1, FINAL, 1))]


def test_without_epochs_the_barrier_lies_before_the_first_batch() -> None:
    bench = Bench(chain(3, barriers=(0,)), Synthetic()).train()
    assert bench.messages(Drained) == [Drained(1, 0, FINAL, 0)] * 3
    assert bench.messages(Activation) == []


def test_a_test_set_runs_through_and_its_scores_are_summed_up_to_the_last_batch() -> None:
    hand = drained()
    for batch in range(3):
        hand(activation(batch, evaluate=True, last=batch == 2, samples=2))
        assert hand.op == Op(OpKind.EVALUATE, batch, last=batch == 2)
        actions = hand.finish({}, scores=(Score("z", 2, loss=1.5, correct=1),))
        scores = sends(actions, Evaluated)
    assert scores == [(COORDINATOR, Evaluated(0, "z", 6, 4.5, 3, 1))]
    assert hand.worker.counts.batches == 0  # test batches are no training


def test_each_evaluation_starts_from_nothing() -> None:
    bench = Bench(chain(2, barriers=(1, 2), test_batches=2), Synthetic()).train()
    for barrier in range(2):
        bench.order(Evaluate(barrier))
        bench.run()
        score = bench.messages(Evaluated)[-1]
        assert score == Evaluated(barrier, "stage 1", 8, 8.0, 6, 1)
        if barrier == 0:
            bench.resume(0)


def test_test_batches_respect_credit() -> None:
    bench = Bench(chain(3, test_batches=9), Synthetic(), window=2).train()
    bench.order(Evaluate(0), "stage 0")
    bench.run()
    assert len(bench.messages(Evaluated)) == 1
    assert [op for op in bench.ops("stage 2") if op[0] == "E"] == [f"E{i}" for i in range(9)]


def test_weights_are_saved_on_order_and_reported_once_stored() -> None:
    hand = drained()
    assert [a.tag for a in hand(SaveOrder("best")) if isinstance(a, Save)] == ["best"]
    files = {"z": "f" * 64}
    assert sends(hand(Stored("best", files))) == [(COORDINATOR, Saved("best", files))]


def window_after(evaluation_s: float) -> object:
    """Train, evaluate two batches so far apart, train on, and wait 50 s for credit to bear."""
    hand = trained(LAST, batches=2)
    hand(Barrier("p", 1, 0, EVALUATE))
    for batch in range(2):
        hand.now += evaluation_s
        hand(activation(batch, evaluate=True, last=batch == 1))
        hand.finish({})
    hand.now += evaluation_s
    hand(Resume(0))
    for batch in range(2, 4):
        hand(activation(batch))
        hand.finish_until(f"U{batch}")
    hand.now += 50.0
    for batch in range(4, 7):
        hand(activation(batch, waited=batch == 6))  # the first that the last grant allows
    return hand.worker.counters()["window"]


def test_the_time_that_an_evaluation_takes_says_nothing_about_the_rate_of_training() -> None:
    assert window_after(1000.0) == window_after(0.0)
    assert window_after(0.0) != 4  # it has been measured
