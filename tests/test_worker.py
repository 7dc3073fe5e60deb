"""The worker's logic: start, batches, gradients, credit, the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hand import FORK, LAST, MIDDLE, Hand, activation, connect, drained, sends, trained
from pair import Bench, chain

from asyncdni.core.events import Action, Compute, Release, Stop
from asyncdni.core.position import EVALUATE, FINAL, Position, Rows
from asyncdni.core.worker import Phase
from asyncdni.messages import (
    COORDINATOR,
    DATA,
    Abort,
    Accused,
    Activation,
    Barrier,
    Close,
    Credit,
    Drained,
    Evaluate,
    Evaluated,
    Gradient,
    Leave,
    Message,
    Resume,
    Shared,
    Skipped,
    Start,
)
from asyncdni.schedules.base import NEVER, Op, OpKind
from asyncdni.schedules.locked import Locked
from asyncdni.schedules.synthetic import Synthetic

# --- training ------------------------------------------------------------------------------------


def test_nothing_is_computed_before_start_and_what_came_earlier_is_not_lost() -> None:
    hand = Hand(MIDDLE)
    assert hand(activation(0)) == []
    actions = hand(Start())
    assert [str(a.op) for a in actions if isinstance(a, Compute)] == ["F0"]
    assert hand.inputs == {"p": {"h": "h0"}}


def test_the_host_reads_one_batch_ahead_and_no_further() -> None:
    hand = Hand(chain(2)[0], Locked())
    hand(Start())
    assert hand.op == Op(OpKind.READ, 0)
    hand.finish({"h": "x"})
    assert str(hand.op) == "F0"
    hand.finish({"h": "h"})
    assert hand.op == Op(OpKind.READ, 1)
    assert hand.finish({"h": "x"}) == []  # batch 1 waits for its turn, batch 2 is not read


def test_a_finished_forward_sends_the_activation_to_every_consumer() -> None:
    hand = Hand(FORK)
    hand(Start())
    hand(activation(0, "p"))
    assert hand.op is None  # the other producer's part is missing
    hand(activation(0, "q", tensors={"h": "other"}))
    assert list(hand.inputs) == ["p", "q"]
    sent = sends(hand.finish({"h": "out"}))
    assert [to for to, _ in sent] == ["c", "d"]
    expected = Activation("f", 7, 0, 4, {"h": "out"})
    assert all(message == expected for _, message in sent)


def test_an_activation_is_not_the_last_because_its_forward_is_the_batch_s_last_op() -> None:
    """`last` of a message is about the test set."""
    hand = Hand(MIDDLE, Synthetic(draws=lambda batch: False, asked=NEVER))
    hand(Start())
    hand(activation(0))
    actions = hand.finish({"h": "h"})
    assert [a.batch for a in actions if isinstance(a, Release)] == [0]
    assert [getattr(message, "last", None) for _, message in sends(actions)] == [False]


def test_what_follows_the_barrier_may_come_before_the_word_that_lifts_it() -> None:
    """Control and data ride on separate sockets."""
    hand = drained(MIDDLE)
    assert hand(activation(0)) == []
    actions = hand(Resume(0))
    assert [str(a.op) for a in actions if isinstance(a, Compute)] == ["F0"]


def test_a_finished_backward_sends_each_producer_its_gradient() -> None:
    hand = Hand(LAST)
    hand(Start())
    hand(activation(0))
    hand.finish()
    assert str(hand.op) == "B0"
    sent = sends(hand.finish({"p": {"z": "g"}}))
    assert sent == [("p", Gradient("z", 7, 0, {"z": "g"}))]


def test_inputs_arrive_in_declared_order_whoever_was_first() -> None:
    hand = Hand(FORK)
    hand(Start())
    hand(activation(0, "q"))
    hand(activation(0, "p"))
    assert list(hand.inputs) == ["p", "q"]


def test_a_batch_with_other_rows_than_the_plan_says_is_dropped_and_its_sender_accused() -> None:
    position = replace(LAST, rows=Rows(4, 10, 4, 6))  # 4 4 2, and 4 2 to test on
    for batch, samples, right in ((0, 4, True), (0, 0, False), (0, 1, False), (0, 5, False)):
        hand = Hand(position)
        hand(Start())
        accused = sends(hand(activation(batch, samples=samples)), Accused)
        assert ([message for _, message in accused] == []) == right
        assert (hand.op is not None) == right
        for _, message in accused:
            assert isinstance(message, Accused)
            assert (message.worker, f"it has {samples} rows, not 4" in message.text) == ("p", True)


def test_only_the_last_test_batch_may_be_the_last_one() -> None:
    for batch, last, right in ((0, False, True), (0, True, False), (1, True, True)):
        hand = drained(replace(LAST, rows=Rows(4, 10, 4, 6)))
        hand(Evaluate(0))
        for before in range(batch):
            hand(activation(before, evaluate=True))
            hand.finish()
        samples = (4, 2)[batch]
        actions = hand(activation(batch, samples=samples, evaluate=True, last=last))
        assert (sends(actions, Accused) == []) == right, (batch, last)


def accused(actions: list[Action]) -> list[str]:
    return [
        message.worker for _, message in sends(actions, Accused) if isinstance(message, Accused)
    ]


def test_a_consumer_can_take_and_allow_no_more_than_its_window() -> None:
    """One batch has been sent; with more allowed this worker would be at fault, by its own."""
    for taken, allowed, right in (
        *((1, 5, True), (0, 4, True), (0, -9, True), (1, 1, True)),
        *((1, 6, False), (0, 2**62, False), (2, 4, False), (-1, 3, False)),
    ):
        hand = trained(window=4)
        actions = hand(Credit("c", 1, "m", taken, allowed))
        assert accused(actions) == ([] if right else ["c"]), (taken, allowed)


def test_with_automatic_windows_the_widest_is_what_counts() -> None:
    for allowed, right in ((101, True), (102, False)):
        hand = trained(window_max=100)
        assert (accused(hand(Credit("c", 1, "m", 1, allowed))) == []) == right


def test_a_barrier_of_no_kind_is_dropped() -> None:
    hand = trained()
    assert accused(hand(Barrier("p", 1, 0, "soon"))) == ["p"]
    assert not hand.worker.view.closed


OUT_OF_PLACE = [
    Gradient("p", 1, 0, {"p": "g"}),
    Gradient(DATA, 1, 0, {"p": "g"}),
    Credit("p", 1, "m", 0, 1),
    Credit("c", 1, "p", 0, 1),
    Barrier("c", 1, 0, FINAL),
    activation(1, "c"),
    activation(1, DATA),
    Shared("c", 1, 0, {}),
]


@pytest.mark.parametrize(
    "message", OUT_OF_PLACE, ids=lambda one: f"{type(one).__name__}-{one.sender}"
)
def test_what_nobody_would_send_accuses_only_who_is_known_to_have_sent_it(message: Any) -> None:
    """Without keys anybody may have done so in that worker's name; p hosts the data."""
    for known in (True, False):
        hand = Hand(MIDDLE)
        hand.worker.joined(connect(MIDDLE), senders_known=known)
        hand(Start())
        home = "p" if message.sender == DATA else message.sender
        assert accused(hand(message)) == ([home] if known else [])
    hand = Hand(MIDDLE)
    hand.worker.joined(connect(MIDDLE), senders_known=False)
    assert accused(hand(activation(5, "p"))) == ["p"]  # its own link: nobody can tell


