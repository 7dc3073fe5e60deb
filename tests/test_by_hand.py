"""Runs whose coordinator and workers are started one by one, over tcp, in any order.

Every site asserts at its end that no process and no temporary file is left.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from processes import (
    ENDLESS,
    TINY,
    Command,
    Site,
    await_training,
    free_port,
    make_site,
    records,
    until,
    until_recorded,
    weights,
)
from wire import need_ipv6

from asyncdni import __version__
from asyncdni.launch.local import worker_command
from asyncdni.messages import PROTOCOL_VERSION, Hello
from asyncdni.wire.codec import encode

#: A name of this host in the sense of its neighbours.
NAME = "localhost"
LAUNCH = Path(__file__).parent.parent / "launch"
#: A protocol that no coordinator speaks yet.
OTHER_VERSION = """\
from asyncdni import messages
messages.PROTOCOL_VERSION += 1
from asyncdni.__main__ import main
raise SystemExit(main())
"""
#: A release of this package that no coordinator has.
OTHER_RELEASE = """\
import asyncdni
asyncdni.__version__ = "0.0.9"
from asyncdni.__main__ import main
raise SystemExit(main())
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        made.write("tiny.toml", TINY)
        yield made


def _coordinator(site: Site, *args: str, port: int = 0) -> Command:
    bind = f"tcp://127.0.0.1:{port}"
    return site.start("coordinator", "tiny.toml", "--bind", bind, "--out", "run", *args)


def _address(site: Site) -> str:
    """Where the coordinator listens."""
    (record,) = until_recorded(site.folder / "run", "bound")
    address: str = record["address"]
    return address


def _worker(site: Site, stage: str, address: str, *args: str) -> Command:
    return site.start("worker", "--stage", stage, "--coordinator", address, *args)


def _wait_until_joined(site: Site, *stages: str) -> None:
    until_recorded(site.folder / "run", "joined", len(stages))
    assert {one["stage"] for one in records(site.folder / "run", "joined")} == set(stages)


# --- a whole run ---------------------------------------------------------------------------------


def test_workers_in_any_order_give_the_weights_of_train_and_need_no_file(site: Site) -> None:
    """Some before the coordinator, from a folder without the experiment, named or counted."""
    text = TINY.replace('"synthetic"', '"locked"').replace("[run]", "[run]\nseed = 3")
    text = text.replace(
        'name = "top"', 'name = "middle"\nlayers = ["tanh"]\n[[stages]]\nname = "top"'
    )
    site.write("tiny.toml", text)
    assert site.call("train", "tiny.toml", "--out", "train").code == 0
    port = free_port()
    elsewhere = site.write("elsewhere/empty", "").parent

    def worker(stage: str) -> Command:
        command = worker_command(stage, f"tcp://127.0.0.1:{port}")
        return site.execute(["sh", "-c", 'cd "$0" && exec "$@"', str(elsewhere), *command])

    early = [worker("top"), worker("0")]
    coordinator = _coordinator(site, port=port)
    _wait_until_joined(site, "top", "hidden")
    (site.folder / "tiny.toml").unlink()
    late = worker("middle")
    for command in (coordinator, *early, late):
        finished = command.finished()
        assert (finished.code, finished.wrong) == (0, [])
    assert weights(site.folder / "run") == weights(site.folder / "train")


def test_the_command_lines_that_the_coordinator_shows_are_enough(site: Site) -> None:
    coordinator = _coordinator(site)

    def shown() -> list[list[str]] | None:
        whole = coordinator.said().rpartition("\n")[0]
        lines = [line.split() for line in whole.splitlines()]
        found = [line for line in lines if line[:2] == ["asyncdni", "worker"]]
        return found if len(found) == 2 else None

    for line in until(shown, "two command lines"):
        site.start(*line[1:])
    assert [command.finished().code for command in site.commands] == [0, 0, 0]


def test_a_run_without_a_folder_writes_nothing(site: Site) -> None:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    commands = [
        site.start("coordinator", "tiny.toml", "--bind", address),
        _worker(site, "top", address),
        _worker(site, "hidden", address),
    ]
    assert [command.finished().code for command in commands] == [0, 0, 0]
    assert [path.name for path in site.folder.iterdir()] == ["tiny.toml"]


@pytest.mark.long
def test_an_ipc_address_works_as_well_and_its_sockets_are_removed(site: Site) -> None:
    (site.temporary / "here").mkdir()
    address = f"ipc://{site.temporary}/here/coordinator"
    commands = [
        site.start("coordinator", "tiny.toml", "--bind", address),
        _worker(site, "top", address),
        _worker(site, "hidden", address),
    ]
    assert [command.finished().code for command in commands] == [0, 0, 0]
    (site.temporary / "here").rmdir()  # refused unless empty


