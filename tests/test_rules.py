"""From options to each worker's rules: bounds on lag, schedules, and what can't go together."""

from __future__ import annotations

from typing import Any

import networks
import pytest

from asyncdni.core.worker import Worker
from asyncdni.errors import ConfigError
from asyncdni.plan.build import Design, make_worker
from asyncdni.plan.rules import lag_bounds, make_schedule
from asyncdni.schedules.base import NEVER, Asked
from asyncdni.schedules.local_loss import LocalLoss
from asyncdni.schedules.locked import Locked
from asyncdni.schedules.one_f_one_b import OneF1B
from asyncdni.schedules.synthetic import USUAL_LAG, Synthetic

CHAIN = networks.chain(4)
FORK = networks.fork()

Tables = dict[str, Any]


def make(schedule: Tables, stages: networks.Tables = CHAIN, **tables: Any) -> Design:
    data = {"batch_size": 6, **tables.pop("data", {})}
    return networks.design(stages, schedule, data=data, **tables)


def own(index: int, schedule: Tables, stages: networks.Tables = CHAIN) -> networks.Tables:
    """The stages, one of them with a schedule of its own."""
    return [
        {**stage, "schedule": schedule} if i == index else stage for i, stage in enumerate(stages)
    ]


def bounds(design: Design, worker: str) -> tuple[dict[str, int], bool]:
    (group,) = [group for group in design.plan.groups if group.name == worker]
    return lag_bounds(design.experiment, design.plan, group)


def schedules(design: Design) -> list[Any]:
    return [make_schedule(design.experiment, design.plan, group) for group in design.plan.groups]


def workers(design: Design) -> dict[str, Worker]:
    return {group.name: make_worker(design, group) for group in design.plan.groups}


# --- bounds on lag -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "locked"}, [0, 0, 0]),
        ({"name": "gpipe", "microbatches": 6}, [5, 5, 5]),
        ({"name": "1f1b", "microbatches": 6}, [3, 2, 1]),
        ({"name": "1f1b", "microbatches": 2}, [1, 1, 1]),
        ({"name": "delayed"}, [3, 2, 1]),
        ({"name": "synthetic", "mix": 1.0}, [3, 2, 1]),
        ({"name": "synthetic", "mix": 0.5}, [USUAL_LAG] * 3),
        ({"name": "synthetic"}, [USUAL_LAG] * 3),
    ],
    ids=str,
)
def test_what_a_schedule_needs_is_the_bound_where_nothing_is_said(
    schedule: Tables, expected: list[int]
) -> None:
    design = make(schedule)
    names = ["s0", "s1", "s2", "top"]
    found = [bounds(design, name)[0] for name in names]
    assert found == [{to: n} for to, n in zip(names[1:], expected, strict=True)] + [{}]


def test_only_synthetic_gives_batches_up_and_only_where_it_does_not_wait() -> None:
    assert bounds(make({"name": "synthetic"}), "s0")[1]
    assert not bounds(make({"name": "synthetic"}, staleness={"at_bound": "wait"}), "s0")[1]
    assert not bounds(make({"name": "synthetic", "mix": 1.0}), "s0")[1]
    assert not bounds(make({"name": "delayed"}), "s0")[1]


def test_nothing_comes_back_under_local_loss_so_there_is_no_bound() -> None:
    assert bounds(make({"name": "local_loss"}), "s0") == ({}, False)


def test_a_bound_holds_for_all_links_but_those_that_are_named() -> None:
    staleness = {"lag": 4, "links": {"root->b": 9}}
    design = make({"name": "delayed"}, FORK, staleness=staleness)
    assert bounds(design, "root")[0] == {"a": 4, "b": 9, "c": 4}
    assert bounds(design, "a")[0] == {"top": 4}


def test_a_named_link_is_found_under_any_split() -> None:
    staleness = {"links": {"s1->s2": 7}}
    split = {"split": [2, 2]}
    design = make({"name": "delayed"}, run=split, staleness=staleness)
    assert bounds(design, "s0+s1")[0] == {"s2+top": 7}
    inside = make({"name": "delayed"}, run={"split": [1, 3]}, staleness=staleness)
    assert bounds(inside, "s0")[0] == {"s1+s2+top": 1}


def test_a_locked_stage_of_a_decoupled_run_keeps_one_batch_in_flight_whatever_the_bound() -> None:
    design = make(
        {"name": "synthetic"}, own(1, {"name": "locked"}), staleness={"lag": 4, "at_bound": "drop"}
    )
    assert bounds(design, "s1") == ({"s2": 0}, False)
    assert bounds(design, "s0") == ({"s1": 4}, True)


# --- schedules -----------------------------------------------------------------------------------


def test_warm_up_is_a_worker_s_own() -> None:
    found = schedules(make({"name": "1f1b", "microbatches": 3}))
    assert [one.warmup for one in found if isinstance(one, OneF1B)] == [3, 2, 1, 0]


def test_options_of_synthetic_reach_each_stage() -> None:
    options = {"fit_every": 3, "fit_first": 5, "correct": True, "target": "half"}
    for one in schedules(make({"name": "synthetic", **options})):
        assert isinstance(one, Synthetic)
        assert one.asked == Asked(3, 5) and one.correct and one.half and not one.bootstrap
        assert one.draws is None


