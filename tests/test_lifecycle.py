"""How processes live and die: locked over real workers, Ctrl-C, SIGTERM, kill -9, bad starts.

Every site asserts at its end that no process and no temporary file is left.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import numpy as np
import pytest
from processes import (
    ENDLESS,
    TINY,
    Command,
    Site,
    await_training,
    make_site,
    records,
    until,
    until_recorded,
    weights,
)

from asyncdni import logs
from asyncdni.store.tensors import load_stage
from asyncdni.wire.address import remove_ownerless


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        made.write("tiny.toml", TINY)
        yield made


def _start_endless(site: Site, *args: str, **variables: str) -> tuple[Command, dict[str, int]]:
    """A run that goes on until it is stopped, in its middle; and its workers' process ids."""
    command = site.start("train", "tiny.toml", "--out", "run", *ENDLESS, *args, **variables)
    return command, await_training(site.folder / "run")


def _patch_workers(site: Site, code: str) -> dict[str, str]:
    """The environment in which each worker runs `code` before anything else."""
    guarded = "import sys\nif 'worker' in sys.orig_argv:\n" + indent(code, "    ")
    site.write("patch/sitecustomize.py", guarded)
    return {"PYTHONPATH": str(site.folder / "patch"), "ASYNCDNI_FORK": "0"}


# --- the same numbers, over however many processes -----------------------------------------------

FOUR = """\
[data]
name = "addition"
bits = 4
examples = 90
test_examples = 20
batch_size = 20

[[stages]]
name = "one"
layers = [{ dense = 12 }, "batch_norm", "relu"]

[[stages]]
name = "two"
layers = [{ dense = 10 }, "tanh"]

[[stages]]
name = "three"
layers = [{ dense = 11 }, "sigmoid"]

[[stages]]
name = "four"
layers = [{ dense = 4 }]
loss = "sigmoid_cross_entropy"

[schedule]
name = "locked"

[run]
epochs = 3
seed = 5
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Weights of the four stages after training in one process."""
    with make_site(tmp_path_factory.mktemp("alone")) as site:
        site.write("four.toml", FOUR)
        finished = site.call("train", "four.toml", "--out", "run", "--set", "run.split=[4]")
        assert finished.code == 0, finished
        assert len(records(site.folder / "run", "joined")) == 1
        return weights(site.folder / "run")


@pytest.mark.parametrize(
    "split",
    [
        [1, 2, 1],
        *(
            pytest.param(split, marks=pytest.mark.long)
            for split in ([1, 3], [2, 2], [2, 1, 1], [1, 1, 1, 1])
        ),
    ],
)
def test_locked_over_several_processes_gives_the_weights_of_one_to_the_last_bit(
    site: Site, alone: dict[str, bytes], split: list[int]
) -> None:
    site.write("four.toml", FOUR)
    finished = site.run("train", "four.toml", "--out", "run", "--set", f"run.split={split}")
    assert (finished.code, finished.err) == (0, "")
    assert len({one["pid"] for one in records(site.folder / "run", "joined")}) == len(split)
    assert weights(site.folder / "run") == alone


@pytest.mark.long
def test_two_runs_at_once_on_one_machine_do_not_meet(site: Site, alone: dict[str, bytes]) -> None:
    site.write("four.toml", FOUR)
    first = site.start("train", "four.toml", "--out", "first")
    second = site.start("train", "four.toml", "--out", "second", "--seed", "6")
    assert (first.finished().code, second.finished().code) == (0, 0)
    assert weights(site.folder / "first") == alone
    assert weights(site.folder / "second").keys() == alone.keys()
    assert weights(site.folder / "second") != alone


# --- Ctrl-C and SIGTERM --------------------------------------------------------------------------


def _assert_saved(site: Site) -> None:
    """What was learned is in the run folder, whole and finite."""
    for stage in ("hidden", "top"):
        arrays = load_stage(site.folder / "run" / "final", stage)
        assert set(arrays) == {"0.weight", "0.bias"}
        assert all(np.isfinite(array).all() for array in arrays.values())
    assert not (site.folder / "run" / "summary.json").exists()


