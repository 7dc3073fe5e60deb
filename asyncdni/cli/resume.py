"""`--resume DIR` in place of an experiment file: a run that goes on."""

from __future__ import annotations

import argparse
from pathlib import Path

from asyncdni import config, experiment
from asyncdni.cli.common import settings
from asyncdni.errors import ConfigError
from asyncdni.resume import changed_experiment

__all__ = ["add_resume", "chosen_run", "complete_line"]


def add_resume(parser: argparse.ArgumentParser) -> None:
    """The flag; the command's FILE.toml must be optional."""
    parser.add_argument(
        "--resume",
        metavar="DIR",
        help="in place of FILE.toml and --out: go on with the run in this folder, from its newest "
        "whole checkpoint; --set may change its length, its learning rates, its split and more",
    )


def chosen_run(args: argparse.Namespace) -> config.Experiment:
    """The experiment that the flags ask for. Raises `ConfigError`."""
    if (args.file is None) == (args.resume is None):
        raise ConfigError("expected an experiment, FILE.toml, or --resume DIR, and not both")
    seed = getattr(args, "seed", None)
    if args.resume is None:
        return experiment.load(args.file, settings(args), schedule=args.schedule, seed=seed)
    given = {"--out": args.out, "--schedule": args.schedule, "--seed": seed, "--init": args.init}
    for flag, value in given.items():
        if value is not None:
            raise ConfigError(
                f"--resume {args.resume}: {flag} can't be given, a run goes on as it was and in "
                "its own folder; for changes that may be made use --set"
            )
    return changed_experiment(Path(args.resume), settings(args))


def complete_line(folder: str, chosen: config.Experiment) -> str:
    """What is said of a run that needs nothing more."""
    epochs = chosen.run.epochs
    return (
        f"the run in {folder} is complete, after {epochs} epochs; --set run.epochs={epochs + 1} "
        "or more makes it longer, with whatever else is changed"
    )
