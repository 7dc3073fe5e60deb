"""`asyncdni simulate`: run schedules in virtual time, and show timelines and numbers."""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from asyncdni import config, experiment
from asyncdni.cli.common import add_conditions, add_experiment, add_init, condition_flags, settings
from asyncdni.data import describe
from asyncdni.drivers.virtual.costs import Costs, Links
from asyncdni.drivers.virtual.faults import Faults, parse_faults
from asyncdni.drivers.virtual.simulation import LEGEND, Result, simulate, timeline
from asyncdni.errors import AsyncDNIError, CheckpointError, ConfigError, by_name
from asyncdni.experiment.schema import shown
from asyncdni.imports import import_flags
from asyncdni.launch.incidents import restored, undone
from asyncdni.plan.build import Design, make_design
from asyncdni.profiling.report import read_costs
from asyncdni.report.records import Incidents
from asyncdni.store.given import begin_with

__all__ = [
    "EXAMPLE",
    "HELP",
    "Totals",
    "add_arguments",
    "incident_lines",
    "is_due_to_disk",
    "run",
    "totals_table",
]

# --- faults --------------------------------------------------------------------------------------


def is_due_to_disk(result: Result) -> bool:
    """Tell whether the run failed because of a full disk: a run can't go on without checkpoints."""
    failure = result.failure
    full = "failed save" in result.fault_counts
    return full and failure is not None and failure.kind == CheckpointError.__name__


def incident_lines(result: Result) -> Iterator[str]:
    """Yield a line for each fault, death, return and halt."""
    if not result.fault_counts:
        yield f"faults: none, as the run was over after {result.virtual_s:.3f} s"
        return
    yield f"faults: {_listed(result.fault_counts)}"
    for kind, values in result.records:
        moment = f"  {values.get('time_s', 0.0):.3f} s: "
        match kind:
            case "lost" | "accused" | "stuck":
                yield moment + values["text"]
            case "round":
                yield f"{moment}round {values['incarnation']} begins, {restored(values['restore'])}"
            case "back":
                away = f"{values['stage']} is back after {values['down_s']:.3f} s"
                yield f"{moment}{away}; {undone(values['lost_updates'], values)}"
    if result.failure is not None:
        yield f"  it has ended: {result.failure.text}"


class Totals:
    """Sums over runs."""

    def __init__(self) -> None:
        self.runs = 0
        self.ended_by_disk = 0
        self.faults: Counter[str] = Counter()
        self.rounds = 0
        self.cost = Incidents()
        self.events = 0

    def add(self, result: Result) -> None:
        self.runs += 1
        self.ended_by_disk += result.failure is not None
        self.faults.update(result.fault_counts)
        self.events += result.events
        for kind, values in result.records:
            self.rounds += kind == "round"
            self.cost.note(kind, values)


def totals_table(totals: Mapping[str, Totals]) -> list[str]:
    """Return a line for each schedule, and below it its faults."""
    lines = []
    for name, one in totals.items():
        cost = one.cost.summary()
        lines.append(
            f"{name}: {one.runs} runs, {one.events:,} events, every sample accounted for; "
            f"{one.rounds} rounds after deaths, {cost['down_s']:.1f} s without a worker (virtual), "
            f"{cost['lost_updates']:,} updates lost or to be done again"
        )
        if one.faults:
            lines.append(f"  faults: {_listed(one.faults)}")
        if one.ended_by_disk:
            lines.append(f"  {one.ended_by_disk} ended by a full disk, as they must")
    return lines


def _listed(faults: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))


HELP = "run schedules in virtual time, where a seed repeats a run exactly"
EXAMPLE = """\
  asyncdni simulate launch/digits.toml
  asyncdni simulate launch/digits.toml --seed 7 --latency 1ms --vary 0.2 --maths
  asyncdni simulate launch/digits.toml --faults "crash hidden1 at 250ms"
  asyncdni simulate launch/digits.toml --faults "crashes=2, partitions=1" --runs 100"""

