"""The files that a comparison leaves for readers."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest
from reported import document
from test_report_page import Page

from asyncdni.errors import CheckpointError
from asyncdni.page.comparison import write_reports
from asyncdni.report import plots
from asyncdni.report.columns import evaluations_csv, runs_csv

NAMES = ["compare.csv", "compare-evaluations.csv", "compare.html"]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def test_reports_are_two_tables_plots_and_a_page_that_has_the_plots_in_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = write_reports(document(), tmp_path)
    names = [str(path.relative_to(tmp_path)) for path in written]
    assert set(names) == files(tmp_path)
    assert [name for name in names if not name.startswith("plots/")] == NAMES
    drawn = ("accuracy_over_time", "accuracy_over_samples", "samples_per_s", "time_to_target")
    assert {name for name in names if name.startswith("plots/")} == {
        f"plots/{name}.{ending}" for name in (*drawn, "shares") for ending in ("svg", "png")
    }
    page = Page((tmp_path / "compare.html").read_text())
    assert [tag for tag, _ in page.elements].count("svg") == 5
    assert plots.MISSING_EXTRA not in page.words
    _assert_takes_nothing_from_elsewhere(page)


def test_the_tables_are_those_of_the_document(tmp_path: Path) -> None:
    write_reports(document(), tmp_path, plots=False)
    assert (tmp_path / "compare.csv").read_text() == runs_csv(document())
    assert (tmp_path / "compare-evaluations.csv").read_text() == evaluations_csv(document())


def _assert_takes_nothing_from_elsewhere(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in {"img", "image", "iframe", "foreignObject"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            own = (value or "").startswith(("#", "data:image/svg+xml;base64,"))
            assert name not in ("src", "href", "xlink:href") or own


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_the_page_says_what_to_install(tmp_path: Path) -> None:
    written = write_reports(document(), tmp_path)
    assert [path.name for path in written] == NAMES
    assert files(tmp_path) == set(NAMES)
    page = Page((tmp_path / "compare.html").read_text())
    assert plots.MISSING_EXTRA in page.words
    assert "pip install 'asyncdni[plot]'" in plots.MISSING_EXTRA
    assert not plots.available()


def test_plots_that_nobody_wants_are_not_missed(tmp_path: Path) -> None:
    assert [path.name for path in write_reports(document(), tmp_path, plots=False)] == NAMES
    assert plots.MISSING_EXTRA not in Page((tmp_path / "compare.html").read_text()).words


def test_reports_replace_those_of_fewer_runs(tmp_path: Path) -> None:
    write_reports(document(runs=document()["runs"][:3], complete=False), tmp_path, plots=False)
    before = (tmp_path / "compare.html").read_text()
    write_reports(document(), tmp_path, plots=False)
    after = (tmp_path / "compare.html").read_text()
    assert "Unfinished" in before
    assert "Unfinished" not in after
    assert files(tmp_path) == set(NAMES), "and no temporary file is left"


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    with pytest.raises(CheckpointError, match=r"compare\.csv"):
        write_reports(document(), taken, plots=False)
    assert stat.S_ISREG(taken.stat().st_mode)
