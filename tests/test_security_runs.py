"""Whole runs with keys: real processes over tcp, and what those get who may not take part."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zmq
from processes import TINY, Command, Site, free_port, make_site, records, until, until_recorded

from asyncdni.wire.curve import as_client, load_keys, new_keys, worker_pair

#: A worker that sends its neighbours nonsense in place of its 5th message to them.
TRAITOR = """\
import itertools, sys
from asyncdni.wire.worker import Neighbours
count, true_send = itertools.count(1), Neighbours.send
def send(self, to, frames):
    return true_send(self, to, [b"nonsense"] if next(count) == 5 else frames)
Neighbours.send = send
from asyncdni.__main__ import main
sys.exit(main())
"""


@contextmanager
def make_keyed_site(folder: Path) -> Iterator[Site]:
    """A site with the keys of a run, and those of another."""
    with make_site(folder) as made:
        made.write("tiny.toml", TINY)
        new_keys(folder / "keys")
        new_keys(folder / "other")
        yield made


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_keyed_site(tmp_path) as made:
        yield made


def coordinator(site: Site, *args: str, keys: str | None = "keys") -> tuple[Command, str]:
    address = f"tcp://127.0.0.1:{free_port()}"
    flags = ["--keys", keys] if keys else []
    args = ("coordinator", "tiny.toml", "--bind", address, "--out", "run", *flags, *args)
    command = site.start(*args)
    until_recorded(site.folder / "run", "bound")
    return command, address


def worker(site: Site, stage: str, address: str, keys: str | None = "keys") -> Command:
    flags = ["--keys", keys] if keys else []
    return site.start("worker", "--stage", stage, "--coordinator", address, *flags)


@dataclass(frozen=True)
class Guarded:
    """A coordinator that lets nobody in without keys, and where it listens."""

    site: Site
    address: str

    def worker(self, keys: str | None) -> Command:
        """One for stage `top` that knows this folder of keys."""
        return worker(self.site, "top", self.address, keys=keys)

    def rejected(self) -> list[dict[str, Any]]:
        """What the coordinator has rejected so far."""
        return records(self.site.folder / "run", "rejected")


def finish(site: Site, run: Command, address: str) -> None:
    """With the workers it needs, the run ends well."""
    both = [worker(site, stage, address) for stage in ("hidden", "top")]
    assert [command.finished().code for command in (run, *both)] == [0, 0, 0]


def test_a_run_with_keys_over_tcp_trains_to_its_end(site: Site) -> None:
    run, address = coordinator(site)
    finish(site, run, address)
    assert records(site.folder / "run", "rejected") == []
    assert sorted(path.name for path in (site.folder / "run" / "final").iterdir()) == [
        "hidden.safetensors",
        "manifest.json",
        "top.safetensors",
    ]


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A coordinator with keys that waits for its workers; in the end they come, and train."""
    with make_keyed_site(tmp_path_factory.mktemp("waiting")) as made:
        run, address = coordinator(made, "--set", "limits.startup_s=600")
        yield Guarded(made, address)
        finish(made, run, address)


def test_a_worker_without_a_key_is_refused_with_one_line(waiting: Guarded) -> None:
    waiting.worker(keys=None).finished().refused("only workers with keys", "--keys DIR")


def test_a_worker_with_a_wrong_key_is_refused_and_named(waiting: Guarded) -> None:
    folder = waiting.site.folder
    wrong, right = load_keys(folder / "other"), load_keys(folder / "keys")
    shutil.copytree(folder / "other", folder / "wrong")
    path = folder / "wrong" / "worker.key"
    text = path.read_text()
    path.write_text(
        text.replace(wrong.coordinator_public.decode(), right.coordinator_public.decode())
    )
    (folder / "wrong" / "coordinator.key").unlink()
    waiting.worker(keys="wrong").finished().refused("does not know this worker's key")
    name = worker_pair(wrong).public.decode()
    (rejected,) = [one for one in waiting.rejected() if name in one["text"]]
    assert "127.0.0.1" in rejected["text"]


def test_a_worker_of_another_run_is_told_that_the_keys_differ(waiting: Guarded) -> None:
    waiting.worker(keys="other").finished().refused("other keys")


def test_a_member_that_sends_nonsense_to_the_coordinator_is_noted(waiting: Guarded) -> None:
    keys = load_keys(waiting.site.folder / "keys")

    def noted() -> list[dict[str, Any]]:
        return [one for one in waiting.rejected() if one["text"].startswith("bad message")]

    context = zmq.Context()
    try:
        member = context.socket(zmq.DEALER)
        member.linger = 0
        as_client(member, worker_pair(keys), keys.coordinator_public)
        member.connect(waiting.address)
        for _ in range(3):
            member.send(b"nonsense")
        (found,) = until(noted, "a note of the nonsense")
        assert found["peer"]
    finally:
        context.destroy(linger=0)


def test_a_worker_with_keys_does_not_obey_a_coordinator_without(site: Site) -> None:
    run, address = coordinator(site, keys=None)
    worker(site, "top", address).finished().refused("uses no keys")
    both = [worker(site, stage, address, keys=None) for stage in ("hidden", "top")]
    assert [command.finished().code for command in (run, *both)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["can be reached from other hosts", "--keys DIR", "--insecure"]),
        (["--keys", "missing"], ["can't read keys in missing"]),
        (["--keys", "loose"], ["is open to others", "chmod 600"]),
        (["--keys", "swapped"], ["holds keys for 'worker', expected 'coordinator'"]),
        (["--keys", "keys", "--insecure"], ["expected one of them"]),
    ],
)
def test_an_address_off_this_host_without_good_keys_is_refused_at_once(
    site: Site, flags: list[str], words: list[str]
) -> None:
    new_keys(site.folder / "loose")
    (site.folder / "loose" / "coordinator.key").chmod(0o644)
    new_keys(site.folder / "swapped")
    (site.folder / "swapped" / "worker.key").replace(site.folder / "swapped" / "coordinator.key")
    bind = ["--bind", f"tcp://0.0.0.0:{free_port()}"]
    site.call("coordinator", "tiny.toml", *bind, *flags).refused(*words)


def test_a_worker_calls_no_coordinator_off_this_host_without_keys(site: Site) -> None:
    remote = ("worker", "--stage", "0", "--coordinator", "tcp://192.0.2.1:5555")
    site.call(*remote).refused("can be reached from other hosts", "--keys DIR", "--insecure")
    (site.folder / "keys" / "worker.key").unlink()
    site.call(*remote, "--keys", "keys").refused("no worker.key")


@pytest.mark.long
def test_a_neighbour_that_breaks_the_protocol_is_cut_off_named_and_replaced(site: Site) -> None:
    run, address = coordinator(site)
    path = site.write("traitor.py", TRAITOR)
    arguments = ["--stage", "hidden", "--coordinator", address, "--keys", "keys"]
    site.execute([sys.executable, str(path), "worker", *arguments])
    top = worker(site, "top", address)
    (accused,) = until_recorded(site.folder / "run", "accused")
    assert (accused["stage"], accused["by"]) == ("hidden", "top")
    assert accused["text"].startswith("bad message")
    until_recorded(site.folder / "run", "lost")
    hidden = worker(site, "hidden", address)
    assert [command.finished().code for command in (run, top, hidden)] == [0, 0, 0]
