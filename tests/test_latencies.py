"""Documents of several latencies: what is at each of them."""

from __future__ import annotations

import pytest
from each import each
from reported import LATENCIES, at_latencies, document

from asyncdni.report.statistics import at_latency, latencies_of, latency_words, slices, suffix


@each(
    "latency_s, words, end",
    [(0.0, "0 ms", "-0ms"), (0.01, "10 ms", "-10ms"), (0.0005, "0.5 ms", "-0.5ms")],
)
def test_latencies_are_told_in_milliseconds(latency_s: float, words: str, end: str) -> None:
    assert (latency_words(latency_s), suffix(latency_s)) == (words, end)


def test_a_document_of_one_latency_is_its_own_only_slice() -> None:
    found = document()
    assert latencies_of(found) == []
    assert slices(found) == [(None, found)]
    assert suffix(None) == ""


def test_a_slice_has_the_rows_at_its_latency_and_runs_without_links() -> None:
    found = at_latencies()
    assert [latency_s for latency_s, _ in slices(found)] == list(LATENCIES)
    slow = at_latency(found, 0.01)
    assert latencies_of(slow) == []
    assert [row["name"] for row in slow["rows"]] == [
        *("locked", "synthetic", "synthetic-zero", "other"),
    ]
    assert slow["rows"][0]["samples_per_s"]["mean"] == pytest.approx(112.5)
    runs = [(run["name"], run["latency_s"]) for run in slow["runs"] if run["seed"] == 0]
    assert sorted(runs, key=str) == [
        *(("locked", 0.01), ("other", None), ("synthetic", 0.01), ("synthetic-zero", 0.01)),
    ]
