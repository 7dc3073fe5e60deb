"""The runs of a page as metrics in the format of Prometheus.

Names begin with `asyncdni_` and end in their unit. A series of a stage has the labels `run` and
`stage`, that of a link `run`, `source` and `target`; a worker of several stages counts as one.
Counters add up over the processes of a worker, and all of them are read from the records of the
coordinator, which reach it twice a second.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from asyncdni.page.state import RunState

__all__ = ["exposition"]

#: Gauges of a stage: the name of the metric, the key in `RunState.news`, the help text.
_GAUGES = (
    ("queue_batches", "queue", "Batches whose inputs are here and wait for a forward"),
    ("in_flight_batches", "in_flight", "Batches forwarded whose gradient is awaited"),
    ("samples_per_second", "samples_per_s", "Samples forwarded a second, since the last report"),
    ("busy_ratio", "busy", "Share of the time inside ops, since the last report"),
    ("waiting_ratio", "waiting", "Share of the time without anything to do, since the last report"),
    ("staleness_updates", "staleness", "Mean updates between forward and use of a gradient"),
    ("lag_batches", "lag", "Mean batches forwarded until the gradient of a batch is used"),
    ("agreement_cosine", "agreement", "Mean cosine of synthetic and true gradients"),
    ("memory_bytes", "memory_bytes", "Resident set of the process"),
    ("guard_waiting", "guarded", "1 while the guard makes the stage wait for true gradients"),
)
#: Counters of a stage, likewise.
_COUNTERS = (
    ("samples", "samples", "Samples forwarded"),
    ("updates", "updates", "Steps of the optimizer"),
    ("messages", "messages", "Messages sent and received"),
    ("sent_bytes", "bytes_sent", "Bytes sent"),
    ("received_bytes", "bytes_received", "Bytes received"),
    ("cpu_seconds", "cpu_s", "CPU time of the process"),
    ("dropped_batches", "dropped", "Batches whose gradient was given up"),
    ("restarts", "restarts", "Processes started in place of dead ones"),
)
#: Gauges of a run.
_RUN = (
    ("epochs", "epoch", "Epochs that all stages have completed"),
    ("samples_per_second", "samples_per_s", "Samples a second since the start"),
    ("train_loss", "train_loss", "Training loss of the last reports"),
    ("test_accuracy_ratio", "accuracy", "Test accuracy at the last evaluation, from 0 to 1"),
    ("test_loss", "test_loss", "Test loss at the last evaluation"),
)


def exposition(runs: Sequence[RunState]) -> tuple[bytes, str]:
    """Return the metrics of these runs, and the type of that text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Runs(runs))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Runs(Collector):
    def __init__(self, runs: Sequence[RunState]) -> None:
        # The present state alone: no point or event is as new as that.
        self._news = [
            {**run.news(sys.maxsize), "network": run.network} for run in runs if run.network
        ]

    def collect(self) -> Iterator[Metric]:
        """Yield a family for each name, with the series of all runs."""
        for name, key, text in _RUN:
            family = GaugeMetricFamily(f"asyncdni_run_{name}", text, labels=["run"])
            for news in self._news:
                _add(family, [news["title"]], news["progress"].get(key))
            yield family
        live = GaugeMetricFamily("asyncdni_run_live", "1 while the run goes on", labels=["run"])
        for news in self._news:
            _add(live, [news["title"]], news["live"])
        yield live
        yield self._of_stages(GaugeMetricFamily, "up", "1 while the stage has a process", _is_up)
        for name, key, text in _GAUGES:
            yield self._of_stages(GaugeMetricFamily, name, text, _value(key))
        for name, key, text in _COUNTERS:
            yield self._of_stages(CounterMetricFamily, name, text, _value(key))
        yield from self._links()

    def _of_stages(self, family: Any, name: str, text: str, value: Any) -> Metric:
        made: Metric = family(f"asyncdni_stage_{name}", text, labels=["run", "stage"])
        for news in self._news:
            for stage, worker in news["workers"].items():
                _add(made, [news["title"], stage], value(news, worker))
        return made

    def _links(self) -> Iterator[Metric]:
        labels = ["run", "source", "target"]
        lag = GaugeMetricFamily(
            "asyncdni_link_lag_max_batches",
            "The greatest lag of this link so far",
            labels=labels,
        )
        bound = GaugeMetricFamily(
            "asyncdni_link_lag_bound_batches", "The bound on the lag of this link", labels=labels
        )
        least = GaugeMetricFamily(
            "asyncdni_stage_lag_bound_batches",
            "The least bound on lag of the stage's links",
            labels=["run", "stage"],
        )
        sent = CounterMetricFamily(
            "asyncdni_link_sent_bytes",
            "Bytes sent from one worker to another, without test batches",
            labels=labels,
        )
        for news in self._news:
            for source, worker in news["workers"].items():
                for target, count in worker.get("bytes_to", {}).items():
                    _add(sent, [news["title"], source, target], count)
            bounds: dict[str, int] = {}
            for link in news["network"]["links"]:
                where = [news["title"], link["from"], link["to"]]
                lags = news["workers"][link["from"]].get("lags", {})
                _add(lag, where, lags.get(link["to"]))
                _add(bound, where, link["bound"])
                if link["bound"] is not None:
                    known = bounds.get(link["from"], link["bound"])
                    bounds[link["from"]] = min(known, link["bound"])
            for stage, value in bounds.items():
                _add(least, [news["title"], stage], value)
        yield from (lag, bound, least, sent)


def _is_up(news: dict[str, Any], worker: dict[str, Any]) -> bool:
    return bool(news["live"]) and worker["pid"] is not None


def _value(key: str) -> Any:
    return lambda news, worker: worker.get(key)


def _add(family: Any, labels: Sequence[str], value: float | None) -> None:
    if value is not None:
        family.add_metric(labels, float(value))
