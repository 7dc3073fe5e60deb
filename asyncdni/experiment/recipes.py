"""Experiment files that come with the package, named as `recipe:digits`."""

from __future__ import annotations

import os
from pathlib import Path

from asyncdni.errors import ConfigError
from asyncdni.experiment.schema import unknown

__all__ = ["PREFIX", "find_recipe", "recipes"]

#: What the name of a recipe begins with where a path is expected.
PREFIX = "recipe:"


def recipes() -> dict[str, Path]:
    """Return the files of all recipes by name: those of an installed package or, in a checkout,
    those of launch/."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    folder = installed if installed.is_dir() else package.parent / "launch"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_recipe(path: str | os.PathLike[str]) -> str:
    """Return the path of a recipe for `recipe:NAME`, and any other path as it is. Raises
    `ConfigError` for an unknown recipe, with the nearest one."""
    given = os.fspath(path)
    if not given.startswith(PREFIX):
        return given
    known, name = recipes(), given.removeprefix(PREFIX)
    if name not in known:
        raise ConfigError(f"{given}: {unknown('recipe', name, known)}")
    return str(known[name])
