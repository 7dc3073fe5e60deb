"""Workers without access to the run's folder: what they save gets there, and back from there."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from each import each
from life import WELCOME, Life
from office import Office, failure, records, sent
from processes import TINY, Command, Site, make_site, until_recorded, weights
from processes import records as recorded
from random_runs import SCHEDULES, assert_survived, eventful_runs

from asyncdni.core.events import (
    Action,
    DiscardSnapshots,
    Finish,
    KeepPart,
    PartKept,
    PartSent,
    Prepared,
    Received,
    Restore,
    Restored,
    Send,
    SendPart,
    Woke,
)
from asyncdni.core.ledger import Ledger
from asyncdni.core.post import UnexpectedMessage
from asyncdni.core.transfer import Incoming, Outgoing, may_fetch, may_send, needed
from asyncdni.drivers.virtual.faults import Faults
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.errors import CheckpointError, RemoteProtocolError
from asyncdni.messages import (
    COORDINATOR,
    PART_BYTES,
    Built,
    Failed,
    Fetch,
    Message,
    Missing,
    Part,
    Rejoin,
    Taken,
)
from asyncdni.store.parts import PartStore
from asyncdni.wire.curve import new_keys

DIGEST = "0" * 64
CUT = "checkpoints/000001"
#: A worker on a host where there is no such folder as the coordinator's.
ELSEWHERE = """\
import msgspec
from asyncdni.__main__ import main
from asyncdni.core.events import Prepare
from asyncdni.drivers.real.process import Session
prepare = Session.prepare
def elsewhere(self, action):
    welcome = msgspec.structs.replace(action.welcome, folder="/nowhere/run")
    return prepare(self, Prepare(welcome))
