"""What is said of every schedule beside every baseline, at each latency."""

from __future__ import annotations

from dataclasses import replace

from recorded import recorded, result

from asyncdni.report.statistics import Comparison
from asyncdni.report.verdict import kept, kept_sentence, latency_sentence

Runs = list[tuple[float | None, float | None]]

#: Reached by all after 7500 of 10,000 samples, so that times are as speeds are.
GOAL = 0.955


def fast(factor: float, accuracy: float = 0.96) -> Runs:
    """So many times as fast as 10,000 samples/s, with little between seeds."""
    return [(1e4 * factor * spread, accuracy) for spread in (0.99, 1.0, 1.01)]


def held(targets: tuple[float, ...] = (), **rows: Runs) -> Comparison:
    """Three seeds of just these rows."""
    results = [
        result(name.replace("_1f1b", "1f1b"), seed, *values)
        for name, found in rows.items()
        for seed, values in enumerate(found)
    ]
    names = dict.fromkeys(one.name for one in results)
    return Comparison(tuple(names), tuple(results), targets)


def test_the_fastest_is_held_against_every_baseline_that_is_there() -> None:
    found = held(locked=fast(1), gpipe=fast(2), single=fast(4), synthetic=fast(8))
    assert latency_sentence(found, 0.01) == (
        "At 10 ms links synthetic is 8.00 times as fast as locked (95 % interval 8.00 to 8.00), "
        "4.00 times as fast as gpipe (4.00 to 4.00) and 2.00 times as fast as single "
        "(2.00 to 2.00)."
    )


def test_whoever_is_ahead_the_ratio_is_told() -> None:
    found = held((GOAL,), locked=fast(1), single=fast(10), synthetic=fast(8))
    text = latency_sentence(found, 0.0)
    assert "0.80 times as fast as single (0.80 to 0.80)" in text
    assert "synthetic reaches 95.5 % 8.00 times sooner than locked" in text
    assert "and 1.25 times later than single (1.25 to 1.25)." in text


def test_a_difference_that_may_be_chance_is_said_to_be_unclear() -> None:
    text = latency_sentence(recorded(), 0.05)
    assert "times as fast as single (0.59 to 1.50: may be chance)" in text
    assert "times as fast as locked (95 % interval 1.55 to 2.06)" in text


def test_every_rival_that_reaches_the_target_has_its_times_the_first_first() -> None:
    rows = {"locked": fast(1), "delayed": fast(2), "local_loss": fast(9, 0.90)}
    text = latency_sentence(held((0.90, GOAL), **rows, synthetic=fast(4)), 0.01)
    assert text.startswith(
        "At 10 ms links local_loss (the fastest of local_loss, synthetic and delayed) is 9.00 "
    )
    first, second = text.index("; synthetic reaches 95.5 % 4.00"), text.index("; delayed reaches")
    assert first < second
    assert "delayed reaches 95.5 % 2.00 times sooner than locked" in text
    assert "(local_loss in 0 of 3)" in text and "local_loss reaches" not in text


def test_a_baseline_that_does_not_always_get_there_has_no_ratio() -> None:
    slow: Runs = [(1e4, 0.96), (1e4, 0.95), (1e4, 0.96)]
    text = latency_sentence(held((GOAL,), locked=slow, single=fast(2), synthetic=fast(4)), 0.0)
    assert "sooner than locked" not in text
    assert "synthetic reaches 95.5 % 2.00 times sooner than single" in text
    assert "(locked in 2 of 3)" in text


def test_a_target_that_no_rival_reaches_is_said_to_be_missed() -> None:
    text = latency_sentence(held((0.99,), locked=fast(1), synthetic=fast(4)), 0.0)
    assert "; synthetic does not reach 99 % in every run (synthetic in 0 of 3)" in text


def test_baselines_alone_are_held_against_each_other() -> None:
    text = latency_sentence(held(locked=fast(1), gpipe=fast(2)), 0.01)
    assert text.startswith("At 10 ms links fastest: gpipe, 2.00 times as fast as locked")


def test_a_single_process_with_other_threads_is_a_baseline_too() -> None:
    rows = {"locked": fast(1), "single-1": fast(2), "synthetic": fast(4)}
    assert "and 2.00 times as fast as single-1" in latency_sentence(held(**rows), 0.0)


def test_nothing_to_compare_has_no_sentence() -> None:
    assert latency_sentence(held(locked=fast(1)), 0.0) == ""
    assert latency_sentence(Comparison(("locked", "synthetic"), ()), 0.0) == ""


# --- what is kept of the speed -------------------------------------------------------------------


def over(**factors: float) -> dict[float, Comparison]:
    """At 0 ms and, so many times as fast, at 10 ms."""
    found = {}
    for latency_s in (0.0, 0.01):
        results = []
        for name, factor in factors.items():
            for seed, values in enumerate(fast(factor if latency_s else 1.0)):
                one = result(name, seed, *values)
                where = None if name == "single" else latency_s
                results.append(replace(one, latency_s=where))
        found[latency_s] = Comparison(tuple(factors), tuple(results))
    return found


def test_what_is_kept_is_paired_by_seed_with_the_least_latency() -> None:
    one = kept(over(locked=0.1), 0.01, "locked", "samples_per_s")
    assert one is not None
    assert round(one.mean, 9) == 0.1 and one.n == 3
    least = kept(over(locked=0.1), 0.0, "locked", "samples_per_s")
    assert least is not None and least.mean == 1.0


def test_what_has_no_links_keeps_nothing() -> None:
    assert kept(over(locked=0.1, single=1.0), 0.01, "single", "samples_per_s") is None


def test_the_sentence_tells_what_each_keeps_at_the_highest_latency() -> None:
    assert kept_sentence(over(locked=0.1, synthetic=0.97, single=1.0)) == (
        "At 10 ms links, of its samples/s at 0 ms, locked keeps 10 % (95 % interval 10.00 to "
        "10.00) and synthetic keeps 97 % (97.00 to 97.00)."
    )
    assert kept_sentence({0.0: Comparison((), ()), 0.01: Comparison((), ())}) == ""


def test_fills_and_drains_are_left_out_where_all_are_measured_so() -> None:
    comparisons = {
        latency_s: replace(
            one,
            results=tuple(
                replace(run, summary={**run.summary, "stream_samples_per_s": 5.0})
                for run in one.results
            ),
        )
        for latency_s, one in over(locked=0.1).items()
    }
    assert kept_sentence(comparisons) == (
        "At 10 ms links, of its samples/s, fills and drains left out, at 0 ms, locked keeps 100 % "
        "(95 % interval 100 to 100)."
    )
