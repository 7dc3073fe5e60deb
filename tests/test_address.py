"""Addresses are checked before ZeroMQ sees them."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from each import each
from wire import make_keys

from asyncdni.errors import ConfigError, LaunchError
from asyncdni.wire.address import (
    IPC_PATH_BYTES_MAX,
    Address,
    advertised,
    check_secure,
    data_endpoints,
    holds_sockets,
    join_key,
    parse,
    private_folder,
    split_key,
    towards,
)


@pytest.fixture
def folder() -> Iterator[Path]:
    with private_folder() as path:
        yield path


@each(
    "text, endpoint",
    [
        ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:5555"),
        ("tcp://node-3.cluster:1", "tcp://node-3.cluster:1"),
        ("tcp://*:0", "tcp://*:*"),
        ("tcp://[::1]:5555", "tcp://[::1]:5555"),
        ("tcp://[2001:0DB8::00:7]:*", "tcp://[2001:db8::7]:*"),
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
    assert parse("tcp://[::]:5555", bind=False).endpoint == "tcp://[::1]:5555"


@each(
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
        "tcp://[]:5555",
        "tcp://::1:5555",
        "tcp://[::1",
        "tcp://[::1]",
        "tcp://[::g]:5555",
        "tcp://[127.0.0.1]:5555",
        "tcp://[fe80::1%eth0]:5555",
        "tcp://eth0;host:5555",
        "tcp://host:5555/x",
        "ipc://",
        "ipc://@abstract",
        "ipc:///tmp/\0",
        "ipc:///no/such/folder/socket",
    ],
)
@each("bind", [True, False])
def test_what_is_no_address_is_refused(text: str, bind: bool) -> None:
    with pytest.raises(LaunchError):
        parse(text, bind=bind)


@each("text", ["tcp://*:5555", "tcp://127.0.0.1:0", "tcp://127.0.0.1:*"])
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
        data_endpoints(f"ipc://{path}/coordinator")
    assert list(deep.iterdir()) == []


def test_a_folder_whose_owner_was_killed_is_removed_by_the_next_and_no_other_is(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with private_folder() as living, ExitStack() as dead:
        old = dead.enter_context(private_folder())
        (old / "run" / "logs").mkdir(parents=True)
        (old / "run" / "logs" / "a.log").touch()
        makeshift = folder / "asyncdni-makeshift"  # of an older version, or not yet held
        makeshift.mkdir(mode=0o700)
        elsewhere = folder / "elsewhere"  # of the user's own
        elsewhere.mkdir(mode=0o700)
        (elsewhere / ".asyncdni-owner").touch()
        (folder / "asyncdni-link").symlink_to(elsewhere)
        with private_folder():
            assert {living, old, makeshift, elsewhere} < set(folder.iterdir())
        _let_go(old)
        with private_folder():
            assert not old.exists()
        assert {living, makeshift, elsewhere} < set(folder.iterdir())
        assert (elsewhere / ".asyncdni-owner").exists()


def _let_go(folder: Path) -> None:
    """What the system does of a process that is killed: nobody holds its lock any more."""
    copy = folder / "copy"
    copy.touch(mode=0o600)
    copy.rename(folder / ".asyncdni-owner")


def test_large_files_go_where_the_user_wants_temporary_files(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    deep = folder / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with private_folder(sockets=False) as path:
        assert path.parent == deep
        assert not holds_sockets(path)


def test_places_that_can_not_be_written_to_are_passed_over_and_named(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "gone"))
    with private_folder() as path:
        assert path.parent == Path("/tmp")
    with pytest.raises(LaunchError, match=r"gone: No such file or directory\): set TMPDIR"):
        private_folder(sockets=False).__enter__()


def test_a_worker_listens_in_the_folder_of_its_coordinator(folder: Path) -> None:
    ((first,), (second,)) = (data_endpoints(f"ipc://{folder}/coordinator") for _ in range(2))
    assert os.path.dirname(first.path) == str(folder)
    assert first != second


def test_a_worker_listens_on_the_interface_that_reaches_its_coordinator() -> None:
    (only,) = data_endpoints("tcp://localhost:5555")
    assert only.endpoint == "tcp://127.0.0.1:*"


def test_a_worker_listens_where_it_is_told_to() -> None:
    for text, ports in (
        ("tcp://0.0.0.0:6000", [6000]),
        ("tcp://eth0:6000-6003", [6000, 6001, 6002, 6003]),
        ("tcp://127.0.0.1:*", [0]),
    ):
        found = data_endpoints("tcp://localhost:5555", text)
        assert sorted(one.port for one in found) == ports
        assert {one.host for one in found} == {text[6:].rpartition(":")[0]}
    for text in (
        "tcp://h:7-6",
        "tcp://h:0-6",
        "tcp://h:1-65536",
        "tcp://h:a-b",
        "h:6000",
        "udp://h:1",
    ):
        with pytest.raises(LaunchError, match="address"):
            data_endpoints("tcp://localhost:5555", text)


def test_neighbours_are_told_an_address_that_they_can_connect_to(folder: Path) -> None:
    here = "tcp://localhost:5555"
    assert advertised("tcp://10.0.0.1:6000", here) == "tcp://10.0.0.1:6000"
    assert advertised("tcp://0.0.0.0:6000", here) == "tcp://127.0.0.1:6000"
    assert advertised("tcp://0.0.0.0:6000", here, "tcp://outside:7000") == "tcp://outside:7000"
    assert advertised("tcp://0.0.0.0:6000", here, "tcp://outside:*") == "tcp://outside:6000"
    assert advertised("tcp://0.0.0.0:6000", here, "node-3") == "tcp://node-3:6000"
    assert advertised("tcp://0.0.0.0:6000", here, "192.0.2.7") == "tcp://192.0.2.7:6000"
    for six in ("2001:db8::7", "[2001:db8::7]", "tcp://[2001:db8::7]:*"):
        assert advertised("tcp://[::]:6000", here, six) == "tcp://[2001:db8::7]:6000"
    assert advertised("tcp://[2001:db8::7]:6000", here) == "tcp://[2001:db8::7]:6000"
    assert advertised("tcp://[::]:6000", here) == "tcp://127.0.0.1:6000"
    assert advertised("ipc:///run/w", here) == "ipc:///run/w"
    for endpoint, coordinator, chosen in (
        ("tcp://10.0.0.1:6000", here, "tcp://0.0.0.0:6000"),
        ("tcp://10.0.0.1:6000", here, "tcp://*:6000"),
        ("tcp://10.0.0.1:6000", here, "::"),
        ("tcp://10.0.0.1:6000", here, "node-3:6000"),
        ("tcp://10.0.0.1:6000", here, "no name"),
        ("tcp://10.0.0.1:6000", here, ""),
        ("tcp://10.0.0.1:6000", here, f"ipc://{folder}/w"),
        ("ipc:///run/w", here, "tcp://outside:*"),
        ("tcp://0.0.0.0:6000", f"ipc://{folder}/coordinator", None),
    ):
        with pytest.raises(LaunchError, match=r"expected|name one"):
            advertised(endpoint, coordinator, chosen)


def test_ports_alone_are_those_of_the_interface_that_reaches_the_coordinator(folder: Path) -> None:
    assert towards("tcp://localhost:5555", "5600-5699") == "tcp://127.0.0.1:5600-5699"
    assert towards("tcp://127.0.0.1:5555", "5600") == "tcp://127.0.0.1:5600"
    for ports in ("", "0", "5699-5600", "5600-65536", "5600-", "a", "5600,5601"):
        with pytest.raises(LaunchError, match=f"^--ports {ports}: expected ports FIRST-LAST"):
            towards("tcp://127.0.0.1:5555", ports)
    with pytest.raises(LaunchError, match="whose workers have no ports"):
        towards(f"ipc://{folder}/coordinator", "5600-5699")


def test_a_name_with_an_ipv6_address_alone_is_reached_over_ipv6(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = {"both": ("::1", "127.0.0.1"), "six": ("::1",), "four": ("127.0.0.1",)}

    def look_up(host: str, port: int | None, **_: object) -> list[tuple[object, ...]]:
        if host not in known:
            raise socket.gaierror
        families = [socket.AF_INET6 if ":" in ip else socket.AF_INET for ip in known[host]]
        return [(family, 0, 0, "", ()) for family in families]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    needs = {name: Address("tcp", name, 1).needs_ipv6() for name in (*known, "nowhere")}
    assert needs == {"both": False, "six": True, "four": False, "nowhere": False}


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(LaunchError, match=r"no-such-host\.invalid"):
        data_endpoints("tcp://no-such-host.invalid:5555")


# --- who else may come ---------------------------------------------------------------------------

OPEN = [
    "tcp://192.0.2.7:5555",
    "tcp://node-3.cluster:5555",
    "tcp://0.0.0.0:5555",
    "tcp://*:5555",
    "tcp://*:0",
    "tcp://127.0.0.1.example.org:5555",
    "tcp://localhost.example.org:5555",
    "tcp://1270.0.0.1:5555",
    "tcp://[::]:5555",
    "tcp://[2001:db8::7]:5555",
]


@each("address", OPEN)
def test_an_address_off_this_host_needs_keys_or_a_loud_word(address: str) -> None:
    with pytest.raises(ConfigError, match=r"--keys DIR \(`asyncdni keys new DIR`.* --insecure"):
        check_secure(address, None, insecure=False)
    check_secure(address, None, insecure=True)
    check_secure(address, make_keys(), insecure=False)


@each(
    "address",
    [
        "tcp://127.0.0.1:5555",
        "tcp://127.8.8.8:0",
        "tcp://localhost:5555",
        "tcp://[0:0::1]:5555",
        "ipc:///any/where",
    ],
)
def test_an_address_of_this_host_alone_needs_neither(address: str) -> None:
    check_secure(address, None, insecure=False)


def test_what_is_no_address_is_not_secure() -> None:
    with pytest.raises(LaunchError):
        check_secure("udp://127.0.0.1:5555", None, insecure=False)


@pytest.mark.parametrize("bind", [True, False])
@pytest.mark.parametrize("mode", [0o755, 0o711, 0o710, 0o701, 0o1777])
def test_a_folder_that_others_may_enter_is_no_place_for_a_socket(
    folder: Path, mode: int, bind: bool
) -> None:
    inner = folder / "inner"
    inner.mkdir()
    inner.chmod(mode)
    folder.chmod(0o755)
    with pytest.raises(LaunchError, match="other users may enter"):
        parse(f"ipc://{inner}/run", bind=bind)
    inner.chmod(0o700)
    parse(f"ipc://{inner}/run", bind=bind)


def test_an_open_folder_behind_a_closed_one_is_closed(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner").chmod(0o777)
    assert parse(f"ipc://{folder}/inner/run", bind=True).path == f"{folder}/inner/run"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give folders away")
def test_a_folder_of_another_user_is_no_place_for_a_socket(folder: Path) -> None:
    os.chown(folder, 12345, -1)
    with pytest.raises(LaunchError, match="other users may enter"):
        parse(f"ipc://{folder}/run", bind=True)


def test_a_link_to_a_folder_is_as_open_as_that_folder(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        os.chmod(place, 0o755)
        (folder / "link").symlink_to(place)
        with pytest.raises(LaunchError, match="other users may enter"):
            parse(f"ipc://{folder}/link/run", bind=True)


def test_a_key_stays_with_its_endpoint() -> None:
    key = bytes(range(32))
    for endpoint in ("tcp://192.0.2.7:5555", "ipc:///tmp/a?key=b/w1"):
        assert split_key(join_key(endpoint, key)) == (endpoint, key)
        assert split_key(endpoint) == (endpoint, None)


@each("tail", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64])
def test_what_is_no_key_is_left_in_the_endpoint_and_refused_there(tail: str) -> None:
    endpoint, key = split_key(f"tcp://127.0.0.1:5?key={tail}")
    assert key is None
    with pytest.raises(LaunchError):
        parse(endpoint, bind=False)
