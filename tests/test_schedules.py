"""What each schedule does, as timelines: the picture in its file, the one in the docs, and reality.

Real workers run back to back, every op one column wide; see `pair` and `pictures`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pair import Bench, chain
from pictures import CASES, SHOWN, Case, bounded, pictures

from asyncdni.core.position import Position
from asyncdni.core.worker import Worker
from asyncdni.messages import Drained
from asyncdni.schedules.base import Asked, Groups, Schedule
from asyncdni.schedules.delayed import Delayed
from asyncdni.schedules.gpipe import Gpipe
from asyncdni.schedules.local_loss import LocalLoss
from asyncdni.schedules.locked import Locked
from asyncdni.schedules.one_f_one_b import OneF1B
from asyncdni.schedules.synthetic import Synthetic

DOCS = Path(__file__).parent.parent / "docs" / "schedules.md"

each_case = pytest.mark.parametrize(
    ("case", "picture"), list(zip(CASES.values(), SHOWN, strict=True)), ids=list(CASES)
)

SCHEDULES = st.one_of(
    st.builds(Locked, split_backward=st.booleans()),
    st.builds(Gpipe, st.builds(Groups, st.integers(1, 4), st.integers(1, 7)), st.booleans()),
    st.builds(
        OneF1B,
        st.builds(Groups, st.integers(1, 4), st.integers(1, 7)),
        st.integers(0, 5),
        st.booleans(),
    ),
    st.builds(
        Delayed,
        st.builds(Groups, st.integers(1, 4), st.integers(1, 7)),
        st.booleans(),
        st.booleans(),
    ),
    st.builds(LocalLoss),
    st.builds(
        Synthetic,
        bootstrap=st.booleans(),
        half=st.booleans(),
        asked=st.builds(Asked, st.integers(1, 4), st.integers(0, 3)),
        correct=st.booleans(),
    ),
    st.builds(Synthetic, mix=st.floats(0.1, 1.0)),
)


@each_case
def test_workers_do_what_the_picture_in_the_schedules_file_shows(case: Case, picture: str) -> None:
    bench = case.bench()
    assert bench.picture() == picture
    assert len(bench.messages(Drained)) == 3


@each_case
def test_the_docs_show_the_same_picture(case: Case, picture: str) -> None:
    assert picture in pictures(DOCS.read_text(encoding="utf-8"))


def test_two_barriers_look_like_the_picture_in_the_docs() -> None:
    """A barrier after batch 1: the pipe drains, then goes on."""
    bench = Bench(chain(3, barriers=(2, 3)), Synthetic()).train()
    assert len(bench.messages(Drained)) == 3
    bench.resume(0)
    assert len(bench.messages(Drained)) == 6
    shown = pictures(DOCS.read_text(encoding="utf-8"))
    assert bench.picture() in shown
    assert sorted(shown) == sorted([*SHOWN, bench.picture()])  # and the docs show no other


@given(
    schedule=SCHEDULES,
    count=st.integers(1, 5),
    batches=st.integers(0, 7),
    window=st.one_of(st.just("auto"), st.integers(1, 5)),
    lag=st.integers(0, 4),
)
@settings(max_examples=120, deadline=None)
def test_every_schedule_drains_with_every_batch_done_once_by_every_stage(
    schedule: Schedule, count: int, batches: int, window: int | str, lag: int
) -> None:
    """Groups need all their microbatches at once; whoever else waits may be bound to any lag."""

    def make(position: Position) -> Worker:
        waits = isinstance(schedule, Delayed | Synthetic)
        return Worker(
            position, schedule, window=window, lag=bounded(position, lag) if waits else None
        )

    bench = Bench(chain(count, barriers=(batches,)), make).train()
    assert len(bench.messages(Drained)) == count
    for name, worker in bench.workers.items():
        assert worker.counts.batches == batches
        assert sorted(b for n, b in bench.released if n == name) == list(range(batches))
        learned = [op for op in bench.ops(name) if op[0] in "BW"]
        assert [op[1:] for op in learned] == [str(batch) for batch in range(batches)]
        updates = [op for op in bench.ops(name) if op[0] == "U" and op != "U"]
        if isinstance(schedule, Delayed):
            ends = [f"U{b}" for b in range(batches) if schedule.groups.ends(b) or b == batches - 1]
            assert updates == ends  # a barrier in the middle of a group ends it
        elif not isinstance(schedule, Gpipe | OneF1B):
            assert len(updates) == len(set(updates)) == batches
