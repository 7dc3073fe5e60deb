"""Predict how fast a run would be: simulate the real logic of all workers with the times that ops
and messages take on this machine.

Times are measured once per network (`price`). They hold for every split of it, for every schedule
that does the same ops on batches of the same size, and for any links.

A run is simulated for a limited number of batches. Its rate is the rate of forwards at the loss,
once the pipeline has had time to fill. A run of fewer batches than workers would overestimate it,
so two bounds are applied on top: per second of the run, a worker does no more than one CPU second
of work, and a host no more than one per core.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from asyncdni import config
from asyncdni.drivers.virtual.costs import SENDING, Burden, Costs, Hop, Hosts, Links, Span
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.errors import AsyncDNIError
from asyncdni.messages import DATA
from asyncdni.network import Network, Node
from asyncdni.plan.build import Design
from asyncdni.profiling.measurement import Measurement, Wire, measure_both

__all__ = [
    "BATCHES_MAX",
    "EVENTS",
    "Prediction",
    "Prices",
    "Seconds",
    "burden_of",
    "costs_of",
    "likely_range",
    "links_of",
    "op_costs",
    "predict",
    "price",
    "producers_of",
    "worker_costs",
]

# --- costs of a worker ---------------------------------------------------------------------------

#: Seconds of one execution of each op, by declared stage and op.
Seconds = Mapping[str, Mapping[str, float]]


def worker_costs(
    members: Sequence[Node], seconds: Seconds, schedule: config.Schedule
) -> dict[str, float] | None:
    """Return the seconds per training batch of a worker with the stages `members`, by the letter of
    the op, as `report.breakdown.ceiling` takes them.

    An op that is done on every m-th batch counts 1/m, and so does the update of m
    (micro)batches.
    None if there can be no such worker, as it would send on the activations of two stages.
    """
    inside = {node.name for node in members}
    exits = [node.name for node in members if set(node.consumers) - inside]
    if len(exits) > 1:
        return None
    price = _Price(members, inside, seconds)
    costs = {"F": price.every("F"), "U": price.every("U") / schedule.per_update}
    costs["R"] = sum(seconds[name].get("R", 0.0) for name in inside)
    work = schedule.work(exits=bool(exits), relays=bool(price.relays))
    ways: dict[str, Callable[[], float]] = {
        "B": lambda: price.backward(sending=work.sending),
        "b": price.relay,
        "W": price.learning,
        "C": lambda: price.backward(sending=0.0),
        "P": lambda: seconds[exits[0]]["P"],
        "T": lambda: seconds[exits[0]]["T"],
    }
    costs |= dict.fromkeys(work.ops, 0.0)  # what is never done was not measured either
    return costs | {letter: share * ways[letter]() for letter, share in work.ops.items() if share}


def op_costs(members: Sequence[Node], seconds: Seconds) -> dict[str, float]:
    """Return the seconds of one execution of each op of a worker with the stages `members`, by its
    letter or SENDING.

    Ops whose parts have not all been measured are left out.
    """
    inside = {node.name for node in members}
    price = _Price(members, inside, seconds)
    ways: dict[str, Callable[[], float]] = {
        "F": lambda: price.every("F"),
        "U": lambda: price.every("U"),
        "B": lambda: price.backward(sending=0.0),
        SENDING: lambda: price.backward(sending=1.0),
        "b": price.relay,
        "W": price.learning,
        "C": lambda: price.backward(sending=0.0),
    }
    exits = [node.name for node in members if set(node.consumers) - inside]
    for letter in ("P", "T"):
        ways[letter] = lambda letter=letter: seconds[exits[0]][letter]  # type: ignore[misc]
    found = {"R": sum(seconds[name].get("R", 0.0) for name in inside)}
    for letter, way in ways.items():
        try:
            found[letter] = way()
        except (KeyError, IndexError, StopIteration):
            continue
    return found


class _Price:
    """The costs of one worker's ops: sums over its stages, `members`.

    Stages in one worker cost as much as in workers of their own, except at the edges between them:
    there is no generator there (no P, no T), the true gradient comes at once (no b), and the
    backward of the consumer always computes the gradient of its inputs. At the first and last
    stages the schedule decides, as it does for a worker of one stage.

    If no whole backward with the gradient of the inputs was measured, its halves b and W are added
    up instead. They take a little longer: a batch norm does some of its sums in both.
    """

    def __init__(self, members: Sequence[Node], inside: set[str], seconds: Seconds) -> None:
        self._members = members
        self._inside = inside
        self._seconds = seconds
        #: The stages through which a gradient reaches producers in other workers.
        self.relays: set[str] = set()
        for node in members:
            if self._outside(node) or self.relays.intersection(node.inputs):
                self.relays.add(node.name)

    def every(self, letter: str) -> float:
        return sum(self._seconds[node.name][letter] for node in self._members)

    def backward(self, *, sending: float) -> float:
        """Return the cost of a backward that learns from a gradient; on the share `sending` of the
        batches, producers in other workers get a gradient too."""
        total = 0.0
        for node in self._members:
            share = sending if self._outside(node) else 0.0
            if self._inside.intersection(node.inputs):
                share = 1.0
            if share > 0.0:
                total += share * self._sending(node)
            if share < 1.0:
                total += (1.0 - share) * self._learning_alone(node)
        return total

    def relay(self) -> float:
        """Return the cost of passing a true gradient on to producers in other workers, through all
        stages on its path."""
        on_the_way = [node.name for node in self._members if node.name in self.relays]
        return sum(self._seconds[name]["b"] for name in on_the_way)

    def learning(self) -> float:
        """Return the cost of the learning left after `relay`: a backward of all stages if some were
        not on the path."""
        if len(self.relays) < len(self._members):  # as in `NumpyStage.learn`
            return self.backward(sending=0.0)
        return self.every("W")

    def _outside(self, node: Node) -> bool:
        return bool(set(node.inputs) - self._inside - {DATA})

    def _sending(self, node: Node) -> float:
        ops = self._seconds[node.name]
        return ops[SENDING] if SENDING in ops else ops["b"] + ops["W"]

    def _learning_alone(self, node: Node) -> float:
        """Return the cost of learning without sending: the first of these ops that was measured;
        all take nearly as long."""
        ops = self._seconds[node.name]
        return next(ops[letter] for letter in ("B", "C", "W") if letter in ops)


def producers_of(network: Network, split: Sequence[Sequence[Node]]) -> list[list[int]]:
    """Return, for each worker, the indices of the workers whose activations it takes."""
    home = {node.name: index for index, members in enumerate(split) for node in members}
    assert len(home) == len(network.nodes)
    return [
        sorted({home[name] for node in members for name in node.inputs if name != DATA} - {index})
        for index, members in enumerate(split)
    ]


# --- prices --------------------------------------------------------------------------------------

_US = 1e6
#: The ratio of the CPU time that a process spends outside its ops to what is measured here for
#: logic and messages one by one: meters, buffers and process switches come on top. It was found by
#: comparing predicted with real runs of two to eight workers (benchmarks/scale).
_WHOLE = 1.6
#: With cold caches, 1 / 4 of the batches are measured: a batch takes far longer and varies less.
_COLD_SHARE = 4


@dataclass(frozen=True)
class Prices:
    """The costs of ops, messages and logic on this machine, in seconds and bytes. Each pair is
    (warm caches, cold caches)."""

    warm: Seconds  # with warm caches
    cold: Seconds  # with cold caches
    # the cost of handling one event in a worker's logic, then checking for messages
    event_s: tuple[float, float]
    wire: Wire
    activation_bytes: Mapping[str, int]  # by the declared stage that sends it, or DATA
    gradient_bytes: Mapping[str, int]  # by the declared stage that gets it


def price(design: Design, wire: Wire, batches: int, limit_s: float = math.inf) -> Prices:
    """Measure the ops of `design` under its schedule and `locked`, on about `batches` batches.

    Measuring with warm caches, and with cold ones, takes about `limit_s` seconds at most, with
    fewer batches. Raises what `measurement.measure` raises.
    """
    warm, cold = measure_both(design, batches, -(-batches // _COLD_SHARE), limit_s)
    sizes: dict[str, dict[str, int]] = {"activation": {}, "gradient": {}}
    for edge in warm.edges:
        stage = edge.sender if edge.kind == "activation" else edge.to
        sizes[edge.kind][stage] = edge.tensor_bytes
    return Prices(
        warm=_medians(warm),
        cold=_medians(cold),
        event_s=(
            warm.event.median_s + wire.look_s[0],
            cold.event.median_s + wire.look_s[1],
        ),
        wire=wire,
        activation_bytes=sizes["activation"],
        gradient_bytes=sizes["gradient"],
    )


def _medians(measured: Measurement) -> dict[str, dict[str, float]]:
    return {
        stage: {letter: one.median_s for letter, one in ops.items()}
        for stage, ops in measured.times.items()
    }


# --- inputs of the simulator ---------------------------------------------------------------------


def costs_of(design: Design, warm: Seconds, cold: Seconds) -> Costs:
    """Return the cost of each op of each worker, from those of each stage with warm and with cold
    caches. Work that is no part of training, such as saving, costs nothing."""
    measured: dict[str, dict[str, Span]] = {}
    for group in design.plan.groups:
        own, at_worst = (op_costs(group.members, one) for one in (warm, cold))
        spans = {letter: _span(seconds, at_worst[letter]) for letter, seconds in own.items()}
        if group.index == design.plan.host:
            home = _reader(warm)
            spans["R"] = _span(warm[home]["R"], cold[home]["R"])
        measured[group.name] = spans
    return Costs(measured=measured)


def burden_of(design: Design, prices: Prices) -> Burden:
    """Return the CPU time of the logic and of each link's messages."""
    wire = prices.wire
    tensors = {link: _hop(wire, size) for link, size in _tensors(design, prices).items()}
    event = _span(*(_WHOLE * one for one in prices.event_s))
    return Burden(event=event, message=_hop(wire, 0), tensors=tensors)


