"""Run folders in use: `evaluate` repeats a run's accuracy, `predict` uses it, or refuses it.

Every site asserts at its end that no process and no temporary file is left.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import TINY, Site, make_site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as `train` leaves it."""
    folder = tmp_path_factory.mktemp("trained")
    with make_site(folder) as site:
        site.write("tiny.toml", TINY)
        finished = site.run("train", "tiny.toml", "--out", "run", "--quiet")
        assert finished.code == 0, finished
    return folder / "run"


@pytest.fixture
def copy(site: Site, trained: Path) -> Path:
    """A copy of it, to damage."""
    for path in trained.rglob("*"):
        if path.is_file():
            target = site.folder / "run" / path.relative_to(trained)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return site.folder / "run"


def test_evaluate_repeats_the_test_accuracy_of_the_summary_exactly(
    site: Site, trained: Path
) -> None:
    finished = site.run("evaluate", trained, "--json")
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["test_accuracy"] is not None
    assert json.loads(finished.out)["accuracy"] == summary["test_accuracy"]
    assert json.loads(finished.out)["loss"] == summary["test_loss"]
    assert (finished.code, finished.err) == (0, "")


def test_predict_writes_the_outputs_of_each_loss(site: Site, trained: Path) -> None:
    np.savez(site.folder / "in.npz", x=np.zeros((7, 6), np.float32))
    finished = site.run("predict", trained, "in.npz", "--out", "out.npz")
    assert (finished.code, finished.err) == (0, "")
    with np.load(site.folder / "out.npz", allow_pickle=False) as outputs:
        assert outputs["top"].shape == (7, 3)
        assert np.isfinite(outputs["top"]).all()


@pytest.mark.parametrize("command", [["evaluate"], ["predict", "--out", "out.npz"]])
def test_a_folder_that_holds_no_run_is_refused(site: Site, command: list[str]) -> None:
    np.savez(site.folder / "in.npz", x=np.zeros((7, 6), np.float32))
    inputs = ["in.npz"] if command[0] == "predict" else []
    finished = site.run(command[0], "nowhere", *inputs, *command[1:])
    finished.refused("nowhere is no run folder", "experiment.toml")
    assert not (site.folder / "out.npz").exists()


def test_a_run_without_weights_of_a_stage_is_refused(site: Site, copy: Path) -> None:
    (copy / "final" / "hidden.safetensors").unlink()
    site.run("evaluate", copy).refused("no weights of stage hidden", "final/hidden.safetensors")


def test_truncated_weights_are_refused(site: Site, copy: Path) -> None:
    path = copy / "final" / "top.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    site.run("evaluate", copy).refused("top.safetensors", "not a whole safetensors file")


def test_weights_of_another_network_are_refused(site: Site, copy: Path) -> None:
    path = copy / "experiment.toml"
    path.write_text(path.read_text().replace("dense = 8", "dense = 9"))
    finished = site.run("evaluate", copy)
    finished.refused("weights of stage hidden", "0.weight", "(8, 6)", "expected (9, 6)")


@pytest.mark.parametrize("name", ["summary.json", "experiment.toml"])
def test_a_run_folder_with_a_damaged_file_is_refused(site: Site, copy: Path, name: str) -> None:
    (copy / name).write_text("[" + (copy / name).read_text()[:-5])
    site.run("evaluate", copy).refused(name)


def test_a_run_folder_whose_file_is_a_folder_is_refused(site: Site, copy: Path) -> None:
    (copy / "final" / "top.safetensors").unlink()
    (copy / "final" / "top.safetensors").mkdir()
    site.run("evaluate", copy).refused("top.safetensors", "can't read")


INPUTS: dict[str, tuple[Any, list[str]]] = {
    "another shape": (np.zeros((4, 5), "f4"), ["(4, 5)", "(samples, 6)"]),
    "no samples": (np.zeros((0, 6), "f4"), ["(0, 6)", "(samples, 6)"]),
    "integers": (np.zeros((4, 6), "i8"), ["int64", "floating-point"]),
    "nan": (np.full((4, 6), np.nan, "f4"), ["nan", "sample 0", "finite"]),
    "objects": (np.array([[None] * 6], dtype=object), ["in.npz", "plain arrays"]),
}


@pytest.mark.parametrize("case", INPUTS)
def test_predict_refuses_inputs_that_do_not_fit(site: Site, trained: Path, case: str) -> None:
    x, words = INPUTS[case]
    np.savez(site.folder / "in.npz", x=x)
    site.run("predict", trained, "in.npz", "--out", "out.npz").refused(*words)
    assert not (site.folder / "out.npz").exists()


FILES_IN = {
    "missing": (None, ["no file in.npz"]),
    "text": (b"1, 2, 3\n", ["in.npz", "no .npz file"]),
    "empty": (b"", ["in.npz", "no .npz file"]),
}


@pytest.mark.parametrize("case", FILES_IN)
def test_predict_refuses_files_that_are_none(site: Site, trained: Path, case: str) -> None:
    content, words = FILES_IN[case]
    if content is not None:
        (site.folder / "in.npz").write_bytes(content)
    site.run("predict", trained, "in.npz", "--out", "out.npz").refused(*words)


def test_predict_refuses_a_single_array_file(site: Site, trained: Path) -> None:
    np.save(site.folder / "in.npy", np.zeros((4, 6), "f4"))
    finished = site.run("predict", trained, "in.npy", "--out", "out.npz")
    finished.refused("in.npy", "one array", "numpy.savez")


def test_predict_refuses_an_output_that_can_not_be_written(site: Site, trained: Path) -> None:
    np.savez(site.folder / "in.npz", x=np.zeros((4, 6), "f4"))
    site.write("plain", "text")
    finished = site.run("predict", trained, "in.npz", "--out", "plain/out.npz")
    finished.refused("plain/out.npz", "can't write")
