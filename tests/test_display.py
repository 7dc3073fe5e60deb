"""What is shown of a run: records of a real one, fed to each display on consoles made of text."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from asyncdni import experiment
from asyncdni.launch import display as panel
from asyncdni.launch.display import Lines, Picture, Quiet, make_display
from asyncdni.launch.train import design_of
from asyncdni.plan.build import Design
from asyncdni.report.records import Recorder

Record = tuple[str, dict[str, Any]]

BY_HAND = "tcp://0.0.0.0:5555"
HERE = "tcp://127.0.0.1:5555"
HEADINGS = ["stage", "batches", "updates", "busy", "staleness", "agreement"]
PRIVATE = "ipc:///tmp/asyncdni-x156wk8q/coordinator"


@pytest.fixture(scope="module")
def design() -> Design:
    """Two workers, 10 epochs of 100 samples."""
    stages = [
        {"name": "hidden", "layers": [{"dense": 8}, "tanh"]},
        {"name": "output", "layers": [{"dense": 8}], "loss": "sigmoid_cross_entropy"},
    ]
    tables = {"data": {"name": "addition"}, "stages": stages, "run": {"epochs": 10}}
    return design_of(experiment.parse(tables))


def report(stage: str, samples: int, **changes: Any) -> dict[str, Any]:
    counters = {
        "loss_sum": 0.0,
        "loss_samples": 0,
        "batches": samples // 10,
        "updates": samples // 10,
        "samples": samples,
        "wall_s": 0.5,
        "busy_fraction": 0.721,
        "compute_s": 0.4,
        "generator_s": 0.176,  # of the 0.8 s of training that the summary is given: 72 % too
        "queue": 3,
        "cpu_s": 0.31,
        "staleness_mean": 6.9,
        "gradient_cosine": 0.605,
        "dropped": 0,
    }
    return {"stage": stage, "values": counters | changes}


OUTPUT = {"loss_sum": 25.0, "loss_samples": 100, "staleness_mean": 0.0, "gradient_cosine": None}
EVALUATION = {"samples": 200, "train_s": 0.5, "accuracy": 0.9155, "loss": 0.2783}


def records(address: str = PRIVATE) -> list[Record]:
    """From the start to a quarter of the run."""
    launched = address == PRIVATE
    names = () if launched else ("hidden", "output")
    commands = [f"asyncdni worker --stage {name} --coordinator {HERE}" for name in names]
    timed = [
        (0.0, "bound", {"address": address, "launched": launched, "commands": commands}),
        (0.3, "joined", {"stage": "output", "pid": 12, "host": "here"}),
        (0.4, "joined", {"stage": "hidden", "pid": 11, "host": "there"}),
        (0.5, "start", {}),
        (0.6, "report", report("hidden", 200)),
        (0.7, "report", report("output", 200, **OUTPUT)),
        (1.0, "drained", {"barrier": 0}),
        (1.1, "evaluation", EVALUATION),
        (1.2, "resume", {}),
        (1.2, "report", report("hidden", 300)),
        (1.5, "report", report("output", 250, **OUTPUT)),
    ]
    return [(kind, {"time_s": 100.0 + time_s, **values}) for time_s, kind, values in timed]


def feed(display: Any, design: Design, given: Iterable[Record]) -> Recorder:
    recorder = Recorder(tuple(group.name for group in design.plan.groups), {}, None)
    for kind, values in given:
        recorder.record(kind, values)
        display(design, recorder, kind, values)
    return recorder


def console(terminal: bool, width: int = 80) -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    made = Console(
        file=written,
        force_terminal=terminal,
        color_system=None,
        width=width,
        height=25,
        highlight=False,
        _environ={"TERM": "xterm"},
    )
    return made, written


def last_frame(written: io.StringIO) -> str:
    """What stands on the screen since the cursor last went up, without control codes."""
    frame = re.split(r"\x1b\[1A\x1b\[2K(?!\x1b\[1A)", written.getvalue())[-1]
    return re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", frame).replace("\r", "")


def summary_of(recorder: Recorder) -> Mapping[str, Any]:
    return recorder.summary(0.8)


# --- which display -------------------------------------------------------------------------------


def test_the_kind_of_console_chooses_the_display() -> None:
    assert isinstance(make_display(False, console(True)[0]), Picture)
    assert isinstance(make_display(False, console(False)[0]), Lines)
    assert isinstance(make_display(True, console(True)[0]), Quiet)


def test_a_terminal_that_can_not_move_its_cursor_gets_lines() -> None:
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(make_display(False, dumb), Lines)


def test_quiet_writes_nothing(design: Design, capfd: pytest.CaptureFixture[str]) -> None:
    with make_display(True) as display:
        recorder = feed(display, design, records(BY_HAND))
        display.finish(summary_of(recorder), None)
    assert capfd.readouterr() == ("", "")


# --- lines ---------------------------------------------------------------------------------------


def lines_of(design: Design, given: Iterable[Record], title: str = "") -> list[str]:
    made, written = console(False)
    with make_display(False, made, title) as display:
        recorder = feed(display, design, given)
        display.finish(summary_of(recorder), Path("runs/one"))
    return written.getvalue().splitlines()


def test_where_nothing_is_right_or_wrong_the_loss_is_told_once(design: Design) -> None:
    told = [
        (kind, {**values, "accuracy": None} if kind == "evaluation" else values)
        for kind, values in records()
    ]
    assert lines_of(design, told)[1] == "epoch 2 of 10, test loss 0.2783, 400 samples/s"


def test_lines_tell_start_evaluation_and_end(design: Design) -> None:
    lines = lines_of(design, records())
    assert lines[0] == "synthetic, 2 workers, 10 epochs of 100 samples, seed 0 (not repeatable)"
    assert lines[1] == ("epoch 2 of 10, test accuracy 91.55 %, test loss 0.2783, 400 samples/s")
    assert lines[2].split() == [*HEADINGS[:4], "CPU", *HEADINGS[4:]]
    assert lines[3].split() == ["hidden", "30", "30", "72%", "0.3", "s", "6.9", "0.60"]
    assert lines[4].split() == ["output", "25", "25", "72%", "0.3", "s", "0.0", "-"]
    assert lines[5:] == [
        "test accuracy 91.55 %, 312 samples/s, 0.8 s of training, written to runs/one"
    ]


def test_lines_carry_no_control_codes(design: Design) -> None:
    assert not any("\x1b" in line or "\r" in line for line in lines_of(design, records()))


def test_a_progress_line_comes_after_ten_silent_seconds_and_not_before(design: Design) -> None:
    later = [
        ("report", {"time_s": 101.1 + after_s, **report("hidden", samples)})
        for after_s, samples in ((9.9, 400), (10.0, 500), (19.9, 600), (20.1, 700))
    ]
    lines = lines_of(design, [*records(), *later])
    told = [line for line in lines if line.startswith("epoch 2.5")]
    # The slowest worker has done 250 of 1,000 samples, in 10.6 s and then 20.7 s.
    assert told == [
        "epoch 2.5 of 10, loss 0.2500, 500 samples/s, 0:32 left",
        "epoch 2.5 of 10, loss 0.2500, 500 samples/s, 1:02 left",
    ]


GUARD = {"time_s": 100.9, "stage": "hidden", "waiting": True, "cosine": -0.031}


def test_what_a_guard_decides_is_told_of(design: Design) -> None:
    over = {**GUARD, "time_s": 101.3, "waiting": False, "cosine": 0.125}
    lines = lines_of(design, [*records()[:7], ("guard", GUARD), ("guard", over), *records()[7:]])
    assert lines[1:3] == [
        "hidden waits for true gradients: its generator disagrees (cosine -0.03)",
        "hidden goes on with synthetic gradients: its generator agrees (cosine 0.12)",
    ]
    titled = lines_of(design, [*records(), ("guard", GUARD)], "run 1 of 2: synthetic, seed 0")
    assert len(titled) == 2


def test_batches_that_did_not_come_count_as_progress_and_not_as_speed(design: Design) -> None:
    skipping = report("output", 200, batches=20, missed=20, wall_s=1.0)
    recorder = feed(Quiet(), design, [*records()[:9]])
    recorder.record("report", {"time_s": 101.5, **report("hidden", 410, wall_s=1.0)})
    recorder.record("report", {"time_s": 101.5, **skipping})
    progress = panel.measure(design, recorder, 1.0)
    assert (progress.epoch, progress.samples_per_s) == (4.0, 200.0)


def test_workers_started_by_hand_get_their_command_lines(design: Design) -> None:
    lines = lines_of(design, records(BY_HAND))
    assert lines[:6] == [
        "Start each of these, in any order:",
        "  asyncdni worker --stage hidden --coordinator tcp://127.0.0.1:5555",
        "  asyncdni worker --stage output --coordinator tcp://127.0.0.1:5555",
        "On other hosts put this host's name in place of 127.0.0.1.",
        "output joined from here; waiting for hidden",
        "hidden joined from there; connecting",
    ]


def test_a_refused_worker_is_told_of(design: Design) -> None:
    refused = {"time_s": 100.1, "pid": 7, "host": "there", "text": "no stage 'x' here"}
    lines = lines_of(design, [records()[0], ("refused", refused), *records()[1:]])
    assert lines[0] == "refused a worker (process 7 on there): no stage 'x' here"


def test_a_rejected_message_is_told_of_in_one_line(design: Design) -> None:
    rejected = {"time_s": 100.1, "peer": "00ab", "text": "bad message: no frames"}
    lines = lines_of(design, [records()[0], ("rejected", rejected), *records()[1:]])
    assert lines[0] == "rejected a message (peer 00ab): bad message: no frames"


def test_one_of_several_runs_leaves_its_start_and_its_outcome(design: Design) -> None:
    assert lines_of(design, records(), "run 2 of 6: locked, seed 0") == [
        "run 2 of 6: locked, seed 0: synthetic, 2 workers, 10 epochs of 100 samples, "
        "seed 0 (not repeatable)",
        "run 2 of 6: locked, seed 0: test accuracy 91.55 %, 312 samples/s, 0.8 s",
    ]


# --- a picture -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 100])
def test_the_picture_shows_progress_and_every_stage(design: Design, width: int) -> None:
    made, written = console(True, width)
    with Picture(made) as display:
        feed(display, design, records())
        frame = last_frame(written).splitlines()
    assert frame[0].startswith(
        "synthetic, 2 workers, 10 epochs of 100 samples, seed 0 (not repeatable)"
    )
    # 250 of 1,000 samples took 1 s; the other 750 will take 3.
    assert re.fullmatch(r"epoch 2\.5 of 10  [━╸╺ ]+  0:03 left", frame[1])
    assert frame[2].rstrip() == "loss 0.2500   test accuracy 91.55 %   500 samples/s"
    assert frame[4].split() == [*HEADINGS[:4], "queue", *HEADINGS[4:]]
    assert frame[5].split() == ["hidden", "30", "30", "72%", "3", "6.9", "0.60"]
    assert frame[6].split() == ["output", "25", "25", "72%", "3", "0.0", "-"]
    assert max(map(len, frame)) <= width


def test_the_picture_has_room_for_all_that_can_go_wrong(design: Design) -> None:
    made, written = console(True, 100)
    troubled = {"dropped": 123, "skipped": 4567, "missed": 0, "waiting": 1, "slowed_s": 2.5}
    counts = {"batches": 123456, "updates": 123456, "target_cosine": 0.5, "gradient_cosine": None}
    given = [*records()[:-2], ("report", {"time_s": 101.5, **report("hidden", 300)})]
    given[-1][1]["values"].update(troubled | counts)
    with Picture(made) as display:
        feed(display, design, given)
        frame = last_frame(written).splitlines()
    headings = ["dropped", "skipped"]
    assert frame[4].split() == [*HEADINGS[:4], "queue", "staleness", "with", "target", *headings]
    assert frame[5].split()[-4:] == ["123", "4,567", "waits", "slow"]
    assert max(map(len, frame)) <= 100


def test_what_a_guard_decides_stays_above_the_picture(design: Design) -> None:
    made, written = console(True)
    with Picture(made) as display:
        later = ("report", {"time_s": 102.5, **report("hidden", 400)})
        feed(display, design, [*records(), ("guard", GUARD), later])
        assert "waits for true gradients" not in last_frame(written)  # nor was it erased
    assert written.getvalue().count("hidden waits for true gradients: its generator disagrees") == 1


def test_the_picture_says_who_is_missing(design: Design) -> None:
    made, written = console(True)
    with Picture(made) as display:
        feed(display, design, records()[:2])
        assert "starting hidden\n" in last_frame(written) + "\n"
    with Picture(made) as display:
        feed(display, design, records(BY_HAND)[:2])
        assert "waiting for hidden\n" in last_frame(written) + "\n"


def test_records_in_quick_succession_are_drawn_four_times_a_second(design: Design) -> None:
    made, written = console(True)
    with Picture(made) as display:
        recorder = feed(display, design, records())
        before = written.tell()
        for step in range(1, 50):
            values = {"time_s": 101.5 + step / 100, **report("hidden", 300 + step)}
            recorder.record("report", values)
            display(design, recorder, "report", values)
        drawn = written.getvalue()[before:]
    assert drawn.count("agreement") == 1  # a quarter of a second after the last one


def test_the_picture_makes_room_for_the_final_table(design: Design) -> None:
    made, written = console(True)
    with Picture(made) as display:
        recorder = feed(display, design, records())
        before = written.tell()
        display.finish(summary_of(recorder), None)
        after = written.getvalue()[before:]
    assert after.count("\x1b[2K") >= 7  # every line of the picture is erased
    assert "312 samples/s, 0.8 s of training, nothing written" in after
    assert after.index("\x1b[?25h") < after.index("nothing written")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_failure_gives_the_cursor_back_and_keeps_the_picture(
    design: Design, error: type[BaseException]
) -> None:
    made, written = console(True)
    with pytest.raises(error), Picture(made) as display:
        feed(display, design, records())
        before = written.tell()
        raise error
    after = written.getvalue()[before:]
    assert "\x1b[?25h" in after
    assert not after.rstrip("\n").endswith("\x1b[2K")
    assert "agreement" in last_frame(written)


def test_a_run_that_never_began_leaves_the_terminal_alone() -> None:
    made, written = console(True)
    with pytest.raises(ValueError), Picture(made):
        raise ValueError
    assert written.getvalue() == ""


# --- figures -------------------------------------------------------------------------------------


def test_batches_given_up_get_a_column_only_where_there_are_any() -> None:
    stages = [report("hidden", 200)["values"] | {"name": "hidden"}]
    headings = [column.header for column in panel.stage_table(stages).columns]
    assert "dropped" not in headings
    stages[0]["dropped"] = 4
    assert [column.header for column in panel.stage_table(stages).columns][-1] == "dropped"


def test_columns_that_find_no_room_are_left_out_and_none_is_cut() -> None:
    stages = [
        report(name, 1234560)["values"] | {"name": name, "dropped": 4, "skipped": 5, "cpu_s": 4.9}
        for name in ("hidden1", "classifier")
    ]
    for width in (50, 60, 70, 80, 100):
        made = Console(width=width, file=io.StringIO(), legacy_windows=False)
        made.print(panel.StageTable(stages, ("cpu_s",)))
        lines = made.file.getvalue().splitlines()
        assert "…" not in "".join(lines) and "classifier" in lines[2], width
        assert ("CPU" in lines[0]) == (width == 100), lines[0]
        assert "updates" in lines[0] and "staleness" in lines[0]


def test_a_long_list_of_fused_stages_is_cut_and_figures_stay() -> None:
    made, written = console(False)
    name = "+".join(f"hidden{number}" for number in range(9))
    made.print(panel.stage_table([report("x", 1234560)["values"] | {"name": name}]))
    row = written.getvalue().splitlines()[1]
    assert row.startswith("hidden0+hidden1")
    assert "…" in row
    assert "123,456" in row


def test_a_network_without_right_answers_shows_its_loss() -> None:
    assert panel.score(None, 0.12345678) == "test loss 0.1235"
    assert panel.score(0.5, 1.0) == "test accuracy 50.00 %"
    assert panel.score(None, None) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (750, "12:30"), (11100, "3:05:00")]
)
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert panel.duration(seconds) == text
