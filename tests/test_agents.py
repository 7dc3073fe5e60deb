"""Agents and their coordinator, over real sockets; their workers are no processes."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from each import each
from networks import chain, design
from processes import free_port, until

from asyncdni import config, experiment
from asyncdni.__main__ import main
from asyncdni.cluster import agent as agent_module
from asyncdni.cluster import keeper as keeper_module
from asyncdni.cluster import rendezvous as rendezvous_module
from asyncdni.cluster.agent import Means, serve
from asyncdni.cluster.elastic import Elastic, Host
from asyncdni.cluster.engines import Place
from asyncdni.cluster.keeper import Keeper
from asyncdni.cluster.lead import digest
from asyncdni.cluster.rendezvous import Meeting, Rendezvous, Work
from asyncdni.cluster.ssh import _PART, Connections, Line, receive_keys
from asyncdni.cluster.worker_logs import LogSender
from asyncdni.core.liveness import Sight
from asyncdni.errors import AsyncDNIError, CheckpointError, ConfigError, LaunchError
from asyncdni.messages import (
    PART_BYTES,
    PROTOCOL_VERSION,
    Beat,
    Dismiss,
    Ended,
    Engage,
    Enrol,
    Enrolled,
    Introduce,
    Message,
    Part,
    Refused,
    Taken,
)
from asyncdni.plan.sizes import worker_operations
from asyncdni.store.resume import continued_experiment
from asyncdni.store.run import create_folder
from asyncdni.wire.agent import AgentTransport
from asyncdni.wire.curve import load_keys, new_keys

DIGEST = "5" * 64
MEETING = Meeting.at("tcp://127.0.0.1:0")
#: Two workers for the agents of ranks 1 and 2; nothing for rank 0, which coordinates.
WORK = Work(
    placement={"a": 1, "b": 2},
    needs={"a": 1, "b": 1},
    coordinator="tcp://h:1",
    folder="/run",
    threads=3,
    silence_s=60.0,
    startup_s=60.0,
    commands={},
)
WAITING = "and the workers wait for it"
Kind = TypeVar("Kind", bound=Message)


class Scene:
    """A coordinator of three ranks, and the agents that have come."""

    def __init__(self, **changes: Any) -> None:
        self._closed = False
        self.rendezvous = Rendezvous(MEETING, 3, DIGEST, None)
        self.rendezvous.begin(replace(WORK, **changes), None)
        self.ended: list[tuple[str, int, str]] = []
        self.agents: list[AgentTransport] = []

    def agent(self, rank: int, **changes: Any) -> Agent:
        transport = AgentTransport(self.rendezvous.address)
        self.agents.append(transport)
        enrol = Enrol(
            PROTOCOL_VERSION, rank, 3, DIGEST, pid=10 + rank, host="h", cores=2, memory_bytes=0
        )
        return Agent(self, transport, enrol, **changes)

    def close(self, error: BaseException | None = None, *, heard: bool = False) -> None:
        """End the run with `error`, once; nobody who has not come is waited for, and the ends of
        workers only where they are `heard`."""
        if not self._closed:
            self._closed = True
            self.rendezvous._turned_away.update(range(3))
            if not heard:
                for one in self.rendezvous._agents.values():
                    one.running.clear()
            self.rendezvous.__exit__(None, error, None)


class Agent:
    """An agent, driven by hand."""

    def __init__(
        self, scene: Scene, transport: AgentTransport, enrol: Enrol, **changes: Any
    ) -> None:
        self._scene = scene
        self._unread: list[Message] = []
        self._stays = False
        self.transport = transport
        fields = {name: getattr(enrol, name) for name in enrol.__struct_fields__}
        transport.send(Enrol(**{**fields, **changes}))

    def stays(self) -> None:
        """Beat from now on, whenever something is waited for."""
        self._stays = True

    def gets(self, kind: type[Kind]) -> Kind:
        """Wait for the next message, which must be of this kind."""

        def next_one() -> Message | None:
            if self._stays:
                self.transport.send(Beat())
            self._unread += self.transport.receive(0.001)
            self._scene.ended += self._scene.rendezvous.exited()
            return self._unread.pop(0) if self._unread else None

        found = until(next_one, kind.__name__)
        assert isinstance(found, kind), found
        return found


@pytest.fixture
def scenes() -> Iterator[Callable[..., Scene]]:
    made: list[Scene] = []

    def make(**changes: Any) -> Scene:
        made.append(Scene(**changes))
        return made[-1]

    yield make
    for scene in made:
        for agent in scene.agents:
            agent.close(0)
        scene.close()


def test_an_agent_starts_its_workers_and_tells_of_their_ends(
    scenes: Callable[..., Scene], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "asyncdni")
    scene = scenes()
    agent = scene.agent(1)
    enrolled = agent.gets(Enrolled)
    assert enrolled == Enrolled(["a"], "tcp://h:1", "/run", threads=3, silence_s=60.0)
    assert agent.gets(Engage) == Engage("a")
    assert "rank 1 on h" in caplog.messages[-1] and caplog.messages[-1].endswith(": a")
    agent.transport.send(Ended("b", -9, "of another's"))
    agent.transport.send(Ended("a", 3, "one | two"))
    until(lambda: scene.ended or scene.ended.extend(scene.rendezvous.exited()), "its end")
    assert scene.ended == [("a", 3, "one | two")]
    assert scene.rendezvous.last_lines("a") == "one | two"
    assert scene.rendezvous.look("a") is Sight.UNSEEN
    scene.rendezvous.restart("a")
    assert agent.gets(Engage) == Engage("a")


def test_what_workers_elsewhere_print_reaches_the_folder_of_the_run(
    scenes: Callable[..., Scene], tmp_path: Path
) -> None:
    """Also what comes after the end of the run, until the agent tells of its workers' ends; and a
    worker that hangs there is told of with the last lines of its present process."""
    scene = scenes(folder=str(tmp_path), silence_s=0.0)
    agent = scene.agent(1)
    agent.gets(Enrolled)
    agent.gets(Engage)

    def part(path: str, data: bytes) -> Part:
        return Part(0, path, 0, len(data), data)

    agent.transport.send(part("logs/a.log", b"asyncdni: warning: of the first\n"))
    assert agent.gets(Taken) == Taken(0, "logs/a.log", 32)
    scene.rendezvous.restart("a")
    agent.gets(Engage)
    assert scene.rendezvous.last_lines("a") == ""
    agent.transport.send(part("logs/../evil.log", b"x"))
    agent.gets(Taken)
    agent.transport.send(part("logs/a.log", b"it hangs\n"))
    agent.gets(Taken)
    assert scene.rendezvous.last_lines("a") == "it hangs"
    agent.transport.send(part("logs/a.log", b"the last line\n"))
    agent.transport.send(Ended("a", 0, ""))
    scene.close(heard=True)
    (log,) = (path for path in tmp_path.rglob("*") if path.is_file())
    said = ["asyncdni: warning: of the first", "it hangs", "the last line"]
    assert log.read_text().splitlines() == said


def test_a_run_settles_once_the_last_lines_of_workers_elsewhere_are_there(
    scenes: Callable[..., Scene], tmp_path: Path
) -> None:
    """Before its agents are told that it is over: the copy at `run.store` is made then."""
    scene = scenes(folder=str(tmp_path))
    agent = scene.agent(1)
    agent.gets(Enrolled)
    agent.gets(Engage)
    settling = threading.Thread(target=scene.rendezvous.settle)
    settling.start()
    agent.transport.send(Part(0, "logs/a.log", 0, 9, b"last line"))
    assert until(lambda: agent.transport.receive(0.1), "what is taken") == [
        Taken(0, "logs/a.log", 9)
    ]
    assert settling.is_alive()
    agent.transport.send(Ended("a", 0, ""))
    settling.join()
    assert (tmp_path / "logs" / "a.log").read_bytes() == b"last line"


def test_a_log_is_sent_as_it_grows_and_no_faster_than_it_is_taken(tmp_path: Path) -> None:
    sent: list[Part] = []
    sender = LogSender(tmp_path, sent.append)
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "a.log"
    log.write_bytes(os.urandom(5 * PART_BYTES) + b"end")
    for parts in (4, 4):
        assert not sender.look() and len(sent) == parts
    sender.taken(Taken(0, "logs/a.log", sent[0].size))
    assert not sender.look() and len(sent) == 5
    sender.begin_again()  # another coordinator: what nobody has taken counts as lost
    assert not sender.look() and sent[1] == sent[5]
    while not sender.look():
        sender.taken(Taken(0, "logs/a.log", sent[-1].size))
    assert b"".join(part.data for part in [sent[0], *sent[5:]]) == log.read_bytes()


@each(
    "error, expected",
    [
        (None, Dismiss(0, "")),
        (ConfigError("why"), Dismiss(2, "the run has ended: why")),
        (KeyboardInterrupt(), Dismiss(130, "the run has ended: KeyboardInterrupt")),
        (RuntimeError("x"), Dismiss(1, "the run has ended: RuntimeError")),
    ],
)
def test_agents_leave_with_the_exit_code_of_the_run(
    scenes: Callable[..., Scene], error: BaseException | None, expected: Dismiss
) -> None:
    scene = scenes()
    agent = scene.agent(1)
    agent.gets(Enrolled)
    agent.gets(Engage)
    scene.close(error)
    assert until(lambda: agent.transport.receive(0.1), "the end") == [expected]


@each(
    "changes, words",
    [
        ({"digest": "6" * 64}, "rank 1 on h was started with another experiment (sha256 6666"),
        ({"ranks": 2}, "rank 1 on h is one of 2 ranks, the coordinator has 3"),
        ({"rank": 0}, "rank 0 on h is an agent, but that rank coordinates the run"),
        ({"protocol": 0}, "rank 1 on h speaks protocol 0"),
    ],
)
def test_ranks_that_do_not_agree_are_refused_and_end_the_run(
    scenes: Callable[..., Scene], changes: dict[str, Any], words: str
) -> None:
    scene = scenes()
    agent = scene.agent(**{"rank": 1, **changes})
    with pytest.raises(ConfigError) as ended:
        agent.gets(Refused)
    assert words in str(ended.value)
    (refused,) = until(lambda: agent.transport.receive(0.1), "a refusal")
    assert isinstance(refused, Refused) and words in refused.text


def test_an_agent_without_a_file_may_take_part(scenes: Callable[..., Scene]) -> None:
    scenes().agent(1, digest="").gets(Enrolled)


def test_a_rank_is_taken_for_as_long_as_its_agent_beats(scenes: Callable[..., Scene]) -> None:
    scene = scenes()
    first = scene.agent(1)
    first.gets(Enrolled)
    second = scene.agent(1, pid=99)
    until(lambda: scene.rendezvous.exited() or scene.rendezvous._late, "the second one")
    first.transport.send(Beat())
    assert "rank 1 is taken by process 11 on h" in second.gets(Refused).text
    first.gets(Engage)


def test_an_agent_comes_back_after_its_death(
    scenes: Callable[..., Scene], caplog: pytest.LogCaptureFixture
) -> None:
    """The worker of which nobody knows yet that it has died with its agent is told of; the one
    whose start was lost with the agent is started at once."""
    scene = scenes(placement={"a": 1, "b": 1}, silence_s=0.0)
    first = scene.agent(1)
    for kind in (Enrolled, Engage, Engage):
        first.gets(kind)
    first.transport.close(0)
    scene.rendezvous.restart("b")
    assert caplog.messages[-1].endswith("b is started there once its agent is back")
    second = scene.agent(1, pid=99)
    second.gets(Enrolled)
    assert second.gets(Engage) == Engage("b")
    scene.ended += scene.rendezvous.exited()
    assert scene.ended == [("a", -9, "its agent on h has ended")]


def test_an_agent_of_an_earlier_coordinator_is_taken_back_with_the_workers_that_live(
    scenes: Callable[..., Scene],
) -> None:
    """It enrols when it is asked to; a word more of that makes no difference."""
    scene = scenes(placement={"a": 1, "b": 1}, coordinator_s=60.0)
    agent = scene.agent(1, running=["a"])
    assert agent.gets(Enrolled).coordinator_s == 60.0
    assert agent.gets(Engage) == Engage("b")
    stranger = AgentTransport(scene.rendezvous.address)
    scene.agents.append(stranger)
    stranger.send(Beat())
    asked = until(lambda: scene.rendezvous.exited() or stranger.receive(0.001), "a question")
    assert asked == [Introduce()]


def test_machines_are_known_before_anything_is_placed() -> None:
    """Those of agents that an earlier coordinator has left behind too, with what lives there."""
    with Rendezvous(MEETING, 2, DIGEST, None) as rendezvous:
        agent = AgentTransport(rendezvous.address)
        enrol = Enrol(PROTOCOL_VERSION, 1, 2, DIGEST, 11, "h", 6, 2**30, ["b"], gpus=2)

        def enrols() -> None:
            agent.send(Beat())
            until(lambda: agent.receive(0.1) == [Introduce()], "a question")
            agent.send(enrol)

        thread = threading.Thread(target=enrols)
        thread.start()
        assert rendezvous.gather(60.0, takes_back=True) == {1: Host(6, 2**30, 2)}
        thread.join()
        assert rendezvous.running() == {"b": 1}
        rendezvous.begin(replace(WORK, placement={"a": 1, "b": 1}), None)
        sent: list[Message] = []

        def told() -> bool:
            sent.extend(agent.receive(0.1))
            return len(sent) == 2

        until(told, "what it is to do")
        assert isinstance(sent[0], Enrolled) and sent[1] == Engage("a")
        rendezvous._agents[1].running.clear()
        agent.close(0)


def test_a_coordinator_is_kept_going_until_it_has_died_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own end is that of the run, with its exit code; so is a signal that was handed on."""
    monkeypatch.setattr(keeper_module, "_WORDS_S", 0.0)
    dies = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    often = pytest.raises(LaunchError, match=r"signal 9, 2 times in a row within 60 s")
    with Keeper(dies, "", tmp_path, 1, 60.0) as keeper, often:
        until(keeper.watch, "the last death")
    assert caplog.messages == [
        "the coordinator was killed by signal 9; it is started again, " + WAITING
    ]
    with Keeper([sys.executable, "-c", "exit(3)"], "", tmp_path, 1, 60.0) as keeper:
        assert until(keeper.watch, "its end") == 3
    with Keeper(["sleep", "60"], "", tmp_path, 1, 60.0) as keeper:
        keeper.signal(signal.SIGTERM)
        assert until(keeper.watch, "its end") == 128 + signal.SIGTERM


