"""The guard: a stage whose generator disagrees waits for true gradients, says so, comes back."""

from __future__ import annotations

from typing import Any

import networks
import pytest
from each import each
from hand import MIDDLE, Hand, activation, sends
from hypothesis import given
from hypothesis import strategies as st

from asyncdni.core.events import Computed, Finish
from asyncdni.core.flights import Guard
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.messages import COORDINATOR, Gradient, Guarded, Lost, Start
from asyncdni.plan.build import Design, make_stage
from asyncdni.plan.plan import Group
from asyncdni.stages.base import Agreement

COSINES = st.one_of(st.none(), st.floats(-1, 1))


def test_it_falls_back_after_a_whole_window_under_the_lower_threshold() -> None:
    guard = Guard(3, below=0.2, above=0.5)
    assert [guard.note(cosine) for cosine in (0.9, 0.0, -0.5, 0.0)] == [False, False, True, False]
    assert guard.waiting
    assert guard.mean == pytest.approx(0.4 / 3)


def test_between_the_thresholds_it_stays_as_it_is() -> None:
    guard = Guard(1, below=0.2, above=0.5)
    assert not guard.note(0.3) and not guard.waiting
    assert guard.note(0.1) and guard.waiting
    assert not guard.note(0.4) and guard.waiting
    assert guard.note(0.5) and not guard.waiting


def test_each_change_needs_a_window_of_its_own() -> None:
    guard = Guard(2, below=0.0, above=0.0)
    changes = [guard.note(cosine) for cosine in (-1.0, -1.0, 1.0, 1.0, -1.0, -1.0)]
    assert changes == [False, True, False, True, False, True]
    assert guard.waiting


def test_a_prediction_of_zero_agrees_with_nothing() -> None:
    guard = Guard(2, below=0.1, above=0.2)
    assert [guard.note(None), guard.note(None)] == [False, True]


@given(
    window=st.integers(1, 5),
    thresholds=st.tuples(st.floats(-1, 1), st.floats(-1, 1)).map(sorted),
    cosines=st.lists(COSINES, max_size=60),
)
def test_it_changes_its_mind_exactly_where_the_mean_of_a_window_says_so(
    window: int, thresholds: list[float], cosines: list[float | None]
) -> None:
    below, above = thresholds
    guard = Guard(window, below, above)
    kept: list[float] = []
    waiting = False
    for cosine in cosines:
        kept = [*kept, cosine or 0.0][-window:]
        mean = sum(kept) / len(kept)
        expected = len(kept) == window and (mean >= above if waiting else mean < below)
        assert guard.note(cosine) == expected
        if expected:
            waiting, kept = not waiting, []
        assert guard.waiting == waiting


# --- in a worker ---------------------------------------------------------------------------------


class Guarding(Hand):
    """A worker between two others with a guard of one fit."""

    def __init__(self) -> None:
        super().__init__(MIDDLE, guard=Guard(1, below=0.0, above=0.5))
        self(Start())
        self.batch = -1

    def forward(self) -> None:
        self.batch += 1
        self(activation(self.batch))
        self.finish({"h": "h"})

    def gradient(self) -> None:
        self(Gradient("c", 1, self.batch, {"c": "g"}))

    def fit(self, cosine: float | None) -> list[Any]:
        """Finish up to the fit, and say what it has measured."""
        while str(self.op) != f"T{self.batch}":
            self.finish()
        op, self.op = self.op, None
        assert op is not None
        return self(Computed(op, cosine=cosine))


def test_a_change_is_told_to_the_coordinator_with_the_mean_cosine() -> None:
    hand = Guarding()
    hand.forward()
    hand.gradient()
    assert sends(hand.fit(-0.25), Guarded) == [(COORDINATOR, Guarded(True, -0.25))]
    assert hand.worker.view.waiting
    counters = hand.worker.counters()
    assert (counters["waiting"], counters["fallbacks"]) == (1, 1)


def test_only_changes_to_waiting_are_counted_as_falling_back() -> None:
    hand = Guarding()
    told = []
    for cosine in (-1.0, 1.0, -1.0):
        hand.forward()
        hand.gradient()
        told += [message.waiting for _, message in sends(hand.fit(cosine), Guarded)]  # type: ignore[attr-defined]
        while hand.op is not None:
            hand.finish({"p": {"m": "g"}} if hand.op.letter in "Bb" else None)
    assert told == [True, False, True]
    assert hand.worker.counts.fallbacks == 2


