"""What `asyncdni compare` prints of several latencies: known rows in, known tables out."""

from __future__ import annotations

import io
from typing import Any

from reported import LATENCIES, TARGETS, at_latencies
from rich.console import Console

from asyncdni.cli.tables import make_tables, notes


def with_numbers() -> dict[str, Any]:
    """As `document` gives them: each row has all keys."""
    found = at_latencies()
    nothing = {"accuracy": 0.0, "reached": 0, "time_s": None, "samples": None}
    empty = {
        **dict.fromkeys(("test_accuracy", "stream_samples_per_s", "efficiency", "threads")),
        "targets": [{**nothing, "accuracy": accuracy} for accuracy in TARGETS],
    }
    found["rows"] = [{**empty, **row} for row in found["rows"]]
    return found


def printed(found: dict[str, Any], width: int, *, ascii_only: bool = False) -> list[list[str]]:
    """Words of each line, table by table."""
    tables = []
    for table in make_tables(found, width, ascii_only=ascii_only):
        console = Console(file=io.StringIO(), width=width, color_system=None)
        console.print(table)
        assert isinstance(console.file, io.StringIO)
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        tables.append([" ".join(line.split()) for line in lines])
    return tables


def test_a_measure_is_a_table_and_a_latency_a_column() -> None:
    speed, streamed, kept, accuracy, *_ = printed(with_numbers(), 80)
    assert speed[:5] == [
        *("samples/s 0 ms 10 ms", "locked 1,125 112", "± 112 ± 11"),
        *("synthetic 2,250 2,205", "± 225 ± 220"),
    ]
    assert streamed[0] == "without drains 0 ms 10 ms"
    assert kept == [
        *("kept 0 ms 10 ms", "locked 100 % 10 %", "synthetic 100 % 98 %"),
        "synthetic-zero 100 % 100 %",
    ]
    assert accuracy[:2] == ["accuracy, % 0 ms 10 ms", "locked 90.00 90.00"]


def test_rows_that_lack_a_measure_are_left_out_of_its_table() -> None:
    tables = {lines[0]: lines for lines in printed(with_numbers(), 80)}
    ceiling = tables["of the ceiling 0 ms 10 ms"]
    assert ceiling == ["of the ceiling 0 ms 10 ms", "locked 75 % 75 %"]


def test_a_target_that_not_all_runs_reached_says_how_many_did() -> None:
    tables = {lines[0]: lines for lines in printed(with_numbers(), 80)}
    found = tables["s to 90 % 0 ms 10 ms"]
    assert found[1:4] == ["locked 1.80 1.80", "± 0.50 ± 0.50", "synthetic 1 of 2 1 of 2"]


def test_where_drains_are_unknown_what_is_kept_is_of_all_samples() -> None:
    found = with_numbers()
    for row in found["rows"]:
        row["stream_samples_per_s"] = row["kept_stream_samples_per_s"] = None
    headings = [lines[0] for lines in printed(found, 80)]
    assert "kept 0 ms 10 ms" in headings
    assert not any(heading.startswith("without drains") for heading in headings)


def test_latencies_that_do_not_fit_go_on_in_a_further_table() -> None:
    found = with_numbers()
    latencies = [0.0, *(0.001 * k for k in range(1, 8))]
    found["latencies"] = latencies
    found["rows"] = [
        {**row, "latency_s": latency_s}
        for latency_s in latencies
        for row in found["rows"][: len(found["rows"]) // 2]
    ]
    headings = [lines[0] for lines in printed(found, 80) if lines[0].startswith("samples/s")]
    assert headings == ["samples/s 0 ms 1 ms 2 ms 3 ms 4 ms", "samples/s 5 ms 6 ms 7 ms"]


def test_a_terminal_without_unicode_gets_plain_signs() -> None:
    assert printed(with_numbers(), 80, ascii_only=True)[0][2] == "+- 112 +- 11"


def test_the_notes_say_what_a_latency_is_and_end_with_a_sentence_for_each() -> None:
    lines = notes(with_numbers())
    assert lines[-2:] == ["At 0 ms: this.", "At 10 ms: that."]
    assert any(line.startswith("latency: one way, of all links") for line in lines)
    assert any(line.startswith("kept: part of the samples/s at 0 ms") for line in lines)
    assert not any(line.startswith("overhead: ") for line in lines)


def test_single_is_explained_once_whatever_the_number_of_latencies() -> None:
    found = with_numbers()
    single = {**found["rows"][0], "name": "single", "threads": 2}
    found["rows"] += [{**single, "latency_s": latency_s} for latency_s in LATENCIES]
    lines = notes(found)
    assert len([line for line in lines if line.startswith("single: all stages")]) == 1
