"""The tables of the page: a line a row of the comparison, then a line a run.

A mean stands above its 95 % interval. A column in which no row has a number is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncdni.metrics.flat_runs import flat_runs, time_key
from asyncdni.metrics.latencies import latencies_of, latency_words
from asyncdni.metrics.markup import Markup, element, together
from asyncdni.metrics.numerals import MISSING, as_estimate, fixed, interval, percent
from asyncdni.metrics.palette import SHARES, row_colours

__all__ = [
    "ceilings_table",
    "counters_table",
    "latency_tables",
    "main_table",
    "runs_table",
    "shares_table",
    "speedups_table",
    "target_table",
]

Found = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Column:
    heading: str
    cell: Callable[[Row], str]  # MISSING or empty where there is nothing


def main_table(found: Found) -> Markup:
    """Speed, accuracy and time of each row."""
    columns = [
        _Column("runs", lambda row: fixed(row.get("runs"))),
        _Column("workers \N{MULTIPLICATION SIGN} threads", _processes),
        _mean("samples/s", "samples_per_s"),
        *([_mean("without drains", "stream_samples_per_s")] if _at_latencies(found) else []),
        _mean("test accuracy", "test_accuracy", 2, 100.0, "\N{NO-BREAK SPACE}%"),
        _mean("test loss", "test_loss", 4),
        _mean("training, s", "train_s", 2),
        _mean("CPU, s", "cpu_s", 2),
    ]
    return _rows_table(found, found["rows"], columns)


def latency_tables(found: Found) -> list[tuple[str, Markup]]:
    """(what it shows, table): a line a row of the comparison, a column a latency."""
    share = (1, 100.0, "\N{NO-BREAK SPACE}%")
    tables = [
        ("Samples/s", _by_latency(found, "samples_per_s")),
        ("Samples/s, fills and drains left out", _by_latency(found, "stream_samples_per_s")),
        ("Part of that at the least latency", _by_latency(found, _kept_key(found), *share)),
        ("Test accuracy", _by_latency(found, "test_accuracy", 2, *share[1:])),
        ("Part of the ceiling", _by_latency(found, "efficiency", *share)),
    ]
    for index, target in enumerate(found.get("targets") or ()):
        rows = [{**row, **row["targets"][index]} for row in found["rows"] if row.get("targets")]
        title = f"Training time to {100 * target:.6g} %, s"
        tables.append((title, _by_latency({**found, "rows": rows}, "time_s", 2)))
    return [(title, table) for title, table in tables if table]


def speedups_table(found: Found) -> Markup:
    """Samples a second in units of another row."""
    return _rows_table(found, found["rows"], _ratios(found["rows"], "times the samples/s of"))


def target_table(found: Found, target: float) -> Markup:
    """How many runs of each row reached an accuracy, and when."""
    lines = [
        {**entry, "name": row["name"], "control": row.get("control"), "runs": row.get("runs")}
        for row in found["rows"]
        for entry in row.get("targets") or ()
        if entry["accuracy"] == target
    ]
    columns = [
        _Column("reached by", lambda line: f"{line['reached']} of {line['runs']}"),
        _mean("training, s", "time_s", 2),
        _mean("samples", "samples"),
        *_ratios(lines, "times sooner than"),
    ]
    return _rows_table(found, lines, columns)


def ceilings_table(found: Found) -> Markup:
    """What a row's own op times allow, and how much of it there was."""
    rows = [row for row in found["rows"] if row.get("efficiency") or row.get("overhead_cpu")]
    columns = [
        _mean("samples/s", "samples_per_s"),
        _mean("ceiling, samples/s", "ceiling_samples_per_s"),
        _mean("of the ceiling", "efficiency", 1, 100.0, "\N{NO-BREAK SPACE}%"),
        _mean("CPU time outside maths", "overhead_cpu", 1, 100.0, "\N{NO-BREAK SPACE}%"),
    ]
    return _rows_table(found, rows, columns) if rows else Markup()


def shares_table(found: Found) -> Markup:
    """Parts of the wall time of all workers."""
    rows = [row for row in found["rows"] if row.get("shares")]
    columns = [_share(part, words) for part, (_, words) in SHARES.items()]
    return _rows_table(found, rows, columns) if rows else Markup()


def runs_table(found: Found) -> Markup:
    """Every run by itself."""
    times = [
        _plain(f"to {100 * target:.6g} %, s", time_key(target), 2)
        for target in found.get("targets") or ()
    ]
    return _single_runs(
        found,
        [
            _plain("samples", "train_samples"),
            _plain("samples/s", "samples_per_s"),
            *([_plain("without drains", "stream_samples_per_s")] if _at_latencies(found) else []),
            _Column("test accuracy", lambda run: percent(run["test_accuracy"])),
            _plain("test loss", "test_loss", 4),
            _plain("training, s", "train_s", 2),
            _plain("wall, s", "wall_s", 2),
            _plain("start, s", "startup_s", 2),
            _plain("CPU, s", "cpu_s", 2),
            *times,
        ],
    )


def counters_table(found: Found) -> Markup:
    """Of every run, sums over its workers; empty where no run has any."""
    columns = [
        _plain("layers, s", "compute_s", 2),
        _plain("generators, s", "generator_s", 2),
        _plain("transport, s", "transport_s", 2),
        _plain("waiting, s", "wait_s", 2),
        _plain("CPU in ops, s", "op_cpu_s", 2),
        _plain("updates", "updates"),
        _plain("greatest staleness", "staleness_max"),
        _plain("messages", "messages"),
        _Column("sent, MB", lambda run: fixed(run["bytes_sent"], 1, scale=1e-6)),
        _plain("dropped", "dropped"),
    ]
    return _single_runs(found, columns)


