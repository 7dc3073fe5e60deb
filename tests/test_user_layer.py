"""A layer of the user's own, named as module:Class, through every command that runs it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from processes import TINY, Command, Site, make_site, until_recorded, weights

import asyncdni
from asyncdni.errors import AsyncDNIError
from asyncdni.launch.local import worker_command
from asyncdni.store.tensors import load_stage

MODULE = '''\
"""Scales each feature by a learned factor."""

import numpy as np


class Scale:
    def __init__(self, first: float = 1.0, fail_at: int = -1) -> None:
        self.first, self.fail_at, self.forwards = first, fail_at, 0
        self.params, self.grads, self.buffers, self.fresh = {}, {}, {}, True

    def output_shape(self, shape):
        return shape

    def build(self, shape, dtype, streams):
        self.params = {"factor": np.full(shape, self.first, dtype)}
        self.grads = {"factor": np.zeros(shape, dtype)}
        self.buffers = {"seen": np.array(0, np.int64)}  # without axes
        return shape

    def forward(self, x, slot):
        self.forwards += 1
        if self.forwards == self.fail_at:
            raise ValueError("the factor\\nis out of tune")
        slot["x"] = x
        self.buffers["seen"] += len(x)
        return x * self.params["factor"]

    def backward(self, grad_y, slot, *, learn, send):
        if learn:
            grad = (grad_y * slot["x"]).sum(axis=0)
            self.grads["factor"][...] = grad if self.fresh else self.grads["factor"] + grad
            self.fresh = False
        return grad_y * self.params["factor"] if send else None

    def evaluate(self, x):
        return x * self.params["factor"]


class Nothing:
    pass
'''
SCALED = TINY.replace('"sigmoid"]', '"sigmoid", { "mylayer:Scale" = 2.0 }]')


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        made.write("tiny.toml", SCALED)
        made.write("mylayer.py", MODULE)
        yield made


def test_it_learns_and_is_saved_evaluated_and_used(site: Site) -> None:
    finished = site.run("train", "tiny.toml", "--allow-import", "--out", "run")
    assert (finished.code, finished.wrong) == (0, [])
    hidden = load_stage(site.folder / "run" / "final", "hidden")
    factor, seen = hidden["2.factor"], hidden["2.seen"]
    assert seen.shape == () and seen.dtype == np.int64 and seen > 0
    assert factor.shape == (8,)
    assert (factor != 2.0).all()
    finished = site.run("evaluate", "run", "--allow-import")
    assert (finished.code, finished.wrong) == (0, [])
    site.run("evaluate", "run").refused("'mylayer:Scale'", "--allow-import")
    np.savez(site.folder / "in.npz", x=np.zeros((3, 6), np.float32))
    finished = site.run("predict", "run", "in.npz", "--out", "out.npz", "--allow-import")
    assert (finished.code, finished.wrong) == (0, [])


@pytest.mark.long
def test_its_numbers_do_not_depend_on_the_split(site: Site) -> None:
    args = ("train", "tiny.toml", "--allow-import", "--schedule", "locked", "--out")
    assert site.run(*args, "two").code == 0
    assert site.run(*args, "one", "--set", "run.split=[2]").code == 0
    assert weights(site.folder / "one") == weights(site.folder / "two")


@pytest.mark.parametrize("command", [["train"], ["coordinator", "--bind", "tcp://127.0.0.1:0"]])
def test_it_is_refused_without_allow_import(site: Site, command: list[str]) -> None:
    finished = site.call(*command, "tiny.toml", "--out", "run")
    finished.refused("stages[0] (hidden).layers[2]", "'mylayer:Scale'", "--allow-import")
    assert not (site.folder / "run").exists()


def test_a_worker_started_by_hand_refuses_it_without_allow_import(site: Site) -> None:
    """The coordinator's word is not enough: the code would run on the worker's machine."""
    coordinator, hidden = _by_hand(site)
    hidden.finished().refused("'mylayer:Scale'", "--allow-import")
    coordinator.finished().refused("worker hidden on ", "'mylayer:Scale'", "--allow-import")


def test_workers_started_by_hand_with_allow_import_run_it(site: Site) -> None:
    coordinator, hidden = _by_hand(site, "--allow-import")
    top = _worker(site, "top", "--allow-import")
    for command in (coordinator, hidden, top):
        finished = command.finished()
        assert (finished.code, finished.wrong) == (0, [])
    assert "hidden.safetensors" in weights(site.folder / "run")


def test_a_worker_with_a_changed_copy_of_the_file_ends_the_run_and_is_named(site: Site) -> None:
    site.write("elsewhere/mylayer.py", MODULE.replace("first: float = 1.0", "first: float = 3.0"))
    coordinator, hidden = _by_hand(site, "--allow-import")
    address = until_recorded(site.folder / "run", "bound")[0]["address"]
    until_recorded(site.folder / "run", "joined")  # so that the first worker hears of the end
    command = worker_command("top", address, allow_import=True)
    top = site.execute(["sh", "-c", 'cd elsewhere && exec "$@"', "sh", *command])
    for one in (coordinator, hidden, top):
        one.finished().refused(
            f"worker top on {socket.gethostname()} has another source of mylayer than the "
            "coordinator",
            "copy the same files to both hosts",
        )
    assert not (site.folder / "run").exists()


def test_a_worker_beats_while_it_imports_the_module(site: Site) -> None:
    """However long that takes, nobody takes it for dead."""
    check = """\
import sys
import threading

if "worker" in sys.argv and all(one.name != "heart" for one in threading.enumerate()):
    raise ImportError("no heart beats")
