"""The page of a run: what it shows of records, and what it answers to whom."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from each import each

from asyncdni import experiment
from asyncdni.__main__ import main
from asyncdni.core.slices import OPS_MAX, SLICE_S
from asyncdni.errors import CheckpointError, ConfigError, LaunchError
from asyncdni.launch.train import design_of
from asyncdni.messages import Steer
from asyncdni.page.controls import act
from asyncdni.page.excerpt import FILE, TRAINED_S, Excerpt
from asyncdni.page.recorded import open_state, timeline
from asyncdni.page.state import COLUMNS, TICK_S, Runs, RunState
from asyncdni.plan.build import Design
from asyncdni.report.records import Recorder
from asyncdni.report.traces import RECORD, encode, trace_path
from asyncdni.store.run import create_folder, write_data

pytest.importorskip("starlette", reason="the extra page is not installed")
pytest.importorskip("uvicorn", reason="the extra page is not installed")
pytest.importorskip("prometheus_client", reason="the extra page is not installed")
pytest.importorskip("httpx2", reason="Starlette's test client needs it")

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from asyncdni.page import server
from asyncdni.page.gate import Rules
from asyncdni.page.metrics import exposition
from asyncdni.page.server import Page, make_app

ROOT = Path(__file__).parents[1]
HERE = socket.gethostname()
MARKUP = "<script>alert(1)</script>"

Feed = Callable[..., None]


@pytest.fixture(scope="module")
def design() -> Design:
    """Two workers, hidden and output, 10 epochs of 100 samples."""
    stages = [
        {"name": "hidden", "layers": [{"dense": 8}, "tanh"]},
        {"name": "output", "layers": [{"dense": 8}], "loss": "sigmoid_cross_entropy"},
    ]
    tables = {"data": {"name": "addition"}, "stages": stages, "run": {"epochs": 10}}
    return design_of(experiment.parse(tables))


def counters(samples: int, wall_s: float, **changes: Any) -> dict[str, Any]:
    """A report after that many samples, a tenth of them batches, half of the time spent in ops."""
    return {
        "loss_sum": 0.0,
        "loss_samples": 0,
        "batches": samples // 10,
        "updates": samples // 10,
        "samples": samples,
        "wall_s": wall_s,
        "compute_s": wall_s / 2,
        "generator_s": 0.0,
        "transport_s": 0.0,
        "wait_s": wall_s / 2,
        "cpu_s": wall_s,
        "queue": 1,
        "lag_to_output": 3,
        "bytes_to_output": 4000,
        "memory_bytes": 1000,
    } | changes


class Told:
    """A state that is told records, as an observer of a run is."""

    def __init__(self, design: Design, folder: Path | None = None, *, keep: bool = False) -> None:
        self.state = RunState("runs/one", folder, live=True)
        self._design = design
        workers = tuple(group.name for group in design.plan.groups)
        self.recorder = Recorder(workers, {}, folder if keep else None)

    def __call__(self, time_s: float, kind: str, **values: Any) -> None:
        timed = {"time_s": 1000.0 + time_s, **values}
        if kind != "slices":
            self.recorder.record(kind, timed)
        self.state(self._design, self.recorder, kind, timed)

    def begin(self, pid: int = 1) -> Told:
        for name in ("hidden", "output"):
            self(0.1, "joined", stage=name, pid=pid, host=HERE)
            self(0.2, "ready", stage=name, parameters=72)
        self(0.3, "start")
        return self

    def report(self, time_s: float, stage: str, samples: int, wall_s: float, **more: Any) -> None:
        self(time_s, "report", stage=stage, values=counters(samples, wall_s, **more))

    def of(self, stage: str) -> dict[str, Any]:
        found: dict[str, Any] = self.state.news()["workers"][stage]
        return found


# --- what is shown -------------------------------------------------------------------------------


def test_a_worker_that_dies_is_seen_down_catching_up_and_learning_again(design: Design) -> None:
    told = Told(design)
    told(0.0, "bound", address="ipc:///tmp/a", launched=True, commands=[])
    assert told.of("hidden")["state"] == "starting"
    told.begin(pid=7)
    seen = []

    def look() -> None:
        seen.append(told.of("hidden")["state"])

    told.report(1.0, "hidden", 100, 0.5)
    look()
    told.report(1.5, "hidden", 100, 1.0)  # no update more
    look()
    told(1.6, "lost", stage="hidden", text="worker hidden died with signal 9")
    look()
    assert told.of("hidden")["pid"] is None
    told(2.1, "launch", stage="hidden", attempt=1)
    told(3.0, "joined", stage="hidden", pid=8, host=HERE)
    look()
    told.report(4.0, "hidden", 50, 0.5)  # counts from its snapshot on
    look()
    told.report(4.5, "hidden", 150, 1.0)
    look()
    assert seen == ["learning", "waiting", "down", "catching up", "catching up", "learning"]
    assert told.of("hidden") | {"pid": 8, "restarts": 1, "host": HERE} == told.of("hidden")
    at = COLUMNS.index("samples_per_s") + 1
    speeds = [point[at] for point in told.state.news()["points"]["hidden"]]
    assert speeds == [200.0, 0.0, None, 200.0]  # none that spans the death
    told.state.ended()
    assert {one["state"] for one in told.state.news()["workers"].values()} == {"done"}


def test_workers_that_go_back_have_no_negative_speed(design: Design) -> None:
    told = Told(design).begin()
    told.report(1.0, "output", 100, 0.5)
    told(1.2, "lost", stage="hidden", text="worker hidden died with signal 9")
    told(1.3, "round", incarnation=2, restore="checkpoints/1", start=0, lost_updates={"output": 9})
    told.report(2.0, "output", 10, 1.0)
    told.report(3.0, "output", 110, 2.0)
    points = told.state.news()["points"]["output"]
    at = COLUMNS.index("samples_per_s") + 1
    assert [point[at] for point in points] == [200.0, 100.0]
    assert told.of("output")["samples_per_s"] == 100.0


def test_news_have_what_is_new_and_nothing_else(design: Design) -> None:
    told = Told(design).begin()
    told.report(1.0, "hidden", 100, 0.5)
    tally = {"staleness_mean": 2.0, "staleness_max": 4, "staleness_le_1": 3, "staleness_le_4": 1}
    told.report(1.2, "hidden", 120, 0.7, **tally)
    assert told.of("hidden")["staleness_bins"] == [["0", 0.0], ["1", 0.75], ["2", 0.0], ["4", 0.25]]
    first = told.state.news()
    assert [link["to"] for link in first["network"]["links"]] == ["output"]
    assert [one["stages"][0]["shape"] for one in first["network"]["workers"]] == ["8", "8"]
    told.report(2.0, "hidden", 200, 1.5, loss_sum=float("nan"), loss_samples=10)
    told(2.1, "evaluation", samples=200, train_s=1.5, accuracy=0.5, loss=float("inf"))
    told(2.2, "guard", stage="hidden", waiting=True, cosine=0.1)
    news = told.state.news(first["number"])
    assert "network" not in news
    assert [len(points) for points in news["points"].values()] == [1]
    assert [(one[2:]) for one in news["evaluations"]] == [[200, 0.5, None]]
    assert "waits for true gradients" in news["events"][0][4]
    json.dumps([first, news], allow_nan=False)


def test_slices_of_ops_are_shown_while_somebody_watches(design: Design) -> None:
    told = Told(design)
    shown = Runs()
    shown.watched(1)
    shown.add(told.state)
    assert told.state.steers() == {}  # no worker is known yet
    told.begin()
    assert {name: one.show for name, one in told.state.steers().items()} == dict.fromkeys(
        ("hidden", "output"), OPS_MAX
    )
    assert told.state.steers() == {}
    number = told.state.news()["number"]
    first = int(time.time() / SLICE_S)
    told(1.5, "slices", stage="hidden", slices=[[first + n, 250_000, 70, n, 9, 7] for n in (0, 1)])
    (one, other) = told.state.news(number)["slices"]
    assert (one[0], one[2:], other[2:]) == (
        *("hidden", [0.25, [70, 0, 9, 7]]),
        [0.25, [70, 1, 9, 7]],
    )
    assert other[1] - one[1] == pytest.approx(SLICE_S)
    assert 1.5 - 2 * SLICE_S < one[1] <= 1.5 + SLICE_S  # on the same scale as curves
    for n in range(100):
        told(2.0 + n, "slices", stage="hidden", slices=[[first + n, 0]])
    assert len(told.state.news()["slices"]) == 40
    shown.watched(-1)
    assert {one.show for one in told.state.steers().values()} == {0}


def test_ten_hours_take_no_more_room_than_one(design: Design) -> None:
    told = Told(design).begin()
    for number in range(1, 1201):
        for stage in ("hidden", "output"):
            told.report(30.0 * number, stage, 100 * number, 30.0 * number)
    news = told.state.news()
    ticks = {name: [point[1] for point in points] for name, points in news["points"].items()}
    assert ticks["hidden"] == ticks["output"]
    assert 200 < len(ticks["hidden"]) <= 512
    assert all(tick % news["step"] == 0 for tick in ticks["hidden"])
    assert ticks["hidden"][-1] * TICK_S > 35_000 and ticks["hidden"][0] * TICK_S < 200
    for number in range(1500):
        told(40_000.0 + number, "cut", number=number, took_s=0.1)
        told(40_000.0 + number, "evaluation", samples=number, train_s=1.0, accuracy=0.5, loss=1.0)
    news = told.state.news()
    assert len(news["events"]) == 500 and len(news["evaluations"]) <= 1000
    assert news["evaluations"][-1][2] == 1499


def kept_run(folder: Path, design: Design) -> Path:
    create_folder(folder, design.experiment)
    write_data(folder, design.experiment, design.meta)
    told = Told(design, folder, keep=True).begin()
    told.report(1.0, "hidden", 100, 0.5)
    told.report(1.0, "output", 100, 0.5, loss_sum=50.0, loss_samples=100)
    told(1.5, "evaluation", samples=100, train_s=0.5, accuracy=0.75, loss=0.6)
    told.recorder.close()
    return folder


def test_a_run_is_shown_from_its_folder_as_it_was_live(tmp_path: Path, design: Design) -> None:
    folder = kept_run(tmp_path / "run", design)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "report", "time_s": 9.0, "stage": "hidden"}\nno record\n')
    state = open_state(folder)
    news = state.news()
    assert news["phase"] == "unfinished"  # it has no summary
    assert news["progress"]["accuracy"] == 0.75
    assert news["workers"]["output"]["samples"] == 100
    (folder / "summary.json").write_text("{}")
    assert open_state(folder).news()["phase"] == "ended"
    with pytest.raises(CheckpointError, match="train with --trace"):
        timeline(state, 0.0, 1.0)


def test_an_excerpt_is_the_newest_half_second_in_which_all_have_trained(
    tmp_path: Path, design: Design
) -> None:
    told = Told(design)
    excerpt = Excerpt(told.state)

    def tell(time_s: float, kind: str, **values: Any) -> None:
        told(time_s, kind, **values)
        excerpt(design, told.recorder, kind, {"time_s": 1000.0 + time_s, **values})

    tell(0.0, "joined", stage="hidden", pid=1, host=HERE)
    assert {one.show for one in told.state.steers().values()} == {OPS_MAX}
    tell(0.3, "start")
    first = int(time.time() / SLICE_S)
    training, evaluating = [ord("F"), 0, 9, 7], [ord("E"), 0, 9, 7]
    for number, ops in ((0, training), (1, training), (2, evaluating)):
        for stage in ("hidden", "output"):
            tell(1.0, "slices", stage=stage, slices=[[first + number, 400_000, *ops]])
    tell(1.1, "slices", stage="hidden", slices=[[first + 3, 400_000, *training]])
    assert told.state.steers() == {}
    tell(0.3 + TRAINED_S, "note", stage="hidden", text="")
    assert {one.show for one in told.state.steers().values()} == {0}

    folder = kept_run(tmp_path / "run", design)
    assert not open_state(folder).news()["slices"]
    excerpt.write(folder)
    news = open_state(folder).news()
    assert news["excerpt"]
    shown = {one[0]: one[2:] for one in news["slices"]}
    assert shown == {name: [0.4, training] for name in ("hidden", "output")}
    assert -1 <= news["slices"][0][1] <= 1  # the second one began about when the run did
    for damaged in ("[]", '{"begin_s": 1, "slices": {"hidden": [1, "F", 0, 9, 7]}}', "{"):
        (folder / FILE).write_text(damaged)
        assert not open_state(folder).news()["slices"]


def test_a_timeline_has_the_ops_of_its_window(tmp_path: Path, design: Design) -> None:
    folder = kept_run(tmp_path / "run", design)
    trace_path(folder, "hidden").parent.mkdir()
    events = np.array([(0, 0, 0, n, 5.0 + n, 5.5 + n) for n in range(20)], RECORD)
    for worker in ("hidden", "output"):
        trace_path(folder, worker).write_bytes(encode(events.tobytes(), ["F"], 0))
    found = timeline(open_state(folder), 2.25, 2.0)
    boxes = [["F", 2, -0.25, 0.25], ["F", 3, 0.75, 1.25], ["F", 4, 1.75, 2.25]]
    assert [row["boxes"] for row in found["workers"]] == [boxes, boxes]
    assert found["names"] == {"F": "forward"}
    beyond = timeline(open_state(folder), float("nan"), float("inf"))
    assert (beyond["begin_s"], beyond["length_s"]) == (0.0, 10.0)


# --- who may see it ------------------------------------------------------------------------------


def client(
    *runs: RunState, token: str | None = None, host: str = "127.0.0.1", controls: bool = False
) -> TestClient:
    shown, ended = Runs(), threading.Event()
    for run in runs:
        shown.add(run)
    ended.set()  # streams of events end at once
    app = make_app(shown, Rules(host, 8642, token), controls=controls, closing=ended)
    return TestClient(app, base_url="http://127.0.0.1:8642", follow_redirects=False)


PATHS = ("/", "/assets/page.js", "/events", "/log?run=0&worker=hidden", "/metrics", "/controls")


@each(
    "headers, host, expected",
    [
        ({}, "127.0.0.1", 200),
        ({"Host": "localhost:9"}, "127.0.0.1", 200),  # a tunnel
        ({"Host": "[::1]:8642"}, "127.0.0.1", 200),
        ({"Host": "evil.example"}, "127.0.0.1", 403),
        ({"Host": "127.0.0.1.evil.example"}, "127.0.0.1", 403),
        ({"Host": "10.0.0.5:8642"}, "127.0.0.1", 403),
        ({"Host": ""}, "127.0.0.1", 403),
        ({"Host": "10.0.0.5:8642"}, "0.0.0.0", 200),
        ({"Host": HERE}, "0.0.0.0", 200),
        ({"Host": "evil.example"}, "0.0.0.0", 403),
        ({"Origin": "http://127.0.0.1:8642"}, "127.0.0.1", 200),
        ({"Origin": "http://evil.example"}, "127.0.0.1", 403),
        ({"Origin": "null"}, "127.0.0.1", 403),
    ],
)
def test_other_hosts_and_origins_are_refused(
    design: Design, headers: dict[str, str], host: str, expected: int
) -> None:
    site = client(Told(design).begin().state, host=host)
    for path in PATHS:
        answer = site.get(path, headers=headers)
        assert answer.status_code == expected, (path, answer.text)
        assert "default-src 'none'; script-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_is_shown_without_the_token(design: Design) -> None:
    site = client(Told(design).begin().state, token="secret", host="0.0.0.0")
    for path in (*PATHS, "/?token=wrong", "/?token=", "/events?token=secret", "/none"):
        assert site.get(path).status_code == 401, path
    site.cookies.set("asyncdni-page-8642", "secre")
    assert site.get("/").status_code == 401
    site.cookies.clear()
    welcome = site.get("/?token=secret")
    assert (welcome.status_code, welcome.headers["location"]) == (303, "/")
    assert "httponly" in welcome.headers["set-cookie"].lower()
    assert "samesite=strict" in welcome.headers["set-cookie"].lower()
    assert [site.get(path).status_code for path in PATHS] == [200] * len(PATHS)
    other = client(token="secret")
    sent = {"Authorization": "Bearer secret"}
    assert other.get("/metrics", headers=sent).status_code == 200


def test_the_page_only_reads(design: Design) -> None:
    site = client(Told(design).begin().state)
    origin = {"Origin": "http://127.0.0.1:8642"}
    for path in ("/", "/events", "/log", "/metrics"):
        assert site.post(path, headers=origin).status_code == 405
    assert site.get("/controls").json() == {"actions": [], "token": None}
    assert site.post("/control", headers=origin, content="{}").status_code == 403


def test_text_of_workers_is_text_and_files_are_the_page_s_own(
    design: Design, tmp_path: Path
) -> None:
    told = Told(design, tmp_path).begin()
    told(1.0, "lost", stage="hidden", text=f"died: {MARKUP}\x1b[31m")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "hidden.log").write_text(f"one\n{MARKUP}\x1b]0;title\x07\n")
    (tmp_path / "secret.log").write_text("secret")
    site = client(told.state)
    log = site.get("/log?run=0&worker=hidden")
    assert log.headers["content-type"].startswith("text/plain")
    assert MARKUP in log.text and "\x1b" not in log.text
    for worker in ("../secret", "..%2Fsecret", "", "none"):
        assert site.get(f"/log?run=0&worker={worker}").status_code == 404
    for run in ("1", "-1", "x", "", "99999999999999999999", "²"):
        assert site.get(f"/log?run={run}&worker=hidden").status_code == 404
    for name in ("../state.py", "..%2Fstate.py", "%2Fetc%2Fpasswd", "none"):
        assert site.get(f"/assets/{name}").status_code == 404
    stream = site.get("/events")
    assert stream.headers["content-type"].startswith("text/event-stream")
    news = json.loads(re.findall(r"^data: (.*)$", stream.text, re.M)[0])
    assert MARKUP in news["0"]["events"][-1][4] and "\x1b" not in stream.text
    home = ROOT / "asyncdni" / "page" / "assets"
    scripts = [path.read_text() for path in home.glob("*.js") if path.name.islower()]
    assert len(scripts) > 5
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|eval\(", "".join(scripts))
    assert not re.search(r"<script>| on\w+=|style=", (home / "page.html").read_text())


def test_a_worker_is_killed_with_the_page_s_own_token_alone(design: Design) -> None:
    child = subprocess.Popen(["sleep", "60"])
    told = Told(design).begin(pid=child.pid)
    site = client(told.state, controls=True)
    right = {"Origin": "http://127.0.0.1:8642"}
    right["X-Asyncdni-Token"] = site.get("/controls").json()["token"]
    kill = {"run": 0, "worker": "hidden", "action": "kill"}
    for name in right:
        wrong = {**right, name: "http://evil.example" if name == "Origin" else "guess"}
        assert site.post("/control", headers=wrong, json=kill).status_code == 403
        left_out = {key: value for key, value in right.items() if key != name}
        assert site.post("/control", headers=left_out, json=kill).status_code == 403
    for content in ("", "[]", '{"run": 0}', "{" * 400, "[" * 1000, "\xff"):
        assert site.post("/control", headers=right, content=content).status_code == 400
    assert site.post("/control", headers=right, content="x" * 2000).status_code == 413
    for key, value in (("run", 1), ("worker", "x"), ("action", "rm")):
        assert site.post("/control", headers=right, json={**kill, key: value}).status_code == 404
    assert child.poll() is None
    assert site.post("/control", headers=right, json=kill).status_code == 200
    assert child.wait(10) == -9
    assert "killed from the page" in told.state.news()["events"][-1][4]
    gone = site.post("/control", headers=right, json=kill)
    assert (gone.status_code, "not started by this command" in gone.text) == (409, True)


def test_workers_and_links_are_made_slow_within_bounds(design: Design) -> None:
    told = Told(design).begin()
    site = client(told.state, controls=True)
    origin = {"Origin": "http://127.0.0.1:8642"}
    right = {**origin, "X-Asyncdni-Token": site.get("/controls").json()["token"]}

    def ask(**asked: Any) -> tuple[int, str]:
        sent = json.dumps({"run": 0, "worker": "hidden", **asked})
        answer = site.post("/control", headers=right, content=sent)
        return answer.status_code, answer.text

    for factor in (0.5, 51, float("nan"), 10**400, "5", True, None, [5]):
        status, text = ask(action="slow", factor=factor)
        assert status == 400 and "factor is" in text and "from 1 to 50" in text, factor
    for latency in (-0.1, 1.5, "0.1"):
        assert ask(action="delay", to="output", latency_s=latency)[0] == 400
    for other in ("hidden", MARKUP, None):
        status, text = ask(action="delay", to=other, latency_s=0.1)
        assert (status, "no link from hidden" in text) == (400, True)
    assert site.post("/control", headers=origin, json={}).status_code == 403
    assert told.state.steers() == {}
    assert ask(action="slow", factor=5) == ask(action="delay", to="output", latency_s=0.1)
    asked = {"hidden": Steer(0, 5.0, {"output": 0.1}), "output": Steer(0, 1.0, {"hidden": 0.1})}
    assert told.state.steers() == asked
    assert (told.of("hidden")["factor"], told.of("output")["latency_s"]) == (5.0, {"hidden": 0.1})
    ask(action="slow", factor=1)
    ask(action="lengthen", added_s=0.02)
    assert ask(action="lengthen", added_s=1.5)[0] == 400
    assert told.state.steers()["hidden"] == Steer(0, 1.0, {"output": 0.1}, 0.02)
    told.state.ended()
    assert ask(action="slow", factor=5)[0] == 409


def test_only_children_of_this_process_are_touched(design: Design) -> None:
    told = Told(design).begin(pid=1)
    with pytest.raises(LaunchError, match="not started by this command"):
        act(told.state, "hidden", "kill")
    told(1.0, "lost", stage="hidden", text="gone")
    with pytest.raises(LaunchError, match="no process"):
        act(told.state, "hidden", "kill")
    with pytest.raises(ConfigError, match="from this machine"):
        Page(0, "0.0.0.0", controls=True)


# --- the server ----------------------------------------------------------------------------------


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 20)
    with Page(0) as served:
        yield served


def get(page: Page, path: str) -> str:
    with urllib.request.urlopen(f"{page.address}{path}", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def test_idle_connections_do_not_keep_anybody_out(page: Page, design: Design) -> None:
    page.runs.add(Told(design).begin().state)
    with ExitStack() as stack:
        idle = []
        for number in range(1000):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", page.port), 10))
            if number % 2:
                with suppress(ConnectionError):
                    one.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
            idle.append(one)
        assert "asyncdni_stage_up" in get(page, "metrics")
        for one in idle[:950]:  # the older ones had to go
            with suppress(ConnectionResetError):
                assert one.recv(1) == b""


def test_a_port_in_use_is_passed_over_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with Page(port) as page:
            assert port < page.port < port + 100
            assert page.address == f"http://127.0.0.1:{page.port}/"
        words = ["train", "no-such.toml", "--page", str(port)]
        assert main(words) == 2  # the file is looked for first
    with pytest.raises(ConfigError, match="an address of this machine"):
        Page(0, "203.0.113.7")
    for words in (["--page", "70000"], ["--page", "file.toml"]):
        with pytest.raises(SystemExit):
            main(["train", "recipe:digits", *words])
    assert "expected a number from 1 to 65535" in capsys.readouterr().err
    assert main(["train", "recipe:digits", "--page-controls"]) == 2
    assert "add --page" in capsys.readouterr().err


def test_the_missing_extra_and_a_folder_without_a_run_take_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["view", str(tmp_path)]) == 1
    assert "is no run folder" in capsys.readouterr().err
    assert main(["view", str(tmp_path / "none")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "asyncdni.page.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["view", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "pip install 'asyncdni[page]'" in said and len(said.splitlines()) == 1


# --- metrics -------------------------------------------------------------------------------------


def named(texts: Sequence[str]) -> set[str]:
    return set(re.findall(r"asyncdni_\w+", " ".join(texts)))


def test_metrics_have_units_and_help_and_the_dashboard_uses_no_others(design: Design) -> None:
    told = Told(design).begin()
    told.report(1.0, "hidden", 100, 0.5)
    content, _ = exposition([told.state])
    families = list(text_string_to_metric_families(content.decode()))
    names = {family.name for family in families}
    assert all(family.documentation for family in families)
    samples = {
        (one.name, one.labels.get("stage", one.labels.get("target"))): one.value
        for family in families
        for one in family.samples
    }
    assert samples["asyncdni_stage_samples_total", "hidden"] == 100
    assert samples["asyncdni_stage_up", "output"] == 1
    assert samples["asyncdni_link_lag_max_batches", "output"] == 3
    assert samples["asyncdni_link_sent_bytes_total", "output"] == 4000
    told(2.0, "lost", stage="hidden", text="gone")
    content, _ = exposition([told.state])
    assert b'asyncdni_stage_up{run="runs/one",stage="hidden"} 0.0' in content
    grafana = ROOT / "launch" / "grafana"
    board = json.loads((grafana / "dashboard.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    used = named([*asked, *re.findall("expr: (.*)", (grafana / "alerts.yml").read_text())])
    assert len(used) > 8
    assert {name.removesuffix("_total") for name in used} <= names
