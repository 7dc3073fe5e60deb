"""What a user may get wrong about sequences, texts, images and what is kept of a run: each ends in
one line and an exit code, whatever the command."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from each import each

import asyncdni
from asyncdni import experiment
from asyncdni.__main__ import _say_anything, main
from asyncdni.cli.train import leave
from asyncdni.data.cifar10 import FILES, IMAGE_SHAPE, RECORD_BYTES, TEST_FILE
from asyncdni.data.meta import Meta
from asyncdni.data.mnist import FILES as MNIST
from asyncdni.errors import ConfigError
from asyncdni.store.run import Result

STREAMS = """
[[stages]]
name = "recurrent"
layers = [{ lstm = { units = 3, future = {} } }]
[[stages]]
name = "top"
layers = [{ dense = 1 }]
loss = "sigmoid_cross_entropy"
[schedule]
name = "locked"
[run]
epochs = 1
[checkpoint]
every = 1
"""

MAPS = """
[[stages]]
name = "maps"
layers = [{ conv2d = { channels = 2, kernel = 3 } }, { max_pool = 2 }, "flatten"]
[[stages]]
name = "top"
layers = [{ dense = 10 }]
loss = "cross_entropy"
"""

COPY = '[data]\nname = "copy"\nlength = 4\nwindow = 3\nbatch_size = 4\nsequences = 2\n' + STREAMS

each_command = each("command", ["train", "simulate", "graph", "profile"])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that is all a command says before it fails."""
    capsys.readouterr()
    assert main([str(word) for word in words]) in (1, 2)
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert printed.out == "" and line.startswith("asyncdni: ")
    return line.removeprefix("asyncdni: ")


def refused_file(
    capsys: pytest.CaptureFixture[str], folder: Path, command: str, text: str, *sets: str
) -> str:
    file, out = folder / "given.toml", folder / "run"
    file.write_text(text)
    words = [word for one in sets for word in ("--set", one)]
    where = ["--out", out] if command == "train" else []
    line = refused(capsys, command, file, *words, *where)
    assert not out.exists()
    return line


# --- windows -------------------------------------------------------------------------------------


@each_command
@each(
    "data, expected",
    [
        ('name = "copy"\nlength = 4\nwindow = 10', "10 steps are more than the 9 of a sequence"),
        (
            'name = "repeat_copy"\nlength = 2\nrepeats = 2\nwindow = 8',
            "8 steps are more than the 7",
        ),
        (
            'name = "trigonometry"\npoints = 9\nwindow = 10',
            "10 steps are more than the data.points",
        ),
        (
            'name = "trigonometry"\ntest_points = 4',
            "5 steps are more than the data.test_points = 4",
        ),
    ],
)
def test_a_window_longer_than_the_sequence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, data: str, expected: str
) -> None:
    line = refused_file(capsys, tmp_path, command, f"[data]\n{data}\n{STREAMS}")
    assert line.startswith(f"data.window: {expected}")


# --- text ----------------------------------------------------------------------------------------

TEXTS = [
    (b"", "is empty; expected a text to learn from"),
    ("\ufeff".encode(), "is empty; expected"),
    (gzip.compress(b""), "is empty; expected"),
    (b"abc\xff", "byte 3 is 0xff, no UTF-8; expected a text file in UTF-8"),
    ("é".encode("latin-1") * 99, "byte 0 is 0xe9, no UTF-8"),
    (gzip.compress(b"abc\xff"), "byte 3 is 0xff, no UTF-8"),
    (gzip.compress(b"abc" * 99)[:-9], "damaged gzip file"),
    (b"abcabc", "too short: 6 characters leave 5 to train on"),
]