"""
    site.write("mylayer.py", MODULE + check)
    finished = site.run("train", "tiny.toml", "--allow-import", "--out", "run")
    assert (finished.code, finished.wrong) == (0, [])


def _by_hand(site: Site, *args: str) -> tuple[Command, Command]:
    """A coordinator that may import, and a worker for `hidden` with these arguments."""
    bind = ("--bind", "tcp://127.0.0.1:0")
    coordinator = site.start("coordinator", "tiny.toml", *bind, "--out", "run", "--allow-import")
    return coordinator, _worker(site, "hidden", *args)


def _worker(site: Site, stage: str, *args: str) -> Command:
    address = until_recorded(site.folder / "run", "bound")[0]["address"]
    return site.start("worker", "--stage", stage, "--coordinator", address, *args)


def test_an_error_in_it_is_one_line_for_the_user_and_a_traceback_in_the_log(site: Site) -> None:
    site.write("tiny.toml", SCALED.replace("2.0 }", "{ fail_at = 3 } }"))
    finished = site.run("train", "tiny.toml", "--allow-import", "--out", "run")
    finished.refused(
        "worker hidden failed: ValueError: the factor is out of tune",
        f"its log has the traceback: {socket.gethostname()}:",
        "/run/logs/hidden.log",
    )
    log = (site.folder / "run" / "logs" / "hidden.log").read_text()
    assert "Traceback (most recent call last)" in log
    assert 'mylayer.py", line' in log
    assert "in forward" in log


def test_an_error_in_it_carries_the_workers_traceback_in_python(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept on disk there, so the log is gone with the run."""
    file = site.write("tiny.toml", SCALED.replace("2.0 }", "{ fail_at = 3 } }"))
    monkeypatch.syspath_prepend(site.folder)
    monkeypatch.setenv("PYTHONPATH", str(site.folder))
    with pytest.raises(AsyncDNIError, match="worker hidden failed: ValueError") as raised:
        asyncdni.train(file, allow_import=True)
    (trace,) = raised.value.__notes__
    assert 'mylayer.py", line' in trace


MISTAKES = {
    "no module": ("yourlayer:Scale", ["can't import 'yourlayer'"]),
    "no class": ("mylayer:Scales", ["module mylayer has no 'Scales'"]),
    "a name of Python's": ("token:Scale", ["token.py", "give yours another name"]),
    "a script's": ("__main__:Scale", ["a worker is another program", '"FILE:Scale"']),
    "no layer": ("mylayer:Nothing", ["output_shape, build, forward, backward, evaluate"]),
    "no option": ("mylayer:Scale", ["no option 'last'", "first, fail_at"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_naming_it_is_refused(site: Site, case: str) -> None:
    name, words = MISTAKES[case]
    layer = f'{{ "{name}" = {{ last = 1 }} }}'
    site.write("tiny.toml", TINY.replace('"sigmoid"]', f'"sigmoid", {layer}]'))
    finished = site.run("train", "tiny.toml", "--allow-import", "--out", "run")
    finished.refused("stages[0] (hidden).layers[2]", *words)
    assert not (site.folder / "run").exists()


def test_the_console_script_finds_it_in_the_current_folder_too(site: Site) -> None:
    """`python -m` looks there by itself; a script's first place is its own folder."""
    script = site.write("bin/script.py", "from asyncdni.__main__ import main\nexit(main())\n")
    argv = ["train", "tiny.toml", "--allow-import", "--out", "run"]
    finished = site.python(script, *argv).finished()
    assert (finished.code, finished.wrong) == (0, [])


# --- whose Python it is that a worker runs in ----------------------------------------------------


def test_no_file_of_the_users_takes_the_place_of_another_module(site: Site) -> None:
    """Neither of Python's modules nor of those of packages; the layer's own is found."""
    for name in ("token", "types", "random", "tomllib", "msgpack", "numpy"):
        site.write(f"{name}.py", 'open("ran", "a").write(__name__)\nraise ImportError("no")\n')
    argv = [sys.executable, "-P", "-m", "asyncdni", "train", "tiny.toml", "--out", "run"]
    finished = site.execute([*argv, "--allow-import"]).finished()
    assert (finished.code, finished.wrong) == (0, [])
    assert not (site.folder / "ran").exists()


def test_a_worker_that_may_import_looks_exactly_where_its_parent_does(site: Site) -> None:
    site.write("mylayer.py", MODULE + "import sys\nprint('looks in', sys.path)\n")
    script = """\
import sys
sys.path.insert(1, "here")
import asyncdni
if __name__ == "__main__":
    asyncdni.train("tiny.toml", out="run", allow_import=True)
"""
    site.write("scripts/train.py", script)
    (site.folder / "mylayer.py").rename(site.folder / "scripts" / "mylayer.py")
    finished = site.python("scripts/train.py").finished()
    assert finished.code == 0, finished.err
    parents = finished.out.strip().replace("'here'", repr(str(site.folder / "here")))
    assert parents.startswith(f"looks in ['{site.folder}/scripts', '{site.folder}/here', ")
    assert parents in (site.folder / "run" / "logs" / "hidden.log").read_text().splitlines()


def test_a_script_that_trains_where_its_layer_is_imported_ends_with_a_line(site: Site) -> None:
    call = 'open("runs", "a").write("x")\n'
    call += 'import asyncdni\nasyncdni.train("tiny.toml", allow_import=True)\n'
    site.write("mylayer.py", MODULE + call)
    finished = site.python("mylayer.py").finished()
    assert finished.code == 1
    last = finished.err.splitlines()[-1]
    assert "module mylayer trains while it is imported" in last
    assert 'if __name__ == "__main__":' in last
    assert (site.folder / "runs").read_text() == "xx"  # as a script, and as a module: no more