def _hop(wire: Wire, size: int) -> Hop:
    warm, cold = wire.warm_hop(size), wire.cold_hop(size)
    return Hop(
        send=_span(_WHOLE * (warm.send_s + warm.move_s), _WHOLE * (cold.send_s + cold.move_s)),
        receive=_span(_WHOLE * warm.receive_s, _WHOLE * cold.receive_s),
    )


def links_of(design: Design, prices: Prices) -> Links:
    """Return the latency of each link with cold caches, beyond the CPU time of the workers that
    send and receive. The delays of the experiment's [links] come on top."""
    between = {link: _latency(prices, size) for link, size in _tensors(design, prices).items()}
    small_us = _latency(prices, 0)
    return Links(latency_us=small_us, control_latency_us=small_us, between=between)


def _latency(prices: Prices, size: int) -> float:
    """Return the microseconds from the event that makes the sender's logic send a message until it
    arrives."""
    hop = prices.wire.cold_hop(size)
    return (prices.event_s[1] + hop.latency_s) * _US


def _tensors(design: Design, prices: Prices) -> dict[tuple[str, str], int]:
    """Return the bytes of the tensors of one message by (sender, receiver): activations, gradients,
    and the data that their host sends."""
    found: dict[tuple[str, str], int] = {}
    host = design.plan.groups[design.plan.host].name
    for group in design.plan.groups:
        for to in group.consumers:
            assert group.exit is not None
            found[group.name, to] = prices.activation_bytes[group.exit]
            found[to, group.name] = prices.gradient_bytes.get(group.exit, 0)
    for to in design.plan.feeds:
        found.setdefault((host, to), prices.activation_bytes[DATA])
    return found