def test_without_credit_the_worker_waits_until_it_is_granted() -> None:
    hand = trained(window=1)
    hand(activation(1))
    assert hand.op is None
    actions = hand(Credit("c", 1, "m", taken=1, allowed=2))
    assert [str(a.op) for a in actions if isinstance(a, Compute)] == ["F1"]
    ((_, message),) = sends(hand.finish({"h": "h"}))
    assert isinstance(message, Activation)
    assert message.waited


def test_duplicate_and_overtaken_credit_does_no_harm() -> None:
    hand = trained(batches=2, window=2)
    hand(Credit("c", 1, "m", taken=2, allowed=4))
    hand(Credit("c", 1, "m", taken=1, allowed=3))
    hand(Credit("c", 1, "m", taken=2, allowed=4))
    for batch in (2, 3):
        hand(activation(batch))
        hand.finish_until(f"U{batch}")
    hand(activation(4))
    assert hand.op is None


def test_a_started_forward_grants_its_producer_credit() -> None:
    hand = Hand(MIDDLE, window=1)
    hand(Start())
    assert sends(hand(activation(0))) == [("p", Credit("m", 7, "p", taken=1, allowed=2))]


@pytest.mark.parametrize("order", [("c", "d"), ("d", "c")])
def test_gradients_of_several_consumers_are_given_in_declared_order(order: tuple[str, ...]) -> None:
    hand = trained(FORK)
    hand(Gradient(order[0], 1, 0, {order[0]: "g"}))
    assert hand.op is None
    hand(Gradient(order[1], 1, 0, {order[1]: "g"}))
    assert str(hand.op) == "T0"
    assert list(hand.inputs) == ["c", "d"]


