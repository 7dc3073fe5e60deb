"""A comparison as one HTML page that needs nothing else: no script, no font, no network.

The page's own policy (Content-Security-Policy) forbids all of these, so that a name or a setting
that came with the document could not bring them in either.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from asyncdni.metrics import page_tables as tables
from asyncdni.metrics.latencies import latencies_of, latency_words, slices, suffix
from asyncdni.metrics.markup import Markup, element, together
from asyncdni.metrics.measuring import how_it_was_measured
from asyncdni.metrics.phrases import joined

__all__ = ["render_page"]

Found = Mapping[str, Any]
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
    style = files("asyncdni.metrics").joinpath("page.css").read_text(encoding="utf-8")
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
                for title, table in tables.latency_tables(found)
                for part in (element("h3", title), table)
            ),
            _note(_LINKS),
        )
    for latency_s, part in slices(found):
        yield from _results(part, plots, latency_s)
    yield _section("Every run", tables.runs_table(found), *_counters(found), _note(_FILES))
    yield _section("How it was measured", how_it_was_measured(found))


def _results(found: Found, plots: Mapping[str, str], latency_s: float | None) -> Iterable[Markup]:
    """All that there is to show at one latency."""
    where = "" if latency_s is None else f" at {latency_words(latency_s)}"
    end = suffix(latency_s)
    yield _section(
        f"Results{where}",
        tables.main_table(found),
        _note(_MEANS),
        _figure(plots, f"samples_per_s{end}", _SPEED),
    )
    yield _section(f"Speed-ups{where}", tables.speedups_table(found), _note(_PAIRED))
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
    yield _section(f"Ceiling and efficiency{where}", tables.ceilings_table(found), _note(_CEILING))
    yield _section(
        f"Where the time went{where}",
        _figure(plots, f"shares{end}", _SHARES),
        tables.shares_table(found),
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
    table = tables.target_table(found, target)
    return [element("h3", f"To {100 * target:.6g} % test accuracy"), table] if table else []


def _counters(found: Found) -> Iterable[Markup]:
    table = tables.counters_table(found)
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