def _reader(seconds: Seconds) -> str:
    """Return the stage that read the data when ops were measured, with each stage in a worker of
    its own."""
    return next(stage for stage, ops in seconds.items() if "R" in ops)


def _span(warm_s: float, cold_s: float) -> Span:
    """Return (warm, cold) in microseconds. Measurements vary, so cold is raised to warm if it is
    below."""
    return warm_s * _US, max(warm_s, cold_s) * _US


# --- prediction ----------------------------------------------------------------------------------

#: About how many events one simulated run has; it takes a second or two.
EVENTS = 60_000
_EVENTS_A_BATCH = 8  # of each worker
#: The most updates to simulate. A rate settles within a few times as many as there are workers.
BATCHES_MAX = 320
_BATCHES_MIN = 5
#: `silence_s` of simulated runs. No worker dies in them, so signs of life would only take time.
_SILENCE_S = 1e5
#: A worker or host that is busy for at least this share of the time limits the run.
_FULL = 0.9


@dataclass(frozen=True)
class Prediction:
    """The predicted figures of training, without start, evaluations and end. Mappings are by
    worker."""

    schedule: str
    split: tuple[int, ...]  # stages of each worker
    samples_per_s: float
    idle: Mapping[str, float]  # share of the time without work
    work_s: Mapping[str, float]  # CPU seconds per batch, messages and logic included
    staleness: Mapping[str, float | None]  # mean, in updates
    staleness_max: Mapping[str, int | None]
    #: What limits the rate: "worker", "cores", or "waiting" where neither is busy all the time.
    limit: str
    slowest: str  # the worker with the most work


