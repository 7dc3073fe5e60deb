"""The columns of a comparison's tables: each is defined once, for the console, the page and CSV.

A `Column` has a name, functions that find its value in a run and in a row, and a `Form` for each
place that shows it: the heading, and how numbers are written. CSV files have the values in full,
under their names.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncdni.report.statistics import Estimate, latencies_of, time_to

__all__ = [
    "COLUMNS",
    "COUNTERS",
    "LOAD",
    "MISSING",
    "SHARES",
    "SOONER",
    "SPEED_UP",
    "Column",
    "Form",
    "Row",
    "accuracy_words",
    "as_estimate",
    "columns",
    "counted",
    "evaluations_csv",
    "fixed",
    "flat_runs",
    "interval",
    "metric_words",
    "percent",
    "runs_csv",
    "time_key",
]

MISSING = "\N{EN DASH}"
_PERCENT = "\N{NO-BREAK SPACE}%"  # on the page the sign stays with its number

Row = Mapping[str, Any]  # a row, a target of one, or a run, of a comparison's document


@dataclass(frozen=True)
class Form:
    """How one place shows a column: its heading, and its numbers with their 95 % intervals."""

    heading: str
    spec: str = ",.0f"  # a format specification
    scale: float = 1.0
    unit: str = ""
    from_10: str = ""  # another spec for numbers from 10 on
    most: float = math.inf  # numbers from here on are written `>99`
    spread: str = "ends"  # "ends" of the interval, "half" of its width, or "" for neither
    pairs: bool = False  # show the number of pairs of runs if a ratio does not cover all

    def text(self, value: Any, size: float | None = None) -> str:
        """Format a value: `97.25 %` for 0.9725; words are unchanged. `size` is the number that
        chooses the spec, if not `value` itself."""
        if value is None:
            return MISSING
        if not isinstance(value, int | float):
            return str(value)
        number = self.scale * value
        size = number if size is None else size
        if size >= self.most:
            return f">{self.most - 1:g}"
        spec = self.from_10 if self.from_10 and size >= 10 else self.spec
        return f"{number:{spec}}{self.unit}"

    def ends(self, one: Estimate | None) -> str:
        """Format the interval: `28,623 to 29,996`; empty without an interval, or if it has no
        width."""
        if one is None or one.low is None or one.high is None or one.low == one.high:
            return ""
        low, high = (self.text(end).removesuffix(self.unit) for end in (one.low, one.high))
        return f"{low} to {high}"


#: Columns of tables of stages, by name of the counter.
STAGE_COLUMNS: dict[str, Form] = {
    "batches": Form("batches"),
    "updates": Form("updates"),
    "busy_fraction": Form("busy", ".0%"),
    "queue": Form("queue"),
    "cpu_s": Form("CPU", ".1f", unit=" s"),
    "staleness_mean": Form("staleness", ".1f"),
    "gradient_cosine": Form("agreement", ".2f"),
    "target_cosine": Form("with target", ".2f"),
    "dropped": Form("dropped"),
    "skipped": Form("skipped"),
    "missed": Form("missed"),
    "state": Form(""),
}


def as_estimate(value: Any) -> Estimate | None:
    """Return the `Estimate` in a value read from JSON; a bare number becomes one without an
    interval."""
    if value is None:
        return None
    if isinstance(value, int | float):
        return Estimate(float(value), None, None, 1)
    return Estimate(value["mean"], value.get("low"), value.get("high"), value.get("n", 1))


def fixed(value: Any, digits: int = 0, unit: str = "", scale: float = 1.0) -> str:
    """Format a number as `29,310` or `97.25 %`; a dash for None, and words are unchanged."""
    return Form("", f",.{digits}f", scale, unit).text(value)


def percent(value: Any, digits: int = 2) -> str:
    """Format 0.9725 as `97.25 %`, with a no-break space."""
    return fixed(value, digits, _PERCENT, 100.0)


def interval(one: Estimate | None, digits: int = 0, scale: float = 1.0) -> str:
    """Format an interval as `28,623 to 29,996`; empty without an interval, or if it has no
    width."""
    return Form("", f",.{digits}f", scale).ends(one)


def accuracy_words(accuracy: float) -> str:
    """Format 0.975 as `97.5 %`."""
    return f"{100 * accuracy:.6g} %"


def counted(number: float, noun: str, spec: str = "") -> str:
    """Return `1 pair` or `2 pairs`."""
    return f"{number:{spec}} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Column:
    """One column; places without a form for it do not show it."""

    name: str  # in rows and runs of the document, and in CSV
    page: Form | None = None
    console: Form | None = None
    #: Forms for a table of its own with a column for each latency; the heading is its title.
    page_by_latency: Form | None = None
    console_by_latency: Form | None = None
    #: The label of a plot's axis.
    axis: str = ""
    #: Finds its value in a row; None: the row's entry with its name.
    in_row: Callable[[Row], Any] | None = None
    #: Finds its value in a run's summary; None: the summary's entry with its name.
    in_summary: Callable[[Row], Any] | None = None

    def of_row(self, row: Row) -> Any:
        """Return the value in a row: an estimate as in JSON, a number, words, or None."""
        return self.in_row(row) if self.in_row else row.get(self.name)

    def of_run(self, summary: Row) -> Any:
        """Return the value of a run: a number, a word, or None if the run has none."""
        return self.in_summary(summary) if self.in_summary else summary.get(self.name)


def _processes(row: Row) -> str | None:
    """Return workers and BLAS threads of each, as `4 x 1`."""
    known = [row.get("workers"), row.get("threads")]
    return None if known == [None, None] else " \N{MULTIPLICATION SIGN} ".join(map(fixed, known))


def _reached(line: Row) -> str:
    return f"{line['reached']} of {line['runs']}"


def _disturbed(row: Row) -> str | None:
    """Return `1 of 2`, the disturbed runs of a row; None without any."""
    return f"{row['disturbed']} of {row['runs']}" if row.get("disturbed") else None


def _time_or_reached(line: Row) -> Any:
    """Return the time if every run reached the target, else how many did."""
    return line["time_s"] or (_reached(line) if line["runs"] else None)


def _either_kept(row: Row) -> Any:
    return row["kept_stream_samples_per_s"] or row["kept_samples_per_s"]


def _over_stages(name: str, total: Callable[[Iterable[float]], float]) -> Callable[[Row], Any]:
    """Return a function that totals a counter over the stages of a run; None if no stage has it."""

    def of_run(summary: Row) -> float | None:
        stages = summary.get("stages") or ()
        values = [stage[name] for stage in stages if stage.get(name) is not None]
        return total(values) if values else None

    return of_run


def _counter(
    name: str,
    heading: str,
    spec: str = ",.0f",
    scale: float = 1.0,
    total: Callable[[Iterable[float]], float] = sum,
) -> Column:
    return Column(name, Form(heading, spec, scale), in_summary=_over_stages(name, total))


def _bytes_per_sample(summary: Row) -> float | None:
    """Return the bytes of training that all links together have carried for one sample; None for
    runs of one worker, and of early versions."""
    stages = [stage for stage in summary.get("stages") or () if stage.get("bytes_by_link")]
    rates = [
        sum(stage["bytes_by_link"].values()) / stage["samples"]
        for stage in stages
        if stage["samples"]
    ]
    return sum(rates) if rates else None


def _share(part: str, words: str) -> Column:
    return Column(
        part,
        page=Form(words, ",.1f", 100.0, _PERCENT),
        console=Form(part, ".0f", 100.0, " %", spread=""),
        in_row=lambda row: (row.get("shares") or {}).get(part),
    )


def _seconds(heading: str, spread: str = "") -> Form:
    """Make the form of a time on the console."""
    return Form(heading, ".2f", unit=" s", from_10=".1f", spread=spread)


def _kept(name: str, in_row: Callable[[Row], Any] | None = None) -> Column:
    """Make the column of the share of the speed at the least latency."""
    return Column(
        name,
        page_by_latency=Form("Part of that at the least latency", ",.1f", 100.0, _PERCENT),
        console_by_latency=Form("kept", ".3g", 100.0, " %", spread=""),
        in_row=in_row,
    )


#: Shares of the wall time of all workers: see `breakdown.shares`.
SHARES = (
    _share("layers", "layer maths"),
    _share("generator", "generator maths"),
    _share("transport", "transport"),
    _share("waiting", "waiting"),
    _share("other", "other"),
)
#: Sums over the workers of a run; for staleness the greatest.
COUNTERS = (
    _counter("compute_s", "layers, s", ",.2f"),
    _counter("generator_s", "generators, s", ",.2f"),
    _counter("transport_s", "transport, s", ",.2f"),
    _counter("wait_s", "waiting, s", ",.2f"),
    _counter("op_cpu_s", "CPU in ops, s", ",.2f"),
    _counter("updates", "updates"),
    _counter("staleness_max", "greatest staleness", total=max),
    _counter("messages", "messages"),
    _counter("bytes_sent", "sent, MB", ",.1f", 1e-6),
    Column("bytes_per_sample", Form("bytes a sample, all links"), in_summary=_bytes_per_sample),
    _counter("dropped", "dropped"),
)
#: What else the machine did during a run: see `load.Load`.
LOAD = (
    Column("others", Form("others' CPU", ",.0f", 100.0, _PERCENT)),
    Column("stolen", Form("stolen CPU", ",.0f", 100.0, _PERCENT)),
    Column("before", Form("others' CPU before", ",.0f", 100.0, _PERCENT)),
    Column("start_gflops", Form("products at the start, GFLOP/s", ",.1f")),
    Column("end_gflops", Form("products at the end, GFLOP/s", ",.1f")),
    Column("repeats", Form("repeated")),
    Column("disturbed", Form("disturbed")),
)
#: Values of a run's summary, in the order of compare.csv.
_SUMMARY = (
    Column("workers"),
    Column("threads"),
    Column("schedule"),
    Column("batch_size"),
    Column("epochs"),
    Column("train_samples", Form("samples")),
    Column(
        "samples_per_s",
        page=Form("samples/s"),
        console=Form("samples/s", spread="half"),
        page_by_latency=Form("Samples/s"),
        console_by_latency=Form("samples/s", spread="half"),
        axis="samples per second",
    ),
    Column(  # the same with the filling and draining of the pipe left out
        "stream_samples_per_s",
        page=Form("without drains"),
        page_by_latency=Form("Samples/s, fills and drains left out"),
        console_by_latency=Form("without drains", spread="half"),
        axis="samples per second, fills and drains left out",
    ),
    Column(
        "train_s",
        page=Form("training, s", ",.2f"),
        console=_seconds("training"),
        axis="training time in seconds, evaluations left out",
    ),
    Column("wall_s", Form("wall, s", ",.2f")),
    Column("startup_s", Form("start, s", ",.2f")),
    Column("cpu_s", page=Form("CPU, s", ",.2f"), console=_seconds("CPU")),
    Column(
        "test_accuracy",
        page=Form("test accuracy", ",.2f", 100.0, _PERCENT),
        console=Form("accuracy", ".2f", 100.0, " %", spread="half"),
        page_by_latency=Form("Test accuracy", ",.2f", 100.0, _PERCENT),
        console_by_latency=Form("accuracy, %", ".2f", 100.0, spread="half"),
        axis="test accuracy",
    ),
    Column(
        "test_loss",
        page=Form("test loss", ",.4f"),
        console=Form("test loss", ".4f", spread="half"),
        axis="test loss",
    ),
)
#: Further values of rows, and of a row's targets.
_ROWS = (
    Column("runs", Form("runs")),
    Column("disturbed_runs", Form("disturbed"), Form("disturbed", spread=""), in_row=_disturbed),
    Column("processes", Form("workers \N{MULTIPLICATION SIGN} threads"), in_row=_processes),
    Column(
        "ceiling_samples_per_s",
        page=Form("ceiling, samples/s"),
        console=Form("ceiling", spread=""),
    ),
    Column(
        "efficiency",
        page=Form("of the ceiling", ",.1f", 100.0, _PERCENT),
        console=Form("reached", ".0f", 100.0, " %", spread=""),
        page_by_latency=Form("Part of the ceiling", ",.1f", 100.0, _PERCENT),
        console_by_latency=Form("of the ceiling", ".3g", 100.0, " %", spread=""),
    ),
    Column(
        "roofline_samples_per_s",
        page=Form("roofline, samples/s"),
        console=Form("roofline", spread=""),
    ),
    Column(
        "of_roofline",
        page=Form("of the roofline", ",.1f", 100.0, _PERCENT),
        console=Form("of that", ".0f", 100.0, " %", spread=""),
    ),
    Column(
        "overhead_cpu",
        page=Form("CPU time outside maths", ",.1f", 100.0, _PERCENT),
        console=Form("overhead", ".0f", 100.0, " %", spread=""),
    ),
    _kept("kept_samples_per_s"),
    _kept("kept_stream_samples_per_s"),
    _kept("kept", in_row=_either_kept),
    Column("reached", page=Form("reached by"), console=Form("reached"), in_row=_reached),
    Column(
        "time_s",
        page=Form("training, s", ",.2f"),
        console=_seconds("time", spread="half"),
        page_by_latency=Form("Training time to {}, s", ",.2f"),
    ),
    Column(
        "time_or_reached",
        console_by_latency=Form("s to {}", ".2f", spread="half"),
        in_row=_time_or_reached,
    ),
    Column("samples", page=Form("samples"), console=Form("samples", spread="half"), axis="samples"),
)
COLUMNS = {one.name: one for one in (*_SUMMARY, *COUNTERS, *LOAD, *_ROWS, *SHARES)}
#: Ratios of a row to another, `speedup_over_NAME`; the other's name follows the heading.
SPEED_UP = Column(
    "speedup_over_",
    page=Form("times the samples/s of", ",.2f", pairs=True),
    console=Form("times", ".2f", from_10=".1f", most=100.0),
)
SOONER = Column(
    "speedup_over_",
    page=Form("times sooner than", ",.2f", pairs=True),
    console=Form("sooner than", ".2f", from_10=".1f", most=100.0, pairs=True),
)


def columns(*names: str) -> list[Column]:
    """Return the columns of these names, in this order."""
    return [COLUMNS[name] for name in names]


# --- single runs ---------------------------------------------------------------------------------

_EVALUATION = (
    *("samples", "train_s", "accuracy", "loss"),
    *("train_loss", "learning_rate", "samples_per_s"),
)


def flat_runs(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one flat record for each run, by column: for CSV, for the page, and for dots in plots.

    It has the name, the latency if several are compared, the seed, the numbers of the summary, the
    time to each target, counters over all stages, and what else the machine did. Units are seconds
    and bytes; None if a run has no such number, or did not reach the target.
    """
    controls = {row["name"] for row in found["rows"] if row.get("control")}
    return [
        {
            **_place(run, found),
            "control": run["name"] in controls,
            **{column.name: column.of_run(run["summary"]) for column in _SUMMARY},
            **{
                time_key(target): time_to(target)(run["summary"])
                for target in found.get("targets") or ()
            },
            **{column.name: column.of_run(run["summary"]) for column in COUNTERS},
            **_metrics(found, run["summary"].get("test_metrics")),
            **_load(run),
            "folder": run.get("folder"),
        }
        for run in found["runs"]
    ]


