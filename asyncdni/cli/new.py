"""`asyncdni new NAME`: write an experiment file to begin with, from a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

from asyncdni.errors import ConfigError
from asyncdni.experiment.recipes import PREFIX, find_recipe, recipes

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "write an experiment file NAME.toml of your own, from a recipe"
EXAMPLE = """\
  asyncdni new mine
  asyncdni new circle --from trigonometry"""

_HEADER = """\
# {name}, begun from the recipe {recipe}. Train it, or see it beside plain backpropagation:
#
#     asyncdni train {path}
#     asyncdni compare {path} --schedules locked,synthetic
#
# `asyncdni explain` lists all that may stand here; `asyncdni explain run.split` explains an option.

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the file, with or without .toml")
    parser.add_argument(
        "--from",
        dest="recipe",
        metavar="RECIPE",
        default="digits",
        help=f"one of {', '.join(recipes())} (default: digits)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the file. Raises `ConfigError` for an unknown recipe and where the file exists."""
    if not args.name.removesuffix(".toml"):
        raise ConfigError(f"new {args.name!r}: expected the name of the file to write")
    path = Path(f"{args.name.removesuffix('.toml')}.toml")
    recipe = args.recipe.removeprefix(PREFIX)
    source = Path(find_recipe(f"{PREFIX}{recipe}")).read_text(encoding="utf-8")
    header = _HEADER.format(name=path.stem, recipe=recipe, path=path)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(header + source)
    except FileExistsError:
        raise ConfigError(f"{path}: exists already; choose another name, or remove it") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be written: {error.strerror or error}") from None
    print(f"{path} is written, from the recipe {recipe}; asyncdni train {path} trains it")
    return 0
