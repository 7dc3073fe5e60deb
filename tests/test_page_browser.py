"""The page of a real run in a real browser.

Screenshots are left in the test's temporary folder for a person to look at: `pytest --basetemp=DIR`
says where.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from processes import TINY, Site, make_site, until
from reported import document, keep_run

from asyncdni.page.comparison import write_reports
from asyncdni.page.excerpt import FILE
from asyncdni.page.recorded import open_state

pytest.importorskip("uvicorn", reason="the extra page is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt: chromium)"),
    pytest.mark.skipif(not hasattr(os, "waitid"), reason="controls need Linux"),
]

LASTING = ("--set", "run.epochs=1000000", "--set", "run.evaluate_every=100")
MARKUP = '<img src="none" onerror="window.attacked = true"><script>window.attacked = true</script>'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        yield made


def opened(browser: Any, address: str, complaints: list[str]) -> Any:
    """Return a page at the address; whatever its console complains of is added."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("console", lambda one: complaints.append(one.text) if one.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    return page


#: Widths and schemes of colours. Those that axe-core looks at take a second each.
LOOKS = ((390, "dark"), (390, "light"), (1280, "light"), (1280, "dark"))
CHECKED = ((390, "light"), (1280, "dark"))


def look_at(page: Any, name: Path, looks: Sequence[tuple[int, str]] = LOOKS) -> None:
    """Leave screenshots, wide and narrow, light and dark; nothing may stick out or be illegible."""
    for width, scheme in looks:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 100)))")
        page.screenshot(path=f"{name}-{width}-{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if (width, scheme) in CHECKED:
            assert violations(page) == []


def violations(page: Any) -> list[str]:
    """Return the serious ones that axe-core finds; none where it is not installed."""
    try:
        from axe_playwright_python.sync_playwright import Axe
    except ImportError:
        return []
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['nodes'][0]['html']}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def test_a_killed_stage_is_seen_to_come_back_and_the_run_is_viewed_later(
    site: Site, browser: Any, tmp_path: Path
) -> None:
    site.write("tiny.toml", TINY)
    flags = ("--page", "--page-controls", "--trace", "--out", "run")
    command = site.start("train", "tiny.toml", *LASTING, *flags)
    address = until(lambda: re.search(r"http://\S+", command.warned()), "the page's address")[0]
    complaints: list[str] = []
    page = opened(browser, address, complaints)
    assert "token" not in page.url
    expect = playwright.expect

    def see(worker: str, state: str) -> None:
        card = page.get_by_role("article", name=f"Worker {worker}")
        expect(card.locator(".state")).to_contain_text(state, timeout=20_000)

    see("hidden", "learning")
    see("top", "learning")
    with open(tmp_path / "run" / "logs" / "hidden.log", "a") as log:
        log.write(f"{MARKUP}\n")
    page.get_by_role("button", name="kill hidden").click()
    see("hidden", "down")
    page.screenshot(path=tmp_path / "down.png")
    see("hidden", "learning")
    expect(page.locator(".events")).to_contain_text("hidden is back after")
    page.get_by_role("button", name="Log of hidden").first.click()
    expect(page.locator("#log-text")).to_contain_text('onerror="window.attacked')
    page.keyboard.press("Escape")
    assert page.evaluate("window.attacked") is None
    see_ops(page)
    see_slowness(page)
    expect(page.locator(".chart canvas")).to_have_count(8, timeout=20_000)
    look_at(page, tmp_path / "live")
    command.interrupt()
    expect(page.locator("#connection")).to_contain_text("has ended", timeout=20_000)
    command.finished()
    view_twice(site, page)
    assert complaints == []


def see_ops(page: Any) -> None:
    """The newest ops move on by themselves, can be held still, and are told in words as well."""
    expect = playwright.expect
    canvas, window = page.locator(".timeline canvas"), page.locator(".window")
    expect(canvas).to_be_visible(timeout=20_000)
    expect(page.locator(".legend.ops")).to_contain_text("F: forward")
    before = window.inner_text()
    expect(window).not_to_have_text(before)
    page.get_by_role("button", name="hold still").click()
    for _ in range(8):  # until all that is known is in the window
        canvas.press("-")
    page.get_by_text("The same as a table").click()
    rows = page.locator(".timeline tbody tr")
    expect(rows).to_have_count(2)
    for row in rows.all_inner_texts():
        assert 96 <= sum(map(int, re.findall(r"(\d+) %", row))) <= 104, row
    canvas.press("ArrowDown")
    expect(page.locator(".under")).to_contain_text(re.compile(r"hidden: .+, batch \d+, \d+ µs"))
    canvas.press(" ")
    expect(page.get_by_role("button", name="hold still")).to_be_visible()
    for _ in range(6):
        canvas.press("+")


