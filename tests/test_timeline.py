"""Timelines: boxes where the ops were, and one clear line for what can't be drawn."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from asyncdni.errors import CheckpointError
from asyncdni.metrics.timeline import Panel, TracedOp, draw, read_trace

SVG = "{http://www.w3.org/2000/svg}"
TINY = """
[data]
name = "addition"
examples = 40
test_examples = 10
[[stages]]
name = "low"
layers = [{ dense = 4 }, "relu"]
[[stages]]
name = "top"
layers = [{ dense = 8 }]
loss = "sigmoid_cross_entropy"
[run]
epochs = 2
"""


def panel(*ops: TracedOp) -> Panel:
    return Panel("a & b", {"stage <1>": list(ops)})


def boxes(picture: str) -> list[tuple[str, float, float]]:
    """(title, x, width) of each op."""
    root = ElementTree.fromstring(picture)
    return [
        (str(box[0].text), float(box.attrib["x"]), float(box.attrib["width"]))
        for box in root.iter(f"{SVG}rect")
        if len(box)
    ]


def test_an_op_is_as_wide_as_its_share_of_the_window() -> None:
    first, second = TracedOp("F", 0, 5.0, 5.5), TracedOp("B", 0, 5.5, 5.75)
    found = boxes(draw([panel(first, second)], 1.0, at=0.0))
    assert [title.split(":")[0] for title, _, _ in found] == ["F0", "B0"]
    (_, x_f, width_f), (_, x_b, width_b) = found
    assert width_f == pytest.approx(2 * width_b, abs=0.2)
    assert x_b == pytest.approx(x_f + width_f, abs=0.2)


def test_ops_outside_of_the_window_are_left_out_and_those_across_its_end_are_cut() -> None:
    ops = [TracedOp("F", n, n * 1.0, n + 0.8) for n in range(5)]
    found = boxes(draw([panel(*ops)], 1.5, at=0.0))
    assert [title.split(":")[0] for title, _, _ in found] == ["F0", "F1"]
    assert found[1][2] == pytest.approx(found[0][2] * 0.5 / 0.8, abs=0.2)


def test_names_are_escaped_and_the_legend_names_what_is_there() -> None:
    picture = draw([panel(TracedOp("P", 3, 0.0, 1.0))], 1.0)
    text = " ".join(t.text or "" for t in ElementTree.fromstring(picture).iter(f"{SVG}text"))
    assert "a & b" in text and "stage <1>" in text
    assert "generator predicts" in text and "forward" not in text


def test_a_run_without_ops_can_not_be_drawn() -> None:
    with pytest.raises(CheckpointError, match="holds no ops"):
        draw([panel()], 1.0)


def test_a_run_without_a_trace_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="train with --trace"):
        read_trace(tmp_path, ["low"])


def test_a_damaged_trace_is_named(tmp_path: Path) -> None:
    (tmp_path / "trace").mkdir()
    (tmp_path / "trace" / "low.jsonl").write_text('["F", 0]\n')
    with pytest.raises(CheckpointError, match=r"low\.jsonl is no trace"):
        read_trace(tmp_path, ["low"])


def test_the_commands_trace_and_draw_a_real_run(tmp_path: Path) -> None:
    def asyncdni(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "asyncdni", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    (tmp_path / "tiny.toml").write_text(TINY)
    trained = asyncdni("train", "tiny.toml", "--trace", "--out", "run", "--quiet")
    assert trained.returncode == 0, trained.stderr
    ops = read_trace(tmp_path / "run", ["low", "top"])
    # An epoch is 4 batches; a decoupled hidden stage predicts, learns, updates and fits on each.
    assert re.fullmatch("[RFPBUT]+", "".join(op.letter for op in ops["low"]))
    assert [op.batch for op in ops["low"] if op.letter == "U"] == list(range(8))
    assert all(op.start_s <= op.end_s for op in ops["top"])
    drawn = asyncdni("timeline", "run", "--out", "t.svg", "--ms", "5")
    assert drawn.returncode == 0 and boxes((tmp_path / "t.svg").read_text())
    refused = asyncdni("timeline", "run", "--out", "u.svg", "--ms", "-1")
    assert refused.returncode == 2 and not (tmp_path / "u.svg").exists()
    assert refused.stderr.count("\n") == 1 and "--ms" in refused.stderr