@pytest.mark.long
def test_a_run_over_ipv6_with_keys_at_ports_of_a_range_and_by_other_names(site: Site) -> None:
    need_ipv6()
    assert site.call("keys", "new", "keys").code == 0
    port = free_port()
    flags = ["--keys", "keys"]
    at = [*flags, "--bind", f"tcp://[::]:{port}-{min(port + 99, 65535)}", "--advertise", "::1"]
    coordinator = site.start("coordinator", "tiny.toml", "--out", "run", *at)
    address = _address(site)
    assert address.startswith("tcp://[::1]:")
    # IPv4 comes in at [::] as well, and its neighbour knows this worker by a name.
    over_ipv4 = address.replace("[::1]", "127.0.0.1")
    top = _worker(site, "top", over_ipv4, *flags, "--ports", "20000-29999", "--advertise", NAME)
    hidden = _worker(site, "hidden", address, *flags)
    for command in (top, hidden, coordinator):
        finished = command.finished()
        assert (finished.code, finished.wrong) == (0, [])
    assert records(site.folder / "run", "lost") == []


def test_ports_that_can_t_be_are_refused(site: Site) -> None:
    both = ["--bind", "tcp://127.0.0.1:5555", "--ports", "5555-5600"]
    assert "not allowed with argument" in site.call("coordinator", "tiny.toml", *both).err
    wrong = site.call("coordinator", "tiny.toml", "--ports", "5600-5555", "--insecure")
    wrong.refused("--ports 5600-5555", "FIRST-LAST")


