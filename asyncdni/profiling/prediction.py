"""How fast a run would be, which nobody has made yet: the real logic of all workers, simulated with
the prices of this machine's ops and messages.

A run is simulated for as many batches as the time for it allows. Its rate is that between two
forwards at the loss, once the pipe has had time to fill. What fewer batches than workers can't show
is added: no worker and no host does more than one CPU second a second and core.
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
from asyncdni.profiling.measurement import Measurement, measure
from asyncdni.profiling.wire import Wire

__all__ = [
    "EVENTS",
    "Prediction",
    "Prices",
    "Seconds",
    "burden_of",
    "costs_of",
    "links_of",
    "op_costs",
    "predict",
    "price",
    "producers_of",
    "worker_costs",
]

# --- costs ---------------------------------------------------------------------------------------
#
# What a worker of several neighbouring stages spends on a batch, from what each stage spends.
#
# Fused stages cost what they cost apart, but for the edge between them: no generator stands there
# (no P, no T), the true gradient comes down at once (no b), and the upper stage's backward always
# computes the gradient of its inputs. At the ends of the fused stage all is as the schedule says.
#
# Where no whole backward with the gradient of the inputs was measured, its halves b and W stand for
# it. They take a little longer: a batch norm does some of its sums in both.

#: By declared stage and op: seconds on a batch for which the op is done.
Seconds = Mapping[str, Mapping[str, float]]


def worker_costs(
    members: Sequence[Node], seconds: Seconds, schedule: config.Schedule
) -> dict[str, float] | None:
    """Seconds per training batch by the letter of the op, as `report.breakdown.ceiling` takes them.

    An op that is done on every m-th batch counts 1/m, as does the update of m microbatches. None
    where such a worker can't be: it would send on the activations of two stages.
    """
    inside = {node.name for node in members}
    exits = [node.name for node in members if set(node.consumers) - inside]
    if len(exits) > 1:
        return None
    price = _Price(members, inside, seconds)
    costs = {"F": price.every("F"), "U": price.every("U") / schedule.microbatches}
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
    return costs | {letter: share * ways[letter]() for letter, share in work.ops.items()}


def op_costs(members: Sequence[Node], seconds: Seconds) -> dict[str, float]:
    """Seconds of each op of such a worker, by its letter or SENDING, each time that it is done.

    Ops whose parts have not all been measured are left out."""
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
    """Sums over the members of one worker."""

    def __init__(self, members: Sequence[Node], inside: set[str], seconds: Seconds) -> None:
        self._members = members
        self._inside = inside
        self._seconds = seconds
        #: Through which a gradient reaches producers outside.
        self.relays: set[str] = set()
        for node in members:
            if self._outside(node) or self.relays.intersection(node.inputs):
                self.relays.add(node.name)

    def every(self, letter: str) -> float:
        return sum(self._seconds[node.name][letter] for node in self._members)

    def backward(self, *, sending: float) -> float:
        """Learning from a gradient; on that share of the batches producers outside get one too."""
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
        """Passing a true gradient on to producers outside, through all stages on its way."""
        on_the_way = [node.name for node in self._members if node.name in self.relays]
        return sum(self._seconds[name]["b"] for name in on_the_way)

    def learning(self) -> float:
        """What is left to learn after that; a backward of all where some were not on its way."""
        if len(self.relays) < len(self._members):  # as in `NumpyStage.learn`
            return self.backward(sending=0.0)
        return self.every("W")

    def _outside(self, node: Node) -> bool:
        return bool(set(node.inputs) - self._inside - {DATA})

    def _sending(self, node: Node) -> float:
        ops = self._seconds[node.name]
        return ops[SENDING] if SENDING in ops else ops["b"] + ops["W"]

    def _learning_alone(self, node: Node) -> float:
        """Of the ops that were measured; the later ones take nearly as long."""
        ops = self._seconds[node.name]
        return next(ops[letter] for letter in ("B", "C", "W") if letter in ops)


def producers_of(network: Network, split: Sequence[Sequence[Node]]) -> list[list[int]]:
    """For each worker, the indices of those whose activations it takes."""
    home = {node.name: index for index, members in enumerate(split) for node in members}
    assert len(home) == len(network.nodes)
    return [
        sorted({home[name] for node in members for name in node.inputs if name != DATA} - {index})
        for index, members in enumerate(split)
    ]


# --- prices --------------------------------------------------------------------------------------
#
# What everything costs a run on this machine: ops, messages, logic; warm and cold.
#
# Measured once for a network, and good for every split of it, every schedule that does the same ops
# on batches of the same size, and any links: `Prices` give what the simulator takes for granted.

_US = 1e6
#: The CPU time of whole processes beside their ops is so many times that of what is measured of it
#: here, logic and messages one by one: meters, buffers to give back, changes of process. Found
#: once, by comparing predicted with real runs of two to eight workers (see benchmarks/scale).
_WHOLE = 1.6
#: Of the measurement with cold caches, which takes far longer a batch and varies less.
_COLD_SHARE = 4


@dataclass(frozen=True)
class Prices:
    """Seconds and bytes. Each pair is (warm, cold)."""

    warm: Seconds  # by declared stage and letter of the op
    cold: Seconds
    event_s: tuple[float, float]  # a worker's logic, and the look for messages after it
    wire: Wire
    activation_bytes: Mapping[str, int]  # by declared stage that sends it, or DATA
    gradient_bytes: Mapping[str, int]  # by declared stage that gets it


def price(design: Design, wire: Wire, batches: int) -> Prices:
    """Measure the ops of `design` under its schedule and `locked`, on some `batches` batches.

    Raises what `measurement.measure` raises."""
    warm = measure(design, batches)
    cold = measure(design, -(-batches // _COLD_SHARE), cold=True)
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


# --- what the simulator takes for granted --------------------------------------------------------


def costs_of(design: Design, prices: Prices) -> Costs:
    """Of each op of each worker. Reading, saving and leaving are no part of training."""
    measured: dict[str, dict[str, Span]] = {}
    for group in design.plan.groups:
        warm, cold = (op_costs(group.members, one) for one in (prices.warm, prices.cold))
        spans = {letter: _span(seconds, cold[letter]) for letter, seconds in warm.items()}
        if group.index == design.plan.host:
            home = _reader(prices)
            spans["R"] = _span(prices.warm[home]["R"], prices.cold[home]["R"])
        measured[group.name] = spans
    return Costs(measured=measured)


def burden_of(design: Design, prices: Prices) -> Burden:
    """Of the logic and of each link's messages."""
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
    """How long a message takes beside the work of those that move it, caches being cold.

    The slow links of the experiment come on top."""
    between = {link: _latency(prices, size) for link, size in _tensors(design, prices).items()}
    small_us = _latency(prices, 0)
    return Links(latency_us=small_us, control_latency_us=small_us, between=between)


def _latency(prices: Prices, size: int) -> float:
    """Microseconds: the sender's logic decides to send it, and it does."""
    hop = prices.wire.cold_hop(size)
    return (prices.event_s[1] + hop.latency_s) * _US


def _tensors(design: Design, prices: Prices) -> dict[tuple[str, str], int]:
    """Bytes of what one worker sends another; of the data's reader, its activations."""
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


def _reader(prices: Prices) -> str:
    """The stage that read the data when each was a worker of its own."""
    return next(stage for stage, ops in prices.warm.items() if "R" in ops)


def _span(warm_s: float, cold_s: float) -> Span:
    """In microseconds. What varies is not let make anything quicker in the cold."""
    return warm_s * _US, max(warm_s, cold_s) * _US


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
    """As `drivers.real.machine` does it."""
    run, groups = design.experiment.run, design.plan.groups
    if isinstance(run.pin, list):
        return {group.name: run.pin[group.index] % cores for group in groups}
    alone = len(groups) == 1 or run.threads > 1
    if run.pin == "none" or alone or not design.experiment.schedule.locks:
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
