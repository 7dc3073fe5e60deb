"""Recipes by name: `recipe:digits` in the place of a path, `asyncdni new`, and those of a wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from each import each

from asyncdni import experiment
from asyncdni.__main__ import main
from asyncdni.errors import ConfigError
from asyncdni.experiment.recipes import find_recipe, recipes

ROOT = Path(__file__).parents[1]


def test_a_recipe_is_found_by_its_name() -> None:
    digits = ROOT / "launch" / "digits.toml"
    assert Path(find_recipe("recipe:digits")) == digits
    assert find_recipe("digits.toml") == "digits.toml"
    assert experiment.load("recipe:digits") == experiment.load(digits)
    with pytest.raises(ConfigError, match=r"unknown recipe 'digit', did you mean 'digits'\?"):
        find_recipe("recipe:digit")


def test_commands_take_the_name_of_a_recipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["graph", "recipe:digits"]) == 0
    assert "hidden1" in capsys.readouterr().out
    assert main(["graph", "recipe:digit"]) == 2
    assert "did you mean 'digits'?" in capsys.readouterr().err


@each("recipe", recipes())
def test_new_writes_a_recipe_that_loads_as_the_original(
    recipe: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", f"my-{recipe}", "--from", recipe]) == 0
    assert experiment.load(f"my-{recipe}.toml") == experiment.load(f"recipe:{recipe}")


def test_new_never_overwrites(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text("mine")
    assert main(["new", "mine.toml"]) == 2
    assert "mine.toml: exists already" in capsys.readouterr().err
    assert Path("mine.toml").read_text() == "mine"
    assert main(["new", "other", "--from", "nothing"]) == 2 and not Path("other.toml").exists()


@pytest.mark.long
def test_a_wheel_has_the_recipes(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")  # as pyproject.toml asks for
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("asyncdni", "launch"):
        shutil.copytree(ROOT / name, tmp_path / name)
    code = "from setuptools.build_meta import build_wheel; build_wheel('out')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    assert {path.stem for path in (unpacked / "asyncdni" / "recipes").iterdir()} == set(recipes())
    command = [sys.executable, "-m", "asyncdni", "new", "mine", "--from", "digits"]
    subprocess.run(command, cwd=unpacked, check=True, env={"PYTHONPATH": str(unpacked)})
    assert (ROOT / "launch" / "digits.toml").read_text() in (unpacked / "mine.toml").read_text()
