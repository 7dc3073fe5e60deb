"""One worker whose neighbour is dead, and the order that ends its round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hand import FORK, LAST, MIDDLE, Hand, activation, drained, sends, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from pair import chain
from pictures import bounded

from asyncdni.core.events import Computed, Release, Stop
from asyncdni.core.position import EVALUATE, FINAL, Position
from asyncdni.core.worker import Phase
from asyncdni.messages import (
    COORDINATOR,
    DATA,
    Activation,
    Barrier,
    Close,
    Credit,
    Drained,
    Evaluate,
    Gradient,
    Lost,
    Message,
    Rejoin,
    Resume,
    Skipped,
    Start,
)
from asyncdni.schedules.base import Groups, Op, OpKind, Schedule
from asyncdni.schedules.delayed import Delayed
from asyncdni.schedules.gpipe import Gpipe
from asyncdni.schedules.local_loss import LocalLoss
from asyncdni.schedules.locked import Locked
from asyncdni.schedules.one_f_one_b import OneF1B
from asyncdni.schedules.synthetic import Synthetic

JOIN = Position("j", inputs=("p", "q"), consumers=("c",), host="h")
FED = Position("f", inputs=("p", DATA), consumers=("c",), host="h", synthetic_inputs=True)


def released(actions: list[Any]) -> list[int]:
    return [action.batch for action in actions if isinstance(action, Release)]


# --- towards a dead consumer ---------------------------------------------------------------------


def test_it_learns_on_and_sends_nothing_there() -> None:
    hand = trained()
    hand(Lost("c"))
    for batch in range(1, 20):
        assert not [to for to, _ in sends(hand(activation(batch))) if to == "c"]
        for action in (hand.finish({"h": "h"}), hand.finish_until(f"U{batch}")):
            assert not [to for to, _ in sends(action) if to == "c"]
    assert hand.worker.counters()["updates"] == 20
    assert hand.worker.counters()["skipped"] == 19


def test_credit_of_the_dead_is_not_waited_for() -> None:
    hand = trained(window=1)
    hand(activation(1))
    assert hand.op is None
    hand(Lost("c"))
    assert str(hand.op) == "F1"


def test_what_waited_for_the_dead_is_released_and_those_who_wait_in_turn_are_told() -> None:
    hand = trained(batches=3)
    actions = hand(Lost("c"))
    assert released(actions) == [0, 1, 2]
    assert sends(actions) == [("p", Skipped("m", 7, batch)) for batch in range(3)]
    assert not hand.worker.view.flights
    assert hand.worker.counts.dropped == 3


def test_a_gradient_that_is_here_is_used_before_its_sender_is_forgotten() -> None:
    hand = trained(batches=2)
    hand(Gradient("c", 1, 0, {"c": "g"}))
    assert str(hand.op) == "T0"
    hand(Lost("c"))
    hand.finish()
    assert str(hand.op) == "b0"
    assert sends(hand.finish({"p": {"m": "g"}}), Gradient) == [
        ("p", Gradient("m", 7, 0, {"m": "g"}))
    ]


def test_what_still_comes_from_the_dead_is_void() -> None:
    hand = trained(batches=2)
    hand(Lost("c"))
    for word in (
        Gradient("c", 1, 1, {"c": "g"}),
        Skipped("c", 1, 1),
        Credit("c", 1, "m", 2, 9),
        Barrier("c", 1, 0, FINAL),  # would not even fit
    ):
        assert hand(word) == []


def test_another_consumer_still_gets_all_and_its_gradients_come_in_vain() -> None:
    hand = trained(FORK)
    hand(Lost("c"))
    hand(activation(1, "p"))
    hand(activation(1, "q"))
    assert [to for to, _ in sends(hand.finish({"h": "h"}), Activation)] == ["d"]
    hand.finish_until("U1")
    assert hand(Gradient("d", 1, 1, {"d": "g"})) == []
    assert hand.worker.counts.late == 1
    assert not hand.worker.view.flights


def test_a_forward_under_way_ends_without_its_sending() -> None:
    hand = Hand(MIDDLE)
    hand(Start())
    hand(activation(0))
    assert str(hand.op) == "F0"
    hand(Lost("c"))
    assert not [to for to, _ in sends(hand.finish({"h": "h"})) if to == "c"]
    assert released(hand.finish_until("U0")) == [0]


def test_a_bound_on_lag_does_not_hold_for_the_dead() -> None:
    hand = trained(lag=bounded(MIDDLE, 0))
    hand(activation(1))
    assert hand.op is None  # the gradient of batch 0 must come first
    hand(Lost("c"))
    for batch in range(1, 5):
        hand.finish_until(f"U{batch}")
        hand(activation(batch + 1))


def test_barriers_are_passed_and_drained_for_without_the_dead() -> None:
    hand = trained(batches=2)
    hand(Lost("c"))
    drained_at = (COORDINATOR, Drained(7, 0, EVALUATE, 2))
    assert sends(hand(Barrier("p", 1, 0, EVALUATE))) == [drained_at]


def test_a_host_without_consumers_reads_on_to_the_barrier_and_drains() -> None:
    host = chain(2, barriers=(8,))[0]
    hand = trained(host, 0)
    hand(Lost("stage 1"))
    for batch in range(8):
        assert hand.op == Op(OpKind.READ, batch)
        hand.finish({"h": "x"})
        last = hand.finish_until(f"U{batch}")
        if hand.op is None:
            break
    assert sends(last) == [(COORDINATOR, Drained(7, 0, FINAL, 8))]


def test_readers_of_data_that_are_dead_do_not_keep_the_host_from_reading() -> None:
    host = Position("h", (DATA,), ("m",), host="h", feeds=("m", "z"), barriers=(50,))
    hand = Hand(host, window=1)
    hand(Start())
    hand(Lost("z"))
    hand(Lost("m"))
    for batch in range(20):
        hand.finish_until(f"U{batch}")
    assert hand.worker.counters()["updates"] == 20


# --- behind a dead producer ----------------------------------------------------------------------


def test_what_was_here_of_it_is_used() -> None:
    hand = trained()
    hand(activation(1))
    hand(activation(2))
    hand(Lost("p"))
    hand.finish_until("U1")
    hand.finish_until("U2")
    assert hand.worker.counters()["updates"] == 3


def test_no_gradient_and_no_credit_go_there() -> None:
    hand = trained()
    hand(Lost("p"))
    hand(Gradient("c", 1, 0, {"c": "g"}))
    hand.finish_until("T0")
    assert sends(hand.finish({"p": {"m": "g"}})) == []
    assert not hand.worker.view.flights


def test_batches_of_a_join_that_need_it_are_void_in_order_and_all_are_told() -> None:
    hand = Hand(JOIN, window=4)
    hand(Start())
    for batch in range(2):
        assert hand(activation(batch, "q")) == []
    actions = hand(Lost("p"))
    assert [message for to, message in sends(actions, Skipped) if to == "c"] == [
        Skipped("j", 7, 0),
        Skipped("j", 7, 1),
    ]
    assert [message for to, message in sends(actions, Skipped) if to == "q"] == [
        Skipped("j", 7, 0),
        Skipped("j", 7, 1),
    ]
    assert hand.worker.counters()["missed"] == 2
    for batch in range(2, 40):  # and so on: credit is granted for what is of no use
        actions = hand(activation(batch, "q"))
        assert [to for to, message in sends(actions, Skipped)] == ["c", "q"]
        assert hand.op is None
    assert hand.worker.counters()["missed"] == 40


def test_a_join_uses_what_it_has_from_both() -> None:
    hand = Hand(JOIN)
    hand(Start())
    hand(activation(0, "p"))
    hand(activation(1, "p"))
    hand(Lost("p"))
    assert hand.op is None
    hand(activation(0, "q"))
    hand.finish_until("U0")
    hand(activation(1, "q"))
    hand.finish_until("U1")
    hand(activation(2, "q"))
    assert hand.op is None
    assert hand.worker.counts.position == 3


def test_a_join_of_two_dead_ones_and_one_that_lives_goes_on_to_the_barrier() -> None:
    three = Position("j", inputs=("p", "q", "r"), consumers=("c",), host="h")
    hand = Hand(three)
    hand(Start())
    hand(activation(0, "p"))
    hand(Lost("p"))
    hand(activation(0, "r"))
    hand(Lost("q"))
    hand(activation(1, "r"))
    assert hand.worker.counts.missed == 2
    assert hand.worker.parts.inputs.empty


def test_who_predicts_its_inputs_learns_on_from_the_data_alone() -> None:
    hand = Hand(FED)
    hand(Start())
    hand(Credit("c", 1, "f", 0, 100))
    hand(activation(0, DATA))
    hand(Lost("p"))
    hand.finish_until("U0")
    for batch in range(1, 20):
        hand(activation(batch, DATA))
        hand.finish_until(f"U{batch}")
    assert hand.op is None  # and no input model to train
    assert hand.worker.counters()["updates"] == 20
    assert hand.worker.parts.inputs.empty


def test_a_dead_host_is_all_that_it_sends() -> None:
    """Its own activations, and the data."""
    fed = Position("z", inputs=("h", "m", DATA), host="h", reads_data=True)
    hand = Hand(fed)
    hand(Start())
    hand(activation(0, "m"))
    hand(Lost("h"))
    assert hand.worker.counts.missed == 1
    hand(activation(1, "m"))
    assert hand.worker.counts.missed == 2


# --- the order to join the next round ------------------------------------------------------------


def idle() -> Hand:
    return Hand(MIDDLE)


def training() -> Hand:
    return trained(batches=3)


def working() -> Hand:
    hand = trained(batches=2)
    hand(activation(2))
    hand.finish({"h": "h"})
    assert hand.op is not None
    return hand


def closed() -> Hand:
    hand = trained(batches=2)
    hand(Barrier("p", 1, 0, EVALUATE))
    assert hand.worker.view.closed and hand.worker.phase is Phase.TRAINING
    return hand


def evaluating() -> Hand:
    hand = drained()
    hand(activation(0, evaluate=True))
    assert hand.op is not None
    return hand


def bereft() -> Hand:
    hand = trained(batches=2)
    hand(Lost("p"))
    return hand


@pytest.mark.parametrize("state", [idle, training, working, closed, drained, evaluating, bereft])
def test_it_ends_whatever_is_under_way_and_lets_go_of_all_batches(
    state: Callable[[], Hand],
) -> None:
    hand = state()
    in_flight = sorted(hand.worker.view.flights)
    actions = hand(Rejoin(9, "keep"))
    assert released(actions) == in_flight
    (stop,) = [action for action in actions if isinstance(action, Stop)]
    assert stop.rejoin == Rejoin(9, "keep") and not stop.failed
    assert sends(actions) == []
    assert not hand.worker.view.flights
    assert hand.worker.phase is Phase.LEFT
    late = [activation(9), Start(), Resume(0), Evaluate(0), Close(FINAL), Rejoin(10, "initial")]
    assert [hand(word) for word in late] == [[]] * len(late)
    if hand.op is not None:
        assert hand(Computed(hand.op, 4, {"h": "h"})) == []


# --- any schedule, any neighbour, any moment -----------------------------------------------------

SCHEDULES: list[Schedule] = [
    *(Locked(), Gpipe(Groups(2, 4)), OneF1B(Groups(2, 4), warmup=1), Delayed(), LocalLoss()),
    *(Synthetic(), Synthetic(bootstrap=True), Synthetic(correct=True), Synthetic(mix=0.5)),
]


def answers(hand: Hand, said: dict[str, int]) -> list[Message]:
    """What neighbours may say next."""
    sent = hand.worker.counts.batches
    found: list[Message] = [
        activation(said[node], node) for node in hand.worker.position.inputs if said[node] < 4
    ]
    for consumer in hand.worker.position.consumers:
        if said[consumer] < sent:
            found.append(Gradient(consumer, 1, said[consumer], {consumer: "g"}))
    return found


@given(st.data(), st.sampled_from(SCHEDULES), st.sampled_from([MIDDLE, LAST, FORK, JOIN]))
@settings(max_examples=200, deadline=None)
def test_no_schedule_stumbles_over_a_neighbour_that_dies(
    data: st.DataObject, schedule: Schedule, position: Position
) -> None:
    """The rest of a round may be all waiting, but what it does goes to nobody who is dead."""
    hand = Hand(position, schedule)
    hand(Start())
    said = dict.fromkeys((*position.inputs, *position.consumers), 0)
    dead: set[str] = set()
    for _ in range(data.draw(st.integers(5, 40))):
        words = answers(hand, said)
        step = data.draw(st.sampled_from(["work", "hear", "hear", "lose"]))
        if step == "lose" and len(dead) < 2:
            name = data.draw(st.sampled_from(sorted(said)))
            dead.add(name)
            actions = hand(Lost(name))
        elif step == "hear" and words:
            word = data.draw(st.sampled_from(words))
            sender = word.sender  # type: ignore[attr-defined]
            said[sender] += 1
            actions = hand(word)
        elif hand.op is not None:
            outputs = {node: {position.name: "g"} for node in position.producers}
            backward = hand.op.kind is OpKind.BACKWARD
            actions = hand.finish(outputs if backward and hand.op.send else {"h": "h"})
        else:
            continue
        assert not {to for to, _ in sends(actions)} & dead
    hand(Rejoin(8, "keep"))
    assert not hand.worker.view.flights