def test_draws_are_the_same_for_every_process_and_others_for_every_stage_and_seed() -> None:
    schedule = {"name": "synthetic", "update_probability": 0.5}

    def drawn(seed: int) -> list[list[bool]]:
        design = make(schedule, run={"seed": seed})
        found = schedules(design)
        return [[one.draws(batch) for batch in range(200)] for one in found]

    assert drawn(1) == drawn(1)
    seen = [tuple(row) for seed in (1, 2) for row in drawn(seed)]
    assert len(set(seen)) == len(seen)


def test_who_sends_at_once_is_who_has_a_producer_locked_to_it() -> None:
    found = schedules(make({"name": "synthetic"}, own(1, {"name": "locked"})))
    assert isinstance(found[1], Locked)
    assert [getattr(one, "send_at_once", None) for one in found] == [False, None, True, False]


def test_a_locked_stage_answers_those_that_are_not_as_the_run_says() -> None:
    for schedule, asked in (
        ({"name": "synthetic", "fit_every": 4, "fit_first": 2}, Asked(4, 2)),
        ({"name": "local_loss"}, NEVER),
    ):
        found = schedules(make(schedule, own(1, {"name": "locked"})))
        assert found[1] == Locked(asked=asked)


def test_replay_and_guard_are_for_those_that_can_use_them() -> None:
    replaying = workers(make({"name": "local_loss", "replay": 3}))
    kept = {name: worker.parts.inputs.replay._size for name, worker in replaying.items()}
    assert kept == {"s0": 0, "s1": 3, "s2": 3, "top": 3}  # s0 has new data at any time
    guarded = workers(make({"name": "synthetic", "guard": {"window": 8}}))
    assert {name: worker.parts.guard is not None for name, worker in guarded.items()} == {
        **dict.fromkeys(("s0", "s1", "s2"), True),
        "top": False,
    }


def test_a_stage_s_own_options_are_those_of_the_run_with_its_changes() -> None:
    stages = own(0, {"correct": True})
    found = schedules(make({"name": "synthetic", "fit_every": 2}, stages))
    assert [one.correct for one in found] == [True, False, False, False]
    assert {one.asked for one in found} == {Asked(2)}


def test_of_a_worker_with_several_stages_the_one_whose_activation_leaves_decides() -> None:
    design = make({"name": "synthetic"}, own(1, {"name": "locked"}), run={"split": [2, 2]})
    assert isinstance(schedules(design)[0], Locked)
    other = make({"name": "synthetic"}, own(0, {"name": "locked"}), run={"split": [2, 2]})
    assert isinstance(schedules(other)[0], Synthetic)


def test_local_loss_needs_no_generator_to_send_up() -> None:
    assert set(map(type, schedules(make({"name": "local_loss"})))) == {LocalLoss}


# --- what can't go together ----------------------------------------------------------------------

SYNTHETIC = {"name": "synthetic"}