_MAX_LISTED = 8
_DIGITS_MAX = 19


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_experiment(parser)
    parser.add_argument(
        "--schedule",
        metavar="NAME",
        action="append",
        help="may be given several times (default: locked and the file's)",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        help="seed of the run and of everything drawn in it (default: the file's)",
    )
    parser.add_argument("--maths", action="store_true", help="train for real, with test scores")
    add_conditions(parser)
    add_init(parser)
    parser.add_argument(
        "--profile",
        metavar="FILE",
        help="take the times of ops from what `asyncdni profile --json FILE` has measured "
        "(default: assumed times, whatever the layers are)",
    )
    parser.add_argument(
        "--vary",
        metavar="SHARE",
        default="0",
        help="let the time of each op, and the 100 us of each message, vary by up to this share "
        "(default: 0)",
    )
    parser.add_argument(
        "--batches", metavar="N", default="3", help="batches to show of each schedule (default: 3)"
    )
    parser.add_argument(
        "--faults",
        metavar="LIST",
        help="what goes wrong: rates per second of virtual time and lines of a script, "
        "'crashes=2, breaks=1; crash NAME at 2.5s', or a TOML file of them; see docs/simulation.md",
    )
    parser.add_argument(
        "--runs",
        metavar="N",
        help="simulate this many runs, with consecutive seeds from --seed on, and add up their "
        "figures; stop at the first failure",
    )


def run(args: argparse.Namespace) -> int:
    """Simulate each schedule, and print timelines and a table; raises the first failure."""
    vary, batches = _share("--vary", args.vary), _whole("--batches", args.batches)
    faults = parse_faults(args.faults) if args.faults is not None else None
    chosen = experiment.load(args.file, settings(args), seed=_seed(args.seed))
    schedules = list(dict.fromkeys(args.schedule or _default_schedules(chosen)))
    if args.runs is not None:
        _many(args, schedules, _whole("--runs", args.runs), vary, faults)
        return 0
    results: dict[str, Result] = {}
    for name in schedules:
        design = _design(args, name)
        results[name] = _simulate(args, name, design, vary, faults)
        lines = timeline(results[name].ops, batches=batches)
        fault_lines = incident_lines(results[name]) if faults is not None else ()
        for line in [name, *lines, *fault_lines, ""]:
            print(line)
    print(LEGEND, end="\n\n")
    print(_rests_on(args.profile, Costs(), Links()), end="\n\n")
    print("\n".join(_table(results, maths=args.maths)))
    return 0


def _many(
    args: argparse.Namespace, schedules: list[str], runs: int, vary: float, faults: Faults | None
) -> None:
    totals = {name: Totals() for name in schedules}
    for name in schedules:
        first = _design(args, name).experiment.run.seed
        for seed in range(first, first + runs):
            args.seed = str(seed)
            totals[name].add(_simulate(args, name, _design(args, name), vary, faults))
        args.seed = str(first)
    print("\n".join(totals_table(totals)))


def _default_schedules(chosen: config.Experiment) -> list[str]:
    return list(dict.fromkeys(["locked", str(chosen.schedule.__struct_config__.tag)]))


def _design(args: argparse.Namespace, schedule: str) -> Design:
    chosen = experiment.load(args.file, settings(args), schedule=schedule, seed=_seed(args.seed))
    design = make_design(chosen, describe(chosen.data), allow_import=args.allow_import)
    return begin_with(design)


def _simulate(
    args: argparse.Namespace, schedule: str, design: Design, vary: float, faults: Faults | None
) -> Result:
    """Simulate one run. Raises what it failed at, with the command that replays it, unless the
    fault was one that ends every run."""
    seed = design.experiment.run.seed
    costs = Costs() if args.profile is None else read_costs(args.profile, design)
    costs, links = replace(costs, jitter=vary), Links(jitter=vary)
    try:
        result = simulate(
            design, seed=seed, costs=costs, links=links, maths=args.maths, faults=faults
        )
    except ConfigError:
        raise
    except AsyncDNIError as error:
        raise type(error)(f"{error}\nreplay: {_command(args, schedule, seed)}") from error
    if result.failure is not None and not is_due_to_disk(result):
        kind = by_name(result.failure.kind)
        raise kind(f"{result.failure.text}\nreplay: {_command(args, schedule, seed)}")
    return result


