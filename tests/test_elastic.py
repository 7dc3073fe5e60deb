"""Where workers run while machines leave, come back and become slow; no sockets, and time as it is
told."""

from __future__ import annotations

from typing import Any

from each import each

from asyncdni import config
from asyncdni.cluster.elastic import Elastic, Host, Window
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

    def moves(self) -> dict[str, str]:
        return dict(self.elastic.moves(self.now))

    def measured(self, per_s: float = 10.0, **slower: float) -> dict[str, str]:
        """A window comes to its end, in which workers took so many times their usual time for a
        batch; returns what is moved because of it, and starts that."""
        took_s = {name: 0.01 * COSTS[name] * slower.get(name, 1.0) for name in HOME}
        self.elastic.measured(Window(took_s, per_s), self.now)
        moves = self.moves()
        for name in moves:
            self.elastic.starts(name, self.now)
        return moves


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
    assert scene.elastic.absent(1) == ["b", "c"] and scene.elastic.absent(2) == []


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
    assert scene.moves() == {}
    scene.until(21.25, 1, 2)
    assert scene.moves() == {
        "b": "b goes back to rank 1, whose agent is there again",
        "c": "c goes back to rank 1, whose agent is there again",
    }
    assert scene.moves() == {}
    assert scene.elastic.where["b"] == 2
    assert scene.elastic.starts("b", scene.now) == 1
    assert scene.elastic.where == {**HOME, "c": 2}


def test_an_agent_gets_the_time_to_prepare_for_its_workers_while_others_go_on() -> None:
    scene = Scene(away_s=1.0)
    scene.until(2.0, 2)
    scene.elastic.taken_over(scene.now)
    scene.elastic.came(1, Host(2, 8 * GIB), scene.now)
    scene.until(6.5, 1, 2)
    assert scene.moves() == {}
    scene.until(7.0, 1, 2)
    assert [*scene.moves()] == ["b", "c"]


def test_workers_stay_where_they_are_if_their_agent_leaves_again_before_the_barrier() -> None:
    scene = Scene()
    scene.until(11.0, 2)
    scene.elastic.taken_over(scene.now)
    scene.until(22.0, 1, 2)
    assert set(scene.moves()) == {"b", "c"}
    scene.until(33.0, 2)
    assert scene.elastic.starts("b", scene.now) == 2
    scene.until(44.0, 1, 2)
    assert set(scene.moves()) == {"b"}  # c is still about to


def test_a_new_agent_must_stay_for_a_while_as_well() -> None:
    scene = Scene()
    scene.until(11.0, 2)
    scene.elastic.taken_over(scene.now)
    scene.elastic.came(1, Host(2, 8 * GIB), scene.now)
    scene.until(20.0, 1, 2)
    assert scene.moves() == {}
    scene.until(21.0, 1, 2)
    assert set(scene.moves()) == {"b", "c"}


@each("gpus, taken", [((1, 1), {"d": 1}), ((1, 0), {"d": 0}), ((0, 0), {})])
def test_workers_on_gpus_go_where_there_are_some(gpus: tuple[int, int], taken: Any) -> None:
    elastic = Elastic(
        config.Elastic(away_s=1.0), HOME, {**COSTS, "a": 9.0}, dict.fromkeys(HOME, 1), on_gpus=True
    )
    elastic.stays(0, Host(2, 8, gpus[0]))
    elastic.came(1, Host(2, 8, gpus[1]), 0.0)
    elastic.came(2, Host(2, 8, 1), 0.0)
    elastic.heard(1, 1.5)
    assert elastic.taken_over(1.5) == taken


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


# --- machines that are slow ----------------------------------------------------------------------


def slowed() -> Scene:
    """The workers of rank 1 have become three times as slow, and c has gone elsewhere."""
    scene = Scene()
    scene.until(11.0, 1, 2)
    assert scene.measured() == scene.measured(b=3.0, c=3.0) == {}
    moves = scene.measured(b=3.0, c=3.0, per_s=5.0)
    assert moves == {
        "c": "c goes from rank 1 to rank 2: rank 1 has become 3.0 times as slow as it was"
    }
    assert scene.elastic.where["c"] == 2
    return scene


