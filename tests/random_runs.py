"""Runs drawn from a seed: any network, schedule, split, window, bound on lag, links and slow
workers that go together, and what goes wrong in them."""

from __future__ import annotations

import random
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networks

from asyncdni import experiment
from asyncdni.core.events import Fail, Finish
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.faults import Faults
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.errors import ConfigError
from asyncdni.plan.build import Design

__all__ = [
    "SCHEDULES",
    "DrawnRun",
    "assert_complete",
    "assert_survived",
    "draw_faulty_run",
    "draw_run",
    "eventful_runs",
    "skip_connections",
]

SCHEDULES = ("locked", "gpipe", "1f1b", "delayed", "local_loss", "synthetic")


@dataclass(frozen=True)
class DrawnRun:
    """Everything that makes the run, but for what the machines do."""

    design: Design
    costs: Costs
    links: Links
    faults: Faults = Faults()  # noqa: RUF009 - frozen

    @property
    def seed(self) -> int:
        return self.design.experiment.run.seed

    @property
    def schedule(self) -> str:
        return str(self.design.experiment.schedule.__struct_config__.tag)

    @property
    def waits(self) -> bool:
        """Its workers wait for another coordinator for long enough."""
        return self.design.experiment.recovery.coordinator_s > 30.0

    def simulate(self, **options: Any) -> Result:
        """Without arithmetic, unless `options` of `simulate` say otherwise."""
        values: dict[str, Any] = {"maths": False, "costs": self.costs, "links": self.links}
        values["faults"] = self.faults
        return simulate(self.design, seed=self.seed, **{**values, **options})

    def words(self, path: Path) -> list[str]:
        """Write the experiment of a faulty run there; the words of the command that replays it."""
        path.write_text(experiment.dumps(self.design.experiment), encoding="utf-8")
        words = ["asyncdni", "simulate", str(path), "--schedule", self.schedule]
        words += ["--seed", str(self.seed), "--vary", repr(self.costs.jitter)]
        return [*words, "--faults", str(self.faults)]

    def command(self, path: Path) -> str:
        return shlex.join(self.words(path))


def draw_run(seed: int, names: tuple[str, ...] = SCHEDULES) -> DrawnRun:
    """Any network, schedule and conditions, and nothing that goes wrong."""
    source = random.Random(seed)
    design = _draw_design(source, names, seed)
    costs, links = _draw_conditions(source)
    return DrawnRun(design, costs, links)


def draw_faulty_run(seed: int, names: tuple[str, ...] = SCHEDULES) -> DrawnRun:
    """Any network, schedule, checkpoints, links, and faults of every kind."""
    source = random.Random(f"{seed}/faulty run")
    design = _draw_faulty_design(source, names, seed)
    vary = source.choice([0.0, 0.3, 1.0])  # of ops and messages
    return DrawnRun(design, Costs(jitter=vary), Links(jitter=vary), _draw_faults(source))


def eventful_runs(count: int, name: str, first: int = 0) -> Iterator[tuple[DrawnRun, Result]]:
    """So many runs of a schedule in which something went wrong: of about a third of the seeds, no
    fault is drawn, or the run is over before the first one."""
    seed = first
    while count:
        run = draw_faulty_run(seed, (name,))
        seed += 1
        if run.faults.any:
            result = run.simulate()
            if any(result.fault_counts.values()):
                count -= 1
                yield run, result


def assert_complete(run: DrawnRun, result: Result) -> None:
    """Every worker has done, or heard that it won't get, every batch; nothing is left over."""
    plan, chosen = run.design.plan, run.design.experiment
    assert isinstance(result.end, Finish), result.end
    for name, counters in result.counters.items():
        assert (counters["batches"] or 0) + (counters["missed"] or 0) == plan.batches, name
        assert counters["in_flight"] == counters["queue"] == 0, name
    if getattr(chosen.schedule, "on_full", "wait") == "wait":
        samples = chosen.run.epochs * run.design.meta.train_samples
        assert {own["samples"] for own in result.counters.values()} == {samples}
        assert not any(own["skipped"] for own in result.counters.values())
        _assert_all_learned_from(run, result)
    assert len(result.history) == len(plan.barriers)
    shown = [entry["samples"] for entry in result.history]
    assert shown == sorted(shown)
    assert ("saved", "final") in [(kind, v.get("tag")) for kind, v in result.records]