def test_a_consumer_that_dies_while_it_waits_for_its_gradient_does_not_keep_it_waiting() -> None:
    """There is nothing true to learn from until that one is back: batches pass."""
    hand = Guarding()
    hand.forward()
    hand.gradient()
    hand.fit(-1.0)
    hand.finish_until("b0")
    hand.forward()
    assert hand.op is None
    hand(Lost("c"))
    for batch in range(2, 6):
        hand(activation(batch))
        while hand.op is not None:
            hand.finish({"h": "h"})
    assert hand.worker.counts.batches == 6
    assert not hand.worker.view.flights


def test_while_it_waits_one_batch_is_in_flight_and_learns_from_the_true_gradient() -> None:
    hand = Guarding()
    hand.forward()
    hand.gradient()
    hand.fit(-1.0)
    hand.finish_until("b0")
    hand.forward()
    assert hand.op is None  # no prediction, no update
    hand(activation(2))
    assert hand.op is None and list(hand.worker.view.flights) == [1]
    hand.gradient()
    done = []
    while hand.op is not None and hand.op.batch == 1:
        done.append(str(hand.op))
        hand.finish({"p": {"m": "g"}} if hand.op.letter == "B" else None)
    assert done == ["P1", "T1", "B1", "U1"]
    assert str(hand.op) == "F2"


def test_it_comes_back_when_the_generator_agrees_and_then_learns_at_once() -> None:
    hand = Guarding()
    hand.forward()
    hand.gradient()
    hand.fit(-1.0)
    hand.finish_until("b0")
    hand.forward()
    hand.gradient()
    assert sends(hand.fit(0.75), Guarded) == [(COORDINATOR, Guarded(False, 0.75))]
    hand.finish_until("U1")
    hand.forward()
    assert str(hand.op) == "P2"


# --- whole runs ----------------------------------------------------------------------------------


class Scripted:
    """A stage whose fits measure what it is told, fit by fit."""

    def __init__(self, stage: Any, cosines: list[float]) -> None:
        self._stage = stage
        self._cosines = iter(cosines)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def fit(self, *args: Any) -> Agreement:
        self._stage.fit(*args)
        return Agreement(next(self._cosines, 1.0), 1.0, 1.0)


@each("stages", [networks.chain(4), networks.fork(), networks.diamond()])
def test_a_run_falls_back_and_comes_back_and_records_both(stages: networks.Tables) -> None:
    """The first stage's generator disagrees for ten fits; all others always agree."""
    schedule = {"name": "synthetic", "guard": {"window": 4, "below": 0.0, "above": 0.5}}
    design = networks.design(stages, schedule, run={"epochs": 6})
    first = design.plan.groups[0].name

    def scripted(design: Design, group: Group) -> Any:
        cosines = [-1.0] * 10 if group.name == first else []
        return Scripted(make_stage(design, group), cosines)

    result = simulate(
        design,
        seed=0,
        maths=True,
        stages=scripted,
        costs=Costs(jitter=0.5),
        links=Links(latency_us=1000.0),
    )
    assert isinstance(result.end, Finish)
    told = [values for kind, values in result.records if kind == "guard"]
    assert [(one["stage"], one["waiting"]) for one in told] == [(first, True), (first, False)]
    assert told[0]["cosine"] == -1.0 and told[1]["cosine"] >= 0.5
    assert result.counters[first]["fallbacks"] == 1 and not result.counters[first]["waiting"]
    assert all(own["batches"] == design.plan.batches for own in result.counters.values())
    ops = [op[:2] for op in result.ops[first]]
    late = [b for letter, b in ops if letter == "U" and ops.index(("T", b)) < ops.index(("U", b))]
    assert 8 <= len(late) < design.plan.batches - 4


def test_a_generator_that_knows_nothing_never_comes_back_and_the_stage_learns_truly() -> None:
    """`zero` predicts nothing; once it waits, all its updates are from true gradients."""
    schedule = {
        "name": "synthetic",
        "generator": {"kind": "zero"},
        "guard": {"window": 3, "below": 0.1, "above": 0.2},
    }
    design = networks.design(networks.chain(3), schedule, run={"epochs": 4})
    result = simulate(design, seed=0, maths=True)
    assert isinstance(result.end, Finish)
    for name in ("s0", "s1"):
        assert result.counters[name]["waiting"] == result.counters[name]["fallbacks"] == 1
        last = [letter for letter, batch, *_ in result.ops[name] if batch == 19 and letter != "R"]
        assert last == ["F", "P", "T", "B", "U"]