def _processes(row: Row) -> str:
    """`4 x 1`: BLAS threads are each worker's own."""
    known = [row.get("workers"), row.get("threads")]
    return MISSING if known == [None, None] else " \N{MULTIPLICATION SIGN} ".join(map(fixed, known))


def _at_latencies(found: Found) -> bool:
    return any(row.get("latency_s") is not None for row in found["rows"])


def _kept_key(found: Found) -> str:
    streamed = any(row.get("kept_stream_samples_per_s") for row in found["rows"])
    return "kept_stream_samples_per_s" if streamed else "kept_samples_per_s"


def _by_latency(
    found: Found, key: str, digits: int = 0, scale: float = 1.0, unit: str = ""
) -> Markup:
    lines: dict[str, dict[str, Any]] = {}
    for row in found["rows"]:
        line = lines.setdefault(row["name"], {"name": row["name"], "control": row.get("control")})
        line[latency_words(row["latency_s"])] = row.get(key)
    words = [latency_words(latency_s) for latency_s in latencies_of(found)]
    columns = [_mean(one, one, digits, scale, unit) for one in words]
    return _rows_table(found, list(lines.values()), columns) if lines else Markup()


# --- columns -------------------------------------------------------------------------------------


def _mean(heading: str, key: str, digits: int = 0, scale: float = 1.0, unit: str = "") -> _Column:
    def cell(row: Row) -> str:
        one = as_estimate(row.get(key))
        if one is None:
            return MISSING
        return _over(fixed(one.mean, digits, unit, scale), interval(one, digits, scale))

    return _Column(heading, cell)


def _ratios(lines: Sequence[Row], heading: str) -> list[_Column]:
    """A column for each row that anything is compared with."""
    prefix = "speedup_over_"
    keys = dict.fromkeys(key for line in lines for key in line if key.startswith(prefix))
    return [_ratio(f"{heading} {key.removeprefix(prefix)}", key) for key in keys]


def _ratio(heading: str, key: str) -> _Column:
    def cell(line: Row) -> str:
        one = as_estimate(line.get(key))
        if one is None:
            return MISSING
        pairs = "" if one.n == line.get("runs") else f"{one.n} pair{'s' if one.n > 1 else ''}"
        return _over(fixed(one.mean, 2), ", ".join(filter(None, (interval(one, 2), pairs))))

    return _Column(heading, cell)


def _share(part: str, words: str) -> _Column:
    return _Column(words, lambda row: percent(row["shares"].get(part), 1))


def _plain(heading: str, key: str, digits: int = 0) -> _Column:
    return _Column(heading, lambda run: fixed(run[key], digits))


# --- markup --------------------------------------------------------------------------------------


def _over(mean: str, spread: str) -> Markup:
    return together([mean, element("small", spread)] if spread else [mean])


def _rows_table(found: Found, lines: Sequence[Row], columns: Sequence[_Column]) -> Markup:
    colours = row_colours(found["rows"])
    names = [_name(line, colours[line["name"]]) for line in lines]
    return _table([""], [[name] for name in names], lines, columns)


def _single_runs(found: Found, columns: Sequence[_Column]) -> Markup:
    """In the order of rows, latencies, seeds, whatever the order they were run in."""
    order = {row["name"]: index for index, row in enumerate(found["rows"])}
    runs = sorted(
        flat_runs(found),
        key=lambda run: (order[run["name"]], run.get("latency_s") or 0.0, run["seed"]),
    )
    colours = row_colours(found["rows"])
    where = ["latency"] if latencies_of(found) else []
    heads = [
        [_name(run, colours[run["name"]]), *(_latency(run) for _ in where), str(run["seed"])]
        for run in runs
    ]
    table = _table(["", *where, "seed"], heads, runs, columns)
    return element("div", table, class_="dense") if table else table


def _latency(run: Row) -> str:
    return MISSING if run["latency_s"] is None else latency_words(run["latency_s"])


def _table(
    headings: Sequence[str],
    heads: Sequence[Sequence[str]],
    lines: Sequence[Row],
    columns: Sequence[_Column],
) -> Markup:
    """Each line begins with its `heads`; empty without any number."""
    cells = {column.heading: [column.cell(line) for line in lines] for column in columns}
    cells = {name: found for name, found in cells.items() if set(found) - {MISSING, ""}}
    if not cells:
        return Markup()
    top = [element("th", text, scope="col") for text in (*headings, *cells)]
    body = []
    for index, (name, *rest) in enumerate(heads):
        first = element("th", name, scope="row")
        others = [element("td", text) for text in (*rest, *(c[index] for c in cells.values()))]
        new = index > 0 and len(headings) > 1 and heads[index - 1][0] != name
        body.append(element("tr", first, *others, class_="group" if new else None))
    table = element("table", element("thead", element("tr", *top)), element("tbody", *body))
    return element("div", table, class_="scroll")


def _name(line: Row, colour: str) -> Markup:
    swatch = element("span", class_="swatch", style=f"background:{colour}")
    tag = [element("span", "control", class_="tag")] if line.get("control") else []
    return together([swatch, line["name"], *tag])
