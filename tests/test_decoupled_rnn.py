"""Seo's recurrent network in one process: hand-written backward and automatic differentiation."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import numpy as np
import pytest
from sampled import LAUNCH

from asyncdni import experiment

SMALL = ["--set", "run.epochs=1", "--set", "data.examples=30", "--set", 'run.dtype="float64"']


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("decoupled_rnn", LAUNCH / "decoupled_rnn.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_by_hand_it_needs_no_torch(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(SMALL) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = re.fullmatch(r"by hand: (\d+) of 20 test images right", line)
    assert found is not None
    assert int(found[1]) >= 18


def test_autograd_goes_the_same_way(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert script.main([*SMALL, "--autograd"]) == 0
    hand, torch, gradient, weight = capsys.readouterr().out.splitlines()
    assert torch == hand.replace("by hand", "autograd")
    for line in (gradient, weight):
        assert 0 < float(line.rpartition(" ")[2]) < 1e-12


def test_gradients_of_both_agree_on_batches_of_several_images(script: ModuleType) -> None:
    pytest.importorskip("torch")
    chosen = experiment.load(LAUNCH / "decoupled-rnn.toml", ["run.dtype='float64'"])
    hand = script.ByHand(chosen)
    torch = script.ByAutograd(hand.weights())
    rng = np.random.default_rng(0)
    for samples in (1, 7):
        x, y = rng.random((samples, 2, 784)), rng.integers(0, 2, (samples, 1)).astype(float)
        found = hand.gradients(x, y)
        assert max(np.abs(one).max() for one in found.values()) > 1e-3
        assert script.difference(found, torch.gradients(x, y)) < 1e-13


def test_another_network_is_refused(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--set", "optimizer.momentum=0.9"]) == 2
    assert capsys.readouterr().err == "optimizer: expected the recipe's, sgd without momentum\n"