def predict(
    design: Design,
    prices: Prices,
    *,
    cores: int,
    hosts: int = 1,
    events: int = EVENTS,
    batches_max: int = BATCHES_MAX,
) -> Prediction:
    """Predict the run of `design`, its slow links included, on `hosts` machines of `cores` cores
    each. About `events` events are simulated, of at most `batches_max` updates.

    `prices` must be of the same network, under any split, and of batches of the size that flows in
    `design`. Raises `AsyncDNIError` if the simulated run fails.
    """
    plan = design.plan
    units = _units(design, events, batches_max)
    shortened = _shortened(design, units)
    machines = Hosts(cores, hosts, _pins(design, cores), burden_of(design, prices))
    result = simulate(
        shortened,
        seed=design.experiment.run.seed,
        costs=costs_of(design, prices.warm, prices.cold),
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
        schedule=design.experiment.schedule.tag,
        split=tuple(len(group.members) for group in plan.groups),
        samples_per_s=_samples(design) / period_s,
        idle={name: max(0.0, 1.0 - work_s[name] / period_s) for name in names},
        work_s=work_s,
        staleness={name: counters[name]["staleness_mean"] for name in names},
        staleness_max={name: _whole(counters[name]["staleness_max"]) for name in names},
        limit=_limit(period_s, work_s, max(of_hosts) / cores),
        slowest=max(work_s, key=lambda name: work_s[name]),
    )


#: How much slower and faster real runs were than predicted, in the 24 settings of benchmarks/scale:
#: 2 to 8 workers on two cores of a quiet machine.
_SLOWEST, _FASTEST = 0.80, 1.22
#: On a machine busier than that ranges would be endless.
_OTHERS_MAX = 0.9


def likely_range(samples_per_s: float, others: float | None) -> tuple[float, float]:
    """Return the samples/s, from low to high, between which a predicted run will be.

    `others` is the share of the cores' time, from 0 to 1, that other programs took while costs
    were measured; None: unknown, and taken to be 0. The range is as wide as the errors on a quiet
    machine were. Others widen it to both sides: what was measured beside them may have taken longer
    than it will, and they may take as much time from the run.
    """
    left = 1.0 - min(_OTHERS_MAX, others or 0.0)
    return _SLOWEST * left * samples_per_s, _FASTEST / left * samples_per_s


def _whole(value: float | int | None) -> int | None:
    return None if value is None else int(value)


def _samples(design: Design) -> int:
    """Return the samples of a whole batch."""
    return min(design.experiment.data.batch_size, design.meta.train_samples)


# --- the simulated run ---------------------------------------------------------------------------


def _units(design: Design, events: int, batches_max: int) -> int:
    """Return how many updates to simulate, with all of their (micro)batches."""
    plan = design.plan
    each = _EVENTS_A_BATCH * len(plan.groups) * plan.per_update
    return max(_BATCHES_MIN, min(batches_max, events // each))


def _shortened(design: Design, units: int) -> Design:
    """Return the design of a run of `units` whole batches in one epoch, with schedules as they are
    once training has settled."""
    plan, chosen = design.plan, design.experiment
    batches = units * plan.per_update
    plan = replace(
        plan,
        groups=tuple(replace(one, schedule=one.schedule.settled()) for one in plan.groups),
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
        experiment=msgspec.structs.replace(
            chosen, schedule=chosen.schedule.settled(), limits=limits
        ),
        plan=plan,
        meta=meta,
    )


def _pins(design: Design, cores: int) -> dict[str, int]:
    """Return the core of each pinned worker, chosen as `drivers.real.machine` does."""
    run, groups = design.experiment.run, design.plan.groups
    if isinstance(run.pin, list):
        return {group.name: run.pin[group.index] % cores for group in groups}
    alone = len(groups) == 1 or run.threads > 1
    if run.pin == "none" or alone or not design.experiment.schedule.locks:
        return {}
    return {group.name: group.index % cores for group in groups}


# --- its figures ---------------------------------------------------------------------------------


def _period(design: Design, result: Result) -> float:
    """Return the seconds per batch at the slowest loss, without the first quarter of the
    batches."""
    losses = [group.name for group in design.plan.groups if group.has_loss]
    return max(_stream(result.ops[name], design.plan.per_update) for name in losses)


def _stream(ops: Sequence[tuple[str, int, float, float]], per_update: int) -> float:
    ends = [end for letter, batch, _, end in ops if letter == "F" and batch % per_update == 0]
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
