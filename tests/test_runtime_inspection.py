"""Tensors of neighbours: what fits is let through, what does not accuses who sent it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import BITS, WIDTH, chain, design, several_readers
from streaming import copying
from tied import tied_chain

from asyncdni.build import Design
from asyncdni.messages import Accused, Activation, Credit, Gradient, Message, Shared
from asyncdni.runtime.inspection import Inspection
from asyncdni.schedules.base import Flight

FLIGHTS = {0: Flight(0, 5, 0)}
F32 = np.float32


def inspection(index: int, made: Design | None = None) -> Inspection:
    """Of a worker of a chain of three: s0, s1, top; all neighbours have incarnation 2."""
    made = made or design(chain(3), {"name": "locked"})
    names = [group.name for group in made.plan.groups]
    return Inspection(made, made.plan.groups[index], dict.fromkeys(names, 2))


def activation(**changes: Any) -> Activation:
    tensors = {"h": np.zeros((5, WIDTH), F32), "y": np.zeros((5, BITS), F32)}
    values = {"sender": "s0", "incarnation": 2, "batch": 0, "samples": 5, "tensors": tensors}
    return Activation(**{**values, **changes})


def gradient(**changes: Any) -> Gradient:
    tensors = {"top": np.zeros((5, WIDTH), F32)}
    return Gradient(
        **{"sender": "top", "incarnation": 2, "batch": 0, "tensors": tensors, **changes}
    )


def tensors(**changes: Any) -> dict[str, Any]:
    return {**activation().tensors, **changes}


@pytest.mark.parametrize("message", [activation(), gradient(), Credit("top", 2, "s1", 0, 1)])
def test_what_fits_is_let_through(message: Message) -> None:
    assert inspection(1).accusation(message, FLIGHTS) is None


BAD_ACTIVATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "another width": (
        {"tensors": tensors(h=np.zeros((5, WIDTH + 1), F32))},
        "its h is float32 (5, 7), expected float32 (5, 6)",
    ),
    "another type": (
        {"tensors": tensors(h=np.zeros((5, WIDTH)))},
        "its h is float64 (5, 6), expected float32 (5, 6)",
    ),
    "other rows than it says": ({"samples": 4}, "its h is float32 (5, 6), expected float32 (4, 6)"),
    "targets of other rows": (
        {"tensors": tensors(y=np.zeros((4, BITS), F32))},
        "its y is float32 (4, 4), expected float32 (5, 4)",
    ),
    "no targets": (
        {"tensors": {"h": np.zeros((5, WIDTH), F32)}},
        "it has tensors ['h'], expected ['h', 'y']",
    ),
    "one tensor more": (
        {"tensors": tensors(z=np.zeros(1))},
        "it has tensors ['h', 'y', 'z'], expected ['h', 'y']",
    ),
}


@pytest.mark.parametrize("case", BAD_ACTIVATIONS)
def test_an_activation_that_does_not_fit_accuses_its_sender(case: str) -> None:
    changes, text = BAD_ACTIVATIONS[case]
    accused = inspection(1).accusation(activation(**changes), {})
    what = "the Activation of batch 0 from worker s0 does not fit: "
    assert accused == Accused("s0", 2, what + text)


BAD_GRADIENTS: dict[str, tuple[dict[str, Any], str]] = {
    "another width": (
        {"tensors": {"top": np.zeros((5, 1), F32)}},
        "its gradient for top is float32 (5, 1), expected float32 (5, 6)",
    ),
    "other rows than the batch": (
        {"tensors": {"top": np.zeros((4, WIDTH), F32)}},
        "its gradient for top is float32 (4, 6), expected float32 (5, 6)",
    ),
    "no rows at all": (
        {"tensors": {"top": np.zeros((), F32)}},
        "its gradient for top is float32 (), expected float32 (5, 6)",
    ),
    "of another stage": (
        {"tensors": {"s0": np.zeros((5, WIDTH), F32)}},
        "it has tensors ['s0'], expected ['top']",
    ),
    "of none": ({"tensors": {}}, "it has tensors [], expected ['top']"),
}


@pytest.mark.parametrize("case", BAD_GRADIENTS)
def test_a_gradient_that_does_not_fit_accuses_its_sender(case: str) -> None:
    changes, text = BAD_GRADIENTS[case]
    accused = inspection(1).accusation(gradient(**changes), FLIGHTS)
    assert accused is not None
    assert accused.worker == "top"
    assert accused.text.endswith(text)


def test_a_gradient_of_a_batch_that_is_still_to_come_may_have_any_rows() -> None:
    rows = {"top": np.zeros((3, WIDTH), F32)}
    assert inspection(1).accusation(gradient(batch=7, tensors=rows), FLIGHTS) is None
    scalar = {"top": np.zeros((), F32)}
    assert inspection(1).accusation(gradient(batch=7, tensors=scalar), FLIGHTS) is not None


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"s2": np.zeros(WIDTH * WIDTH + WIDTH, F32)}, None),
        ({}, None),  # it has not learned
        ({"s2": np.zeros(3, F32)}, "its gradient of s2 is float32 (3,), expected float32 (42,)"),
        ({"s0": np.zeros(3, F32)}, "it has tensors ['s0'], expected of ['s2']"),
    ],
)
def test_a_gradient_of_shared_weights_must_have_their_size(given: Any, text: str | None) -> None:
    inspected = inspection(1, design(tied_chain(), {"name": "locked"}))
    accused = inspected.accusation(Shared("s2", 2, 0, given), {})
    what = "the Shared of batch 0 from worker s2 does not fit: "
    assert accused == (None if text is None else Accused("s2", 2, what + text))


def test_a_neighbour_is_accused_once() -> None:
    inspected = inspection(1)
    bad = activation(samples=4)
    assert inspected.accusation(bad, {}) is not None
    assert inspected.accusation(bad, {}) is None


def test_what_an_older_process_has_sent_accuses_nobody() -> None:
    assert inspection(1).accusation(activation(samples=4, incarnation=1), {}) is None


def test_what_only_the_core_can_judge_is_left_to_it() -> None:
    assert inspection(1).accusation(activation(sender="top", samples=4), {}) is None
    assert inspection(0).accusation(gradient(sender="top"), FLIGHTS) is None


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_out_of_range_accuses_the_host_of_the_data(label: int) -> None:
    stages = several_readers()
    stages[-1] |= {"layers": [{"dense": 10}], "loss": "cross_entropy"}
    made = design(stages, {"name": "locked"}, data={"name": "digits", "batch_size": 5})
    assert made.plan.groups[1].name == "right"
    y = np.array([0, 9, 3, label, 1])
    x = np.zeros((5, 784), F32)
    sent = activation(sender="data", tensors={"h": x, "y": y})
    accused = inspection(1, made).accusation(sent, {})
    assert accused is not None
    assert (accused.worker, accused.incarnation) == ("left", 2)
    assert "expected 0 to 9" in accused.text
    right = activation(sender="data", tensors={"h": x, "y": y.clip(0, 9)})
    assert inspection(1, made).accusation(right, {}) is None


def test_what_travels_with_windows_is_looked_at_as_well() -> None:
    made = copying({"name": "locked"})
    h, y = np.zeros((4, 3, 5), F32), np.zeros((4, 3, 1), F32)
    context = {
        "first": np.zeros(4, bool),
        "last": np.zeros(4, bool),
        "mask": np.zeros((4, 3), bool),
    }
    right = activation(samples=4, tensors={"h": h, "y": y, **context})
    assert inspection(1, made).accusation(right, FLIGHTS) is None
    wrong = activation(
        samples=4, tensors={"h": h, "y": y, **context, "mask": np.zeros((4, 3), F32)}
    )
    found = inspection(1, made).accusation(wrong, FLIGHTS)
    assert found is not None
    assert found.text.endswith("its mask is float32 (4, 3), expected bool (4, 3)")
