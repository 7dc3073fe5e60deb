"""The reports of a comparison: CSV files, plots, and `compare.html`.

`compare.html` is the page of the runs in one file: `assets/page.html` with its scripts and styles
in it, what `comparison.html.jinja` says of all runs together, and what a server would answer about
each. It needs no server and no network. Its Content-Security-Policy allows the scripts in it alone,
by their hashes, so that a name, a setting or a line of a log can't add any. The template escapes
all values; this module prepares them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from asyncdni.errors import AsyncDNIError
from asyncdni.imports import Allowed
from asyncdni.page.recorded import last_lines, open_state
from asyncdni.page.state import POINTS
from asyncdni.report import columns as shown
from asyncdni.report.columns import (
    COLUMNS,
    COUNTERS,
    LOAD,
    MISSING,
    SHARES,
    Column,
    Form,
    Row,
    accuracy_words,
    as_estimate,
    columns,
    counted,
    flat_runs,
    percent,
    time_key,
)
from asyncdni.report.load import DISTURBED_MAX, SLOWED_BELOW, TAKEN_MAX
from asyncdni.report.plots import MISSING_EXTRA, available, draw_plots, inline, row_colours
from asyncdni.report.result import template_environment
from asyncdni.report.statistics import latencies_of, latency_words, slices, suffix
from asyncdni.report.verdict import joined
from asyncdni.store.tensors import write_atomically

__all__ = ["Line", "Table", "render_page", "write_reports"]

Found = Mapping[str, Any]  # the document of compare.json

#: Limits on what a page in one file keeps: points of the curves of all runs together, and bytes of
#: each worker's log.
_POINTS = 2 * POINTS
_LOG_TAIL = 8192


def write_reports(
    found: Found, folder: Path, *, plots: bool = True, allow_import: Allowed = False
) -> list[Path]:
    """Write compare.csv, compare-evaluations.csv, plots/*.svg and *.png, compare.html.

    Returns their paths in that order, all in `folder`, which also has the folders of the runs.
    Plots need matplotlib, the extra `plot`: without it they are left out, and the page shows
    `plots.MISSING_EXTRA`. `found` is the document of compare.json; each file is written whole or
    not at all. Raises `CheckpointError` if the folder can't be written.
    """
    drawn = draw_plots(found) if plots and available() else {}
    contents = {
        "compare.csv": shown.runs_csv(found).encode(),
        "compare-evaluations.csv": shown.evaluations_csv(found).encode(),
    }
    for name, plot in drawn.items():
        contents[f"plots/{name}.svg"] = plot.svg
        contents[f"plots/{name}.png"] = plot.png
    missing = MISSING_EXTRA if plots and not available() else ""
    inlined = {name: inline(name, plot.svg) for name, plot in drawn.items()}
    page = render_page(found, folder, inlined, missing, allow_import=allow_import)
    contents["compare.html"] = page.encode()
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def render_page(
    found: Found,
    folder: Path,
    plots: Mapping[str, str],
    missing_plots: str = "",
    *,
    allow_import: Allowed = False,
) -> str:
    """Return the whole page.

    Args:
        found: the document of `compare.json`.
        folder: where the folders of the runs are.
        plots: SVG elements by the names of `plots.draw_plots`, to put into the page.
        missing_plots: the text to show if there are none.
        allow_import: whether experiments may name a `module:Class` to import.
    """
    rows, machine = found["rows"], found.get("machine") or {}
    kept, unshown = _runs(found, folder, allow_import)
    names = dict.fromkeys(row["name"] for row in rows if not row.get("control"))
    title = f"A comparison of {joined([*names]) or 'nothing'}"
    said = found.get("verdict") or ()
    comparison = (
        template_environment()
        .from_string(_asset("comparison.html.jinja"))
        .render(
            plots=defaultdict(str, plots),
            missing_plots=missing_plots,
            verdict=[said] if isinstance(said, str) else list(said),
            complete=found.get("complete", True),
            machine=_machine(machine),
            experiment=_experiment(found),
            latencies=latencies_of(found),
            by_latency=_latency_tables(found),
            parts=[_part(latency_s, part) for latency_s, part in slices(found)],
            runs=_runs_table(found),
            counters=_single_runs(found, COUNTERS),
            load=_single_runs(found, LOAD),
            taken_max=percent(TAKEN_MAX, 0),
            slowed_below=percent(SLOWED_BELOW, 0),
            disturbed_max=percent(DISTURBED_MAX, 0),
            remarks=list(found.get("remarks") or ()),
            has_targets=bool(found.get("targets")),
            has_ceilings=any(row.get("ceiling_samples_per_s") for row in rows),
            has_single=any(row["name"] == "single" for row in rows),
            has_control=any(row.get("control") for row in rows),
            has_kept=bool(kept["news"]),
            unshown=unshown,
        )
    )
    return _in_one_file(title, _subtitle(found, machine), comparison, kept)


# --- one file ------------------------------------------------------------------------------------

_LINKED = re.compile(
    r'<link rel="stylesheet" href="/assets/(?P<style>\S+)">|'
    r'<script src="/assets/(?P<script>\S+)" (?P<kind>type="module"|defer)></script>'
)
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\S+)";\n', re.MULTILINE)
_HEADER = re.compile(r"<h1>.*?</h1>\s*<p id=.*?</p>", re.DOTALL)
_PLACE = "<!-- compare.html has its tables here -->"


def _runs(found: Found, folder: Path, allowed: Allowed) -> tuple[dict[str, Any], list[str]]:
    """Return what a server would answer about the runs, and a line for each that can't be shown."""
    known = [run for run in found["runs"] if run.get("folder")]
    points = _POINTS // max(1, len(known))
    news, logs, unshown = {}, {}, []
    for index, run in enumerate(known):
        place = folder / run["folder"]
        try:
            state = open_state(place, title=_title(run), points=points, allow_import=allowed)
        except AsyncDNIError as error:
            unshown.append(f"{_title(run)} is not shown below: {error}")
            continue
        # The file has no room for whole timelines: `asyncdni view` shows those.
        news[str(index)] = state.news() | {"traced": False}
        logs[str(index)] = {
            worker: last_lines(place, worker, _LOG_TAIL) for worker in state.workers
        }
    return {"news": news, "logs": logs}, unshown


def _title(run: Row) -> str:
    where = "" if run.get("latency_s") is None else f" at {latency_words(run['latency_s'])}"
    return f"{run['name']}{where}, seed {run['seed']}"


def _in_one_file(title: str, subtitle: str, comparison: str, kept: Mapping[str, Any]) -> str:
    """Return the page with all that it would ask a server for in it."""
    page, policy = _self_contained()
    head = f'<h1>{escape(title)}</h1>\n  <p class="facts">{escape(subtitle)}</p>'
    page = _HEADER.sub(lambda _: head, page)
    page = page.replace("<title>asyncdni</title>", f"{policy}\n<title>{escape(title)}</title>")
    # As text of a script nothing is escaped; "<" alone could end it.
    data = json.dumps(kept, allow_nan=False).replace("<", "\\u003c")
    data = f'<script type="application/json" id="kept">{data}</script>'
    return page.replace(_PLACE, f"{comparison}\n{data}")


@cache
def _self_contained() -> tuple[str, str]:
    """Return `page.html` with its styles, scripts and icon in it, and the element that allows these
    and nothing else."""
    allowed = defaultdict(list)

    def element(match: re.Match[str]) -> str:
        name = "style" if match["style"] else "script"
        text = _asset(match["style"]) if match["style"] else _script(match["script"])
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        allowed[name].append(f"'sha256-{digest}'")
        kind = ' type="module"' if match["kind"] == 'type="module"' else ""
        return f"<{name}{kind}>{text}</{name}>"

    page = _LINKED.sub(element, _asset("page.html"))
    icon = base64.b64encode(_asset("icon.svg").encode()).decode()
    page = page.replace("/assets/icon.svg", f"data:image/svg+xml;base64,{icon}")
    policy = (
        f"default-src 'none'; script-src {' '.join(allowed['script'])}; "
        # Plots and the marks of rows have attributes `style`, which no hash can allow.
        f"style-src 'unsafe-inline'; style-src-elem {' '.join(allowed['style'])}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return page, f'<meta http-equiv="Content-Security-Policy" content="{policy}">'


def _script(name: str) -> str:
    """Return a module and all that it imports as one script, or a library after its licence."""
    if not name.endswith(".min.js"):
        return "".join(_modules(name, {}).values())
    return f"/*\n{_asset(name.split('.')[0] + '.LICENSE')}*/\n{_asset(name)}"


