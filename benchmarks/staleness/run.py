"""Test error on MNIST against the lag of true gradients, for every rule that does not wait.

    ASYNCDNI_DATA=… python benchmarks/staleness/run.py --results runs/staleness.json
    python benchmarks/staleness/run.py --readme

The first command trains every rule at every lag, and some of them at other depths, from several
seeds, two runs at a time; with --resume it leaves out what the file has. The second fills in the
tables and the plot of README.md from the results that are kept here. Everything is simulated in
virtual time with real maths (see ../shared/sweep.py), so a seed gives one result. See README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "shared"))

from command import carry_out, parser_of, wanted  # noqa: E402
from sweep import (  # noqa: E402
    Far,
    Job,
    Runs,
    cell,
    layered,
    machine_line,
    seeded,
    table,
)

from asyncdni.errors import AsyncDNIError  # noqa: E402
from asyncdni.report.statistics import Estimate  # noqa: E402

RESULTS, README = HERE / "results" / "mnist.json", HERE / "README.md"
LAYERS, DEPTHS = 4, (3, 5, 6)
LAGS, LAGS_DEEP, LAGS_EVERY = (0, 4, 20, 100, 200), (4, 100), (4, 20, 100)
#: Without a lag the rules below hardly differ: only the claimed one is run there.
LAGS_OTHERS = LAGS[1:]
#: How near to backprop `error` is to be, in points, at every lag up to LAG_CLAIMED.
NEAR, LAG_CLAIMED = 0.2, 100
OPTIMIZER: dict[str, Any] = {"name": "adam", "decay": {"name": "cosine"}}
RATE = 1e-3

# --- the rules -----------------------------------------------------------------------------------

Table = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """A [schedule] for a lag and a number of epochs."""

    name: str
    schedule: Callable[[int, int], Table]
    family: str
    more: bool = False  # the claims rest on it: more seeds
    rate: float = 1.0  # times that of all others


def delayed(name: str, rate: float = 1.0, **options: Any) -> Rule:
    table = {"name": "delayed", **options}
    return Rule(f"delayed, {name}", lambda lag, epochs: table, "delayed", rate=rate)


def synthetic(kind: str, target: str = "true", correct: bool = False) -> Rule:
    name = f"{kind}, {'corrected' if correct else target}"
    table = {"name": "synthetic", "target": target, "correct": correct}
    table["generator"] = {"kind": kind}
    more = kind == "error" and target == "true" and not correct
    return Rule(name, lambda lag, epochs: table, kind, more)


BACKPROP = Rule("backprop", lambda lag, epochs: {"name": "locked"}, "none", more=True)
LOCAL = Rule("local loss", lambda lag, epochs: {"name": "local_loss"}, "none", more=True)
ERROR = synthetic("error")
#: PipeDream's and DDG's; the helpers that others propose, and the plainest: to learn more slowly.
DELAYED = [
    delayed("stash", weights="stash"),
    delayed("current", weights="current"),
    Rule(
        "delayed, look-ahead",
        lambda lag, epochs: {"name": "delayed", "weights": "stash", "look_ahead": float(lag)},
        "delayed",
    ),
    Rule(
        "delayed, annealed",
        lambda lag, epochs: {"name": "delayed", "weights": "stash", "anneal_epochs": epochs},
        "delayed",
    ),
    delayed("rate x 0.3", rate=0.3, weights="stash"),
]
SYNTHETIC = [
    synthetic(kind, target, correct)
    for kind in ("error", "low_rank", "mlp")
    for target, correct in (("true", False), ("bootstrap", False), ("half", False), ("true", True))
    if kind != "mlp" or (target != "half" and not correct)  # eight times the arithmetic
]
LAGGING = [*DELAYED, *SYNTHETIC]
#: At other depths.
DEEP = [DELAYED[0], ERROR, synthetic("error", "bootstrap"), synthetic("low_rank")]
#: With every link long. A bootstrapped target comes from the next stage, a true one from the last.
EVERY = [synthetic("error", target) for target in ("true", "bootstrap", "half")]


def key(rule: Rule, layers: int, lag: int, far: Far = "loss") -> str:
    """Of results. What does not depend on the lag is run once."""
    place = "" if rule in (BACKPROP, LOCAL) else f", lag {lag}"
    return f"{layers} layers{place}{', every link' if far == 'every' else ''}: {rule.name}"


def settings() -> Iterator[tuple[Rule, int, int, Far]]:
    """(rule, layers, lag, far): the claims first."""
    for layers in (LAYERS, *DEPTHS):
        yield BACKPROP, layers, 0, "loss"
        yield LOCAL, layers, 0, "loss"
    yield from ((ERROR, LAYERS, lag, "loss") for lag in LAGS)
    for lag in LAGS_OTHERS:
        yield from ((rule, LAYERS, lag, "loss") for rule in LAGGING)
    for layers in DEPTHS:
        yield from ((rule, layers, lag, "loss") for lag in LAGS_DEEP for rule in DEEP)
    for lag in LAGS_EVERY:
        yield from ((rule, LAYERS, lag, "every") for rule in EVERY)


def plan(args: argparse.Namespace) -> list[Job]:
    """Every run that is asked for, once."""
    jobs: dict[str, Job] = {}
    data = {"name": args.data, "validation": args.validation}
    for rule, layers, lag, far in settings():
        name = key(rule, layers, lag, far)
        if not wanted(name, args):
            continue
        schedule = rule.schedule(lag, args.epochs)
        optimizer = OPTIMIZER | {"learning_rate": RATE * rule.rate}
        tables = layered(layers, schedule, data, optimizer, epochs=args.epochs, lag=lag, far=far)
        count = args.seeds + (args.more_seeds if rule.more else 0)
        found = seeded(name, count, tables=tables, lag=lag, far=far)
        jobs |= {job.key: job for job in found}
    return list(jobs.values())


# --- the command ---------------------------------------------------------------------------------


def main() -> None:
    parser = parser_of(__doc__, RESULTS, epochs=5)
    parser.add_argument(
        "--more-seeds", type=int, default=3, help="of what the claims rest on, in addition"
    )
    carry_out(
        parser.parse_args(),
        plan,
        tables_of,
        README,
        lambda runs: draw(runs, HERE / "results" / "frontier.svg"),
    )


# --- tables --------------------------------------------------------------------------------------


def tables_of(runs: Runs) -> dict[str, str]:
    """Every table of README.md by its name there."""
    return {
        "frontier": frontier(runs),
        "best": best(runs),
        "claim": claim(runs),
        "depth": depth(runs),
        "every": every(runs),
        "lags": lags(runs),
        "machine": machine_line(runs),
    }


def frontier(runs: Runs) -> str:
    """Test error of every rule at every lag."""
    head = ["rule", *(f"lag {lag}" for lag in LAGS)]
    rows = [
        [rule.name, *(runs.shown(key(rule, LAYERS, lag)) for lag in LAGS)]
        for rule in [*LAGGING, LOCAL, BACKPROP]
    ]
    return table(head, known(rows))


def known(rows: list[list[str]]) -> list[list[str]]:
    """Rows that have a number."""
    return [row for row in rows if any(one != "-" for one in row[1:])]


def ranked(runs: Runs, lag: int) -> list[tuple[Rule, Estimate]]:
    """Rules that know no gradient sooner than `lag`, the most accurate first."""
    found = [(rule, runs.estimate(key(rule, LAYERS, lag))) for rule in [*LAGGING, LOCAL]]
    there = [(rule, one) for rule, one in found if one is not None]
    return sorted(there, key=lambda pair: pair[1].mean)


def best(runs: Runs) -> str:
    """The best rule at each lag, and all that its seeds can't tell from it."""
    rows = []
    for lag in LAGS:
        order = ranked(runs, lag)
        if not order:
            continue
        first = order[0][0]
        name = key(first, LAYERS, lag)
        close = []
        for rule, _ in order[1:]:
            gap = runs.difference(key(rule, LAYERS, lag), name)
            if gap is None or not gap.excludes(0.0):
                close.append(rule.name)
        error = cell(order[0][1])
        rows.append([str(lag), first.name, error, "; ".join(close) or "none"])
    return table(["lag", "best rule", "test error %", "not told apart from it"], rows)


