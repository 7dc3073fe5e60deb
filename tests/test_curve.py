"""Key folders: what `asyncdni keys` makes, and what of it is refused."""

from __future__ import annotations

import argparse
import os
import stat
from pathlib import Path

import pytest
import zmq

from asyncdni.cli import keys as command
from asyncdni.errors import ConfigError
from asyncdni.wire.curve import (
    KeyPair,
    coordinator_pair,
    load_keys,
    new_keys,
    new_pair,
    worker_pair,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    new_keys(tmp_path / "keys")
    return tmp_path / "keys"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# --- making --------------------------------------------------------------------------------------


def test_new_keys_are_for_this_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        paths = new_keys(tmp_path / "deep" / "keys")
    finally:
        os.umask(before)
    assert [path.name for path in paths] == ["coordinator.key", "worker.key"]
    assert mode(tmp_path / "deep" / "keys") == 0o700
    assert [mode(path) for path in paths] == [0o600, 0o600]


def test_new_keys_are_pairs_that_know_each_other(folder: Path) -> None:
    keys = load_keys(folder)
    coordinator, worker = coordinator_pair(keys), worker_pair(keys)
    assert zmq.curve_public(coordinator.secret) == coordinator.public == keys.coordinator_public
    assert zmq.curve_public(worker.secret) == worker.public == keys.worker_public


def test_no_two_runs_have_the_same_keys(tmp_path: Path) -> None:
    for name in ("a", "b"):
        new_keys(tmp_path / name)
    a, b = load_keys(tmp_path / "a"), load_keys(tmp_path / "b")
    assert not {a.coordinator_public, a.worker_public} & {b.coordinator_public, b.worker_public}


@pytest.mark.parametrize("name", ["coordinator.key", "worker.key"])
def test_keys_are_never_overwritten(folder: Path, name: str) -> None:
    other = {"coordinator.key": "worker.key", "worker.key": "coordinator.key"}[name]
    (folder / other).unlink()
    before = (folder / name).read_bytes()
    with pytest.raises(ConfigError, match=f"{name} exists: keys are never overwritten"):
        new_keys(folder)
    assert (folder / name).read_bytes() == before
    assert not (folder / other).exists()


def test_keys_are_not_put_where_others_look(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match=r"open to others \(mode 0755\): chmod 700"):
        new_keys(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't write keys to"):
        new_keys(tmp_path / "file" / "keys")


def test_the_command_says_which_host_needs_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.run(parser.parse_args(["new", str(tmp_path / "keys")])) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path}/keys/coordinator.key: for the coordinator's host only\n" in out
    assert f"{tmp_path}/keys/worker.key: for each host with workers\n" in out
    keys = load_keys(tmp_path / "keys")
    assert coordinator_pair(keys).secret.decode() not in out
    assert worker_pair(keys).secret.decode() not in out


# --- loading -------------------------------------------------------------------------------------


def test_a_host_needs_the_file_of_its_own_part_alone(folder: Path) -> None:
    whole = load_keys(folder)
    (folder / "coordinator.key").rename(folder / "elsewhere")
    workers = load_keys(folder)
    assert workers.coordinator_public == whole.coordinator_public
    assert workers.worker == whole.worker
    with pytest.raises(ConfigError, match=r"no coordinator\.key"):
        coordinator_pair(workers)
    (folder / "worker.key").unlink()
    (folder / "elsewhere").rename(folder / "coordinator.key")
    coordinators = load_keys(folder)
    assert coordinators.worker_public == whole.worker_public
    with pytest.raises(ConfigError, match=r"no worker\.key"):
        worker_pair(coordinators)


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644])
@pytest.mark.parametrize("name", ["coordinator.key", "worker.key"])
def test_a_file_that_others_may_use_is_refused(folder: Path, name: str, bits: int) -> None:
    (folder / name).chmod(bits)
    with pytest.raises(ConfigError, match=rf"{name} is open to others .* chmod 600"):
        load_keys(folder)


@pytest.mark.parametrize("bits", [0o710, 0o750, 0o701, 0o755, 0o777])
def test_a_folder_that_others_may_use_is_refused(folder: Path, bits: int) -> None:
    folder.chmod(bits)
    with pytest.raises(ConfigError, match=r"keys is open to others .* chmod 700"):
        load_keys(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_keys_of_another_user_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(folder / "worker.key", 12345, -1)
    with pytest.raises(ConfigError, match=r"worker\.key belongs to another user"):
        load_keys(folder)


def test_keys_of_the_other_part_are_refused(folder: Path) -> None:
    (folder / "coordinator.key").replace(folder / "worker.key")
    with pytest.raises(ConfigError, match=r"holds keys for 'coordinator', expected 'worker'"):
        load_keys(folder)


def test_keys_of_two_runs_in_one_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    new_keys(tmp_path / "other")
    (tmp_path / "other" / "worker.key").replace(folder / "worker.key")
    with pytest.raises(ConfigError, match="are of different runs"):
        load_keys(folder)


def test_a_secret_of_another_pair_is_refused(folder: Path) -> None:
    pair = worker_pair(load_keys(folder))
    changed(folder / "worker.key", pair.secret.decode(), new_pair().secret.decode())
    with pytest.raises(ConfigError, match="its secret key does not belong to its public one"):
        load_keys(folder)


@pytest.mark.parametrize("wrong", ["", "short", "x" * 40, "~" * 40, "#" * 40, "ä" * 40])
def test_what_is_no_key_is_refused_without_being_shown(folder: Path, wrong: str) -> None:
    pair = worker_pair(load_keys(folder))
    changed(folder / "worker.key", pair.secret.decode(), wrong)
    with pytest.raises(ConfigError) as caught:
        load_keys(folder)
    assert not wrong or wrong not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "expected"),
        (b'role = "worker"\n', "expected"),
        (b'role = "worker"', "expected"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"a = " + b"[" * 4000, "damaged"),
        (b'role = ["worker"]\npublic = 1\nsecret = 2\npeer = 3\n', "expected 'worker'"),
        (b'role = "worker"\npublic = 1\nsecret = 2\npeer = 3\n', "public is no key"),
    ],
)
def test_a_file_that_holds_no_keys_is_refused(folder: Path, content: bytes, told: str) -> None:
    (folder / "worker.key").write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        load_keys(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    content = (folder / "worker.key").read_bytes()
    for size in range(0, content.rindex(b'"') + 1, 7):
        (folder / "worker.key").write_bytes(content[:size])
        with pytest.raises(ConfigError):
            load_keys(folder)


def test_a_pipe_in_place_of_a_key_is_refused_and_not_waited_for(folder: Path) -> None:
    (folder / "worker.key").unlink()
    os.mkfifo(folder / "worker.key", 0o600)
    with pytest.raises(ConfigError, match="is no file"):
        load_keys(folder)


def test_a_folder_without_keys_is_told_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="asyncdni keys new DIR"):
        load_keys(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir(0o700)
    with pytest.raises(ConfigError, match="asyncdni keys new DIR"):
        load_keys(tmp_path / "empty")


def test_a_file_in_place_of_the_folder_is_told(folder: Path) -> None:
    with pytest.raises(ConfigError, match="can't read keys in"):
        load_keys(folder / "worker.key")


def test_secrets_are_not_shown_where_keys_are_printed(folder: Path) -> None:
    keys = load_keys(folder)
    for pair in (coordinator_pair(keys), worker_pair(keys)):
        assert isinstance(pair, KeyPair)
        assert pair.secret.decode() not in f"{keys} {keys!r} {pair!r}"
