"""The report of `asyncdni profile`, as plain values fit for JSON: measured ops, and the speed that
they allow under each schedule and split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import msgspec

from asyncdni import config
from asyncdni.drivers.virtual.costs import SENDING, Costs
from asyncdni.errors import ConfigError
from asyncdni.files import read_file
from asyncdni.network import Node
from asyncdni.plan.build import Design
from asyncdni.profiling.advice import best_split
from asyncdni.profiling.measurement import WARM_UP, Measurement, schedules_of
from asyncdni.profiling.prediction import Seconds, costs_of, producers_of, worker_costs
from asyncdni.profiling.roofline import Arithmetic
from asyncdni.report.breakdown import ceiling
from asyncdni.report.machine import describe_machine
from asyncdni.store.manifest import compare, identity

__all__ = ["LEFT_OUT", "document", "read_costs"]

#: The caveats of the figures, for the user.
LEFT_OUT = (
    "messages and waiting are not in these figures",
    "each op was measured while no other process used the caches and memory",
    "workers of several stages are added up, not measured",
)


def document(
    design: Design,
    measured: Measurement,
    *,
    cores: int,
    workers: Sequence[int],
    arithmetic: Mapping[str, Arithmetic] | None = None,
) -> dict[str, Any]:
    """Return the whole report, as plain values.

    `arithmetic` is that of each stage, None if it is not known; entries about it are None then.

    `splits` has the best split for each number of `workers`, from 1 to the number of stages;
    `given` is the experiment's own split; `single` is one process with one thread in strict order.
    A batch is a microbatch if the schedule cuts batches up into `microbatches`.
    """
    maker = _ReportMaker(design, measured, arithmetic, cores)
    return {
        "machine": describe_machine(),
        "experiment": _priced(design),
        "cores": cores,
        "batch_size": design.plan.batch_size,
        "microbatches": design.experiment.schedule.microbatches,
        "fit_every": design.experiment.schedule.fit_every,
        "batches": measured.batches,
        "warm_up_batches": WARM_UP,
        "stages": maker.stages(),
        "edges": [asdict(edge) for edge in measured.edges],
        "single": maker.single(),
        "given": maker.split([len(group.members) for group in design.plan.groups]),
        "splits": [maker.split(maker.best(count)) for count in workers],
        "left_out": list(LEFT_OUT),
    }


# --- read again ----------------------------------------------------------------------------------


class _Op(msgspec.Struct):
    median_s: Annotated[float, msgspec.Meta(ge=0)]


class _Stage(msgspec.Struct):
    name: str
    ops: dict[str, _Op]


class _Report(msgspec.Struct):
    """What of a report other commands use."""

    experiment: dict[str, Any]
    stages: list[_Stage]


def read_costs(path: str, design: Design) -> Costs:
    """Return the costs of each op of each worker, from a report that was written to `path`.

    Raises `ConfigError` for a file that is no report, or that of other stages, batches or dtypes;
    and where an op of the schedule of `design` was not measured.
    """
    where = f"--profile {path}"
    try:
        found = msgspec.json.decode(read_file(path), type=_Report)
    except OSError as error:
        raise ConfigError(f"{where}: can't be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"{where}: expected what `asyncdni profile FILE.toml --json {path}` writes: {error}"
        ) from error
    wrong = next(compare(found.experiment, _priced(design), of="the profile"), None)
    if wrong is not None:
        raise ConfigError(f"{where}: {wrong}; make a profile of this experiment")
    seconds = {one.name: {key: op.median_s for key, op in one.ops.items()} for one in found.stages}
    schedule = design.experiment.schedule
    for group in design.plan.groups:
        try:
            worker_costs(group.members, seconds, schedule)
        except KeyError as error:
            name = schedule.__struct_config__.tag
            raise ConfigError(
                f"{where}: it has no op {error} of {group.name}, which {name} needs; make a "
                f"profile with --set schedule.name={name}"
            ) from error
    return costs_of(design, seconds, seconds)


def _priced(design: Design) -> dict[str, Any]:
    """What the cost of an op depends on, beside the machine."""
    known = identity(design.experiment, design.meta)
    return {
        "network": known["network"],
        "data": {"batch_size": known["data"]["batch_size"], "shapes": known["data"]["shapes"]},
        "run": {"dtype": known["run"]["dtype"]},
        "schedule": known["schedule"],
    }


# --- its entries ---------------------------------------------------------------------------------


class _ReportMaker:
    """Computes the entries of the report from one measurement."""

    def __init__(
        self,
        design: Design,
        measured: Measurement,
        arithmetic: Mapping[str, Arithmetic] | None,
        cores: int,
    ) -> None:
        self._design = design
        self._measured = measured
        self._arithmetic = arithmetic
        self._cores = cores
        self._nodes = design.network.nodes
        self._schedules = schedules_of(design)
        # Samples of a whole batch, to which the costs refer; the last of an epoch may be smaller.
        self._samples = min(design.plan.batch_size, design.meta.train_samples)
        self._seconds: Seconds = {
            stage: {letter: one.median_s for letter, one in ops.items()}
            for stage, ops in measured.times.items()
        }
        self._single_s = self._total(self._nodes, config.Locked())

    def stages(self) -> list[dict[str, Any]]:
        """Return what was measured of each stage, in a worker of its own."""
        return [
            {
                "name": node.name,
                "parameters": self._measured.parameters[node.name],
                "ops": {
                    letter: asdict(one) for letter, one in self._measured.times[node.name].items()
                },
                "batch_s": {
                    name: self._total([node], options) for name, options in self._schedules.items()
                },
                **self._roofline(node),
            }
            for node in self._nodes
        ]

    def _roofline(self, node: Node) -> dict[str, Any]:
        """Return a stage's operations in a batch, and by schedule what products and traffic take of
        a batch; see `profiling.roofline`."""
        if self._arithmetic is None:
            return {"flops": None, "roofline": None}
        own = self._arithmetic[node.name]
        sends = SENDING in self._measured.times[node.name] or "b" in self._measured.times[node.name]
        parts = ("products_s", "traffic_bytes", "traffic_s", "roofline_s")
        return {
            "flops": {"forward": own.flops["F"], "backward": own.flops[SENDING if sends else "B"]},
            "roofline": {
                name: {
                    part: self._total([node], options, {node.name: getattr(own, part)})
                    for part in parts
                }
                for name, options in self._schedules.items()
            },
        }

    def single(self) -> dict[str, Any]:
        return {"batch_s": self._single_s, "samples_per_s": self._samples / self._single_s}

    def best(self, workers: int) -> list[int]:
        """Return the split with the highest ceiling for the experiment's own schedule."""
        options = self._design.experiment.schedule

        def cost(first: int, end: int) -> float | None:
            costs = worker_costs(self._nodes[first:end], self._seconds, options)
            return None if costs is None else sum(costs.values())

        found = best_split(len(self._nodes), workers, self._cores, cost)
        # it is always possible to give one stage to each worker but the last, and it the others
        assert found is not None
        return found

    def split(self, counts: Sequence[int]) -> dict[str, Any]:
        """Return the ceilings of a split, given as how many stages each worker gets."""
        return {
            "workers": len(counts),
            "split": list(counts),
            "schedules": {
                name: self._ceiling(self._cut(counts), name, options)
                for name, options in self._schedules.items()
            },
        }

    def _cut(self, counts: Sequence[int]) -> list[tuple[Node, ...]]:
        ends = [sum(counts[: index + 1]) for index in range(len(counts))]
        return [self._nodes[end - count : end] for count, end in zip(counts, ends, strict=True)]

    def _ceiling(
        self, cut: Sequence[Sequence[Node]], name: str, options: config.Schedule
    ) -> dict[str, Any]:
        costs = self._costs(cut, options, self._seconds)
        batches_per_s = self._batches_per_s(cut, name, costs)
        totals = {worker: sum(ops.values()) for worker, ops in costs.items()}
        return {
            "samples_per_s": self._samples * batches_per_s,
            "roofline_samples_per_s": self._roofline_samples_per_s(cut, name, options),
            "speed_up": self._single_s * batches_per_s,
            "limit": _limit(1.0 / batches_per_s, totals, self._cores),
            "slowest": max(totals, key=lambda worker: totals[worker]),
            "worker_s": totals,
            "total_s": sum(totals.values()),
        }

    def _roofline_samples_per_s(
        self, cut: Sequence[Sequence[Node]], name: str, options: config.Schedule
    ) -> float | None:
        if self._arithmetic is None:
            return None
        seconds = {stage: one.roofline_s for stage, one in self._arithmetic.items()}
        costs = self._costs(cut, options, seconds)
        if not any(sum(ops.values()) for ops in costs.values()):
            return None
        return self._samples * self._batches_per_s(cut, name, costs)

    def _costs(
        self, cut: Sequence[Sequence[Node]], options: config.Schedule, seconds: Seconds
    ) -> dict[str, dict[str, float]]:
        """Return the seconds per batch of each worker, by its name and op."""
        return {_name(members): worker_costs(members, seconds, options) or {} for members in cut}

    def _batches_per_s(
        self, cut: Sequence[Sequence[Node]], name: str, costs: Mapping[str, Mapping[str, float]]
    ) -> float:
        names = [_name(members) for members in cut]
        producers = {
            worker: [names[index] for index in before]
            for worker, before in zip(names, producers_of(self._design.network, cut), strict=True)
        }
        return ceiling(
            *(name, costs, producers, self._cores),
            microbatches=self._design.plan.per_update,
            lag=self._design.experiment.staleness.lag,
        )

    def _total(
        self, members: Sequence[Node], options: config.Schedule, seconds: Seconds | None = None
    ) -> float:
        """Return what a worker with these stages takes for a batch, by what was measured or by
        other `seconds`."""
        costs = worker_costs(members, seconds or self._seconds, options)
        assert costs is not None  # a single stage, and all together, send from at most one stage
        return sum(costs.values())


def _name(members: Sequence[Node]) -> str:
    return "+".join(node.name for node in members)


def _limit(period_s: float, totals: Mapping[str, float], cores: int) -> str:
    """Return what sets the period: "worker" (the slowest one), "cores" or "locking"; the first of
    equals."""
    just_above = period_s * (1 - 1e-9)
    if max(totals.values()) >= just_above:
        return "worker"
    return "cores" if sum(totals.values()) / cores >= just_above else "locking"
