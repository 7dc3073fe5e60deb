"""The text for Graphviz, and the drawings that its program makes of it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import networks
import pytest
from each import each

from asyncdni.errors import ConfigError, LaunchError
from asyncdni.plan.describe import FORMATS, dot, draw

ZERO = {"name": "synthetic", "generator": {"kind": "zero"}}


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Only this `dot` is on the PATH."""
    path = folder / "dot"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_cluster_a_worker_holds_its_stages_and_its_generator() -> None:
    """Two of the three stages in one worker, which hosts the data."""
    design = networks.design(networks.chain(3), ZERO, run={"split": [2, 1]})
    assert dot(design) == (
        "digraph network {\n"
        "    rankdir=LR\n"
        "    fontname=Helvetica\n"
        "    node [shape=box fontname=Helvetica]\n"
        "    edge [fontname=Helvetica fontsize=11]\n"
        '    subgraph "cluster_0" {\n'
        '        label="worker s0+s1 (synthetic)" labeljust=l style=rounded color=gray50\n'
        '        "data" [label="data\\naddition\\n8" shape=cylinder]\n'
        '        "s0" [label="s0\\ndense 6\\nrelu\\n54 parameters"]\n'
        '        "s1" [label="s1\\ndense 6\\nrelu\\n42 parameters"]\n'
        '        "s1: zero generator" [label="zero generator\\n0 parameters" '
        "shape=ellipse style=dashed]\n"
        '        "s1" -> "s1: zero generator" [style=dashed dir=both]\n'
        '        { rank=same "s1" "s1: zero generator" }\n'
        "    }\n"
        '    subgraph "cluster_1" {\n'
        '        label="worker top (synthetic)" labeljust=l style=rounded color=gray50\n'
        '        "top" [label="top\\ndense 4\\nloss: sigmoid_cross_entropy\\n28 parameters"]\n'
        "    }\n"
        '    "data" -> "s0" [label="8"]\n'
        '    "s0" -> "s1" [label="6"]\n'
        '    "s1" -> "top" [label="6"]\n'
        "}\n"
    )


def test_every_edge_of_a_graph_is_drawn_with_its_shape() -> None:
    """Also those that pass stages by; a join says how many it joins."""
    text = dot(networks.design(networks.diamond(), {"name": "locked"}))
    edges = re.findall(r'^    "(\w+)" -> "(\w+)" \[label="(\d+)"\]$', text, re.MULTILINE)
    assert set(edges) == {
        ("data", "root", "8"),
        ("root", "long", "6"),
        ("long", "top", "6"),
        ("root", "top", "6"),
        ("root", "aside", "6"),
    }
    assert '"top" [label="top\\nconcat of 2\\n' in text


def test_quotes_in_options_stay_inside_their_label() -> None:
    """An LSTM of three units on two steps of 784 pixels."""
    hidden = {
        "name": "s0",
        "layers": [{"lstm": {"units": 3, "future": {"lambda": 1.0}}}, "flatten"],
    }
    top = {"name": "top", "layers": [{"dense": 1}], "loss": "sigmoid_cross_entropy"}
    data = {"name": "digit_pairs", "steps": 2, "batch_size": 5}
    text = dot(networks.design([hidden, top], {"name": "locked"}, data=data))
    label = 's0\\nlstm units=3 future={\\"lambda\\": 1.0}\\nflatten\\n9,456 parameters'
    assert f'"s0" [label="{label}"]' in text


def test_a_drawing_is_what_the_program_says_to_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, monkeypatch, 'echo "$1"\nwhile read -r line; do echo "<$line>"; done')
    assert draw("digraph {\n}\n", "png") == b"-Tpng\n<digraph {>\n<}>\n"


def test_without_graphviz_the_way_out_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"PNG is drawn by Graphviz, .* ends in \.dot$"):
        draw("digraph {}", "png")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'Format: \"png\" not recognized' >&2; exit 1", 'exit code 1: Format: "png" not'),
        ("exit 3", "exit code 3: without a message"),
        (":", "exit code 0: without a message"),
    ],
    ids=["a reason", "no reason", "no drawing"],
)
def test_a_program_that_fails_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    program(tmp_path, monkeypatch, script)
    with pytest.raises(LaunchError, match=re.escape(message)):
        draw("digraph {}", "png")


def test_a_program_that_can_not_be_started_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, monkeypatch, "exit 0")
    (tmp_path / "dot").write_bytes(b"\x00 no program")
    with pytest.raises(LaunchError, match=r"dot can't be started: "):
        draw("digraph {}", "png")


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
@each("form", FORMATS)
def test_graphviz_draws_the_graph(form: str) -> None:
    starts = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}
    drawing = draw(dot(networks.design(networks.diamond(), ZERO)), form)
    assert drawing.startswith(starts[form])
    assert form != "svg" or b"worker root (synthetic)" in drawing
