"""What the page shows of a run, gathered from the records that feed the terminal's display too.

The coordinator's thread adds records, threads of the server ask for what is new. Whatever a run
lasts, its state stays small: a curve has one point for each step of a grid of time that all workers
share, and once a curve has too many points, the steps of the grid become twice as long.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asyncdni.core.counts import EDGE_NAMES, read_distribution
from asyncdni.core.slices import OPS_MAX, SLICE_S
from asyncdni.errors import legible
from asyncdni.launch.display import facts, measure
from asyncdni.launch.incidents import guard_line, incident_line
from asyncdni.messages import DATA, Steer
from asyncdni.plan.build import Design
from asyncdni.plan.describe import layer_text, shape_text
from asyncdni.plan.plan import Group
from asyncdni.plan.rules import lag_bounds
from asyncdni.report.records import Recorder
from asyncdni.report.tensorboard import stage_scalars
from asyncdni.report.traces import OP_NAMES

__all__ = ["COLUMNS", "POINTS", "TICK_S", "Process", "RunState", "Runs"]

#: The finest step of the grid of time, in seconds; workers report twice a second.
TICK_S = 0.5
#: The most points that the curves of all workers of a run have together, and the most and the least
#: that one worker's curves have.
POINTS, _POINTS_MAX, _POINTS_MIN = 16_384, 512, 32
_EVENTS_MAX = 500
_PROGRESS_EVERY_S = 0.25
_EVALUATIONS_MAX = 1000
#: Of each worker so many slices are kept for a browser that comes later. All workers together send
#: so many ops of a slice, but each of them no fewer than the least number: see `core.slices`.
_SLICES_KEPT, _SLICE_OPS, _SLICE_OPS_MIN = 20, 4096, 32
_TEXT_MAX = 2000  # characters of an event's text
_DIGITS = 5  # significant ones of numbers in curves

#: The columns of a worker's curves after the number of the point, and the tag of `stage_scalars`
#: that each is taken from; the others are computed here. `tick` is in units of `TICK_S`.
_TAGS = {
    "samples_per_s": "speed/samples_per_s",
    "agreement": "generator/cosine",
    "staleness": "staleness/updates_mean",
    "staleness_p95": "staleness/updates_p95",
    "lag": "staleness/lag_mean",
    "busy": "time/busy",
    "transport": "time/transport",
    "waiting": "time/waiting",
    "bytes_per_s": "wire/bytes_sent_per_s",
}
COLUMNS = ("tick", "loss", *_TAGS, "queue", "memory_bytes", "cores")

#: Counters of a worker's report that the page shows as they are: see docs/telemetry.md.
_COUNTERS = (
    *("batches", "samples", "updates", "messages", "bytes_sent", "bytes_received", "queue"),
    *("in_flight", "window", "memory_bytes", "cpu_s", "dropped", "skipped", "missed", "fallbacks"),
)

#: How the page marks an event of each kind of record; those of other kinds are "news".
_MARKS = {
    **dict.fromkeys(("lost", "stuck", "accused", "numbers", "refused", "rejected"), "bad"),
    "failed": "bad",
    **dict.fromkeys(("back", "start"), "good"),
}

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Process:
    """The present process of a worker."""

    pid: int
    host: str

    @property
    def is_here(self) -> bool:
        """Whether it runs on this host."""
        return self.host == socket.gethostname()


@dataclass
class _Worker:
    """What is known of one worker."""

    #: "starting", "learning", "waiting" (no update since the last report, or its guard waits),
    #: "paused", "down", "catching up" (a new process, until its first update) or "done".
    state: str = "starting"
    process: Process | None = None
    parameters: int | None = None
    restarts: int = 0
    factor: float = 1.0  # how slow it is made from the page, and
    added_s: float = 0.0  # how much longer each of its ops takes
    latency_s: dict[str, float] = field(default_factory=dict)  # added to messages, by receiver
    replaced: bool = False  # whether an earlier process of it has died
    heard_s: float | None = None  # when the last report came
    before: Values | None = field(default_factory=dict)  # the last report; None: of a new process
    at_point: Values | None = field(default_factory=dict)  # the report at the last point
    at_point_s: float = 0.0
    loss: tuple[float, int] = (0.0, 0)  # sum and samples since the last point
    now: dict[str, Any] = field(default_factory=dict)
    points: list[list[Any]] = field(default_factory=list)


class RunState:
    """One run as the page shows it; an observer of its records (see `launch.conduct.Observer`)."""

    def __init__(
        self,
        title: str,
        folder: Path | None,
        *,
        live: bool,
        traced: bool = False,
        points: int = POINTS,
    ) -> None:
        """`folder` is that of the run; `live` says whether it goes on now, `traced` whether the
        folder has its timeline, and `points` how many its curves may have together."""
        self.title = title
        self.folder = folder
        self.live = live
        self.traced = traced
        self._points = points
        self._lock = threading.Lock()
        self._number = 0  # of the newest point or event
        self._changes = 0
        self._began_s: float | None = None  # time of the first record
        self._started_s: float | None = None  # time of the record `start`
        self._now_s = 0.0
        self._phase = "starting"
        self._network: dict[str, Any] = {}
        self._workers: dict[str, _Worker] = {}
        self._progress: dict[str, Any] = {}
        self._progress_s = -math.inf  # when it was measured
        self._step = 1  # ticks between two points
        self._evaluations: list[list[Any]] = []
        self._events: deque[list[Any]] = deque(maxlen=_EVENTS_MAX)
        self._slices: deque[tuple[int, str, list[int]]] = deque()  # with their numbers and workers
        self._zero_s: float | None = None  # when the run began, on the clock of slices
        self._watchers = 0  # how many want them
        self._excerpt = False  # whether they are what was kept of a run that has ended
        self._unasked = False  # the workers have not been asked for what there is to be shown

    # --- records in ------------------------------------------------------------------------------

    def __call__(self, design: Design, recorder: Recorder, kind: str, values: Values) -> None:
        """Take one record."""
        with self._lock:
            if self._began_s is None:
                self._began_s = values["time_s"]
                self._network = _network(design)
                self._workers = {group.name: _Worker() for group in design.plan.groups}
            self._now_s = max(self._now_s, values["time_s"] - self._began_s)
            self._changes += 1
            self._note(kind, values)
            if kind == "report" and values["stage"] in self._workers:
                name = values["stage"]
                self._report(self._workers[name], values["values"], recorder.reports[name])
            elif kind == "evaluation":
                self._evaluation(values)
            elif kind == "slices":
                self._add_slices(values)
            # With many workers reports come much faster than anybody looks at the whole run.
            due = kind == "report" and self._now_s >= self._progress_s + _PROGRESS_EVERY_S
            if due or kind in ("evaluation", "start"):
                self._progress_s = self._now_s
                started_s = self._now_s if self._started_s is None else self._started_s
                self._progress = _progress(design, recorder, self._now_s - started_s)

    def ended(self, phase: str = "ended", text: str = "") -> None:
        """Note that the run has "ended", "stopped", "failed" or is "unfinished", and why."""
        with self._lock:
            self._changes += 1
            self.live = False
            self._phase = phase
            for worker in self._workers.values():
                worker.state = "done" if worker.state != "down" else "down"
                worker.process = None
            if text:
                self._event(phase, "", text)

    # --- what is asked of workers ----------------------------------------------------------------

    def watched(self, more: int) -> None:
        """Note that so many more want to see the newest ops of the run, or fewer. Workers send them
        while anybody does."""
        with self._lock:
            before = self._watchers > 0
            self._watchers += more
            self._unasked = self._unasked or before != (self._watchers > 0)

    def steers(self) -> Mapping[str, Steer]:
        """Return what is asked anew of workers since the last call, by name."""
        if not self._unasked:
            return {}
        with self._lock:
            self._unasked = not self._workers
            return {name: self._steer(worker) for name, worker in self._workers.items()}

    def _steer(self, worker: _Worker) -> Steer:
        ops = max(_SLICE_OPS_MIN, min(OPS_MAX, _SLICE_OPS // len(self._workers)))
        shown = ops if self._watchers else 0
        return Steer(shown, worker.factor, dict(worker.latency_s), worker.added_s)

    def slow_down(
        self, worker: str, *, factor: float | None = None, added_s: float | None = None
    ) -> None:
        """Have each op of a worker take `factor` times as long (1: as the experiment says), or
        `added_s` longer (0: no longer). What is not given stays as it is."""
        with self._lock:
            one = self._workers[worker]
            one.factor = one.factor if factor is None else factor
            one.added_s = one.added_s if added_s is None else added_s
            self._unasked = True
            self._changes += 1

    def delay(self, worker: str, other: str, latency_s: float) -> None:
        """Have messages between two workers take `latency_s` longer, each way."""
        with self._lock:
            self._workers[worker].latency_s[other] = latency_s
            self._workers[other].latency_s[worker] = latency_s
            self._unasked = True
            self._changes += 1

    def said(self, worker: str, text: str, *, state: str = "") -> None:
        """Note what a control has done to a worker, and the state that puts it in."""
        with self._lock:
            self._changes += 1
            self._event("control", worker, text)
            if state:
                self._workers[worker].state = state

    def _note(self, kind: str, values: Values) -> None:
        """Take over what a record says of the run and its workers, and what is to be read of it."""
        stage = values.get("stage", "")
        worker = self._workers.get(stage)
        if kind == "start":
            self._started_s, self._phase = self._now_s, "training"
        elif kind == "resume":
            self._phase = "training"
        elif kind == "drained":
            self._phase = "stopping" if self._phase == "stopping" else "evaluating"
        elif kind == "stopping":
            self._phase = "stopping"
        elif kind == "round" and values["restore"] != "keep":
            for one in self._workers.values():  # they go back, and so do their counters
                one.before = one.at_point = None
        elif worker is not None:
            _note_worker(worker, kind, values)
            if kind in ("lost", "moved"):
                self._interrupt(worker)
        text = _text(kind, values)
        if text:
            self._event(kind, stage, text)

    def _event(self, kind: str, worker: str, text: str) -> None:
        self._number += 1
        mark = _MARKS.get(kind, "news")
        shown = legible(text, _TEXT_MAX)
        self._events.append([self._number, round(self._now_s, 2), mark, worker, shown])

    def _report(self, worker: _Worker, values: Values, total: Values) -> None:
        """Take one report: `values` as sent, `total` with the sums over earlier processes."""
        fresh, before = worker.before is None, worker.before or {}
        changes = {} if fresh else stage_scalars(total, before)
        # The length of a queue and the memory are of this moment; all else is since the last one.
        worker.now = {name: _number(total.get(name)) for name in _COUNTERS}
        worker.now |= {name: _number(changes.get(tag)) for name, tag in _TAGS.items()}
        worker.now["cores"] = _cores(total, before, self._now_s, worker.heard_s)
        worker.now["lags"] = _by_worker(values, "lag_to_")
        worker.now["bytes_to"] = _by_worker(total, "bytes_to_")
        worker.now["staleness_bins"] = _bins(total, "staleness")
        updated = not fresh and (total.get("updates") or 0) > (before.get("updates") or 0)
        if values.get("waiting") or not updated:
            worker.state = worker.state if worker.state == "catching up" else "waiting"
        else:
            worker.state = "learning"
        worker.now["guarded"] = bool(values.get("waiting"))
        worker.before, worker.heard_s = total, self._now_s
        loss, samples = worker.loss
        worker.loss = loss + values["loss_sum"], samples + values["loss_samples"]
        self._point(worker, total)

    def _interrupt(self, worker: _Worker) -> None:
        """Add a point without values: the worker's curves are interrupted there."""
        tick = int(self._now_s / TICK_S) // self._step * self._step
        if worker.points and any(value is not None for value in worker.points[-1][2:]):
            tick = max(tick, worker.points[-1][1] + self._step)
            self._number += 1
            worker.points.append([self._number, tick, *([None] * (len(COLUMNS) - 1))])

    def _point(self, worker: _Worker, total: Values) -> None:
        """Add a point to the worker's curves, once the grid of time has come to its next step."""
        tick = int(self._now_s / TICK_S) // self._step * self._step
        if worker.points and tick <= worker.points[-1][1]:
            return
        if worker.at_point is None:
            worker.at_point, worker.at_point_s = total, self._now_s  # a new process counts anew
            return
        changes = stage_scalars(total, worker.at_point)
        loss, samples = worker.loss
        found = {
            "tick": tick,
            "loss": loss / samples if samples else None,
            **{name: changes.get(tag) for name, tag in _TAGS.items()},
            **{name: total.get(name) for name in ("queue", "memory_bytes")},
            "cores": _cores(total, worker.at_point, self._now_s, worker.at_point_s),
        }
        self._number += 1
        worker.points.append([self._number, *(_number(found[name]) for name in COLUMNS)])
        worker.at_point, worker.at_point_s, worker.loss = total, self._now_s, (0.0, 0)
        while len(worker.points) > self._points_max:
            self._coarsen()

    @property
    def _points_max(self) -> int:
        return max(_POINTS_MIN, min(_POINTS_MAX, self._points // max(1, len(self._workers))))

    def _coarsen(self) -> None:
        """Make the steps of the grid twice as long; of each of them the first point is kept."""
        self._step *= 2
        for worker in self._workers.values():
            first: dict[int, list[Any]] = {}
            for number, tick, *rest in worker.points:
                at = tick // self._step * self._step
                first.setdefault(at, [number, at, *rest])
            worker.points = list(first.values())

    def show_excerpt(self, begin_s: float, slices: Mapping[str, list[int]]) -> None:
        """Show a slice of each worker that was kept: see `page.excerpt`."""
        with self._lock:
            self._excerpt, self._zero_s = True, -begin_s
            for name in self._workers.keys() & slices.keys():
                self._add_slices({"stage": name, "slices": [[0, *slices[name]]]})

    def _add_slices(self, values: Values) -> None:
        if self._zero_s is None:
            self._zero_s = time.time() - self._now_s
        for one in values["slices"]:
            self._number += 1
            self._slices.append((self._number, values["stage"], one))
        while len(self._slices) > _SLICES_KEPT * len(self._workers):
            self._slices.popleft()

    def _new_slices(self, since: int) -> list[list[Any]]:
        """Return the slices numbered above `since`: their worker, when they begin, until when all
        ops are in them, both in seconds since the run began, and the numbers of their ops."""
        found = []
        for number, worker, (slice_number, until_us, *ops) in self._slices:
            if number > since:
                begin_s = slice_number * SLICE_S - (self._zero_s or 0.0)
                found.append([worker, round(begin_s, 6), until_us / 1e6, ops])
        return found

    def _evaluation(self, values: Values) -> None:
        self._number += 1
        kept = [values["samples"], _number(values["accuracy"]), _number(values["loss"])]
        self._evaluations.append([self._number, round(self._now_s, 2), *kept])
        if len(self._evaluations) > _EVALUATIONS_MAX:
            self._evaluations = self._evaluations[1::2]  # with the newest

    # --- news out --------------------------------------------------------------------------------

    @property
    def changes(self) -> int:
        """A number that changes whenever there is something new."""
        return self._changes

    def news(self, since: int = 0) -> dict[str, Any]:
        """Return the present state, with points, evaluations and events numbered above `since`.

        All of it can be written as JSON. With `since` 0 it includes the network.
        """
        with self._lock:
            found = {
                "title": self.title,
                "live": self.live,
                "traced": self.traced,
                "excerpt": self._excerpt,
                "phase": self._phase,
                "time_s": round(self._now_s, 2),
                "number": self._number,
                "step": self._step,
                "progress": self._progress,
                "workers": {name: _shown(worker) for name, worker in self._workers.items()},
                "points": {
                    name: new
                    for name, worker in self._workers.items()
                    if (new := _after(worker.points, since))
                },
                "evaluations": _after(self._evaluations, since),
                "events": _after(self._events, since),
                "slices": self._new_slices(since),
            }
            return found if since else {**found, "network": self._network}

    @property
    def network(self) -> Mapping[str, Any]:
        """The network as it is cut: see `news`; empty before the first record."""
        return self._network

    @property
    def workers(self) -> Sequence[str]:
        """The names of the run's workers."""
        return tuple(self._workers)

    @property
    def links(self) -> Collection[tuple[str, str]]:
        """The links of the network, from a worker to a worker that takes its activations."""
        return {(link["from"], link["to"]) for link in self._network.get("links", ())}

    def process(self, worker: str) -> Process | None:
        """Return the present process of a worker; None if it has none, or is unknown."""
        with self._lock:
            found = self._workers.get(worker)
            return None if found is None else found.process


class Runs:
    """The runs of a page in order; threads may add and read."""

    def __init__(self) -> None:
        self._runs: list[RunState] = []
        self._watchers = 0
        self._lock = threading.Lock()

    def add(self, run: RunState) -> None:
        with self._lock:
            self._runs.append(run)
            run.watched(self._watchers)

    def watched(self, more: int) -> None:
        """Note that so many browsers more look at the runs, or fewer."""
        with self._lock:
            self._watchers += more
            for run in self._runs:
                run.watched(more)

    @property
    def all(self) -> Sequence[RunState]:
        return tuple(self._runs)

    def find(self, number: str) -> RunState | None:
        """Return the run with this number, from 0; None if there is none."""
        index = int(number) if number.isascii() and number.isdigit() and len(number) < 9 else -1
        return self._runs[index] if 0 <= index < len(self._runs) else None


# --- parts ---------------------------------------------------------------------------------------


def _note_worker(worker: _Worker, kind: str, values: Values) -> None:
    """Take over what a record says of one worker."""
    if kind == "joined":
        worker.process = Process(values["pid"], values["host"])
        if worker.replaced:
            worker.state, worker.before, worker.at_point = "catching up", None, None
    elif kind == "ready":
        worker.parameters = values["parameters"]
    elif kind in ("lost", "moved"):
        worker.state, worker.process, worker.replaced = "down", None, True
    elif kind == "launch":
        worker.restarts += 1


def _text(kind: str, values: Values) -> str | None:
    """Describe a record in one line; None for one that is not worth an event."""
    match kind:
        case "joined":
            return f"{values['stage']} joined: process {values['pid']} on {values['host']}"
        case "start":
            return "training begins"
        case "guard":
            return guard_line(values)
        case "cut":
            return f"checkpoint {values['number']} taken in {values['took_s']:.2f} s"
        case "saved":
            return f"the {values['tag']} weights are saved"
        case "refused":
            where = f"process {values['pid']} on {values['host']}"
            return f"refused a worker ({where}): {values['text']}"
        case "rejected":
            return f"rejected a message: {values['text']}"
    return incident_line(kind, values)


def _shown(worker: _Worker) -> dict[str, Any]:
    process = worker.process
    return {
        "state": worker.state,
        "host": process.host if process is not None else "",
        "pid": process.pid if process is not None else None,
        "parameters": worker.parameters,
        "restarts": worker.restarts,
        "factor": worker.factor,
        "added_s": worker.added_s,
        "latency_s": dict(worker.latency_s),
        "heard_s": None if worker.heard_s is None else round(worker.heard_s, 2),
        **worker.now,
    }


def _after(found: Sequence[list[Any]] | deque[list[Any]], since: int) -> list[list[Any]]:
    """Return the entries at the end whose numbers are above `since`."""
    if not found or found[-1][0] <= since:
        return []
    return [entry for entry in found if entry[0] > since]


def _by_worker(values: Values, prefix: str) -> dict[str, Any]:
    """Return the counters whose names are `prefix` and that of another worker."""
    return {key.removeprefix(prefix): n for key, n in values.items() if key.startswith(prefix)}


def _bins(values: Values, prefix: str) -> list[list[Any]]:
    """Return the bins of a distribution up to the last one with something in, as [upper edge,
    share of all]; empty if nothing was counted."""
    found = read_distribution(values, prefix)
    if found is None:
        return []
    last = max(number for number, count in enumerate(found.bins) if count)
    shares = [_number(count / found.count) for count in found.bins[: last + 1]]
    return [[edge, share] for edge, share in zip(EDGE_NAMES, shares, strict=False)]


def _cores(total: Values, before: Values, now_s: float, before_s: float | None) -> float | None:
    """Return the CPU time between two reports over the time between them."""
    cpu_s = (total.get("cpu_s") or 0.0) - (before.get("cpu_s") or 0.0)
    if before_s is None or not before or now_s <= before_s or cpu_s < 0:
        return None
    return float(f"{cpu_s / (now_s - before_s):.{_DIGITS}g}")


def _number(value: Any) -> Any:
    """Return a number that JSON can hold, in few digits; None for one that is not finite."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}")


def _progress(design: Design, recorder: Recorder, elapsed_s: float) -> dict[str, Any]:
    found = measure(design, recorder, elapsed_s)
    sums = recorder.incidents.summary()
    return {
        "epoch": _number(found.epoch),
        "epochs": found.epochs,
        "fraction": _number(found.fraction),
        "samples_per_s": _number(found.samples_per_s),
        "left_s": _number(found.left_s),
        "train_loss": _number(found.train_loss),
        "accuracy": _number(found.accuracy),
        "test_loss": _number(found.test_loss),
        "metrics": {name: _number(value) for name, value in found.metrics.items()},
        **{name: _number(sums[name]) for name in ("restarts", "lost_updates", "rollbacks")},
    }


def _network(design: Design) -> dict[str, Any]:
    """Describe the network as it is cut: what each worker runs, and the links between workers."""
    plan = design.plan
    return {
        "facts": facts(design),
        "columns": list(COLUMNS),
        "ops": OP_NAMES,
        "tick_s": TICK_S,
        "data": f"{design.experiment.data.tag}, {shape_text(design.network.data_shape)}",
        "workers": [_described(design, group) for group in plan.groups],
        "links": [link for group in plan.groups for link in _links(design, group)],
    }


def _described(design: Design, group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "schedule": group.schedule.text,
        "has_loss": group.has_loss,
        "producers": [name for name in group.producers if name != DATA],
        "stages": [
            {
                "name": node.name,
                "layers": ", ".join(map(layer_text, node.layers)),
                "shape": shape_text(node.output_shape),
                "loss": node.loss or "",
            }
            for node in group.members
        ],
    }


def _links(design: Design, group: Group) -> list[dict[str, Any]]:
    if group.exit is None:
        return []
    bounds, _ = lag_bounds(design.experiment, design.plan, group)
    shape = shape_text(design.network.node(group.exit).output_shape)
    return [
        {"from": group.name, "to": consumer, "shape": shape, "bound": bounds.get(consumer) or None}
        for consumer in group.consumers
    ]
