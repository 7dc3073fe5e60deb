"""From measured stages to what the simulator takes for granted."""

from __future__ import annotations

from typing import Any

import networks
import pytest

from asyncdni.drivers.virtual.costs import SENDING
from asyncdni.messages import DATA
from asyncdni.profiling.measurement import Hop, Wire
from asyncdni.profiling.prediction import Prices, burden_of, costs_of, links_of, op_costs, price

SYNTHETIC = {"name": "synthetic", "generator": {"kind": "linear"}, "fit_every": 4}
OPS = {"F": 1.0, "P": 10.0, "B": 100.0, SENDING: 200.0, "b": 1e3, "W": 1e4, "U": 1e5, "T": 1e6}
WIRE = Wire(
    (0, 100),
    (Hop(1e-6, 2e-6, 3e-6, 4e-6), Hop(10e-6, 20e-6, 30e-6, 40e-6)),
    (Hop(2e-6, 4e-6, 6e-6, 8e-6), Hop(20e-6, 40e-6, 60e-6, 80e-6)),
    (0.0, 0.0),
)


def known(stages: list[str], **changes: Any) -> Prices:
    seconds = {name: {**OPS, **({"R": 7.0} if name == stages[0] else {})} for name in stages}
    doubled = {name: {key: 2 * one for key, one in ops.items()} for name, ops in seconds.items()}
    sizes = dict.fromkeys([*stages, DATA], 100)
    fields = {"warm": seconds, "cold": doubled, "event_s": (1e-6, 2e-6), "wire": WIRE}
    return Prices(**{**fields, "activation_bytes": sizes, "gradient_bytes": sizes, **changes})


def test_a_worker_of_two_stages_does_both_and_has_one_generator() -> None:
    made = networks.design(networks.chain(3), SYNTHETIC, run={"split": [2, 1]})
    found = op_costs(made.plan.groups[0].members, known(["s0", "s1", "top"]).warm)
    assert found["F"] == 2.0 and found["U"] == 2e5 and found["R"] == 7.0
    assert found["P"] == 10.0 and found["T"] == 1e6, "at the exit alone"
    assert found["B"] == found[SENDING] == 100.0 + 200.0, "the second sends to the first"


def test_ops_that_were_not_measured_are_left_out() -> None:
    made = networks.design(networks.chain(2), {"name": "locked"})
    found = op_costs(made.plan.groups[0].members, {"s0": {"F": 1.0, "B": 2.0, "U": 3.0}})
    whole = dict.fromkeys(["B", SENDING, "C", "W"], 2.0)
    assert found == {"R": 0.0, "F": 1.0, "U": 3.0, "b": 0.0, **whole}, "no P, no T"


def test_costs_are_microseconds_warm_and_cold_by_worker() -> None:
    made = networks.design(networks.chain(3), SYNTHETIC)
    prices = known(["s0", "s1", "top"])
    found = costs_of(made, prices.warm, prices.cold).measured
    assert found["s1"]["F"] == (1e6, 2e6)
    assert found["s0"]["R"] == (7e6, 14e6)
    assert found["s1"]["R"] == (0.0, 0.0)


def test_what_is_no_slower_in_the_cold_is_no_quicker_either() -> None:
    made = networks.design(networks.chain(2), SYNTHETIC)
    prices = known(["s0", "top"])
    assert costs_of(made, prices.cold, prices.warm).measured["top"]["F"] == (2e6, 2e6)


def test_messages_cost_by_their_size_at_both_ends_of_each_link() -> None:
    made = networks.design(networks.chain(3), SYNTHETIC)
    prices = known(["s0", "s1", "top"])
    burden, links = burden_of(made, prices), links_of(made, prices)
    assert burden.tensors.keys() == {("s0", "s1"), ("s1", "s0"), ("s1", "top"), ("top", "s1")}
    hop, small = burden.tensors["s0", "s1"], burden.message
    assert hop.send == pytest.approx((10 * small.send[0], 10 * small.send[1]))
    assert hop.receive[1] == pytest.approx(2 * hop.receive[0])
    assert links.between["s1", "top"] == pytest.approx(80.0 + 2.0), "on the way, and decided"
    assert links.latency_us == pytest.approx(8.0 + 2.0)


def test_the_data_is_sent_to_others_that_read_it() -> None:
    made = networks.design(networks.several_readers(), {"name": "locked"})
    names = [node.name for node in made.network.nodes]
    host = made.plan.groups[made.plan.host].name
    tensors = burden_of(made, known(names)).tensors
    assert {(host, to) for to in made.plan.feeds} <= tensors.keys()


def test_a_real_network_is_priced() -> None:
    made = networks.design(networks.chain(3), SYNTHETIC)
    found = price(made, WIRE, 8)
    assert found.warm.keys() == found.cold.keys() == {"s0", "s1", "top"}
    assert found.warm["s1"].keys() == {"F", "P", "B", "U", "b", "W", "T"}
    assert all(one > 0 for ops in found.cold.values() for one in ops.values())
    assert found.activation_bytes["s0"] > found.gradient_bytes["s0"] > 0
    assert min(found.event_s) > 0