@each_command
@each("content, expected", TEXTS)
def test_a_file_that_is_no_text_or_too_little_of_it(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    content: bytes,
    expected: str,
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    line = refused_file(
        capsys, tmp_path, command, f'[data]\nname = "text"\npath = "text.txt"\n{STREAMS}'
    )
    assert line.startswith(f"{path}: {expected}")


def test_a_text_that_is_not_there_or_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f'[data]\nname = "text"\npath = "{tmp_path}/none"\n{STREAMS}'
    line = refused_file(capsys, tmp_path, "train", text)
    assert line.startswith(f"{tmp_path}/none: can't be read (No such file or directory)")
    (tmp_path / "none").mkdir()
    line = refused_file(capsys, tmp_path, "train", text)
    assert line.startswith(f"{tmp_path}/none: can't be read (Is a directory)")


# --- images --------------------------------------------------------------------------------------


def write_npz(path: Path, train: tuple[int, ...], test: tuple[int, ...]) -> None:
    y = np.arange(20) % 10
    np.savez(
        path, x_train=np.zeros((20, *train)), y_train=y, x_test=np.zeros((20, *test)), y_test=y
    )


@each_command
@each(
    "train, test, expected",
    [
        ((1, 8, 8), (1, 8, 9), "samples of x_train have shape (1, 8, 8) and those of x_test (1, 8"),
        ((64,), (64,), "a conv2d layer takes inputs of shape (C, H, W), not (64,)"),
        ((1, 2, 9), (1, 2, 9), "a conv2d layer has windows of 3 x 3, which do not fit into planes"),
        ((1, 3, 9), (1, 3, 9), "a max_pool layer has windows of 2 x 2, which do not fit"),
    ],
)
def test_images_of_the_wrong_size(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    train: tuple[int, ...],
    test: tuple[int, ...],
    expected: str,
) -> None:
    write_npz(tmp_path / "images.npz", train, test)
    text = f'[data]\nname = "npz"\npath = "images.npz"\n{MAPS}'
    assert expected in refused_file(capsys, tmp_path, command, text)


def test_pixels_where_planes_are_needed_and_planes_where_pixels_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused_file(capsys, tmp_path, "train", f'[data]\nname = "digits"\n{MAPS}')
    assert line.startswith("stages[0] (maps).layers[0]: a conv2d layer takes inputs of shape")
    text = f'[data]\nname = "digits"\nplanes = true\n{MAPS}'
    line = refused_file(capsys, tmp_path, "train", text, "stages.maps.layers=[{ dense = 8 }]")
    assert line.startswith("stages[0] (maps).layers[0]: a dense layer takes") and "28, 28" in line


def test_files_of_mnist_with_images_of_another_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    side = 32
    for file in MNIST:
        shape = (9, side, side)[: file.axes]
        header = bytes([0, 0, 8, file.axes]) + np.array(shape, ">u4").tobytes()
        (tmp_path / file.name).write_bytes(header + bytes(int(np.prod(shape))))
    text = f'[data]\nname = "mnist"\npath = "{tmp_path}"\nplanes = true\n{MAPS}'
    line = refused_file(capsys, tmp_path, "train", text)
    assert f"holds an array of shape (9, {side}, {side})" in line
    assert "train-images-idx3-ubyte" in line


@each_command
@each("size", [0, RECORD_BYTES - 1, 32 * 32 + 1])
def test_files_of_cifar10_with_images_of_another_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, size: int
) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes(bytes(2 * RECORD_BYTES))
    (tmp_path / TEST_FILE).write_bytes(bytes(size))
    text = f'[data]\nname = "cifar10"\npath = "{tmp_path}"\n{MAPS}'
    line = refused_file(capsys, tmp_path, command, text)
    image = " x ".join(map(str, IMAGE_SHAPE))
    assert line.startswith(f"{tmp_path / TEST_FILE}: has {size} bytes; expected a multiple of")
    assert f"{image} image" in line


