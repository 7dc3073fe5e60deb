"""Evaluation behind the stream: copies of the weights are evaluated while training goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import networks
import numpy as np
import pytest
from each import case, each
from random_runs import DrawnRun, draw_faulty_run, draw_run

from asyncdni.core.behind import Marks
from asyncdni.core.events import Fail, Finish
from asyncdni.core.ledger import Ledger
from asyncdni.data import open_batches
from asyncdni.data.base import Source
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.faults import parse_faults
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array
from asyncdni.plan.build import Design, make_design, make_whole_stage
from asyncdni.schedules.base import Op, OpKind
from asyncdni.stages.numpy.stage import NumpyStage
from asyncdni.store.tensors import load_stage

#: Schedules whose stages do not wait for one another.
ASYNCHRONOUS = ("delayed", "local_loss", "synthetic")
SYNTHETIC = {"name": "synthetic", "generator": {"kind": "linear"}}
#: Several evaluations an epoch, each of three test batches.
RUN = {"epochs": 3, "evaluate_every": 0.4, "evaluate": "behind"}
DATA = {"batch_size": 6, "examples": 47, "test_examples": 15}


def behind(run: DrawnRun) -> DrawnRun:
    """The same run with evaluations behind the stream."""
    chosen = run.design.experiment
    chosen = msgspec.structs.replace(
        chosen, run=msgspec.structs.replace(chosen.run, evaluate="behind")
    )
    return dataclasses.replace(run, design=make_design(chosen, run.design.meta))


def drawn(draw: Callable[..., DrawnRun], name: str, count: int) -> Iterator[DrawnRun]:
    """So many runs of a schedule in which something is evaluated behind the stream."""
    for seed in range(1000):
        run = behind(draw(seed, (name,)))
        if run.design.plan.marks:
            yield run
            count -= 1
        if not count:
            return


def due(design: Design) -> list[int]:
    """Batches behind which an undisturbed run evaluates."""
    plan = design.plan
    return sorted({*plan.marks} | ({*plan.barriers} - {*plan.cut_barriers}))


# --- runs ----------------------------------------------------------------------------------------


@each("name", ASYNCHRONOUS)
def test_every_evaluation_of_the_plan_is_made_and_training_ends_as_it_should(name: str) -> None:
    for run in drawn(draw_run, name, 6):
        with case(seed=run.seed):
            result = run.simulate()
            assert isinstance(result.end, Finish), result.end
            assert [entry["batches"] for entry in result.history] == due(run.design)
            for key in ("samples", "train_s"):
                shown = [entry[key] for entry in result.history]
                assert shown == sorted(shown)
            assert run.simulate().digest == result.digest


@pytest.mark.long
@each("name", ASYNCHRONOUS)
def test_a_run_survives_faults_at_any_moment_of_an_evaluation(name: str) -> None:
    """An evaluation that a death has ended is left out."""
    made = 0
    for run in drawn(draw_faulty_run, name, 6):
        with case(seed=run.seed):
            result = run.simulate()
            if isinstance(result.end, Fail):
                assert "disk is full" in result.end.text, result.end
                continue
            batches = [entry["batches"] for entry in result.history]
            assert batches == sorted(set(batches)) and set(batches) <= set(due(run.design))
            assert batches[-1] == run.design.plan.batches
            made += len(batches) - 1
            assert run.simulate().digest == result.digest
    assert made


def test_training_goes_on_while_a_copy_is_evaluated() -> None:
    """No drain but the last, and test batches lie between those of training."""
    design = networks.design(networks.chain(3), SYNTHETIC, data=DATA, run=RUN)
    result = simulate(design, seed=0, maths=False)
    assert [kind for kind, _ in result.records].count("drained") == 1
    letters = "".join(letter for letter, *_ in result.ops["s1"])
    first, last = letters.index("E"), letters.rindex("E")
    assert "F" in letters[first:last]
    marks = [batch for letter, batch, *_ in result.ops["s1"] if letter == "H"]
    assert tuple(marks) == design.plan.marks


def test_a_checkpoint_still_drains() -> None:
    design = networks.design(
        networks.chain(3), SYNTHETIC, data=DATA, run=RUN, checkpoint={"every": 1.0}
    )
    result = simulate(design, seed=0, maths=False)
    assert [entry["batches"] for entry in result.history] == due(design)
    assert [kind for kind, _ in result.records].count("cut") == 3


def test_a_stop_by_the_user_ends_in_order_during_an_evaluation() -> None:
    design = networks.design(networks.chain(3), SYNTHETIC, data=DATA, run=RUN)
    calm = simulate(design, seed=0, maths=False)
    start_s = next(values["time_s"] for kind, values in calm.records if kind == "start")
    for share in (0.2, 0.35, 0.5, 0.65, 0.8):
        moment = start_s + share * calm.train_s
        result = simulate(design, seed=0, maths=False, stop_at_s=moment)
        assert isinstance(result.end, Fail) and result.end.orderly, result.end


def test_it_is_refused_where_stages_wait_for_one_another() -> None:
    for name in ("locked", "gpipe", "1f1b"):
        with pytest.raises(ConfigError, match=rf"run.evaluate: .*those of {name} do.*'drained'"):
            networks.design(
                networks.chain(3), {"name": name}, data={**DATA, "batch_size": 8}, run=RUN
            )


# --- the weights that were evaluated -------------------------------------------------------------


def kept_stages(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, dict[str, Array]]]:
    """All copies that stages make, by number and declared stage, as they are made."""
    found: dict[int, dict[str, dict[str, Array]]] = {}
    honest = NumpyStage.copy

    def copy(stage: NumpyStage, number: int) -> None:
        honest(stage, number)
        for name, arrays in stage.state().items():
            copied = {key: array.copy() for key, array in arrays.items()}
            found.setdefault(number, {})[name] = copied

    monkeypatch.setattr(NumpyStage, "copy", copy)
    return found


def score(design: Design, state: dict[str, dict[str, Array]]) -> tuple[float, int]:
    """Loss, summed over the test set, and right answers, of a network with these weights."""
    stage, chosen = make_whole_stage(design), design.experiment
    stage.load(state)
    size = chosen.data.batch_size
    source = Source(
        open_batches(chosen.data, chosen.run.seed),
        batch_size=size,
        test_batch_size=size,
        seed=chosen.run.seed,
        dtype=np.dtype(chosen.run.dtype),
    )
    loss, correct = 0.0, 0
    for batch in range(design.plan.test_batches):
        tensors = dict(source.read(Op(OpKind.READ, batch, evaluate=True)))
        found = stage.evaluate({"data": tensors.pop("h")}, tensors).scores
        loss += sum(one.loss for one in found)
        correct += found[-1].correct or 0
    return loss, correct


@each("name", ASYNCHRONOUS)
def test_scores_are_those_of_the_copied_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With batch norm, whose running statistics change with each forward."""
    copies = kept_stages(monkeypatch)
    design = networks.design(networks.chain(3, norm=True), {"name": name}, data=DATA, run=RUN)
    result = simulate(design, seed=1, maths=True, costs=Costs(jitter=0.5), links=Links(jitter=0.5))
    assert len(copies) == len(design.plan.marks) > 3
    tests, bits = design.meta.test_samples, networks.BITS
    for entry in result.history[:-1]:
        loss, correct = score(design, copies[entry["batches"]])
        assert entry["loss"] == pytest.approx(loss / tests, rel=1e-12)
        assert entry["accuracy"] == correct / (tests * bits)
    assert len({entry["loss"] for entry in result.history}) > 3


