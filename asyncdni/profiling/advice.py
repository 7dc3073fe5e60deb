"""Advise which schedule and split to train with on given machines and links, and what limits the
speed.

Every schedule is predicted on its best split, and the predictions are compared.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from asyncdni import config, experiment
from asyncdni.data.meta import Meta
from asyncdni.errors import ConfigError
from asyncdni.experiment.schema import seconds
from asyncdni.imports import Allowed
from asyncdni.plan.build import Design, make_design
from asyncdni.plan.conditions import neighbours
from asyncdni.profiling.measurement import Wire
from asyncdni.profiling.prediction import Prediction, Prices, predict, price, worker_costs
from asyncdni.schedules import SCHEDULES

__all__ = ["Advice", "Candidate", "Row", "Setup", "advise", "best_split", "is_slow"]

# --- splits --------------------------------------------------------------------------------------

#: A function that returns the seconds per batch of a worker with the stages first, …, end - 1;
#: None if there can be no such worker.
Cost = Callable[[int, int], float | None]


def best_split(stages: int, workers: int, cores: int, cost: Cost) -> list[int] | None:
    """Return how many stages each worker gets, so that a decoupled run has the highest ceiling.
    Exact.

    A batch takes as long as the slowest worker, or as all workers together on `cores` cores. Among
    splits with equal batch times, the one with the faster slowest worker wins. None if no split is
    possible.

    Every worker's cost is tried as a limit: with no worker above it, dynamic programming over the
    stages finds the least total. A limit above the best batch time so far can't improve on it, so
    only few of the O(n^2) limits are tried.
    """
    table = {
        (first, end): seconds
        for first in range(stages)
        for end in range(first + 1, stages + 1)
        if (seconds := cost(first, end)) is not None
    }
    best: tuple[float, list[int]] | None = None
    for limit in sorted(set(table.values())):
        if best is not None and limit >= best[0]:
            break
        allowed = {span: seconds for span, seconds in table.items() if seconds <= limit}
        found = _least_total(stages, workers, allowed)
        if found is not None:
            period = max(limit, found[0] / cores)
            if best is None or period < best[0]:
                best = period, found[1]
    return best[1] if best else None


def _least_total(
    stages: int, workers: int, allowed: dict[tuple[int, int], float]
) -> tuple[float, list[int]] | None:
    """Return (seconds of all workers together, stages of each) of the cheapest split; None if there
    is none."""
    # reached[end]: the cheapest way to give the first `end` stages to the workers so far.
    reached: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for _ in range(workers):
        further: dict[int, tuple[float, list[int]]] = {}
        for (first, end), took_s in allowed.items():
            if first in reached:
                total, counts = reached[first]
                if end not in further or total + took_s < further[end][0]:
                    further[end] = total + took_s, [*counts, end - first]
        reached = further
    return reached.get(stages)


# --- candidates ----------------------------------------------------------------------------------

# All in all advice takes up to ten seconds for a network of a few stages: there are some eight
# candidates, and three sets of prices, each measured with warm caches and with cold ones.
_EVENTS = 24_000
_BATCHES = 96
_MEASURED_S = 0.6

_FAST = config.Link()


@dataclass(frozen=True)
class Candidate:
    """A possible run, and the cost of its ops and messages on this machine."""

    design: Design
    prices: Prices


@dataclass
class Setup:
    """An experiment and the machines it would run on; makes the candidates for a run."""

    chosen: config.Experiment
    meta: Meta
    wire: Wire
    cores: int  # of each host
    hosts: int
    batches: int  # how many to measure ops on
    allow_import: Allowed = False
    events: int = _EVENTS  # about how many each simulated run has
    _prices: dict[tuple[str, int], Prices] = field(default_factory=dict)

    def candidate(self, schedule: str, workers: int, *, lag: int | None = None) -> Candidate:
        """Return the run of `schedule` over `workers` workers, on the split with the highest
        ceiling.

        Raises `ConfigError` for a schedule that does not fit the network or the batches, or whose
        options can't be priced.
        """
        chosen = self._options(schedule, lag)
        prices = self._priced(self._design(chosen, None))
        design = self._design(chosen, self._split(chosen, prices, workers))
        return Candidate(self._on_hosts(design), prices)

    def without(self, candidate: Candidate, *what: str) -> Candidate:
        """Return the same run on links without the conditions `what`: "latency", "jitter",
        "bandwidth"."""
        fast = {key: getattr(_FAST, key) for key in what}
        links = candidate.design.experiment.links
        between = {
            name: msgspec.structs.replace(link, **fast) for name, link in links.between.items()
        }
        links = msgspec.structs.replace(links, between=between, **fast)
        changed = msgspec.structs.replace(candidate.design.experiment, links=links)
        return Candidate(self._made(changed), candidate.prices)

    def fewest(self, schedule: str, workers: int, share: float) -> int:
        """Return the smallest number of workers whose ceiling is at least `share` of that of
        `workers`.

        Only a few numbers are tried; the result is `workers` if none of them will do.
        """
        chosen = self._options(schedule, None)
        prices = self._priced(self._design(chosen, None))
        numbers = sorted({max(1, math.ceil(workers * part / 4)) for part in (1, 2, 3)} | {2})
        least_s = self._period(chosen, prices, workers) / share
        for number in numbers:
            if number < workers and self._period(chosen, prices, number) <= least_s:
                return number
        return workers

    def _period(self, chosen: config.Experiment, prices: Prices, workers: int) -> float:
        """Return the seconds per batch that arithmetic allows; infinite if no such split is
        possible."""
        try:
            split = self._split(chosen, prices, workers)
        except ConfigError:
            return math.inf
        nodes = iter(self._design(chosen, None).network.nodes)
        parts = [list(itertools.islice(nodes, size)) for size in split]
        costs = [worker_costs(part, prices.warm, chosen.schedule) or {} for part in parts]
        totals = [sum(one.values()) for one in costs]
        return max(*totals, sum(totals) / (self.cores * min(self.hosts, workers)))

    def _options(self, schedule: str, lag: int | None) -> config.Experiment:
        """Return the experiment under `schedule`: with the file's options if it has that schedule,
        else defaults."""
        chosen = experiment.change(experiment.tables(self.chosen), schedule=schedule)
        if lag is None:
            return chosen
        return msgspec.structs.replace(chosen, staleness=config.Staleness(lag=lag))

    def _design(self, chosen: config.Experiment, split: list[int] | None) -> Design:
        pin = chosen.run.pin if chosen.run.pin == "none" else "auto"
        run = msgspec.structs.replace(chosen.run, split=split, pin=pin)
        return self._made(msgspec.structs.replace(chosen, run=run))

    def _made(self, chosen: config.Experiment) -> Design:
        return make_design(chosen, self.meta, allow_import=self.allow_import)

    def _priced(self, design: Design) -> Prices:
        """Return the prices for a design. Schedules that do the same ops on batches of the same
        size share them."""
        schedule = design.experiment.schedule
        key = schedule.priced_as, design.plan.batch_size
        if key not in self._prices:
            if schedule.priced_as != schedule.tag and schedule.microbatches == 1:
                design = self._design(self._options(schedule.priced_as, None), None)
            self._prices[key] = price(design, self.wire, self.batches, _MEASURED_S)
        return self._prices[key]

    def _split(self, chosen: config.Experiment, prices: Prices, workers: int) -> list[int]:
        nodes = self._design(chosen, None).network.nodes
        if workers == len(nodes):
            return [1] * workers

        def cost(first: int, end: int) -> float | None:
            costs = worker_costs(nodes[first:end], prices.warm, chosen.schedule)
            return None if costs is None else sum(costs.values())

        found = best_split(len(nodes), workers, self.cores * self.hosts, cost)
        if found is None:
            raise ConfigError(f"no split of these stages over {workers} workers is possible")
        return found

    def _on_hosts(self, design: Design) -> Design:
        """Return the design on `hosts` machines: links within one of them keep this machine's
        speed, unless [links.between] names them."""
        chosen, plan = design.experiment, design.plan
        if self.hosts >= len(plan.groups) or not is_slow(chosen.links):
            return design
        links = chosen.links
        far = config.Link(**{key: getattr(links, key) for key in config.Link.__struct_fields__})
        host = {one.name: one.index * self.hosts // len(plan.groups) for one in plan.groups}
        between = {
            f"{group.name}->{to}": far
            for group, to in itertools.chain.from_iterable(
                [(group, to) for to in neighbours(plan, group)] for group in plan.groups
            )
            if host[group.name] != host[to]
        }
        fast = {key: getattr(_FAST, key) for key in ("latency", "jitter", "bandwidth")}
        links = msgspec.structs.replace(links, between={**between, **links.between}, **fast)
        return self._made(msgspec.structs.replace(chosen, links=links))


def is_slow(links: config.Links) -> bool:
    """Tell whether an experiment slows any link down."""
    own = config.Link(latency=links.latency, jitter=links.jitter, bandwidth=links.bandwidth)
    return own != _FAST or bool(links.between)


# --- advice --------------------------------------------------------------------------------------

#: A condition of links limits a run if the run is more than so many times faster without it.
_LIMITING = 1.1
#: Fewer workers are preferred if they reach at least this share of the best rate.
_NEAR = 0.9


@dataclass(frozen=True)
class Row:
    """One candidate: either it has a prediction, or it can't be made and is `refused`."""

    name: str  # "synthetic", "delayed, lag 12", "one worker"
    schedule: str
    workers: int
    prediction: Prediction | None = None
    refused: str = ""  # why it can't be made


