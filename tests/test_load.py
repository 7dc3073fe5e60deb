"""How busy the machine was: invented counters and loads in, shares, reasons and verdicts out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorded import recorded

from asyncdni.cli.tables import load_notes
from asyncdni.report import load as loads
from asyncdni.report.load import Load, Reading, disturbance, is_busy, read_cores, taken
from asyncdni.report.statistics import Comparison, judged
from asyncdni.report.verdict import kept_sentence, latency_sentence, verdict

QUIET = Load(0.02, 0.0, 0.01, 20.0, 100.0, 97.0)
BUSY = replace(QUIET, others=0.4)

# --- counters ------------------------------------------------------------------------------------


def test_what_others_took_is_all_that_the_cores_did_but_our_own() -> None:
    first = Reading(at_s=100.0, busy_s=1000.0, stolen_s=5.0, own_s=50.0)
    last = Reading(at_s=110.0, busy_s=1014.0, stolen_s=6.0, own_s=60.0)
    assert taken(first, last, 2) == pytest.approx((4 / 20, 1 / 20))


def test_a_child_that_others_counted_as_theirs_makes_no_negative_load() -> None:
    first = Reading(0.0, 0.0, 0.0, 0.0)
    assert taken(first, Reading(10.0, 9.0, 0.0, 10.0), 2) == (0.0, 0.0)


@pytest.mark.parametrize(
    "last",
    [None, Reading(10.0, 0.0, 0.0, 8.0), Reading(0.0, 5.0, 0.0, 1.0)],
    ids=["no counters", "counters stand still while we work", "no time between"],
)
def test_where_the_system_does_not_tell_load_is_unknown(last: Reading | None) -> None:
    assert taken(Reading(0.0, 0.0, 0.0, 0.0), last, 2) == (None, None)


def test_the_counters_of_the_usable_cores_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "usable", lambda: [0, 2])
    monkeypatch.setattr(loads.os, "sysconf", lambda _: 100)
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu  9 9 9 9 9 9 9 9 0 0\n"
        "cpu0 100 20 3 999 999 4 5 60 7 7\n"
        "cpu1 900 900 900 900 900 900 900 900 0 0\n"
        "cpu2 1000 0 0 999 999 0 0 40 0 0\n"
        "intr 5\n"
    )
    found = read_cores(stat)
    assert found is not None
    assert found.busy_s == pytest.approx((100 + 20 + 3 + 4 + 5 + 1000) / 100)
    assert found.stolen_s == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["", "cpu0 1 2 3\n", "cpu0 a b c d e f g h\n", "cpu7 1 1 1\n"])
def test_counters_that_can_not_be_read_are_none(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "usable", lambda: [0])
    stat = tmp_path / "stat"
    assert read_cores(stat) is None
    stat.write_text(text)
    assert read_cores(stat) is None


def test_a_block_is_watched_from_its_begin_to_its_end() -> None:
    found: list[Load] = []
    with loads.watched(found):
        pass
    assert found[0].start_gflops > 0 and found[0].end_gflops > 0
    with pytest.raises(KeyError), loads.watched(found):
        raise KeyError
    assert len(found) == 1


# --- disturbed runs ------------------------------------------------------------------------------


def test_a_quiet_run_is_not_disturbed() -> None:
    assert disturbance(QUIET, 100.0) == ""
    assert disturbance(None, 100.0) == ""
    unknown = replace(QUIET, others=None, stolen=None, before=None)
    assert disturbance(unknown, 100.0) == ""


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (replace(QUIET, others=0.38), "others took 38 % of the cores' time"),
        (
            replace(QUIET, stolen=0.11),
            "others took 2 % of the cores' time, the hypervisor 11 %",
        ),
        (replace(QUIET, end_gflops=61.0), "matrix products ran at 61 % of their best speed"),
        (
            replace(BUSY, start_gflops=20.0),
            "others took 40 % of the cores' time and matrix products ran at 20 % of their best "
            "speed",
        ),
    ],
)
def test_a_disturbed_run_has_a_reason(load: Load, reason: str) -> None:
    assert disturbance(load, 100.0) == reason


def test_a_tick_of_a_clock_does_not_disturb_a_short_run() -> None:
    short = replace(QUIET, others=0.08, cores_s=1.0)
    assert disturbance(short, 100.0) == ""
    assert disturbance(replace(short, cores_s=10.0), 100.0) != ""


def test_runs_are_judged_by_the_fastest_products_of_all() -> None:
    slow = replace(QUIET, start_gflops=60.0, end_gflops=60.0)
    first, second, *others = recorded().results
    found = judged([replace(first, load=slow), replace(second, load=QUIET), *others])
    assert [bool(one.disturbed) for one in found] == [True, *[False] * 8]
    assert not judged([replace(first, load=slow)])[0].disturbed, "nothing faster is known"


# --- verdicts ------------------------------------------------------------------------------------


def disturbed(*names: str, seeds: tuple[int, ...] = (0,)) -> Comparison:
    """The recorded comparison, in which these rows' runs with these seeds were disturbed."""
    made = recorded()
    results = tuple(
        replace(one, load=BUSY if one.name in names and one.seed in seeds else QUIET)
        for one in made.results
    )
    return replace(made, results=tuple(judged(results)))


def test_one_run_of_five_may_be_disturbed_and_one_of_four_not() -> None:
    assert not is_busy([True, *[False] * 4])
    assert is_busy([True, *[False] * 3])
    assert not is_busy([])


def test_a_busy_machine_has_no_verdict_on_speed_but_one_on_accuracy() -> None:
    assert verdict(disturbed("locked", "single", seeds=(0, 1))) == (
        "The machine was busy: no verdict on speed (disturbed runs: 2 of 3 of locked and 2 of 3 of "
        "single; compare again when nothing else runs); test accuracies differ: locked is better "
        "by 0.28 points than synthetic (95 % interval 0.21 to 0.36)."
    )
    assert verdict(disturbed()) == verdict(recorded())


def test_no_target_is_said_to_be_reached_first_on_a_busy_machine() -> None:
    busy = replace(disturbed("single"), targets=(0.955,))
    assert "sooner" not in verdict(busy)


def test_a_control_may_be_disturbed() -> None:
    made = replace(disturbed("single"), controls={"single": "synthetic"})
    assert "busy" not in verdict(made)


def test_at_several_latencies_only_the_busy_one_has_no_verdict() -> None:
    busy, quiet = disturbed("synthetic"), disturbed()
    assert latency_sentence(busy, 0.01).startswith("At 10 ms links the machine was busy: no verdi")
    assert "busy" not in latency_sentence(quiet, 0.0)
    assert kept_sentence({0.0: quiet, 0.01: busy}) == ""


# --- notes ---------------------------------------------------------------------------------------


def noted(**changes: Any) -> list[str]:
    load = {"others": 0.02}
    return load_notes({"runs": [{"name": "locked", "seed": 3, "load": load, **changes}]})


def test_the_notes_tell_how_quiet_it_was() -> None:
    assert noted() == ["No run was disturbed: others took at most 2 % of the cores' time."]
    assert noted(disturbed="others slept badly", latency_s=0.01) == [
        "Disturbed: locked at 10 ms, seed 3: others slept badly."
    ]
    assert "was not measured" in noted(load={"others": None})[0]


def test_documents_of_older_versions_have_no_such_notes() -> None:
    assert load_notes({"runs": [{"name": "locked", "seed": 0, "summary": {}}]}) == []
    assert load_notes({}) == []
