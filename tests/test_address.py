"""Addresses are checked before ZeroMQ sees them."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncdni.errors import LaunchError
from asyncdni.transports.address import IPC_PATH_BYTES_MAX, data_endpoint, parse, private_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    with private_folder() as path:
        yield path


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:5555"),
        ("tcp://node-3.cluster:1", "tcp://node-3.cluster:1"),
        ("tcp://*:0", "tcp://*:*"),
        ("tcp://127.0.0.1:*", "tcp://127.0.0.1:*"),
    ],
)
def test_a_tcp_address_to_bind_to(text: str, endpoint: str) -> None:
    assert parse(text, bind=True).endpoint == endpoint


def test_an_ipc_path_becomes_absolute(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)
    assert parse("ipc://run", bind=True).endpoint == f"ipc://{os.path.realpath(folder)}/run"


def test_a_listener_on_all_interfaces_is_reached_on_this_machine() -> None:
    assert parse("tcp://0.0.0.0:5555", bind=False).endpoint == "tcp://127.0.0.1:5555"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:5555",
        "udp://127.0.0.1:5555",
        "inproc://name",
        "tcp://",
        "tcp://host",
        "tcp://:5555",
        "tcp://host:",
        "tcp://host:65536",
        "tcp://host:-1",
        "tcp://host:5 5",
        "tcp://ho st:55",
        "tcp://host:٣",
        "tcp://[::1]:5555",
        "tcp://eth0;host:5555",
        "tcp://host:5555/x",
        "ipc://",
        "ipc://@abstract",
        "ipc:///tmp/\0",
        "ipc:///no/such/folder/socket",
    ],
)
@pytest.mark.parametrize("bind", [True, False])
def test_what_is_no_address_is_refused(text: str, bind: bool) -> None:
    with pytest.raises(LaunchError):
        parse(text, bind=bind)


@pytest.mark.parametrize("text", ["tcp://*:5555", "tcp://127.0.0.1:0", "tcp://127.0.0.1:*"])
def test_a_connection_needs_a_host_and_a_port(text: str) -> None:
    with pytest.raises(LaunchError):
        parse(text, bind=False)


def test_a_path_too_long_for_a_socket_is_refused(folder: Path) -> None:
    fits = f"ipc://{folder}/".ljust(IPC_PATH_BYTES_MAX + len("ipc://"), "x")
    parse(fits, bind=True)
    with pytest.raises(LaunchError, match=f"{IPC_PATH_BYTES_MAX + 1} bytes"):
        parse(fits + "x", bind=True)


def test_a_file_in_place_of_the_socket_is_not_overwritten(folder: Path) -> None:
    (folder / "weights").write_text("precious")
    with pytest.raises(LaunchError, match="not a socket"):
        parse(f"ipc://{folder}/weights", bind=True)


def test_a_socket_left_behind_by_a_dead_process_is_in_nobodys_way(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "run"))
    assert (folder / "run").exists()
    assert parse(f"ipc://{folder}/run", bind=True).path == str(folder / "run")


def test_a_private_folder_admits_its_owner_alone_and_goes_away() -> None:
    with private_folder() as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        (path / "socket").touch()
    assert not path.exists()


def test_a_private_folder_is_short_even_where_the_temporary_folder_is_not(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    deep = folder / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with private_folder() as path:
        data_endpoint(f"ipc://{path}/coordinator")
    assert list(deep.iterdir()) == []


def test_a_worker_listens_in_the_folder_of_its_coordinator(folder: Path) -> None:
    first, second = (data_endpoint(f"ipc://{folder}/coordinator") for _ in range(2))
    assert os.path.dirname(first.path) == str(folder)
    assert first != second


def test_a_worker_listens_on_the_interface_that_reaches_its_coordinator() -> None:
    assert data_endpoint("tcp://localhost:5555").endpoint == "tcp://127.0.0.1:*"


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(LaunchError, match=r"no-such-host\.invalid"):
        data_endpoint("tcp://no-such-host.invalid:5555")
