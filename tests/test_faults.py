"""What is to go wrong, as text and as a struct; and what it does in a run, fault by fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networks
import pytest
from each import case, each

from asyncdni.core.events import Compute, Fail, Finish, Restore, Restored
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.disk import Disk, Saved
from asyncdni.drivers.virtual.faults import Fault, Faults, parse_faults, parse_line
from asyncdni.drivers.virtual.process import Keeping, WorkerProcess
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.errors import AsyncDNIError, CheckpointError, ConfigError
from asyncdni.messages import Abort, Gradient
from asyncdni.plan.build import Design
from asyncdni.schedules.base import OpKind

LOCKED = {"name": "locked"}
SYNTHETIC = {"name": "synthetic", "generator": {"kind": "linear"}}


def design(schedule: Any = LOCKED, stages: Any = None, **tables: Any) -> Design:
    """A chain of three that trains for about a fifth of a second."""
    chosen = {
        "run": {"epochs": 20, "evaluate_every": 5.0},
        "checkpoint": {"every": 1.0, "snapshot_every": "5ms"},
        **tables,
    }
    return networks.design(stages or networks.chain(3), schedule, **chosen)


def run(chosen: Design, *script: str, **more: Any) -> Result:
    options: dict[str, Any] = {"seed": 0, "maths": False, **more}
    faults = options.pop("faults", None) or Faults(script=script)
    return simulate(chosen, faults=faults, **options)


def kinds(result: Result) -> list[str]:
    return [kind for kind, _ in result.records]


def values(result: Result, kind: str) -> list[dict[str, Any]]:
    return [found for one, found in result.records if one == kind]


# --- as text -------------------------------------------------------------------------------------


def test_rates_and_a_script_in_one_text() -> None:
    faults = parse_faults("crashes=2, pauses=0.5, pause_s=3; crash s1 at 2.5s")
    assert faults == Faults(crashes=2, pauses=0.5, pause_s=3, script=("crash s1 at 2.5s",))


def test_text_is_read_back_from_what_is_printed() -> None:
    text = "crashes=2, partitions=0.5, resets=1, most=7; partition s0&s1|top at 1s for 0.5s"
    assert parse_faults(str(parse_faults(text))) == parse_faults(text)


def test_the_same_names_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text('crashes = 2\nscript = ["crash s1 at 2.5s"]\n')
    assert parse_faults(str(path)) == parse_faults("crashes=2; crash s1 at 2.5s")


@each(
    "line, fault",
    [
        ("crash s1 at 2.5s", Fault("crash", 2.5, ("s1",))),
        ("crash coordinator at 2s", Fault("crash", 2.0, ("coordinator",), for_s=4.0)),
        ("crash coordinator at 2s for 1s", Fault("crash", 2.0, ("coordinator",), for_s=1.0)),
        ("pause s1 at 1s for 3s", Fault("pause", 1.0, ("s1",), for_s=3.0)),
        ("starve s1 at 1s for 3s", Fault("starve", 1.0, ("s1",), for_s=3.0)),
        ("slow s1 by 5 at 1s for 500ms", Fault("slow", 1.0, ("s1",), (), 0.5, 5.0)),
        ("partition a&b|c at 1s for 1s", Fault("partition", 1.0, ("a", "b"), ("c",), 1.0)),
        ("break a>b at 1s", Fault("break", 1.0, ("a",), ("b",))),
    ],
)
def test_each_line_of_a_script_is_one_fault(line: str, fault: Fault) -> None:
    assert parse_line(line) == fault


@each(
    "text, told",
    [
        ("", "nothing is to go wrong"),
        ("most=3", "nothing is to go wrong"),
        ("crashs=2", "there is no fault 'crashs'; known: crashes"),
        ("crashes=-1", "crashes: expected `float` >= 0"),
        ("crashes=nan", "crashes=nan: expected a number"),
        ("crashes=often", "crashes=often: expected a number"),
        ("crashes=1, crashes=2", "crashes is given twice"),
        ("resets=1.5, partitions=1", "resets: expected `float` <= 1"),
        ("pause_s=2", "pause_s says how bad pauses are, but there are none"),
        ("slow_saves=0.6, failed_saves=0.6", "make 1.2 together, expected at most 1"),
        ("crash s1", "'crash s1': expected crash NAME at TIME"),
        ("crash s1 at noon", "expected a time"),
        ("crash s1 at 1s for 2s", "expected crash NAME at TIME"),
        ("pause s1 at 1s", "expected pause NAME at TIME for TIME"),
        ("slow s1 at 1s for 1s", "expected slow NAME by FACTOR"),
        ("slow s1 by 0.5 at 1s for 1s", "expected a factor from 1 to 1000, got 0.5"),
        ("slow coordinator by 2 at 1s for 1s", "a coordinator does no ops"),
        ("partition a|a at 1s for 1s", "a can't be on both sides"),
        ("partition a at 1s for 1s", "expected partition NAME&NAME|NAME"),
        ("explode s1 at 1s", "expected one of crash NAME at TIME; pause"),
        ("nowhere.toml", "--faults nowhere.toml: can't be read"),
    ],
)
def test_a_list_that_makes_no_sense_gets_one_clear_line(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_faults(text)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_process_that_the_run_does_not_have_is_named() -> None:
    with pytest.raises(ConfigError, match=r"crash s9: known are s0, s1, top, coordinator"):
        run(design(), "crash s9 at 1s")


# --- crashes -------------------------------------------------------------------------------------


@each("stage", ["s0", "s1", "top"])
def test_after_a_crash_locked_goes_back_to_the_last_cut(stage: str) -> None:
    result = run(design(), f"crash {stage} at 200ms")
    assert isinstance(result.end, Finish) and result.fault_counts == {"crash": 1}
    (lost,), (back,) = values(result, "lost"), values(result, "back")
    assert lost["stage"] == back["stage"] == stage and back["again"]
    (again,) = values(result, "round")
    assert again["again"] and again["lost_updates"].get(stage, 0) == back["lost_updates"]
    assert again["restore"].startswith("checkpoints/") and again["start"] % 5 == 0
    assert all(not own["missed"] for own in result.counters.values())


@pytest.mark.parametrize("schedule", [LOCKED, SYNTHETIC], ids=["goes back", "goes on"])
def test_a_stage_that_dies_after_the_same_batch_each_time_is_given_up(
    schedule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a number of batches that its weights have learned from, wherever the data are."""
    honest = WorkerProcess._computed

    def computed(process: WorkerProcess, compute: Compute, *args: Any) -> None:
        again = compute.op.kind is OpKind.FORWARD and process.worker.counts.batches == 700
        if process.name == "s1" and again:
            process.exit(-9)
        honest(process, compute, *args)

    monkeypatch.setattr(WorkerProcess, "_computed", computed)
    tables = {
        "run": {"epochs": 2000, "evaluate_every": 2000.0},
        "checkpoint": {"every": "300ms", "snapshot_every": "300ms"},
        "recovery": {"restarts": 2},
    }
    result = run(design(schedule, **tables), "crash top at 1us")
    assert isinstance(result.end, Fail) and result.end.kind == "WorkerLost"
    assert "worker s1 died with signal 9; in 3 tries it has not got farther" in result.end.text
    assert 3 <= len(values(result, "lost")) <= 7