def _modules(name: str, found: dict[str, str]) -> dict[str, str]:
    """Add a module to those that were `found`, after the modules that it imports."""
    text = _asset(name)
    for needed in _IMPORT.findall(text):
        if needed not in found:
            _modules(needed, found)
    found[name] = re.sub(r"^export ", "", _IMPORT.sub("", text), flags=re.MULTILINE)
    return found


def _asset(name: str) -> str:
    return files("asyncdni.page").joinpath("assets", name).read_text(encoding="utf-8")


# --- tables --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One line of a table."""

    name: str
    colour: str  # "#rrggbb"
    control: bool
    cells: Sequence[tuple[str, str]]  # text, and small print below it
    new: bool = False  # whether it begins another row of the comparison


@dataclass(frozen=True)
class Table:
    """A table; a mean stands above its 95 % interval. Columns without any number are left out."""

    headings: Sequence[str]
    lines: Sequence[Line]


def _part(latency_s: float | None, found: Found) -> dict[str, Any]:
    """Return all tables at one latency."""
    rows = found["rows"]
    known = ("efficiency", "overhead_cpu", "of_roofline")
    limited = [row for row in rows if any(row.get(name) for name in known)]
    timed = [row for row in rows if row.get("shares")]
    limits = ("ceiling_samples_per_s", "efficiency", "roofline_samples_per_s", "of_roofline")
    ceilings = ("samples_per_s", *limits, "overhead_cpu")
    targets = {target: _target_table(found, target) for target in found.get("targets") or ()}
    return {
        "where": "" if latency_s is None else f" at {latency_words(latency_s)}",
        "suffix": suffix(latency_s),
        "main": _main_table(found),
        "speed_ups": _rows_table(found, rows, _ratios(rows, shown.SPEED_UP)),
        "targets": [(accuracy_words(one), table) for one, table in targets.items() if table],
        "ceilings": _rows_table(found, limited, columns(*ceilings)),
        "shares": _rows_table(found, timed, SHARES),
    }


