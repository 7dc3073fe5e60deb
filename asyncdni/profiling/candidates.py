"""Runs that could be made of an experiment: each schedule on its best split over so many workers,
as they would stand on the hosts given."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import msgspec

from asyncdni import config, experiment
from asyncdni.build import Design, make_design
from asyncdni.conditions import neighbours
from asyncdni.datasets.base import Meta
from asyncdni.errors import ConfigError
from asyncdni.profiling.costs import worker_costs
from asyncdni.profiling.prediction import EVENTS
from asyncdni.profiling.prices import Prices, price
from asyncdni.profiling.splits import best_split
from asyncdni.profiling.wire import Wire

__all__ = ["SCHEDULES", "Candidate", "Scene", "is_slow"]

#: Those that can be compared, the ones first that wait for every update.
SCHEDULES = ("locked", "gpipe", "1f1b", "delayed", "local_loss", "synthetic")
_FAST = config.Link()


@dataclass(frozen=True)
class Candidate:
    """A run that is possible, and what its ops and messages cost here."""

    design: Design
    prices: Prices


@dataclass
class Scene:
    """An experiment, and the machines that it would run on."""

    chosen: config.Experiment
    meta: Meta
    wire: Wire
    cores: int  # of each host
    hosts: int
    batches: int  # to measure ops on
    allow_import: bool = False
    events: int = EVENTS  # of each simulated run, about
    _prices: dict[tuple[bool, int], Prices] = field(default_factory=dict)

    def candidate(self, schedule: str, workers: int, *, lag: int | None = None) -> Candidate:
        """On the split that has the highest ceiling.

        Raises `ConfigError` for what can't be: a schedule that does not fit the network or the
        batches, or has options that can't be priced.
        """
        chosen = self._options(schedule, lag)
        prices = self._priced(self._design(chosen, None))
        design = self._design(chosen, self._split(chosen, prices, workers))
        return Candidate(self._on_hosts(design), prices)

    def without(self, candidate: Candidate, *what: str) -> Candidate:
        """The same on links that lack some of "latency", "jitter", "bandwidth"."""
        fast = {key: getattr(_FAST, key) for key in what}
        links = candidate.design.experiment.links
        between = {
            name: msgspec.structs.replace(link, **fast) for name, link in links.between.items()
        }
        links = msgspec.structs.replace(links, between=between, **fast)
        changed = msgspec.structs.replace(candidate.design.experiment, links=links)
        return Candidate(self._made(changed), candidate.prices)

    def fewest(self, schedule: str, workers: int, share: float) -> int:
        """Of some numbers up to `workers`, the smallest whose ceiling is that share of the full
        number's; the full number where no other split is possible."""
        chosen = self._options(schedule, None)
        prices = self._priced(self._design(chosen, None))
        numbers = sorted({max(1, math.ceil(workers * part / 4)) for part in (1, 2, 3)} | {2})
        least_s = self._period(chosen, prices, workers) / share
        for number in numbers:
            if number < workers and self._period(chosen, prices, number) <= least_s:
                return number
        return workers

    def _period(self, chosen: config.Experiment, prices: Prices, workers: int) -> float:
        """Seconds a batch, as arithmetic allows; for ever where such a split is not possible."""
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
        """The file's own options of that schedule; defaults where the file has another."""
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
        """Schedules do the same ops, but for `local_loss`, and on microbatches."""
        schedule = design.experiment.schedule
        local = isinstance(schedule, config.LocalLoss)
        key = local, design.plan.batch_size
        if key not in self._prices:
            if not local and design.plan.microbatches == 1:
                design = self._design(self._options("synthetic", None), None)
            self._prices[key] = price(design, self.wire, self.batches)
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
        """Links between workers of one host are as fast as they are here, unless they are named."""
        chosen, plan = design.experiment, design.plan
        if self.hosts >= len(plan.groups) or not is_slow(chosen.links):
            return design
        links = chosen.links
        far = config.Link(latency=links.latency, jitter=links.jitter, bandwidth=links.bandwidth)
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
    """Anything is asked of links that they would not have by themselves."""
    own = config.Link(latency=links.latency, jitter=links.jitter, bandwidth=links.bandwidth)
    return own != _FAST or bool(links.between)