def test_a_coordinator_may_die_as_often_as_the_run_gets_on(tmp_path: Path) -> None:
    """Not where workers learn from the same batches again and again."""
    records = tmp_path / "metrics.jsonl"
    code = """
import os, signal, sys
line = '{"kind": "report", "time_s": 1, "stage": "a", "values": {"batches": %d, "missed": 1}}'
with open(sys.argv[1], "a") as file:
    print(line % min(sum(1 for _ in open(sys.argv[1])), 5), file=file)
os.kill(os.getpid(), signal.SIGKILL)
"""
    records.touch()
    dies = [sys.executable, "-c", code, str(records)]
    often = pytest.raises(LaunchError, match=r"3 times in a row .* no batch learned in between")
    with Keeper(dies, "", tmp_path, 2, 60.0) as keeper, often:
        until(keeper.watch, "the last death")
    assert len(records.read_text().splitlines()) == 6 + 2


def test_workers_of_an_agent_that_has_left_are_taken_over(scenes: Callable[..., Scene]) -> None:
    """The one whose death nobody knows of yet is told of, and started when that is asked for; the
    one whose start can't have been heard is started at once."""
    home = {"a": 1, "b": 1}
    elastic = Elastic(config.Elastic(away_s=0.05), home, {"a": 2.0, "b": 1.0}, {"a": 1, "b": 1})
    scene = scenes(placement=home, elastic=elastic)
    first = scene.agent(1)
    for kind in (Enrolled, Engage, Engage):
        first.gets(kind)
    first.transport.close(0)
    scene.rendezvous.restart("b")
    other = scene.agent(2)
    other.gets(Enrolled)
    other.stays()
    assert other.gets(Engage) == Engage("b")
    ((name, code, text),) = until(lambda: scene.ended, "the end of a")
    assert (name, code) == ("a", -9) and text.endswith("rank 2 takes over a")
    scene.rendezvous.restart("a")
    assert other.gets(Engage) == Engage("a")


