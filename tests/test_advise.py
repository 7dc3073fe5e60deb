"""`asyncdni advise`: every schedule predicted on the machines and links given, and a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from each import each
from processes import TINY
from rich.console import Console

from asyncdni import experiment
from asyncdni.__main__ import main
from asyncdni.cli import advise as advise_table
from asyncdni.data import describe
from asyncdni.errors import ConfigError
from asyncdni.profiling import advice
from asyncdni.profiling import advice as candidates
from asyncdni.profiling.advice import Advice, Row, Setup, advise
from asyncdni.profiling.measurement import Hop, Wire
from asyncdni.profiling.prediction import Prediction, Prices, likely_range

FREE = Hop(0.0, 0.0, 0.0, 0.0)
WIRE = Wire((0, 1000), (FREE, FREE), (FREE, FREE), (0.0, 0.0))
#: Milliseconds; arithmetic is quick beside links of 50 ms.
OPS = {"R": 0.1, "F": 1.0, "P": 0.3, "B": 1.0, "B_send": 2.0, "b": 1.0, "W": 1.0, "U": 0.3}


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "tiny.toml").write_text(TINY.replace("batch_size = 10", "batch_size = 8"))
    return str(tmp_path / "tiny.toml")


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prices that no machine has a say in."""

    def priced(design: Any, wire: Wire, batches: int, limit_s: float) -> Prices:
        names = [node.name for node in design.network.nodes]
        ops = {letter: 1e-3 * one for letter, one in {**OPS, "T": 0.1}.items()}
        sizes = dict.fromkeys(names, 1000)
        seconds = dict.fromkeys(names, ops)
        return Prices(seconds, seconds, (0.0, 0.0), wire, sizes, sizes)

    monkeypatch.setattr(candidates, "price", priced)


def setup(stages: int = 4, hosts: int = 4, cores: int = 1, **tables: Any) -> Setup:
    hidden = {"layers": [{"dense": 8}, "relu"]}
    top = {"layers": [{"dense": 8}], "name": "top", "loss": "sigmoid_cross_entropy"}
    data = {"name": "addition", "examples": 4000, "test_examples": 8, "batch_size": 8}
    chosen = experiment.parse({"data": data, "stages": [hidden] * (stages - 1) + [top], **tables})
    meta = describe(chosen.data)
    return Setup(chosen, meta, WIRE, cores=cores, hosts=hosts, batches=8, events=4000)


# --- what is advised -----------------------------------------------------------------------------


def test_over_slow_links_decoupling_pays_and_nothing_else_comes_near(known: None) -> None:
    found = advise(setup(links={"latency": "50ms"}), 4)
    rates = {row.name: row.prediction.samples_per_s for row in found.rows if row.prediction}
    assert found.decoupled is not None and found.decoupled.schedule == "synthetic"
    assert rates["synthetic"] > 20 * rates["locked"]
    assert found.waiting.name.startswith("delayed, lag "), "far enough ahead, it is busy too"
    assert found.waiting.name in rates and rates["delayed"] < 0.3 * rates[found.waiting.name]


def test_on_one_core_one_worker_is_as_good_as_any(known: None) -> None:
    found = advise(setup(hosts=1), 4)
    assert found.best == found.alone and found.best.workers == 1


def test_greedy_stages_are_advised_to_those_alone_who_ask_for_them(known: None) -> None:
    links = {"latency": "5ms"}
    asked = advise(setup(schedule={"name": "local_loss"}, links=links), 4)
    rates = {row.name: row.prediction.samples_per_s for row in asked.rows if row.prediction}
    assert rates["local_loss"] > rates["synthetic"]
    assert asked.best.schedule == "local_loss"
    assert advise(setup(links=links), 4).best.schedule != "local_loss"


def test_fewer_workers_are_advised_where_they_are_as_fast(known: None) -> None:
    """Two cores: two workers of two stages each do as much as four of one."""
    found = advise(setup(hosts=1, cores=2), 4)
    assert "synthetic, 2 workers" in {row.name for row in found.rows}
    assert found.best.workers == 2 and found.limit in ("worker", "cores")


@pytest.mark.parametrize(
    ("links", "limit"), [({"latency": "50ms"}, "latency"), ({"bandwidth": "10kB/s"}, "bandwidth")]
)
def test_the_link_is_named_as_what_limits(known: None, links: dict[str, str], limit: str) -> None:
    one = setup(links=links, schedule={"name": "locked"})
    candidate = one.candidate("locked", 4)
    assert candidate.design.plan.groups[3].name == "top"
    predicted = advice._predicted(one, candidate)
    assert advice._limit(one, candidate, Row("locked", "locked", 4, predicted)) == limit


def test_links_within_a_host_are_fast(known: None) -> None:
    links = {"latency": "50ms", "jitter": "1ms"}
    design = setup(hosts=2, links=links).candidate("locked", 4).design
    named = design.experiment.links.between
    assert set(named) == {"stage2->stage3", "stage3->stage2"}
    assert {one.latency for one in named.values()} == {"50ms"}
    assert design.experiment.links.latency == "0ms"