def _main_table(found: Found) -> Table | None:
    """Make the table of each row's speed, accuracy and time."""
    drained = ["stream_samples_per_s"] if _at_latencies(found) else []
    names = [
        "runs",
        "disturbed_runs",
        "processes",
        "samples_per_s",
        *drained,
        "test_accuracy",
        "test_loss",
    ]
    return _rows_table(found, found["rows"], columns(*names, "train_s", "cpu_s"))


def _target_table(found: Found, target: float) -> Table | None:
    """Make the table of how many runs of each row reached an accuracy, and when."""
    lines = [
        {**entry, "name": row["name"], "control": row.get("control"), "runs": row.get("runs")}
        for row in found["rows"]
        for entry in row.get("targets") or ()
        if entry["accuracy"] == target
    ]
    ratios = _ratios(lines, shown.SOONER)
    return _rows_table(found, lines, [*columns("reached", "time_s", "samples"), *ratios])


def _latency_tables(found: Found) -> list[tuple[str, Table]]:
    """Return (title, table) for each measure: a line for each row, a column for each latency."""
    streamed = any(row.get("kept_stream_samples_per_s") for row in found["rows"])
    kept = "kept_stream_samples_per_s" if streamed else "kept_samples_per_s"
    names = ("samples_per_s", "stream_samples_per_s", kept, "test_accuracy", "efficiency")
    tables = [_by_latency(found, found["rows"], column) for column in columns(*names)]
    for index, target in enumerate(found.get("targets") or ()):
        rows = [{**row, **row["targets"][index]} for row in found["rows"] if row.get("targets")]
        tables.append(_by_latency(found, rows, COLUMNS["time_s"], accuracy_words(target)))
    return [(title, table) for title, table in tables if table]


def _by_latency(
    found: Found, rows: Sequence[Row], column: Column, goal: str = ""
) -> tuple[str, Table | None]:
    form = column.page_by_latency
    assert form is not None, column.name
    lines: dict[str, dict[str, Any]] = {}
    for row in rows if latencies_of(found) else ():
        line = lines.setdefault(row["name"], {"name": row["name"], "control": row.get("control")})
        line[latency_words(row["latency_s"])] = column.of_row(row)
    words = [latency_words(latency_s) for latency_s in latencies_of(found)]
    every = [Column(one, page=replace(form, heading=one)) for one in words]
    return form.heading.format(goal), _rows_table(found, list(lines.values()), every)


def _runs_table(found: Found) -> Table | None:
    """Make the table of single runs."""
    drained = ["stream_samples_per_s"] if _at_latencies(found) else []
    names = ["train_samples", "samples_per_s", *drained, "test_accuracy", "test_loss", "train_s"]
    times = [
        Column(time_key(target), Form(f"to {accuracy_words(target)}, s", ",.2f"))
        for target in found.get("targets") or ()
    ]
    return _single_runs(found, [*columns(*names, "wall_s", "startup_s", "cpu_s"), *times])


def _at_latencies(found: Found) -> bool:
    return any(row.get("latency_s") is not None for row in found["rows"])


