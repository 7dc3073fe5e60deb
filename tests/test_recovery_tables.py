"""[checkpoint], [recovery], [numbers] and what [limits] has for them: what is read and refused."""

from __future__ import annotations

from typing import Any

import networks
import pytest

from asyncdni import config
from asyncdni.errors import ConfigError
from asyncdni.experiment import dumps, load, parse
from asyncdni.plan.build import make_roster
from asyncdni.plan.plan import cut_every_s, snapshot_every_s


def experiment(**tables: Any) -> config.Experiment:
    """Of the smallest network."""
    return parse(
        {
            "data": {"name": "digits"},
            "stages": [{"layers": [{"dense": 10}], "loss": "cross_entropy"}],
            **tables,
        }
    )


def refusal(**tables: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        experiment(**tables)
    return str(caught.value)


def test_what_is_kept_for_a_bad_day_by_default() -> None:
    found = experiment()
    assert found.checkpoint == config.Checkpoint(every="30s", keep=2, snapshot_every="1s")
    assert found.recovery == config.Recovery(restarts=5)
    assert found.numbers == config.Numbers(policy="stop", explode=None, skips_max=100)
    assert (found.limits.silence_s, found.limits.memory_bytes) == (1.0, None)


def test_all_of_it_survives_a_file(tmp_path: Any) -> None:
    tables = {
        "checkpoint": {"every": 0.5, "keep": 7, "snapshot_every": "never"},
        "recovery": {"restarts": 0},
        "numbers": {"policy": "roll_back", "explode": 100.0, "skips_max": 3},
        "limits": {"silence_s": 0.25, "memory_bytes": 2**30},
    }
    file = tmp_path / "a.toml"
    file.write_text(dumps(experiment(**tables)))
    assert load(file) == experiment(**tables)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"checkpoint": {"every": 0}}, "checkpoint.every: expected "),
        ({"checkpoint": {"every": -1.5}}, "checkpoint.every: expected "),
        ({"checkpoint": {"every": True}}, "checkpoint.every: expected "),
        ({"checkpoint": {"evry": "1s"}}, "checkpoint: unknown key 'evry', did you mean 'every'?"),
        ({"checkpoint": {"keep": 0}}, "checkpoint.keep: expected an integer of at least 1, got 0"),
        ({"checkpoint": {"snapshot_every": 1}}, "checkpoint.snapshot_every: expected text, got 1"),
        (
            {"recovery": {"restarts": -1}},
            "recovery.restarts: expected an integer of at least 0, got -1",
        ),
        (
            {"numbers": {"policy": "skp"}},
            "numbers.policy: unknown policy 'skp', did you mean ",
        ),
        ({"numbers": {"explode": 1}}, "numbers.explode: expected a number above 1, got 1"),
        (
            {"numbers": {"skips_max": 0}},
            "numbers.skips_max: expected an integer of at least 1, got 0",
        ),
        (
            {"limits": {"memory_bytes": 1000}},
            "limits.memory_bytes: expected an integer of at least 2",
        ),
        (
            {"limits": {"silence_s": 0}},
            "limits.silence_s: expected a number of at least 0.01",
        ),
    ],
)
def test_a_mistake_is_refused_with_place_and_what_was_expected(
    tables: dict[str, Any], message: str
) -> None:
    assert refusal(**tables).startswith(message)


@pytest.mark.parametrize(
    ("every", "expected"),
    [("30s", 30.0), ("500ms", 0.5), ("2min", 120.0), ("never", None), (1.0, None)],
)
def test_the_time_between_checkpoints_is_one_or_there_is_none(
    every: str | float, expected: float | None
) -> None:
    assert cut_every_s(config.Checkpoint(every=every)) == expected


@pytest.mark.parametrize(("every", "expected"), [("1s", 1.0), ("50ms", 0.05), ("never", None)])
def test_the_time_between_snapshots_is_one_or_there_are_none(
    every: str, expected: float | None
) -> None:
    assert snapshot_every_s(config.Checkpoint(snapshot_every=every)) == expected


@pytest.mark.parametrize("every", ["", "often", "-1s", "2 h", "1e3s", "99999min", "Never"])
def test_a_time_that_is_none_names_its_key(every: str) -> None:
    with pytest.raises(ConfigError, match=r"^checkpoint\.every: expected a time from 0s to 86400s"):
        cut_every_s(config.Checkpoint(every=every))
    with pytest.raises(ConfigError, match=r"^checkpoint\.snapshot_every: expected a time"):
        snapshot_every_s(config.Checkpoint(snapshot_every=every))


def test_a_time_that_is_none_is_refused_before_anything_starts() -> None:
    for key in ("every", "snapshot_every"):
        with pytest.raises(ConfigError, match=rf"^checkpoint\.{key}: expected a time"):
            networks.design(networks.chain(2), {"name": "locked"}, checkpoint={key: "soon"})


# --- what the coordinator makes of it ------------------------------------------------------------


def roster(schedule: dict[str, Any], stages: Any = None, **tables: Any) -> Any:
    sizes = {"batch_size": 6}
    design = networks.design(stages or networks.chain(3), schedule, data=sizes, **tables)
    return make_roster(design, folder="x")


@pytest.mark.parametrize(
    ("schedule", "learns_alone"),
    [
        ({"name": "synthetic"}, True),
        ({"name": "synthetic", "target": "bootstrap"}, True),
        ({"name": "synthetic", "synthetic_inputs": True}, True),
        ({"name": "synthetic", "mix": 0.5}, True),
        ({"name": "synthetic", "mix": 1.0}, False),
        ({"name": "local_loss"}, True),
        ({"name": "locked"}, False),
        ({"name": "delayed"}, False),
        ({"name": "gpipe", "microbatches": 2}, False),
        ({"name": "1f1b", "microbatches": 2}, False),
    ],
    ids=str,
)
def test_the_others_go_on_where_no_stage_waits_for_a_gradient(
    schedule: dict[str, Any], learns_alone: bool
) -> None:
    assert roster(schedule).learns_alone is learns_alone


def test_one_stage_that_waits_is_enough_for_all_to_go_back() -> None:
    stages = networks.chain(3)
    stages[0]["schedule"] = {"name": "locked"}
    assert not roster({"name": "synthetic"}, stages).learns_alone


def test_what_the_coordinator_is_told() -> None:
    found = roster(
        {"name": "locked"},
        checkpoint={"every": "5s"},
        recovery={"restarts": 3},
        numbers={"policy": "roll_back"},
    )
    assert (found.cut_every_s, found.cut_positions) == (5.0, frozenset())
    assert (found.restarts, found.rolls_back) == (3, True)
    by_epochs = roster({"name": "locked"}, checkpoint={"every": 0.5}, run={"epochs": 1})
    assert by_epochs.cut_every_s is None
    assert len(by_epochs.cut_positions) == 2
    assert not by_epochs.rolls_back
