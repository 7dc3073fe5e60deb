"""Keys of a run (CurveZMQ): who may take part, and how processes recognise each other.

A folder of keys holds up to two files; a host needs those of the processes that it runs:

```
coordinator.key   the coordinator's pair, and the public key of the workers
worker.key        the pair of all workers, and the public key of the coordinator
```

The workers' pair proves that a process belongs to the run. For data between workers each worker
process makes a pair of its own and tells the coordinator its public key. So a worker accepts its
neighbours only, and knows who sent each message: see SECURITY.md.
"""

from __future__ import annotations

import os
import stat
import struct
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from asyncdni.errors import ConfigError, LaunchError
from asyncdni.wire import sockets
from asyncdni.wire.codec import Buffer
from asyncdni.wire.port import EVENT
from asyncdni.wire.sockets import Socket

__all__ = [
    "Gate",
    "Handshake",
    "KeyPair",
    "Keys",
    "as_client",
    "as_server",
    "coordinator_pair",
    "load_keys",
    "new_keys",
    "new_pair",
    "worker_pair",
]

_ROLES = ("coordinator", "worker")
_FIELDS = ("role", "public", "secret", "peer")
_FILE_BYTES_MAX = 4096
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public and a secret key, 40 characters of Z85 each, as ZeroMQ takes them."""

    public: bytes
    secret: bytes = field(repr=False)

    @property
    def public_bytes(self) -> bytes:
        """The public key as 32 bytes."""
        return z85.decode(self.public)


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a run on this host: both public ones, and the pairs of the processes it may
    run."""

    coordinator_public: bytes
    worker_public: bytes
    coordinator: KeyPair | None = None
    worker: KeyPair | None = None


def new_pair() -> KeyPair:
    """Make a fresh pair from the system's source of randomness."""
    return KeyPair(*zmq.curve_keypair())


def as_server(socket: zmq.Socket[bytes], pair: KeyPair) -> None:
    """Make a socket require keys; the `Gate` decides which ones it lets in."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
    socket.setsockopt(zmq.ZAP_DOMAIN, b"asyncdni")


def as_client(socket: zmq.Socket[bytes], pair: KeyPair, server: bytes) -> None:
    """Make a socket connect with `pair` to the owner of the public key `server` only."""
    socket.setsockopt(zmq.CURVE_SERVERKEY, server)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)


def coordinator_pair(keys: Keys) -> KeyPair:
    """Return the coordinator's pair. Raises `ConfigError` where this host has none."""
    if keys.coordinator is None:
        raise ConfigError(
            "the keys have no coordinator.key: a host with only worker.key can't run a coordinator"
        )
    return keys.coordinator


def worker_pair(keys: Keys) -> KeyPair:
    """Return the pair of all workers. Raises `ConfigError` where this host has none."""
    if keys.worker is None:
        raise ConfigError(
            "the keys have no worker.key: a host with only coordinator.key can't run a worker"
        )
    return keys.worker


# --- making --------------------------------------------------------------------------------------


def new_keys(folder: Path) -> tuple[Path, Path]:
    """Write the keys of a run; return the paths of the coordinator's and of the workers' file.

    The folder gets mode 0700, the files 0600. Raises `ConfigError` where the folder holds keys
    already, is open to others or can't be written.
    """
    coordinator, worker = new_pair(), new_pair()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_closed(folder, os.stat(folder), "700")
        paths = folder / "coordinator.key", folder / "worker.key"
        for path in paths:
            if os.path.lexists(path):
                raise ConfigError(f"{path} exists: keys are never overwritten, name a new folder")
        _write(paths[0], "coordinator", coordinator, worker.public)
        _write(paths[1], "worker", worker, coordinator.public)
    except OSError as error:
        raise ConfigError(f"can't write keys to {folder}: {error.strerror}") from error
    return paths


def _write(path: Path, role: str, pair: KeyPair, peer: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(path, flags, 0o600), "w", encoding="ascii") as file:
        file.write(
            f"# Keys of a run of asyncdni, for its {role}. Whoever reads this file can take part.\n"
            f'role = "{role}"\n'
            f'public = "{pair.public.decode()}"\n'
            f'secret = "{pair.secret.decode()}"\n'
            f'peer = "{peer.decode()}" # public key of the other side\n'
        )


