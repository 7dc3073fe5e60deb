"""Workers that share the cores of a host: turns, waiting, caches, and what is beside the ops."""

from __future__ import annotations

from typing import Any

import networks
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncdni.core.events import Compute, Computed, Received, Send
from asyncdni.delays import Slow
from asyncdni.drivers.virtual.clock import Agenda
from asyncdni.drivers.virtual.costs import Burden, Cores, Costs, Hop, Hosts, Links, Pace
from asyncdni.drivers.virtual.simulation import simulate
from asyncdni.messages import Activation, Credit
from asyncdni.schedules.base import Op, OpKind

FORWARD = Op(OpKind.FORWARD, 0)
QUICK = Hosts(cores=1, slice_us=1000.0, steals_us=500.0, forgets_us=100.0, fades_us=1e12)


class Machine:
    """Cores with workers a, b, c, …; times in microseconds."""

    def __init__(self, hosts: Hosts, *names: str, **costs: tuple[float, float]) -> None:
        self.agenda = Agenda()
        self.cores = Cores(self.agenda, hosts, names)
        self.ended: list[tuple[str, float]] = []
        measured = {name: {"F": costs.get(name, (100.0, 100.0))} for name in names}
        self.paces = {name: Pace(Costs(measured=measured), name, (name,), 0) for name in names}

    def forward(self, name: str, then: Any = None) -> None:
        def done() -> None:
            self.ended.append((name, round(1e6 * self.agenda.now, 3)))
            if then is not None:
                then()

        self.cores.run(name, FORWARD, self.paces[name], done)

    def run(self) -> list[tuple[str, float]]:
        while self.agenda.next_at is not None:
            self.agenda.step()
        return self.ended


def hosts(**changes: Any) -> Hosts:
    return Hosts(**{**vars(QUICK), **changes})


def test_as_many_ops_run_at_once_as_there_are_cores() -> None:
    machine = Machine(hosts(cores=2, steals_us=0.0), "a", "b", "c")
    for name in "abc":
        machine.forward(name)
    assert machine.run() == [("a", 100), ("b", 100), ("c", 200)]


def test_hosts_do_not_share_their_cores() -> None:
    machine = Machine(hosts(count=2), "a", "b", "c", "d")
    for name in "abc":
        machine.forward(name)
    assert machine.run() == [("a", 100), ("c", 100), ("b", 200)]


def test_a_long_op_gives_way_after_a_slice_and_goes_on_later() -> None:
    machine = Machine(QUICK, "a", "b", a=(2500.0, 2500.0))
    machine.forward("a")
    machine.forward("b")
    assert machine.run() == [("b", 1100), ("a", 2600)]


def test_a_worker_with_more_to_do_keeps_its_core_for_its_slice() -> None:
    """a's second op begins at once, although b waits; its slice of 1 ms is then over."""
    machine = Machine(QUICK, "a", "b", a=(500.0, 500.0))
    machine.forward("a", lambda: machine.forward("a", lambda: machine.forward("a")))
    machine.forward("b")
    assert machine.run() == [("a", 500), ("a", 1000), ("b", 1100), ("a", 1600)]


def test_a_pinned_worker_waits_for_its_core_while_another_is_idle() -> None:
    machine = Machine(hosts(cores=2, pins={"a": 0, "b": 0}), "a", "b")
    machine.forward("a")
    machine.forward("b")
    assert machine.run() == [("a", 100), ("b", 200)]


def test_an_idle_core_takes_over_who_waits_for_another_but_not_at_once() -> None:
    """Core 1 is idle from 100 on; c, which waits for core 0, is moved 500 later."""
    machine = Machine(hosts(cores=2, slice_us=1e6), "a", "b", "c", a=(5000.0, 5000.0))
    for name in "abc":
        machine.forward(name)
    assert machine.run() == [("b", 100), ("c", 700), ("a", 5000)]


def test_what_others_have_not_driven_out_of_the_caches_is_quick() -> None:
    machine = Machine(QUICK, "a", "b", a=(100.0, 300.0), b=(200.0, 200.0))
    machine.forward("a", lambda: machine.forward("a", lambda: machine.forward("b")))
    machine.run()
    machine.forward("a")
    ends = [end for name, end in machine.run() if name == "a"]
    cold = 300 - 200 * 2.718281828 ** (-200 / 100)  # b was there for 200, caches forget by 100
    assert ends == pytest.approx([300, 400, 600 + cold], abs=1e-3)