def test_a_machine_that_stays_slow_gives_the_worker_away_that_helps_most() -> None:
    """Rank 2 has two cores: with c, a batch takes as long as a takes, and not three times c."""
    scene = slowed()
    assert scene.measured(b=3.0, per_s=8.0) == {}
    assert scene.measured(b=3.0, per_s=8.0) == {}


def test_all_workers_leave_a_machine_that_is_too_slow_for_any() -> None:
    """Nine times as slow, b alone would take longer than a does on rank 0. As it has not helped,
    both go back."""
    scene = Scene()
    scene.until(11.0, 1, 2)
    assert scene.measured() == scene.measured(b=9.0, c=9.0) == {}
    assert set(scene.measured(b=9.0, c=9.0, per_s=1.0)) == {"b", "c"}
    assert {scene.elastic.where[name] for name in "bc"} <= {0, 2}
    assert set(scene.measured(per_s=1.0)) == {"b", "c"}
    assert scene.elastic.where == HOME


def test_a_move_that_has_not_helped_is_taken_back_and_not_tried_again_for_long() -> None:
    scene = slowed()
    (text,) = scene.measured(b=3.0, per_s=5.1).values()
    assert text.endswith("the run makes 5.1 batches a second; before, it made 5.0")
    assert scene.elastic.where == HOME
    for _ in range(3):
        assert scene.measured(b=3.0, c=3.0, per_s=5.0) == {}
    scene.until(scene.now + 20 * 30.0, 1, 2)
    assert set(scene.measured(b=3.0, c=3.0, per_s=5.0)) == {"c"}


def test_what_is_slow_for_a_moment_or_everywhere_moves_nothing() -> None:
    scene = Scene()
    scene.until(11.0, 1, 2)
    scene.measured()
    for _ in range(3):
        assert scene.measured(b=3.0, c=3.0) == scene.measured() == {}
    every = dict.fromkeys(HOME, 3.0)
    assert scene.measured(**every) == scene.measured(**every) == {}


def test_what_would_not_help_is_left_alone() -> None:
    """A batch takes as long as a takes on rank 0, wherever b and c are."""
    scene = Scene()
    scene.until(11.0, 1, 2)
    scene.measured()
    assert scene.measured(b=1.8, c=1.8) == scene.measured(b=1.8, c=1.8) == {}


def test_nothing_is_judged_while_a_machine_is_away() -> None:
    scene = slowed()
    scene.until(30.0, 2)
    assert scene.measured(b=3.0, per_s=1.0) == {}
    scene.until(50.0, 1, 2)
    assert set(scene.measured(b=3.0, per_s=1.0)) == {"c"}


def test_a_window_is_made_of_reports_without_barriers_and_without_what_a_death_disturbs() -> None:
    """Two batches a second, each of 0.25 s; 30 s at a barrier count for nothing."""
    elastic = Elastic(config.Elastic(window_s=10.0), {"a": 0}, {"a": 1.0}, {"a": 1})
    windows: list[Window] = []
    elastic.measured = lambda window, now: windows.append(window)  # type: ignore[method-assign]

    def report(time_s: float, trained_s: float) -> None:
        counters = {"compute_s": 0.3 * trained_s, "generator_s": 0.2 * trained_s}
        counters["batches"] = 2.0 * trained_s
        elastic.observe("report", {"time_s": time_s, "stage": "a", "values": counters})

    elastic.observe("start", {"time_s": 100.0})
    for second in range(6):
        report(100.0 + second, second)
    elastic.observe("drained", {"time_s": 105.0})
    elastic.observe("resume", {"time_s": 135.0})
    for second in range(6, 10):
        report(130.0 + second, second)
    assert windows == []
    report(140.0, 10)
    assert windows == [Window({"a": 0.25}, 2.0)]
    report(141.0, 11)
    elastic.observe("lost", {"time_s": 141.5})
    report(142.0, 0)  # a new process counts anew
    report(151.5, 9.5)
    assert len(windows) == 1
    report(152.0, 10)
    assert windows[1:] == [Window({"a": 0.25}, 2.0)]
