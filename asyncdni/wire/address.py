"""Addresses of sockets, `tcp://host:port` or `ipc://path`, and private folders for ipc sockets.

Addresses are checked before ZeroMQ sees them: it reports a bad one as a bare errno, and replaces
any file at an ipc path. Here both raise a `LaunchError` that says what to do. Hosts are IPv4
addresses, names, or IPv6 addresses in brackets. Abstract ipc names (`ipc://@name`) are refused,
since every user of the machine could connect to them; so are paths in folders that other users may
enter.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from asyncdni.errors import ConfigError, LaunchError

if TYPE_CHECKING:
    from asyncdni.wire.curve import Keys

__all__ = [
    "IPC_PATH_BYTES_MAX",
    "Address",
    "advertised",
    "check_secure",
    "data_endpoints",
    "holds_sockets",
    "join_key",
    "listening",
    "parse",
    "port_range",
    "private_folder",
    "reachable_as",
    "remove_ownerless",
    "split_key",
    "towards",
]

#: What fits into `sockaddr_un.sun_path` with its closing zero byte.
IPC_PATH_BYTES_MAX = 107

#: The longest name of a socket in a private folder, with its slash.
_SOCKET_BYTES = 20
_PREFIX = "asyncdni-"
_OWNER = ".asyncdni-owner"

_KEY = re.compile(r"(.*)\?key=([0-9a-f]{64})", re.DOTALL)
_LOOPBACK = re.compile(r"localhost|127(\.[0-9]{1,3}){3}|::1")
_EVERYWHERE = ("0.0.0.0", "::", "*")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_MAY_ENTER = stat.S_IXGRP | stat.S_IXOTH


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address: the `path` of an ipc socket, or `host` and `port` of a tcp one (port 0:
    any). An IPv6 `host` is in its shortest form, without brackets."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def endpoint(self) -> str:
        """The address in ZeroMQ's notation."""
        if self.scheme == "ipc":
            return f"ipc://{self.path}"
        return _tcp(self.host, self.port or "*")

    def needs_ipv6(self) -> bool:
        """Tell whether a socket must speak IPv6 to connect here: to an IPv6 address, or to a name
        that has no IPv4 address on this host.

        Looks names up, each time anew; a name that can't be found counts as IPv4.
        """
        if self.scheme == "ipc":
            return False
        if ":" in self.host:
            return True
        try:
            found = socket.getaddrinfo(self.host, self.port or None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return False
        return socket.AF_INET not in {family for family, *_ in found}


def parse(text: str, *, bind: bool) -> Address:
    """Check an address to bind to, or to connect to. Raises `LaunchError`."""
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "ipc":
        return _parse_ipc(text, rest, bind=bind)
    if separator and scheme == "tcp":
        return _parse_tcp(text, rest, bind=bind)
    raise LaunchError(f"address {text!r}: expected tcp://host:port or ipc://path")


def check_secure(address: str, keys: Keys | None, insecure: bool) -> None:
    """Refuse an address that other hosts can reach unless there are keys, or `insecure` allows it.

    Only ipc and loopback addresses are safe without keys; "localhost" is the only host name that
    counts as loopback. Raises `ConfigError`, and `LaunchError` for a malformed address.
    """
    if keys is not None or insecure or address.startswith("ipc://"):
        return
    if _LOOPBACK.fullmatch(listening(address)[0].host):
        return
    raise ConfigError(
        f"{address} can be reached from other hosts: give --keys DIR (`asyncdni keys new DIR` "
        "makes them), or --insecure to let everybody read and change what is sent"
    )


def join_key(endpoint: str, key: bytes) -> str:
    """Append the listener's public key (32 bytes) to its endpoint, as neighbours receive it."""
    return f"{endpoint}?key={key.hex()}"


def split_key(endpoint: str) -> tuple[str, bytes | None]:
    """Undo `join_key`: return the endpoint and the key, or None where there is no key."""
    found = _KEY.fullmatch(endpoint)
    return (found[1], bytes.fromhex(found[2])) if found else (endpoint, None)


def data_endpoints(coordinator: str, bind: str | None = None) -> list[Address]:
    """List the addresses for a worker's data socket, which takes the first free one.

    `bind` is the user's choice: `tcp://HOST:PORT`, `tcp://HOST:FIRST-LAST` or `ipc://PATH`. Without
    one the coordinator's address decides: for ipc a fresh path in the same folder, for tcp any port
    of the interface that reaches the coordinator. Raises `LaunchError`.
    """
    if bind is not None:
        addresses = listening(bind)
        start = secrets.randbelow(len(addresses))  # workers that start together seldom collide
        return addresses[start:] + addresses[:start]
    address = parse(coordinator, bind=False)
    if address.scheme == "tcp":
        return [Address("tcp", host=_interface_towards(address))]
    path = os.path.join(os.path.dirname(address.path), f"w{secrets.token_hex(4)}")
    return [parse(f"ipc://{path}", bind=True)]


def advertised(endpoint: str, coordinator: str, chosen: str | None = None) -> str:
    """Return the endpoint that neighbours connect to, for a socket bound to `endpoint`.

    `chosen` is the user's choice: see `reachable_as`. Without one the bound endpoint is used; if
    that is every interface, then the one that reaches the coordinator. Raises `LaunchError`.
    """
    if chosen is not None:
        return reachable_as(endpoint, chosen)
    if not endpoint.startswith("tcp://"):
        return endpoint
    bound = parse(endpoint, bind=True)
    if bound.host not in _EVERYWHERE:
        return endpoint
    address = parse(coordinator, bind=False)
    if address.scheme != "tcp":
        raise LaunchError(
            f"--bind {endpoint}: with a coordinator at {coordinator} nobody can tell which of this "
            "host's addresses is meant; name one, or give --advertise HOST"
        )
    return _tcp(_interface_towards(address), bound.port)


def reachable_as(endpoint: str, chosen: str) -> str:
    """Return the address at which others reach a socket bound to `endpoint`, as the user says.

    `chosen` is HOST or tcp://HOST:PORT, needed where a container or a router has another address
    outside, or where other hosts know this one by a name; port 0 or *, or none, stands for the
    bound port. The name is looked up by those who connect, not here. Raises `LaunchError`.
    """
    if not endpoint.startswith("tcp://"):
        raise LaunchError(f"--advertise {chosen}: expected none where the socket is {endpoint}")
    try:
        address = parse(chosen if "://" in chosen else _tcp(chosen.strip("[]"), 0), bind=True)
    except LaunchError:
        address = Address("")
    if address.scheme != "tcp" or address.host in _EVERYWHERE:
        raise LaunchError(
            f"--advertise {chosen}: expected HOST or tcp://HOST:PORT that other hosts can connect "
            "to, such as node-3, 192.0.2.7 or tcp://[2001:db8::7]:5600"
        )
    return _tcp(address.host, address.port or parse(endpoint, bind=True).port)


def listening(bind: str) -> list[Address]:
    """Parse an address to listen at, `tcp://HOST:FIRST-LAST` included: one for each port, in order.

    Raises `LaunchError`.
    """
    found = re.fullmatch(r"(tcp://.*:)([0-9]{1,5}-[0-9]{1,5})", bind)
    if found is None:
        return [parse(bind, bind=True)]
    return [
        parse(f"{found[1]}{port}", bind=True) for port in port_range(found[2], f"address {bind!r}")
    ]


def port_range(text: str, where: str = "") -> range:
    """Parse `FIRST-LAST`, or one `PORT`. Raises `LaunchError` that names `where` it stands."""
    found = _PORTS.fullmatch(text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 0 < first <= last <= 65535:
        raise LaunchError(
            f"{where or f'ports {text!r}'}: expected ports FIRST-LAST, the first not above the "
            "last, from 1 to 65535"
        )
    return range(first, last + 1)


def towards(coordinator: str, ports: str) -> str:
    """Return the address of these ports, `FIRST-LAST`, on the interface that reaches the
    coordinator, as a user would give it to --bind. Raises `LaunchError`."""
    port_range(ports, f"--ports {ports}")
    address = parse(coordinator, bind=False)
    if address.scheme != "tcp":
        raise LaunchError(
            f"--ports {ports}: expected none with a coordinator at {coordinator}, whose workers "
            "have no ports"
        )
    return _tcp(_interface_towards(address), ports)


def _tcp(host: str, port: int | str) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


# --- private folders -----------------------------------------------------------------------------


@contextmanager
def private_folder(*, sockets: bool = True) -> Iterator[Path]:
    """Make a fresh folder that only this user can enter, and remove it at the end.

    If this process is killed, the next call by the same user removes the folder. With `sockets` the
    path is short enough for sockets, outside $TMPDIR if need be, where space may be scarce: pass
    `sockets=False` for large files. Raises `LaunchError` where no place can be written to.
    """
    folder = _make_private(sockets)
    owned = _own(folder)
    try:
        yield Path(folder)
    finally:
        _remove(folder)
        if owned is not None:
            os.close(owned)


def holds_sockets(folder: Path) -> bool:
    """Tell whether paths in `folder` are short enough for sockets."""
    return len(os.fsencode(folder)) <= IPC_PATH_BYTES_MAX - _SOCKET_BYTES


def remove_ownerless(folder: str | Path) -> None:
    """Remove a private folder of this user whose process ended without removing it.

    A process locks a file in its folder as long as it lives; the system releases the lock when it
    dies. A folder without that file, with another name or of another user is left alone.
    """
    with suppress(OSError):
        status = os.lstat(folder)
        ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        if not ours or not os.path.basename(folder).startswith(_PREFIX):
            return
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(os.path.join(folder, _OWNER), flags)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)
        finally:
            os.close(handle)


def _make_private(sockets: bool) -> str:
    failures = []
    for place in _places(sockets):
        try:
            _sweep(place)
            folder = tempfile.mkdtemp(prefix=_PREFIX, dir=place)
        except OSError as error:
            failures.append(f"{place}: {error.strerror}")
            continue
        if _is_private(folder) and (not sockets or holds_sockets(Path(folder))):
            return folder
        os.rmdir(folder)
        failures.append(f"{place}: its path is too long, or its folders are open to all")
    raise LaunchError(
        f"no place for a temporary folder ({'; '.join(failures)}): set TMPDIR to a folder that you "
        f"can write to, with a path of less than {IPC_PATH_BYTES_MAX - _SOCKET_BYTES - 20} bytes"
    )


def _places(sockets: bool) -> Iterator[str]:
    """Yield the places for a private folder, the best first."""
    with suppress(FileNotFoundError):  # tempfile found no place that can be written to
        yield tempfile.gettempdir()
    if sockets:
        own = os.environ.get("XDG_RUNTIME_DIR", "")
        yield from ("/tmp", *([own] if os.path.isabs(own) else []), "/var/tmp", "/dev/shm")


def _own(folder: str) -> int | None:
    """Create and lock the owner file of `folder`; None if it can't be locked.

    The file gets its name only after it is locked, so nobody sees it unlocked.
    """
    path = os.path.join(folder, _OWNER)
    try:
        handle = os.open(f"{path}.new", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(f"{path}.new", path)
    except OSError:  # a file system without locks; without the file nobody removes the folder
        os.close(handle)
        return None
    return handle


def _sweep(place: str) -> None:
    with os.scandir(place) as entries:
        for name in [entry.name for entry in entries if entry.name.startswith(_PREFIX)]:
            remove_ownerless(os.path.join(place, name))


def _remove(folder: str | Path) -> None:
    """Remove a folder, its owner file last, so that a later sweep finds a half-removed folder."""
    with suppress(OSError):
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=True)
            elif name != _OWNER:
                os.unlink(path)
    shutil.rmtree(folder, ignore_errors=True)


# --- parsing -------------------------------------------------------------------------------------


def _parse_tcp(text: str, rest: str, *, bind: bool) -> Address:
    host, _, port_text = rest.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = _ipv6(text, host[1:-1])
    elif host != "*" and not re.fullmatch(r"[A-Za-z0-9_.-]+", host):
        raise LaunchError(
            f"address {text!r}: expected tcp://HOST:PORT, where HOST is a name, an IPv4 address or "
            "an IPv6 address in brackets"
        )
    if bind and port_text == "*":
        port_text = "0"
    port = int(port_text) if re.fullmatch(r"[0-9]{1,5}", port_text) else -1
    if not int(not bind) <= port <= 65535:
        raise LaunchError(f"address {text!r}: the port must be a number from 1 to 65535")
    if host == "*" and not bind:
        raise LaunchError(f"address {text!r}: a connection needs the host's name, not '*'")
    if not bind:  # the coordinator listens everywhere and runs on this machine
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return Address("tcp", host=host, port=port)


def _ipv6(text: str, host: str) -> str:
    """The shortest form of an IPv6 address. One that means an interface (`fe80::1%eth0`) is
    refused: it would mean another one on other hosts."""
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        address = None
    if address is None or address.scope_id is not None:
        raise LaunchError(
            f"address {text!r}: expected an IPv6 address in the brackets, without an interface"
        )
    return str(address)


def _parse_ipc(text: str, path: str, *, bind: bool) -> Address:
    if not path or path.startswith("@") or "\0" in path:
        raise LaunchError(f"address {text!r}: expected ipc:// and the path of a socket file")
    path = os.path.abspath(path)
    size = len(os.fsencode(path))
    if size > IPC_PATH_BYTES_MAX:
        raise LaunchError(
            f"ipc path {path!r} has {size} bytes, the system allows {IPC_PATH_BYTES_MAX}: "
            "choose a shorter folder"
        )
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise LaunchError(f"address {text!r}: there is no folder {folder!r}; create it first")
    if not _is_private(folder):
        raise LaunchError(
            f"address {text!r}: other users may enter {folder!r}; choose a folder of your own, "
            "made with mkdir -m 700"
        )
    if bind:
        _check_free(path)
    return Address("ipc", path=path)


def _is_private(folder: str) -> bool:
    """Tell whether this user owns some folder on the path and all others are shut out of it."""
    way = Path(os.path.realpath(folder))
    for place in (way, *way.parents):
        status = os.stat(place)
        if status.st_uid == os.geteuid() and not status.st_mode & _MAY_ENTER:
            return True
    return False


def _check_free(path: str) -> None:
    """Check that nothing of value is at an ipc path: ZeroMQ unlinks the path before it binds."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise LaunchError(f"ipc path {path!r} is a file that is not a socket: choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(path) == 0:
            raise LaunchError(f"ipc path {path!r} is in use by another process: choose another")


def _interface_towards(coordinator: Address) -> str:
    """Return the IP address from which packets to the coordinator leave; nothing is sent."""
    family = socket.AF_INET6 if coordinator.needs_ipv6() else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((coordinator.host, coordinator.port))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise LaunchError(
            f"coordinator {coordinator.endpoint}: {error.strerror or error}; "
            "check the host's name and the network"
        ) from error