#: (schedule, stages, other tables): (place, words of the reason).
REFUSED: dict[str, tuple[Tables, networks.Tables, Tables, list[str]]] = {
    "mix, bootstrap": (
        {**SYNTHETIC, "mix": 0.5, "target": "bootstrap"},
        CHAIN,
        {},
        ["schedule.mix:", "target = 'true'", "got 'bootstrap'"],
    ),
    "mix, fit_every": (
        {**SYNTHETIC, "mix": 0.5, "fit_every": 2},
        CHAIN,
        {},
        ["schedule.mix:", "fit_every = 2", "expected fit_every = 1"],
    ),
    "mix, correct": (
        {**SYNTHETIC, "mix": 0.5, "correct": True},
        CHAIN,
        {},
        ["schedule.mix:", "expected one of mix and correct"],
    ),
    "mix 1, update_probability": (
        {**SYNTHETIC, "mix": 1.0, "update_probability": 0.5},
        CHAIN,
        {},
        ["schedule.mix:", "mix = 1", "expected mix below 1"],
    ),
    "guard, half": (
        {**SYNTHETIC, "guard": {}, "target": "half"},
        CHAIN,
        {},
        ["schedule.guard:", "target = 'true'", "got 'half'"],
    ),
    "guard, thresholds": (
        {**SYNTHETIC, "guard": {"below": 0.5, "above": 0.1}},
        CHAIN,
        {},
        ["schedule.guard:", "above must not be less than below"],
    ),
    "own schedule under gpipe": (
        {"name": "gpipe", "microbatches": 2},
        own(1, {"name": "locked"}),
        {},
        ["stages[1] (s1).schedule:", "under gpipe", "under synthetic and local_loss"],
    ),
    "another decoupled one": (
        SYNTHETIC,
        own(1, {"name": "local_loss"}),
        {},
        ["stage s1, schedule:", "local_loss", "expected synthetic or locked"],
    ),
    "a synchronous one": (
        {"name": "local_loss"},
        own(0, {"name": "1f1b"}),
        {},
        ["stage s0, schedule:", "1f1b", "expected local_loss or locked"],
    ),
    "own target": (
        SYNTHETIC,
        own(0, {"target": "bootstrap"}),
        {},
        ["stage s0, schedule.target:", "the same for all stages", "[schedule]"],
    ),
    "own on_full": (
        {"name": "local_loss"},
        own(2, {"on_full": "skip"}),
        {},
        ["stage s2, schedule.on_full:", "the same for all stages"],
    ),
    "locked, synthetic_inputs": (
        {**SYNTHETIC, "synthetic_inputs": True},
        own(3, {"name": "locked"}),
        {},
        ["schedule.synthetic_inputs:", "stage top is locked", "rules it out"],
    ),
    "locked, replay": (
        {"name": "local_loss", "replay": 2},
        own(0, {"name": "locked"}),
        {},
        ["schedule.replay:", "stage s0 is locked to its consumers"],
    ),
    "locked, mix": (
        {**SYNTHETIC, "mix": 0.5},
        own(1, {"name": "locked"}),
        {},
        ["schedule.mix:", "stage s1 is locked to its consumers"],
    ),
    "locked, update_probability": (
        {**SYNTHETIC, "update_probability": 0.5},
        own(1, {"name": "locked"}),
        {},
        ["schedule.update_probability:", "stage s1", "expected 1"],
    ),
    "guard at a locked group's end": (
        {**SYNTHETIC, "guard": {}, "fit_every": 2},
        own(0, {"name": "locked"}),
        {},
        ["schedule.guard:", "stages locked to s1", "expected fit_every = 1"],
    ),
    "lag under local_loss": (
        {"name": "local_loss"},
        CHAIN,
        {"staleness": {"lag": 3}},
        ["staleness:", "nothing comes back under local_loss", "limits.window"],
    ),
    "drop under delayed": (
        {"name": "delayed"},
        CHAIN,
        {"staleness": {"at_bound": "drop"}},
        ["staleness.at_bound:", "under delayed", "expected 'wait'"],
    ),
    "drop with true gradients alone": (
        {**SYNTHETIC, "mix": 1.0},
        CHAIN,
        {"staleness": {"at_bound": "drop"}},
        ["staleness.at_bound:", "under synthetic", "expected 'wait'"],
    ),
    "lag below gpipe's need": (
        {"name": "gpipe", "microbatches": 6},
        CHAIN,
        {"staleness": {"lag": 4}},
        ["staleness:", "a lag of 4", "s0->s1", "gpipe needs there: 5", "fewer microbatches"],
    ),
    "lag below 1f1b's need": (
        {"name": "1f1b", "microbatches": 6},
        CHAIN,
        {"staleness": {"links": {"s0->s1": 2}}},
        ["staleness:", "a lag of 2", "s0->s1", "1f1b needs there: 3"],
    ),
    "an unknown link": (
        {"name": "delayed"},
        CHAIN,
        {"staleness": {"links": {"s0->s9": 2}}},
        ["staleness.links", "'s9'", "s0, s1, s2, top"],
    ),
    "microbatches": (
        {"name": "gpipe", "microbatches": 4},
        CHAIN,
        {},
        ["schedule.microbatches:", "4 does not divide data.batch_size = 6", "divisors"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_can_not_go_together_are_refused_in_one_line(case: str) -> None:
    schedule, stages, tables, words = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        make(schedule, stages, **tables)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(words[0]), text
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("schedule", "key", "words"),
    [
        ({"name": "locked", "mix": 0.5}, "schedule", "'mix'"),
        ({"name": "delayed", "microbatches": 2}, "schedule", "'microbatches'"),
        ({"name": "delayed", "weights": "stashed"}, "schedule.weights", "'stashed'"),
        ({"name": "gpipe", "microbatches": 0}, "schedule.microbatches", "0"),
        ({"name": "synthetic", "mix": 1.5}, "schedule.mix", "1.5"),
        ({"name": "synthetic", "update_probability": 0}, "schedule.update_probability", "0"),
        ({"name": "synthetic", "max_in_flight": 4}, "schedule", "'max_in_flight'"),
        ({"name": "local_loss", "uses_max": 1}, "schedule.uses_max", "1"),
        ({"name": "local_loss", "on_full": "drop"}, "schedule.on_full", "'drop'"),
    ],
    ids=str,
)
def test_an_option_that_the_schedule_does_not_have_is_refused(
    schedule: Tables, key: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make(schedule)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(key) and words in text, text


def test_what_can_go_together_is_taken() -> None:
    for schedule, stages in (
        ({**SYNTHETIC, "mix": 1.0}, CHAIN),
        ({**SYNTHETIC, "guard": {}, "fit_every": 2, "correct": True}, CHAIN),
        ({**SYNTHETIC, "guard": {}}, own(0, {"name": "locked"})),
        ({**SYNTHETIC, "update_probability": 0.2}, own(3, {"name": "locked"})),
        ({"name": "local_loss"}, own(0, {"uses_max": 3})),
        ({"name": "local_loss"}, own(0, {"head": {"hidden": [4]}})),
        ({"name": "gpipe", "microbatches": 6}, FORK),
    ):
        assert make(schedule, stages).plan.batches > 0
