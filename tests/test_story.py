"""What does not fit, whose fault it is, and the story of a batch that the error tells."""

from __future__ import annotations

import pytest
from hand import FORK, MIDDLE, Hand, activation, drained, trained
from pair import chain

from asyncdni.core.events import (
    UserStop,
    Woke,
)
from asyncdni.errors import RemoteProtocolError
from asyncdni.messages import (
    COORDINATOR,
    DATA,
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
    hand.worker.joined(7, {"p": 2, "c": 1})
    hand(Start())
    assert hand(activation(0, incarnation=1)) == []
    hand(activation(0, incarnation=2))
    assert str(hand.op) == "F0"


HOST = chain(2, barriers=(1, 9))[0]


def cases() -> dict[str, tuple[Hand, Message]]:
    """A worker, and what it must not get."""
    return {
        "an activation of no producer": (trained(), activation(1, "c")),
        "an activation twice": (trained(), activation(0)),
        "an activation out of order": (trained(), activation(2)),
        "half an activation twice": (trained(FORK), activation(0, "p")),
        "a test batch while training": (trained(), activation(0, evaluate=True)),
        "a last training batch": (trained(), activation(1, last=True)),
        "a test batch out of order": (drained(), activation(1, evaluate=True)),
        "data for the host of the data": (trained(HOST, 0), activation(0, DATA)),
        "a barrier of data for the host": (trained(HOST, 0), Barrier(DATA, 1, 0, True)),
        "a gradient from a producer": (trained(), Gradient("p", 1, 0, {})),
        "a gradient of a batch to come": (trained(), Gradient("c", 1, 1, {})),
        "a gradient of no batch": (trained(), Gradient("c", 1, -1, {})),
        "a skip from a producer": (trained(), Skipped("p", 1, 0)),
        "a skip of a batch to come": (trained(), Skipped("c", 1, 1)),
        "credit of nobody": (trained(), Credit("p", 1, "m", 1, 9)),
        "credit for another node": (trained(), Credit("c", 1, DATA, 1, 9)),
        "more taken than sent": (trained(), Credit("c", 1, "m", taken=2, allowed=9)),
        "a barrier of no producer": (trained(), Barrier("c", 1, 0, True)),
        "a barrier too far": (trained(), Barrier("p", 1, 1, True)),
        "Start twice": (trained(), Start()),
        "Evaluate while training": (trained(), Evaluate(0)),
        "Resume while training": (trained(), Resume(0)),
        "Save while training": (trained(), SaveOrder("best")),
        "Evaluate of another barrier": (drained(), Evaluate(1)),
        "Resume of another barrier": (drained(), Resume(-1)),
        "a word of workers": (trained(), Drained(0, 1)),
        "a beat": (trained(), Beat()),
    }


@pytest.mark.parametrize("case", cases())
def test_whatever_does_not_fit_is_the_peers_fault(case: str) -> None:
    hand, message = cases()[case]
    with pytest.raises(RemoteProtocolError) as caught:
        hand(message)
    text = str(caught.value)
    sender = getattr(message, "sender", COORDINATOR)
    assert text.startswith(f"worker {hand.worker.position.name} ")
    assert type(message).__name__ in text
    assert f"that {sender} sent" in text
    if hasattr(message, "batch"):
        assert f"batch {message.batch}" in text
        assert f"got {type(message).__name__} from {sender}" in text


def test_more_activations_than_granted_are_refused() -> None:
    hand = Hand(MIDDLE, window=2)
    hand(activation(0))
    hand(activation(1))
    with pytest.raises(RemoteProtocolError, match="batch 2"):
        hand(activation(2))


def test_parts_of_one_batch_with_different_sizes_are_refused() -> None:
    hand = Hand(FORK)
    hand(activation(0, "p"))
    with pytest.raises(RemoteProtocolError, match="batch 0"):
        hand(activation(0, "q", samples=5))


def test_a_second_barrier_and_a_second_gradient_from_the_same_sender_are_refused() -> None:
    for message in (Barrier("p", 1, 0, True), Gradient("c", 1, 0, {"c": "g"})):
        hand = trained(FORK)
        hand(message)
        with pytest.raises(RemoteProtocolError, match=f"that {message.sender} sent"):
            hand(message)


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
