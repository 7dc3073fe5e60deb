"""A comparison as one HTML page that needs nothing else: no script, no font, no network.

The page's own policy (Content-Security-Policy) forbids all of these, so that a name or a setting
that came with the document could not bring them in either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from asyncdni.report.plots import SHARES, row_colours
from asyncdni.report.statistics import (
    flat_runs,
    latencies_of,
    latency_words,
    slices,
    suffix,
    time_key,
)
from asyncdni.report.verdict import MISSING, as_estimate, fixed, interval, joined, percent

__all__ = [
    "Markup",
    "ceilings_table",
    "counters_table",
    "element",
    "how_it_was_measured",
    "latency_tables",
    "main_table",
    "render_page",
    "runs_table",
    "shares_table",
    "speedups_table",
    "target_table",
    "together",
]

# --- markup --------------------------------------------------------------------------------------
#
# HTML as nested calls, safe by default: text is escaped unless it was made here.
#
# >>> element("td", "a < b", element("b", "c"), class_="name")
# '<td class="name">a &lt; b<b>c</b></td>'

_VOID = {"br", "meta"}


class Markup(str):
    """HTML that needs no escaping any more."""


def element(tag: str, *children: str, **attributes: str | None) -> Markup:
    """One element. A name may end in `_` (`class_`); an attribute that is None is left out."""
    parts = [tag]
    for name, value in attributes.items():
        if value is not None:
            parts.append(f'{name.rstrip("_").replace("_", "-")}="{escape(value)}"')
    opening = f"<{' '.join(parts)}>"
    return Markup(opening if tag in _VOID else f"{opening}{together(children)}</{tag}>")


def together(parts: Iterable[str]) -> Markup:
    """One after the other; those that are not `Markup` are escaped."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))


# --- page tables ---------------------------------------------------------------------------------
#
# The tables of the page: a line a row of the comparison, then a line a run.
#
# A mean stands above its 95 % interval. A column in which no row has a number is left out.

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


# --- measuring -----------------------------------------------------------------------------------
#
# How a comparison is measured, in words: what a reader has to know to believe its numbers.


def how_it_was_measured(found: Mapping[str, Any]) -> Markup:
    """A list; what this comparison has none of is left out."""
    return element("ul", *(element("li", text) for text in _sentences(found)))


def _sentences(found: Mapping[str, Any]) -> Iterable[str]:
    names = {row["name"] for row in found["rows"]}
    yield (
        "One run at a time. Runs are interleaved: all rows with the first seed, then all with the "
        "next in an order that is rotated by one, so that a machine that grows slower or faster "
        "does so for every row."
    )
    yield (
        "Runs of asyncdni with one seed start from the same weights and see the same batches in "
        "the same order. Rows are compared seed by seed: a speed-up is the geometric mean of the "
        "ratios of such pairs, and its interval that of the mean of their logarithms."
    )
    yield (
        "Intervals hold 95 % (Student's t over the seeds). They tell how far chance between runs "
        "on this machine goes, and nothing about other machines. One seed has no interval."
    )
    yield (
        "Training time runs from the first batch until the last update, with the time in which the "
        "pipe drains before an evaluation. Evaluations themselves, start-up and writing of weights "
        "are left out; wall time has all of it."
    )
    if found.get("targets"):
        yield (
            "An accuracy counts as reached at the first of two consecutive evaluations at or above "
            "it: one alone may be luck. Where some runs of a row never reach it, no mean is given, "
            "and ratios are over the pairs in which both did."
        )
    if any(row.get("ceiling_samples_per_s") for row in found["rows"]):
        yield (
            "The ceiling is arithmetic on the CPU times of the run's own ops: no more batches a "
            "second than the slowest worker can do, and no more than all cores can do of the work "
            "of all workers together. Rows that wait for true gradients are held back further: a "
            "locked one by each batch's way down and back before the next, gpipe and 1f1b by that "
            "of each group of microbatches, delayed by that of as many batches as it may be ahead; "
            "the latency that links were given is on that way. Efficiency is the part of it that "
            "was reached. An op that grows slower because cores share caches and memory lowers the "
            "ceiling too."
        )
    if found.get("latencies"):
        yield (
            "Latency is emulated: each message between workers is handed over so much later than "
            "it was sent, and holds up no other link. A comparison at several latencies is one at "
            "each of them, in the same interleaved order."
        )
    if "single" in names:
        yield (
            "single: all stages in one worker process and in strict order, with as many BLAS "
            "threads as the table says, no links and no other worker running: what training "
            "without asyncdni would be."
        )
    if any(row.get("control") for row in found["rows"]):
        yield (
            "A control is not a competitor: it lacks what is to be shown to matter, such as "
            "generators that predict anything but zero."
        )


