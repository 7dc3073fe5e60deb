"""Real processes on real sockets under [links] and [slow]: slower by what was asked at least, and
what locked learns is the same. Only lower bounds are measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networks
import pytest
from each import each

import asyncdni
from asyncdni import experiment
from asyncdni.__main__ import main

BATCHES = 10  # of `networks.design`: two epochs of five


@pytest.fixture(scope="module")
def plain() -> asyncdni.Result:
    return asyncdni.train(chain())


def chain() -> dict[str, Any]:
    design = networks.design(
        networks.chain(3), {"name": "locked"}, run={"split": [1, 2], "evaluate_every": 2}
    )
    return experiment.tables(design.experiment)


def same_weights(one: asyncdni.Result, other: asyncdni.Result) -> bool:
    return all(
        array.tobytes() == other.weights[name].tobytes() for name, array in one.weights.items()
    )


def test_locked_is_slower_by_the_latency_of_each_hop_and_learns_the_same(
    plain: asyncdni.Result,
) -> None:
    slowed = asyncdni.train(chain(), set=["links.latency=10ms", "links.jitter=2ms"])
    assert slowed.summary["train_s"] >= 2 * BATCHES * 0.010  # one link, down and up
    assert same_weights(plain, slowed)


def test_one_direction_of_one_link_can_be_slow(plain: asyncdni.Result) -> None:
    slowed = asyncdni.train(chain(), set=["links.between.s0->s1.bandwidth=10kB/s"])
    activations = 2 * 23 * (networks.WIDTH + networks.BITS) * 4  # with their targets
    assert slowed.summary["train_s"] >= activations / 10e3
    assert same_weights(plain, slowed)


def test_a_slow_worker_sleeps_after_its_forwards_and_learns_the_same(
    plain: asyncdni.Result,
) -> None:
    slowed = asyncdni.train(chain(), set=["slow.top.pause=20ms", "slow.top.chance=1"])
    assert slowed.summary["train_s"] >= BATCHES * 0.020
    assert same_weights(plain, slowed)


def test_the_flags_of_train_are_kept_with_the_run(tmp_path: Path) -> None:
    design = networks.design(networks.chain(2), {"name": "synthetic"})
    file, out = tmp_path / "small.toml", tmp_path / "run"
    file.write_text(experiment.dumps(design.experiment))
    flags = ["--latency", "2ms", "--jitter", "1ms", "--bandwidth", "10MB/s", "--slow", "s0=2"]
    assert main(["train", str(file), "--quiet", "--out", str(out), *flags]) == 0
    kept = experiment.load(out / "experiment.toml")
    assert kept.links == asyncdni.config.Links(latency="2ms", jitter="1ms", bandwidth="10MB/s")
    assert kept.slow == {"s0": asyncdni.config.Slow(factor=2.0)}
    assert json.loads((out / "summary.json").read_text())["samples_per_s"] > 0


@each(
    "flags, told",
    [
        (["--latency=-1ms"], "links.latency: expected a time"),
        (["--bandwidth", "1"], "links.bandwidth: expected a rate"),
        (["--slow", "s9=2"], "slow.s9: there is no worker or stage 's9'"),
    ],
)
@each("command", [["train"], ["coordinator", "--bind", "tcp://127.0.0.1:0"]])
def test_bad_flags_are_one_line(
    tmp_path: Path,
    command: list[str],
    flags: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "small.toml"
    file.write_text(experiment.dumps(experiment.parse(chain())))
    assert main([command[0], str(file), *command[1:], *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"asyncdni: {told}") and error.count("\n") == 1
