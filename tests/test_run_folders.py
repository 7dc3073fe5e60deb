"""Run folders in use: `evaluate` repeats a run's accuracy, `predict` uses it, or refuses it.

Every site asserts at its end that no process and no temporary file is left.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from processes import TINY, Site, make_site
from sampled import kept, letters, run_of

from asyncdni import config, experiment
from asyncdni.__main__ import main
from asyncdni.data import identify
from asyncdni.data.meta import Inputs
from asyncdni.errors import CheckpointError, DataError, DataWarning, by_name
from asyncdni.launch.train import design_of
from asyncdni.store.resume import changed_experiment, find_beginning
from asyncdni.store.run import Result, create_folder, load_experiment, open_run, write_data


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
        finished = site.call("train", "tiny.toml", "--out", "run", "--quiet")
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


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x80
    path.write_bytes(content)


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
    finished = site.call("predict", trained, "in.npz", "--out", "out.npz")
    assert (finished.code, finished.err) == (0, "")
    with np.load(site.folder / "out.npz", allow_pickle=False) as outputs:
        assert outputs["top"].shape == (7, 3)
        assert np.isfinite(outputs["top"]).all()


@pytest.mark.parametrize("command", [["evaluate"], ["predict", "--out", "out.npz"]])
def test_a_folder_that_holds_no_run_is_refused(site: Site, command: list[str]) -> None:
    np.savez(site.folder / "in.npz", x=np.zeros((7, 6), np.float32))
    inputs = ["in.npz"] if command[0] == "predict" else []
    finished = site.call(command[0], "nowhere", *inputs, *command[1:])
    finished.refused("nowhere is no run folder", "experiment.toml")
    assert not (site.folder / "out.npz").exists()


def test_a_run_without_weights_of_a_stage_is_refused(site: Site, copy: Path) -> None:
    (copy / "final" / "hidden.safetensors").unlink()
    site.call("evaluate", copy).refused("no weights of stage hidden", "final/hidden.safetensors")


def test_truncated_weights_are_refused(site: Site, copy: Path) -> None:
    path = copy / "final" / "top.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    site.call("evaluate", copy).refused("top.safetensors is damaged", "--weights best")


def test_weights_of_another_network_are_refused(site: Site, copy: Path) -> None:
    path = copy / "experiment.toml"
    path.write_text(path.read_text().replace("dense = 8", "dense = 9"))
    finished = site.call("evaluate", copy)
    finished.refused("layers[0].dense: 8 in the weights, 9 in the experiment")
    (copy / "final" / "manifest.json").unlink()
    finished = site.call("evaluate", copy)
    finished.refused("weights of stage hidden", "0.weight", "(8, 6)", "expected (9, 6)")


def test_a_complete_run_whose_final_weights_are_damaged_makes_them_again(
    site: Site, copy: Path
) -> None:
    before = {path.name: path.read_bytes() for path in (copy / "final").glob("*.safetensors")}
    shutil.rmtree(copy / "best")
    flip(copy / "final" / "hidden.safetensors")
    told = site.call("evaluate", copy).refused("is damaged", "is whole", "--resume")
    assert "hidden.safetensors" in told
    assert site.call("train", "--resume", copy, "--quiet").code == 0
    after = {path.name: path.read_bytes() for path in (copy / "final").glob("*.safetensors")}
    assert after == before
    assert site.call("evaluate", copy).code == 0


@pytest.mark.parametrize("name", ["summary.json", "experiment.toml"])
def test_a_run_folder_with_a_damaged_file_is_refused(site: Site, copy: Path, name: str) -> None:
    (copy / name).write_text("[" + (copy / name).read_text()[:-5])
    site.call("evaluate", copy).refused(name)


def test_a_run_folder_whose_file_is_a_folder_is_refused(site: Site, copy: Path) -> None:
    (copy / "final" / "top.safetensors").unlink()
    (copy / "final" / "top.safetensors").mkdir()
    site.call("evaluate", copy).refused("top.safetensors", "can't read")


INPUTS: dict[str, tuple[Any, list[str]]] = {
    "another shape": (np.zeros((4, 5), "f4"), ["(4, 5)", "(samples, 6)"]),
    "no samples": (np.zeros((0, 6), "f4"), ["(0, 6)", "(samples, 6)"]),
    "integers": (np.zeros((4, 6), "i8"), ["x is of dtype int64", "float32"]),
    "nan": (np.full((4, 6), np.nan, "f4"), ["nan", "sample 0", "finite"]),
    "objects": (np.array([[None] * 6], dtype=object), ["in.npz", "x holds Python objects"]),
}


@pytest.mark.parametrize("case", INPUTS)
def test_predict_refuses_inputs_that_do_not_fit(site: Site, trained: Path, case: str) -> None:
    x, words = INPUTS[case]
    np.savez(site.folder / "in.npz", x=x)
    site.call("predict", trained, "in.npz", "--out", "out.npz").refused(*words)
    assert not (site.folder / "out.npz").exists()


FILES_IN = {
    "missing": (None, ["in.npz: no such file"]),
    "text": (b"1, 2, 3\n", ["in.npz", "no .npz file"]),
    "empty": (b"", ["in.npz", "no .npz file"]),
}


@pytest.mark.parametrize("case", FILES_IN)
def test_predict_refuses_files_that_are_none(site: Site, trained: Path, case: str) -> None:
    content, words = FILES_IN[case]
    if content is not None:
        (site.folder / "in.npz").write_bytes(content)
    site.call("predict", trained, "in.npz", "--out", "out.npz").refused(*words)


def test_predict_refuses_a_single_array_file(site: Site, trained: Path) -> None:
    np.save(site.folder / "in.npy", np.zeros((4, 6), "f4"))
    finished = site.call("predict", trained, "in.npy", "--out", "out.npz")
    finished.refused("in.npy", "one array", "numpy.savez")


def test_predict_refuses_an_output_that_can_not_be_written(site: Site, trained: Path) -> None:
    np.savez(site.folder / "in.npz", x=np.zeros((4, 6), "f4"))
    site.write("plain", "text")
    finished = site.call("predict", trained, "in.npz", "--out", "plain/out.npz")
    finished.refused("plain/out.npz", "can't write")


# --- the data of a run: which they are, and where ------------------------------------------------

STAGES = [{"name": "top", "layers": [{"dense": 2}], "loss": "cross_entropy"}]


def written(path: Path, label: int = 0) -> Path:
    """Samples that differ in one label."""
    x, y = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([0, 1, 0, label])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return path


def run_on(path: Path, folder: Path) -> Result:
    """A run folder on the data at `path`, as it is once training is over."""
    run = run_of({"name": "npz", "path": str(path)}, STAGES)
    found = kept(run, folder)
    write_data(folder, run.experiment, identify(run.experiment.data))
    return found


def place(folder: Path) -> str:
    data = load_experiment(folder).data
    assert isinstance(data, config.Npz)
    return data.path


def test_data_in_the_folder_itself_go_with_it(tmp_path: Path) -> None:
    run = run_of({"name": "npz", "path": str(written(tmp_path / "d.npz"))}, STAGES)
    inside = msgspec.structs.replace(run.experiment.data, path=str(tmp_path / "run" / "data.npz"))
    create_folder(tmp_path / "run", msgspec.structs.replace(run.experiment, data=inside))
    written(tmp_path / "run" / "data.npz")
    (tmp_path / "run").rename(tmp_path / "other")
    assert 'path = "data.npz"' in (tmp_path / "other" / "experiment.toml").read_text()
    assert place(tmp_path / "other") == str(tmp_path / "other" / "data.npz")


def test_data_beside_a_folder_are_found_where_both_have_moved(tmp_path: Path) -> None:
    run_on(written(tmp_path / "a" / "d.npz"), tmp_path / "a" / "runs" / "one")
    (tmp_path / "a").rename(tmp_path / "b")
    assert place(tmp_path / "b" / "runs" / "one") == str(tmp_path / "b" / "d.npz")
    assert place(tmp_path / "b" / "runs" / "one") == changed_path(tmp_path / "b" / "runs" / "one")
    (tmp_path / "b" / "runs" / "one").rename(tmp_path / "alone")
    written(tmp_path / "a" / "d.npz")
    assert place(tmp_path / "alone") == str(tmp_path / "a" / "d.npz")


def changed_path(folder: Path) -> str:
    data = changed_experiment(folder, ["run.epochs=9"]).data
    assert isinstance(data, config.Npz)
    return data.path


def test_of_two_files_the_one_with_the_samples_of_the_run_is_taken(tmp_path: Path) -> None:
    run_on(written(tmp_path / "a" / "d.npz"), tmp_path / "a" / "one")
    (tmp_path / "a").rename(tmp_path / "b")
    written(tmp_path / "a" / "d.npz", label=1)
    assert place(tmp_path / "b" / "one") == str(tmp_path / "b" / "d.npz")
    written(tmp_path / "b" / "d.npz", label=1)
    written(tmp_path / "a" / "d.npz")
    assert place(tmp_path / "b" / "one") == str(tmp_path / "a" / "d.npz")


def test_a_folder_of_an_earlier_version_finds_its_arrays(tmp_path: Path) -> None:
    run = run_on(written(tmp_path / "d.npz"), tmp_path / "now")
    data = config.Npz(path=str(tmp_path / "before" / "data.npz"))
    old = config.Experiment(data=data, stages=run.experiment.stages)
    (tmp_path / "now" / "experiment.toml").write_text(experiment.dumps(old))
    (tmp_path / "now" / "data.json").unlink()
    assert place(tmp_path / "now") == data.path  # nothing is there
    written(tmp_path / "now" / "data.npz")
    assert place(tmp_path / "now") == str(tmp_path / "now" / "data.npz")
    assert open_run(tmp_path / "now").meta.inputs is None


def test_a_run_that_was_interrupted_can_be_read_without_its_data(tmp_path: Path) -> None:
    run_on(written(tmp_path / "d.npz"), tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "d.npz").unlink()
    meta = open_run(tmp_path / "run").meta
    assert meta.input_shape == (3,) and meta.inputs == Inputs("float", 0, 11, least=2)


def test_what_is_known_of_the_data_may_be_damaged(tmp_path: Path) -> None:
    run_on(written(tmp_path / "d.npz"), tmp_path / "run")
    for content, words in (("[1", "can't be read"), ("[1]", "no table"), ('{"meta": 1}', "meta")):
        (tmp_path / "run" / "data.json").write_text(content)
        with pytest.raises(CheckpointError, match=rf"data\.json.*{words}"):
            open_run(tmp_path / "run")


def test_a_run_does_not_go_on_with_other_samples(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_on(written(tmp_path / "d.npz"), folder)
    design = design_of(changed_experiment(folder, []))
    assert find_beginning(folder, design, [], 0.0).ledger.start == 0
    written(tmp_path / "d.npz", label=1)
    design = design_of(changed_experiment(folder, []))
    words = r"d\.npz does not hold the samples .*: other contents in y_train, y_test; put the data"
    with pytest.raises(DataError, match=words):
        find_beginning(folder, design, [], 0.0)


def test_what_is_doubtful_about_data_is_said_on_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_on(written(tmp_path / "d.npz"), tmp_path / "run")
    np.savez(tmp_path / "i.npz", x=np.full((2, 3), 1e3))
    given, out = str(tmp_path / "i.npz"), str(tmp_path / "o.npz")
    assert main(["predict", str(tmp_path / "run"), given, "--out", out]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("asyncdni: warning: x is floating numbers from 1000 to 1000, but the r")
    assert by_name(DataWarning.__name__).__name__ == "AsyncDNIError"


def test_labels_of_steps_are_the_largest_outputs_of_each(tmp_path: Path) -> None:
    run = kept(letters(tmp_path / "t.txt", "abcabcab" * 40), tmp_path / "run")
    np.savez(tmp_path / "i.npz", x=np.zeros((7, 5, 3)))
    out = tmp_path / "o.npz"
    assert main(["predict", str(run.folder), str(tmp_path / "i.npz"), "--out", str(out)]) == 0
    with np.load(out) as found:
        assert (found["label"] == found["readout"].argmax(axis=2)).all()
        assert found["label"].shape == (7, 5)
