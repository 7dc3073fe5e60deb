"""The recipes in `launch/torch/` train a few batches each, as their first lines say."""

from __future__ import annotations

import os
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

LAUNCH = Path(__file__).parent.parent / "launch" / "torch"


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=LAUNCH,
        env={**os.environ, "ASYNCDNI_DATA": ""},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def trained(recipe: str, out: Path, *settings: str) -> str:
    """What the command line prints of a recipe, with changes that make it small."""
    words = [word for setting in settings for word in ("--set", setting)]
    return run("-m", "asyncdni", "train", recipe, "--allow-import", "--out", str(out), *words)


def test_a_gpt_reads_any_text(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(string.printable[:65] * 40)
    small = "model.arguments={ vocabulary = 65, width = 8, layers = 4, heads = 2, steps = 16 }"
    settings = [f"data.path={text}", "data.window=16", "data.batch_size=8", small]
    assert "test accuracy" in trained("gpt.toml", tmp_path / "run", *settings)
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.long
def test_the_mlp_learns_digits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.random((64, 784), np.float32)
    arrays = {
        "x_train": x,
        "y_train": np.arange(64) % 10,
        "x_test": x,
        "y_test": np.arange(64) % 10,
    }
    np.savez(tmp_path / "digits.npz", **arrays)
    data = f'data={{ name = "npz", path = "{tmp_path}/digits.npz", batch_size = 16 }}'
    settings = [data, "model.arguments={ width = 8 }", "run.epochs=2"]
    assert "test accuracy" in trained("mlp.toml", tmp_path / "run", *settings)


@pytest.mark.long
def test_resnet18_is_cut_and_trained_as_an_object() -> None:
    assert "test accuracy" in run("resnet18.py", "--samples", "64", "--width", "2")


@pytest.mark.long
def test_a_hugging_face_model_is_fine_tuned() -> None:
    pytest.importorskip("transformers")
    assert "test accuracy" in run("finetune.py", "--epochs", "1", "--samples", "400")