Session.prepare = elsewhere
raise SystemExit(main())
"""


def part(path: str, offset: int, size: int, length: int, incarnation: int = 1) -> Part:
    digest = DIGEST if offset + length == size else ""
    return Part(incarnation, path, offset, size, bytes(length), digest)


# --- which files ---------------------------------------------------------------------------------


def test_a_worker_writes_and_reads_files_of_its_own_stages_alone() -> None:
    own = [f"{CUT}/a.safetensors", "snapshots/a.0.safetensors", "best.new/a.safetensors"]
    assert all(may_send(path, ["a"], f"{CUT}/") for path in own)
    assert not may_send(own[0], ["a"], "") and not may_send(own[0], ["a"], "checkpoints/000002/")
    assert may_fetch(own[0], ["a"]) and may_fetch(own[1], ["a"])
    assert may_fetch("init/a.safetensors", ["a"])
    assert not may_send("init/a.safetensors", ["a"], "") and not may_fetch(own[2], ["a"])
    for path in (
        "",
        "a.safetensors",
        "/etc/passwd",
        "snapshots/../experiment.toml",
        "../snapshots/a.0.safetensors",
        "snapshots/a.2.safetensors",
        "snapshots/a.safetensors",
        "snapshots/b.0.safetensors",
        "snapshots/a.0.safetensors\n",
        f"{CUT}/a.0.safetensors",
        f"{CUT}/manifest.json",
        f"{CUT}/../{CUT}/a.safetensors",
        "best/a.safetensors",
        "other.new/a.safetensors",
        "owners/a",
    ):
        assert not may_send(path, ["a", "..", ""], f"{CUT}/"), path
        assert not may_fetch(path, ["a", "..", ""]) or path == "best/a.safetensors", path


def test_what_a_stage_may_begin_with() -> None:
    assert needed([CUT], ["a", "b"], given=False) == [f"{CUT}/{s}.safetensors" for s in "ab"]
    assert needed(["snapshots", ""], ["a"], given=True) == [
        *("snapshots/a.0.safetensors", "snapshots/a.1.safetensors", "init/a.safetensors")
    ]


# --- one file after another ----------------------------------------------------------------------


def test_only_a_few_parts_are_on_their_way() -> None:
    outgoing, size = Outgoing("c"), 10 * PART_BYTES
    outgoing.clear(3)
    actions, ends = outgoing.add(["f", "g"]), list[int]()
    while actions:
        (ask,) = actions
        assert isinstance(ask, SendPart) and (ask.path, ask.incarnation) == ("f", 3)
        assert outgoing.add([]) == []  # one is being read
        ends.append(ask.offset + PART_BYTES)
        actions = outgoing.part_sent(PartSent("c", 3, "f", ends[-1], size))
    assert ends == [PART_BYTES * count for count in (1, 2, 3, 4)]
    (ask,) = outgoing.taken(Taken(3, "f", PART_BYTES))
    assert ask == SendPart("c", 3, "f", 4 * PART_BYTES)
    for wrong in (Taken(3, "f", PART_BYTES), Taken(3, "f", size), Taken(3, "g", 1)):
        with pytest.raises(UnexpectedMessage):
            outgoing.taken(wrong)
    assert outgoing.taken(Taken(2, "f", size)) == []  # of an earlier incarnation
    outgoing.part_sent(PartSent("c", 3, "f", size, size))
    assert not outgoing.idle
    assert outgoing.taken(Taken(3, "f", size)) == [SendPart("c", 3, "g", 0)]
    assert outgoing.part_sent(PartSent("c", 3, "g")) == [Send("c", Missing(3, "g"))]
    assert outgoing.idle


@each(
    "wrong",
    [
        part("f", 0, 8, 0),
        part("f", 0, PART_BYTES + 1, PART_BYTES + 1),
        part("f", 0, 8, 9),
        part("f", 0, -8, 4),
        part("f", 8, 16, 4),  # not the next one
        part("g", 4, 16, 4),
        part("f", 4, 20, 4),
        Part(1, "f", 4, 16, b"1234", DIGEST),  # a digest before the end
        Part(1, "f", 4, 8, b"1234", ""),
        Part(1, "f", 0, 4, b"1234", "no digest"),
    ],
)
def test_parts_out_of_order_or_of_impossible_size_are_refused(wrong: Part) -> None:
    incoming = Incoming()
    incoming.accept(part("f", 0, 16, 4))
    with pytest.raises(UnexpectedMessage):
        incoming.accept(wrong)


def test_a_file_may_begin_anew() -> None:
    incoming = Incoming()
    for one in (part("f", 0, 16, 4), part("f", 0, 8, 4), part("f", 4, 8, 4)):
        incoming.accept(one)


# --- the coordinator -----------------------------------------------------------------------------


def kept(office: Office, name: str, message: Part, fault: str = "") -> list[Action]:
    """What comes of a part, which the driver writes."""
    actions = office.hear(name, message)
    assert actions == [KeepPart(message, name)]
    return office(PartKept(message, name, fault))


def test_a_worker_has_its_files_written_and_is_told_when() -> None:
    office = Office(folder="run").started()
    snapshot = part("snapshots/b.0.safetensors", 0, 8, 4)
    assert sent(kept(office, "b", snapshot)) == [("b", Taken(1, snapshot.path, 4))]
    assert office.hear("b", part(snapshot.path, 4, 8, 4, incarnation=0)) == []
    final = part(snapshot.path, 4, 8, 4)
    assert sent(kept(office, "b", final)) == [("b", Taken(1, snapshot.path, 8))]


@each(
    "message",
    [
        part("snapshots/a.0.safetensors", 0, 8, 4),  # of another worker
        part(f"{CUT}/b.safetensors", 0, 8, 4),  # no cut is being saved
        part("snapshots/b.0.safetensors", 4, 8, 4),
        Fetch(1, "snapshots/a.0.safetensors"),
        Fetch(1, "../secret"),
        Taken(1, "snapshots/b.0.safetensors", 4),
    ],
)
def test_a_worker_that_asks_for_what_is_not_its_own_is_replaced(message: Message) -> None:
    (lost,) = records(Office(folder="run").started().hear("b", message), "lost")
    assert lost["stage"] == "b"


def test_without_a_folder_nobody_has_anything_written() -> None:
    office = Office(folder="").started()
    actions = office.hear("b", part("snapshots/b.0.safetensors", 0, 8, 4))
    assert "it may not write" in failure(actions).text  # as by any fault without a folder


def test_a_file_that_is_not_what_it_says_costs_its_sender_its_place() -> None:
    office = Office(folder="run").started()
    actions = kept(office, "b", part("snapshots/b.0.safetensors", 0, 4, 4), "another sha256")
    (lost,) = records(actions, "lost")
    assert lost["stage"] == "b" and "another sha256" in lost["text"]


def test_a_snapshot_that_can_not_be_written_is_told_of_once_and_another_file_ends_the_run() -> None:
    office, full = Office(folder="run").started(), CheckpointError("the disk is full")

    def failed(path: str, **more: bool) -> list[Action]:
        message = part(path, 0, 8, 4)
        assert office.hear("b", message) == [KeepPart(message, "b")]
        return office(PartKept(message, "b", error=full, **more))

    snapshot = "snapshots/b.0.safetensors"
    (note,) = records(failed(snapshot), "note")
    assert note["text"] == "no snapshot of b was written: the disk is full"
    assert records(failed(snapshot), "note") == []
    with pytest.raises(CheckpointError, match="the disk is full"):
        failed(snapshot, folder_gone=True)
    with pytest.raises(CheckpointError, match="the disk is full"):
        failed("final.new/b.safetensors")


def test_a_worker_gets_the_files_that_it_asks_for_and_is_told_of_those_that_are_not_there() -> None:
    office = Office(folder="run").gathering()
    path = "snapshots/b.1.safetensors"
    (ask,) = office.hear("b", Fetch(1, path))
    assert isinstance(ask, SendPart) and (ask.path, ask.offset) == (path, 0)
    assert sent(office(PartSent(ask.to, 1, path))) == [("b", Missing(1, path))]
    (ask,) = office.hear("b", Fetch(1, path))
    assert isinstance(ask, SendPart)
    assert office(PartSent(ask.to, 1, path, 4, 8)) == [SendPart(ask.to, 1, path, 4)]
    assert office(PartSent(ask.to, 1, path, 8, 8)) == office.hear("b", Taken(1, path, 8)) == []


def test_who_goes_back_behind_snapshots_finds_none() -> None:
    options: dict[str, Any] = {"folder": "run", "learns_alone": True, "rolls_back": True}
    assert DiscardSnapshots() in Office(**options)(Woke())
    assert DiscardSnapshots() not in Office(Ledger(restore="snapshots"), **options)(Woke())
    office = Office(**options).started()
    assert DiscardSnapshots() in office.hear("b", Failed("NumericalError", "NaN", ""))
    assert DiscardSnapshots() not in Office(**options).started().kill("b")


# --- a worker ------------------------------------------------------------------------------------


def away(restore: str) -> Life:
    """A process without access to the run's folder, whose state is at `restore`."""

    life = Life(lambda counts: None)
    life.process.start(0.0)
    life(Received(WELCOME))
    life(Prepared(stages=["a"], away=True))
    if restore != "initial":
        life(Rejoin(2, restore))
    return life