def test_a_schedule_that_does_not_fit_is_told_and_the_others_compared(known: None) -> None:
    data = {"name": "addition", "examples": 4000, "test_examples": 8, "batch_size": 9}
    found = advise(setup(data=data), 2)
    refused = {row.name: row.refused for row in found.rows if row.refused}
    assert refused.keys() == {"gpipe", "1f1b"}
    assert "4 does not divide data.batch_size = 9" in refused["gpipe"]


def test_options_that_have_no_price_are_refused(known: None, monkeypatch: Any) -> None:
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"schedule\.mix is set"):
        advise(setup(schedule={"name": "synthetic", "mix": 0.5}), 2)


# --- what is said --------------------------------------------------------------------------------


def row(name: str, rate: float, workers: int = 2) -> Row:
    names = [f"w{index}" for index in range(workers)]
    found = Prediction(
        schedule=name,
        split=(1,) * workers,
        samples_per_s=rate,
        idle=dict.fromkeys(names, 0.25),
        work_s=dict.fromkeys(names, 2e-3),
        staleness=dict.fromkeys(names, 1.5),
        staleness_max=dict.fromkeys(names, 3),
        limit="worker",
        slowest="w0",
    )
    return Row(name, name, workers, found)


def said(
    decoupled: Row | None, waiting: Row, limit: str = "worker", others: float | None = None
) -> str:
    rows = (row("locked", 100.0), waiting, *([decoupled] if decoupled else []))
    best = max((one for one in rows if one.prediction), key=advise_table._rate)
    console = Console(width=300, record=True, quiet=True, highlight=False)
    found = Advice(rows, best, decoupled, waiting, rows[0], limit)
    with console.capture() as captured:
        console.quiet = False
        advise_table.show(console, setup(), found, asked=4, others=others)
    return captured.get()


@each(
    "rates, words",
    [
        ((300.0, 100.0), "Decoupling pays here: synthetic over 2 workers (a stage each; about 300"),
        ((103.0, 100.0), "Decoupling gains little here: synthetic"),
        ((60.0, 100.0), "Decoupling doesn't pay here: take delayed over 2 workers"),
    ],
)
def test_the_verdict_follows_the_ratio(rates: tuple[float, float], words: str) -> None:
    text = said(row("synthetic", rates[0]), row("delayed", rates[1]))
    assert words in text
    assert "Accuracy is not predicted" in text


@each(
    "limit, words",
    [
        ("worker", "What limits synthetic: the slowest worker, w0 with 2.00 ms of work a batch"),
        ("cores", "the cores: a batch takes 4.00 ms of work in all, on 4 hosts of 1 core"),
        ("latency", "the latency of the links"),
        ("bandwidth", "the bandwidth of the links"),
        ("locking", "workers wait for each other"),
    ],
)
def test_what_limits_is_named(limit: str, words: str) -> None:
    assert words in said(row("synthetic", 300.0), row("delayed", 100.0), limit)


def test_the_table_has_every_schedule() -> None:
    text = said(row("synthetic", 300.0), row("delayed", 100.0))
    lines = [" ".join(line.split()) for line in text.split("\n")]
    assert "synthetic 1 + 1 240 to 370 3.00 25 1.5 w0" in lines


def test_a_busy_machine_widens_ranges_to_both_sides_and_is_told() -> None:
    rows = row("synthetic", 300.0), row("delayed", 100.0)
    busy = said(*rows, others=0.5)
    assert "other programs took 50 % of the cores' time" in busy
    assert "120 to 730" in busy and "240 to 370" in said(*rows, others=0.0)
    assert "busy" not in said(*rows, others=0.02) + said(*rows, others=None)
    assert likely_range(100.0, 1.0) == pytest.approx((8.0, 1220.0)), "no range is endless"


def test_rates_have_two_digits() -> None:
    found = [advise_table._short(rate) for rate in (7.89, 123.4, 999.0, 26_123.0, 1_249_000.0)]
    assert found == ["7.9", "120", "1k", "26k", "1.2M"]


def test_without_a_price_for_decoupling_nothing_is_claimed() -> None:
    assert "Whether decoupling pays is not known" in said(None, row("delayed", 100.0))


# --- the command ---------------------------------------------------------------------------------


def test_the_command_measures_predicts_and_tells(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--latency", "20ms", "--workers", "16", "--cores", "2", "--batches", "8"]
    assert main(["advise", file, *given]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "The network has 2 stages: 16 workers can't all have one, so 2 are used." in text
    assert "Predicted for 2 workers on 2 hosts of 2 cores, links of latency 20ms" in text
    for name in ("one worker", "locked", "gpipe", "1f1b", "delayed", "local_loss", "synthetic"):
        assert f" {name} " in text
    assert "What limits" in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workers", "0"], "--workers '0': expected a whole number from 1"),
        (["--cores", "two"], "--cores 'two': expected a whole number from 1"),
        (["--hosts", "-1"], "--hosts '-1': expected a whole number from 1"),
        (["--latency", "20"], "links.latency"),
        (["--batches", "1.5"], "--batches '1.5'"),
        (["--set", "schedule.mix=0.5"], "schedule.mix is set"),
    ],
)
def test_bad_input_gets_one_line(
    flags: list[str], words: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", file, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("asyncdni: ") and words in error and error.count("\n") == 1