def claim(runs: Runs) -> str:
    """`error` less backprop, seed by seed."""
    rows = []
    for lag in LAGS:
        gap = runs.difference(key(ERROR, LAYERS, lag), key(BACKPROP, LAYERS, 0))
        if gap is None:
            continue
        within = "yes" if gap.mean <= NEAR else "no"
        certain = "yes" if gap.high is not None and gap.high <= NEAR else "no"
        asked = "" if lag <= LAG_CLAIMED else " (not claimed)"
        rows.append([f"{lag}{asked}", cell(gap, sign=True), str(gap.n), within, certain])
    head = ["lag", "points above backprop", "seeds", f"mean within {NEAR}", "interval too"]
    return table(head, rows)


def depth(runs: Runs) -> str:
    """The main rules at every depth."""
    columns = (LAYERS, *DEPTHS)
    head = ["rule", *(f"{layers} layers" for layers in sorted(columns))]
    rows = []
    for rule in (BACKPROP, LOCAL):
        names = [key(rule, layers, 0) for layers in sorted(columns)]
        rows.append([rule.name, *(runs.shown(name) for name in names)])
    for lag in LAGS_DEEP:
        for rule in DEEP:
            names = [key(rule, layers, lag) for layers in sorted(columns)]
            rows.append([f"{rule.name}, lag {lag}", *(runs.shown(name) for name in names)])
    return table(head, known(rows))


