"""How fast a run would be, which nobody has made yet: the real logic of all workers, simulated with
the prices of this machine's ops and messages.

A run is simulated for as many batches as the time for it allows. Its rate is that between two
forwards at the loss, once the pipe has had time to fill. What fewer batches than workers can't show
is added: no worker and no host does more than one CPU second a second and core.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from asyncdni import config
from asyncdni.build import Design
from asyncdni.errors import AsyncDNIError
from asyncdni.profiling.prices import Prices, burden_of, costs_of, links_of
from asyncdni.simulator import Hosts, Result, simulate

__all__ = ["EVENTS", "Prediction", "predict"]

#: Of one simulated run, about: a second or two.
EVENTS = 60_000
_EVENTS_A_BATCH = 8  # of a worker
_BATCHES_MAX = 320
_BATCHES_MIN = 5
#: Nobody dies: beats would only take time.
_SILENCE_S = 1e5
#: What a share of this of the time is spent on limits a run.
_FULL = 0.9


@dataclass(frozen=True)
class Prediction:
    """Of training without its start, its evaluations and its end; by worker where it says so."""

    schedule: str
    split: tuple[int, ...]  # stages of each worker
    samples_per_s: float
    idle: Mapping[str, float]  # share of the time without anything to do
    work_s: Mapping[str, float]  # CPU seconds per batch, messages and logic included
    staleness: Mapping[str, float | None]  # mean, in updates
    staleness_max: Mapping[str, int | None]
    #: "worker", "cores", or "waiting": neither is busy all the time
    limit: str
    slowest: str  # the worker with the most work


def predict(
    design: Design,
    prices: Prices,
    *,
    cores: int,
    hosts: int = 1,
    events: int = EVENTS,
) -> Prediction:
    """The run that `design` is, its slow links included, on `hosts` machines of so many cores.

    `prices` are of the same network, cut up into stages in any way, of batches of the same size as
    those that flow in `design`. Raises `AsyncDNIError` where the simulated run fails.
    """
    plan = design.plan
    units = _units(design, events)
    shortened = _shortened(design, units)
    machines = Hosts(cores, hosts, _pins(design, cores), burden_of(design, prices))
    result = simulate(
        shortened,
        seed=design.experiment.run.seed,
        costs=costs_of(design, prices),
        links=links_of(design, prices),
        hosts=machines,
        maths=False,
        check=False,
    )
    if result.failure is not None:
        raise AsyncDNIError(f"the simulated run failed: {result.failure.text}")
    names = [group.name for group in plan.groups]
    work_s = {name: result.cpu_s[name] / units for name in names}
    of_hosts = _by_host(names, work_s, hosts)
    period_s = max(_period(shortened, result), *work_s.values(), *(one / cores for one in of_hosts))
    counters = result.counters
    return Prediction(
        schedule=str(design.experiment.schedule.__struct_config__.tag),
        split=tuple(len(group.members) for group in plan.groups),
        samples_per_s=_samples(design) / period_s,
        idle={name: max(0.0, 1.0 - work_s[name] / period_s) for name in names},
        work_s=work_s,
        staleness={name: counters[name]["staleness_mean"] for name in names},
        staleness_max={name: _whole(counters[name]["staleness_max"]) for name in names},
        limit=_limit(period_s, work_s, max(of_hosts) / cores),
        slowest=max(work_s, key=lambda name: work_s[name]),
    )


def _whole(value: float | int | None) -> int | None:
    return None if value is None else int(value)


def _samples(design: Design) -> int:
    """Of a whole batch."""
    return min(design.experiment.data.batch_size, design.meta.train_samples)


# --- the run that is simulated -------------------------------------------------------------------


def _units(design: Design, events: int) -> int:
    """Batches, each of all its microbatches."""
    plan = design.plan
    each = _EVENTS_A_BATCH * len(plan.groups) * plan.microbatches
    return max(_BATCHES_MIN, min(_BATCHES_MAX, events // each))


def _shortened(design: Design, units: int) -> Design:
    """So many whole batches, then the end; as training goes once it has got going."""
    plan, chosen = design.plan, design.experiment
    batches = units * plan.microbatches
    schedule = chosen.schedule
    if isinstance(schedule, config.Synthetic):
        schedule = msgspec.structs.replace(schedule, fit_first=0)
    plan = replace(
        plan,
        batches=batches,
        batches_per_epoch=batches,
        updates_per_epoch=units,
        barriers=(batches,),
        cut_barriers=(),
        test_batches=0,
    )
    limits = msgspec.structs.replace(chosen.limits, silence_s=_SILENCE_S)
    samples = units * _samples(design)
    meta = msgspec.structs.replace(design.meta, train_samples=samples)
    return replace(
        design,
        experiment=msgspec.structs.replace(chosen, schedule=schedule, limits=limits),
        plan=plan,
        meta=meta,
    )


def _pins(design: Design, cores: int) -> dict[str, int]:
    """As `runtime.affinity` does it."""
    run, groups = design.experiment.run, design.plan.groups
    if isinstance(run.pin, list):
        return {group.name: run.pin[group.index] % cores for group in groups}
    alone = len(groups) == 1 or run.threads > 1
    if run.pin == "none" or alone or not isinstance(design.experiment.schedule, config.Locked):
        return {}
    return {group.name: group.index % cores for group in groups}


# --- what it has shown ---------------------------------------------------------------------------


def _period(design: Design, result: Result) -> float:
    """Seconds a batch at the loss that is last, the first quarter left out."""
    losses = [group.name for group in design.plan.groups if group.has_loss]
    return max(_stream(result.ops[name], design.plan.microbatches) for name in losses)


def _stream(ops: Sequence[tuple[str, int, float, float]], microbatches: int) -> float:
    ends = [end for letter, batch, _, end in ops if letter == "F" and batch % microbatches == 0]
    first = min(math.ceil(len(ends) / 4), len(ends) - 2)
    return (ends[-1] - ends[first]) / (len(ends) - 1 - first)


def _by_host(names: Sequence[str], work_s: Mapping[str, float], hosts: int) -> list[float]:
    totals = [0.0] * hosts
    for index, name in enumerate(names):
        totals[index * hosts // len(names)] += work_s[name]
    return totals


def _limit(period_s: float, work_s: Mapping[str, float], host_s: float) -> str:
    if max(work_s.values()) >= _FULL * period_s:
        return "worker"
    return "cores" if host_s >= _FULL * period_s else "waiting"
