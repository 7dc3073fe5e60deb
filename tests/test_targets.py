"""When a run counts as having reached an accuracy."""

from __future__ import annotations

from typing import Any

from each import each

from asyncdni.report.statistics import crossing, samples_to, time_to


def history(*accuracies: float | None) -> list[dict[str, Any]]:
    return [
        {"samples": 100 * k, "train_s": 0.5 * k, "accuracy": accuracy, "loss": 0.1}
        for k, accuracy in enumerate(accuracies, 1)
    ]


@each(
    "accuracies, samples",
    [
        ((0.90, 0.97, 0.98), 200),
        ((0.97, 0.97), 100),
        ((0.97, 0.96, 0.98, 0.97), 300),  # the first one was luck
        ((0.97, 0.96, 0.98, 0.96), None),
        ((0.90, 0.97), None),  # the last one has no other after it
        ((0.97,), None),
        ((None, 0.98, None, 0.98, 0.98), 400),
        ((), None),
    ],
)
def test_a_target_is_reached_at_the_first_of_two_evaluations_in_a_row(
    accuracies: tuple[float | None, ...], samples: int | None
) -> None:
    found = crossing(history(*accuracies), 0.97)
    assert (found and found["samples"]) == samples


def test_the_time_is_that_of_training_at_the_first_of_the_two() -> None:
    summary = {"history": history(0.90, 0.97, 0.98)}
    assert time_to(0.97)(summary) == 1.0
    assert samples_to(0.97)(summary) == 200
    assert time_to(0.98)(summary) is None


def test_a_run_without_a_history_has_reached_nothing() -> None:
    assert time_to(0.5)({}) is None