# --- what is kept of a run -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, trained for real."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "copy.toml").write_text(COPY)
    assert main(["train", str(folder / "copy.toml"), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """To be spoilt."""
    yield Path(shutil.copytree(trained, tmp_path / "run"))


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "experiment.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("data.batch_size=8", "data.batch_size is 4 there and 8 here"),
        ("data.window=2", "data.window is 3 there and 2 here"),
        (
            "stages.recurrent.layers=[{ lstm = { units = 5, future = {} } }]",
            "units is 3 there and 5",
        ),
        ("stages.recurrent.layers=[{ rnn = 3 }]", "stages.recurrent.layers.0.lstm is"),
    ],
)
def test_resuming_with_states_of_another_shape(
    trained: Path, capsys: pytest.CaptureFixture[str], change: str, expected: str
) -> None:
    line = refused(capsys, "train", "--resume", trained, "--set", "run.epochs=2", "--set", change)
    assert line.startswith(f"--resume {trained}: ") and expected in line


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("batch_size = 4", "batch_size = 8", "data.batch_size: 4 in the checkpoint, 8 in the exp"),
        (
            "units = 3",
            "units = 5",
            "network.recurrent.layers[0].lstm.units: 3 in the checkpoint, 5",
        ),
        ("lstm", "rnn", "network.recurrent.layers[0].rnn: nothing in the checkpoint"),
    ],
)
def test_resuming_a_run_whose_file_was_changed(
    copied: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, expected: str
) -> None:
    edit(copied, old, new)
    line = refused(capsys, "train", "--resume", copied, "--set", "run.epochs=2")
    assert expected in line


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("units = 3", "units = 5", "of another experiment than"),
        ("batch_size = 4", "batch_size = 8", "its test_samples is "),
        ("window = 3", "window = 2", "its input_shape is (2, 3), expected (3, 3)"),
    ],
)
def test_using_a_run_whose_file_was_changed(
    copied: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, expected: str
) -> None:
    edit(copied, old, new)
    assert expected in refused(capsys, "evaluate", copied)


# --- surroundings --------------------------------------------------------------------------------


def test_a_current_folder_that_is_gone_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    (tmp_path / "run.toml").write_text(COPY)
    line = refused(capsys, "train", tmp_path / "run.toml", "--out", "run")
    assert "the current folder has been removed" in line


def test_a_file_that_is_not_there_is_not_taken_for_that(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise FileNotFoundError("a bug")

    monkeypatch.setattr("asyncdni.cli.train.chosen_run", missing)
    with pytest.raises(FileNotFoundError, match="a bug"):
        main(["train", "run.toml"])


def test_a_run_folder_whose_path_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(COPY)
    out = tmp_path / os.fsdecode(b"\xff")
    with pytest.raises(ConfigError, match="must be UTF-8"):
        asyncdni.train(tmp_path / "run.toml", out=out)
    assert not out.exists()


def test_what_the_output_has_no_characters_for_becomes_escapes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    _say_anything()
    print("20 \u00b5s, \udcff", flush=True)
    assert written.getvalue() == b"20 \\xb5s, \\udcff\n"


def test_a_json_file_that_is_none_is_refused_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(COPY)
    words = ["profile", tmp_path / "run.toml", "--json", "/dev/null"]
    assert "it is a device, expected a file" in refused(capsys, *words)


def test_pictures_that_can_not_be_drawn_are_said_and_end_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no fonts\nhere")

    monkeypatch.setattr("asyncdni.report.album.has_something_to_show", lambda run: True)
    monkeypatch.setattr("asyncdni.report.album.leave_samples", fail)
    chosen = experiment.parse({"data": {"name": "digits"}, "stages": [{"layers": ["relu"]}]})
    run = Result({}, {}, chosen, Meta((1,), "classes", 2, 1, 1))
    leave(run, allow_import=False, quiet=False)
    assert capsys.readouterr().out == "No pictures of the run: RuntimeError: no fonts | here\n"


def test_pictures_need_no_screen_whatever_matplotlib_is_told_of_one() -> None:
    pytest.importorskip("matplotlib")
    code = "from asyncdni.report.plots import styled\nwith styled(): pass\n"
    code += "import os; print(os.environ['MPLBACKEND'])"
    environment = {**os.environ, "MPLBACKEND": "nonsense"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("nonsense\n", "")