def _ratios(lines: Sequence[Row], column: Column) -> list[Column]:
    """Make a column for each row that others are compared with."""
    assert column.page is not None
    names = dict.fromkeys(key for line in lines for key in line if key.startswith(column.name))
    return [
        Column(
            key, replace(column.page, heading=f"{column.page.heading} {key[len(column.name) :]}")
        )
        for key in names
    ]


def _rows_table(found: Found, lines: Sequence[Row], every: Sequence[Column]) -> Table | None:
    return _table(found, lines, every, [[] for _ in lines], [""])


def _single_runs(found: Found, every: Sequence[Column]) -> Table | None:
    """Make the table of runs in the order of rows, latencies and seeds."""
    order = {row["name"]: index for index, row in enumerate(found["rows"])}
    runs = sorted(
        flat_runs(found),
        key=lambda run: (order[run["name"]], run.get("latency_s") or 0.0, run["seed"]),
    )
    where = ["latency"] if latencies_of(found) else []
    heads = [[*(_latency(run) for _ in where), str(run["seed"])] for run in runs]
    return _table(found, runs, every, heads, ["", *where, "seed"])


def _latency(run: Row) -> str:
    return MISSING if run["latency_s"] is None else latency_words(run["latency_s"])


def _table(
    found: Found,
    lines: Sequence[Row],
    every: Sequence[Column],
    heads: Sequence[Sequence[str]],
    headings: Sequence[str],
) -> Table | None:
    """Make a table; `heads` are the first cells of each line. None if there is no number."""
    cells = {column: [_cell(column, line) for line in lines] for column in every}
    cells = {column: one for column, one in cells.items() if any(t != MISSING for t, _ in one)}
    if not cells:
        return None
    colours = row_colours(found["rows"])
    made = []
    for index, (line, head) in enumerate(zip(lines, heads, strict=True)):
        new = index > 0 and len(headings) > 1 and lines[index - 1]["name"] != line["name"]
        values = [*((text, "") for text in head), *(one[index] for one in cells.values())]
        control = bool(line.get("control"))
        made.append(Line(line["name"], colours[line["name"]], control, values, new))
    return Table([*headings, *(column.page.heading for column in cells if column.page)], made)


def _cell(column: Column, line: Row) -> tuple[str, str]:
    value, form = column.of_row(line), column.page
    assert form is not None, column.name
    if value is None or isinstance(value, str):
        return form.text(value), ""
    one = as_estimate(value)
    assert one is not None
    pairs = counted(one.n, "pair") if form.pairs and one.n != line.get("runs") else ""
    return form.text(one.mean), ", ".join(filter(None, (form.ends(one), pairs)))


# --- facts ---------------------------------------------------------------------------------------

_FACTS = {"cpu": "processor", "python": "Python", "numpy": "NumPy", "blas": "BLAS"}


def _subtitle(found: Found, machine: Mapping[str, Any]) -> str:
    runs, seeds = counted(len(found["runs"]), "run"), counted(len(found.get("seeds") or ()), "seed")
    version = machine.get("asyncdni", "of unknown version")
    return f"{runs}, {seeds} · {machine.get('cores', 'unknown')} cores · asyncdni {version}"


def _machine(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    cores = {"cores": machine.get("cores")}
    known = {_FACTS.get(key, key): value for key, value in machine.items() if key != "cores"}
    return [(name, _words(value)) for name, value in {**cores, **known}.items() if value]


def _words(value: Any) -> str:
    """Format lists side by side, and tables as their values."""
    if isinstance(value, Mapping):
        return " ".join(_words(one) for one in value.values() if one is not None)
    if isinstance(value, list | tuple):
        return "; ".join(_words(one) for one in value)
    return str(value)


def _experiment(found: Found) -> list[tuple[str, str | list[str]]]:
    """Return the tables of the experiment file, one line each, and a line for each stage.

    The experiment is that of the first run; rows differ in schedules and latencies.
    """
    experiment, schedules = found.get("experiment") or {}, found.get("schedules") or {}
    lines: dict[str, str | list[str]] = {}
    for table, value in experiment.items():
        if value is None:
            continue
        if table != "schedule":
            lines[table] = _lines(value if isinstance(value, list) else [value])
        elif schedules:
            lines |= {f"schedule of {name}": _lines([one]) for name, one in schedules.items()}
        else:
            lines["schedule of the first run"] = _lines([value])
    lines["latencies of links"] = ", ".join(map(latency_words, latencies_of(found)))
    return [(name, value) for name, value in lines.items() if value]


def _lines(values: Iterable[Any]) -> list[str]:
    return [text for text in map(_settings, values) if text]


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
