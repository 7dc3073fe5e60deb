"""Bad input to the commands ends in one line that names place, given and cure, and leaves nothing.

Every site asserts at its end that no process and no temporary file is left.
"""

from __future__ import annotations

import gzip
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import TINY, Site, make_site

from asyncdni.data.mnist import FILES


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        yield made


def _replaced(old: str, new: str) -> str:
    assert old in TINY
    return TINY.replace(old, new)


_HIDDEN = 'layers = [{ dense = 8 }, "sigmoid"]'
_TOP = "layers = [{ dense = 3 }]"

#: What is wrong: (the experiment file, words of the one line).
EXPERIMENTS = {
    "unknown key": (_replaced("epochs", "epocs"), ["run", "'epocs'", "did you mean 'epochs'"]),
    "unknown table": (TINY + "\n[optimiser]\n", ["'optimiser'", "did you mean 'optimizer'"]),
    "wrong type": (_replaced("epochs = 2", 'epochs = "many"'), ["run.epochs", "integer", "'many'"]),
    "out of range": (_replaced("batch_size = 10", "batch_size = 0"), ["data.batch_size", "1", "0"]),
    "unknown layer": (
        _replaced('"sigmoid"]', '"sigmiod"]'),
        ["stages[0] (hidden).layers[1]", "'sigmiod'", "dense, batch_norm, relu, tanh, sigmoid"],
    ),
    "unknown option of a layer": (
        _replaced("{ dense = 8 }", "{ dense = { widht = 8 } }"),
        ["stages[0] (hidden).layers[0]", "'widht'", "width"],
    ),
    "unknown schedule": (
        _replaced('"synthetic"', '"asynchronous"'),
        ["schedule.name", "'asynchronous'", "locked, gpipe, 1f1b, delayed, local_loss, synthetic"],
    ),
    "an option that the schedule does not have": (
        _replaced('"synthetic"', '"delayed"\nmicrobatches = 4'),
        ["schedule", "'microbatches'", "delayed", "weights, accumulate, look_ahead, anneal_epochs"],
    ),
    "microbatches that do not divide the batch": (
        _replaced('"synthetic"', '"gpipe"\nmicrobatches = 4'),
        ["schedule.microbatches", "4", "data.batch_size = 10"],
    ),
    "a lag below what the schedule needs": (
        _replaced('"synthetic"', '"1f1b"\nmicrobatches = 5') + "[staleness]\nlag = 0\n",
        ["staleness", "a lag of 0", "hidden->top", "1f1b needs there: 1"],
    ),
    "a stage's own schedule where all have one": (
        _replaced('"synthetic"', '"delayed"').replace(
            _TOP, _TOP + '\nschedule = { name = "locked" }'
        ),
        ["stages[1] (top).schedule", "under delayed", "under synthetic and local_loss"],
    ),
    "unknown data set": (
        _replaced('"addition"', '"additon"'),
        ["data.name", "'additon'", "did you mean 'addition'?", "digits, mnist, addition, npz"],
    ),
    "unknown loss": (
        _replaced('"sigmoid_cross_entropy"', '"mes"'),
        ["stages[1] (top).loss", "'mes'", "did you mean 'mse'?"],
    ),
    "a loss that does not fit the targets": (
        _replaced('"sigmoid_cross_entropy"', '"cross_entropy"'),
        ["stages[1] (top).loss", "3 values", "sigmoid_cross_entropy or mse"],
    ),
    "an output that does not fit the loss": (
        _replaced(_TOP, "layers = [{ dense = 4 }]"),
        ["stages[1] (top).loss", "expects the stage to end in shape (3,)", "got (4,)"],
    ),
    "branches whose shapes can't be summed": (
        TINY.replace(_TOP, _TOP + '\ninputs = ["hidden", "data"]\njoin = "sum"'),
        ["stages[1] (top).inputs", "equal shapes", "hidden (8,)", "data (6,)"],
    ),
    "no loss": (_replaced('loss = "sigmoid_cross_entropy"', ""), ["none has a loss"]),
    "a cycle": (
        TINY.replace(_HIDDEN, _HIDDEN + '\ninputs = ["top"]'),
        ["hidden -> top", "top -> hidden", "cycle"],
    ),
    "an input that nobody produces": (
        TINY.replace(_TOP, _TOP + '\ninputs = ["hiden"]'),
        ["stages[1] (top).inputs", "'hiden'", "did you mean 'hidden'?", "data, hidden, top"],
    ),
    "two stages of one name": (_replaced('"top"', '"hidden"'), ["stages[1]", "'hidden'", "unique"]),
    "a split over more stages than there are": (TINY + "split = [1, 2]\n", ["run.split", "[1, 2]"]),
    "one training sample alone before a batch norm": (
        TINY.replace('"sigmoid"]', '"batch_norm"]').replace("examples = 40", "examples = 41"),
        ["hidden", "batch_norm", "41", "batch_size"],
    ),
    "a layer of the user's own": (
        _replaced('"sigmoid"]', '"mine:Layer"]'),
        ["stages[0] (hidden).layers[1]", "'mine:Layer'", "--allow-import"],
    ),
    "no TOML": ("[data\n", ["tiny.toml", "not TOML", "line 1"]),
}


