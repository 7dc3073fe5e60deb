"""A real Prometheus answers what the dashboard asks of a real run; alerts fire when they should."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from processes import TINY, make_site, until

pytest.importorskip("uvicorn", reason="the extra page is not installed")
PROMETHEUS = shutil.which("prometheus")
GRAFANA = Path(__file__).parents[1] / "launch" / "grafana"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(PROMETHEUS is None, reason="Prometheus is not installed (apt: prometheus)"),
    pytest.mark.skipif(not hasattr(os, "waitid"), reason="controls need Linux"),
]

LASTING = ("--set", "run.epochs=1000000", "--set", "run.evaluate_every=50.0")


@contextmanager
def prometheus(folder: Path, port: int) -> Iterator[Any]:
    """Scrape this port of this machine each second; gives a function that asks Prometheus."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = free.getsockname()[1]
    jobs = [{"job_name": "asyncdni", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(GRAFANA / "alerts.yml")],
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML, too
    words = [
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{own}",
    ]
    with open(folder / "prometheus.log", "wb") as log:
        process = subprocess.Popen([str(PROMETHEUS), *words], stdout=log, stderr=log)

    def ask(what: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{own}/api/v1/{what}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                told = json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it is not ready yet
                return None
            pytest.fail(f"{query}: {error.read().decode()}")  # a query that is wrong
        except OSError:  # it does not listen yet
            return None
        assert told["status"] == "success"
        return told["data"]

    try:
        yield ask
    finally:
        process.terminate()
        process.wait(30)


def queries() -> list[str]:
    """What the dashboard asks, of all runs."""
    board = json.loads((GRAFANA / "dashboard.json").read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    return [one.replace("$run", ".*") for one in found]


def test_the_dashboard_has_answers_and_the_alerts_are_looked_at(tmp_path: Path) -> None:
    with make_site(tmp_path) as site:
        site.write("tiny.toml", TINY)
        command = site.start("train", "tiny.toml", *LASTING, "--page", "--out", "run")
        address = until(lambda: re.search(r"http://\S+", command.warned()), "the page's address")[0]
        with prometheus(tmp_path, urllib.parse.urlsplit(address).port or 0) as ask:

            def values(query: str) -> list[float]:
                found = ask("query", query=query) or {"result": []}
                return [float(one["value"][1]) for one in found["result"]]

            def rules() -> list[dict[str, Any]]:
                return [one for group in ask("rules")["groups"] for one in group["rules"]]

            for query in queries():
                until(partial(values, query), f"an answer to {query}")
            assert values("sum(asyncdni_stage_up)") == [2.0]
            assert values("min(rate(asyncdni_stage_samples_total[30s]))")[0] > 0
            until(lambda: {one["health"] for one in rules()} == {"ok"}, "all alerts")
            assert {one["state"] for one in rules() if one["name"] == "StageDown"} == {"inactive"}
        command.interrupt()
        command.finished()


#: By alert: series that make it fire, each a value for every ten seconds.
ALARMING = {
    "StageDown": {"stage_up": "0x60", "run_live": "1x60"},
    "LagAtItsBound": {"stage_lag_batches": "9x60", "stage_lag_bound_batches": "10x60"},
    "GeneratorDisagrees": {"stage_agreement_cosine": "-0.2x60"},
    "StageStandsStill": {"stage_updates_total": "7x60", "run_live": "1x60"},
}
USUAL = {
    "stage_up": "1x60",
    "run_live": "1x60",
    "stage_lag_batches": "3x60",
    "stage_lag_bound_batches": "10x60",
    "stage_agreement_cosine": "0.6x60",
    "stage_updates_total": "0+50x60",
}


@pytest.mark.parametrize("alert", [*ALARMING, None])
def test_alerts_fire_when_they_should_and_not_else(tmp_path: Path, alert: str | None) -> None:
    series = {**USUAL, **ALARMING.get(alert or "", {})}
    labels = '{instance="here",run="one",stage="hidden"}'
    told = [
        {"series": f"asyncdni_{name}{labels}", "values": shape} for name, shape in series.items()
    ]
    asked = f'sum by (alertname) (ALERTS{{alertname="{alert}", alertstate="firing"}})'
    if alert is None:
        asked = 'sum by (alertname) (ALERTS{alertstate="firing"})'
    expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if alert else []
    test = {
        "interval": "10s",
        "input_series": told,
        "promql_expr_test": [{"expr": asked, "eval_time": "9m", "exp_samples": expected}],
    }
    tests = {"rule_files": [str(GRAFANA / "alerts.yml")], "tests": [test]}
    file = tmp_path / "alerts-test.yml"
    file.write_text(json.dumps({**tests, "evaluation_interval": "10s"}))
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