_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_FACTS = {
    "cpu": "processor",
    "system": "system",
    "python": "Python",
    "numpy": "NumPy",
    "blas": "BLAS",
}


def render_page(found: Found, plots: Mapping[str, str], missing_plots: str = "") -> str:
    """The whole page.

    Args:
        found: the document of `compare.json`.
        plots: SVG elements by the names of `plots.draw_plots`, to stand in the page.
        missing_plots: what to say where there are none.
    """
    names = dict.fromkeys(row["name"] for row in found["rows"] if not row.get("control"))
    title = f"A comparison of {joined([*names]) or 'nothing'}"
    style = files("asyncdni.report").joinpath("page.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", title),
        element("style", Markup(style)),
    )
    body = element(
        "body",
        element("h1", title),
        element("p", _subtitle(found), class_="subtitle"),
        *_verdict(found),
        *([element("p", missing_plots, class_="note")] if missing_plots else []),
        *_sections(found, plots),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _sections(found: Found, plots: Mapping[str, str]) -> Iterable[Markup]:
    yield _section("Machine", _machine(found.get("machine") or {}))
    yield _section("Experiment", _experiment(found))
    if latencies_of(found):
        yield _section(
            "Over the latency",
            _figure(plots, "speed_over_latency", _OVER),
            _figure(plots, "time_over_latency", _TIMES_OVER),
            *(
                part
                for title, table in latency_tables(found)
                for part in (element("h3", title), table)
            ),
            _note(_LINKS),
        )
    for latency_s, part in slices(found):
        yield from _results(part, plots, latency_s)
    yield _section("Every run", runs_table(found), *_counters(found), _note(_FILES))
    yield _section("How it was measured", how_it_was_measured(found))


def _results(found: Found, plots: Mapping[str, str], latency_s: float | None) -> Iterable[Markup]:
    """All that there is to show at one latency."""
    where = "" if latency_s is None else f" at {latency_words(latency_s)}"
    end = suffix(latency_s)
    yield _section(
        f"Results{where}",
        main_table(found),
        _note(_MEANS),
        _figure(plots, f"samples_per_s{end}", _SPEED),
    )
    yield _section(f"Speed-ups{where}", speedups_table(found), _note(_PAIRED))
    yield _section(
        f"Accuracy on the way{where}",
        _figure(plots, f"accuracy_over_time{end}", _CURVES),
        _figure(plots, f"accuracy_over_samples{end}", _SAMPLES),
    )
    yield _section(
        f"Time to an accuracy{where}",
        _figure(plots, f"time_to_target{end}", _TIMES),
        *(part for target in found.get("targets") or () for part in _target(found, target)),
    )
    yield _section(f"Ceiling and efficiency{where}", ceilings_table(found), _note(_CEILING))
    yield _section(
        f"Where the time went{where}",
        _figure(plots, f"shares{end}", _SHARES),
        shares_table(found),
    )


_OVER = (
    "Samples per second over the one-way latency of all links. Points: means, with their 95 % "
    "intervals; dotted: ceilings, where they are known. Both axes are logarithmic, but for 0 ms."
)
_TIMES_OVER = (
    "Training time to each target over the same. A point stands only where all runs of a row "
    "reached it."
)
_LINKS = (
    "The latency is one way, of all links between workers. What has no links, such as single, was "
    "run once and stands for every latency. Below, everything at each latency by itself."
)
_MEANS = (
    "Means over the runs, and below them their 95 % intervals (Student's t). Workers are "
    "processes; BLAS threads are each worker's own."
)
_SPEED = (
    "Samples per second. Bars: means; lines through their ends: 95 % intervals; rings: single "
    "runs. Dashed: the ceiling, where it is known, with the part of it that was reached."
)
_PAIRED = (
    "Geometric means of the ratios of runs with the same seed, and 95 % intervals of their "
    "logarithms. An interval that holds 1 shows no difference."
)
_CURVES = (
    "Test accuracy over training time. Thick: mean over the runs of a row; thin: each run; dotted: "
    "the targets. The axis is logarithmic in the error."
)
_SAMPLES = "The same over the samples that were trained on: what a sample was worth, not its cost."
_TIMES = (
    "Training time to each target that any run reached. A bar stands only where all runs of a row "
    "reached it; rings are single runs."
)
_CEILING = (
    "The ceiling is what the CPU times of the run's own ops allow at most, under the latency that "
    "links were given, if messages were free otherwise: see below. CPU time outside maths is that "
    "of messages, the loop and other threads, as part of all CPU time of the workers."
)
_SHARES = (
    "Parts of the training time of a row's workers, means over workers and runs. Waiting: for "
    "something to arrive, or at a barrier for the others."
)
_FILES = (
    "compare.csv has these numbers in full, compare-evaluations.csv every evaluation of every run, "
    "and compare.json all of it."
)


def _subtitle(found: Found) -> str:
    seeds, runs = len(found.get("seeds") or ()), len(found["runs"])
    machine = found.get("machine") or {}
    parts = [
        f"{runs} run{'' if runs == 1 else 's'}, {seeds} seed{'' if seeds == 1 else 's'}",
        f"{machine.get('cores', 'unknown')} cores",
        f"asyncdni {machine.get('asyncdni', 'of unknown version')}",
    ]
    return " · ".join(parts)


def _verdict(found: Found) -> Iterable[Markup]:
    """A text or several; and a warning where runs are still to come."""
    said = found.get("verdict") or ()
    sentences = [said] if isinstance(said, str) else list(said)
    if sentences:
        paragraphs = [element("p", sentence) for sentence in sentences]
        yield element("div", *paragraphs, class_="verdict")
    if not found.get("complete", True):
        text = "Unfinished: planned runs are missing, and the numbers below will change."
        yield element("p", text, class_="warning")


def _machine(machine: Mapping[str, Any]) -> Markup:
    cores = {"cores": machine.get("cores")}
    known = {_FACTS.get(key, key): value for key, value in machine.items() if key != "cores"}
    facts = {name: _words(value) for name, value in {**cores, **known}.items() if value}
    return _facts(facts, "pairs")


def _words(value: Any) -> str:
    """Lists side by side, tables as their values."""
    if isinstance(value, Mapping):
        return " ".join(_words(one) for one in value.values() if one is not None)
    if isinstance(value, list | tuple):
        return "; ".join(_words(one) for one in value)
    return str(value)


def _experiment(found: Found) -> Markup:
    """Tables as in the experiment file, one line each; stages a line each.

    The experiment is that of the first run; schedules, and latencies, are what rows differ in.
    """
    experiment, schedules = found.get("experiment") or {}, found.get("schedules") or {}
    latencies = [latency_words(latency_s) for latency_s in latencies_of(found)]
    lines: dict[str, Markup] = {}
    for table, value in experiment.items():
        if table != "schedule":
            lines[table] = _lines(value if isinstance(value, list) else [value])
        elif schedules:
            lines |= {f"schedule of {name}": _lines([one]) for name, one in schedules.items()}
        else:
            lines["schedule of the first run"] = _lines([value])
    if latencies:
        lines["latencies of links"] = together([", ".join(latencies)])
    return _facts({name: text for name, text in lines.items() if text})


def _lines(values: Iterable[Any]) -> Markup:
    return together(element("code", text) for text in map(_settings, values) if text)


def _settings(value: Any) -> str:
    if not isinstance(value, Mapping):
        return _toml(value)
    known = {key: one for key, one in value.items() if one is not None and one not in ({}, "")}
    return ", ".join(f"{key} = {_toml(one)}" for key, one in known.items())


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{ {_settings(value)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(one) for one in value)}]"
    return json.dumps(value, ensure_ascii=False)


def _target(found: Found, target: float) -> Iterable[Markup]:
    table = target_table(found, target)
    return [element("h3", f"To {100 * target:.6g} % test accuracy"), table] if table else []


def _counters(found: Found) -> Iterable[Markup]:
    table = counters_table(found)
    return [element("h3", "Counters, over all workers of a run"), table] if table else []


# --- parts of a page -----------------------------------------------------------------------------


def _section(title: str, *parts: Markup) -> Markup:
    """Nothing where no part but notes has anything in it."""
    if not any(part and not part.startswith('<p class="note"') for part in parts):
        return Markup()
    return element("section", element("h2", title), *parts)


def _note(text: str) -> Markup:
    return element("p", text, class_="note")


def _figure(plots: Mapping[str, str], name: str, caption: str) -> Markup:
    if name not in plots:
        return Markup()
    return element("figure", Markup(plots[name]), element("figcaption", caption))


def _facts(facts: Mapping[str, str], kind: str | None = None) -> Markup:
    pairs = [element("dt", name) + element("dd", value) for name, value in facts.items()]
    return element("dl", *map(Markup, pairs), class_=kind) if pairs else Markup()
