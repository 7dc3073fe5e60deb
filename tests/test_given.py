"""Weights that a run is given to begin with: where from, what is refused, and the copy of them."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from safetensors.numpy import load_file

import asyncdni
from asyncdni.core.events import Origin, Restore
from asyncdni.drivers.real.process import restored_stage
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.errors import CheckpointError, ConfigError
from asyncdni.experiment import dumps
from asyncdni.plan.build import Design, make_stage, make_whole_stage
from asyncdni.store.given import begin_with, kept, save_given
from asyncdni.store.manifest import identity
from asyncdni.store.resume import changed_experiment
from asyncdni.store.run import by_stage
from asyncdni.store.tensors import LENGTH_BYTES, StoredStage, header_length, save_stages

LOCKED = {"name": "locked"}
State = dict[str, dict[str, np.ndarray]]


def design(**run: Any) -> Design:
    return networks.design(networks.chain(3, norm=True), LOCKED, run={"epochs": 1, **run})


def trained() -> State:
    """Weights and running statistics that no seed gives."""
    state = make_whole_stage(design(seed=7)).state()
    return {
        stage: {name: array + np.float32(0.25) for name, array in arrays.items()}
        for stage, arrays in state.items()
    }


def flat(state: State) -> dict[str, np.ndarray]:
    return {f"{stage}.{name}": a for stage, arrays in state.items() for name, a in arrays.items()}


def same(found: Any, expected: Any) -> bool:
    return found.keys() == expected.keys() and all(
        found[stage].keys() == expected[stage].keys()
        and all(np.array_equal(found[stage][key], expected[stage][key]) for key in found[stage])
        for stage in expected
    )


def refusal(given: dict[str, Any], **run: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        begin_with(design(**run), given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- where they come from ------------------------------------------------------------------------


def test_a_folder_a_file_and_arrays_give_the_same(tmp_path: Path) -> None:
    state = trained()
    save_stages(tmp_path / "folder", state)
    result = asyncdni.Result({}, flat(state), design().experiment, design().meta)
    result.save(tmp_path / "all.safetensors")
    for path in ("folder", "all.safetensors"):
        begun = begin_with(design(init=str(tmp_path / path)))
        assert same(begun.init, state)
        assert begun.experiment.run.init_sha256.keys() == state.keys()
    assert begun.experiment.run.init_sha256 == (
        begin_with(design(), flat(state)).experiment.run.init_sha256
    )


def test_every_worker_and_a_simulated_run_begin_with_them() -> None:
    begun = begin_with(design(epochs=0), flat(trained()))
    for group in begun.plan.groups:
        state = make_stage(begun, group).state()
        assert same(state, {name: trained()[name] for name in state})
    assert same(simulate(begun, seed=0, maths=True).weights, trained())


def test_some_stages_may_take_theirs_and_the_others_begin_as_the_seed_says() -> None:
    given = flat(trained()) | {"elsewhere.0.weight": np.zeros(3, np.float32)}
    begun = begin_with(design(init_stages=["s1"]), given)
    assert begun.init is not None and begun.init.keys() == {"s1"}
    seeded = make_whole_stage(design()).state()
    for group in begun.plan.groups:
        for name, arrays in make_stage(begun, group).state().items():
            assert same({name: arrays}, {name: (trained() if name == "s1" else seeded)[name]})


def test_precision_is_that_of_the_network_and_torchs_count_of_batches_is_passed_over() -> None:
    wide = {name: array.astype(np.float64) for name, array in flat(trained()).items()}
    begun = begin_with(design(), wide | {"s0.1.num_batches_tracked": np.array(3)})
    assert same(begun.init, trained())
    assert {a.dtype.name for own in (begun.init or {}).values() for a in own.values()} == {
        "float32"
    }


def test_without_any_nothing_changes() -> None:
    plain = design()
    assert begin_with(plain) is plain
    assert "init_sha256" not in identity(plain.experiment, plain.meta)["run"]


# --- what is refused -----------------------------------------------------------------------------


def test_all_that_does_not_fit_is_named_in_one_line() -> None:
    given: dict[str, Any] = flat(trained())
    del given["s0.0.bias"]
    given["s1.0.weight"] = given["s1.0.weight"][:2]
    given["s1.1.running_var"] = np.ones(networks.WIDTH, np.int64)
    given["s1.2.weight"] = np.ones(2)
    given["top.0.bias"] = np.full(networks.BITS, np.nan)
    given["tpo.0.bias"] = np.ones(2)
    line = refusal(given)
    for words in (
        f"s0.0.bias is missing, expected ({networks.WIDTH},)",
        "s1.0.weight is (2, 6), expected (6, 6)",
        "s1.1.running_var is int64, expected float32",
        "s1.2.weight is not expected",
        "top.0.bias holds NaN or infinity",
        "the network has no stage 'tpo'",
        "run.init_stages names those to take",
    ):
        assert words in line
    assert "has no stage top" in refusal({k: a for k, a in given.items() if k[:3] != "top"})


def test_numbers_that_are_too_large_for_the_network_are_refused() -> None:
    given = {name: array.astype(np.float64) for name, array in flat(trained()).items()}
    given["s0.0.bias"][0] = 1e300
    assert "s0.0.bias holds NaN or infinity" in refusal(given)


def test_stages_that_are_unknown_and_digests_of_other_weights_are_refused() -> None:
    assert "no stage 's9'" in refusal(flat(trained()), init_stages=["s9"])
    assert "it has no stage s1" in refusal({}, init_stages=["s1"])
    assert "not those that run.init_sha256" in refusal(flat(trained()), init_sha256={"s0": "00"})
    with pytest.raises(ConfigError, match=r"run\.init: missing"):
        begin_with(design(init_stages=["s1"]))


def test_stages_with_one_set_of_weights_must_be_given_one() -> None:
    stages = networks.chain(4)
    stages[2]["weights"] = "s1"
    shared = networks.design(stages, LOCKED)
    given = flat(make_whole_stage(shared).state())
    assert same(begin_with(shared, given).init, by_stage(given))
    given["s2.0.bias"] = given["s2.0.bias"] + 1
    with pytest.raises(ConfigError, match=r"s2 uses the weights of s1, but 0\.bias"):
        begin_with(shared, given)
    half = networks.design(stages, LOCKED, run={"init_stages": ["s2"]})
    with pytest.raises(ConfigError, match="expected both of them, or neither"):
        begin_with(half, given)


def test_paths_that_hold_no_weights_are_refused_naming_them(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no weights")
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("nowhere", "No such file"),
        ("text", "not a whole safetensors file"),
        ("empty", "expected a run folder"),
        ("/dev/null", "it is a device, expected a file"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            begin_with(design(init=str(tmp_path / name)))
        assert "run.init: " in str(caught.value)


# --- the copy in the folder of the run -----------------------------------------------------------


def test_a_worker_begins_with_the_copy_and_knows_whether_it_is_the_same(tmp_path: Path) -> None:
    begun = begin_with(design(), flat(trained()))
    save_given(tmp_path, begun)
    told = replace(begun, init=None)  # a worker knows the digests alone
    group = told.plan.groups[1]
    stage, answer = restored_stage(
        lambda: make_stage(told, group),
        lambda: make_stage(kept(tmp_path, told, ["s1"]), group),
        tmp_path,
        Restore(Origin.BEGINNING, discard=True),
        ["s1"],
    )
    assert same(stage.state(), {"s1": trained()["s1"]}) and answer.notes == ()
    save_stages(tmp_path / "init", {"s1": trained()["s0"]})
    with pytest.raises(CheckpointError, match="not what this run was given"):
        kept(tmp_path, told, ["s1"])
    shutil.rmtree(tmp_path / "init")
    with pytest.raises(CheckpointError, match="share the run's folder"):
        kept(tmp_path, told, ["s1"])


def test_no_more_than_one_array_of_a_file_takes_memory(tmp_path: Path) -> None:
    arrays = {str(i): np.full(2**18, i, np.float32) for i in range(8)}
    save_stages(tmp_path, {"a": arrays})
    tracemalloc.start()
    try:
        stored = StoredStage(tmp_path, "a")
        firsts = {name: float(array[0]) for name, array in stored.items()}
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert firsts == {str(i): float(i) for i in range(8)}
    assert arrays["0"].nbytes < peak_bytes < 3 * arrays["0"].nbytes


def test_arrays_begin_in_a_file_where_their_type_may(tmp_path: Path) -> None:
    arrays = {"0.bias": np.ones(3, np.float32), "0.count": np.array(7, np.int64)}
    save_stages(tmp_path, {"a": arrays})
    content = (tmp_path / "a.safetensors").read_bytes()
    length = header_length(content[:LENGTH_BYTES])
    header = json.loads(content[LENGTH_BYTES:][:length])
    for name, array in arrays.items():
        begin, _ = header[name]["data_offsets"]
        assert (LENGTH_BYTES + length + begin) % array.itemsize == 0
    assert same({"a": load_file(tmp_path / "a.safetensors")}, {"a": arrays})


def test_what_it_has_begun_with_belongs_to_the_run(tmp_path: Path) -> None:
    begun = begin_with(design(), flat(trained()))
    other = begin_with(design(), flat(make_whole_stage(design(seed=3)).state()))
    one, two = (identity(each.experiment, each.meta) for each in (begun, other))
    assert one != two
    (tmp_path / "experiment.toml").write_text(dumps(begun.experiment))
    assert changed_experiment(tmp_path, []) == begun.experiment
    with pytest.raises(ConfigError, match=r"run.init is .* makes another run"):
        changed_experiment(tmp_path, ["run.init='elsewhere'"])


def test_a_run_needs_what_it_was_given_no_more_once_it_has_begun(tmp_path: Path) -> None:
    """Nor before its first checkpoint."""
    never = {"every": "never", "snapshot_every": "never"}
    plain = networks.design(networks.chain(2), LOCKED, run={"epochs": 1}, checkpoint=never)
    given = {name: a + np.float32(0.5) for name, a in flat(make_whole_stage(plain).state()).items()}
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "experiment.toml").write_text(dumps(plain.experiment))
    save_stages(tmp_path / "first" / "final", by_stage(given))
    begun = asyncdni.train(plain.experiment, init=tmp_path / "first", out=tmp_path / "second")
    expected = simulate(begin_with(plain, given), seed=0, maths=True).weights
    assert same(by_stage(begun.weights), expected)
    assert "optimizers, generators and input models begin anew" in begun.summary["init"]
    shutil.rmtree(tmp_path / "first")
    for name in ("checkpoints", "final", "best"):
        shutil.rmtree(tmp_path / "second" / name)
    (tmp_path / "second" / "summary.json").unlink()
    assert same(by_stage(asyncdni.train(resume=tmp_path / "second").weights), expected)
    with pytest.raises(ConfigError, match="init can't be given"):
        asyncdni.train(resume=tmp_path / "second", init=begun.weights)
