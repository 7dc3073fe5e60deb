"""What the page of a run costs: the run its speed, the browser time and memory.

    ASYNCDNI_DATA=… python benchmarks/page/run.py --pairs 8     # some 8 minutes, nothing beside it
    python benchmarks/page/run.py --history                     # some 3 minutes
    python benchmarks/page/run.py --readme                      # only makes the tables anew

See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from sweep import fill_in, table

from asyncdni import experiment
from asyncdni.core.slices import SLICE_S
from asyncdni.launch.train import design_of
from asyncdni.report.machine import describe_machine
from asyncdni.report.records import Recorder
from asyncdni.report.statistics import ratio

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results" / "page.json"
EPOCHS = 10
WORKERS, HISTORY_S = 64, 3600.0
REPORT_EVERY_S = 2.0  # in the hour before the browser comes
FILL_S, MEASURE_S = 90.0, 15.0  # of the timeline that the page keeps; of measuring

#: Keeps how long each update takes in the browser, in milliseconds: taking over the news, and from
#: the begin of the next frame until it is drawn.
TIMER = """
window.updates = [];
let taken = 0;
const listen = EventSource.prototype.addEventListener;
EventSource.prototype.addEventListener = function (kind, take) {
  return listen.call(this, kind, kind !== "message" ? take : (event) => {
    const began = performance.now();
    take(event);
    taken += performance.now() - began;
  });
};
const frame = window.requestAnimationFrame;
window.requestAnimationFrame = (draw) => frame((now) => {
  const began = performance.now();
  draw(now);
  const drawn = new MessageChannel();
  drawn.port1.onmessage = () => {
    window.updates.push(taken + performance.now() - began);
    taken = 0;
  };
  drawn.port2.postMessage(null);
});
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=0, metavar="N", help="runs with and without")
    parser.add_argument("--history", action="store_true", help="64 stages, one hour")
    parser.add_argument("--readme", action="store_true", help="only make the tables")
    args = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    if args.pairs:
        found["pairs"] = {"machine": describe_machine(), "runs": []}
        for pair in measured_pairs(args.pairs):
            found["pairs"]["runs"].append(pair)
            print(json.dumps(pair), flush=True)
    if args.history:
        found["history"] = {"machine": describe_machine(), **measured_history()}
        print(json.dumps(found["history"]["memory_mb"]), flush=True)
    if args.pairs or args.history:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    fill_in(HERE / "README.md", {"pairs": pairs_table(found), "history": history_table(found)})


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        path = shutil.which("chromium")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


# --- speed of a run ------------------------------------------------------------------------------


def measured_pairs(count: int) -> Iterator[dict[str, float]]:
    """Yield the samples/s of a run with the page open and of one without, in changing order, and
    the seconds from the command to the page's first answer."""
    with chromium() as browser:
        for number in range(count):
            pair: dict[str, float] = {}
            for shown in (False, True) if number % 2 else (True, False):
                pair |= with_page(browser) if shown else without_page()
            yield pair


def command(out: str, *flags: str) -> list[str]:
    own = [sys.executable, "-m", "asyncdni", "train", str(ROOT / "launch" / "mnist.toml")]
    changes = [f"run.epochs={EPOCHS}", f"run.evaluate_every={EPOCHS}.0"]
    return [*own, "--out", out, "--quiet", *flags, *(x for one in changes for x in ("--set", one))]


def without_page() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        out = f"{scratch}/run"
        subprocess.run(command(out), check=True, capture_output=True)
        return {"without": speed(out)}


def with_page(browser: Any) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        out = f"{scratch}/run"
        began_s = time.monotonic()
        run = subprocess.Popen(command(out, "--page"), stderr=subprocess.PIPE, text=True)
        assert run.stderr is not None
        address = next(m[0] for line in run.stderr if (m := re.search(r"http://\S+", line)))
        with urllib.request.urlopen(address, timeout=5) as answer:
            answer.read()
        answer_s = time.monotonic() - began_s
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        run.communicate()
        page.close()
        return {"with": speed(out), "answer_s": answer_s}


