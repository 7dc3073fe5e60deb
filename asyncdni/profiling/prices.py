"""What everything costs a run on this machine: ops, messages, logic; warm and cold.

Measured once for a network, and good for every split of it, every schedule that does the same ops
on batches of the same size, and any links: `Prices` give what the simulator takes for granted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from asyncdni.build import Design
from asyncdni.messages import DATA
from asyncdni.profiling.costs import Seconds, op_costs
from asyncdni.profiling.measurement import Measurement, measure
from asyncdni.profiling.wire import Wire
from asyncdni.simulator import Burden, Costs, Hop, Links, Span

__all__ = ["Prices", "burden_of", "costs_of", "links_of", "price"]

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