def test_the_best_weights_are_those_that_were_evaluated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With so high a learning rate the last evaluation is not the best."""
    copies = kept_stages(monkeypatch)
    best_was_a_copy = 0
    for seed in range(4):
        design = networks.design(
            networks.chain(3, norm=True),
            SYNTHETIC,
            data=DATA,
            run={**RUN, "seed": seed},
            optimizer={"name": "sgd", "learning_rate": 1.0},
        )
        copies.clear()
        result = simulate(design, seed=seed, maths=True, folder=tmp_path / str(seed))
        best = max(result.history, key=lambda entry: entry["accuracy"])
        best_was_a_copy += best["batches"] in copies
        wanted = copies.get(best["batches"], result.weights)
        for stage, arrays in wanted.items():
            saved = load_stage(tmp_path / str(seed) / "best", stage)
            for key, array in arrays.items():
                assert np.array_equal(saved[key], array), (stage, key)
    assert best_was_a_copy


def test_a_best_copy_that_a_death_has_taken_away_is_best_no_more() -> None:
    """Otherwise nothing worse would ever be saved, and "best" would stay as it is."""
    design = networks.design(
        networks.chain(3),
        SYNTHETIC,
        data=DATA,
        run={**RUN, "epochs": 40, "evaluate_every": 1.0},
        checkpoint={"every": "never"},
    )
    calm = simulate(design, seed=0, maths=False)
    crash = parse_faults(f"crash s1 at {0.7 * calm.virtual_s * 1e3:.0f}ms")
    result = simulate(design, seed=0, maths=False, faults=crash)
    assert isinstance(result.end, Finish)
    saved = [values["tag"] for kind, values in result.records if kind == "saved"]
    assert saved == ["best", "final"]  # all losses are alike: the first evaluation was the best


def test_evaluations_that_were_not_saved_do_not_count_as_the_best_of_a_resumed_run() -> None:
    ledger = Ledger()
    entry = {"batches": 5, "samples": 30, "train_s": 1.0, "accuracy": 0.9, "loss": 0.1}
    ledger.go_on([{**entry, "behind": True}])
    assert ledger.history and ledger.best is None
    ledger.go_on([{**entry, "batches": 6}])
    assert ledger.best == {"accuracy": 0.9, "loss": 0.1}


# --- marks ---------------------------------------------------------------------------------------


def test_a_stage_waits_at_a_mark_while_two_copies_are_not_scored() -> None:
    marks = Marks((3, 6, 9))
    marks.begin(0)
    assert marks.reached(1) is None and marks.reached(2) == 3
    marks.copied(3, 18, 1.0)
    assert marks.begin_read() and not marks.begin_read()
    marks.copied(6, 36, 2.0)
    assert not marks.hold(8) and marks.hold(9) and marks.reached(8) is None
    marks.tested(3)
    assert marks.testing == 6 and not marks.begin_read()  # tests for 3 may be on their way
    assert marks.facts(3, 5.0) == (18, 4.0)
    assert marks.scored(3, best=True) == [] and marks.begin_read()
    assert not marks.hold(9) and marks.reached(8) == 9
    assert marks.scored(6, best=True) == [3] and marks.best == 6 and marks.saved() == [6]
    assert marks.settled


def test_a_round_begins_behind_the_marks_before_it() -> None:
    marks = Marks((3, 6, 9))
    marks.begin(6)
    assert list(marks.due) == [9]
    marks.copied(9, 54, 0.0)
    marks.give_up()
    assert marks.settled and marks.testing is None and marks.scored(9, best=True) == []