def speed(out: str) -> float:
    return float(json.loads(Path(out, "summary.json").read_text())["samples_per_s"])


# --- a long run of many stages -------------------------------------------------------------------


class Feed:
    """Tells a page's run the records of 64 workers, as their coordinator would."""

    def __init__(self, state: Any) -> None:
        names = [*(f"stage{n:02}" for n in range(1, WORKERS)), "top"]
        hidden = [{"name": name, "layers": [{"dense": 16}, "relu"]} for name in names[:-1]]
        top = {"name": "top", "layers": [{"dense": 8}], "loss": "sigmoid_cross_entropy"}
        tables = {"data": {"name": "addition"}, "stages": [*hidden, top], "run": {"epochs": 9999}}
        self.design = design_of(experiment.parse(tables))
        self.names, self.state, self.recorder = names, state, Recorder(tuple(names), {}, None)
        self.first = int(time.time() / SLICE_S)
        for pid, name in enumerate(names, 1):
            self.tell(0.1, "joined", stage=name, pid=pid, host=socket.gethostname())
            self.tell(0.2, "ready", stage=name, parameters=272)
        self.tell(0.3, "start")

    def tell(self, time_s: float, kind: str, **values: Any) -> None:
        values["time_s"] = time_s
        if kind != "slices":
            self.recorder.record(kind, values)
        self.state(self.design, self.recorder, kind, values)

    def report(self, time_s: float) -> None:
        """Let each worker report, and now and then something happen."""
        batches = int(100 * time_s)
        for at, name in enumerate(self.names):
            wave = 1.0 + 0.1 * ((at + int(time_s)) % 7)
            counters = {
                **{"loss_sum": 10.0 * wave, "loss_samples": 10, "batches": batches},
                **{"updates": batches, "samples": 10 * batches, "messages": 2 * batches},
                **{"wall_s": time_s, "compute_s": 0.4 * time_s, "generator_s": 0.1 * time_s},
                **{"transport_s": 0.1 * time_s, "wait_s": 0.4 * time_s, "cpu_s": time_s * wave / 2},
                **{"queue": at % 5, "memory_bytes": int(6e7 * wave), "bytes_sent": 900 * batches},
                **{"staleness_mean": 2.0 * wave, "staleness_max": 9, "cosine_mean": 0.5 / wave},
                **{"staleness_le_1": batches // 3, "staleness_le_4": batches // 2},
            }
            for other in self.names[at + 1 : at + 2]:
                counters |= {f"lag_to_{other}": 3, f"bytes_to_{other}": 640 * batches}
            self.tell(time_s, "report", stage=name, values=counters)
        if int(time_s) % 60 < REPORT_EVERY_S:
            scores = {"accuracy": 1 - 1 / (2 + time_s / 60), "loss": 1 / (1 + time_s / 60)}
            self.tell(time_s, "evaluation", samples=10 * batches, train_s=time_s, **scores)
            self.tell(time_s, "cut", number=int(time_s / 60), took_s=0.1)

    def ops(self, time_s: float) -> None:
        """Let each worker send a slice with as many ops as it is asked for."""
        steers = self.state.steers()
        self.shown = max([getattr(self, "shown", 0), *(one.show for one in steers.values())])
        letters = [ord(letter) for letter in "FPUBT"]
        number = self.first + int(time_s / SLICE_S)
        for name in self.names:
            ops: list[int] = []
            for op in range(self.shown):
                ops += [letters[op % 5], int(time_s) * 100 + op // 5, 7000 * op, 6000]
            self.tell(time_s, "slices", stage=name, slices=[[number, 7000 * self.shown, *ops]])


def measured_history() -> dict[str, Any]:
    """Return the milliseconds of single updates, and the megabytes of the page's process."""
    from asyncdni.page.server import Page

    with Page(0) as page, page.run("64 stages", None) as state, chromium() as browser:
        feed = Feed(state)
        for step in range(1, int(HISTORY_S / REPORT_EVERY_S) + 1):
            feed.report(step * REPORT_EVERY_S)
        shown = browser.new_page(viewport={"width": 1280, "height": 900})
        shown.add_init_script(TIMER)
        shown.goto(page.address)
        now_s, memory = HISTORY_S, []
        shown.wait_for_timeout(1000)
        for step in range(int(FILL_S / SLICE_S)):  # ops, faster than they happen
            now_s += SLICE_S
            feed.ops(now_s)
            feed.report(now_s)
            shown.wait_for_timeout(100)
            if step % 20 == 0:
                memory.append(page_process(browser)[0])
        shown.evaluate("window.updates.length = 0")
        _, before_ms = page_process(browser)
        for _ in range(int(MEASURE_S / SLICE_S)):
            now_s += SLICE_S
            feed.ops(now_s)
            feed.report(now_s)
            shown.wait_for_timeout(1000 * SLICE_S)
            memory.append(page_process(browser)[0])
        updates = shown.evaluate("window.updates")
        cpu_ms = (page_process(browser)[1] - before_ms) / max(1, len(updates))
        if picture := os.environ.get("PICTURE"):
            shown.screenshot(path=picture, full_page=True)
    times = [round(one, 1) for one in updates]
    return {"update_ms": times, "cpu_ms": round(cpu_ms, 1), "memory_mb": memory}


def page_process(browser: Any) -> tuple[float, float]:
    """Return the memory of the process that draws the page in MB, with its part of what it shares
    with others (Pss), and the CPU milliseconds of its main thread so far. It is the largest of the
    browser's, as one may wait for another page."""
    asked = browser.new_browser_cdp_session()
    known = asked.send("SystemInfo.getProcessInfo")["processInfo"]
    asked.detach()
    found = (0.0, 0.0)
    tick_ms = 1000 / os.sysconf("SC_CLK_TCK")
    for pid in (one["id"] for one in known if one["type"] == "renderer"):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu_ms = (int(fields[11]) + int(fields[12])) * tick_ms
        found = max(found, (round(kilobytes * 1024 / 1e6, 1), cpu_ms))
    return found


# --- tables --------------------------------------------------------------------------------------


def pairs_table(found: dict[str, Any]) -> str:
    if not found.get("pairs", {}).get("runs"):
        return "Not measured yet."
    runs = found["pairs"]["runs"]
    ratios = ratio([(one["with"], one["without"]) for one in runs])
    assert ratios is not None
    answers = [one["answer_s"] for one in runs]
    interval = "" if ratios.low is None else f" ({ratios.low:.3f} to {ratios.high:.3f})"
    rows = [
        ["pairs of runs", str(len(runs)), ""],
        ["samples/s, without", f"{statistics.mean(one['without'] for one in runs):,.0f}", ""],
        ["samples/s, with over without", f"{ratios.mean:.3f}{interval}", "0.97 at least"],
        ["command to first answer, s, mean", f"{statistics.mean(answers):.2f}", "1.5 at most"],
        ["the same, slowest", f"{max(answers):.2f}", ""],
    ]
    return f"{_machine(found['pairs'])}\n\n{table(('', 'measured', 'target'), rows)}"


def history_table(found: dict[str, Any]) -> str:
    if "history" not in found:
        return "Not measured yet."
    history = found["history"]
    updates = sorted(history["update_ms"])
    rows = [
        ["updates", str(len(updates)), ""],
        ["one update, ms, median", f"{statistics.median(updates):.0f}", "100 at most"],
        ["the same, 95 % quantile", f"{updates[int(0.95 * (len(updates) - 1))]:.0f}", ""],
        ["CPU of the page's main thread for an update, ms, mean", f"{history['cpu_ms']:.0f}", ""],
        ["memory, MB, greatest", f"{max(history['memory_mb']):.0f}", "300 at most"],
    ]
    return f"{_machine(history)}\n\n{table(('', 'measured', 'target'), rows)}"


def _machine(part: dict[str, Any]) -> str:
    machine = part["machine"]
    return f"{machine['cores']} cores ({machine['cpu']}):"


if __name__ == "__main__":
    main()