# --- workers that are not let in -----------------------------------------------------------------


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A coordinator that has a worker for `hidden` and waits for `top`; in the end it comes."""
    with make_site(tmp_path_factory.mktemp("waiting")) as site:
        site.write("tiny.toml", TINY)
        coordinator = _coordinator(site, "--quiet", "--set", "limits.startup_s=600")
        hidden = _worker(site, "hidden", _address(site))
        _wait_until_joined(site, "hidden")
        yield site
        assert records(site.folder / "run", "refused")  # and the run goes on as if nothing was
        top = _worker(site, "top", _address(site))
        for command in (coordinator, hidden, top):
            finished = command.finished()
            assert (finished.code, finished.wrong) == (0, [])


def test_a_second_worker_for_a_taken_stage_is_refused(waiting: Site) -> None:
    taken = records(waiting.folder / "run", "joined")[0]
    finished = _worker(waiting, "hidden", _address(waiting)).finished()
    finished.refused("stage hidden is taken", f"process {taken['pid']} on {taken['host']}")


def test_a_second_worker_that_counts_its_stage_is_refused(waiting: Site) -> None:
    _worker(waiting, "0", _address(waiting)).finished().refused("stage hidden is taken")


@pytest.mark.parametrize("stage", ["bottom", "2", "-1"])
def test_a_worker_for_an_unknown_stage_is_refused(waiting: Site, stage: str) -> None:
    command = waiting.start("worker", f"--stage={stage}", "--coordinator", _address(waiting))
    command.finished().refused(f"no stage '{stage}'", "known: hidden, top")


def test_a_worker_of_another_protocol_version_is_refused(waiting: Site) -> None:
    args = ["worker", "--stage", "top", "--coordinator", _address(waiting)]
    finished = waiting.execute([sys.executable, "-c", OTHER_VERSION, *args]).finished()
    finished.refused(
        f"protocol {PROTOCOL_VERSION + 1}",
        f"coordinator {PROTOCOL_VERSION}",
        "same version of asyncdni",
    )


def test_a_worker_of_another_release_is_refused(waiting: Site) -> None:
    args = ["worker", "--stage", "top", "--coordinator", _address(waiting)]
    finished = waiting.execute([sys.executable, "-c", OTHER_RELEASE, *args]).finished()
    finished.refused(
        f"worker top on {socket.gethostname()} has asyncdni 0.0.9, the coordinator {__version__}"
    )


def test_a_worker_without_a_coordinator_gives_up_after_its_timeout(site: Site) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    finished = _worker(site, "hidden", address, "--timeout", "0.3").finished()
    finished.refused("no coordinator answered", address, "0.3 s", "--timeout")


# --- ends ----------------------------------------------------------------------------------------


def test_ctrl_c_on_a_coordinator_that_waits_ends_it_and_the_workers_that_joined(
    site: Site,
) -> None:
    coordinator = _coordinator(site)
    hidden = _worker(site, "hidden", _address(site))
    _wait_until_joined(site, "hidden")
    coordinator.interrupt()
    finished = coordinator.finished()
    assert finished.code == 130
    finished.refused("interrupted; nothing had been learned yet")
    hidden.finished().refused("the run was called off: interrupted")


@pytest.mark.long
def test_a_worker_that_dies_in_its_start_up_is_missed_by_name(site: Site) -> None:
    """It dies before its Hello, so that nobody can know why; the one that joined leaves."""
    coordinator = _coordinator(site, "--set", "limits.startup_s=5")
    hidden = _worker(site, "hidden", _address(site))
    dying = site.execute(
        [sys.executable, "-c", "import asyncdni.drivers.real.process, os; os._exit(1)"]
    )
    assert dying.finished().code == 1
    coordinator.finished().refused(
        "no worker for top has joined within 5 s (limits.startup_s); to be started by: "
        "asyncdni worker --stage top --coordinator tcp://127.0.0.1:"
    )
    hidden.finished().refused("the run was called off: no worker for top")


def test_a_worker_that_fails_in_its_start_up_ends_the_run_with_its_words(site: Site) -> None:
    """It hosts the data, which its machine does not have."""
    site.write("mnist/README", "to be filled")
    changes = ["--set", "data.name=mnist", "--set", f"data.path={site.folder / 'mnist'}"]
    changes += ["--set", "stages.top.layers=[{dense=10}]", "--set", "stages.top.loss=cross_entropy"]
    site.write("tiny.toml", _without_addition(TINY))
    coordinator = _coordinator(site, *changes)
    hidden = _worker(site, "hidden", _address(site))
    hidden.finished().refused("MNIST is incomplete", "asyncdni data mnist")
    coordinator.finished().refused("MNIST is incomplete", "asyncdni data mnist")


def _without_addition(text: str) -> str:
    """Without the options that other data sets do not have."""
    options = ("bits", "examples", "test_examples")
    return "\n".join(line for line in text.splitlines() if not line.startswith(options)) + "\n"


@pytest.mark.long
def test_a_worker_that_is_killed_is_replaced_by_hand(site: Site) -> None:
    """The coordinator shows what to type; the run goes on with whoever comes."""
    args = ("--set", "run.epochs=800", "--set", "run.evaluate_every=800")
    coordinator = _coordinator(site, *args)
    top = _worker(site, "top", _address(site))
    hidden = _worker(site, "hidden", _address(site))
    pids = await_training(site.folder / "run")
    assert pids == {"hidden": hidden.pid, "top": top.pid}
    top.kill()
    assert top.finished().code == -signal.SIGKILL
    (waiting,) = until_recorded(site.folder / "run", "waiting")
    address = _address(site)
    assert waiting["command"] == f"asyncdni worker --stage top --coordinator {address}"
    again = site.start(*waiting["command"].split()[1:])
    for command in (coordinator, hidden, again):
        finished = command.finished()
        assert (finished.code, finished.wrong) == (0, [])
    (lost,) = records(site.folder / "run", "lost")
    assert f"worker top (process {top.pid} on " in lost["text"]
    assert "no sign of life" in lost["text"]
    assert f"waiting for top; start it: {waiting['command']}" in coordinator.said()


@pytest.mark.long
def test_without_a_folder_the_first_death_ends_the_run(site: Site) -> None:
    """There is nothing that anybody could be restored from."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    coordinator = site.start("coordinator", "tiny.toml", "--bind", address, *ENDLESS)
    top, hidden = _worker(site, "top", address), _worker(site, "hidden", address)
    until(lambda: "synthetic, 2 workers" in coordinator.said(), "the start")
    top.kill()
    said = coordinator.finished().refused(f"worker top (process {top.pid} on ", "no sign of life")
    hidden.finished().refused("worker hidden was stopped by its coordinator", said)


@pytest.mark.long
def test_no_worker_outlives_a_killed_coordinator(site: Site) -> None:
    coordinator = _coordinator(site, *ENDLESS, "--set", "limits.silence_s=0.3")
    commands = [_worker(site, stage, _address(site)) for stage in ("top", "hidden")]
    await_training(site.folder / "run")
    coordinator.kill()
    assert coordinator.finished().code == -signal.SIGKILL
    for command in commands:
        command.finished().refused("worker stops: nothing heard from tcp://127.0.0.1", "for 3 s")


