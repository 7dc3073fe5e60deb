"""Runs drawn from a seed: any network, schedule, split, window, bound on lag, links and slow
workers that go together."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import networks

from asyncdni.core.events import Finish
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.errors import ConfigError
from asyncdni.plan.build import Design

__all__ = [
    "assert_complete",
    "draw_conditions",
    "draw_design",
    "draw_schedule",
    "draw_split",
    "draw_stages",
    "run_seed",
    "skip_connections",
]


def skip_connections() -> networks.Tables:
    """A chain of four in which every stage also takes the activation of the one before the last."""
    first, second, third, top = networks.chain(4)
    return [
        first,
        second,
        {**third, "inputs": ["s0", "s1"]},
        {**top, "inputs": ["s1", "s2"]},
    ]


def draw_stages(source: random.Random) -> networks.Tables:
    return source.choice(
        [networks.chain(length) for length in range(1, 6)]
        + [networks.fork(), networks.fork("sum"), networks.diamond()]
        + [networks.several_readers(), skip_connections()]
    )


def draw_schedule(source: random.Random, name: str) -> dict[str, Any]:
    """[schedule] with options that may contradict each other."""
    match name:
        case "locked":
            return {"name": name, "split_backward": source.random() < 0.7}
        case "gpipe" | "1f1b":
            microbatches = source.choice([1, 2, 3, 6])
            return {"name": name, "microbatches": microbatches, **_halves(source)}
        case "delayed":
            return {"name": name, **_halves(source)}
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


def draw_design(source: random.Random, names: tuple[str, ...]) -> Design:
    """The first draw whose parts go together."""
    while True:
        stages = draw_stages(source)
        schedule = draw_schedule(source, source.choice(names))
        split = draw_split(source, len(stages)) if source.random() < 0.5 else None
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
                    "epochs": source.choice([0, 1, 2, 3]),
                    "evaluate_every": source.choice([0.2, 0.5, 1.0, 1.7]),
                    "split": split,
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


def draw_split(source: random.Random, stages: int) -> list[int]:
    parts: list[int] = []
    while sum(parts) < stages:
        parts.append(min(source.choice([1, 1, 2]), stages - sum(parts)))
    return parts


def draw_conditions(source: random.Random) -> tuple[Costs, Links]:
    scale = {name: source.choice([0.1, 1.0, 5.0]) for name in ("root", "a", "b", "s1", "top")}
    links = Links(
        latency_us=source.choice([1.0, 100.0, 3000.0]),
        control_latency_us=source.choice([1.0, 500.0]),
        jitter=source.random(),
    )
    return Costs(jitter=source.random(), scale=scale), links


def run_seed(seed: int, names: tuple[str, ...], **options: Any) -> tuple[Design, Result]:
    """Without arithmetic, unless `options` of `simulate` say otherwise."""
    source = random.Random(seed)
    design = draw_design(source, names)
    costs, links = draw_conditions(source)
    values: Mapping[str, Any] = {"maths": False, "costs": costs, "links": links, **options}
    return design, simulate(design, seed=seed, **values)


def assert_complete(design: Design, result: Result) -> None:
    """Every worker has done, or heard that it won't get, every batch; nothing is left over."""
    plan = design.plan
    assert isinstance(result.end, Finish), result.end
    for name, counters in result.counters.items():
        assert (counters["batches"] or 0) + (counters["missed"] or 0) == plan.batches, name
        assert counters["in_flight"] == counters["queue"] == 0, name
    skips = getattr(design.experiment.schedule, "on_full", "wait") == "skip"
    if not skips:
        samples = design.experiment.run.epochs * design.meta.train_samples
        assert {own["samples"] for own in result.counters.values()} == {samples}
        assert not any(own["skipped"] for own in result.counters.values())
    assert len(result.history) == len(plan.barriers)
    assert ("saved", "final") in [(kind, v.get("tag")) for kind, v in result.records]