def _command(args: argparse.Namespace, schedule: str, seed: int) -> str:
    words = ["asyncdni", "simulate", args.file, "--seed", str(seed), "--schedule", schedule]
    words += [*condition_flags(args), "--vary", args.vary]
    words += [word for setting in args.set for word in ("--set", setting)]
    words += ["--init", args.init] if args.init is not None else []
    words += ["--profile", args.profile] if args.profile is not None else []
    words += ["--maths"] if args.maths else []
    words += ["--faults", args.faults] if args.faults is not None else []
    words += import_flags(args.allow_import)
    return shlex.join(words)


# --- table ---------------------------------------------------------------------------------------


def _table(results: dict[str, Result], *, maths: bool) -> list[str]:
    """Return a line for each schedule."""
    head = ["schedule", "samples/s", "x locked", "busy %", "staleness (max)"]
    rows = [head + ["accuracy"] * maths]
    locked = results.get("locked")
    for name, result in results.items():
        row = [name, f"{result.samples_per_s:,.0f}", _speed_up(result, locked)]
        row += [_busy(list(result.busy.values())), _staleness(result)]
        rows.append(row + [_accuracy(result)] * maths)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in rows]
    return ["  ".join(cells).rstrip() for cells in lines]


def _rests_on(profile: str | None, costs: Costs, links: Links) -> str:
    """Say which times of ops and messages the figures rest on."""
    if profile is not None:
        return (
            f"Measured op times, of {profile}. Assumed: {links.latency_us:g} us for a message; a "
            "core for each\nworker, whose caches no other worker uses."
        )
    return (
        f"Assumed op times, whatever the layers are: {costs.forward_us:g} us for a forward of each "
        f"stage,\n{costs.backward_us:g} us for a backward, {costs.update_us:g} us for an update; "
        f"{links.latency_us:g} us for a message; a core for each worker.\n"
        "`asyncdni profile` measures the real ones, for --profile; `asyncdni advise` predicts from "
        "them."
    )


def _speed_up(result: Result, locked: Result | None) -> str:
    if locked is None or not locked.samples_per_s:
        return "-"
    return f"{result.samples_per_s / locked.samples_per_s:.2f}"


def _busy(shares: Sequence[float]) -> str:
    """Return the busy share of each worker; of many workers the least and the most."""
    percent = [f"{100 * share:.0f}" for share in shares]
    if len(percent) <= _MAX_LISTED:
        return " ".join(percent)
    return f"{100 * min(shares):.0f} to {100 * max(shares):.0f}"


def _staleness(result: Result) -> str:
    """Return the staleness of the worker with the oldest gradients, in its updates."""
    means = [float(own["staleness_mean"] or 0.0) for own in result.counters.values()]
    oldest = [int(own["staleness_max"] or 0) for own in result.counters.values()]
    return f"{max(means):.1f} ({max(oldest)})"


def _accuracy(result: Result) -> str:
    accuracy = result.history[-1]["accuracy"] if result.history else None
    return "-" if accuracy is None else f"{100 * accuracy:.2f} %"


# --- flags ---------------------------------------------------------------------------------------


def _share(flag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigError(f"{flag} {text!r}: expected a number from 0 to 1")
    return value


def _whole(flag: str, text: str) -> int:
    if not (_is_number(text) and int(text) > 0):
        raise ConfigError(f"{flag} {shown(text)}: expected a whole number from 1")
    return int(text)


def _seed(text: str | None) -> int | None:
    if text is None:
        return None
    if not _is_number(text):
        raise ConfigError(f"--seed {shown(text)}: expected a whole number from 0")
    return int(text)


def _is_number(text: str) -> bool:
    """Tell whether the text is a whole number from 0, with no more digits than a seed may have."""
    return text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX
