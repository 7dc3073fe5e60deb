"""Say whether a log of the speedrun is a record, and fill in the table of records.

    python benchmarks/speedrun/check.py runs/readout.json
    python benchmarks/speedrun/check.py --readme

The first command judges a log by the rules in README.md and exits with 1 where it breaks one. The
second judges all that are kept in results/ and writes the table.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "shared")]

from rules import (  # noqa: E402
    FIXED,
    SEEDS_MIN,
    TARGET,
    TEXT,
    WORKERS,
    P,
    fixed_digest,
    forbidden,
)
from sweep import Runs, fill_in, table  # noqa: E402

from asyncdni.errors import AsyncDNIError  # noqa: E402
from asyncdni.report.statistics import Estimate, estimate  # noqa: E402

README, RESULTS = HERE / "README.md", HERE / "results"
Run = Mapping[str, Any]


@dataclass(frozen=True)
class Log:
    """Runs of an entry by seed, and those of the one that it is to beat, on the same machine."""

    name: str
    entry: Mapping[int, Run]
    other: Mapping[int, Run]
    against: str = ""  # the other's name

    @property
    def loss(self) -> Estimate:
        """Mean over seeds. Its interval is so wide that its upper end is below the target where the
        mean is, by Student's t-test at P."""
        found = estimate([run["loss"] for run in self.entry.values()], confidence=1 - 2 * P)
        assert found is not None
        return found

    @property
    def ratio(self) -> Estimate | None:
        """The entry's time over the other's, the geometric mean of pairs of the same seed; its
        interval as that of the loss. None where there is no other."""
        logs = [
            math.log(run["train_s"] / self.other[seed]["train_s"])
            for seed, run in self.entry.items()
            if seed in self.other
        ]
        found = estimate(logs, confidence=1 - 2 * P)
        if found is None:
            return None
        low, high = (None if end is None else math.exp(end) for end in (found.low, found.high))
        return Estimate(math.exp(found.mean), low, high, found.n)


def read_log(path: Path) -> Log:
    """Raises `AsyncDNIError` for a file that is no log."""
    if not path.is_file():
        raise AsyncDNIError(f"{path}: no such file; expected a log of run.py")
    try:
        runs = Runs(path)
        names = list(dict.fromkeys(key.rpartition("/")[0] for key in runs.found))
    except (ValueError, KeyError, TypeError) as error:
        raise AsyncDNIError(f"{path}: {error!r}; expected a log of run.py") from error
    if not 1 <= len(names) <= 2:
        raise AsyncDNIError(f"{path}: has entries {names}; expected one, or two in turn")
    other = names[1] if len(names) > 1 else ""
    return Log(names[0], runs.of(names[0]), runs.of(other), other)


def faults(log: Log) -> Iterator[str]:
    """Which rules the log breaks."""
    for seed, run in [*log.entry.items(), *log.other.items()]:
        told = f"seed {seed} of {run['key'].rpartition('/')[0]}"
        if run["fixed"] != fixed_digest():
            yield f"{told}: was run with another {FIXED.name} than the one here"
        if run["text"] != TEXT:
            yield f"{told}: another text, {run['text']}; expected {TEXT}"
        if run["workers"] != WORKERS:
            yield f"{told}: {run['workers']} processes; expected {WORKERS}"
        wrong = ", ".join(forbidden(run["entry"]))
        if wrong:
            yield f"{told}: its entry sets {wrong}"
    seeds = sorted(log.entry)
    if seeds != [*range(len(seeds))] or len(seeds) < SEEDS_MIN:
        yield f"seeds {seeds}; expected 0, 1, … without a gap, at least {SEEDS_MIN}"
    if log.other and sorted(log.other) != seeds:
        yield f"{log.against} has seeds {sorted(log.other)}; expected those of {log.name}"
    loss, ratio = log.loss, log.ratio
    if loss.high is None or loss.high >= TARGET:
        yield f"{words(loss)} nats is not shown to be below {TARGET} (p < {P})"
    if ratio is not None and (ratio.high is None or ratio.high >= 1):
        yield f"{words(ratio)} times the time of {log.against} is not shown to be less (p < {P})"


def words(one: Estimate) -> str:
    """Mean and the end of its interval that counts."""
    return f"{one.mean:.4g}" + ("" if one.high is None else f" (at most {one.high:.4g})")


def records() -> str:
    """The table of all logs that are kept, the latest last. Raises `AsyncDNIError` where one breaks
    a rule."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        log = read_log(path)
        wrong = [*faults(log)]
        if wrong:
            raise AsyncDNIError(f"{path.name}: {'; '.join(wrong)}")
        rows.append(row(path, log))
    head = ["record", "date", "seconds", "loss", "seeds", "steps", "seconds over", "log"]
    return table(head, rows)


def row(path: Path, log: Log) -> list[str]:
    first, ratio = log.entry[0], log.ratio
    return [
        f"`entries/{log.name}.toml`",
        first["date"],
        f"{fmean(run['train_s'] for run in log.entry.values()):.1f}",
        words(log.loss),
        str(len(log.entry)),
        str(first["entry"]["run"]["max_steps"]),
        "-" if ratio is None else f"{log.against}: {words(ratio)}",
        f"`results/{path.name}`",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("log", type=Path, nargs="*", metavar="FILE.json")
    parser.add_argument("--readme", action="store_true", help="judge results/, write the table")
    args = parser.parse_args()
    if bool(args.log) == args.readme:
        parser.error("expected either logs or --readme")
    try:
        if args.readme:
            fill_in(README, {"records": records()})
            return
        broken = False
        for path in args.log:
            log = read_log(path)
            found = [*faults(log)]
            broken |= bool(found)
            print(f"{path.name}: {words(log.loss)} nats", end="")
            print("; a record" if not found else "; no record:")
            for one in found:
                print(f"  {one}")
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")
    sys.exit(broken)


if __name__ == "__main__":
    main()