def test_a_late_gradient_of_a_batch_given_up_is_counted_and_forgotten() -> None:
    hand = trained(FORK)
    hand(Skipped("c", 1, 0))
    assert hand(Gradient("d", 1, 0, {"d": "g"})) == []
    assert hand.worker.counts.late == 1
    assert hand.worker.counts.dropped == 1


def test_a_skipped_batch_is_released_and_the_skip_passed_on() -> None:
    hand = trained(FORK)
    actions = hand(Skipped("c", 1, 0))
    assert [a.batch for a in actions if isinstance(a, Release)] == [0]
    skip = Skipped("f", 7, 0)
    assert sends(actions) == [("p", skip), ("q", skip)]
    assert not hand.worker.view.flights


def test_a_skip_while_the_batch_is_being_learned_from_waits_for_its_update() -> None:
    hand = Hand(MIDDLE)
    hand(Start())
    hand(activation(0))
    hand.finish({"h": "h"})
    assert str(hand.op) == "P0"
    assert hand(Skipped("c", 1, 0)) == []
    hand.finish()
    assert str(hand.op) == "B0"
    actions = hand.finish_until("U0")
    assert [a.batch for a in actions if isinstance(a, Release)] == [0]
    assert hand.worker.counters()["updates"] == 1


def test_a_skip_after_the_bootstrapped_gradient_does_not_take_that_away() -> None:
    """A consumer that has sent its own prediction up may give the batch up later."""
    hand = trained(FORK, schedule=Synthetic(bootstrap=True))
    hand(Gradient("c", 1, 0, {"c": "g"}))
    hand(Skipped("c", 1, 0))
    hand(Gradient("d", 1, 0, {"d": "g"}))
    assert str(hand.op) == "T0"
    assert hand.worker.counts.dropped == 0


def test_what_a_host_keeps_of_its_own_data_link_does_not_grow_with_the_run() -> None:
    bench = Bench(chain(1, barriers=(200,)), Synthetic()).train()
    host = bench.workers["stage 0"]
    assert host.counts.batches == 200
    assert len(host.parts.links.incoming[DATA]._grants) <= 4


def test_counters_tell_staleness_in_updates_of_the_stage() -> None:
    hand = trained(batches=3)
    hand(Gradient("c", 1, 0, {"c": "g"}))
    hand.finish()
    counters = hand.worker.counters()
    assert (counters["staleness_mean"], counters["staleness_max"]) == (3.0, 3)
    assert (counters["batches"], counters["updates"], counters["samples"]) == (3, 3, 12)


