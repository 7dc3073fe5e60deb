"""What does not fit, whose fault it is, and the story of a batch that the error tells."""

from __future__ import annotations

import pytest
from each import each
from hand import FORK, MIDDLE, Hand, activation, connect, drained, sends, trained
from pair import chain

from asyncdni.core.events import Action, UserStop, Woke
from asyncdni.core.position import FINAL
from asyncdni.errors import RemoteProtocolError
from asyncdni.messages import (
    COORDINATOR,
    DATA,
    Accused,
    Barrier,
    Beat,
    Credit,
    Drained,
    Evaluate,
    Gradient,
    Message,
    Resume,
    Skipped,
    Start,
)
from asyncdni.messages import Save as SaveOrder


def test_words_of_an_older_process_of_a_stage_are_ignored() -> None:
    hand = Hand(MIDDLE)
    hand.worker.joined(connect(MIDDLE, incarnations={"p": 2, "c": 1}))
    hand(Start())
    assert hand(activation(0, incarnation=1)) == []
    hand(activation(0, incarnation=2))
    assert str(hand.op) == "F0"


HOST = chain(2, barriers=(1, 9))[0]


def of_neighbours() -> dict[str, tuple[Hand, Message]]:
    """A worker, and what it must not get of a neighbour."""
    return {
        "an activation of no producer": (trained(), activation(1, "c")),
        "an activation twice": (trained(), activation(0)),
        "an activation out of order": (trained(), activation(2)),
        "half an activation twice": (trained(FORK), activation(0, "p")),
        "a test batch while training": (trained(), activation(0, evaluate=True)),
        "a last training batch": (trained(), activation(1, last=True)),
        "a test batch out of order": (drained(), activation(1, evaluate=True)),
        "a gradient from a producer": (trained(), Gradient("p", 1, 0, {})),
        "a gradient of a batch to come": (trained(), Gradient("c", 1, 1, {})),
        "a gradient of no batch": (trained(), Gradient("c", 1, -1, {})),
        "a skip from a producer": (trained(), Skipped("p", 1, 0)),
        "a skip of a batch to come": (trained(), Skipped("c", 1, 1)),
        "credit of nobody": (trained(), Credit("p", 1, "m", 1, 9)),
        "credit for another node": (trained(), Credit("c", 1, DATA, 1, 9)),
        "more taken than sent": (trained(), Credit("c", 1, "m", taken=2, allowed=9)),
        "a barrier of no producer": (trained(), Barrier("c", 1, 0, FINAL)),
        "a barrier too far": (trained(), Barrier("p", 1, 1, FINAL)),
    }


def of_the_coordinator() -> dict[str, tuple[Hand, Message]]:
    """A worker, and what it must not get of the coordinator."""
    return {
        "Start twice": (trained(), Start()),
        "Evaluate while training": (trained(), Evaluate(0)),
        "Resume while training": (trained(), Resume(0)),
        "Save while training": (trained(), SaveOrder("best")),
        "Evaluate of another barrier": (drained(), Evaluate(1)),
        "Resume of another barrier": (drained(), Resume(-1)),
        "a word of workers": (trained(), Drained(1, 0, FINAL, 1)),
        "a beat": (trained(), Beat()),
    }


def accused(actions: list[Action]) -> Accused:
    """The one whom the coordinator is told of; others may be told what they need not wait for."""
    (to, message), *others = sends(actions)
    assert to == COORDINATOR
    assert isinstance(message, Accused)
    assert all(isinstance(other, Skipped) and to != message.worker for to, other in others)
    return message


def check_text(text: str, hand: Hand, message: Message) -> None:
    sender = getattr(message, "sender", COORDINATOR)
    assert text.startswith(f"worker {hand.worker.position.name} ")
    assert type(message).__name__ in text
    assert f"that {sender} sent" in text
    if hasattr(message, "batch"):
        assert f"batch {message.batch}" in text
        assert f"got {type(message).__name__} from {sender}" in text


@each("case", of_neighbours())
def test_a_neighbour_whose_word_does_not_fit_is_accused_and_not_heard_any_more(case: str) -> None:
    hand, message = of_neighbours()[case]
    found = accused(hand(message))
    sender = message.sender  # type: ignore[attr-defined]
    assert (found.worker, found.incarnation) == (sender, 1)
    check_text(found.text, hand, message)
    for later in (message, activation(1, sender), Gradient(sender, 1, 0, {sender: "g"})):
        assert hand(later) == []
    assert hand.op is None


@each("case", of_the_coordinator())
def test_a_word_of_the_coordinator_that_does_not_fit_is_an_error(case: str) -> None:
    hand, message = of_the_coordinator()[case]
    with pytest.raises(RemoteProtocolError) as caught:
        hand(message)
    check_text(str(caught.value), hand, message)


@each("sender", [DATA, "stage 0", COORDINATOR, "x"])
def test_what_no_neighbour_can_have_sent_is_dropped_and_nobody_accused(sender: str) -> None:
    """Neither may the host be accused of what it can't have sent, nor the coordinator be lost."""
    hand = trained(HOST, 0)
    assert hand(activation(0, sender)) == []
    assert hand(Barrier(sender, 1, 0, FINAL)) == []
    hand.finish({"h": "x"})
    hand.finish_until("U0")
    hand(Gradient("stage 1", 1, 0, {"stage 1": "g"}))
    assert [to for to, _ in sends(hand.finish_until("T0"))] == [COORDINATOR]


def test_more_activations_than_granted_are_a_mismatch() -> None:
    hand = Hand(MIDDLE, window=2)
    assert hand(activation(0)) == hand(activation(1)) == []
    found = accused(hand(activation(2)))
    assert found.worker == "p"
    assert "batch 2" in found.text


def test_parts_of_one_batch_with_different_sizes_do_not_fit() -> None:
    hand = Hand(FORK)
    assert hand(activation(0, "p")) == []
    assert accused(hand(activation(0, "q", samples=5))).worker == "q"


def test_a_second_barrier_and_a_second_gradient_from_the_same_sender_do_not_fit() -> None:
    for message in (Barrier("p", 1, 0, FINAL), Gradient("c", 1, 0, {"c": "g"})):
        hand = trained(FORK)
        assert hand(message) == []
        assert accused(hand(message)).worker == message.sender


def test_an_accused_neighbour_is_accused_once_until_it_has_been_replaced() -> None:
    hand = trained()
    accused(hand(activation(0)))
    assert hand(activation(0)) == hand(Gradient("p", 1, 0, {})) == []


def test_the_story_of_a_batch_tells_what_came_and_what_was_done_in_order() -> None:
    hand = trained(batches=2)
    hand(Gradient("c", 1, 0, {"c": "g"}))
    hand.finish()
    words = [entry.split(" s ")[1] for entry in hand.worker.story(0).split(", ")]
    assert words == [
        "got Activation from p",
        *(f"did {op}" for op in ("F0", "P0", "B0", "U0")),
        "got Gradient from c",
        "did T0",
    ]


def test_events_that_are_no_business_of_a_worker_are_a_bug_of_the_driver() -> None:
    with pytest.raises(TypeError):
        Hand(MIDDLE)(UserStop())


def test_a_worker_needs_no_waking() -> None:
    hand = trained()
    assert hand.worker.deadline() is None
    assert hand(Woke()) == []
