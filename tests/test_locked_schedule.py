"""Locked: one batch in the whole network at a time; the gradient is sent before it is learned."""

from __future__ import annotations

from pair import Bench, chain

from asyncdni.messages import Activation, Gradient
from asyncdni.schedules.locked import Locked


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
    assert all(worker.counts.samples == 9 for worker in bench.workers.values())


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
