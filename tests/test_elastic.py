"""Where workers run while machines leave and come back; no sockets, and time as it is told."""

from __future__ import annotations

from typing import Any

from asyncdni import config
from asyncdni.cluster.elastic import Elastic, Host
from asyncdni.cluster.placement import spread

GIB = 2**30
HOME = {"a": 0, "b": 1, "c": 1, "d": 2}
COSTS = {"a": 4.0, "b": 1.0, "c": 2.0, "d": 1.0}


class Scene:
    """Three ranks: 0 is this process's own, the agents of 1 and 2 have come at time 0."""

    def __init__(self, memory: tuple[int, int] = (8 * GIB, 8 * GIB), **options: Any) -> None:
        self.now = 0.0
        chosen = config.Elastic(**{"away_s": 10.0, **options})
        self.elastic = Elastic(chosen, HOME, COSTS, dict.fromkeys(HOME, GIB))
        self.elastic.stays(0, Host(2, memory[0]))
        for rank in (1, 2):
            self.elastic.came(rank, Host(2, memory[1]), 0.0)
        self.elastic.looked(0.0)

    def until(self, moment: float, *heard: int) -> None:
        """Let time pass, in which these agents are heard all the time."""
        while self.now < moment:
            self.now = min(moment, self.now + 0.25)
            for rank in heard:
                self.elastic.heard(rank, self.now)
            self.elastic.looked(self.now)


# --- machines that leave -------------------------------------------------------------------------


def test_workers_of_an_agent_that_has_left_go_where_there_is_the_least_to_do() -> None:
    """The costlier one first: c to rank 2, and then b to it as well, since rank 0 has more."""
    scene = Scene()
    scene.until(10.0, 2)
    assert scene.elastic.taken_over(scene.now) == {}
    scene.until(10.25, 2)
    assert scene.elastic.taken_over(scene.now) == {"b": 2, "c": 2}
    assert scene.elastic.where == {"a": 0, "b": 2, "c": 2, "d": 2}
    assert scene.elastic.taken_over(scene.now) == {}


def test_who_takes_over_may_leave_as_well() -> None:
    scene = Scene()
    scene.until(11.0, 2)
    scene.elastic.taken_over(scene.now)
    scene.until(22.0)
    assert scene.elastic.taken_over(scene.now) == {"b": 0, "c": 0, "d": 0}


def test_a_worker_waits_for_its_agent_where_no_machine_has_the_memory_for_it() -> None:
    scene = Scene(memory=(GIB, 2 * GIB))
    scene.until(11.0, 2)
    assert scene.elastic.taken_over(scene.now) == {"c": 2}
    assert scene.elastic.where["b"] == 1


def test_a_time_in_which_this_process_did_not_look_is_nobody_s_silence() -> None:
    scene = Scene()
    scene.until(5.0, 1, 2)
    scene.now = 60.0  # it was stopped
    scene.elastic.looked(scene.now)
    assert scene.elastic.taken_over(scene.now) == {}
    scene.until(71.0, 2)
    assert scene.elastic.taken_over(scene.now) == {"b": 2, "c": 2}


# --- and come back -------------------------------------------------------------------------------


def test_workers_go_back_once_their_agent_has_been_back_for_as_long() -> None:
    """At the next barrier, when they are started; that is asked for once."""
    scene = Scene()
    scene.until(11.0, 2)
    scene.elastic.taken_over(scene.now)
    scene.until(20.0, 1, 2)
    assert scene.elastic.moves(scene.now) == {}
    scene.until(21.25, 1, 2)
    assert scene.elastic.moves(scene.now) == {"b": 1, "c": 1}
    assert scene.elastic.moves(scene.now) == {}
    assert scene.elastic.where["b"] == 2
    assert scene.elastic.starts("b", scene.now) == 1
    assert scene.elastic.where == {**HOME, "c": 2}


def test_workers_stay_where_they_are_if_their_agent_leaves_again_before_the_barrier() -> None:
    scene = Scene()
    scene.until(11.0, 2)
    scene.elastic.taken_over(scene.now)
    scene.until(22.0, 1, 2)
    assert set(scene.elastic.moves(scene.now)) == {"b", "c"}
    scene.until(33.0, 2)
    assert scene.elastic.starts("b", scene.now) == 2
    scene.until(44.0, 1, 2)
    assert scene.elastic.moves(scene.now) == {"b": 1}  # c is still about to


def test_a_new_agent_must_stay_for_a_while_as_well() -> None:
    scene = Scene()
    scene.until(11.0, 2)
    scene.elastic.taken_over(scene.now)
    scene.elastic.came(1, Host(2, 8 * GIB), scene.now)
    scene.until(20.0, 1, 2)
    assert scene.elastic.moves(scene.now) == {}
    scene.until(21.0, 1, 2)
    assert set(scene.elastic.moves(scene.now)) == {"b", "c"}


def test_an_agent_that_has_never_come_has_not_left() -> None:
    options = config.Elastic(away_s=1.0)
    elastic = Elastic(options, HOME, COSTS, dict.fromkeys(HOME, 1))
    elastic.looked(100.0)
    assert elastic.taken_over(100.0) == {}


def test_workers_are_spread_by_what_they_cost() -> None:
    costs = {"a": 3.0, "b": 3.0, "c": 2.0, "d": 1.0}
    where, needs = dict.fromkeys(costs, 9), dict.fromkeys(costs, 1)
    found = spread(list(costs), where, costs, needs, {4: 10.0, 5: 10.0})
    assert found == {"a": 4, "b": 5, "c": 4, "d": 5}