def test_agents_that_do_not_come_are_named(scenes: Callable[..., Scene]) -> None:
    scene = scenes(startup_s=-1.0)
    with pytest.raises(LaunchError, match=r"no agent of ranks 1, 2 has come to tcp://127\.0\.0\.1"):
        scene.rendezvous.exited()


def test_hosts_that_are_awaited_are_named_where_they_are_known(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "asyncdni")
    monkeypatch.setattr(rendezvous_module, "_NOTE_S", -1.0)
    with Rendezvous(MEETING, 3, DIGEST, None, hosts=("n1", "n2", "n3")) as rendezvous:
        rendezvous.begin(WORK, None)
        rendezvous.exited()
        rendezvous._turned_away.update(range(3))
    assert "waiting for the agents of ranks 1 on n2, 2 on n3 at tcp" in caplog.text


def test_a_machine_without_the_memory_for_its_workers_is_refused(
    scenes: Callable[..., Scene],
) -> None:
    scene = scenes(needs={"a": 2**33, "b": 1})
    with pytest.raises(ConfigError, match=r"rank 1 on h has 1\.0 GiB of memory, .* 8\.0 GiB"):
        scene.agent(1, memory_bytes=2**30).gets(Engage)


# --- the agent's side ----------------------------------------------------------------------------