@pytest.mark.long
def test_a_killed_coordinator_is_started_again_and_goes_on(site: Site) -> None:
    """With the worker that has waited for it, and a new one for the worker that has died too."""
    args = ("--set", "run.epochs=800", "--set", "run.evaluate_every=800")
    args += ("--set", "recovery.coordinator_s=60")
    coordinator = _coordinator(site, *args, "--set", "checkpoint.snapshot_every=20ms")
    address = _address(site)
    top, hidden = (_worker(site, stage, address) for stage in ("top", "hidden"))
    pids = await_training(site.folder / "run")
    for command in (coordinator, top):
        command.kill()
        command.finished()
    again = site.start("coordinator", "--resume", "run", "--bind", address)
    new = _worker(site, "top", address)
    for command in (again, hidden, new):
        finished = command.finished()
        assert (finished.code, finished.wrong) == (0, [])
    joined = {one["pid"]: one.get("again") for one in records(site.folder / "run", "joined")}
    assert joined == {pids["top"]: None, pids["hidden"]: True, new.pid: None}
    assert [one["restore"] for one in records(site.folder / "run", "round")] == ["keep"]


def test_ctrl_c_in_the_middle_saves_and_lets_workers_go(site: Site) -> None:
    coordinator = _coordinator(site, *ENDLESS)
    commands = [_worker(site, stage, _address(site)) for stage in ("top", "hidden")]
    await_training(site.folder / "run")
    coordinator.interrupt()
    finished = coordinator.finished()
    assert finished.code == 130
    finished.refused("interrupted after", str(site.folder / "run"))
    assert [command.finished().code for command in commands] == [0, 0]
    assert set(weights(site.folder / "run")) == {"hidden.safetensors", "top.safetensors"}


def test_a_peer_that_speaks_nonsense_is_told_of_once_and_recorded(site: Site) -> None:
    coordinator = _coordinator(site)
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.setsockopt(zmq.IDENTITY, b"who")
        stranger.connect(_address(site))
        stranger.send(b"nonsense")
        stranger.send(b"nonsense")
        hello = Hello(PROTOCOL_VERSION, "nobody", "tcp://127.0.0.1:1", 1, "here")
        stranger.send_multipart(encode(hello))  # heard after the nonsense, and answered
        until_recorded(site.folder / "run", "refused")
        (rejected,) = records(site.folder / "run", "rejected")
    assert rejected["peer"] == b"who".hex()
    assert "bad message" in rejected["text"]
    coordinator.interrupt()
    finished = coordinator.finished()
    assert finished.out.count(f"rejected a message (peer {rejected['peer']}): bad message") == 1


# --- the recipe ----------------------------------------------------------------------------------


def _recipe(site: Site, *args: str) -> Command:
    address = f"tcp://127.0.0.1:{free_port()}"
    script = ["sh", str(LAUNCH / "by-hand.sh"), address, "--out", "run", "--quiet", *args]
    return site.execute(script, ASYNCDNI=f"{sys.executable} -m asyncdni")


@pytest.mark.long
def test_the_recipe_trains_the_digits_with_a_command_for_each_process(site: Site) -> None:
    finished = _recipe(site, "--set", "run.epochs=1").finished()
    assert (finished.code, finished.wrong) == (0, [])
    stages = [one["stage"] for one in records(site.folder / "run", "joined")]
    assert sorted(stages) == ["classifier", "hidden1", "hidden2", "hidden3"]
    assert set(weights(site.folder / "run")) == {f"{stage}.safetensors" for stage in stages}


@pytest.mark.long
def test_ctrl_c_on_the_recipe_saves_and_leaves_nothing_behind(site: Site) -> None:
    command = _recipe(site, *ENDLESS)
    until_recorded(site.folder / "run", "report")
    command.interrupt()  # the whole group, as a terminal does
    finished = command.finished()
    assert finished.code == 130
    finished.refused("interrupted after", str(site.folder / "run"))
    assert len(weights(site.folder / "run")) == 4


@pytest.mark.long
def test_the_recipe_gives_up_with_its_coordinator(site: Site) -> None:
    """Workers that wait for a coordinator which refused its arguments are sent away."""
    finished = _recipe(site, "--set", "run.epochs=many").finished()
    assert finished.code == 2
    assert "run.epochs" in finished.err
    assert "Traceback" not in finished.err
    until(lambda: not site.processes(), "the end of all workers")
    assert os.listdir(site.folder) == ["tiny.toml"]