@pytest.mark.parametrize("schedule", [pytest.param("locked", marks=pytest.mark.long), "synthetic"])
def test_ctrl_c_in_the_middle_of_training_saves_what_was_learned(site: Site, schedule: str) -> None:
    command, _ = _start_endless(site, "--schedule", schedule)
    command.interrupt()
    finished = command.finished()
    assert finished.code == 130
    run = site.folder / "run"
    finished.refused("interrupted after", f"all is kept in {run}: `asyncdni train --resume {run}`")
    assert [one["phase"] for one in records(run, "stopping")] == ["training", "saving"]
    _assert_saved(site)
    assert site.call("evaluate", "run").out.startswith("final weights: accuracy ")


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.long)]
)
def test_a_signal_to_all_processes_at_once_saves_what_was_learned(
    site: Site, number: signal.Signals
) -> None:
    """As schedulers, service managers and closed terminals send it; some of them twice."""
    command, pids = _start_endless(site)
    for pid in [*pids.values(), command.pid, command.pid]:
        os.kill(pid, number)
    finished = command.finished()
    assert finished.code == 128 + number
    finished.refused("interrupted after", str(site.folder / "run"))
    assert len(records(site.folder / "run", "joined")) == 2  # nobody had to be replaced
    _assert_saved(site)


@pytest.mark.parametrize(
    "out",
    ["gone", *(pytest.param(out, marks=pytest.mark.long) for out in ("/dev/full", "closed"))],
)
def test_a_run_whose_output_nobody_reads_goes_on_to_its_end(site: Site, out: str) -> None:
    write = {"gone": "| true", "/dev/full": "> /dev/full", "closed": ">&-"}[out]
    words = f"'{sys.executable}' -m asyncdni train tiny.toml --out run {write}"
    finished = site.execute(["bash", "-o", "pipefail", "-c", words]).finished()
    assert finished.code == 0
    assert (site.folder / "run" / "summary.json").is_file()
    said = "asyncdni: standard output can't be written any more"
    assert len(finished.err.splitlines()) == finished.err.startswith(said) == (out != "closed")


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_a_stop_before_the_workers_have_joined_ends_everything(
    site: Site, number: signal.Signals
) -> None:
    """The workers hang in their start-up."""
    variables = _patch_workers(site, "import signal\nprint('here', flush=True)\nsignal.pause()")
    command = site.start("train", "tiny.toml", "--out", "run", **variables)
    logs = [site.folder / "run" / "logs" / f"{name}.log" for name in ("hidden", "top")]
    until(lambda: all(log.exists() and log.read_text() for log in logs), "two workers")
    command.kill(number)
    finished = command.finished()
    assert finished.code == 128 + number
    finished.refused("interrupted")
    assert not (site.folder / "run" / "final").exists()


