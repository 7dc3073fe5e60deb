"""What a message costs, measured over real sockets, and between the sizes that were measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncdni.errors import LaunchError
from asyncdni.profiling import measurement as wire
from asyncdni.profiling.measurement import Hop, Wire, last_level_bytes, measure_wire


@pytest.mark.parametrize("held", [False, True])
def test_real_messages_are_measured(held: bool) -> None:
    found = measure_wire((0, 4096), repeats=3, held=held)
    assert found.sizes == (0, 4096)
    for hop in (*found.warm, *found.cold):
        assert min(hop.send_s, hop.receive_s, hop.latency_s) > 0 and hop.move_s >= 0
        assert hop.latency_s >= hop.send_s
    assert min(found.look_s) > 0


def test_costs_between_sizes_and_beyond_are_on_a_straight_line() -> None:
    hops = tuple(Hop(one, 2 * one, 3 * one, 4 * one) for one in (1.0, 3.0, 7.0))
    found = Wire((0, 100, 200), hops, hops, (0.0, 0.0))
    assert found.warm_hop(0) == hops[0] and found.cold_hop(100) == hops[1]
    assert found.warm_hop(50) == Hop(2.0, 4.0, 6.0, 8.0)
    assert found.cold_hop(300) == Hop(11.0, 22.0, 33.0, 44.0)


def test_a_message_that_does_not_come_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(wire.WorkerTransport, "send", lambda *_: None)
    with pytest.raises(LaunchError, match=r"no message has come .* within 0\.01 s"):
        measure_wire((0,), repeats=1)


def test_the_largest_cache_is_what_counts(tmp_path: Path) -> None:
    for index, size in enumerate(("48K", "1024K", "16M", "none")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert last_level_bytes(tmp_path) == 16 * 2**20
    assert last_level_bytes(tmp_path / "nowhere") == 32 * 2**20
