"""Which runs a comparison is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recorded import ADDITION

from asyncdni import config, experiment
from asyncdni.errors import ConfigError
from asyncdni.launch import compare as running
from asyncdni.launch.compare import Entry
from asyncdni.launch.train import design_of
from asyncdni.plan.build import make_whole_stage
from asyncdni.store.tensors import save_stages


def test_runs_are_interleaved_and_the_order_rotates_from_seed_to_seed() -> None:
    assert running.order(["a", "b", "c"], [7, 8]) == [
        ("a", 7),
        ("b", 7),
        ("c", 7),
        ("b", 8),
        ("c", 8),
        ("a", 8),
    ]


def test_over_as_many_seeds_as_names_each_is_at_each_place_once() -> None:
    names = ["a", "b", "c"]
    runs = running.order(names, range(3))
    places = {(name, index % 3) for index, (name, _) in enumerate(runs)}
    assert len(places) == 9


EXPERIMENT = (
    ADDITION
    + """
[schedule]
name = "synthetic"
fit_every = 3

[run]
epochs = 1
seed = 5
"""
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "addition.toml"
    path.write_text(EXPERIMENT)
    return path


def plan(
    file: Path,
    *changes: str,
    schedules: str = "locked,synthetic",
    seeds: int = 2,
    **more: Any,
) -> list[Entry]:
    return running.plan_runs(file, changes, schedules.split(","), seeds, cores=6, **more)


def test_every_schedule_and_single_get_the_same_network_data_and_seeds(file: Path) -> None:
    entries = plan(file)
    assert [(entry.name, entry.seed) for entry in entries] == [
        ("locked", 5),
        ("synthetic", 5),
        ("single", 5),
        ("synthetic", 6),
        ("single", 6),
        ("locked", 6),
    ]
    assert all(entry.experiment.run.seed == entry.seed for entry in entries)
    assert all(entry.experiment.stages == entries[0].experiment.stages for entry in entries)
    assert len({entry.folder for entry in entries}) == 6


def test_single_is_one_worker_in_strict_order_on_all_cores(file: Path) -> None:
    single = plan(file, "run.split=[1,1]", "run.threads=1")[2].experiment
    assert (single.run.split, single.run.threads) == ([2], 6)
    assert single.schedule.__struct_config__.tag == "locked"


def test_options_go_to_the_schedules_that_know_them(file: Path) -> None:
    locked, synthetic, single, *_ = plan(file, "schedule.correct=true")
    assert synthetic.experiment.schedule.fit_every == 3
    assert synthetic.experiment.schedule.correct
    assert {type(one.experiment.schedule) for one in (locked, single)} == {config.Locked}
    assert plan(file, "schedule.fit_every=9", schedules="synthetic")[0].experiment.schedule == (
        type(synthetic.experiment.schedule)(fit_every=9)
    )


@pytest.mark.parametrize(
    ("schedules", "words"),
    [
        ("lokced,synthetic", "unknown schedule 'lokced', did you mean 'locked'"),
        ("unheard", "known: locked, gpipe, 1f1b, delayed, local_loss, synthetic"),
        ("locked,synthetic,locked", "locked is given twice"),
        ("single", "single is always compared with"),
    ],
)
def test_schedules_that_make_no_comparison_are_refused(
    file: Path, schedules: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(file, schedules=schedules)


def test_no_schedules_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="none given"):
        running.check_schedules([])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("schedule.fit_evry=2", "fit_evry"),
        ("schedule.name=locked", "--schedules"),
        ("run.epochs=0", "nothing to compare"),
        ("run.split=[3]", "run.split"),
    ],
)
def test_what_can_not_run_is_refused_before_anything_runs(
    file: Path, change: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(file, change)


# --- rows on request -----------------------------------------------------------------------------


def test_a_single_process_has_a_row_for_each_number_of_threads(file: Path) -> None:
    entries = plan(file, seeds=1, single_threads=[1, 6, 2, 1])
    singles = [entry for entry in entries if entry.name.startswith("single")]
    assert [(entry.name, entry.experiment.run.threads) for entry in singles] == [
        ("single", 6),
        ("single-1", 1),
        ("single-2", 2),
    ]
    assert all(entry.experiment.run.split == [2] for entry in singles)


def test_the_control_is_synthetic_with_generators_that_predict_zero(file: Path) -> None:
    entries = plan(file, "schedule.fit_every=5", seeds=1, zero_control=True)
    assert [entry.name for entry in entries] == ["locked", "synthetic", "synthetic-zero", "single"]
    synthetic, control = (entry.experiment.schedule for entry in entries[1:3])
    assert isinstance(synthetic, config.Synthetic) and isinstance(control, config.Synthetic)
    assert isinstance(control.generator, config.ZeroGenerator)
    assert isinstance(synthetic.generator, config.ErrorGenerator)
    assert control.fit_every == synthetic.fit_every == 5


def test_options_of_a_generator_are_none_of_its_control(file: Path) -> None:
    change = "schedule.generator.rate=0.5"
    entries = plan(file, change, seeds=1, zero_control=True)
    schedule = entries[1].experiment.schedule
    assert isinstance(schedule, config.Synthetic)
    assert schedule.generator == config.ErrorGenerator(rate=0.5)


def test_a_control_of_nothing_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="--zero-control: synthetic is not compared"):
        plan(file, schedules="locked", zero_control=True)


def test_evaluations_come_every_so_many_samples_in_every_row(file: Path) -> None:
    """100 samples of training."""
    entries = plan(file, "run.evaluate_every=7", seeds=1, zero_control=True, evaluate_every=30)
    assert {entry.experiment.run.evaluate_every for entry in entries} == {0.3}


def test_a_run_knows_who_takes_whose_activations(file: Path) -> None:
    """The data set is no worker."""
    entries = plan(file, seeds=1)
    assert [entry.producers for entry in entries] == [
        {"hidden": (), "output": ("hidden",)},
        {"hidden": (), "output": ("hidden",)},
        {"hidden+output": ()},
    ]


# --- schedules of all kinds ----------------------------------------------------------------------

ALL = "locked,gpipe,1f1b,delayed,local_loss,synthetic"


def by_name(entries: list[Entry]) -> dict[str, config.Experiment]:
    return {entry.name: entry.experiment for entry in entries}


def test_an_option_of_some_schedules_goes_to_all_that_know_it(file: Path) -> None:
    changes = ("schedule.microbatches=5", "schedule.on_full=skip", "schedule.split_backward=false")
    found = by_name(plan(file, *changes, schedules=ALL, seeds=1))
    schedules = {name: one.schedule for name, one in found.items()}
    whole = {
        name: one.split_backward if "split_backward" in one.__struct_fields__ else None
        for name, one in schedules.items()
    }
    assert whole == {
        **dict.fromkeys(("locked", "gpipe", "1f1b", "delayed", "single"), False),
        **dict.fromkeys(("local_loss", "synthetic")),
    }
    for name in ("gpipe", "1f1b"):
        assert getattr(schedules[name], "microbatches", None) == 5
    for name in ("local_loss", "synthetic"):
        assert getattr(schedules[name], "on_full", None) == "skip"


def test_what_one_schedule_can_not_run_is_refused_with_its_name(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"^gpipe: schedule.microbatches: 3 does not divide"):
        plan(file, "schedule.microbatches=3", schedules="locked,gpipe")


def test_bounds_on_lag_are_for_those_that_are_ahead_of_gradients(file: Path) -> None:
    changes = ("staleness.lag=7", "schedule.microbatches=5")
    found = by_name(plan(file, *changes, schedules=ALL, seeds=1))
    assert {name: one.staleness.lag for name, one in found.items()} == {
        **dict.fromkeys(("delayed", "synthetic"), 7),
        **dict.fromkeys(("locked", "gpipe", "1f1b", "local_loss", "single")),
    }


def test_schedules_of_single_stages_stay_where_they_have_meaning(file: Path) -> None:
    changes = ["schedule.microbatches=5", "stages.hidden.schedule.name=locked"]
    found = by_name(plan(file, *changes, schedules=ALL, seeds=1))
    own = {name for name, one in found.items() if one.stages[0].schedule}
    assert own == {"local_loss", "synthetic"}
    changes[1] = "stages.hidden.schedule.generator.kind=zero"  # options of the file's schedule
    found = by_name(plan(file, *changes, schedules=ALL, seeds=1))
    assert {name for name, one in found.items() if one.stages[0].schedule} == {"synthetic"}


# --- latencies -----------------------------------------------------------------------------------


def test_every_schedule_is_run_at_every_latency_and_single_once(file: Path) -> None:
    entries = plan(file, seeds=2, latencies=["10ms", "0ms"], single_threads=[1])
    assert [(entry.name, entry.latency_s) for entry in entries[:6]] == [
        *(("locked", 0.0), ("synthetic", 0.0), ("locked", 0.01), ("synthetic", 0.01)),
        *(("single", None), ("single-1", None)),
    ]
    assert len(entries) == 12 and len({entry.key for entry in entries}) == 12
    assert [entry.experiment.links.latency for entry in entries[:5]] == [
        *("0ms", "0ms", "10ms", "10ms", "0ms"),
    ]
    assert [entry.folder for entry in entries[2:5]] == [
        *("locked-10ms-seed5", "synthetic-10ms-seed5", "single-seed5"),
    ]
    assert (entries[2].title, entries[4].title) == ("locked at 10 ms, seed 5", "single, seed 5")


def test_one_latency_alone_is_that_of_every_run(file: Path) -> None:
    entries = plan(file, seeds=1, latencies=["10ms"])
    assert {entry.latency_s for entry in entries} == {None}
    assert [entry.experiment.links.latency for entry in entries] == ["10ms", "10ms", "0ms"]
    assert entries[0].folder == "locked-seed5"


def test_single_has_no_links_and_no_slow_worker(file: Path) -> None:
    changes = ['links.between={"hidden->output"={latency="5ms"}}', "slow.hidden.factor=3"]
    locked, _, single = plan(file, *changes, seeds=1)
    assert locked.experiment.links.between and locked.experiment.slow
    assert single.experiment.links == config.Links() and not single.experiment.slow


@pytest.mark.parametrize(
    ("latencies", "words"),
    [
        (["10ms", "0.01s"], "--latencies: 10ms and 0.01s are the same"),
        (["10ms", "soon"], "--latencies: expected a time from 0s to 60s"),
        (["-1ms"], "--latencies: expected a time"),
        (["2min"], "--latencies: expected a time"),
    ],
)
def test_latencies_that_make_no_comparison_are_refused(
    file: Path, latencies: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(file, latencies=latencies)


def test_more_seeds_than_anybody_waits_for_are_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="--seeds: expected at most 10000"):
        plan(file, seeds=10**12)


def test_all_rows_and_seeds_begin_with_the_weights_that_are_given(
    file: Path, tmp_path: Path
) -> None:
    chosen = experiment.load(file)
    whole = make_whole_stage(design_of(chosen)).state()
    save_stages(tmp_path / "given", whole)
    entries = plan(file, f"run.init='{tmp_path / 'given'}'")
    digests = [entry.experiment.run.init_sha256 for entry in entries]
    assert digests[0].keys() == whole.keys()
    assert all(one == digests[0] for one in digests)
    with pytest.raises(ConfigError, match=r"^locked: run\.init: .*No such file"):
        plan(file, "run.init=nowhere")
