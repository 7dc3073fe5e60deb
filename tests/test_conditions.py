"""[links], [slow] and [staleness] links: what they name, what they come to, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import networks
import pytest
from each import each

from asyncdni import config, experiment
from asyncdni.errors import ConfigError
from asyncdni.plan.build import Design, make_design
from asyncdni.plan.conditions import (
    check_conditions,
    find_link,
    link_delays,
    neighbours,
    slow_of,
)
from asyncdni.plan.plan import make_plan
from asyncdni.schedules.base import Op, OpKind

FORWARD = Op(OpKind.FORWARD, 0)


def design(stages: Any = None, *, split: list[int] | None = None, **sections: Any) -> Design:
    """A chain s0, s1, s2, top, unless stages are given, under conditions."""
    plain = networks.design(
        stages or networks.chain(4), {"name": "synthetic"}, run={"split": split}
    )
    tables = {**experiment.tables(plain.experiment), **sections}
    return make_design(copy.deepcopy(tables), plain.meta)


def latencies(chosen: Design, worker: str) -> dict[str, float]:
    delays = link_delays(chosen.experiment, chosen.plan, worker, seed=0)
    return {receiver: delay.latency_s for receiver, delay in delays.items()}


def refusal(**sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        design(**sections)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- what they name ------------------------------------------------------------------------------


def test_all_links_are_slow_both_ways() -> None:
    chosen = design(links={"latency": "10ms"})
    assert latencies(chosen, "s0") == {"s1": 0.01}
    assert latencies(chosen, "s1") == {"s0": 0.01, "s2": 0.01}


def test_links_from_the_data_are_links_too() -> None:
    chosen = design(networks.several_readers(), links={"latency": "10ms"})
    assert latencies(chosen, "left") == {"top": 0.01, "right": 0.01}
    assert latencies(chosen, "right") == {"top": 0.01, "left": 0.01}


def test_without_conditions_no_link_is_delayed_and_no_worker_slowed() -> None:
    chosen = design(links={"latency": "0ms", "jitter": "0s"}, slow={})
    assert all(latencies(chosen, group.name) == {} for group in chosen.plan.groups)
    assert slow_of(chosen.experiment, chosen.plan, "s0", 0) is None


def test_a_named_link_has_its_own_conditions_alone_and_one_way() -> None:
    links = {"latency": "10ms", "between": {"s1->s2": {"bandwidth": "1MB/s"}, "s2->top": {}}}
    chosen = design(links=links)
    assert latencies(chosen, "s1") == {"s0": 0.01, "s2": 0.0}
    assert latencies(chosen, "s2") == {"s1": 0.01}
    (delay,) = [
        one
        for to, one in link_delays(chosen.experiment, chosen.plan, "s1", seed=0).items()
        if to == "s2"
    ]
    assert delay.bytes_per_s == 1e6


def test_stages_stand_for_the_worker_that_has_them() -> None:
    links = {"between": {"s1->s2": {"latency": "10ms"}}}
    chosen = design(split=[2, 2], links=links, slow={"s0": {"factor": 3}})
    assert latencies(chosen, "s0+s1") == {"s2+top": 0.01}
    slow = slow_of(chosen.experiment, chosen.plan, "s0+s1", seed=0)
    assert slow is not None and slow.after(FORWARD, 1.0) == 2.0
    assert slow_of(chosen.experiment, chosen.plan, "s2+top", seed=0) is None


def test_workers_can_be_named_as_a_split_names_them() -> None:
    chosen = design(split=[2, 2], links={"between": {"s0+s1->s2+top": {"latency": "10ms"}}})
    assert latencies(chosen, "s0+s1") == {"s2+top": 0.01}


def test_a_link_within_one_worker_is_none() -> None:
    conditions = {"links": {"between": {"s0->s1": {"latency": "10ms"}}}}
    chosen = design(split=[4], **conditions, staleness={"links": {"s0->s1": 8}})
    assert latencies(chosen, "s0+s1+s2+top") == {}
    assert find_link(chosen.plan, "s0->s1", "") is None
    assert find_link(design().plan, "s0->s1", "") == ("s0", "s1")


def test_pauses_of_a_slow_worker() -> None:
    chosen = design(slow={"s1": {"pause": "20ms", "chance": 1.0}})
    slow = slow_of(chosen.experiment, chosen.plan, "s1", seed=0)
    assert slow is not None and slow.after(FORWARD, 1.0) == 0.02


def test_neighbours_are_those_that_messages_go_to() -> None:
    plan = design(networks.several_readers()).plan
    assert {one.name: set(neighbours(plan, one)) for one in plan.groups} == {
        "left": {"top", "right"},
        "right": {"top", "left"},
        "top": {"left", "right"},
    }


# --- what is refused -----------------------------------------------------------------------------

TIME = "expected a time from 0s to 60s, such as 10ms (units: us, ms, s, min), got"
REFUSALS = [
    ({"links": {"latency": "5"}}, f"links.latency: {TIME} '5'"),
    ({"links": {"latency": "-1ms"}}, f"links.latency: {TIME} '-1ms'"),
    ({"links": {"jitter": "2min"}}, f"links.jitter: {TIME} '2min'"),
    ({"links": {"latency": 5}}, "links.latency: expected text, got 5"),
    ({"links": {"bandwidth": "1bit/s"}}, "links.bandwidth: expected a rate from 1kB/s to "
     "1000GB/s, such as 100Mbit/s (units: kbit/s, Mbit/s, Gbit/s, kB/s, MB/s, GB/s), got '1bit/s'"),
    ({"links": {"latncy": "5ms"}}, "links: unknown key 'latncy', did you mean 'latency'? known: "
     "latency, jitter, bandwidth, compress, compress_fits, between"),
    ({"links": {"between": []}}, "links.between: expected a table, got []"),
    ({"links": {"between": {"s0": {}}}}, "links.between: expected names of links, such as "
     "\"hidden1->hidden2\", got 's0'"),
    ({"links": {"between": {"s0->s1": {"between": {}}}}}, "links.between.\"s0->s1\": unknown key "
     "'between'; known: latency, jitter, bandwidth, compress, compress_fits"),
    ({"links": {"between": {"s0->s1": {"latency": "1h"}}}},
     f"links.between.\"s0->s1\".latency: {TIME} '1h'"),
    ({"links": {"between": {"s0->s9": {}}}}, "links.between.\"s0->s9\": there is no worker or "
     "stage 's9'; the workers are s0, s1, s2, top"),
    ({"links": {"between": {"s0->s2": {}}}}, "links.between.\"s0->s2\": s0 sends nothing to s2, "
     "only to s1"),
    ({"links": {"between": {"s0->s0": {}}}}, "links.between.\"s0->s0\": expected two ends that "
     "differ"),
    ({"split": [2, 2], "links": {"between": {"s0->s2": {}, "s1->s2": {}}}},
     "links.between.\"s1->s2\": means the same as links.between.\"s0->s2\"; expected one of them"),
    ({"slow": {"s1": {"factor": 0.5}}}, "slow.s1.factor: expected a number of at least 1 and of at "
     "most 100000, got 0.5"),
    ({"slow": {"s1": {"factor": float("inf")}}}, "slow.s1.factor: expected a number of at least "
     "1 and of at most 100000, got inf (numbers must be finite)"),
    ({"links": {"latency": "60s"}}, "links: a latency of 60s and a jitter of 0ms reach "
     "limits.stuck_s = 60, after which a waiting run counts as stuck; lower them or raise that"),
    ({"slow": {"s1": 3}}, "slow.s1: expected a table, got 3"),
    ({"slow": {"s1": {"fcator": 3}}}, "slow.s1: unknown key 'fcator', did you mean 'factor'? "
     "known: factor, pause, chance"),
    ({"slow": {"s1": {"pause": "x", "chance": 1}}}, f"slow.s1.pause: {TIME} 'x'"),
    ({"slow": {"s1": {"pause": "1s", "chance": 2}}}, "slow.s1.chance: expected a number of at "
     "least 0 and of at most 1, got 2"),
    ({"slow": {"s1": {"pause": "10ms"}}}, "slow.s1: a pause of 10ms with chance 0 never happens; "
     "give both pause and chance, or neither"),
    ({"slow": {"s1": {"chance": 0.5}}}, "slow.s1: a pause of 0ms with chance 0.5 never happens; "
     "give both pause and chance, or neither"),
    ({"slow": {"s9": {}}}, "slow.s9: there is no worker or stage 's9'; the workers are s0, s1, "
     "s2, top"),
    ({"split": [2, 2], "slow": {"s0": {}, "s1": {}}}, "slow.s1: means the same as slow.s0; "
     "expected one of them"),
    ({"staleness": {"lag": -1}}, "staleness.lag: expected an integer of at least 0, got -1"),
    ({"staleness": {"links": {"s0->s1": 1.5}}}, "staleness.links.\"s0->s1\": expected an integer "
     "of at least 0, got 1.5"),
    ({"staleness": {"links": {"s0": 1}}}, "staleness.links: expected names of links, such as "
     "\"hidden1->hidden2\", got 's0'"),
    ({"staleness": {"links": {"s1->s0": 1}}}, "staleness.links.\"s1->s0\": s0 takes no "
     "activations of s1; expected a link from a producer to its consumer"),
    ({"staleness": {"at_bound": "stop"}}, "staleness.at_bound: unknown at_bound 'stop'; known: "
     "drop, wait"),
]  # fmt: skip


@each("sections, message", REFUSALS)
def test_a_mistake_is_refused_with_place_given_and_known(
    sections: dict[str, Any], message: str
) -> None:
    assert refusal(**sections) == message


def test_names_are_checked_once_the_stages_are_laid_out() -> None:
    chosen = design()
    unknown = msgspec.structs.replace(chosen.experiment, slow={"s9": config.Slow()})
    plan = make_plan(unknown, chosen.network, chosen.meta)
    with pytest.raises(ConfigError, match="s9"):
        check_conditions(unknown, plan)


# --- what is written -----------------------------------------------------------------------------


def test_conditions_that_were_not_given_leave_no_empty_tables() -> None:
    text = experiment.dumps(design().experiment)
    assert "[slow" not in text and "[links.between" not in text and "[staleness" not in text


def test_named_links_are_written_with_quotes() -> None:
    links = {"between": {"s0->s1": {"latency": "10ms"}}}
    text = experiment.dumps(design(links=links).experiment)
    assert '[links.between."s0->s1"]\nlatency = "10ms"\n' in text