def test_before_the_first_cut_locked_begins_anew() -> None:
    result = run(design(checkpoint={"every": "never"}), "crash s1 at 200ms")
    (again,) = values(result, "round")
    assert (again["restore"], again["start"]) == ("initial", 0)


LONG = {"epochs": 100, "evaluate_every": 100.0}


def test_while_a_stage_is_dead_those_that_learn_by_themselves_go_on() -> None:
    """Until the next barrier."""
    snapshots = {"every": "never", "snapshot_every": "5ms"}
    result = run(design(SYNTHETIC, run=LONG, checkpoint=snapshots), "crash s1 at 180ms")
    assert isinstance(result.end, Finish)
    (lost,), (again,) = values(result, "lost"), values(result, "round")
    during = [
        start for letter, _, start, _ in result.ops["s0"]
        if letter == "U" and lost["time_s"] < start < again["time_s"]
    ]  # fmt: skip
    assert len(during) > 10
    missed = {name: int(own["missed"] or 0) for name, own in result.counters.items()}
    assert missed["s1"] > missed["s0"]
    assert again["restore"] == "keep"


def test_a_stage_comes_back_from_its_snapshot_and_its_lost_updates_are_told() -> None:
    """Updates that it has reported, every half second and at barriers."""
    often = {"epochs": 100, "evaluate_every": 5.0}
    (back,) = values(run(design(SYNTHETIC, run=often), "crash s1 at 200ms"), "back")
    assert 0 <= back["lost_updates"] < 30
    never = design(SYNTHETIC, run=often, checkpoint={"snapshot_every": "never"})
    result = run(never, "crash s1 at 200ms")
    (without,) = values(result, "back")
    assert without["lost_updates"] > 30  # all of them
    assert [one["text"] for one in values(result, "note")]


