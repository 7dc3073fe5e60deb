"""What a run is worth at a barrier, and when it is the best so far."""

from __future__ import annotations

from typing import Any

import pytest
from loops import each
from office import Office, records, sent, to_all

from asyncdni.messages import Evaluated, Resume, Save


@each(
    ("first", "second", "better"),
    [
        ({"correct": 5}, {"correct": 6, "loss": 9.0}, True),
        ({"correct": 5}, {"correct": 5, "loss": 0.1}, False),
        ({"correct": 5}, {"correct": 4, "loss": 0.1}, False),
        ({"correct": None, "loss": 2.0}, {"correct": None, "loss": 1.0}, True),
        ({"correct": None, "loss": 1.0}, {"correct": None, "loss": 2.0}, False),
    ],
)
def test_the_best_is_told_by_accuracy_or_by_loss_where_there_is_none(
    first: dict[str, Any], second: dict[str, Any], better: bool
) -> None:
    office = Office().evaluating()
    office.score(**first)
    office.saved("best")
    office.drain(position=4)
    expected = to_all(Save("best")) if better else to_all(Resume(1))
    assert sent(office.score(**second)) == expected


def two_losses(order: tuple[str, str]) -> dict[str, Any]:
    office = Office(losses=("b", "c")).evaluating()
    scores = {"b": Evaluated(0, "b", 3, 0.3, 1, 1), "c": Evaluated(0, "c", 3, 0.7, 2, 1)}
    assert office.hear(order[0], scores[order[0]]) == []
    (record,) = records(office.hear(order[1], scores[order[1]]), "evaluation")
    return record


def test_several_losses_add_up_to_the_same_whoever_was_first() -> None:
    record = two_losses(("c", "b"))
    assert record == two_losses(("b", "c"))
    assert record["accuracy"] == 2 / 3  # of the last declared
    assert record["loss"] == pytest.approx(1.0 / 3)
