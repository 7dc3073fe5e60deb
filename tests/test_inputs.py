"""What comes in at one worker: joined by id, void where a producer skips, kept for input models."""

from __future__ import annotations

from asyncdni.core.inputs import Inbox, Inputs, Replay
from asyncdni.core.position import Position
from asyncdni.messages import DATA
from asyncdni.schedules.base import Op, OpKind

JOIN = Position("j", inputs=("p", "q"), host="p")
FED = Position("f", inputs=("p", DATA), consumers=("c",), host="p", synthetic_inputs=True)


# --- one inbox -----------------------------------------------------------------------------------


def test_a_batch_is_void_once_all_have_spoken_and_one_has_skipped() -> None:
    inbox = Inbox(("p", "q"))
    assert inbox.skip(0, "p")
    assert inbox.take_void() is None  # q has not spoken
    assert inbox.add(0, "q", 4, "x")
    assert inbox.take_void() == (0, ("q",))
    assert len(inbox) == 0


def test_a_batch_that_all_have_skipped_is_void_too() -> None:
    inbox = Inbox(("p", "q"))
    assert inbox.skip(0, "p") and inbox.skip(0, "q")
    assert inbox.take_void() == (0, ())


def test_void_batches_wait_for_their_turn() -> None:
    inbox = Inbox(("p",))
    assert inbox.add(0, "p", 4, "x") and inbox.skip(1, "p") and inbox.add(2, "p", 4, "x")
    assert inbox.take_void() is None
    assert inbox.take(0).tensors == {"p": "x"}
    assert inbox.take_void() == (1, ())
    assert list(inbox.ready) == [2]


def test_each_producer_must_speak_of_each_batch_once_and_in_order() -> None:
    for batch in (0, 2):
        inbox = Inbox(("p", "q"))
        assert inbox.add(0, "p", 4, "x")
        assert not inbox.add(batch, "p", 4, "x")
        assert not inbox.skip(batch, "p")
        assert inbox.skip(1, "p")


def test_parts_of_one_batch_must_be_alike() -> None:
    inbox = Inbox(("p", "q"))
    assert inbox.add(0, "p", 4, "x")
    assert not inbox.add(0, "q", 5, "x")


def test_ids_of_the_test_set_start_anew_after_its_last_batch() -> None:
    inbox = Inbox(("p",))
    for _ in range(2):
        assert inbox.add(0, "p", 4, "x") and inbox.add(1, "p", 4, "x", last=True)
        inbox.take(0)
        assert inbox.take(1).last


def test_what_is_of_no_use_leaves_nothing_behind() -> None:
    """Its sender is lost next: no batch may come to be void that never was under way."""
    inbox = Inbox(("p",))
    assert not inbox.add(2, "p", 4, "x")
    assert len(inbox) == 0
    inbox.lose("p")
    assert inbox.take_void() is None


def test_a_round_may_start_at_any_batch() -> None:
    inbox = Inbox(("p", "q"))
    inbox.begin(7)
    assert not inbox.add(0, "p", 4, "x")
    assert inbox.add(7, "p", 4, "x") and inbox.add(7, "q", 4, "x")
    assert list(inbox.ready) == [7]


def test_of_a_lost_producer_what_others_have_sent_or_will_send_is_void() -> None:
    inbox = Inbox(("p", "q"))
    for batch in range(3):
        assert inbox.add(batch, "q", 4, "x")
    assert inbox.add(0, "p", 4, "x")
    inbox.lose("p")
    assert inbox.take_void() is None  # batch 0 is whole, and comes first
    inbox.take(0)
    assert [inbox.take_void() for _ in range(3)] == [(1, ("q",)), (2, ("q",)), None]
    assert inbox.add(3, "q", 4, "x")
    assert inbox.take_void() == (3, ("q",))


def test_what_a_lost_producer_has_sent_ahead_is_used_when_the_rest_comes() -> None:
    inbox = Inbox(("p", "q"))
    for batch in range(2):
        assert inbox.add(batch, "p", 4, "x")
    inbox.lose("p")
    assert inbox.add(0, "q", 4, "y") and inbox.skip(1, "q")
    assert inbox.take(0).tensors == {"p": "x", "q": "y"}
    assert inbox.take_void() == (1, ("p",))


def test_batches_that_two_lost_ones_owe_are_void_once_and_in_order() -> None:
    inbox = Inbox(("p", "q", "r"))
    for batch in range(3):
        assert inbox.add(batch, "r", 4, "x")
    assert inbox.add(0, "p", 4, "x") and inbox.add(0, "q", 4, "x") and inbox.add(1, "p", 4, "x")
    inbox.lose("p")
    assert list(inbox.ready) == [0]  # 1 and 2 still wait for q
    inbox.lose("q")
    inbox.take(0)
    assert [inbox.take_void() for _ in range(3)] == [(1, ("r", "p")), (2, ("r",)), None]
    inbox.check()


# --- all of a worker's ---------------------------------------------------------------------------


def test_tests_and_training_do_not_mix() -> None:
    inputs = Inputs(JOIN)
    for node in ("p", "q"):
        assert inputs.add(0, node, 4, "train")
        assert inputs.add(0, node, 3, "test", evaluate=True)
    arrival, nodes = inputs.take(Op(OpKind.EVALUATE, 0))
    assert (arrival.samples, nodes) == (3, ("p", "q"))
    arrival, nodes = inputs.take(Op(OpKind.FORWARD, 0))
    assert (arrival.samples, nodes) == (4, ("p", "q"))
    assert inputs.empty


def test_with_synthetic_inputs_data_alone_are_forwarded_and_activations_are_learned() -> None:
    inputs = Inputs(FED)
    assert inputs.add(0, DATA, 4, "x")
    assert list(inputs.train.ready) == [0] and not inputs.true.ready
    arrival, nodes = inputs.take(Op(OpKind.FORWARD, 0))
    assert (arrival.tensors, nodes) == ({DATA: "x"}, (DATA,))
    assert not inputs.empty  # the input model has still to learn
    assert inputs.add(0, "p", 4, "h")
    assert list(inputs.true.ready) == [0]
    arrival, nodes = inputs.take(Op(OpKind.FIT_INPUT, 0))
    assert (arrival.tensors, nodes) == ({"p": "h", DATA: "x"}, ("p",))
    assert inputs.empty


def test_a_skipped_activation_is_only_the_input_model_s_loss() -> None:
    inputs = Inputs(FED)
    assert inputs.add(0, DATA, 4, "x") and inputs.skip(0, "p")
    assert list(inputs.voids()) == [(0, (), False)]  # no credit for the data: they are used
    assert list(inputs.train.ready) == [0]


def test_skipped_data_are_everything_s_loss() -> None:
    inputs = Inputs(FED)
    assert inputs.skip(0, DATA) and inputs.add(0, "p", 4, "h")
    assert list(inputs.voids()) == [(0, (), True), (0, ("p",), False)]
    assert inputs.empty


def test_a_replay_takes_what_was_kept_and_grants_nobody_credit() -> None:
    inputs = Inputs(JOIN, Replay(2, 3))
    for node in ("p", "q"):
        inputs.add(0, node, 4, node)
    first, _ = inputs.take(Op(OpKind.FORWARD, 0))
    again, nodes = inputs.take(Op(OpKind.FORWARD, 0, replay=True))
    assert again is first and nodes == ()
    inputs.check()