def test_a_stage_without_a_snapshot_goes_on_from_the_last_cut() -> None:
    saves = {"every": 1.0, "snapshot_every": "never"}
    chosen = design(SYNTHETIC, run={"epochs": 40, "evaluate_every": 5.0}, checkpoint=saves)
    for stage in ("s0", "top"):
        result = run(chosen, f"crash {stage} at 200ms")
        assert isinstance(result.end, Finish)
        (note,), (back,) = values(result, "note"), values(result, "back")
        newest = max(
            one["number"] for one in values(result, "cut") if one["time_s"] < note["time_s"]
        )
        assert f"; {stage} from checkpoints/{newest:06d}, batch " in note["text"]
        assert back["lost_updates"] < 20


def test_a_process_that_has_been_replaced_writes_nothing_more() -> None:
    chosen = design(SYNTHETIC)
    disk, group = Disk(chosen), chosen.plan.groups[1]
    old, new = ((1, 5), Saved({}, {"batches": 9}, None)), ((2, 1), Saved({}, {"batches": 3}, None))
    for order, saved in (old, new):
        disk.claim(group, order)
        disk.write("snapshots", group, saved, order)
    with pytest.raises(CheckpointError, match="a later process has taken over s1"):
        disk.write("snapshots", group, old[1], old[0])
    with pytest.raises(CheckpointError, match="a later process has taken over s1"):
        disk.claim(group, old[0])
    assert disk.read("snapshots", group) == new[1]


def test_a_coordinator_that_crashes_is_resumed_from_the_last_cut() -> None:
    result = run(design(), "crash coordinator at 250ms for 5s")
    assert isinstance(result.end, Finish) and result.fault_counts == {"coordinator crash": 1}
    assert kinds(result).count("start") == 2
    (again,) = values(result, "round")
    assert again["restore"].startswith("checkpoints/") and again["start"] > 0
    assert len(result.history) == len(design().plan.barriers) - len(design().plan.cut_barriers)


def test_workers_whose_coordinator_is_gone_leave_a_snapshot_to_go_on_from() -> None:
    result = run(design(SYNTHETIC, run=LONG), "crash coordinator at 250ms for 5s")
    (again,) = values(result, "round")
    assert again["restore"] == "snapshots" and again["start"] > 0
    assert isinstance(result.end, Finish)


@pytest.mark.parametrize("schedule", [LOCKED, SYNTHETIC], ids=["goes back", "goes on"])
def test_workers_that_wait_for_another_coordinator_are_taken_back(schedule: Any) -> None:
    """And one that has died meanwhile is replaced."""
    chosen = design(schedule, recovery={"coordinator_s": 60.0})
    result = run(chosen, "crash coordinator at 150ms for 1s", "crash s1 at 160ms")
    assert isinstance(result.end, Finish) and not values(result, "lost")
    assert [one["stage"] for one in values(result, "joined") if one.get("again")] == ["s0", "top"]
    (again,) = values(result, "round")
    assert (again["restore"] == "keep") is (schedule is SYNTHETIC) and again["start"] > 0


def test_workers_do_not_wait_for_another_coordinator_for_ever() -> None:
    chosen = design(SYNTHETIC, recovery={"coordinator_s": 12.0})
    for away_s, waited in ((11, True), (13, False)):
        result = run(chosen, f"crash coordinator at 150ms for {away_s}s")
        assert isinstance(result.end, Finish)
        assert any(one.get("again") for one in values(result, "joined")) is waited


# --- silence, and those who come back ------------------------------------------------------------