def test_another_worker_reads_data_over_the_wire() -> None:
    """Stage 1 joins the data with stage 0's activation; the data's credit is stage 1's to give."""
    bench = Bench(chain(2, feeds=("stage 1",), test_batches=2), Synthetic(), window=1).train()
    fed = bench.messages(Activation, "stage 0", "stage 1")
    assert [m.batch for m in fed if isinstance(m, Activation) and m.sender == DATA] == [0, 1, 2]
    assert [op for op in bench.ops("stage 1") if op[0] == "F"] == ["F0", "F1", "F2"]
    grants = {m.node for m in bench.messages(Credit, "stage 1") if isinstance(m, Credit)}
    assert grants == {DATA, "stage 0"}
    assert len(bench.messages(Drained)) == 2
    bench.order(Evaluate(0))
    bench.run()
    (score,) = bench.messages(Evaluated)
    assert isinstance(score, Evaluated)
    assert score.samples == 8


# --- the end -------------------------------------------------------------------------------------


def test_a_stop_sets_the_last_barrier_behind_what_has_been_read() -> None:
    hand = Hand(chain(2, barriers=(5, 10))[0])
    hand(Start())
    hand(Close(FINAL))  # while batch 0 is being read
    hand.finish({"h": "x"})
    actions = hand.finish_until("U0")
    assert sends(actions, Barrier) == [("stage 1", Barrier("stage 0", 7, 0, FINAL))]


def test_a_stop_while_closed_changes_nothing_of_the_drain_under_way() -> None:
    hand = Hand(chain(2, barriers=(1, 5))[0])
    hand(Start())
    hand.finish({"h": "x"})
    assert sends(hand.finish_until("U0"), Barrier) == [
        ("stage 1", Barrier("stage 0", 7, 0, EVALUATE))
    ]
    assert hand(Close(FINAL)) == []
    hand(Gradient("stage 1", 1, 0, {"stage 1": "g"}))
    assert sends(hand.finish_until("T0")) == [(COORDINATOR, Drained(7, 0, EVALUATE, 1))]


def test_a_stop_before_start_and_in_other_workers_leads_to_no_batch_and_no_action() -> None:
    host, other = Hand(chain(2)[0]), Hand(LAST)
    assert host(Close(FINAL)) == []
    assert sends(host(Start())) == [
        ("stage 1", Barrier("stage 0", 7, 0, FINAL)),
        (COORDINATOR, Drained(7, 0, FINAL, 0)),
    ]
    assert other(Close(FINAL)) == []


def test_a_stop_between_barriers_makes_the_next_one_the_last() -> None:
    bench = Bench(chain(2, barriers=(1, 9)), Synthetic()).train()
    bench.order(Close(FINAL), "stage 0")
    bench.resume(0)
    kinds = [m.kind for m in bench.messages(Barrier) if isinstance(m, Barrier)]
    assert kinds == [EVALUATE, FINAL]
    assert bench.messages(Drained)[2:] == [Drained(1, 1, FINAL, 1)] * 2


@pytest.mark.parametrize(
    ("order", "failed"),
    [(Leave(), ""), (Abort("worker b died"), "worker b died"), (Abort(""), "aborted")],
    ids=str,
)
def test_the_worker_stops_when_told_and_says_why(order: Message, failed: str) -> None:
    actions = drained()(order)
    assert [a.failed for a in actions if isinstance(a, Stop)] == [failed]


def test_abort_comes_through_in_the_middle_of_an_op_and_nothing_follows() -> None:
    hand = Hand(MIDDLE)
    hand(Start())
    hand(activation(0))
    hand(Abort("no more"))
    assert hand.worker.phase is Phase.LEFT
    assert hand.finish({"h": "h"}) == []
    assert hand(activation(1)) == []
    assert hand(Leave()) == []


def test_a_locked_host_keeps_the_next_batch_from_other_readers_until_this_one_is_over() -> None:
    feeding = Position(
        "p", inputs=("data",), consumers=("m",), host="p", feeds=("z",), barriers=(4,)
    )
    alone = Position("p", inputs=("data",), consumers=("m",), host="p", barriers=(4,))
    for position, ahead in ((feeding, None), (alone, "R1")):
        hand = Hand(position, Locked())
        hand(Start())
        hand.finish_until("F0")
        assert (str(hand.op) if hand.op else None) == ahead
