"""What is given as a file may be none; what is written is whole, and open to whom the user says."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from each import each

from asyncdni import config, experiment
from asyncdni.cli.common import new_folder
from asyncdni.data import download as transfer
from asyncdni.data import npz, text
from asyncdni.drivers.virtual.faults import _from_file
from asyncdni.errors import AsyncDNIError, CheckpointError, ConfigError, DataError
from asyncdni.files import LOCK, locked, open_file, read_file, replaced
from asyncdni.report.records import RecordFile
from asyncdni.report.traces import read_trace, trace_path
from asyncdni.store.checkpoint import read_state
from asyncdni.store.manifest import Manifest, read_manifest
from asyncdni.store.run import create_folder
from asyncdni.store.tensors import StoredStage, load_stage, write_atomically

NETWORK = """\
[data]
name = "digits"
[[stages]]
name = "top"
layers = [{ dense = 10 }]
loss = "cross_entropy"
"""


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def make_pipe(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@each(
    "make, words",
    [
        (make_pipe, "a pipe"),
        (make_socket, "a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (Path.mkdir, "Is a directory"),
    ],
)
def test_what_is_no_file_is_neither_read_nor_replaced(make: object, words: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        path = Path(short) / "x"
        make(path)  # type: ignore[operator]
        for opened in (open_file, read_file):
            with pytest.raises(OSError, match=words):
                opened(path)
        kind = stat.S_IFMT(os.stat(path).st_mode)
        with pytest.raises(CheckpointError, match=words):
            write_atomically(path, b"content")
        assert stat.S_IFMT(os.stat(path).st_mode) == kind
        assert [one.name for one in Path(short).iterdir()] == ["x"]


READERS = {
    "run.toml": experiment.load,
    "data.npz": lambda path: npz.describe(config.Npz(path=str(path))),
    "text.txt": text.read,
    "in.npz": lambda path: npz.read_one(path, ["x"]),
    "top.safetensors": lambda path: load_stage(path.parent, "top"),
    "init/top.safetensors": lambda path: StoredStage(path.parent, "top"),
    "cut/top.safetensors": lambda path: read_state(path.parent, ["top"], {}),
    "snapshots/top.0.safetensors": lambda path: read_state(path.parent, ["top"], None),
    "manifest.json": lambda path: read_manifest(path.parent, Manifest),
    "faults.toml": _from_file,
    "metrics.jsonl": RecordFile,
}


@each("name", READERS)
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(
    tmp_path: Path, name: str
) -> None:
    make_pipe(tmp_path / name)
    with pytest.raises(AsyncDNIError, match="it is a pipe, expected a file"):
        READERS[name](tmp_path / name)  # type: ignore[no-untyped-call]


def test_a_pipe_in_the_place_of_a_trace_is_refused(tmp_path: Path) -> None:
    make_pipe(trace_path(tmp_path, "top"))
    with pytest.raises(CheckpointError, match="it is a pipe"):
        read_trace(tmp_path, "top")


def test_a_file_is_as_open_as_the_umask_says_and_a_lock_is_not(tmp_path: Path) -> None:
    for mask, mode in ((0o077, 0o600), (0o022, 0o644), (0o002, 0o664)):
        with umask(mask):
            write_atomically(tmp_path / f"{mask}" / "file", b"content")
            transfer.write(tmp_path / f"{mask}" / "data", b"content")
            with locked(tmp_path):
                assert stat.S_IMODE((tmp_path / LOCK).stat().st_mode) & 0o077 == 0
        for path in (tmp_path / f"{mask}").iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_link_to_a_file_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("elsewhere")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == b"new"


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ValueError, match="half"), replaced(path) as file:
        file.write(b"new")
        raise ValueError("half")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_the_name_of_a_file_may_be_as_long_as_the_system_lets_it(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write_atomically(path, b"content")
    assert path.read_bytes() == b"content"


@each("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_an_experiment_file_may_begin_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "run.toml"
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path.write_bytes((mark + NETWORK.replace("\n", "\r\n")).encode(encoding))
    assert experiment.load(path).stages[0].name == "top"


# --- who comes first -----------------------------------------------------------------------------


def test_a_lock_that_an_older_version_left_open_to_others_is_taken_and_closed(
    tmp_path: Path,
) -> None:
    (tmp_path / LOCK).write_text("process 1 on here\n")
    (tmp_path / LOCK).chmod(0o644)
    with locked(tmp_path):
        assert stat.S_IMODE((tmp_path / LOCK).stat().st_mode) == 0o600
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on .* its end$"):
            locked(tmp_path).__enter__()
    assert not (tmp_path / LOCK).exists()


def test_a_lock_that_others_may_hold_says_how_to_get_rid_of_them(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("process 1 on here\n")
    with open(tmp_path / LOCK) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=r"another user holds its lock: remove .*lock$"):
            locked(tmp_path).__enter__()


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("text")
    (tmp_path / LOCK).symlink_to("precious")
    with pytest.raises(ConfigError, match="can't be written"):
        locked(tmp_path).__enter__()
    assert (tmp_path / "precious").read_text() == "text"


def test_a_new_folder_is_nobody_elses_and_goes_where_nothing_was_put_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another process makes one of that name just before."""
    real, taken = Path.mkdir, []

    def late(path: Path, *given: object, **options: object) -> None:
        if path.name in ("a", "a-2") and path.name not in taken:
            taken.append(path.name)
            real(path)
        real(path, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", late)
    with new_folder(tmp_path / "runs", "a") as first:
        (first / "file").touch()
        with new_folder(tmp_path / "runs", "a") as second:
            assert (first.name, second.name) == ("a-3", "a-4")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["a", "a-2", "a-3"]


def test_of_two_runs_that_begin_in_one_folder_in_the_same_moment_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = experiment.parse({"data": {"name": "digits"}, "stages": [{"layers": ["relu"]}]})
    first = create_folder(tmp_path / "run", chosen)
    before = (first / "experiment.toml").read_bytes()
    with monkeypatch.context() as patch:  # what the second has seen before the first was there
        patch.setattr(Path, "iterdir", lambda path: iter(()))
        with pytest.raises(ConfigError, match="the folder is not empty"):
            create_folder(tmp_path / "run", chosen)
    assert (first / "experiment.toml").read_bytes() == before


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(ConfigError, match=r"can't be made: .*--out"):
        new_folder(tmp_path / "runs", "a").__enter__()


def test_arrays_in_a_file_are_read_as_before(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((2, 3)))
    assert npz.read_one(tmp_path / "in.npz", ["x"]).shape == (2, 3)
    with pytest.raises(DataError, match="no such file"):
        npz.read_one(tmp_path / "none.npz", ["x"])