@pytest.mark.parametrize("schedule", [LOCKED, SYNTHETIC])
def test_a_short_pause_is_no_death(schedule: Any) -> None:
    result = run(design(schedule), "pause s1 at 150ms for 700ms")
    assert isinstance(result.end, Finish) and not values(result, "lost")


@pytest.mark.parametrize("schedule", [LOCKED, SYNTHETIC])
def test_a_long_pause_is_a_death_and_who_comes_back_does_no_harm(schedule: Any) -> None:
    """It is out of its coordinator's reach, so it can't be killed."""
    told: list[str] = []

    def watch(sender: str, to: str, message: object) -> bool:
        if isinstance(message, Abort) and sender == "coordinator":
            told.append(to)
        return False

    script = ("pause s1 at 150ms for 7500ms", "partition s1|coordinator at 151ms for 7s")
    result = run(design(schedule), *script, lose=watch, costs=Costs(read_us=100_000.0))
    assert isinstance(result.end, Finish)
    assert [one["stage"] for one in values(result, "lost")] == ["s1"]
    assert "s1" in told


@pytest.mark.parametrize("schedule", [LOCKED, SYNTHETIC])
def test_who_is_starved_is_not_dead_and_who_is_stopped_then_is(schedule: Any) -> None:
    """However long it lasts, and though the others hear nothing of it."""
    result = run(design(schedule), "starve s1 at 150ms for 40s")
    assert isinstance(result.end, Finish) and not values(result, "lost")
    assert result.virtual_s > 40.0
    result = run(design(schedule), "starve s1 at 150ms for 5s", "pause s1 at 160ms for 20s")
    assert isinstance(result.end, Finish)
    (lost,) = values(result, "lost")
    assert lost["stage"] == "s1" and lost["time_s"] < 2.0


def test_who_is_out_of_sight_is_given_longer() -> None:
    assert not values(run(design(), "partition s1|coordinator at 150ms for 3s"), "lost")
    assert values(run(design(), "partition s1|coordinator at 150ms for 7s"), "lost")


def test_a_paused_coordinator_holds_nobody_for_dead() -> None:
    result = run(design(), "pause coordinator at 150ms for 2s")
    assert isinstance(result.end, Finish) and not values(result, "lost")


def test_a_slow_stage_is_slow_for_a_while() -> None:
    plain = simulate(design(), seed=0, maths=False)
    slowed = run(design(), "slow s1 by 10 at 150ms for 100ms")
    assert isinstance(slowed.end, Finish) and not values(slowed, "lost")
    assert 0.05 < slowed.train_s - plain.train_s < 0.15


# --- links ---------------------------------------------------------------------------------------


def test_what_is_sent_into_a_partition_arrives_once_it_heals() -> None:
    plain = simulate(design(), seed=0, maths=False)
    parted = run(design(), "partition s0|s1 at 150ms for 500ms")
    assert isinstance(parted.end, Finish)
    assert not values(parted, "lost") and not values(parted, "stuck")
    assert 0.4 < parted.train_s - plain.train_s < 0.6


def test_a_gradient_that_is_lost_with_a_connection_is_noticed_as_a_standstill() -> None:
    dropped: list[int] = []

    def lose(sender: str, to: str, message: object) -> bool:
        first = isinstance(message, Gradient) and message.batch == 30 and not dropped
        dropped.extend([30] if first else [])
        return first

    result = simulate(design(limits={"stuck_s": 7.0}), seed=0, maths=False, lose=lose)
    assert isinstance(result.end, Finish) and dropped
    (stuck,) = values(result, "stuck")
    assert "nothing has moved for 7 s" in stuck["text"]


def test_a_message_that_is_lost_each_time_ends_the_run_instead_of_hanging_it() -> None:
    def lose(sender: str, to: str, message: object) -> bool:
        return isinstance(message, Gradient) and message.batch == 30

    chosen = design(limits={"stuck_s": 7.0}, recovery={"restarts": 2})
    result = simulate(chosen, seed=0, maths=False, lose=lose)
    assert isinstance(result.end, Fail) and result.end.kind == "LimitExceeded"
    assert "nothing has moved for 7 s (limits.stuck_s) while training, 3 times" in result.end.text