def every(runs: Runs) -> str:
    """Lags that add up along the way."""
    rows = [
        [rule.name, *(runs.shown(key(rule, LAYERS, lag, "every")) for lag in LAGS_EVERY)]
        for rule in EVERY
    ]
    return table(["rule", *(f"lag {lag} a link" for lag in LAGS_EVERY)], known(rows))


def lags(runs: Runs) -> str:
    """What the runs have measured, worker by worker: the lag that was set is the lag that was."""
    rows = []
    chosen: list[tuple[Rule, int, Far]] = [(DELAYED[0], lag, "loss") for lag in LAGS]
    chosen += [(ERROR, lag, "loss") for lag in LAGS]
    chosen += [(synthetic("error", "bootstrap"), lag, "loss") for lag in LAGS]
    chosen += [(rule, lag, "every") for rule in EVERY[:2] for lag in LAGS_EVERY]
    for rule, lag, far in chosen:
        found = runs.of(key(rule, LAYERS, lag, far))
        if not found:
            continue
        run = next(iter(found.values()))
        where = f"{rule.name}, lag {lag}{' a link' if far == 'every' else ''}"
        rows.append([where, _by_stage(run["lags"]), _by_stage(run["staleness"])])
    return table(["rule", "lag in batches, stage by stage", "mean staleness in updates"], rows)


def _by_stage(values: Mapping[str, float | None]) -> str:
    """Of all stages but the last, which has the loss."""
    return ", ".join("-" if one is None else f"{one:g}" for one in list(values.values())[:-1])


# --- the plot ------------------------------------------------------------------------------------

#: Rules of one family have one colour and different marks.
COLOURS = {"delayed": "#b04a3a", "error": "#2b6cb0", "low_rank": "#8a6d1d", "mlp": "#4b7d4f"}
MARKS = "osD^vP"


def draw(runs: Runs, path: Path) -> None:
    """Test error against lag, a line a rule. Raises `AsyncDNIError` without matplotlib."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise AsyncDNIError(
            "the plot needs matplotlib: install it with pip install 'asyncdni[plot]'"
        ) from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    used = dict.fromkeys(COLOURS, 0)
    for rule in LAGGING:
        points = [(lag, runs.estimate(key(rule, LAYERS, lag))) for lag in LAGS]
        drawn = [(lag, one.mean) for lag, one in points if one is not None]
        if drawn:
            mark = MARKS[used[rule.family]]
            used[rule.family] += 1
            style: Table = {"color": COLOURS[rule.family], "marker": mark, "markersize": 5}
            axes.plot(*zip(*drawn, strict=True), label=rule.name, linewidth=1.2, **style)
    for rule, line in ((BACKPROP, "-"), (LOCAL, ":")):
        found = runs.estimate(key(rule, LAYERS, 0))
        if found is not None:
            axes.axhline(found.mean, color="#1f2329", linestyle=line, label=rule.name, zorder=0)
    axes.set_xscale("symlog", linthresh=4)
    axes.set_xlim(-0.5, 1.2 * LAGS[-1])
    axes.set_xticks(LAGS, [str(lag) for lag in LAGS])
    axes.set_xticks([], minor=True)
    axes.set_yscale("log")
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which("{x:g}")
    axes.set_xlabel("lag of true gradients, batches")
    axes.set_ylabel("test error, %")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "frontier", "svg.fonttype": "none"}):  # the same file again
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
