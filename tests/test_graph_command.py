"""`asyncdni graph`: the table on standard output, the graph in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import TINY

from asyncdni.__main__ import main


def test_the_table_is_printed_and_the_graph_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    change = "stages.hidden.layers=[{ dense = 5 }]"
    given = ["graph", str(tmp_path / "tiny.toml"), "--set", change]
    assert main([*given, "--dot", str(tmp_path / "tiny.dot")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["stage", "hidden", "top", "total"]
    assert lines[1].split()[-1] == str(6 * 5 + 5) and lines[3].split()[-1] == str(35 + 5 * 3 + 3)
    assert '"hidden" -> "top" [label="5"]' in (tmp_path / "tiny.dot").read_text()


def test_a_graph_that_can_not_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    file = str(tmp_path / "tiny.toml")
    assert main(["graph", file, "--dot", f"{file}/tiny.dot"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("asyncdni: can't write") and "tiny.dot" in error