@pytest.mark.parametrize(
    ("links", "moments"),
    [
        (["s0>s1", "s1>s0"], range(110, 260, 10)),
        pytest.param(
            ["s0>s1", "s1>s0", "s1>coordinator", "coordinator>s1"],
            range(110, 260, 5),
            marks=pytest.mark.long,
        ),
    ],
    ids=["few", "many"],
)
def test_a_connection_may_break_at_any_moment(links: list[str], moments: range) -> None:
    """Also between the steps of a barrier."""
    for link in links:
        with case(link=link):
            _assert_breaks_do_no_harm(link, moments)


def _assert_breaks_do_no_harm(link: str, moments: range) -> None:
    chosen = design(limits={"stuck_s": 5.0}, run={"epochs": 4, "evaluate_every": 0.4})
    slow = Links(latency_us=3000.0, control_latency_us=3000.0)
    lost = 0
    for milliseconds in moments:
        result = run(chosen, f"break {link} at {milliseconds}ms", links=slow)
        assert isinstance(result.end, Finish), (milliseconds, result.end)
        lost += sum(result.fault_counts.values())
    assert lost


# --- clocks and disks ----------------------------------------------------------------------------


def test_clocks_that_are_off_make_no_difference_to_what_is_learned() -> None:
    plain = simulate(design(), seed=0, maths=True)
    for seed in range(3):
        skewed = run(design(), seed=seed, maths=True, faults=Faults(skew_s=1e6, drift=0.05))
        assert isinstance(skewed.end, Finish), seed
        assert [e["loss"] for e in skewed.history] == [e["loss"] for e in plain.history], seed


def test_a_full_disk_at_a_cut_ends_the_run_with_a_checkpoint_error() -> None:
    result = run(design(), faults=Faults(failed_saves=1.0))
    assert isinstance(result.end, Fail) and result.end.kind == "CheckpointError"
    assert "disk is full" in result.end.text


def test_a_snapshot_that_can_not_be_written_costs_nothing() -> None:
    chosen = design(SYNTHETIC, checkpoint={"every": "never", "snapshot_every": "5ms"})
    plain = simulate(chosen, seed=0, maths=False)
    saves = len([1 for kind, _ in plain.records if kind == "saved"])
    assert saves
    result = run(chosen, faults=Faults(failed_saves=1.0, most=5))
    assert isinstance(result.end, Finish) and result.fault_counts == {"failed save": 5}


def test_a_cut_that_was_torn_does_not_count() -> None:
    """A worker dies while it writes; all go back to the cut before, and write it anew."""
    result = run(design(), faults=Faults(torn_saves=0.2, most=6), seed=3)
    assert isinstance(result.end, Finish) and result.fault_counts["torn save"] > 2
    committed = [one["number"] for one in values(result, "cut")]
    for again in values(result, "round"):
        if again["restore"] != "initial":
            assert int(again["restore"].rpartition("/")[2]) in committed


def test_a_slow_disk_delays_and_no_more() -> None:
    result = run(design(), faults=Faults(slow_saves=1.0, slow_save_s=0.4, most=20))
    assert isinstance(result.end, Finish) and result.fault_counts["slow save"] == 20
    assert not values(result, "lost")


# --- accounts ------------------------------------------------------------------------------------


def test_a_batch_that_is_not_accounted_for_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Keeping.learned

    def learned(keeping: Keeping, batch: int) -> None:
        if batch != 12:
            honest(keeping, batch)

    monkeypatch.setattr(Keeping, "learned", learned)
    with pytest.raises(AsyncDNIError, match=r"seed 0, at .*99 ids, but 100 learned, 0 missed"):
        simulate(design(stages=networks.chain(1)), seed=0, maths=False)


def test_a_batch_that_is_learned_from_twice_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Keeping.restore

    def restore(keeping: Keeping, action: Restore) -> Restored:
        restored = honest(keeping, action)
        assert keeping.ids is not None
        keeping.ids.add(12)
        return restored

    monkeypatch.setattr(Keeping, "restore", restore)
    with pytest.raises(AsyncDNIError, match=r"top#1 has learned from batch 12 twice"):
        simulate(design(stages=networks.chain(1)), seed=0, maths=False)