def served(place: Place, **means: Any) -> Callable[[], BaseException | None]:
    """Be an agent in a thread; the result waits for its end, and returns what it has raised."""
    raised: list[BaseException] = []

    def target() -> None:
        try:
            serve(place, DIGEST, Means(**means))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()

    def ended() -> BaseException | None:
        thread.join()
        return raised[0] if raised else None

    return ended


def test_an_agent_leaves_with_what_the_coordinator_says(
    scenes: Callable[..., Scene], tmp_path: Path
) -> None:
    scene = scenes(placement={}, folder=str(tmp_path))
    place = Place("asyncdni", 2, 3, scene.rendezvous.address)
    end = served(place)
    until(lambda: scene.rendezvous.exited() or 2 in scene.rendezvous._agents, "the agent")
    scene.close(CheckpointError("a full disk"))
    error = end()
    assert isinstance(error, AsyncDNIError) and error.exit_code == 1
    assert str(error) == "rank 2 leaves: the run has ended: a full disk"


def test_agents_that_wait_for_a_coordinator_learn_why_it_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before it listens; and those that have lived on, which do not enrol, by an answer to their
    beats."""
    address = f"tcp://127.0.0.1:{free_port()}"
    end = served(Place("asyncdni", 1, 2, address))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "COORDINATOR": address}.items():
        monkeypatch.setenv(f"ASYNCDNI_{name}", value)
    assert main(["run", "recipe:digits", "--set", "run.epochs=-1"]) == 2
    assert "run.epochs" in capsys.readouterr().err
    assert str(end()).startswith("rank 1 leaves: the run has ended: run.epochs")
    agents = []
    with pytest.raises(ConfigError), Rendezvous(MEETING, 2, DIGEST, None) as rendezvous:
        agents.append(AgentTransport(rendezvous.address))
        agents[0].send(Beat())
        raise ConfigError("the folder has another run")
    (dismissed,) = until(lambda: agents[0].receive(0.1), "the end")
    agents[0].close(0)
    assert dismissed == Dismiss(2, "the run has ended: the folder has another run")


@pytest.mark.parametrize("has_keys", [True, False])
def test_agents_do_not_wait_for_a_coordinator_whose_keys_can_not_be_used(
    has_keys: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those with keys can't hear why. Strangers hear no path of its machine."""
    monkeypatch.setattr(rendezvous_module, "_WAITING_S", 1.5)
    new_keys(tmp_path / "keys")
    address = f"tcp://127.0.0.1:{free_port()}"
    keys = load_keys(tmp_path / "keys") if has_keys else None
    end = served(Place("asyncdni", 1, 2, address), keys=keys)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "COORDINATOR": address}.items():
        monkeypatch.setenv(f"ASYNCDNI_{name}", value)
    if has_keys:
        (tmp_path / "keys" / "coordinator.key").unlink()
    folder = "keys" if has_keys else "nowhere"
    assert main(["run", "recipe:digits", "--keys", str(tmp_path / folder)]) == 2
    said = "coordinator.key" if has_keys else "can't read keys in"
    assert said in capsys.readouterr().err
    told = "uses no keys" if has_keys else "the run has ended: rank 0 has no keys that it can use"
    assert told in str(end())


