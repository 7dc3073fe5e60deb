"""What `asyncdni compare` prints: known rows in, known tables out."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from asyncdni.cli.tables import make_tables, notes

SEEDS = 3
MACHINE = {"cores": 2, "cpu": "AMD EPYC"}


def one(mean: float, half: float | None = None, n: int = SEEDS) -> dict[str, Any]:
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {"mean": mean, "low": low, "high": high, "n": n}


def row(name: str = "synthetic", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "runs": SEEDS,
        "workers": 4,
        "threads": 1,
        "control": False,
        "samples_per_s": one(66429, 1329),
        "test_accuracy": one(0.96125, 0.0031),
        "test_loss": one(0.2, 0.01),
        "train_s": one(2.71, 0.2),
        "cpu_s": one(21.84, 0.1),
        "speedup_over_locked": one(1.79, 0.18),
        "speedup_over_single": one(0.94, 0.05),
        "ceiling_samples_per_s": one(73810, 900),
        "efficiency": one(0.9, 0.01),
        "overhead_cpu": one(0.14, 0.01),
        "shares": {
            "layers": 0.52,
            "generator": 0.08,
            "transport": 0.11,
            "waiting": 0.25,
            "other": 0.04,
        },
        "targets": [],
        **changes,
    }


def target(**changes: Any) -> dict[str, Any]:
    return {
        "accuracy": 0.975,
        "reached": SEEDS,
        "time_s": one(12.34, 0.46),
        "samples": one(307_200, 12_288),
        "speedup_over_locked": one(1.72, 0.08),
        "speedup_over_single": one(1.21, 0.04),
        **changes,
    }


def document(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    targets = [one["accuracy"] for one in rows[0]["targets"]]
    return {
        "rows": rows,
        "targets": targets,
        "machine": MACHINE,
        "seeds": [0, 1, 2],
        "verdict": "Fastest: synthetic.",
        **changes,
    }


def printed(found: dict[str, Any], width: int, *, ascii_only: bool = False) -> list[list[str]]:
    """Lines of each table, as they look on a console of that width."""
    tables = []
    for table in make_tables(found, width, ascii_only=ascii_only):
        console = Console(file=io.StringIO(), width=width, color_system=None)
        console.print(table)
        written = console.file
        assert isinstance(written, io.StringIO)
        tables.append([line.rstrip() for line in written.getvalue().splitlines()])
    return tables


def words(line: str) -> str:
    return " ".join(line.split())


# --- speed and accuracy --------------------------------------------------------------------------


def test_a_wide_table_has_each_interval_beside_its_mean() -> None:
    heading, line = printed(document(row()), 110)[0]
    assert words(heading) == "samples/s accuracy training times locked times single"
    assert words(line) == (
        "synthetic 66,429 ± 1,329 96.12 ± 0.31 % 2.71 s 1.79 (1.61 to 1.97) 0.94 (0.89 to 0.99)"
    )


def test_a_narrow_table_has_each_interval_below_its_mean() -> None:
    *_, first, second = printed(document(row()), 80)[0]
    assert words(first) == "synthetic 66,429 96.12 % 2.71 s 1.79 0.94"
    assert words(second) == "± 1,329 ± 0.31 % (1.61 to 1.97) (0.89 to 0.99)"


def test_an_uneven_interval_is_shown_by_its_ends() -> None:
    uneven = {"mean": 6100.0, "low": 1030.0, "high": 36_400.0, "n": SEEDS}
    assert "6,100 (1,030 to 36,400)" in printed(document(row(samples_per_s=uneven)), 110)[0][1]
    lines = printed(document(row(samples_per_s=uneven)), 80)[0]
    assert [words(line).split(" ± ")[0] for line in lines[-2:]] == ["(1,030", "to 36,400)"]


def test_disturbed_runs_of_a_row_are_counted() -> None:
    lines = printed(document(row(disturbed=1), row("locked", disturbed=0)), 110)
    assert words(lines[1][0]).startswith("disturbed CPU")
    assert [words(line).split(" 21.8")[0] for line in lines[1][1:]] == [
        "synthetic 1 of 3",
        "locked -",
    ]
    assert "disturbed" not in printed(document(row(disturbed=0)), 110)[1][0]


def test_the_largest_numbers_fit_80_columns() -> None:
    ratio = {"mean": 2.5, "low": 1e-3, "high": 8e5, "n": SEEDS}
    wild = {f"speedup_over_{other}": ratio for other in ("locked", "single")}
    large = row(
        "synthetic-zero",
        samples_per_s=one(1_234_567, 24_691),
        train_s=one(1234.5, 1.0),
        cpu_s=one(12345.6, 1.0),
        targets=[target(time_s=one(1234.5, 10.0), samples=one(6_000_000, 12_288), **wild)],
        **wild,
    )
    tables = printed(document(large), 80)
    assert len(tables) == 4
    for lines in tables:
        assert max(map(len, lines)) <= 80
        assert not any("…" in line for line in lines)  # cut off
    assert "(0.00 to >99)" in tables[0][-1]


def test_one_seed_has_no_intervals() -> None:
    alone = row(
        samples_per_s=one(66429), test_accuracy=one(0.96125), speedup_over_locked=one(1.79),
        speedup_over_single=one(0.94),
    )  # fmt: skip
    lines = printed(document(alone), 80)[0]
    assert words(lines[-1]) == "synthetic 66,429 96.12 % 2.71 s 1.79 0.94"


def test_without_locked_there_is_no_column_of_times_locked() -> None:
    (heading, _), *_ = printed(document(row(speedup_over_locked=None)), 110)
    assert "locked" not in heading and "times single" in heading


def test_without_right_answers_the_loss_takes_the_place_of_the_accuracy() -> None:
    heading, line = printed(document(row(test_accuracy=None)), 110)[0]
    assert "test loss" in heading and "accuracy" not in heading
    assert "0.2000 ± 0.0100" in line


def test_a_terminal_without_unicode_gets_plain_signs() -> None:
    assert "66,429 +- 1,329" in printed(document(row()), 110, ascii_only=True)[0][1]


def test_a_row_of_which_nothing_is_known_is_full_of_dashes() -> None:
    known = row()
    empty = {
        name: None if isinstance(value, dict) else value for name, value in row("torch").items()
    }
    for lines in printed(document(known, empty), 110):
        cells = lines[-1].split()
        assert cells[0] == "torch" and set(cells[1:]) == {"-"}


def test_ratios_to_many_baselines_have_a_table_of_their_own() -> None:
    pipelines = {f"speedup_over_{name}": one(2.5, 0.1) for name in ("gpipe", "1f1b")}
    found = document(row(**pipelines, targets=[target(**pipelines)]))
    for width in (80, 110):
        first, second, third, fourth, *_ = printed(found, width)
        assert not any("times" in line for line in first)
        heading = words(" ".join(second[: 2 if width == 80 else 1]))
        for name in ("locked", "gpipe", "1f1b", "single"):
            assert heading.count(name) == 1
        assert "2.50" in second[-2 if width == 80 else -1]
        assert third[0].startswith("to 97.5 %") and "sooner than" in fourth[0]
        assert max(len(line) for line in (*first, *second, *third, *fourth)) <= width


# --- time to an accuracy -------------------------------------------------------------------------


def test_each_target_has_a_table_of_its_own() -> None:
    both = [target(), target(accuracy=0.98, reached=0, time_s=None, samples=None)]
    tables = printed(document(row(targets=both)), 110)
    assert words(tables[1][0]) == "to 97.5 % reached time samples sooner than locked " + (
        "sooner than single"
    )
    assert words(tables[1][1]) == (
        "synthetic 3 of 3 12.3 ± 0.5 s 307,200 ± 12,288 1.72 (1.64 to 1.80) 1.21 (1.17 to 1.25)"
    )
    assert words(tables[2][1]).startswith("synthetic 0 of 3 - - ")


def test_a_ratio_of_fewer_pairs_than_runs_says_of_how_many() -> None:
    some = target(reached=2, time_s=None, samples=None, speedup_over_locked=one(1.6, 0.1, n=2))
    found = printed(document(row(targets=[some])), 110)[1][1]
    assert "synthetic 2 of 3 - - 1.60 (1.50 to 1.70) of 2 pairs" in words(found)
    one_pair = target(speedup_over_locked=one(1.6, n=1))
    assert "1.60 of 1 pair " in words(printed(document(row(targets=[one_pair])), 110)[1][1])


# --- where the time went -------------------------------------------------------------------------


def test_cpu_ceiling_and_shares_are_one_wide_table_or_two_narrow_ones() -> None:
    economy = "synthetic 21.8 s 14 % 73,810 90 %"
    shares = "52 % 8 % 11 % 25 % 4 %"
    wide, narrow = printed(document(row()), 110), printed(document(row()), 80)
    assert words(wide[1][1]) == f"{economy} {shares}"
    assert [words(lines[1]) for lines in narrow[1:]] == [economy, f"synthetic {shares}"]
    assert words(narrow[2][0]) == "layers generator transport waiting other"
    limited = row(roofline_samples_per_s=120_000.0, of_roofline=one(0.55, 0.01))
    heading, line, *_ = printed(document(limited), 80)[1]
    assert words(heading) == "CPU overhead ceiling reached roofline of that"
    assert words(line) == f"{economy} 120,000 55 %"


# --- below ---------------------------------------------------------------------------------------


def test_notes_say_what_was_measured_on_what_and_end_with_the_verdict() -> None:
    singles = [row("single", workers=1, threads=2), row("single-1", workers=1)]
    lines = notes(document(row(targets=[target()]), row("synthetic-zero"), *singles))
    assert lines[0] == "3 seeds, 95 % intervals of the mean (Student's t); 2 cores, AMD EPYC."
    assert lines[1].startswith("single: all stages in one worker process with 2 BLAS threads, ")
    assert lines[2] == "single-1: the same with 1 BLAS thread."
    assert lines[3].startswith("synthetic-zero: the control")
    assert lines[4].startswith("time to an accuracy: ")
    assert "on 2 cores" in lines[5]
    assert lines[6:] == ["Fastest: synthetic."]


def test_notes_explain_nothing_that_is_not_there() -> None:
    bare = row(efficiency=None, overhead_cpu=None)
    machine = {"cores": 2, "cpu": None}
    lines = notes(document(bare, seeds=[0], machine=machine, verdict=""))
    assert lines == ["1 seed; 2 cores, unknown CPU."]