# --- loading -------------------------------------------------------------------------------------


def load_keys(folder: str | Path) -> Keys:
    """Read the keys in a folder; the files in it decide which processes this host may run.

    Raises `ConfigError` for a folder without keys or one that others can enter, for a file that
    others can read, that is damaged or in the wrong place, and for two files of different runs.
    """
    folder = Path(folder)
    try:
        _check_closed(folder, os.stat(folder), "700")
        found = {role: _load(folder / f"{role}.key", role) for role in _ROLES}
    except OSError as error:
        raise ConfigError(
            f"can't read keys in {folder}: {error.strerror}; `asyncdni keys new DIR` makes them"
        ) from error
    coordinator, worker = found["coordinator"], found["worker"]
    if coordinator is not None:
        pair, worker_public = coordinator
        if worker is not None and (worker[0].public, worker[1]) != (worker_public, pair.public):
            raise ConfigError(
                f"{folder}: coordinator.key and worker.key are of different runs; use one folder "
                "for each `asyncdni keys new`"
            )
        return Keys(pair.public, worker_public, pair, worker[0] if worker is not None else None)
    if worker is not None:
        pair, coordinator_public = worker
        return Keys(coordinator_public, pair.public, None, pair)
    raise ConfigError(
        f"{folder} holds neither coordinator.key nor worker.key: `asyncdni keys new DIR` makes "
        "both; copy to each host what it needs"
    )


def _load(path: Path, role: str) -> tuple[KeyPair, bytes] | None:
    """Return the pair and the peer's public key; None where there is no file."""
    try:
        # O_NONBLOCK: opening a pipe would wait for its writer.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except FileNotFoundError:
        return None
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path} is no file: expected keys made by `asyncdni keys new`")
        _check_closed(path, status, "600")
        return _parse(path, role, file.read(_FILE_BYTES_MAX))


def _check_closed(path: Path, status: os.stat_result, mode: str) -> None:
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"{path} belongs to another user: keys must be your own")
    if status.st_mode & _OTHERS:
        raise ConfigError(
            f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}): "
            f"chmod {mode} {path}, or make new keys if they may have been read"
        )


def _parse(path: Path, role: str, content: bytes) -> tuple[KeyPair, bytes]:
    try:
        fields = tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is damaged: {error}; expected keys made by `asyncdni keys new`"
        ) from error
    if set(fields) != set(_FIELDS):
        raise ConfigError(f"{path} has {sorted(fields)}, expected {sorted(_FIELDS)}")
    if fields["role"] != role:
        raise ConfigError(f"{path} holds keys for {fields['role']!r}, expected {role!r}")
    public, secret, peer = (_key(path, name, fields[name]) for name in _FIELDS[1:])
    if zmq.curve_public(secret) != public:
        raise ConfigError(f"{path} is damaged: its secret key does not belong to its public one")
    return KeyPair(public, secret), peer


def _key(path: Path, name: str, text: object) -> bytes:
    """Check a key's text. The error never quotes it: it may be a secret key in the wrong place."""
    try:
        if not isinstance(text, str) or len(z85.decode(text)) != 32:
            raise ValueError
    except (ValueError, KeyError, struct.error):
        raise ConfigError(
            f"{path}: {name} is no key, expected 40 characters of Z85 (rfc.zeromq.org/spec/32)"
        ) from None
    return text.encode("ascii")


# --- gate ----------------------------------------------------------------------------------------

_ENDPOINT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_NOTED_MAX = 64  # strangers that get a line of their own
_ANSWERED_MAX = 256  # requests in one call of `answer`


