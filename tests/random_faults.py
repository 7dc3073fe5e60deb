"""Runs drawn from a seed, as in `random_runs`, and what goes wrong in them."""

from __future__ import annotations

import random
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networks
from random_runs import draw_schedule, draw_split, draw_stages

from asyncdni import experiment
from asyncdni.core.events import Fail, Finish
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.faults import Faults
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.errors import ConfigError
from asyncdni.plan.build import Design

__all__ = ["SCHEDULES", "FaultyRun", "assert_survived", "draw_faulty_run"]

SCHEDULES = ("locked", "gpipe", "1f1b", "delayed", "local_loss", "synthetic")


@dataclass(frozen=True)
class FaultyRun:
    """Everything that makes the run, but for what the machines do."""

    design: Design
    vary: float  # of ops and messages
    faults: Faults

    @property
    def seed(self) -> int:
        return self.design.experiment.run.seed

    @property
    def schedule(self) -> str:
        return str(self.design.experiment.schedule.__struct_config__.tag)

    def simulate(self, **options: Any) -> Result:
        """Without arithmetic, unless `options` say otherwise."""
        values: dict[str, Any] = {"maths": False, **options}
        costs, links = Costs(jitter=self.vary), Links(jitter=self.vary)
        return simulate(
            self.design, seed=self.seed, costs=costs, links=links, faults=self.faults, **values
        )

    def words(self, path: Path) -> list[str]:
        """Write the experiment there; the words of the command that replays the run."""
        path.write_text(experiment.dumps(self.design.experiment), encoding="utf-8")
        words = ["asyncdni", "simulate", str(path), "--schedule", self.schedule]
        words += ["--seed", str(self.seed), "--vary", repr(self.vary)]
        return [*words, "--faults", str(self.faults)]

    def command(self, path: Path) -> str:
        return shlex.join(self.words(path))


def draw_faulty_run(seed: int, names: tuple[str, ...] = SCHEDULES) -> FaultyRun:
    """Any network, schedule, checkpoints, links, and faults of every kind."""
    source = random.Random(f"{seed}/faulty run")
    design = _draw_design(source, names, seed)
    return FaultyRun(design, source.choice([0.0, 0.3, 1.0]), _draw_faults(source))


def _draw_design(source: random.Random, names: tuple[str, ...], seed: int) -> Design:
    while True:
        stages = draw_stages(source)
        schedule = draw_schedule(source, source.choice(names))
        split = draw_split(source, len(stages)) if source.random() < 0.3 else None
        for stage in stages:
            if source.random() < 0.1:
                stage["schedule"] = {"name": "locked"}
        try:
            return networks.design(
                stages,
                schedule,
                data={"batch_size": 6, "examples": source.choice([23, 31]), "test_examples": 5},
                run={
                    "epochs": source.choice([2, 6, 20]),
                    "evaluate_every": source.choice([0.5, 1.0, 1.7, 5.0]),
                    "split": split,
                    "seed": seed,
                },
                limits={"window": source.choice(["auto", 1, 3]), "stuck_s": 5.0},
                checkpoint={
                    "every": source.choice([0.5, 1.0, 3.0, "20ms", "100ms", "30s", "never"]),
                    "keep": source.choice([1, 2]),
                    "snapshot_every": source.choice(["5ms", "50ms", "1s", "never"]),
                },
                recovery={"restarts": 1000},
                links={"latency": source.choice(["0ms", "0.3ms", "3ms"])},
                slow={source.choice(stages)["name"]: {"factor": source.choice([1.0, 3.0, 10.0])}},
            )
        except ConfigError:
            continue


def _draw_faults(source: random.Random) -> Faults:
    """A few kinds of them in each run."""

    def sometimes(chance: float, *values: float) -> float:
        return source.choice(values) if source.random() < chance else 0.0

    drawn = {
        "crashes": sometimes(0.6, 0.5, 2.0, 8.0),
        "coordinator_crashes": sometimes(0.2, 0.3, 1.0),
        "pauses": sometimes(0.3, 0.5, 2.0),
        "slowdowns": sometimes(0.3, 1.0, 4.0),
        "partitions": sometimes(0.3, 0.5, 2.0),
        "breaks": sometimes(0.35, 10.0, 100.0),
        "delay_s": sometimes(0.2, 0.001, 0.01),
        "jitter_s": sometimes(0.2, 0.001, 0.01),
        "skew_s": sometimes(0.3, 5.0, 1e3),
        "drift": sometimes(0.3, 0.001, 0.02),
        "slow_saves": sometimes(0.2, 0.3),
        "failed_saves": sometimes(0.05, 0.05),
        "torn_saves": sometimes(0.2, 0.1),
        "most": source.choice([3, 10, 20]),
    }
    sizes = {
        "resume_s": ("coordinator_crashes", source.choice([1.0, 4.0])),
        "pause_s": ("pauses", source.choice([0.05, 0.6, 2.0])),
        "partition_s": ("partitions", source.choice([0.02, 0.3, 1.5])),
        "resets": ("partitions", source.choice([0.0, 0.5, 1.0])),
        "duplicates": ("breaks", source.choice([0.0, 0.5])),
        "slow_save_s": ("slow_saves", source.choice([0.05, 0.5])),
    }
    drawn |= {size: value for size, (rate, value) in sizes.items() if drawn[rate]}
    drawn["starvations"] = sometimes(0.3, 0.5, 2.0)
    if drawn["starvations"]:
        drawn["starve_s"] = source.choice([0.3, 2.0, 8.0])
    return Faults(**drawn)


def assert_survived(run: FaultyRun, result: Result) -> None:
    """It has come to its end (all samples accounted for: the simulator sees to that), or failed
    at what no run can survive."""
    if isinstance(result.end, Fail):
        assert result.end.kind == "CheckpointError", result.end
        assert "disk is full" in result.end.text and result.mishaps["failed save"], result.end
        return
    assert isinstance(result.end, Finish)
    plan = run.design.plan
    planned = len(set(plan.barriers) - set(plan.cut_barriers))
    assert len(result.history) == planned, f"{len(result.history)} evaluations of {planned}"
    saved = [values["tag"] for kind, values in result.records if kind == "saved"]
    assert "final" in saved, f"no final weights, but {saved}"