@dataclass(frozen=True)
class Advice:
    """All candidates, and the best ones among them.

    `local_loss` is advised only if the experiment asks for it: its stages learn greedily, each by a
    loss of its own, so it is not just a faster way to the same result.
    """

    rows: tuple[Row, ...]
    best: Row  # of all
    decoupled: Row | None  # the best of those decoupled by local gradients
    waiting: Row  # the best of those that wait for true gradients
    alone: Row  # all stages in one worker
    #: What holds `best` back: "worker", "cores", "latency", "bandwidth" or "locking".
    limit: str


def advise(setup: Setup, workers: int) -> Advice:
    """Predict every schedule over `workers` workers, and all stages in one.

    Raises `ConfigError` where not even `locked` can be priced, and what measuring raises.
    """
    candidates: dict[str, Candidate] = {}
    rows = [_row(setup, candidates, "locked", 1, "one worker")]
    if workers > 1:
        for schedule in SCHEDULES:
            rows.append(_row(setup, candidates, schedule, workers, schedule))
        rows += _with_lag(setup, candidates, rows, workers)
        rows += _with_fewer(setup, candidates, rows, workers)
    own = setup.chosen.schedule.tag
    known = [
        row
        for row in rows
        if row.prediction and (row.schedule == own or not SCHEDULES[row.schedule].greedy)
    ]
    alone = known[0]
    best = _fastest(known, alone)
    return Advice(
        rows=tuple(rows),
        best=best,
        decoupled=_best_of([row for row in known if SCHEDULES[row.schedule].decoupled]),
        waiting=_fastest([row for row in known if not SCHEDULES[row.schedule].decoupled], alone),
        alone=alone,
        limit=_limit(setup, candidates[best.name], best),
    )


