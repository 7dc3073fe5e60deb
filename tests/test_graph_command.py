"""`asyncdni graph`: tables on standard output, the graph in a file, refusals in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from each import each
from processes import TINY

from asyncdni.__main__ import main
from asyncdni.data import describe
from asyncdni.experiment import load
from asyncdni.plan.build import make_design
from asyncdni.plan.describe import dot


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return str(path)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and the one line of a command that must fail and print nothing else."""
    code = main(words)
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("asyncdni: ")
    return code, line.removeprefix("asyncdni: ")


def test_stages_and_workers_are_printed(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    change = "stages.hidden.layers=[{ dense = 5 }]"
    assert main(["graph", tiny, "--set", change]) == 0
    stages, workers, flops, links = capsys.readouterr().out.split("\n\n")
    lines = stages.splitlines()
    assert [line.split()[0] for line in lines] == ["stage", "hidden", "top", "total"]
    assert lines[1].split()[-1] == str(6 * 5 + 5) and lines[3].split()[-1] == str(35 + 5 * 3 + 3)
    assert [line.split()[0] for line in workers.splitlines()] == ["worker", "hidden", "top"]
    assert [line.split() for line in flops.splitlines()[1:]] == [
        ["hidden", "60", "60"],
        ["top", "30", "60"],
        ["total", "90", "120"],
    ]
    assert links.splitlines()[1].split() == ["hidden->top", "activations", "float32", "32"]


@pytest.mark.parametrize("flag", ["--out", "--dot"])
def test_the_graph_is_written_as_text(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    out = tmp_path / "new" / "tiny.gv"
    assert main(["graph", tiny, flag, str(out), "--split", "2"]) == 0
    assert "hidden+top" in capsys.readouterr().out
    chosen = load(tiny, ["run.split=[2]"])
    assert out.read_text() == dot(make_design(chosen, describe(chosen.data)))


def test_the_drawing_goes_by_the_name_of_the_file(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "dot"
    program.write_text('#!/bin/sh\necho "$1"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "tiny.SVG"
    assert main(["graph", tiny, "--out", str(out)]) == 0
    assert out.read_text() == "-Tsvg\n"


def test_without_graphviz_no_file_is_left(
    tiny: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "tiny.png"
    code, line = refusal(capsys, "graph", tiny, "--out", str(out))
    assert code == 2 and line.startswith("PNG is drawn by Graphviz") and not out.exists()


def test_a_graph_that_can_not_be_written_is_refused(
    tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = refusal(capsys, "graph", tiny, "--dot", f"{tiny}/tiny.dot")
    assert code == 1 and line.startswith("can't write") and "tiny.dot" in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--out", "x.jpg"], "--out x.jpg: expected a name that ends in one of .dot, .gv, .svg"),
        (["--out", "graph"], "--out graph: expected a name that ends in one of .dot"),
        (["--split", "1,x"], "--split '1,x': expected stages of each worker, such as 2,1,1"),
        (["--split", "1,"], "--split '1,': expected stages of each worker"),
        (["--split", "3"], "run.split: [3] gives 3 stages to workers, expected 2"),
        (["--split", "0,2"], "run.split[0]: expected an integer of at least 1, got 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    tiny: str, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    code, line = refusal(capsys, "graph", tiny, *words)
    assert code == 2 and line.startswith(expected)


#: Six stages of one width; what they read is changed below.
GRAPH = """
[data]
name = "addition"
bits = 4

[[stages]]
name = "a"
layers = [{ dense = 4 }]
[[stages]]
name = "b"
layers = [{ dense = 4 }]
[[stages]]
name = "c"
layers = [{ dense = 4 }]
[[stages]]
name = "top"
layers = [{ dense = 4 }]
loss = "sigmoid_cross_entropy"
"""


@each("command", ["graph", "train", "simulate"])
@each("changes, expected", [
        (["a.inputs=['c']"], "the edges a -> b, b -> c, c -> a form a cycle"),
        (["a.inputs=['data', 'b']"], "the edges a -> b, b -> a form a cycle"),
        (["b.inputs=['b']"], "stages[1] (b).inputs: the stage reads itself (edge b -> b)"),
        (["b.inputs=['z']"], "stages[1] (b).inputs: nothing produces 'z' (edge z -> b)"),
        (["top.inputs=['b']"], "stages[2] (c): no stage reads its output (edge c -> nothing)"),
        (["c.inputs=['a']"], "stages[1] (b): no stage reads its output (edge b -> nothing)"),
        (["c.inputs=[]"], "stages[2] (c).inputs: expected a list of at least one item"),
        (["c.inputs=['b', 'b']"], "stages[2] (c).inputs: 'b' is given 2 times"),
        (["c.layers=[{ dense = 5 }]", "top.inputs=['a', 'c']", "top.join='sum'", "b.loss='mse'"],
         "stages[3] (top).inputs: join = 'sum' expects equal shapes, got a (4,), c (5,)"),
    ])  # fmt: skip
def test_a_graph_that_can_not_be_is_refused_with_its_edge(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    changes: list[str],
    expected: str,
) -> None:
    path = tmp_path / "graph.toml"
    path.write_text(GRAPH)
    words = [word for change in changes for word in ("--set", f"stages.{change}")]
    code, line = refusal(capsys, command, str(path), *words)
    assert code == 2 and expected in line


def test_a_worker_that_would_send_two_activations_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "graph.toml"
    path.write_text(GRAPH)
    skip = ["--set", "stages.c.inputs=['a', 'b']", "--split", "2,2"]
    code, line = refusal(capsys, "graph", str(path), *skip)
    assert code == 2
    assert line.startswith("run.split: worker a+b would send on the activations of a and b")


def test_the_example_of_the_documentation_is_a_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "graphs.md").read_text()
    (stages,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    path = tmp_path / "graph.toml"
    path.write_text(f'[data]\nname = "digits"\nplanes = true\n\n{stages}')
    assert main(["graph", str(path), "--split", "1,2,2,1"]) == 0
    assert "norm + stem" in capsys.readouterr().out
