"""What README and docs show is run: commands, examples, files that they point to."""

from __future__ import annotations

import argparse
import doctest
import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from each import each

import asyncdni
from asyncdni import experiment
from asyncdni.__main__ import main
from asyncdni.cli import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMAND_LINE = (ROOT / "docs" / "commands.md").read_text()
PYTHON = (ROOT / "docs" / "python.md").read_text()
EXPERIMENT_FILE = (ROOT / "docs" / "experiment-file.md").read_text()
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language ("" for those that name none)."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for found, block in fenced if found == language]


def shown_commands() -> list[str]:
    """Every `asyncdni …` line in the README, in blocks and in code spans, and in the page of all
    commands."""
    spans = re.findall(r"`(asyncdni [^`]+)`", README + COMMAND_LINE)
    lines = [line for block in blocks(README, "") for line in block.splitlines()]
    parts = [part for line in lines for part in line.split("&&")]
    spans = [span for span in spans if len(span.split()) > 2]  # not a command's bare name
    return spans + [part.strip() for part in parts if "bin/asyncdni " in part]


def parse(command: str) -> argparse.Namespace:
    words = shlex.split(command.replace("…", ""))
    words = words[next(i for i, word in enumerate(words) if word.endswith("asyncdni")) + 1 :]
    module = importlib.import_module(f"asyncdni.cli.{words[0]}")
    parser = argparse.ArgumentParser(exit_on_error=False)
    module.add_arguments(parser)
    return parser.parse_args(words[1:])


@each("command", shown_commands())
def test_every_command_that_is_shown_is_one_that_the_parser_takes(command: str) -> None:
    if command.endswith("--help"):
        return
    assert parse(command) is not None


def test_the_page_of_commands_shows_every_command() -> None:
    assert set(COMMANDS) <= {command.split()[1] for command in shown_commands()}


@each("name", COMMANDS)
def test_every_command_has_help_with_an_example_that_parses(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"asyncdni.cli.{name}")
    examples = re.findall(r"asyncdni \w+ [^\n]+", module.EXAMPLE)
    assert module.HELP and examples
    for example in examples:
        assert parse(example.split(" > ")[0]) is not None
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0 and module.EXAMPLE.strip() in capsys.readouterr().out


@each("example", blocks(README + PYTHON, "python"))
def test_a_python_example_runs_as_it_stands(example: str) -> None:
    if "torch" in example:
        pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    accuracy = float(done.stdout.split()[0])
    assert accuracy > 0.85
    if "torch" not in example:
        assert "(256, 784)" in done.stdout


@pytest.mark.long
def test_the_example_in_the_help_of_the_package_runs() -> None:
    found = doctest.testmod(asyncdni)
    assert found.attempted == 3 and not found.failed


def test_the_experiment_that_is_shown_is_valid_and_whole() -> None:
    (shown,) = blocks(EXPERIMENT_FILE, "toml")
    parsed = experiment.parse(tomllib.loads(shown))
    assert [stage.name for stage in parsed.stages] == ["hidden1", "classifier"]


# --- the tutorial --------------------------------------------------------------------------------


def shown_in_tutorial() -> list[str]:
    return re.findall(r"^\$ (asyncdni .+)$", TUTORIAL, re.MULTILINE)


def test_every_command_in_the_tutorial_is_one_that_the_parser_takes() -> None:
    assert len(shown_in_tutorial()) > 8
    for command in shown_in_tutorial():
        assert parse(command) is not None


@pytest.mark.long
def test_the_tutorial_trains_own_data_and_an_own_layer(tmp_path: Path) -> None:
    spirals, layers = blocks(TUTORIAL, "python")
    (experiment_file,) = blocks(TUTORIAL, "toml")
    (line,) = [block for block in blocks(TUTORIAL, "") if block.startswith("layers = ")]
    first = re.search(r"^layers = .+\n", experiment_file, re.MULTILINE)
    assert first
    (tmp_path / "layers.py").write_text(layers)
    (tmp_path / "spirals.toml").write_text(experiment_file)
    (tmp_path / "waves.toml").write_text(experiment_file.replace(first[0], line, 1))
    subprocess.run([sys.executable, "-c", spirals], cwd=tmp_path, check=True)
    wanted = [command for command in shown_in_tutorial() if "runs/spirals" in command]
    wanted += [command for command in shown_in_tutorial() if "waves.toml" in command]
    array = np.load(tmp_path / "spirals.npz")["x_test"]
    np.savez(tmp_path / "points.npz", x=array[:4])
    for command in wanted:
        words = [sys.executable, "-m", "asyncdni", *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)
    assert json.loads((tmp_path / "runs/waves/summary.json").read_text())["test_accuracy"] > 0.9


@pytest.mark.long
def test_the_main_command_compares_three_ways(tmp_path: Path) -> None:
    """The README's own command line, cut down to an epoch of a tenth of the digits."""
    (line,) = [
        line
        for line in README.splitlines()
        if "asyncdni compare launch/digits" in line and "pip install" in line
    ]
    words = shlex.split(line.split("&&")[-1])[1:]
    command = [sys.executable, "-m", "asyncdni", *words, "--set", "run.epochs=1", "--seeds", "1"]
    command += ["--set", "data.validation=8000"]
    command += ["--out", str(tmp_path / "runs"), "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    text = json.dumps(found)
    for name in ("locked", "synthetic", "single"):
        assert name in done.stdout and name in text


@each("recipe", sorted((ROOT / "launch").glob("*.toml")))
def test_every_recipe_is_a_valid_experiment(recipe: Path) -> None:
    assert experiment.load(recipe).stages


@each("document", DOCUMENTS)
def test_files_and_links_that_a_page_names_exist(document: Path) -> None:
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    paths = re.findall(r"`((?:asyncdni|launch|docs|benchmarks|tests)/[\w./-]*)`", text)
    missing = [link for link in links if not (document.parent / link).exists()]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.long
def test_the_site_is_built_and_none_of_its_links_leads_nowhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-d", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "site" / "docs" / "api" / "index.html").read_text()
    assert "one worker process a stage" in page  # of the docstring of `train`
    tables = (tmp_path / "site" / "benchmarks" / "tables" / "index.html").read_text()
    measured = {path.parents[1].name for path in ROOT.glob("benchmarks/*/results/*.json")}
    assert len(measured) > 15
    assert [name for name in measured if f'href="../{name}/"' not in tables] == []
