"""What each schedule does, as timelines: the picture in its file, the one in the docs, and reality.

Real workers run back to back, every op one column wide; see `pair`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pair import Bench, chain

from asyncdni.messages import Activation, Drained, Gradient, Message, Skipped
from asyncdni.schedules import Locked, Schedule, Synthetic, locked, synthetic

DOCS = Path(__file__).parent.parent / "docs" / "schedules.md"


def pictures(text: str | None) -> list[str]:
    """The fenced timelines of a text, in order."""
    blocks = re.findall(r"^```\n(stage 0 .*?)\n```$", text or "", re.MULTILINE | re.DOTALL)
    return [str(block) for block in blocks]


CASES: list[tuple[str, Schedule, int, str]] = [
    ("locked", Locked(), 2, pictures(locked.__doc__)[0]),
    ("true", Synthetic(), 3, pictures(synthetic.__doc__)[0]),
    ("bootstrap", Synthetic(bootstrap=True), 3, pictures(synthetic.__doc__)[1]),
    ("correct", Synthetic(correct=True), 3, pictures(synthetic.__doc__)[2]),
    ("fit_every", Synthetic(fit_every=2), 3, pictures(synthetic.__doc__)[3]),
]
each_picture = pytest.mark.parametrize(
    ("schedule", "batches", "picture"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)

SCHEDULES = st.one_of(
    st.builds(Locked, split_backward=st.booleans()),
    st.builds(
        Synthetic,
        bootstrap=st.booleans(),
        fit_every=st.integers(1, 4),
        correct=st.booleans(),
        max_in_flight=st.integers(1, 6),
    ),
)


@each_picture
def test_workers_do_what_the_picture_in_the_schedules_file_shows(
    schedule: Schedule, batches: int, picture: str
) -> None:
    bench = Bench(chain(3, barriers=(batches,)), schedule).train()
    assert bench.picture() == picture
    assert len(bench.messages(Drained)) == 3


@each_picture
def test_the_docs_show_the_same_picture(schedule: Schedule, batches: int, picture: str) -> None:
    assert picture in pictures(DOCS.read_text(encoding="utf-8"))


def test_every_picture_of_a_schedules_file_is_checked() -> None:
    shown = pictures(locked.__doc__) + pictures(synthetic.__doc__)
    assert shown == [picture for _, _, _, picture in CASES]


def test_two_barriers_look_like_the_picture_in_the_docs() -> None:
    """A barrier after batch 1: the pipe drains, then goes on."""
    bench = Bench(chain(3, barriers=(2, 3)), Synthetic()).train()
    assert len(bench.messages(Drained)) == 3
    bench.resume(0)
    assert bench.picture() in pictures(DOCS.read_text(encoding="utf-8"))
    assert len(bench.messages(Drained)) == 6


def test_locked_has_one_batch_in_flight_in_the_whole_network() -> None:
    bench = Bench(chain(4, barriers=(3,)), Locked()).train()
    busy = [[row[column] for row in bench.timeline.values()] for column in range(20)]
    forwards = [[op for op in ops if op.startswith("F")] for ops in busy]
    assert max(len(ops) for ops in forwards) == 1


def test_locked_updates_each_stage_once_a_batch_also_for_a_shorter_last_one() -> None:
    bench = Bench(chain(3), Locked(), samples=lambda batch: 1 if batch == 2 else 4).train()
    for name in bench.workers:
        letters = "FBU" if name == "stage 0" else "FbWU"
        expected = [f"{letter}{batch}" for batch in range(3) for letter in letters]
        assert bench.ops(name) == expected
    sizes = [m.samples for m in bench.messages(Activation) if isinstance(m, Activation)]
    assert sorted(sizes) == [1, 1, 4, 4, 4, 4]
    assert all(worker.samples == 9 for worker in bench.workers.values())


def test_locked_without_halves_sends_when_the_whole_backward_is_done() -> None:
    bench = Bench(chain(3, barriers=(2,)), Locked(split_backward=False)).train()
    assert bench.picture().splitlines() == [
        "stage 0  F0 .  .  .  .  B0 U0 F1 .  .  .  .  B1 U1",
        "stage 1  .  F0 .  .  B0 U0 .  .  F1 .  .  B1 U1 .",
        "stage 2  .  .  F0 B0 U0 .  .  .  .  F1 B1 U1 .  .",
    ]


def test_locked_sends_each_gradient_once_and_before_it_learns() -> None:
    bench = Bench(chain(3), Locked()).train()
    sent = [m for m in bench.messages(Gradient, "stage 1") if isinstance(m, Gradient)]
    assert [m.tensors["stage 1"] for m in sent] == [f"b{batch} of stage 1" for batch in range(3)]


@pytest.mark.parametrize("bootstrap", [False, True])
def test_a_short_last_group_of_fit_every_still_sends_its_first_batch_up(bootstrap: bool) -> None:
    """Five batches in groups of three: 0 1 2 | 3 4."""
    schedule = Synthetic(fit_every=3, bootstrap=bootstrap)
    bench = Bench(chain(3, barriers=(5,)), schedule).train()
    for name, to in (("stage 1", "stage 0"), ("stage 2", "stage 1")):
        sent = bench.messages(Gradient, name, to)
        assert [m.batch for m in sent if isinstance(m, Gradient)] == [0, 3]
    assert [op for op in bench.ops("stage 1") if op[0] == "T"] == ["T0", "T3"]
    assert [op for op in bench.ops("stage 2") if op[0] == "U"] == ["U0", "U1", "U2", "U3", "U4"]


def test_with_a_true_target_only_the_backward_that_passes_it_on_sends() -> None:
    bench = Bench(chain(3), Synthetic()).train()
    sent = [m for m in bench.messages(Gradient, "stage 1") if isinstance(m, Gradient)]
    assert [m.tensors["stage 1"] for m in sent] == [f"b{batch} of stage 1" for batch in range(3)]


def test_with_a_bootstrapped_target_the_synthetic_gradient_is_sent_at_once() -> None:
    bench = Bench(chain(3), Synthetic(bootstrap=True)).train()
    sent = [m for m in bench.messages(Gradient, "stage 1") if isinstance(m, Gradient)]
    assert [m.tensors["stage 1"] for m in sent] == [f"B{batch} of stage 1" for batch in range(3)]


def test_corrections_are_applied_before_the_barrier_and_only_if_there_are_any() -> None:
    for schedule, last in ((Synthetic(correct=True), "U"), (Synthetic(), "T2")):
        bench = Bench(chain(2), schedule).train()
        assert bench.ops("stage 0")[-1] == last
        assert bench.ops("stage 1")[-1] == "U2"  # true gradients need no correction


def test_bootstrapped_targets_are_corrected_without_a_backward_of_their_own() -> None:
    bench = Bench(chain(3), Synthetic(bootstrap=True, correct=True)).train()
    assert bench.ops("stage 1")[:7] == ["F0", "P0", "B0", "U0", "T0", "C0", "F1"]
    assert not [op for op in bench.ops("stage 1") if op[0] == "b"]


def lost_gradients(sender: str, to: str, message: Message) -> bool:
    return isinstance(message, Gradient) and sender == "stage 2"


def test_the_oldest_batch_is_given_up_where_too_many_wait_for_their_gradient() -> None:
    schedule = Synthetic(max_in_flight=2)
    bench = Bench(chain(3, barriers=(6,)), schedule, withheld=lost_gradients).train()
    middle = bench.workers["stage 1"]
    assert middle.dropped == 4  # 4 and 5 are still waited for
    assert [batch for name, batch in bench.released if name == "stage 1"] == [0, 1, 2, 3]
    skipped = [m.batch for m in bench.messages(Skipped, "stage 1") if isinstance(m, Skipped)]
    assert skipped == [0, 1, 2, 3]
    assert list(middle.flights) == [4, 5]
    assert [op for op in bench.ops("stage 1") if op[0] == "U"] == [f"U{i}" for i in range(6)]


def test_who_waits_for_a_batch_that_was_given_up_gives_it_up_too() -> None:
    schedule = Synthetic(max_in_flight=2)
    bench = Bench(chain(3, barriers=(6,)), schedule, withheld=lost_gradients).train()
    assert set(range(4)) <= {batch for name, batch in bench.released if name == "stage 0"}
    assert len(bench.workers["stage 0"].flights) <= 2


def test_with_room_for_one_batch_every_other_one_is_given_up() -> None:
    schedule = Synthetic(max_in_flight=1)
    bench = Bench(chain(3, barriers=(4,)), schedule, withheld=lost_gradients).train()
    assert [op for op in bench.ops("stage 1") if op[0] == "F"] == ["F0", "F1", "F2", "F3"]
    assert bench.workers["stage 1"].dropped == 3


@given(
    schedule=SCHEDULES,
    count=st.integers(1, 5),
    batches=st.integers(0, 7),
    window=st.one_of(st.just("auto"), st.integers(1, 5)),
)
@settings(max_examples=60, deadline=None)
def test_every_schedule_drains_with_every_batch_updated_once_by_every_stage(
    schedule: Schedule, count: int, batches: int, window: int | str
) -> None:
    bench = Bench(chain(count, barriers=(batches,)), schedule, window=window).train()
    assert len(bench.messages(Drained)) == count
    for name, worker in bench.workers.items():
        ops = bench.ops(name)
        halves = isinstance(schedule, Locked) and schedule.split_backward and name != "stage 0"
        for letter in "FbWU" if halves else "FBU":
            assert [op for op in ops if op in {f"{letter}{i}" for i in range(batches)}] == [
                f"{letter}{i}" for i in range(batches)
            ]
        assert worker.batches == batches
        assert sorted(b for n, b in bench.released if n == name) == list(range(batches))
