"""Where barriers may stand: between groups of microbatches, as planned, ordered, or at a stop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from each import each
from hypothesis import given
from hypothesis import strategies as st
from pair import Bench, chain, roster_of
from pictures import depth

from asyncdni.core.coordinator import Coordinator
from asyncdni.core.counts import Counts
from asyncdni.core.events import Finish
from asyncdni.core.position import CHECKPOINT, EVALUATE, FINAL, Host, Position
from asyncdni.core.worker import Worker
from asyncdni.messages import DATA, Drained
from asyncdni.schedules.base import Groups, Op, OpKind
from asyncdni.schedules.gpipe import Gpipe
from asyncdni.schedules.one_f_one_b import OneF1B


def host_position(microbatches: int = 1, per_epoch: int = 0, **fields: Any) -> Position:
    return Position("p", (DATA,), host="p", per_update=microbatches, per_epoch=per_epoch, **fields)


def host_of(
    *barriers: int, read: int = 0, planned: int = 0, cuts: tuple[int, ...] = (), micro: int = 1
) -> Host:
    counts = Counts()
    counts.read = read
    host = Host(host_position(micro, 10, barriers=barriers, cuts=cuts), counts)
    host.begin(planned)
    return host


def stops(host: Host, most: int = 100) -> list[tuple[int, str]]:
    """Read on; (batches read, kind) of each barrier, up to the final one."""
    found: list[tuple[int, str]] = []
    while host.read < most:
        while host.at_barrier():
            found.append((host.read, host.set_barrier()))
            if found[-1][1] == FINAL:
                return found
        host.has_read(host.next_read())
    raise AssertionError(f"no end: {found}")


# --- groups --------------------------------------------------------------------------------------


def test_single_batches_may_be_parted_anywhere() -> None:
    assert [host_position().group_end(batch) for batch in range(4)] == [0, 1, 2, 3]


def test_the_last_group_of_an_epoch_may_be_short() -> None:
    """Seven microbatches an epoch in groups of three: 0-2, 3-5, 6 | 7-9, 10-12, 13 | …"""
    ends = [host_position(3, 7).group_end(batch) for batch in range(16)]
    assert ends == [0, 3, 3, 3, 6, 6, 6, 7, 10, 10, 10, 13, 13, 13, 14, 17]


@given(st.integers(1, 8), st.integers(1, 30), st.integers(0, 200))
def test_a_group_ends_at_the_first_place_from_a_batch_on_that_parts_none(
    microbatches: int, per_epoch: int, batch: int
) -> None:
    places = {
        epoch * per_epoch + place
        for epoch in range(202)
        for place in range(0, per_epoch, microbatches)
    }
    end = host_position(microbatches, per_epoch).group_end(batch)
    assert end == (batch if microbatches == 1 else min(p for p in places if p >= batch))


# --- what the host sets --------------------------------------------------------------------------


def test_the_plan_s_barriers_come_in_order_and_the_last_is_the_end() -> None:
    host = host_of(2, 3, 5, cuts=(3,))
    assert stops(host) == [(2, EVALUATE), (3, CHECKPOINT), (5, FINAL)]


def test_those_that_were_lifted_in_earlier_rounds_are_left_out() -> None:
    assert stops(host_of(2, 3, 5, read=3, planned=2)) == [(5, FINAL)]


def test_one_that_was_passed_but_not_lifted_is_set_at_once() -> None:
    """Somebody has died at it, or the round starts behind it."""
    assert stops(host_of(2, 3, 5, read=4, planned=1)) == [(4, EVALUATE), (5, FINAL)]


def test_nothing_is_read_in_a_run_that_had_ended() -> None:
    assert stops(host_of(2, 5, read=5, planned=2)) == [(5, FINAL)]


def test_a_checkpoint_that_is_ordered_comes_at_once_and_the_plan_goes_on() -> None:
    host = host_of(6, read=2)
    host.close(CHECKPOINT)
    assert stops(host) == [(2, CHECKPOINT), (6, FINAL)]


def test_or_at_the_end_of_the_group_that_has_been_begun() -> None:
    host = host_of(20, read=4, micro=4)  # groups end at 4, 8, 10, 14, 18 and 20
    host.close(CHECKPOINT)
    assert stops(host) == [(4, CHECKPOINT), (20, FINAL)]
    host = host_of(20, read=9, micro=4)
    host.close(CHECKPOINT)
    assert stops(host) == [(10, CHECKPOINT), (20, FINAL)]


@pytest.mark.parametrize("read", [5, 6])
def test_a_barrier_of_the_plan_that_is_as_near_serves_for_it(read: int) -> None:
    host = host_of(6, 12, read=read, micro=2)
    host.close(CHECKPOINT)
    assert stops(host) == [(6, EVALUATE), (12, FINAL)]


def test_a_final_one_comes_where_the_group_ends_too_and_none_after_it() -> None:
    for read, end in ((4, 4), (5, 8), (6, 8), (9, 10), (17, 18)):  # as above
        host = host_of(18, 20, read=read, micro=4)
        host.close(CHECKPOINT)
        host.close(FINAL)
        assert stops(host) == [(end, FINAL)]


def test_a_batch_that_is_being_read_still_belongs_to_what_comes_before_it() -> None:
    host = host_of(20, read=4, micro=4)
    op = host.next_read()
    host.close(FINAL)
    assert not host.at_barrier()
    host.has_read(op)
    assert stops(host) == [(8, FINAL)]


def test_after_the_final_one_nothing_is_ordered_any_more() -> None:
    host = host_of(3)
    stops(host)
    host.close(CHECKPOINT)
    assert not host.at_barrier()


def test_test_batches_are_read_once_for_each_order_and_are_no_training() -> None:
    host = Host(host_position(barriers=(4,), test_batches=2), Counts())
    for _ in range(2):
        host.begin_test()
        ops = []
        while host.testing:
            ops.append(host.next_test_read())
            host.has_read(ops[-1])
        assert ops == [
            Op(OpKind.READ, 0, evaluate=True),
            Op(OpKind.READ, 1, evaluate=True, last=True),
        ]
    assert host.read == 0


# --- the same in a run ---------------------------------------------------------------------------


@each("schedule", ["gpipe", "1f1b"])
@each("every_s", [3.0, 7.0, 11.0])
def test_checkpoints_by_time_part_no_group_and_leave_no_batch_out(
    schedule: str, every_s: float
) -> None:
    """Two epochs of seven microbatches in groups of three."""

    def make(position: Position) -> Worker:
        groups = Groups(3, 7)
        if schedule == "gpipe":
            return Worker(position, Gpipe(groups))
        return Worker(position, OneF1B(groups, warmup=depth(position)))

    first, *others = chain(3, barriers=(14,))
    positions = [replace(first, per_update=3, per_epoch=7), *others]
    values = {"silence_s": 1e6, "stuck_s": 1e6, "has_tests": False, "cut_every_s": every_s}
    bench = Bench(positions, make, coordinator=Coordinator(roster_of(positions, **values)))
    bench.join()
    bench.end()
    assert any(isinstance(action, Finish) for action in bench.said)
    places = {m.position for m in bench.messages(Drained) if isinstance(m, Drained)}
    assert len(places) > 1
    assert places <= {0, 3, 6, 7, 10, 13, 14}
    for name, worker in bench.workers.items():
        assert worker.counts.batches == 14
        assert len([op for op in bench.ops(name) if op[0] == "U"]) == 6