def test_what_a_worker_does_beside_its_ops_comes_before_the_next_one() -> None:
    burden = Burden(event=(10.0, 10.0), message=Hop(send=(3.0, 3.0), receive=(5.0, 5.0)))
    machine = Machine(hosts(burden=burden), "a", "b")
    event = Received(Credit("b", 1, "a", 1, 2))
    actions = [Send("b", Credit("a", 1, "b", 1, 2)), Compute(FORWARD, {})]
    machine.cores.handled("a", event, actions)
    machine.forward("a")
    assert machine.run() == [("a", 118)]
    assert machine.cores.busy_s("a") == pytest.approx(118e-6)


def test_it_is_worked_off_at_once_where_no_op_follows() -> None:
    machine = Machine(hosts(burden=Burden(event=(50.0, 50.0))), "a")
    machine.cores.handled("a", Computed(FORWARD), [])
    machine.agenda.at(30e-6, lambda: machine.forward("a"))
    assert machine.run() == [("a", 150)], "30 of 50 are done when the op is wanted"


def test_messages_with_tensors_cost_what_their_link_says() -> None:
    burden = Burden(tensors={("a", "b"): Hop(send=(40.0, 40.0), receive=(60.0, 60.0))})
    machine = Machine(hosts(burden=burden), "a", "b")
    activation = Activation("a", 1, 0, 1, {})
    machine.cores.handled("a", Computed(FORWARD), [Send("b", activation)])
    machine.cores.handled("b", Received(activation), [])
    machine.run()
    assert machine.cores.busy_s("a") == pytest.approx(40e-6)
    assert machine.cores.busy_s("b") == pytest.approx(60e-6)


def test_a_slowed_worker_sleeps_off_its_core() -> None:
    machine = Machine(QUICK, "a", "b")
    costs = Costs(measured={"a": {"F": (100.0, 100.0)}})
    machine.paces["a"] = Pace(costs, "a", ("a",), 0, Slow(0, "a", factor=3.0))
    machine.forward("a")
    machine.forward("b")
    assert machine.run() == [("b", 200), ("a", 300)]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(0, 3000), st.integers(1, 3000)),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 3),
)
def test_all_that_is_asked_for_is_done_and_no_core_does_two_things_at_once(
    asked: list[tuple[str, int, int]], cores: int
) -> None:
    names = "abcd"
    longest = {name: max([t for n, _, t in asked if n == name], default=1) for name in names}
    machine = Machine(hosts(cores=cores), *names, **{n: (t, t) for n, t in longest.items()})
    first = {name: min((at for n, at, _ in asked if n == name), default=None) for name in names}
    for name, at in first.items():
        if at is not None:
            machine.agenda.at(at * 1e-6, lambda name=name: machine.forward(name))  # type: ignore[misc]
    ended = dict(machine.run())
    wanted = {name: longest[name] for name, at in first.items() if at is not None}
    assert ended.keys() == wanted.keys()
    for name, took in wanted.items():
        assert machine.cores.busy_s(name) == pytest.approx(took * 1e-6)
    begins = min(at for at in first.values() if at is not None)
    assert sum(wanted.values()) <= cores * (max(ended.values()) - begins) + 1e-3


# --- whole runs ----------------------------------------------------------------------------------

SYNTHETIC = {"name": "synthetic", "generator": {"kind": "linear"}}


def run(shared: Hosts | None, schedule: dict[str, Any] = SYNTHETIC) -> Any:
    data = {"examples": 80, "test_examples": 5}
    design = networks.design(networks.chain(4), schedule, data=data, run={"epochs": 1})
    links = Links(latency_us=0.0, control_latency_us=0.0)
    return simulate(design, seed=0, links=links, hosts=shared, maths=False)


def test_with_a_core_for_each_worker_a_run_is_as_without_any() -> None:
    alone, shared = run(None), run(Hosts(cores=4))
    assert {name: [op[:2] for op in ops] for name, ops in shared.ops.items()} == {
        name: [op[:2] for op in ops] for name, ops in alone.ops.items()
    }
    assert shared.train_s == pytest.approx(alone.train_s)
    assert alone.cpu_s == {}


def test_on_one_core_a_run_takes_as_long_as_all_its_ops() -> None:
    shared = run(Hosts(cores=1))
    assert shared.train_s == pytest.approx(sum(shared.cpu_s.values()), rel=0.02)


def test_a_run_on_shared_cores_replays() -> None:
    twice = [run(Hosts(cores=2, burden=Burden(event=(5.0, 20.0)))) for _ in range(2)]
    assert twice[0].digest == twice[1].digest
    assert twice[0].digest != run(Hosts(cores=2)).digest