def test_it_fetches_what_it_begins_with_one_after_another() -> None:
    life = away("initial")
    assert isinstance(life.last[0], Restore)  # of the seed: nothing is needed
    life(Restored(5, {}))
    life(Rejoin(2, "snapshots"))
    first, second, cut = "snapshots/a.0", "snapshots/a.1", "checkpoints/000002/a"
    assert life.last == [Send(COORDINATOR, Fetch(2, f"{first}.safetensors"))]
    assert life(Missing(1, f"{first}.safetensors")) == []  # to an earlier order
    life(Missing(2, f"{first}.safetensors"))
    assert life.last == [Send(COORDINATOR, Fetch(2, f"{second}.safetensors"))]
    half = part(f"{second}.safetensors", 0, 8, 4, 2)
    assert life(half) == [KeepPart(half, COORDINATOR)]
    assert life(PartKept(half, COORDINATOR)) == [Send(COORDINATOR, Taken(2, half.path, 4))]
    rest = part(half.path, 4, 8, 4, 2)
    life(rest)
    taken, fetch = life(PartKept(rest, COORDINATOR))
    assert taken == Send(COORDINATOR, Taken(2, half.path, 8))
    assert fetch == Send(COORDINATOR, Fetch(2, f"{cut}.safetensors"))
    (restore,) = life(Missing(2, f"{cut}.safetensors"))
    assert isinstance(restore, Restore)
    (built,) = life(Restored(5, {}))
    assert isinstance(built, Send) and isinstance(built.message, Built)


