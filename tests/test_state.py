"""Snapshots of stages: training goes on from one to the bits of a run that was not interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from each import each
from line import Line, bits

from asyncdni.errors import CheckpointError
from asyncdni.plan.build import Design
from asyncdni.schedules.base import Source
from asyncdni.store.checkpoint import read_state, write_state

BEFORE, AFTER = 7, 6
LOCKED = {"name": "locked"}


def synthetic(kind: str = "error", /, **options: Any) -> dict[str, Any]:
    generator = {"kind": kind, **({"hidden": [5]} if kind == "mlp" else {})}
    return {"name": "synthetic", "generator": generator, **options}


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd"},
    "momentum": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01},
    "nesterov": {"name": "sgd", "momentum": 0.9, "nesterov": True},
    "adam": {"name": "adam"},
    "adamw": {"name": "adam", "weight_decay": 0.1, "clip_norm": 0.5},
    "cosine": {"name": "adam", "decay": {"name": "cosine", "warmup_epochs": 0.5}},
    "step": {"name": "sgd", "decay": {"name": "step", "epochs": [0.6, 1.8]}},
}
SCHEDULES: dict[str, tuple[dict[str, Any], int]] = {
    "locked": (LOCKED, 0),
    **{f"generator-{k}": (synthetic(k), 2) for k in ("error", "zero", "linear", "low_rank", "mlp")},
    "unscaled": ({"name": "synthetic", "generator": {"kind": "linear", "scale_targets": False}}, 1),
    "corrected": (synthetic(correct=True), 2),
    "mixed": (synthetic(mix=0.3), 2),
    "inputs": (synthetic(synthetic_inputs=True, input_model={"hidden": [4], "labels": True}), 1),
    "head": ({"name": "local_loss"}, 0),
    "deep-head": ({"name": "local_loss", "head": {"hidden": [5]}}, 0),
    "stash": ({"name": "delayed"}, 3),
    "current": ({"name": "delayed", "weights": "current"}, 3),
    "look-ahead": ({"name": "delayed", "look_ahead": 2.0}, 3),
    "look-ahead-current": ({"name": "delayed", "look_ahead": 2.0, "weights": "current"}, 3),
    "annealed": ({"name": "delayed", "anneal_epochs": 2.0}, 3),
}


def make(schedule: dict[str, Any], **tables: Any) -> Design:
    tables.setdefault("data", {"batch_size": 6})
    return networks.design(networks.chain(4, norm=True), schedule, **tables)


def through_files(line: Line, folder: Path) -> dict[str, dict[str, Any]]:
    """What a cut of all workers has of it."""
    state = {}
    for stage, group in zip(line.stages, line.design.plan.groups, strict=True):
        taken = stage.snapshot(copied=False)
        digests = write_state(folder / "checkpoints/000001", taken, {}, durable=True)
        names = [node.name for node in group.members]
        state |= read_state(folder / "checkpoints/000001", names, digests)[0]
    return state


def assert_goes_on(design: Design, lag: int, folder: Path, *, other: Design | None = None) -> None:
    """Also in `other`, which may have another split."""
    whole = Line(design, lag)
    whole.train(0, BEFORE)
    state = through_files(whole, folder)
    resumed = Line(other or design, lag)
    assert bits(resumed.snapshot()) != bits(state)
    assert resumed.restore(state) == []
    assert bits(resumed.snapshot()) == bits(state)
    for line in (whole, resumed):
        line.train(BEFORE, BEFORE + AFTER)
    assert bits(resumed.snapshot()) == bits(whole.snapshot()) != bits(state)


@each("name", SCHEDULES)
def test_training_goes_on_to_the_same_bits_under_every_schedule(name: str, tmp_path: Path) -> None:
    schedule, lag = SCHEDULES[name]
    assert_goes_on(make(schedule), lag, tmp_path)


@each("name", OPTIMIZERS)
@each("schedule", ["locked", "look-ahead"])
def test_training_goes_on_to_the_same_bits_with_every_optimizer(
    schedule: str, name: str, tmp_path: Path
) -> None:
    chosen, lag = SCHEDULES[schedule]
    assert_goes_on(make(chosen, optimizer=OPTIMIZERS[name]), lag, tmp_path)


@each("split", [[4], [2, 2], [1, 2, 1]])
@each("name", ["locked", "generator-error", "inputs", "head", "look-ahead"])
def test_fused_stages_go_on_to_the_same_bits(name: str, split: list[int], tmp_path: Path) -> None:
    schedule, lag = SCHEDULES[name]
    assert_goes_on(make(schedule, run={"split": split}), lag, tmp_path)


def test_training_goes_on_to_the_same_bits_in_double_precision_and_microbatches(
    tmp_path: Path,
) -> None:
    decay = {"name": "cosine", "warmup_epochs": 1.0}
    design = make(
        {"name": "gpipe", "microbatches": 2},
        data={"batch_size": 6, "examples": 24},
        run={"dtype": "float64"},
        optimizer={"name": "adam", "decay": decay},
    )
    whole, resumed = Line(design), Line(design)
    whole.train(0, 8)
    assert resumed.restore(through_files(whole, tmp_path)) == []
    for line in (whole, resumed):
        line.train(8, 12)
    assert bits(resumed.snapshot()) == bits(whole.snapshot())


@each("split", [[4], [2, 2], [3, 1], [1, 2, 1]])
def test_locked_training_goes_on_under_another_split(split: list[int], tmp_path: Path) -> None:
    assert_goes_on(make(LOCKED), 0, tmp_path, other=make(LOCKED, run={"split": split}))


# --- another split ---------------------------------------------------------------------------


def state_of(schedule: dict[str, Any], **tables: Any) -> dict[str, dict[str, Any]]:
    line = Line(make(schedule, **tables), 1)
    line.train(0, BEFORE)
    return line.snapshot()


def test_what_a_fused_worker_does_not_need_is_left_with_a_note() -> None:
    state = state_of(synthetic())
    fused = Line(make(synthetic(), run={"split": [2, 2]}), 1)
    notes = fused.restore(state)
    assert [note.split(":")[0] for note in notes] == ["stage s0", "stage s2"]
    assert all("its generator is not needed" in note for note in notes)
    found = fused.snapshot()
    assert bits({"s1": found["s1"]}) == bits({"s1": state["s1"]})
    assert not any(name.startswith("generator") for name in found["s0"])


def test_a_stage_whose_generator_nobody_had_starts_with_a_fresh_one_and_a_note() -> None:
    state = state_of(synthetic(), run={"split": [2, 2]})
    line = Line(make(synthetic()), 1)
    fresh = line.snapshot()
    notes = line.restore(state)
    assert [note.split(":")[0] for note in notes] == ["stage s0", "stage s2"]
    assert all("its generator starts anew" in note for note in notes)
    found = line.snapshot()
    generator = {name: a for name, a in fresh["s0"].items() if name.startswith("generator.")}
    assert generator and bits({"": {name: found["s0"][name] for name in generator}}) == bits(
        {"": generator}
    )
    for name, array in state["s0"].items():
        np.testing.assert_array_equal(found["s0"][name], array)
    line.train(BEFORE, BEFORE + 2)


def test_local_heads_and_input_models_are_begun_anew_and_left_alike() -> None:
    head, inputs = {"name": "local_loss"}, SCHEDULES["inputs"][0]
    fused = {"split": [2, 2]}
    missing = Line(make(head)).restore(state_of(head, run=fused))
    assert [note for note in missing if "local head starts anew" in note] == missing != []
    needless = Line(make(inputs, run=fused)).restore(state_of(inputs))
    assert sum("an input model is not needed" in note for note in needless) == 2
    anew = Line(make(inputs)).restore(state_of(inputs, run=fused))
    assert sum("the input model for s0 starts anew" in note for note in anew) == 1


def test_stages_that_have_not_looked_ahead_yet_start_from_their_weights_with_a_note() -> None:
    """After training under another schedule."""
    state = state_of(LOCKED)
    line = Line(make({"name": "delayed", "look_ahead": 1.0}), 1)
    notes = line.restore(state)
    assert len(notes) == 4 and all("first forwards use present weights" in note for note in notes)
    line.train(BEFORE, BEFORE + 3)
    assert Line(make(LOCKED)).restore(line.snapshot()) == []


# --- what does not fit -----------------------------------------------------------------------


def damaged(change: Any) -> tuple[Line, dict[str, dict[str, Any]]]:
    state = state_of(synthetic())
    change(state["s1"])
    return Line(make(synthetic()), 1), state


@each(
    "change, words",
    [
        (lambda own: own.pop("0.bias"), r"0\.bias is missing, expected float32 \(6,\)"),
        (
            lambda own: own.update({"0.weight": np.zeros((6, 7), "f4")}),
            r"0\.weight is float32 \(6, 7\), expected float32 \(6, 6\)",
        ),
        (
            lambda own: own.update({"0.weight": own["0.weight"].astype("f8")}),
            r"0\.weight is float64 \(6, 6\), expected float32",
        ),
        (lambda own: own.update({"9.weight": np.zeros(1)}), "9.weight is .* no such array"),
        (lambda own: own.pop("optimizer.first"), "optimizer.first is missing"),
        (lambda own: own.update({"optimizer.momentum": np.zeros(1)}), "optimizer.momentum"),
        (lambda own: own.pop("counters.updates"), "counters.updates is missing"),
        (lambda own: own.pop("generator.map"), "generator.map is missing"),
        (lambda own: own.update({"generator.2.bias": np.zeros(1)}), "generator.2.bias"),
        (lambda own: own.clear(), r"0\.weight is missing.*; and \d+ more"),
    ],
)
def test_the_state_of_another_network_is_refused_naming_the_difference(
    change: Any, words: str
) -> None:
    line, state = damaged(change)
    before = bits(line.snapshot())
    with pytest.raises(CheckpointError, match=f"stage s1 is not of this network: .*{words}"):
        line.stages[1].restore(state)
    assert bits(line.snapshot()) == before


def test_nothing_is_changed_where_a_later_stage_of_the_worker_does_not_fit() -> None:
    state = state_of(LOCKED)
    del state["top"]["0.bias"]
    fused = Line(make(LOCKED, run={"split": [4]}))
    before = bits(fused.snapshot())
    with pytest.raises(CheckpointError, match="stage top"):
        fused.restore(state)
    assert bits(fused.snapshot()) == before


# --- snapshots and what goes on meanwhile ----------------------------------------------------


def test_a_snapshot_stays_as_it_is_while_training_goes_on() -> None:
    line = Line(make(synthetic()), 1)
    line.train(0, 3)
    taken = line.snapshot()
    kept = bits(taken)
    line.train(3, 6)
    assert bits(taken) == kept != bits(line.snapshot())


@each("name", ["generator-error", "inputs", "look-ahead", "stash", "head"])
def test_a_snapshot_between_batches_is_restored_without_those_in_flight(name: str) -> None:
    """As rolling snapshots are: right after an update, with others on their way."""
    schedule, _ = SCHEDULES[name]
    line = Line(make(schedule), 3)
    for batch in range(5):
        line._forward(batch)
    line._backward(0)
    state = line.snapshot()
    fresh = Line(make(schedule), 3)
    assert fresh.restore(state) == []
    assert bits(fresh.snapshot()) == bits(state)
    fresh.train(5, 9)


def test_restoring_a_stage_in_use_forgets_what_it_was_at() -> None:
    whole = Line(make({"name": "delayed"}), 3)
    whole.train(0, 4)
    state = whole.snapshot()
    used = Line(make({"name": "delayed"}), 3)
    used.train(0, 9)
    for batch in (9, 10):
        used._forward(batch)
    assert used.restore(state) == []
    for line in (whole, used):
        line.train(4, 8)
    assert bits(used.snapshot()) == bits(whole.snapshot())


def test_forgetting_drops_accumulated_gradients_and_batches_and_nothing_else() -> None:
    whole, other = Line(make(LOCKED)), Line(make(LOCKED))
    for line in (whole, other):
        line.train(0, 4)
    before = bits(other.snapshot())
    other._forward(90)
    top = other.stages[-1]
    top.backward(90, {}, source=Source.TRUE, learn=True, send=True)
    statistics = {name for name in before["s0"] if "running" in name or "newest" in name}
    for stage in other.stages:
        stage.forget()
        stage.release(90, lambda: True)  # by whoever did not know yet
    after = bits(other.snapshot())
    changed = {key for own in after for key in after[own] if after[own][key] != before[own][key]}
    assert changed == statistics, "the forward itself moves these"
    top.update()
    found = bits(other.snapshot())["top"]
    assert {name for name in found if found[name] != before["top"][name]} == {
        "counters.updates",
        "counters.newest",
    }
