"""[links] and [slow] in virtual time: the same rules as on real sockets, but exact."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import networks
import pytest
from each import each

from asyncdni import experiment
from asyncdni.config import Limits
from asyncdni.delays import LinkDelay
from asyncdni.drivers.virtual.clock import Agenda
from asyncdni.drivers.virtual.costs import Links, tensor_bytes
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.drivers.virtual.wires import Wires
from asyncdni.messages import Activation, Credit, Gradient, Message
from asyncdni.plan.build import Design, make_design

BATCHES = 10  # of `networks.design`: two epochs of five


def design(schedule: str = "locked", length: int = 3, **sections: Any) -> Design:
    plain = networks.design(networks.chain(length), {"name": schedule})
    tables = {**experiment.tables(plain.experiment), **sections}
    return make_design(copy.deepcopy(tables), plain.meta)


def run(chosen: Design, *, maths: bool = False, seed: int = 0, **more: Any) -> Result:
    result = simulate(chosen, seed=seed, maths=maths, **more)
    assert result.failure is None
    return result


def started(result: Result, worker: str) -> list[float]:
    """Moments at which its forwards began."""
    return [start for letter, _, start, _ in result.ops[worker] if letter == "F"]


# --- links ---------------------------------------------------------------------------------------


def test_locked_waits_for_the_latency_at_each_hop_of_each_batch() -> None:
    plain = run(design())
    slowed = run(design(links={"latency": "7ms"}))
    hops = 4 * BATCHES  # two links, down and up
    assert slowed.train_s - plain.train_s == pytest.approx(hops * 0.007, rel=1e-6)


def test_latency_comes_on_top_of_what_the_simulated_network_takes() -> None:
    times = [
        run(design(links={"latency": latency}), links=Links(latency_us=base)).train_s
        for latency, base in (("1ms", 2000.0), ("2ms", 1000.0), ("0ms", 3000.0))
    ]
    assert times == pytest.approx([times[0]] * 3, rel=1e-6)


def test_a_named_link_is_slow_that_way_alone() -> None:
    plain = run(design())
    slowed = run(design(links={"between": {"s0->s1": {"latency": "7ms"}}}))
    assert slowed.train_s - plain.train_s == pytest.approx(BATCHES * 0.007, rel=1e-6)


def test_jitter_adds_up_to_what_was_asked_and_goes_by_the_seed() -> None:
    chosen = design(links={"jitter": "7ms"})
    added = run(chosen).train_s - run(design()).train_s
    assert 0.3 * 4 * BATCHES * 0.007 < added < 0.7 * 4 * BATCHES * 0.007
    assert run(chosen).digest == run(chosen).digest
    assert run(chosen).train_s != run(chosen, seed=1).train_s


def test_bandwidth_takes_time_by_the_size_of_messages() -> None:
    """Locked: nothing shares a link, so each message takes its bytes over the rate."""
    never = {"snapshot_every": "never"}  # they take their time as well
    slow = run(design(links={"bandwidth": "10kB/s"}, checkpoint=never))
    added = slow.train_s - run(design(checkpoint=never)).train_s
    samples, width, labels = 2 * 23, networks.WIDTH * 4, networks.BITS * 4
    down = 2 * samples * (width + labels)  # activations with targets, over two links
    up = 2 * samples * width
    assert added == pytest.approx((down + up) / 10e3, rel=1e-6)


@each("schedule", ["locked", "synthetic"])
@each("stages", [networks.chain(3), networks.fork(), networks.several_readers()])
def test_sizes_are_the_same_with_and_without_arithmetic(schedule: str, stages: Any) -> None:
    plain = networks.design(stages, {"name": schedule})
    tables = {**experiment.tables(plain.experiment), "links": {"bandwidth": "1MB/s"}}
    chosen = make_design(tables, plain.meta)
    assert run(chosen).ops == run(chosen, maths=True).ops


def test_conditions_change_when_things_happen_and_not_what_locked_learns() -> None:
    conditions = {
        "links": {"latency": "3ms", "jitter": "5ms", "bandwidth": "100kB/s"},
        "slow": {"s1": {"factor": 2, "pause": "10ms", "chance": 0.5}},
    }
    plain, slowed = run(design(), maths=True), run(design(**conditions), maths=True)
    assert slowed.train_s > plain.train_s
    for stage, arrays in plain.weights.items():
        for name, array in arrays.items():
            assert array.tobytes() == slowed.weights[stage][name].tobytes()


def test_synthetic_hidden_stages_hardly_wait_for_slow_links() -> None:
    """The first stage goes on as long as it has credit, whatever the round trip."""
    plain = started(run(design("synthetic")), "s0")
    slowed = started(run(design("synthetic", links={"latency": "50ms"})), "s0")
    window = 3  # batches that may be sent before the first credit has come back
    assert slowed[window - 1] - slowed[0] == pytest.approx(plain[window - 1] - plain[0], rel=0.2)


# --- the wires by themselves ---------------------------------------------------------------------


def wires(agenda: Agenda, **conditions: Any) -> Wires:
    delay = LinkDelay(**conditions, seed=0, sender="a", receiver="b")
    base = Links(latency_us=100.0, jitter=1.0)
    return Wires(agenda, base, 0, copy=False, delays={("a", "b"): delay}, size=tensor_bytes)


def _note(order: list[str], name: str, message: Message) -> None:
    order.append(name)


def run_out(agenda: Agenda) -> None:
    while agenda.next_at is not None:
        agenda.step()


def test_messages_of_one_link_keep_their_order_and_none_is_early() -> None:
    agenda = Agenda()
    network = wires(agenda, latency_s=0.001, jitter_s=0.01)
    found: list[tuple[int, float]] = []

    def arrived(message: Message) -> None:
        assert isinstance(message, Credit)
        found.append((message.taken, agenda.now))

    for number in range(100):
        what = Credit("a", 0, "b", number, number)
        agenda.at(
            number * 1e-4,
            partial(network.send, "a", "b", what, arrived, control=False),
        )
    run_out(agenda)
    assert [number for number, _ in found] == list(range(100))
    assert all(moment >= number * 1e-4 + 0.001 for number, moment in found)


def test_a_slow_link_holds_up_neither_other_links_nor_the_coordinator() -> None:
    agenda = Agenda()
    network = wires(agenda, latency_s=30.0)
    order: list[str] = []
    for to, control in (("b", False), ("c", False), ("coordinator", True)):
        message = Credit("a", 0, to, 1, 1)
        network.send("a", to, message, partial(_note, order, to), control=control)
    run_out(agenda)
    assert sorted(order[:2]) == ["c", "coordinator"] and order[2] == "b"
    assert agenda.now >= 30.0


# --- slow workers --------------------------------------------------------------------------------


def test_a_slow_worker_takes_factor_times_as_long_for_each_op() -> None:
    def lengths(**sections: Any) -> list[float]:
        ops = run(design(**sections)).ops
        assert ops["s0"][0][3] - ops["s0"][0][2] == pytest.approx(50e-6)  # a read, not slowed
        return [end - start for _, _, start, end in ops["s1"]]

    for slowed, plain in zip(lengths(slow={"s1": {"factor": 3}}), lengths(), strict=True):
        assert slowed == pytest.approx(3 * plain)


def test_pauses_come_after_forwards_with_their_chance() -> None:
    slow = {"s1": {"pause": "10ms", "chance": 0.5}}
    lengths = {
        letter: [
            end - start for one, _, start, end in run(design(slow=slow)).ops["s1"] if one == letter
        ]
        for letter in "FU"
    }
    assert {round(length, 9) for length in lengths["F"]} == {100e-6, 100e-6 + 0.01}
    assert {round(length, 9) for length in lengths["U"]} == {50e-6}


def test_the_codec_makes_no_difference_to_time() -> None:
    chosen = design(links={"bandwidth": "100kB/s"})
    assert chosen.experiment.limits == Limits()
    assert run(chosen, maths=True, codec=True).ops == run(chosen, maths=True).ops


def test_messages_without_tensors_have_no_size() -> None:
    assert tensor_bytes("a", "b", Credit("a", 0, "b", 1, 1)) == 0
    assert tensor_bytes("a", "b", Gradient("a", 0, 1, {})) == 0
    assert tensor_bytes("a", "b", Activation("a", 0, 1, 5, {})) == 0
