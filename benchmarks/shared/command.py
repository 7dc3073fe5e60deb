"""The command line of the benchmarks that train in virtual time: run what is missing, or fill in
the page."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sweep import Job, Runs, fill_in, run_all

from asyncdni.errors import AsyncDNIError

__all__ = ["carry_out", "parser_of", "results_parser", "wanted"]


def results_parser(doc: str | None, results: Path) -> argparse.ArgumentParser:
    """The options of every benchmark that keeps its runs in a file and its tables in README.md."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=results, metavar="FILE.json")
    parser.add_argument("--resume", action="store_true", help="leave out what the file has")
    parser.add_argument("--readme", action="store_true", help="fill in README.md, run nothing")
    return parser


def parser_of(doc: str | None, results: Path, *, epochs: int) -> argparse.ArgumentParser:
    """The options of all that train in virtual time."""
    parser = results_parser(doc, results)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="PART", help="of a setting's name, * allowed")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--data", choices=("mnist", "digits"), default="mnist")
    parser.add_argument(
        "--validation", type=int, default=0, metavar="SAMPLES", help="score on held-out samples"
    )
    return parser


def wanted(name: str, args: argparse.Namespace) -> bool:
    """A setting of this name is asked for."""
    return not args.only or any(fnmatch.fnmatch(name, f"*{part}*") for part in args.only)


def carry_out(
    args: argparse.Namespace,
    plan: Callable[[argparse.Namespace], list[Job]],
    tables_of: Callable[[Runs], Mapping[str, str]],
    readme: Path,
    draw: Callable[[Runs], None] = lambda runs: None,
) -> None:
    """Run and print the tables, or with --readme fill in and draw. Exits with one line for what a
    user did wrong."""
    try:
        runs = Runs(args.results)
        if args.readme:
            fill_in(readme, tables_of(runs))
            draw(runs)
            return
        run_all(plan(args), runs, workers=args.jobs, resume=args.resume)
        for content in tables_of(runs).values():
            print(content, end="\n\n")
    except AsyncDNIError as error:
        sys.exit(f"error: {error}")
