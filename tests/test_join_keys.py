"""Runs over tcp with keys, through the commands: who has them takes part, nobody else does.

Every site asserts at its end that no process and no temporary file is left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import TINY, Command, Site, free_port, make_site, records, until_recorded, weights

from asyncdni.wire.curve import new_keys


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        made.write("tiny.toml", TINY.replace('"synthetic"', '"locked"'))
        new_keys(made.folder / "keys")
        yield made


def coordinator(site: Site, address: str, *args: str) -> Command:
    return site.start("coordinator", "tiny.toml", "--bind", address, "--out", "run", *args)


def worker(site: Site, stage: str, address: str, *args: str) -> Command:
    return site.start("worker", "--stage", stage, "--coordinator", address, *args)


def bound(site: Site) -> str:
    (record,) = until_recorded(site.folder / "run", "bound")
    address: str = record["address"]
    return address


def test_a_run_with_keys_gives_the_weights_of_one_without_and_shows_who_must_have_them(
    site: Site,
) -> None:
    assert site.call("train", "tiny.toml", "--out", "plain").code == 0
    commands = [coordinator(site, "tcp://0.0.0.0:0", "--keys", "keys")]
    bound(site)
    (record,) = until_recorded(site.folder / "run", "bound")
    assert len(record["commands"]) == 2
    for line in record["commands"]:
        assert f"--keys {site.folder / 'keys'}" in line
        commands.append(site.start(*line.split()[1:]))
    for command in commands:
        finished = command.finished()
        assert (finished.code, finished.wrong) == (0, [])
    assert weights(site.folder / "run") == weights(site.folder / "plain")


@pytest.mark.parametrize("case", ["none", pytest.param("of another run", marks=pytest.mark.long)])
def test_a_worker_without_the_keys_is_not_let_in_and_the_run_waits_for_one_that_has_them(
    site: Site, case: str
) -> None:
    leader = coordinator(site, "tcp://127.0.0.1:0", "--keys", "keys", "--quiet")
    address = bound(site)
    flags = []
    if case == "of another run":
        new_keys(site.folder / "others")
        flags = ["--keys", "others"]
    stranger = worker(site, "top", address, *flags)
    reasons = {
        "none": [address, "only workers with keys", "--keys DIR"],
        "of another run": [address, "other keys than this worker expects", "asyncdni keys new"],
    }
    stranger.finished().refused(*reasons[case])
    assert not records(site.folder / "run", "joined")
    those = [worker(site, stage, address, "--keys", "keys") for stage in ("hidden", "top")]
    assert [command.finished().code for command in (leader, *those)] == [0, 0, 0]


REFUSED = {
    "coordinator without keys": ["coordinator", "tiny.toml", "--bind", "tcp://0.0.0.0:0"],
    "coordinator of a named host": ["coordinator", "tiny.toml", "--bind", "tcp://example.org:5"],
    "worker without keys": ["worker", "--stage", "0", "--coordinator", "tcp://192.0.2.7:5"],
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_address_off_this_host_without_keys_is_refused_with_the_cure(
    site: Site, case: str
) -> None:
    line = site.call(*REFUSED[case]).refused("--keys DIR", "asyncdni keys new", "--insecure")
    assert "tcp://" in line


def test_insecure_must_be_said_aloud_and_is_passed_on(site: Site) -> None:
    address = f"tcp://0.0.0.0:{free_port()}"
    leader = coordinator(site, address, "--insecure")
    (record,) = until_recorded(site.folder / "run", "bound")
    assert all("--insecure" in line for line in record["commands"])
    those = [site.start(*line.split()[1:]) for line in record["commands"]]
    assert [command.finished().code for command in (leader, *those)] == [0, 0, 0]


def test_keys_and_insecure_exclude_each_other(site: Site) -> None:
    args = ("--bind", "tcp://127.0.0.1:0", "--keys", "keys", "--insecure")
    site.call("coordinator", "tiny.toml", *args).refused("--keys", "--insecure", "not both")


@pytest.mark.parametrize("command", ["coordinator", "worker"])
def test_keys_that_others_can_read_are_refused(site: Site, command: str) -> None:
    os.chmod(site.folder / "keys" / f"{command}.key", 0o644)
    args = {
        "coordinator": ["tiny.toml", "--bind", "tcp://127.0.0.1:0"],
        "worker": ["--stage", "0", "--coordinator", "tcp://127.0.0.1:5"],
    }[command]
    site.call(command, *args, "--keys", "keys").refused(f"{command}.key", "600")


def test_a_folder_without_keys_is_refused(site: Site) -> None:
    args = ("--stage", "0", "--coordinator", "tcp://127.0.0.1:5", "--keys", "nowhere")
    site.call("worker", *args).refused("nowhere", "asyncdni keys new")
