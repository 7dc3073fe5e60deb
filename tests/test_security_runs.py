"""Whole runs with keys: real processes over tcp, and what those get who may not take part."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from processes import TINY, Command, Site, free_port, make_site, records, until_recorded

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


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        made.write("tiny.toml", TINY)
        new_keys(tmp_path / "keys")
        new_keys(tmp_path / "other")
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


def test_a_worker_without_a_key_is_refused_with_one_line_and_the_run_goes_on(site: Site) -> None:
    run, address = coordinator(site)
    worker(site, "top", address, keys=None).finished().refused(
        "only workers with keys", "--keys DIR"
    )
    finish(site, run, address)


def test_a_worker_with_a_wrong_key_is_refused_named_and_the_run_goes_on(site: Site) -> None:
    run, address = coordinator(site)
    wrong, right = load_keys(site.folder / "other"), load_keys(site.folder / "keys")
    path = site.folder / "other" / "worker.key"
    text = path.read_text()
    path.write_text(
        text.replace(wrong.coordinator_public.decode(), right.coordinator_public.decode())
    )
    (site.folder / "other" / "coordinator.key").unlink()
    worker(site, "top", address, keys="other").finished().refused("does not know this worker's key")
    finish(site, run, address)
    (rejected,) = records(site.folder / "run", "rejected")
    assert worker_pair(wrong).public.decode() in rejected["text"]
    assert "127.0.0.1" in rejected["text"]


def test_a_worker_of_another_run_is_told_that_the_keys_differ(site: Site) -> None:
    run, address = coordinator(site)
    worker(site, "top", address, keys="other").finished().refused("other keys")
    finish(site, run, address)


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
    site.run("coordinator", "tiny.toml", *bind, *flags).refused(*words)


def test_a_worker_calls_no_coordinator_off_this_host_without_keys(site: Site) -> None:
    remote = ("worker", "--stage", "0", "--coordinator", "tcp://192.0.2.1:5555")
    site.run(*remote).refused("can be reached from other hosts", "--keys DIR", "--insecure")
    (site.folder / "keys" / "worker.key").unlink()
    site.run(*remote, "--keys", "keys").refused("no worker.key")


def test_a_member_that_sends_nonsense_to_the_coordinator_is_noted(site: Site) -> None:
    run, address = coordinator(site)
    keys = load_keys(site.folder / "keys")
    context = zmq.Context()
    try:
        member = context.socket(zmq.DEALER)
        member.linger = 0
        as_client(member, worker_pair(keys), keys.coordinator_public)
        member.connect(address)
        for _ in range(3):
            member.send(b"nonsense")
        (noted,) = until_recorded(site.folder / "run", "rejected")
        assert noted["peer"] and noted["text"].startswith("bad message")
    finally:
        context.destroy(linger=0)
    finish(site, run, address)


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