def _load(run: Row) -> dict[str, Any]:
    """Return what else the machine did during a run, by the names of LOAD."""
    known = {**(run.get("load") or {}), "disturbed": run.get("disturbed") or None}
    return {column.name: known.get(column.name) for column in LOAD}


def metric_words(metrics: Mapping[str, float | None]) -> list[str]:
    """Return `top5 0.9983` for each metric of a test set, by name."""
    return [
        f"{name} {MISSING if value is None else format(value, '.4g')}"
        for name, value in metrics.items()
    ]


def time_key(target: float) -> str:
    """Return the name of the column of training seconds to an accuracy: `time_to_0.975_s`."""
    return f"time_to_{target:g}_s"


def runs_csv(found: Mapping[str, Any]) -> str:
    """Return a CSV with one line for each run, so that others can compute their own statistics."""
    lines = flat_runs(found)
    return _csv(list(lines[0]) if lines else ["name", "seed"], lines)


def evaluations_csv(found: Mapping[str, Any]) -> str:
    """Return a CSV with one line for each evaluation of a run; `train_s` is training time only."""
    first = [*_place({"name": "", "seed": 0}, found)]
    return _csv(
        [*first, *_EVALUATION, *_metrics(found, {})],
        (
            {
                **_place(run, found),
                **{key: one.get(key) for key in _EVALUATION},
                **_metrics(found, one.get("metrics")),
            }
            for run in found["runs"]
            for one in run["summary"].get("history") or ()
        ),
    )


def _metrics(
    found: Mapping[str, Any], known: Mapping[str, float | None] | None
) -> dict[str, float | None]:
    """Return the columns `test_NAME` of all metrics that a run of the document has: values of
    `known`, None where it has none."""
    summaries = [run["summary"] for run in found["runs"]]
    names = dict.fromkeys(name for one in summaries for name in one.get("test_metrics") or ())
    return {f"test_{name}": (known or {}).get(name) for name in names}


def _place(run: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies the run: name, latency if compared, seed."""
    where = {"latency_s": run.get("latency_s")} if latencies_of(found) else {}
    return {"name": run["name"], **where, "seed": run["seed"]}


def _csv(keys: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
