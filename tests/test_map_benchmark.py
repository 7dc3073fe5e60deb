"""The benchmark of feature maps runs as its page says it does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarking import module, run


@pytest.mark.long
def test_every_operation_is_timed_on_each_side(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "maps.json"
    arguments = ["--maps", "mnist-1", "mnist-3", "--samples", 2, "--rounds", 1, "--out", out]
    shown = run("layers/maps.py", *arguments).stdout
    found = json.loads(out.read_text())
    for name, pool in (("mnist-1", "max_pool"), ("mnist-3", "average_pool")):
        assert {operation.partition(",")[0] for operation in found[name]} == {
            *("conv2d", "batch_norm", "relu", pool)
        }
        for operation, sides in found[name].items():
            assert f"| {name} | {operation} |" in shown
            assert sides.keys() == {"ours", "theirs", "floor"}
            assert all(one > 0 for rounds in sides.values() for one in rounds)


def test_the_claim_is_forward_and_backward_of_one_round_together() -> None:
    script = module("layers/maps.py")
    rounds = {
        "conv2d, forward": {"ours": [1000.0, 2000.0, 3000.0], "theirs": [1000.0, 500.0, 1000.0]},
        "conv2d, backward": {"ours": [3000.0, 2000.0, 5000.0], "theirs": [1000.0, 1500.0, 3000.0]},
    }
    row = script.table({"mnist-2": rounds}, ["mnist-2"]).splitlines()[2]
    assert row == "| mnist-2 | **conv2d, forward and backward** | 4.00 | 2.00 | 2.00 |  |  |"