@pytest.mark.parametrize("case", EXPERIMENTS)
def test_an_experiment_that_can_not_be_used_is_refused_before_anything_is_written(
    site: Site, case: str
) -> None:
    text, words = EXPERIMENTS[case]
    file = site.write("tiny.toml", text)
    site.call("train", file, "--out", "run").refused(*words)
    assert not (site.folder / "run").exists()


ARGUMENTS: dict[str, tuple[list[str], list[str]]] = {
    "no such file": (["train", "missing.toml"], ["missing.toml", "no such file"]),
    "unknown key": (["train", "tiny.toml", "--set", "run.epoch=3"], ["run", "'epoch'", "epochs"]),
    "no value": (["train", "tiny.toml", "--set", "run.epochs"], ["--set", "run.epochs"]),
    "wrong type": (["train", "tiny.toml", "--set", "run.seed=-1"], ["run.seed", "-1"]),
    "schedule": (["train", "tiny.toml", "--schedule", "lock"], ["'lock'", "locked"]),
    "coordinator": (
        ["coordinator", "tiny.toml", "--bind", "tcp://127.0.0.1:0", "--schedule", "lock"],
        ["'lock'", "locked, gpipe, 1f1b"],
    ),
    "unknown option": (["train", "tiny.toml", "--epochs", "3"], ["--epochs", "asyncdni --help"]),
    "unknown command": (["trian"], ["trian", "train", "--help"]),
    "seed": (["train", "tiny.toml", "--seed", "many"], ["--seed", "'many'"]),
    "address": (["coordinator", "tiny.toml", "--bind", "localhost"], ["'localhost'", "tcp://"]),
    "port": (["worker", "--stage", "0", "--coordinator", "tcp://h:99999"], ["99999", "65535"]),
    "wait": (
        ["worker", "--stage", "0", "--coordinator", "tcp://h:1", "--timeout", "soon"],
        ["--timeout", "'soon'", "seconds above 0"],
    ),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_that_can_not_be_used_are_refused(site: Site, case: str) -> None:
    args, words = ARGUMENTS[case]
    site.write("tiny.toml", TINY)
    site.call(*args).refused(*words)
    assert sorted(path.name for path in site.folder.iterdir()) == ["tiny.toml"]


# --- data ----------------------------------------------------------------------------------------

CLASSES = """\
[data]
name = "npz"
path = "data.npz"
batch_size = 8

[[stages]]
name = "hidden"
layers = [{ dense = 4 }, "relu"]

[[stages]]
name = "top"
layers = [{ dense = 3 }]
loss = "cross_entropy"

[run]
epochs = 1
"""


def _arrays() -> dict[str, Any]:
    labels = np.arange(16) % 3
    return {
        "x_train": np.linspace(-1, 1, 16 * 5, dtype=np.float32).reshape(16, 5),
        "y_train": labels,
        "x_test": np.linspace(-1, 1, 16 * 5, dtype=np.float32).reshape(16, 5),
        "y_test": labels,
    }


def _save(site: Site, **changed: Any) -> Path:
    site.write("classes.toml", CLASSES)
    np.savez(site.folder / "data.npz", allow_pickle=False, **{**_arrays(), **changed})
    return site.folder / "data.npz"


def _refused(site: Site, *words: str) -> None:
    """By `train`, with `words`, before anything was learned: no folder is in the way of another."""
    site.call("train", "classes.toml", "--out", "run").refused(*words)
    assert not (site.folder / "run").exists()


def test_labels_out_of_range_are_refused_with_array_and_sample(site: Site) -> None:
    labels = _arrays()["y_train"]
    labels[5] = -1
    _save(site, y_train=labels)
    _refused(site, "data.npz", "y_train", "-1", "sample 5", "whole numbers from 0")


def test_more_classes_than_outputs_are_refused(site: Site) -> None:
    labels = _arrays()["y_test"]
    labels[7] = 3
    _save(site, y_test=labels)
    _refused(site, "stages[1] (top).loss", "y_train and y_test, go up to 3", "(4,)", "(3,)")


def test_nan_in_the_data_is_refused_with_array_and_sample(site: Site) -> None:
    x = _arrays()["x_train"]
    x[9, 2] = np.nan
    _save(site, x_train=x)
    _refused(site, "data.npz", "x_train", "nan", "sample 9")


def test_inputs_of_a_shape_that_a_layer_can_not_take_are_refused(site: Site) -> None:
    _save(site, x_train=np.zeros((16, 1, 2, 2), "f4"), x_test=np.zeros((16, 1, 2, 2), "f4"))
    _refused(site, "stages[0] (hidden).layers[0]", "dense", "(D,)", "(1, 2, 2)")


def test_a_missing_data_file_is_refused(site: Site) -> None:
    _save(site).unlink()
    _refused(site, "data.npz", "no such file", "x_train, y_train, x_test, y_test")


def test_a_data_file_without_one_of_the_arrays_is_refused(site: Site) -> None:
    file = _save(site)
    np.savez(file, allow_pickle=False, x_train=np.zeros((2, 5)))
    _refused(site, "data.npz", "y_train", "found x_train")


def test_a_truncated_data_file_is_refused(site: Site) -> None:
    file = _save(site)
    file.write_bytes(file.read_bytes()[:-200])
    _refused(site, "data.npz", "damaged")


def test_a_data_file_with_flipped_bits_is_refused(site: Site) -> None:
    file = _save(site)
    content = bytearray(file.read_bytes())
    at = content.index(_arrays()["x_train"].tobytes())
    content[at + 40] ^= 0xFF
    file.write_bytes(content)
    _refused(site, "data.npz", "CRC")


def test_a_file_of_pickled_objects_is_refused(site: Site) -> None:
    file = _save(site)
    np.savez(file, **{**_arrays(), "y_train": np.array([{}] * 16, dtype=object)})
    _refused(site, "data.npz", "y_train", "pickle", "never loaded")


def test_an_mnist_folder_without_its_files_is_refused(site: Site) -> None:
    (site.folder / "mnist").mkdir()
    _save(site)
    changes = ["--set", "data.name=mnist", "--set", "data.path=mnist", "--set", "data.batch_size=9"]
    changes += ["--set", "stages.top.layers=[{ dense = 10 }]"]
    finished = site.call("train", "classes.toml", "--out", "run", *changes)
    folder = str(site.folder / "mnist")
    cure = f"asyncdni data mnist --folder {folder}"
    finished.refused("MNIST is incomplete", "train-images-idx3-ubyte", cure)
    assert not (site.folder / "run").exists()


def test_an_mnist_file_with_another_checksum_is_refused(site: Site) -> None:
    (site.folder / "mnist").mkdir()
    _save(site)
    for file in FILES:
        path = site.folder / "mnist" / f"{file.name}.gz"
        samples = 60_000 if file.name.startswith("train") else 10_000
        shape = (samples, 28, 28)[: file.axes]
        header = struct.pack(f">I{file.axes}I", 0x800 + file.axes, *shape)
        path.write_bytes(gzip.compress(header.ljust(file.size, b"\0"), 1))
    changes = ["--set", "data.name=mnist", "--set", "data.path=mnist"]
    changes += ["--set", "stages.top.layers=[{ dense = 10 }]"]
    finished = site.call("train", "classes.toml", "--out", "run", *changes)
    finished.refused("train-images-idx3-ubyte.gz", "sha256", FILES[0].sha256, "asyncdni data mnist")
    assert not (site.folder / "run").exists()


def test_a_loss_that_stops_being_finite_ends_the_run_with_stage_and_batch(site: Site) -> None:
    _save(site)
    changes = ["--set", "optimizer.name=sgd", "--set", "optimizer.learning_rate=1e30"]
    finished = site.call("train", "classes.toml", "--out", "run", *changes, "--schedule", "locked")
    finished.refused("loss of stage top is nan at batch 1", "learning_rate", "clip_norm")
    assert not (site.folder / "run" / "summary.json").exists()


def test_a_message_over_the_limit_is_refused_with_what_to_set(site: Site) -> None:
    site.write("tiny.toml", TINY)
    finished = site.call("train", "tiny.toml", "--out", "run", "--set", "limits.message_bytes=300")
    assert finished.code == 2
    finished.refused("hidden", "Activation of ", "bytes is over limits.message_bytes = 300")
    assert not (site.folder / "run").exists()


def test_a_limit_that_no_socket_keeps_is_refused(site: Site) -> None:
    site.write("tiny.toml", TINY)
    finished = site.call("train", "tiny.toml", "--set", f"limits.message_bytes={2**32}")
    assert finished.code == 2
    finished.refused("limits.message_bytes")


# --- places to write to --------------------------------------------------------------------------


def test_a_run_folder_below_a_file_is_refused(site: Site) -> None:
    site.write("tiny.toml", TINY)
    site.write("plain", "text")
    site.call("train", "tiny.toml", "--out", "plain/run").refused("--out plain/run", "directory")
    assert (site.folder / "plain").read_text() == "text"


def test_a_run_folder_that_is_a_file_is_refused(site: Site) -> None:
    site.write("tiny.toml", TINY)
    site.write("plain", "text")
    site.call("train", "tiny.toml", "--out", "plain").refused("--out plain", "exists")


@pytest.mark.parametrize("command", [["train"], ["coordinator", "--bind", "tcp://127.0.0.1:0"]])
def test_a_run_folder_that_is_not_empty_is_refused_and_kept(site: Site, command: list[str]) -> None:
    site.write("tiny.toml", TINY)
    site.write("run/notes", "precious")
    finished = site.call(*command, "tiny.toml", "--out", "run")
    finished.refused("--out run", "not empty", "new or an empty one")
    assert [path.name for path in (site.folder / "run").iterdir()] == ["notes"]


def test_a_port_in_use_is_refused_before_the_run_folder_is_made(site: Site) -> None:
    site.write("tiny.toml", TINY)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        finished = site.call("coordinator", "tiny.toml", "--bind", address, "--out", "run")
    finished.refused(address, "in use", "port 0")
    assert not (site.folder / "run").exists()


def test_the_console_script_and_the_module_are_the_same_command(site: Site) -> None:
    code = "from asyncdni.__main__ import main; raise SystemExit(main())"
    finished = site.execute([sys.executable, "-c", code, "train", "missing.toml"]).finished()
    assert finished == site.run("train", "missing.toml")


def test_commands_of_a_test_do_not_see_this_machine_s_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCDNI_DATA", str(tmp_path))
    with make_site(tmp_path) as site:
        code = "import os; print('ASYNCDNI_DATA' in os.environ)"
        assert site.python("-c", code).finished().out == "False\n"
