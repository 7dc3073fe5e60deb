"""When messages of a slow link are due: pure arithmetic, on any clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdni.delays import LinkDelay


def delay(**conditions: float) -> LinkDelay:
    given_: dict[str, float | None] = dict(conditions)
    return LinkDelay(**given_, seed=0, sender="a", receiver="b")


def test_latency_delays_each_message_by_itself() -> None:
    link = delay(latency_s=0.5)
    assert [link.due(now, 10**9) for now in (1.0, 1.25, 3.0)] == [1.5, 1.75, 3.5]


def test_messages_take_a_link_of_limited_bandwidth_one_after_the_other_and_then_fly() -> None:
    link = delay(latency_s=10.0, bytes_per_s=100.0)
    assert link.due(0.0, 200) == 12.0  # 2 s to leave
    assert link.due(0.5, 100) == 13.0  # leaves from 2 to 3
    assert link.due(5.0, 100) == 16.0  # nothing is before it


def test_jitter_is_added_evenly_from_none_to_all() -> None:
    link = delay(latency_s=1.0, jitter_s=0.5)
    late = [link.due(10.0 * i, 1) - 10.0 * i - 1.0 for i in range(4000)]
    assert 0.0 <= min(late) < 0.01 and 0.49 < max(late) <= 0.5
    assert sum(late) / len(late) == pytest.approx(0.25, abs=0.01)


SENDS = st.lists(st.tuples(st.floats(0, 2), st.integers(0, 10**6)), max_size=30)


@given(SENDS, st.floats(0, 1), st.floats(0, 1), st.floats(1e3, 1e9))
def test_no_message_is_early_and_none_overtakes_another(
    sends: list[tuple[float, int]], latency_s: float, jitter_s: float, bytes_per_s: float
) -> None:
    link = delay(latency_s=latency_s, jitter_s=jitter_s, bytes_per_s=bytes_per_s)
    now, last = 0.0, 0.0
    for pause, size in sends:
        now += pause
        due = link.due(now, size)
        assert due >= max(last, now + size / bytes_per_s + latency_s)
        last = due


def test_jitter_is_drawn_by_seed_sender_and_receiver() -> None:
    def drawn(seed: int, sender: str, receiver: str) -> list[float]:
        link = LinkDelay(jitter_s=1.0, seed=seed, sender=sender, receiver=receiver)
        return [link.due(10.0 * i, 1) for i in range(8)]

    assert drawn(0, "a", "b") == drawn(0, "a", "b")
    for other in ((1, "a", "b"), (0, "b", "a"), (0, "a", "c")):
        assert drawn(*other) != drawn(0, "a", "b")