def test_a_newer_order_while_it_fetches_is_followed_at_once() -> None:
    life = away("initial")
    life(Restored(5, {}))
    life(Rejoin(2, "snapshots"))
    assert life(Rejoin(3, CUT)) == [Send(COORDINATOR, Fetch(3, f"{CUT}/a.safetensors"))]


def test_nonsense_from_the_coordinator_is_an_error() -> None:
    life = away("initial")
    life(Restored(5, {}))
    life(Rejoin(2, CUT))
    with pytest.raises(RemoteProtocolError):
        life(part(f"{CUT}/a.safetensors", 4, 8, 4, 2))


# --- on disk -------------------------------------------------------------------------------------


def copied(here: PartStore, there: PartStore, path: str) -> int:
    """Copy a file in parts; returns how many."""
    offset, count = 0, 0
    while True:
        got = here.read("peer", 1, path, offset)
        assert got is not None
        there.write("peer", got)
        offset, count = offset + len(got.data), count + 1
        if offset == got.size:
            return count


def test_a_file_is_copied_in_parts_and_takes_its_place_once_it_is_whole(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / CUT).mkdir(parents=True)
    there.mkdir()
    content = os.urandom(2 * PART_BYTES + 5)
    (here / CUT / "a.safetensors").write_bytes(content)
    source, target = PartStore(here), PartStore(there)
    assert copied(source, target, f"{CUT}/a.safetensors") == 3
    assert (there / CUT / "a.safetensors").read_bytes() == content
    assert source.read("peer", 1, "snapshots/a.0.safetensors", 0) is None
    (there / CUT / "a.safetensors").write_bytes(b"older")
    first = source.read("peer", 1, f"{CUT}/a.safetensors", 0)
    assert first is not None
    target.write("peer", first)
    assert (there / CUT / "a.safetensors").read_bytes() == b"older"
    target.close()
    source.close()
    assert [path.name for path in (there / CUT).iterdir()] == ["a.safetensors"]


def test_a_file_that_is_replaced_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    file = tmp_path / "here" / "f"
    file.write_bytes(b"1" * (PART_BYTES + 1))
    source = PartStore(tmp_path / "here")
    first = source.read("peer", 1, "f", 0)
    (tmp_path / "new").write_bytes(b"2" * (PART_BYTES + 1))
    os.replace(tmp_path / "new", file)
    second = source.read("peer", 1, "f", PART_BYTES)
    assert first is not None and second is not None
    assert second.data == b"1"
    assert second.sha256 == hashlib.sha256(first.data + b"1").hexdigest()


def test_another_content_than_was_announced_is_not_kept(tmp_path: Path) -> None:
    store = PartStore(tmp_path)
    with pytest.raises(RemoteProtocolError, match="another sha256"):
        store.write("peer", part("snapshots/a.0.safetensors", 0, 4, 4))
    assert list((tmp_path / "snapshots").iterdir()) == []


def test_a_folder_that_is_gone_is_an_error_and_the_rest_is_passed_over(tmp_path: Path) -> None:
    store = PartStore(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="can't write"):
        store.write("peer", part("snapshots/a.0.safetensors", 0, 8, 4))
    store.write("peer", part("snapshots/a.0.safetensors", 4, 8, 4))


# --- whole runs, simulated -----------------------------------------------------------------------