def _assert_all_learned_from(run: DrawnRun, result: Result) -> None:
    """Where every gradient is waited for and wanted, none is dropped and each makes an update.

    Where stages have schedules of their own, one that is locked to a consumer sends gradients to
    producers that may not want them all: late gradients and updates are not counted there. Where
    the true gradient has a part beside the predicted one, it may make an update of its own."""
    schedule, staleness = run.design.experiment.schedule, run.design.experiment.staleness
    bounded = staleness.lag is not None and staleness.at_bound != "wait"
    if run.schedule == "local_loss" or bounded or getattr(schedule, "update_probability", 1) < 1:
        return
    own_schedules = any(stage.schedule for stage in run.design.experiment.stages)
    for name, own in result.counters.items():
        assert own["dropped"] == 0, name
        if own_schedules:
            continue
        assert own["late"] == 0, name
        parts = ("correct", "mix", "guard")
        if any(getattr(schedule, part, None) for part in parts):
            assert (own["updates"] or 0) >= run.design.plan.batches, name
        elif run.schedule in ("locked", "delayed", "synthetic"):
            chosen, plan = run.design.experiment, run.design.plan
            assert own["updates"] == chosen.run.epochs * plan.updates_per_epoch, name


def assert_survived(run: DrawnRun, result: Result) -> None:
    """It has come to its end (all samples accounted for: the simulator sees to that), or failed
    at what no run can survive."""
    if isinstance(result.end, Fail):
        assert result.end.kind == "CheckpointError", result.end
        assert "disk is full" in result.end.text and result.fault_counts["failed save"], result.end
        return
    assert isinstance(result.end, Finish)
    plan = run.design.plan
    planned = len(set(plan.barriers) - set(plan.cut_barriers))
    assert len(result.history) == planned, f"{len(result.history)} evaluations of {planned}"
    saved = [values["tag"] for kind, values in result.records if kind == "saved"]
    assert "final" in saved, f"no final weights, but {saved}"


# --- drawing -------------------------------------------------------------------------------------


def skip_connections() -> networks.Tables:
    """A chain of four in which every stage also takes the activation of the one before the last."""
    first, second, third, top = networks.chain(4)
    return [
        first,
        second,
        {**third, "inputs": ["s0", "s1"]},
        {**top, "inputs": ["s1", "s2"]},
    ]


def _draw_stages(source: random.Random) -> networks.Tables:
    return source.choice(
        [networks.chain(length) for length in range(1, 6)]
        + [networks.fork(), networks.fork("sum"), networks.diamond()]
        + [networks.several_readers(), skip_connections()]
    )


def _draw_schedule(source: random.Random, name: str) -> dict[str, Any]:
    """[schedule] with options that may contradict each other."""
    match name:
        case "locked":
            return {"name": name, "split_backward": source.random() < 0.7}
        case "gpipe" | "1f1b":
            microbatches = source.choice([1, 2, 3, 6])
            return {"name": name, "microbatches": microbatches, **_halves(source)}
        case "delayed":
            return {"name": name, "accumulate": source.choice([1, 1, 2, 3]), **_halves(source)}
        case "local_loss":
            replay = {"replay": source.choice([0, 0, 1, 3]), "uses_max": source.choice([2, 3, 5])}
            return {"name": name, **replay, **_on_full(source)}
    return {
        "name": name,
        "target": source.choice(["true", "true", "bootstrap", "half"]),
        "fit_every": source.choice([1, 1, 2, 3]),
        "fit_first": source.choice([0, 0, 2]),
        "correct": source.random() < 0.3,
        "mix": source.choice([0, 0, 0, 0.5, 1]),
        "update_probability": source.choice([1, 1, 0.5, 0.1]),
        "synthetic_inputs": source.random() < 0.3,
        # Without arithmetic no cosine is measured, which counts as 0: the first falls back for
        # good, the second never does.
        "guard": source.choice([None, None, {"window": 3, "below": 0.5, "above": 0.6}, {}]),
        **_on_full(source),
    }