class Gate:
    """Lets in peers with known public keys, by answering ZeroMQ's ZAP requests
    (rfc.zeromq.org/spec/27).

    One gate serves all sockets of a context and must be made before the first of them is bound.
    ZeroMQ asks it at every handshake, which waits until `answer` is called.

    `known` holds the accepted keys (32 bytes each); the caller may change it at any time. A message
    over an accepted connection carries the key as 64 hexadecimal digits (`sockets.receive_from`).
    `refused` counts every attempt of a peer with an unknown key.
    """

    def __init__(self, context: zmq.Context[Socket], *, final: bool) -> None:
        """With `final` an unknown peer is told not to try again. Otherwise it may, since its key
        may become known later."""
        self.known: set[bytes] = set()
        #: True while further keys are about to become known. Unknown peers then wait for their
        #: answer, since a refused one would need another handshake.
        self.waits = False
        self.refused = 0
        self._final = final
        self._strangers: set[bytes] = set()
        self._at_gate: list[Buffer] | None = None  # the one request that has not been answered
        self.socket: Socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ENDPOINT)

    def answer(self) -> list[str]:
        """Answer the waiting requests; never blocks.

        Returns a line about each new unknown peer. Once there are many, it returns a line only
        whenever the number of refusals has doubled.
        """
        noted: list[str] = []
        for _turn in range(_ANSWERED_MAX):  # a bound, so that a flood can't keep it here
            request = self._at_gate or sockets.receive(self.socket)
            self._at_gate = None
            if request is None:
                break
            _, number, _, address, _, mechanism, *credentials = map(bytes, request)
            key = credentials[0] if credentials else b""
            known = mechanism == b"CURVE" and key in self.known
            if self.waits and not known:
                self._at_gate = request
                break
            if known:
                self._reply(number, b"200", b"", key.hex().encode())
            else:
                self._reply(number, b"400" if self._final else b"300", b"unknown key", b"")
                noted += self._note(key, address.decode(errors="replace"))
        return noted

    def _note(self, key: bytes, address: str) -> list[str]:
        self.refused += 1
        if key in self._strangers or len(self._strangers) >= _NOTED_MAX:
            if self.refused <= _NOTED_MAX or self.refused & (self.refused - 1):
                return []
            return [f"refused peers {self.refused:,} times so far, the last one at {address}"]
        self._strangers.add(key)
        who = z85.encode(key).decode() if len(key) == 32 else "none"
        return [f"refused a peer at {address or 'this host'}: unknown key {who}"]

    def _reply(self, number: bytes, status: bytes, text: bytes, user: bytes) -> None:
        self.socket.send_multipart([_VERSION, number, status, text, user, b""], zmq.NOBLOCK)


# --- handshake -----------------------------------------------------------------------------------

#: So many handshakes may break off without a reason. A server breaks off if the client expects
#: another key; one or two may be due to a dying coordinator.
_BROKEN_OFF_MAX = 5


class Handshake:
    """Watches a worker's socket until its first handshake with the coordinator at `address`
    succeeds.

    It finds out, as far as ZeroMQ tells, why the coordinator refuses the worker, which then need
    not wait any longer.
    """

    def __init__(self, socket: Socket, address: str, *, keys: bool) -> None:
        self._watched = socket
        self._address = address
        self._keys = keys
        self._broken_off = 0
        self.socket: Socket = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )

    def done(self) -> bool:
        """Tell whether the handshake has succeeded. Raises `LaunchError` once it can't succeed."""
        while self.socket.poll(0):
            event, value = EVENT.unpack(self.socket.recv_multipart()[0])
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return True
            reason = self._reason(event, value)
            if reason:
                raise LaunchError(f"coordinator {self._address} {reason}")
        return False

    def close(self) -> None:
        """Stop watching."""
        self._watched.disable_monitor()
        self.socket.close(linger=0)

    def _reason(self, kind: int, value: int) -> str:
        """Return why the handshake can't succeed; empty while it still may."""
        if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return "does not know this worker's key: give both the keys of one `asyncdni keys new`"
        if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            if value != zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
                return ""
            if self._keys:
                return "uses no keys: start it with --keys, or this worker without"
            return "accepts only workers with keys: give this one --keys DIR"
        self._broken_off += 1  # each of the failures above may also look like this
        if self._broken_off < _BROKEN_OFF_MAX:
            return ""
        if self._keys:
            return (
                "breaks off every handshake: it has other keys than this worker expects, or uses "
                "no keys; give both the keys of one `asyncdni keys new`"
            )
        return (
            "breaks off every handshake: it may accept only workers with keys: give this one "
            "--keys DIR"
        )