def see_slowness(page: Any) -> None:
    """A worker that is made slow sleeps, which its row shows, until it is let run again."""
    expect = playwright.expect
    slow = page.get_by_label("slow hidden down")
    slow.select_option("50")
    expect(page.locator(".events")).to_contain_text("ops take 50 times as long")
    expect(page.locator(".legend.ops")).to_contain_text("made slow", timeout=20_000)
    page.get_by_label("lengthen ops of hidden").select_option("0.02")
    expect(page.locator(".events")).to_contain_text("ops take 20 ms longer")
    page.get_by_label("latency of hidden → top").select_option("0.02")
    expect(page.locator(".events")).to_contain_text("messages to hidden take 20 ms longer")
    slow.select_option("1")
    expect(page.locator(".events")).to_contain_text("ops are no longer slowed down")


def view_twice(site: Site, page: Any) -> None:
    """View the run beside itself: two columns, each with a timeline that can be moved about."""
    expect = playwright.expect
    view = site.start("view", "run", "run")
    address = until(lambda: re.search(r"http://[^\s;]+", view.said()), "the page's address")[0]
    page.goto(address)
    expect(page.locator("section.run")).to_have_count(2)
    for canvas in (page.locator(".timeline canvas").nth(n) for n in (0, 1)):
        expect(canvas).to_be_visible()
    before = page.locator(".window").first.inner_text()
    page.locator(".timeline canvas").first.press("+")
    expect(page.locator(".window").first).not_to_have_text(before)
    left, right = (page.locator("section.run").nth(n).bounding_box() for n in (0, 1))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    look_at(page, site.folder / "view", [(390, "dark"), (1280, "light")])
    page.get_by_role("checkbox").first.uncheck()
    expect(page.locator("section.run")).to_have_count(1)
    view.interrupt()
    assert view.finished().code == 0


def test_a_comparison_is_one_file_that_needs_no_server(browser: Any, tmp_path: Path) -> None:
    for name in ("locked-seed0", "synthetic-seed0"):
        keep_run(tmp_path / name, said=f"</script>{MARKUP}")
    (run,) = tmp_path.glob("locked-*")
    ops = [500_000, ord("F"), 0, 1000, 90_000, ord("B"), 0, 200_000, 90_000]
    workers = open_state(run).workers
    (run / FILE).write_text(json.dumps({"begin_s": 1.5, "slices": dict.fromkeys(workers, ops)}))
    write_reports(document(verdict=f"</script>{MARKUP}"), tmp_path)
    complaints: list[str] = []
    page = opened(browser, (tmp_path / "compare.html").as_uri(), complaints)
    expect = playwright.expect
    expect(page.locator("section.run")).to_have_count(2)
    expect(page.locator(".chart canvas")).to_have_count(10)
    expect(page.locator(".verdict")).to_contain_text('onerror="window.attacked')
    expect(page.locator(".events").first).to_contain_text('onerror="window.attacked')
    assert page.locator(".events").last.bounding_box()["height"] > 50, "styles are in it, too"
    page.get_by_role("button", name="Log of hidden").first.click()
    expect(page.locator("#log-text")).to_contain_text('</script><img src="none"')
    page.keyboard.press("Escape")
    expect(page.locator(".timeline-note").first).to_contain_text("An excerpt of the run")
    expect(page.locator(".legend.ops").first).to_contain_text("B: backward")
    page.get_by_role("checkbox").first.uncheck()
    expect(page.locator("section.run")).to_have_count(1)
    page.get_by_role("checkbox").first.check()
    look_at(page, tmp_path / "compare", CHECKED)
    assert page.evaluate("window.attacked") is None
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0
    assert complaints == []