def test_a_port_of_the_coordinator_that_is_closed_on_the_way_is_named(
    scenes: Callable[..., Scene],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its agents' port is told of, since rank 0 may be late; that of its workers ends the run."""
    monkeypatch.setattr(agent_module, "_REACH_S", 0.1)
    monkeypatch.setattr(agent_module, "worker_command", lambda *_, **__: ["sleep", "60"])
    closed = f"tcp://127.0.0.1:{free_port()}"
    told = f"can't connect to the coordinator at {closed} yet: Connection refused"
    served(Place("asyncdni", 1, 2, closed), abandoned=lambda: told in caplog.text)()
    scene = scenes(folder=str(tmp_path), coordinator=closed)
    end = served(Place("asyncdni", 1, 3, scene.rendezvous.address))
    with pytest.raises(
        LaunchError, match=rf"rank 1 on .* can't connect to {closed}, where workers"
    ):
        until(scene.rendezvous.exited, "the agent's news")
    assert f"can't connect to {closed}" in str(end())
    assert scene.rendezvous._transport.rejected_messages == 0


def test_an_agent_does_not_wait_for_ever() -> None:
    place = Place("asyncdni", 1, 2, f"tcp://127.0.0.1:{free_port()}")
    assert "no coordinator at tcp://127.0.0.1" in str(served(place, timeout_s=0.05)())
    assert "connection" in str(served(place, abandoned=lambda: True)())


# --- connections by ssh --------------------------------------------------------------------------


@each("elastic", [False, True])
def test_a_connection_that_keeps_breaking_ends_a_run_unless_others_take_over(
    elastic: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is made again at once, and then ever later; that of an agent that has been dismissed is
    not."""
    words: dict[str, Any] = {"remote": "x", "keys": None, "words": (), "elastic": elastic}
    with Connections(["h"], ssh="false", **words) as connections:
        connections.start("tcp://h:1")

        def breaks() -> bool:
            connections.check({0})
            connections._due_s.update(dict.fromkeys(connections._due_s, 0.0))
            return len(caplog.messages) == (8 if elastic else 5)

        until(breaks, "broken connections")
        first = "h: the agent has ended (exit code 1); it is started again"
        assert caplog.messages[:3] == [first, f"{first} in 1 s", f"{first} in 2 s"]
        if not elastic:
            with pytest.raises(LaunchError, match="the connection to h keeps breaking"):
                until(lambda: connections.check({0}), "the end")
    says = f"sh -c 'echo {_PART[True]}; echo {_PART[False]}'"
    with Connections(["h"], ssh=says, **words) as connections:
        connections.start("tcp://h:1")
        connections._open[0].process.wait()
        connections._open[0].last_words()
        connections.check({0})
        assert connections.came == {0} and not connections._due_s


# --- what travels by ssh -------------------------------------------------------------------------


def test_a_key_from_standard_input_is_closed_to_others(tmp_path: Path) -> None:
    assert receive_keys(io.StringIO(json.dumps({"worker.key": "secret"}) + "\n"), tmp_path)
    path = tmp_path / "worker.key"
    assert path.read_text() == "secret" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not receive_keys(io.StringIO("{}\n"), tmp_path)


@each("line", ["", "x", "[1]", '{"../evil": "x"}', '{"worker.key": 3}', "7"])
def test_no_other_line_is_taken_for_keys(line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--attached: .* holds no keys"):
        receive_keys(io.StringIO(line), tmp_path)


def test_the_end_of_the_connection_is_noticed() -> None:
    reading, writing = os.pipe()
    line = Line(reading)
    os.write(writing, b"x")
    assert not line.has_ended()
    os.close(writing)
    until(line.has_ended, "the end")
    os.close(reading)


# --- the command ---------------------------------------------------------------------------------


@each(
    "words, said",
    [
        (["--engine", "slurm"], "--engine slurm: it has not started this process"),
        (["--hosts", "a,,b"], "--hosts a,,b: expected names"),
        (["--hosts", "a", "--engine", "slurm"], "--engine can't be given too"),
        (["--coordinator", "tcp://192.0.2.1:5555"], "can be reached from other hosts"),
    ],
)
def test_the_command_refuses_in_one_line(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ASYNCDNI_RANK", "1")
    monkeypatch.setenv("ASYNCDNI_WORLD_SIZE", "2")
    assert main(["run", "recipe:digits", *words]) == 2
    assert said in capsys.readouterr().err


def test_train_does_not_promise_to_survive_its_coordinator(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "recipe:digits", "--set", "recovery.coordinator_s=60"]) == 2
    assert "recovery.coordinator_s = 60: " in (said := capsys.readouterr().err)
    assert "use `asyncdni run`" in said


@each("ranks", ["1", "2"])
def test_a_job_that_is_started_again_without_a_folder_is_refused(
    ranks: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = {"RANK": "0", "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in {**engine, "TORCHELASTIC_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    monkeypatch.setattr(rendezvous_module, "_WAITING_S", 0.0)
    assert main(["run", "recipe:digits"]) == 2
    said = capsys.readouterr().err
    assert "attempt 2 of this job, by torchrun: without --out there is no folder to go on" in said


def test_where_a_run_meets() -> None:
    wide = Meeting.at("tcp://host:5000")
    assert (wide.agents, wide.workers) == ("tcp://0.0.0.0:5000", "tcp://0.0.0.0:5001")
    assert wide.reached("tcp://0.0.0.0:5001") == "tcp://host:5001"
    assert Meeting.at("tcp://localhost:0").workers == "tcp://127.0.0.1:*"
    assert Meeting.at("tcp://[2001:db8::7]:5000").agents == "tcp://[::]:5000"
    assert Meeting.at("tcp://[::1]:5000").reached("tcp://[::1]:5001") == "tcp://[::1]:5001"


def test_a_name_of_its_own_that_rank_0_does_not_know_is_refused() -> None:
    Meeting.at("tcp://localhost:0").await_name(0.0)
    with pytest.raises(LaunchError, match=r"rank 0 can't resolve nobody\.invalid, the name"):
        Meeting.at("tcp://nobody.invalid:5555").await_name(-1.0)


def test_the_same_folder_goes_on_with_the_same_experiment_alone(tmp_path: Path) -> None:
    chosen = design(chain(2), {"name": "locked"}).experiment
    folder = create_folder(tmp_path / "run", chosen)
    assert continued_experiment(folder, chosen) == chosen
    longer = experiment.change(experiment.tables(chosen), ["run.epochs=7"])
    assert continued_experiment(folder, longer).run.epochs == 7
    other = experiment.change(experiment.tables(chosen), ["run.seed=7"])
    with pytest.raises(ConfigError, match=r"another run is there: run\.seed is 0 there and 7 here"):
        continued_experiment(folder, other)


def test_a_digest_tells_experiments_apart_and_not_where_their_data_lie() -> None:
    tables = experiment.tables(design(chain(2), {"name": "locked"}).experiment)
    tables["data"] = {"name": "npz", "path": "/here.npz"}
    here, there, other = (
        experiment.change(tables, changes)
        for changes in ([], ["data.path='/there.npz'"], ["run.seed=7"])
    )
    assert digest(here) == digest(there) != digest(other)


def test_work_is_that_of_the_layers_and_not_of_the_data() -> None:
    """A convolution uses its parameters at each pixel; the first worker has the data besides."""
    layers = [{"reshape": [1, 28, 28]}, {"conv2d": {"channels": 2, "kernel": 3}}, "flatten"]
    stages = [
        {"name": "maps", "layers": layers},
        {"name": "top", "layers": [{"dense": 10}], "loss": "cross_entropy"},
    ]
    built = design(stages, {"name": "locked"}, data={"name": "digits"})
    maps, top = built.plan.groups
    (outputs,) = built.network.node("maps").output_shape
    convolution = 2 * 9 * outputs  # of one channel with each of its kernels
    assert worker_operations(built.network, maps) == convolution + 2 * 784 + outputs
    assert worker_operations(built.network, top) == 2 * outputs * 10 + outputs
