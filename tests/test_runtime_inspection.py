"""Tensors of neighbours: what fits is let through, what does not accuses who sent it."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from each import each
from networks import BITS, WIDTH, chain, design, several_readers
from streaming import copying
from tied import tied_chain

from asyncdni.drivers.real.inspection import Inspection
from asyncdni.errors import NumericalError
from asyncdni.messages import Accused, Activation, Credit, Gradient, Message, Shared
from asyncdni.plan.build import Design

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


@each("message", [activation(), gradient(), Credit("top", 2, "s1", 0, 1)])
def test_what_fits_is_let_through(message: Message) -> None:
    assert inspection(1).accusation(message) is None


BAD_ACTIVATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "another width": (
        {"tensors": tensors(h=np.zeros((5, WIDTH + 1), F32))},
        "its h is float32 (5, 7), expected float32 (5, 6)",
    ),
    "another type": (
        {"tensors": tensors(h=np.zeros((5, WIDTH)))},
        "its h is float64 (5, 6), expected float32 (5, 6)",
    ),
    "other rows than it says": ({"samples": 4}, "it says that it has 4 rows, expected 5"),
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


@each("case", BAD_ACTIVATIONS)
def test_an_activation_that_does_not_fit_accuses_its_sender(case: str) -> None:
    changes, text = BAD_ACTIVATIONS[case]
    accused = inspection(1).accusation(activation(**changes))
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


@each("case", BAD_GRADIENTS)
def test_a_gradient_that_does_not_fit_accuses_its_sender(case: str) -> None:
    changes, text = BAD_GRADIENTS[case]
    accused = inspection(1).accusation(gradient(**changes))
    assert accused is not None
    assert accused.worker == "top"
    assert accused.text.endswith(text)


def test_each_batch_has_the_rows_that_the_plan_gives_it() -> None:
    """23 samples in batches of 5: the fifth of each epoch has 3, as has its gradient."""
    for batch, evaluate, rows in ((3, False, 5), (4, False, 3), (9, False, 3), (3, True, 5)):
        for given in (rows, 0, 1, 6):
            h, y = np.zeros((given, WIDTH), F32), np.zeros((given, BITS), F32)
            sent = activation(batch=batch, samples=given, tensors={"h": h, "y": y})
            sent = msgspec.structs.replace(sent, evaluate=evaluate)
            accused = inspection(1).accusation(sent)
            assert (accused is None) == (given == rows), (batch, given)
            if not evaluate:
                back = gradient(batch=batch, tensors={"top": h})
                assert (inspection(1).accusation(back) is None) == (given == rows), (batch, given)
    scalar = {"top": np.zeros((), F32)}
    assert inspection(1).accusation(gradient(batch=7, tensors=scalar)) is not None


def broken(shape: tuple[int, ...], value: float) -> Any:
    array = np.zeros(shape, F32)
    array[-1] = value
    return array


@each("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_those_of_the_stage_that_sent_them(value: float) -> None:
    h, grad = broken((5, WIDTH), value), broken((5, WIDTH), value)
    wrong: list[tuple[Message, str]] = [
        (activation(tensors=tensors(h=h)), "stage s0 has sent the activation of batch 0"),
        (activation(tensors=tensors(y=broken((5, BITS), value))), "worker s0 has sent data"),
        (gradient(tensors={"top": grad}), "stage top has sent the gradient of batch 0"),
    ]
    for message, text in wrong:
        with pytest.raises(NumericalError, match=f"{text}.* to worker s1") as caught:
            inspection(1).accusation(message)
        assert ("learning_rate" in str(caught.value)) == text.startswith("stage")
    shared = inspection(1, design(tied_chain(), {"name": "locked"}))
    with pytest.raises(NumericalError, match="stage s2 has sent the shared of batch 0"):
        shared.accusation(Shared("s2", 2, 0, {"s2": broken((1, WIDTH * WIDTH + WIDTH), value)}))


def test_large_numbers_are_finite_and_an_older_process_s_are_not_looked_at() -> None:
    with np.errstate(over="ignore"):  # as in a worker's process
        large = activation(tensors=tensors(h=broken((5, WIDTH), 3e38)))
        assert inspection(1).accusation(large) is None
    wrong = activation(tensors=tensors(h=broken((5, WIDTH), np.nan)), incarnation=1)
    assert inspection(1).accusation(wrong) is None


def test_where_updates_are_skipped_only_tests_must_be_finite() -> None:
    made = design(chain(3), {"name": "locked"}, numbers={"policy": "skip"})
    wrong = activation(tensors=tensors(h=broken((5, WIDTH), np.nan)))
    assert inspection(1, made).accusation(wrong) is None
    with pytest.raises(NumericalError, match="stage s0"):
        inspection(1, made).accusation(msgspec.structs.replace(wrong, evaluate=True))


@each(
    "given, text",
    [
        (("s2", (5, 42)), None),
        (None, None),  # it has not learned
        (("s2", (3,)), "its gradient of s2 is float32 (3,), expected float32 (5, 42)"),
        (("s2", (1, 42)), "its gradient of s2 is float32 (1, 42), expected float32 (5, 42)"),
        (("s0", (5, 42)), "it has tensors ['s0'], expected of ['s2']"),
    ],
)
def test_gradients_of_shared_weights_must_have_their_size(given: Any, text: str | None) -> None:
    """One of each microbatch, of WIDTH * WIDTH weights and WIDTH biases."""
    inspected = inspection(1, design(tied_chain(), {"name": "gpipe", "microbatches": 5}))
    tensors = {given[0]: np.zeros(given[1], F32)} if given else {}
    accused = inspected.accusation(Shared("s2", 2, 9, tensors))
    what = "the Shared of batch 9 from worker s2 does not fit: "
    assert accused == (None if text is None else Accused("s2", 2, what + text))


def test_a_neighbour_is_accused_once() -> None:
    inspected = inspection(1)
    bad = activation(samples=4)
    assert inspected.accusation(bad) is not None
    assert inspected.accusation(bad) is None


def test_what_an_older_process_has_sent_accuses_nobody() -> None:
    assert inspection(1).accusation(activation(samples=4, incarnation=1)) is None


def test_what_only_the_core_can_judge_is_left_to_it() -> None:
    assert inspection(1).accusation(activation(sender="top", samples=4)) is None
    assert inspection(0).accusation(gradient(sender="top")) is None


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_out_of_range_accuses_the_host_of_the_data(label: int) -> None:
    stages = several_readers()
    stages[-1] |= {"layers": [{"dense": 10}], "loss": "cross_entropy"}
    made = design(stages, {"name": "locked"}, data={"name": "digits", "batch_size": 5})
    assert made.plan.groups[1].name == "right"
    y = np.array([0, 9, 3, label, 1])
    x = np.zeros((5, 784), F32)
    sent = activation(sender="data", tensors={"h": x, "y": y})
    accused = inspection(1, made).accusation(sent)
    assert accused is not None
    assert (accused.worker, accused.incarnation) == ("left", 2)
    assert "expected 0 to 9" in accused.text
    right = activation(sender="data", tensors={"h": x, "y": y.clip(0, 9)})
    assert inspection(1, made).accusation(right) is None


def test_what_travels_with_windows_is_looked_at_as_well() -> None:
    made = copying({"name": "locked"})
    h, y = np.zeros((4, 3, 5), F32), np.zeros((4, 3, 1), F32)
    context = {
        "first": np.zeros(4, bool),
        "last": np.zeros(4, bool),
        "mask": np.zeros((4, 3), bool),
    }
    right = activation(samples=4, tensors={"h": h, "y": y, **context})
    assert inspection(1, made).accusation(right) is None
    wrong = activation(
        samples=4, tensors={"h": h, "y": y, **context, "mask": np.zeros((4, 3), F32)}
    )
    found = inspection(1, made).accusation(wrong)
    assert found is not None
    assert found.text.endswith("its mask is float32 (4, 3), expected bool (4, 3)")
