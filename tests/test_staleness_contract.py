"""The bound on lag is never exceeded: under random delays, on every network, link by link, at every
policy. (`Worker.check` asserts it after each event of every simulated run; here from outside.)"""

from __future__ import annotations

from typing import Any

import networks
import pytest
from each import each
from random_runs import skip_connections

from asyncdni.core.events import Finish
from asyncdni.core.flights import Flights, Lag
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.errors import AsyncDNIError
from asyncdni.plan.build import Design

NETWORKS = {
    "chain": networks.chain(4),
    "fork": networks.fork(),
    "two losses": networks.diamond(),
    "skip connections": skip_connections(),
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "delayed": {"name": "delayed"},
    "synthetic": {"name": "synthetic"},
    "correct": {"name": "synthetic", "correct": True, "fit_every": 2},
    "mix": {"name": "synthetic", "mix": 0.5},
    "mix 1": {"name": "synthetic", "mix": 1.0},
}
each_schedule = each("schedule", SCHEDULES.values())
each_network = each("stages", NETWORKS.values())


def run(design: Design, seed: int) -> Result:
    """On slow and uneven links."""
    links = Links(latency_us=3000.0, jitter=0.9)
    result = simulate(design, seed=seed, maths=False, costs=Costs(jitter=0.9), links=links)
    assert isinstance(result.end, Finish)
    return result


@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 3), marks=pytest.mark.long)])
@each_network
@each_schedule
@each("lag", [0, 1, 4])
def test_no_lag_exceeds_the_bound_and_the_counters_tell_the_greatest(
    stages: networks.Tables, schedule: dict[str, Any], lag: int, seeds: range
) -> None:
    for seed in seeds:
        design = networks.design(stages, schedule, run={"epochs": 3}, staleness={"lag": lag})
        result = run(design, seed)
        # Links are so slow that some stage runs up to the bound, and none beyond it.
        assert max(own["lag_max"] or 0 for own in result.counters.values()) == lag


@pytest.mark.parametrize("at_bound", ["wait", "drop"])
def test_at_the_bound_a_stage_waits_or_gives_the_oldest_batch_up(at_bound: str) -> None:
    design = networks.design(
        networks.chain(4),
        {"name": "synthetic"},
        run={"epochs": 6, "evaluate_every": 6.0},
        staleness={"lag": 2, "at_bound": at_bound},
    )
    result = run(design, seed=1)
    dropped = {name: own["dropped"] for name, own in result.counters.items()}
    if at_bound == "wait":
        assert set(dropped.values()) == {0}
        # every batch is fitted to
        for name in ("s0", "s1", "s2"):
            fits = [batch for letter, batch, *_ in result.ops[name] if letter == "T"]
            assert fits == list(range(design.plan.batches))
    else:
        assert all(dropped[name] for name in ("s0", "s1", "s2")) and not dropped["top"]
    for own in result.counters.values():
        assert own["updates"] == own["batches"] == design.plan.batches


def test_waiting_costs_time_and_dropping_does_not() -> None:
    """30 ms there and back, 5 batches at most: a stage that waits is held up by its links."""
    times = {}
    for at_bound in ("wait", "drop"):
        design = networks.design(
            networks.chain(3),
            {"name": "synthetic"},
            run={"epochs": 12, "evaluate_every": 12.0},
            staleness={"lag": 4, "at_bound": at_bound},
            limits={"window": 256},
        )
        links = Links(latency_us=15_000.0)
        times[at_bound] = simulate(design, seed=0, maths=False, links=links).train_s
    assert times["wait"] > 2 * times["drop"]


@pytest.mark.parametrize("name", ["delayed", "synthetic"])
@pytest.mark.parametrize("bounds", [{"root->a": 1}, {"root->a": 0, "root->c": 3}, {}])
def test_a_named_link_has_a_bound_of_its_own(
    name: str, bounds: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes back to the root takes 4 ms, 5 ms or 6 ms; the lag of each link is told apart."""
    greatest: dict[str, int] = {}
    honest = Lag.forwarded

    def forwarded(lag: Lag, batch: int, flights: Flights) -> None:
        honest(lag, batch, flights)
        if "a" in lag.greatest:
            greatest.update(lag.greatest)

    monkeypatch.setattr(Lag, "forwarded", forwarded)
    design = networks.design(
        networks.fork(),
        {"name": name},
        run={"epochs": 12, "evaluate_every": 12.0},
        staleness={"lag": 6, "links": bounds},
        limits={"window": 20},
    )
    between = {("a", "root"): 4000.0, ("b", "root"): 5000.0, ("c", "root"): 6000.0}
    links = Links(latency_us=1.0, between=between)
    result = simulate(design, seed=0, maths=False, links=links)
    assert isinstance(result.end, Finish)
    allowed = {to: bounds.get(f"root->{to}", 6) for to in "abc"}
    assert all(greatest[to] <= bound for to, bound in allowed.items())
    assert any(greatest[to] == bound for to, bound in allowed.items())
    assert result.counters["root"]["lag_max"] == max(greatest.values())


def test_a_worker_that_is_held_up_by_nothing_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: whoever forwards whatever is there breaks the invariant that is checked after
    each event."""
    honest = Lag.overdue

    def overdue(lag: Lag, batch: int, flights: Flights) -> int | None:
        return honest(lag, batch, flights) if batch == flights.last_forwarded else None

    monkeypatch.setattr(Lag, "overdue", overdue)
    design = networks.design(
        networks.chain(3), {"name": "delayed"}, run={"epochs": 3}, staleness={"lag": 1}
    )
    with pytest.raises(AsyncDNIError, match=r"seed 0.*batch 2 is too far ahead of batch 0"):
        run(design, seed=0)