def _halves(source: random.Random) -> dict[str, Any]:
    return {"split_backward": source.random() < 0.7}


def _on_full(source: random.Random) -> dict[str, Any]:
    return {"on_full": source.choice(["wait", "wait", "skip"])}


def _draw_design(source: random.Random, names: tuple[str, ...], seed: int) -> Design:
    """The first draw whose parts go together."""
    while True:
        stages = _draw_stages(source)
        schedule = _draw_schedule(source, source.choice(names))
        split = _draw_split(source, len(stages)) if source.random() < 0.5 else None
        for stage in stages:
            if source.random() < 0.15:
                stage["schedule"] = {"name": "locked"}
        try:
            return networks.design(
                stages,
                schedule,
                data={
                    "batch_size": 6,
                    "examples": source.choice([5, 23, 31]),
                    "test_examples": source.choice([3, 5, 12]),
                },
                run={
                    "epochs": source.choice([1, 2, 3]),
                    "evaluate_every": source.choice([0.2, 0.5, 1.0, 1.7]),
                    "split": split,
                    "seed": seed,
                },
                limits={"window": source.choice(["auto", 1, 2, 3, 7])},
                staleness=_draw_staleness(source),
                **_draw_slowness(source, [stage["name"] for stage in stages]),
            )
        except ConfigError:
            continue


def _draw_staleness(source: random.Random) -> dict[str, Any]:
    if source.random() < 0.4:
        return {}
    bound = {"at_bound": source.choice(["wait", "drop"])} if source.random() < 0.5 else {}
    return {"lag": source.choice([0, 1, 2, 5, 9]), **bound}


def _draw_slowness(source: random.Random, names: list[str]) -> dict[str, Any]:
    """[links] and [slow]; names of stages mean the worker that has them."""
    links: dict[str, Any] = {}
    if source.random() < 0.5:
        links = {"latency": source.choice(["0ms", "0.3ms", "5ms"]), "jitter": "1ms"}
        links["bandwidth"] = source.choice(["", "10Mbit/s"])
    slow: dict[str, Any] = {}
    if source.random() < 0.5:
        factor = source.choice([1.0, 3.0, 10.0])
        slow[source.choice(names)] = {"factor": factor, "pause": "2ms", "chance": 0.2}
    return {"links": links, "slow": slow}


def _draw_split(source: random.Random, stages: int) -> list[int]:
    parts: list[int] = []
    while sum(parts) < stages:
        parts.append(min(source.choice([1, 1, 2]), stages - sum(parts)))
    return parts


def _draw_conditions(source: random.Random) -> tuple[Costs, Links]:
    scale = {name: source.choice([0.1, 1.0, 5.0]) for name in ("root", "a", "b", "s1", "top")}
    links = Links(
        latency_us=source.choice([1.0, 100.0, 3000.0]),
        control_latency_us=source.choice([1.0, 500.0]),
        jitter=source.random(),
    )
    return Costs(jitter=source.random(), scale=scale), links


def _draw_faulty_design(source: random.Random, names: tuple[str, ...], seed: int) -> Design:
    while True:
        stages = _draw_stages(source)
        schedule = _draw_schedule(source, source.choice(names))
        split = _draw_split(source, len(stages)) if source.random() < 0.3 else None
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
                recovery={"restarts": 1000, "coordinator_s": _draw_patience(seed)},
                links={"latency": source.choice(["0ms", "0.3ms", "3ms"])},
                slow={source.choice(stages)["name"]: {"factor": source.choice([1.0, 3.0, 10.0])}},
            )
        except ConfigError:
            continue


def _draw_patience(seed: int) -> float:
    """How long workers wait for another coordinator: not at all, sometimes too short, or long
    enough. It has a source of its own, so that all else is as it was before there was a choice."""
    return random.Random(f"{seed}/patience").choice([0.0, 3.0, 60.0])


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