def _row(
    setup: Setup,
    candidates: dict[str, Candidate],
    schedule: str,
    workers: int,
    name: str,
    lag: int | None = None,
) -> Row:
    try:
        candidate = setup.candidate(schedule, workers, lag=lag)
    except ConfigError as error:
        if schedule == "locked":  # then no other schedule can be made either
            raise
        return Row(name, schedule, workers, refused=str(error))
    candidates[name] = candidate
    return Row(name, schedule, workers, _predicted(setup, candidate))


def _predicted(setup: Setup, candidate: Candidate) -> Prediction:
    hosts = min(setup.hosts, len(candidate.design.plan.groups))
    return predict(
        *(candidate.design, candidate.prices),
        cores=setup.cores,
        hosts=hosts,
        events=setup.events,
        batches_max=_BATCHES,
    )


def _with_lag(
    setup: Setup, candidates: dict[str, Candidate], rows: Sequence[Row], workers: int
) -> list[Row]:
    """Return `delayed` with the lag that keeps its workers busy on slow links; none if links are
    fast."""
    plain = next(row for row in rows if row.schedule == "delayed")
    if plain.prediction is None or not is_slow(setup.chosen.links):
        return []
    design = candidates[plain.name].design
    busiest_s = max(plain.prediction.work_s.values())
    depth = max(group.depth for group in design.plan.groups)
    latency_s = seconds(setup.chosen.links.latency, "links.latency")
    slow_hops = min(depth, setup.hosts - 1) if setup.hosts < workers else depth
    lag = depth + math.ceil(2 * slow_hops * latency_s / busiest_s)
    if lag <= depth:
        return []
    return [_row(setup, candidates, "delayed", workers, f"delayed, lag {lag}", lag)]


def _with_fewer(
    setup: Setup, candidates: dict[str, Candidate], rows: Sequence[Row], workers: int
) -> list[Row]:
    """Return `synthetic` over the fewest workers that arithmetic needs for nearly the same rate."""
    if any(row.refused for row in rows if row.schedule == "synthetic"):
        return []
    fewer = setup.fewest("synthetic", workers, _NEAR)
    if fewer in (1, workers):
        return []
    return [_row(setup, candidates, "synthetic", fewer, f"synthetic, {fewer} workers")]


def _fastest(rows: Sequence[Row], fallback: Row) -> Row:
    found = _best_of(rows)
    return fallback if found is None else found


def _best_of(rows: Sequence[Row]) -> Row | None:
    """Return the fastest row, or one that is nearly as fast with fewer workers; None without
    rows."""
    rates = {row.name: row.prediction.samples_per_s for row in rows if row.prediction}
    if not rates:
        return None
    near = [row for row in rows if rates[row.name] >= _NEAR * max(rates.values())]
    return min(near, key=lambda row: (row.workers, -rates[row.name]))


def _limit(setup: Setup, candidate: Candidate, best: Row) -> str:
    found = best.prediction
    assert found is not None
    if found.limit != "waiting":
        return found.limit
    for what, names in (("bandwidth", ["bandwidth"]), ("latency", ["latency", "jitter"])):
        freed = _predicted(setup, setup.without(candidate, *names))
        if freed.samples_per_s > _LIMITING * found.samples_per_s:
            return what
    return "locking"