def simulated(
    schedule: str, epochs: int, script: tuple[str, ...] = (), away: Collection[str] = ()
) -> Result:
    """A chain of three."""
    tables: dict[str, Any] = {
        "run": {"epochs": epochs, "evaluate_every": float(epochs)},
        "checkpoint": {"every": 1.0, "snapshot_every": "5ms"},
    }
    design = networks.design(networks.chain(3), {"name": schedule}, **tables)
    faults = Faults(script=script)
    return simulate(design, seed=0, maths=True, codec=True, faults=faults, away=away)


def test_without_a_shared_folder_a_stage_comes_back_from_its_cut_with_the_same_bits() -> None:
    plain = simulated("locked", 12)
    result = simulated("locked", 12, ("crash s1 at 200ms",), ("s0", "s1"))
    assert isinstance(result.end, Finish) and result.fault_counts == {"crash": 1}
    (again,) = [values for kind, values in result.records if kind == "round"]
    assert again["restore"].startswith("checkpoints/")
    for stage, own in plain.weights.items():
        for name, array in own.items():
            np.testing.assert_array_equal(result.weights[stage][name], array)


def test_without_a_shared_folder_a_stage_comes_back_from_its_snapshot() -> None:
    result = simulated("synthetic", 20, ("crash s1 at 200ms",), ("s1",))
    (back,) = [values for kind, values in result.records if kind == "back"]
    assert isinstance(result.end, Finish) and back["lost_updates"] < 20
    assert not [values for kind, values in result.records if kind == "note"]  # from elsewhere


@pytest.mark.long
@each("name", SCHEDULES)
def test_without_a_shared_folder_runs_survive_whatever_goes_wrong(name: str) -> None:
    (run, _) = next(eventful_runs(1, name))
    away = [group.name for group in run.design.plan.groups][::2]
    result = run.simulate(away=away)
    assert_survived(run, result)
    assert run.simulate(away=away).digest == result.digest


# --- real processes ------------------------------------------------------------------------------


def _elsewhere(site: Site, stage: str, address: str, *flags: str) -> Command:
    own = site.write(f"host-{stage}/empty", "").parent
    args = ["worker", "--stage", stage, "--coordinator", address, *flags]
    command = [sys.executable, "-c", ELSEWHERE, *args]
    return site.execute(["sh", "-c", 'cd "$0" && exec "$@"', str(own), *command])


@pytest.mark.long
def test_a_run_without_a_shared_folder_survives_a_death_and_keeps_its_weights(
    tmp_path: Path,
) -> None:
    """To the last bit those of a run on one machine; one worker is killed after the first cut."""
    with make_site(tmp_path) as site:
        site.write("tiny.toml", TINY.replace('"synthetic"', '"locked"'))
        changes = ["--set", "run.epochs=100", "--set", "run.evaluate_every=100"]
        changes += ["--set", "checkpoint.every=30", "--set", "limits.silence_s=0.3"]
        # Only gives the test the time to do its work.
        pauses = ["--set", "slow.hidden.pause=4ms", "--set", "slow.hidden.chance=1.0"]
        assert site.call("train", "tiny.toml", "--out", "train", *changes).code == 0
        new_keys(site.folder / "keys")
        keys = ["--keys", str(site.folder / "keys")]
        bind = ["--bind", "tcp://127.0.0.1:0", "--out", "run"]
        coordinator = site.start("coordinator", "tiny.toml", *bind, *keys, *changes, *pauses)
        (bound,) = until_recorded(site.folder / "run", "bound")
        hidden, top = (_elsewhere(site, s, bound["address"], *keys) for s in ("hidden", "top"))
        until_recorded(site.folder / "run", "cut")
        top.kill()
        until_recorded(site.folder / "run", "lost")
        again = _elsewhere(site, "top", bound["address"], *keys)
        for command in (coordinator, hidden, again):
            finished = command.finished()
            assert (finished.code, finished.wrong) == (0, [])
        assert weights(site.folder / "run") == weights(site.folder / "train")
        assert recorded(site.folder / "run", "round")[-1]["restore"].startswith("checkpoints/")
        assert not [path for path in (site.folder / "run").rglob("*.part")]
