"""compare.html: well-formed, sufficient to itself, and with the numbers of the document in it."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError
from reported import at_latencies, document, estimate, keep_run, rows, run

from asyncdni.page import comparison
from asyncdni.report.columns import Form, as_estimate, fixed, interval, percent
from asyncdni.report.result import template_environment

HOSTILE = """<script>alert(1)</script>"'><img src=x onerror=alert(2)>&amp;"""
VOID = {"meta", "br", "link", "input"}
ENDS = {"low": 0.05, "high": 0.2, "n": 3}


class Page(HTMLParser):
    """Checks that elements close in order; keeps all of them, words, and tables by section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.sections: dict[str, list[list[list[str]]]] = {}
        self.kept: dict[str, Any] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        tables = next(reversed(self.sections.values()), [])
        if tag == "h2":
            self.words.append("")
        elif tag == "table":
            tables.append([])
        elif tag == "tr":
            tables[-1].append([])
        elif tag in ("th", "td"):
            tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "h2":
            self.sections[self.words[-1]] = []

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"] and self.elements[-1][1].get("id") == "kept":
            self.kept = json.loads(data)
        if self.open[-1:] in (["style"], ["script"]):
            return
        self.words.append(data)
        if {"th", "td"} & set(self.open):
            cells = next(reversed(self.sections.values()))[-1][-1]
            joint = " | " if self.open[-1] in ("small", "span") and cells[-1] else ""
            cells[-1] += joint + data.replace("\N{NO-BREAK SPACE}", " ")

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def table(self, section: str, index: int = 0) -> list[dict[str, str]]:
        """Its lines, by the heading of each cell."""
        headings, *lines = self.sections[section][index]
        return [dict(zip(headings, line, strict=True)) for line in lines]


def render_page(
    found: dict[str, Any], plots: dict[str, str], missing: str = "", folder: Path = Path("none")
) -> str:
    return comparison.render_page(found, folder, plots, missing)


def page(plots: dict[str, str] | None = None, missing: str = "", **changes: Any) -> Page:
    return Page(render_page(document(**changes), plots or {}, missing))


# --- numbers -------------------------------------------------------------------------------------


def test_the_main_table_has_means_and_below_them_their_intervals() -> None:
    locked, synthetic, _, other = page().table("Results")
    assert locked == {
        "": "locked",
        "runs": "2",
        "workers × threads": "2 × 1",  # noqa: RUF001
        "samples/s": "1,125 | 1,012 to 1,238",
        "test accuracy": "90.00 % | 88.00 to 92.00",
        "training, s": "3.60 | 3.50 to 3.70",
    }
    assert synthetic["samples/s"] == "2,250 | 2,025 to 2,475"
    assert other["samples/s"] == "1,600", "an interval without any width says nothing"
    assert other["test accuracy"] == "–"  # noqa: RUF001


def test_columns_without_any_number_are_left_out() -> None:
    assert not {"test loss", "CPU, s"} & page().table("Results")[0].keys()


def test_a_control_is_marked_wherever_its_row_stands() -> None:
    found = page()
    for section in ("Results", "Speed-ups", "Time to an accuracy", "Every run"):
        names = {line[""] for line in found.table(section)}
        assert "synthetic-zero | control" in names
        assert "synthetic" in names


def test_speed_ups_are_given_over_rows_that_are_there() -> None:
    lines = page().table("Speed-ups")
    assert [line["times the samples/s of locked"] for line in lines] == [
        *("1.00", "2.00 | 1.80 to 2.20", "2.24 | 2.01 to 2.46", "–"),  # noqa: RUF001
    ]
    assert not any("single" in heading for heading in lines[0])


def test_each_target_tells_how_many_runs_reached_it_and_of_how_many_pairs_a_ratio_is() -> None:
    locked, synthetic, zero = page().table("Time to an accuracy")
    assert locked["reached by"] == "2 of 2"
    assert locked["training, s"] == "1.80 | 1.30 to 2.30"
    assert synthetic["reached by"] == "1 of 2"
    assert synthetic["training, s"] == "–"  # noqa: RUF001
    assert synthetic["times sooner than locked"] == "4.00 | 1 pair"
    assert zero["reached by"] == "0 of 2"
    headings = [text for text in page().words if text.startswith("To 9")]
    assert headings == ["To 90 % test accuracy", "To 96 % test accuracy"]


def test_ceilings_stand_beside_what_was_reached_of_them() -> None:
    (locked,) = page().table("Ceiling and efficiency")
    assert locked["ceiling, samples/s"] == "1,500 | 1,400 to 1,600"
    assert locked["of the ceiling"] == "75.0 % | 70.0 to 80.0"
    assert locked["CPU time outside maths"] == "12.5 % | 12.0 to 13.0"


def test_shares_of_the_time_are_given_for_rows_that_know_them() -> None:
    locked, synthetic = page().table("Where the time went")
    assert locked["layer maths"] == "40.0 %"
    assert synthetic["generator maths"] == "25.0 %"


def test_every_run_is_on_the_page_row_by_row_and_seed_by_seed() -> None:
    lines = page().table("Every run")
    assert [(line[""].split(" |")[0], line["seed"]) for line in lines] == [
        (row["name"], str(seed)) for row in rows() for seed in (0, 1)
    ]
    assert [line["samples/s"] for line in lines[:4]] == ["1,000", "1,250", "2,000", "2,500"]
    assert [line["to 90 %, s"] for line in lines[:4]] == ["2.00", "1.60", "0.50", "–"]  # noqa: RUF001


def test_counters_of_a_run_are_over_all_its_workers() -> None:
    first = page().table("Every run", 1)[0]
    assert first["layers, s"] == "2.50"
    assert first["sent, MB"] == "2.0"
    assert "generators, s" not in first


def test_machine_and_settings_are_told_in_full() -> None:
    found = page()
    assert {"Abacus 2000", "openblas 0.3"} <= set(found.words)
    assert 'name = "mnist", batch_size = 256' in found.words
    assert 'name = "a", layers = [{ dense = 10 }, "relu"]' in found.words


def test_settings_in_which_rows_differ_are_told_of_each_row() -> None:
    assert "schedule of the first run" in page().words
    schedules = {"locked": {"name": "locked"}, "synthetic": {"name": "synthetic", "fit_every": 4}}
    words = page(schedules=schedules).words
    assert "schedule of the first run" not in words
    told = words.index("schedule of synthetic")
    assert words[told + 1] == 'name = "synthetic", fit_every = 4'


# --- several latencies ---------------------------------------------------------------------------


def latency_page() -> Page:
    return Page(render_page(at_latencies(), {}))


def test_over_the_latency_there_is_a_table_a_measure_and_a_column_a_latency() -> None:
    found = latency_page()
    locked, synthetic, zero, other = found.table("Over the latency")
    assert locked == {"": "locked", "0 ms": "1,125 | 1,012 to 1,238", "10 ms": "112 | 101 to 124"}
    assert synthetic["10 ms"] == "2,205 | 1,984 to 2,426"
    assert zero[""] == "synthetic-zero | control"
    assert other["0 ms"] == other["10 ms"] == "1,600"
    kept = found.table("Over the latency", 2)
    assert [line["10 ms"] for line in kept] == ["10.0 %", "98.0 %", "100.0 %", "–"]  # noqa: RUF001
    titles = {"Samples/s", "Part of that at the least latency", "Training time to 90 %, s"}
    assert titles <= set(found.words)


def test_each_latency_has_sections_of_its_own() -> None:
    found = latency_page()
    for section in ("Results", "Speed-ups", "Time to an accuracy", "Ceiling and efficiency"):
        assert found.table(f"{section} at 0 ms") and found.table(f"{section} at 10 ms")
        assert section not in found.sections
    assert found.table("Results at 10 ms")[0]["samples/s"] == "112 | 101 to 124"
    assert found.table("Results at 10 ms")[0]["without drains"] == "112 | 101 to 124"


def test_every_run_says_at_which_latency_it_was() -> None:
    lines = latency_page().table("Every run")
    assert [(line[""], line["latency"], line["seed"]) for line in lines[:5]] == [
        *(("locked", "0 ms", "0"), ("locked", "0 ms", "1"), ("locked", "10 ms", "0")),
        *(("locked", "10 ms", "1"), ("synthetic", "0 ms", "0")),
    ]
    assert [line["latency"] for line in lines[-2:]] == ["–", "–"]  # noqa: RUF001


def test_the_page_of_several_latencies_has_one_title_and_a_sentence_for_each() -> None:
    found = latency_page()
    assert found.words.count("A comparison of locked, synthetic and other") == 2
    assert {"At 0 ms: this.", "At 10 ms: that."} <= set(found.words)
    assert found.words[found.words.index("latencies of links") + 1] == "0 ms, 10 ms"
    assert "Latency is emulated" in found.text
    assert "Latency is emulated" not in page().text
    assert "Over the latency" not in page().sections


# --- words ---------------------------------------------------------------------------------------


def test_the_verdict_comes_first() -> None:
    words = [text for text in page().words if text.strip()]
    said = words.index("Fastest: synthetic, 2.00 times as fast as locked.")
    order = [words.index(one) for one in ("Results", "Every run", "Machine", "Experiment")]
    assert said < order[0] and order == sorted(order)


def test_then_comes_a_picture_and_then_the_table() -> None:
    text = render_page(document(), {"samples_per_s": "<svg id='speed'></svg>"})
    order = [text.index(one) for one in ("Fastest: synthetic", "<svg id='speed'>", "<table>")]
    assert order == sorted(order)


def test_disturbed_runs_and_remarks_are_on_the_page() -> None:
    found = document(remarks=["The time budget of 2min allows less."])
    load = {"others": 0.4, "stolen": 0.0, "before": None, "cores_s": 9.0}
    found["runs"][0] |= {"load": load, "disturbed": "others took 40 % of the cores' time"}
    found["rows"][0]["disturbed"] = 1
    words = [text.strip() for text in Page(render_page(found, {})).words]
    for text in ("The time budget of 2min allows less.", "1 of 2", "40\N{NO-BREAK SPACE}%"):
        assert text in words
    assert "others took 40 % of the cores' time" in words
    assert "What else the machine did" not in page().words, "an older document"


def test_a_verdict_may_be_several_sentences_or_none() -> None:
    assert {"One.", "Two."} <= set(page(verdict=["One.", "Two."]).words)
    for said, boxes in (("One.", 1), ("", 0), ([], 0), (None, 0)):
        classes = [attributes.get("class") for _, attributes in page(verdict=said).elements]
        assert classes.count("verdict") == boxes


def test_the_title_names_the_rows_that_compete() -> None:
    assert page().words.count("A comparison of locked, synthetic and other") == 2


def test_an_unfinished_comparison_says_so() -> None:
    assert "Unfinished" in page(complete=False).text
    assert "Unfinished" not in page().text


def test_how_it_was_measured_tells_only_of_what_is_there() -> None:
    everything = page().text
    for word in ("interleaved", "two consecutive evaluations", "The ceiling is arithmetic"):
        assert word in everything
    assert "A control is not a competitor" in everything
    assert "single: all stages" not in everything
    bare = page(targets=[], rows=[rows()[3]], runs=[run("other", 0)]).text
    for word in ("two consecutive evaluations", "The ceiling is arithmetic", "A control is"):
        assert word not in bare


# --- what may be missing -------------------------------------------------------------------------


def test_one_seed_has_means_without_intervals() -> None:
    one = rows()[:1]
    one[0]["samples_per_s"] = estimate(1000.0, n=1)
    lines = page(rows=one, runs=[run("locked", 0)], seeds=[0]).table("Results")
    assert lines[0]["samples/s"] == "1,000"


def test_a_comparison_whose_runs_are_all_to_come_is_a_page_too() -> None:
    planned = [{"name": "locked", "runs": 0, "control": False}]
    found = page(rows=planned, runs=[], complete=False, verdict="")
    assert found.table("Results") == [{"": "locked", "runs": "0"}]
    assert "Every run" not in found.sections


def test_a_document_of_rows_and_runs_alone_is_enough() -> None:
    assert Page(render_page({"rows": rows(), "runs": []}, {})).table("Results")


def test_a_missing_extra_is_named_where_the_plots_would_be() -> None:
    assert "install it so" in page(missing="install it so").words


# --- safe and sufficient to itself ---------------------------------------------------------------


def hostile() -> dict[str, Any]:
    bad_rows, bad_run = [{**row, "name": HOSTILE} for row in rows()[:1]], run("locked", 0)
    return document(
        rows=bad_rows,
        runs=[{**bad_run, "name": HOSTILE, "folder": HOSTILE}],
        machine={"cores": HOSTILE, "cpu": HOSTILE, HOSTILE: HOSTILE, "asyncdni": HOSTILE},
        experiment={HOSTILE: {HOSTILE: HOSTILE}},
        verdict=HOSTILE,
    )


def test_hostile_names_and_settings_are_words_and_nothing_else() -> None:
    found = Page(render_page(hostile(), {}, HOSTILE))
    assert {tag for tag, _ in found.elements} <= {tag for tag, _ in page().elements}
    assert found.words.count(HOSTILE) >= 7
    assert found.table("Results")[0][""] == HOSTILE


def test_the_page_takes_nothing_from_elsewhere_and_runs_only_what_it_came_with() -> None:
    text = render_page(document(), {})
    found = Page(text)
    for tag, attributes in found.elements:
        assert tag not in {"iframe", "object", "embed", "img", "base", "form"}
        assert not [name for name in attributes if name.startswith("on") or name == "src"]
        assert (attributes.get("href") or "#").startswith(("#", "data:image/svg+xml;base64,"))
    assert not re.search(r"url\(|@import|/assets/|^import |^export ", text, re.MULTILINE)
    (policy,) = [a["content"] or "" for _, a in found.elements if "http-equiv" in a]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")
    for kind in ("script-src", "style-src-elem"):
        assert re.fullmatch(r"('sha256-[\w+/]{43}=' ?){2}", rules[kind])


def test_scripts_that_become_one_share_no_name() -> None:
    script = comparison._script("page.js")
    names = re.findall(r"^(?:async )?(?:const|let|class|function) (\w+)", script, re.MULTILINE)
    assert len(names) > 50
    assert [name for name, times in Counter(names).items() if times > 1] == []


def test_runs_are_in_the_page_or_it_says_why_they_are_not(tmp_path: Path) -> None:
    keep_run(tmp_path / "locked-seed0", said=f"</script>{HOSTILE}")
    (tmp_path / "locked-seed1").mkdir()
    found = Page(render_page(document(), {}, folder=tmp_path))
    (news,) = found.kept["news"].values()
    assert (news["title"], news["progress"]["accuracy"]) == ("locked, seed 0", 0.75)
    assert any(text.endswith(HOSTILE) for *_, text in news["events"])
    assert found.kept["logs"]["0"]["hidden"] == f"</script>{HOSTILE}"
    assert "The runs themselves" in found.sections
    (line,) = [word for word in found.words if word.startswith("locked, seed 1 is not shown")]
    assert "is no run folder" in line and str(tmp_path) in line
    assert "The runs themselves" not in page().sections


def test_the_page_needs_no_server_to_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("asyncdni.page")]:
        monkeypatch.delitem(sys.modules, name)
    for library in ("starlette", "uvicorn", "prometheus_client"):
        monkeypatch.setitem(sys.modules, library, None)
    assert import_module("asyncdni.page.comparison").write_reports


def test_the_page_follows_the_readers_scheme_and_prints_light() -> None:
    text = render_page(document(), {})
    assert "@media screen and (prefers-color-scheme: dark)" in text
    assert "@media print" in text


# --- its parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [HOSTILE, "a < b", 'a" onclick="b', "a' onclick='b"])
def test_templates_escape_text_and_attributes(text: str) -> None:
    template = template_environment().from_string(
        "<p class=\"{{ a }}\" title='{{ a }}'>{{ a }}</p>"
    )
    made = Page(template.render(a=text))
    assert made.elements == [("p", {"class": text, "title": text})]
    assert "".join(made.words) == text


def test_a_value_that_a_template_lacks_is_an_error_and_no_gap() -> None:
    with pytest.raises(UndefinedError):
        template_environment().from_string("{{ unknown }}").render()


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (fixed(29310.4), "29,310"),
        (fixed(0.9725, 2, " %", 100.0), "97.25 %"),
        (fixed(None), "\N{EN DASH}"),
        (fixed("all"), "all"),
        (percent(0.5, 0), "50\N{NO-BREAK SPACE}%"),
        (interval(as_estimate({"mean": 2.0, "low": 1.5, "high": 2.5, "n": 3}), 1), "1.5 to 2.5"),
        (interval(as_estimate(2.0)), ""),
        (interval(None), ""),
        (Form("", ".2f", unit=" s", from_10=".1f").text(9.876), "9.88 s"),
        (Form("", ".2f", unit=" s", from_10=".1f").text(98.76), "98.8 s"),
        (Form("", ".2f", unit=" s", from_10=".1f").text(0.5, size=98.76), "0.5 s"),
        (Form("", ".2f", from_10=".1f", most=100.0).text(8e5), ">99"),
        (Form("", ",.1f", 100.0, " %").ends(as_estimate({**ENDS, "mean": 0.1})), "5.0 to 20.0"),
    ],
)
def test_numbers_are_written_alike_everywhere(made: str, text: str) -> None:
    assert made == text