_INTERRUPTED_IMPORT = """\
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" has it ignored

class Finder:
    def find_spec(self, name, *_):
        if name == "numpy":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""


def test_ctrl_c_while_the_command_starts_is_one_line_too(site: Site) -> None:
    """It comes while NumPy is being imported."""
    site.write("patch/sitecustomize.py", _INTERRUPTED_IMPORT)
    finished = site.run("train", "tiny.toml", PYTHONPATH=str(site.folder / "patch"))
    assert (finished.code, finished.err) == (130, "asyncdni: interrupted\n")


def test_a_second_ctrl_c_ends_a_run_whose_workers_do_not_react(site: Site) -> None:
    command, pids = _start_endless(site, "--set", "limits.silence_s=60")
    for pid in pids.values():
        os.kill(pid, signal.SIGSTOP)
    command.interrupt()
    until_recorded(site.folder / "run", "stopping")
    until(lambda: command.interrupt() or command.has_ended(), "the end")  # impatiently
    finished = command.finished()
    assert finished.code == 130
    finished.refused("interrupted; saving was cut short", "has no checkpoint yet")


def test_weights_that_can_not_be_written_end_the_run_with_their_path(site: Site) -> None:
    command, _ = _start_endless(site)
    site.write("run/final", "a file where a folder is to be made")
    command.interrupt()
    finished = command.finished()
    finished.refused("can't write", str(site.folder / "run" / "final"))
    assert finished.code == 1


# --- workers that die ----------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["hidden", pytest.param("top", marks=pytest.mark.long)])
def test_a_worker_that_is_killed_is_named_with_its_signal_and_last_lines(
    site: Site, victim: str
) -> None:
    variables = _patch_workers(site, "print('almost out of memory', flush=True)")
    command, pids = _start_endless(site, "--set", "recovery.restarts=0", **variables)
    os.kill(pids[victim], signal.SIGKILL)
    line = command.finished().refused(f"worker {victim} died with signal 9")
    assert line.endswith("its last lines: almost out of memory")


def test_a_worker_that_dies_in_its_start_up_is_named_with_its_exit_code(site: Site) -> None:
    code = "import os\nprint('no such library', flush=True)\nos._exit(3)"
    finished = site.run("train", "tiny.toml", "--out", "run", **_patch_workers(site, code))
    finished.refused("died with exit code 3", "its last lines: no such library")


@pytest.mark.long
def test_a_worker_that_is_signalled_again_and_again_ends_and_is_replaced(site: Site) -> None:
    """The first signal it leaves to its coordinator."""
    command, pids = _start_endless(site)

    def has_ended() -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids["top"], signal.SIGTERM)
        return bool(records(site.folder / "run", "lost"))

    until(has_ended, "the end of worker top")
    until_recorded(site.folder / "run", "back")
    command.interrupt()
    assert command.finished().code == 130
    _assert_saved(site)


def test_a_worker_that_hangs_is_named_with_its_process(site: Site) -> None:
    command, pids = _start_endless(site, "--set", "recovery.restarts=0")
    os.kill(pids["hidden"], signal.SIGSTOP)
    command.finished().refused(f"worker hidden (process {pids['hidden']} on ", "no sign of life")


def test_workers_that_never_join_end_the_run_after_the_limit(site: Site) -> None:
    variables = _patch_workers(site, "import signal\nsignal.pause()")
    limits = ("--set", "limits.startup_s=0.5", "--set", "recovery.restarts=0")
    finished = site.run("train", "tiny.toml", *limits, **variables)
    finished.refused("no worker for hidden, top has joined within 0.5 s", "limits.startup_s")


@pytest.mark.long
def test_a_worker_that_hangs_before_its_first_word_is_replaced(site: Site) -> None:
    """In an import, or on a disk that does not answer: its process lives and says nothing."""
    flag = site.folder / "hung"
    code = (
        "import os, pathlib, signal, sys\n"
        "if 'worker' in sys.orig_argv and 'top' in sys.orig_argv:\n"
        f"    flag = pathlib.Path({str(flag)!r})\n"
        "    if not flag.exists():\n"
        "        flag.touch()\n"
        "        signal.pause()\n"
    )
    site.write("patch/sitecustomize.py", code)
    finished = site.run(
        *("train", "tiny.toml", "--out", "run", "--set", "limits.startup_s=8"),
        PYTHONPATH=str(site.folder / "patch"),
        ASYNCDNI_FORK="0",  # each process of a worker runs the patch
    )
    assert (finished.code, finished.err) == (0, "")
    lost = records(site.folder / "run", "lost")
    assert "worker top has not joined within 8 s (limits.startup_s)" in {r["text"] for r in lost}


# --- a coordinator that dies ---------------------------------------------------------------------


def test_no_worker_outlives_a_killed_train(site: Site) -> None:
    command, pids = _start_endless(site)
    assert set(pids.values()) < set(site.processes())
    command.kill()
    assert command.finished().code == -signal.SIGKILL
    until(lambda: not site.processes(), "the end of all workers")
    for stage in pids:
        log = (site.folder / "run" / "logs" / f"{stage}.log").read_text()
        stops = f"worker stops: its parent process {command.pid} is gone"
        assert logs.parsed(log.splitlines()[-1]) == (logging.ERROR, stops)
    _clear(site)


#: Goes on when its coordinator has been stopped, so that no Hello is ever answered.
_AWAIT_STOPPED_PARENT = """\
import os, pathlib, time
stat = pathlib.Path(f"/proc/{os.getppid()}/stat")
while stat.read_text().rpartition(")")[2].split()[0] != "T":
    time.sleep(0.01)
"""


def test_no_worker_outlives_a_train_killed_before_it_let_them_in(site: Site) -> None:
    variables = _patch_workers(site, _AWAIT_STOPPED_PARENT)
    command = site.start("train", "tiny.toml", "--out", "run", **variables)
    until(lambda: len(site.processes()) == 3, "two workers")
    command.kill(signal.SIGSTOP)
    until(lambda: len(list(site.temporary.glob("*/w*"))) == 2, "two workers' sockets")
    command.kill()
    assert command.finished().code == -signal.SIGKILL
    until(lambda: not site.processes(), "the end of all workers")
    assert not records(site.folder / "run", "joined")
    _clear(site)


def _clear(site: Site) -> None:
    """The workers have removed its folder of sockets; if they had no time, the next run does."""
    for folder in site.temporary.iterdir():
        remove_ownerless(folder)
    site.empty()


def test_a_finished_run_leaves_nothing_but_its_folder(site: Site) -> None:
    finished = site.run("train", "tiny.toml", "--out", "run")
    assert (finished.code, finished.err) == (0, "")
    site.empty()
    assert sorted(path.name for path in site.folder.iterdir()) == ["run", "tiny.toml"]
    names = {str(p.relative_to(site.folder / "run")) for p in (site.folder / "run").rglob("*")}
    assert {"summary.json", "final/top.safetensors", "logs/top.log"} < names
    assert not [name for name in names if Path(name).name.startswith(".")]
