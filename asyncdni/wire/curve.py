"""Keys of a run (CurveZMQ): who may take part, and how hosts know each other.

A folder of keys holds at most two files, and each host needs those of the parts that it plays:

```
coordinator.key   its own pair, and the public key of the workers
worker.key        the pair of all workers, and the public key of the coordinator
```

The pair of the workers proves that a process belongs to the run. Data between workers goes by a
pair that each worker process makes for itself and tells the coordinator, so that a worker hears
its neighbours alone, and knows from whom each message is: see SECURITY.md.
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
from zmq.utils.monitor import recv_monitor_message

from asyncdni.errors import ConfigError, LaunchError
from asyncdni.wire import sockets
from asyncdni.wire.codec import Buffer
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
    """Public and secret key, 40 characters of Z85 each, as ZeroMQ takes them."""

    public: bytes
    secret: bytes = field(repr=False)

    @property
    def public_bytes(self) -> bytes:
        """The public key as 32 bytes."""
        return z85.decode(self.public)


@dataclass(frozen=True, slots=True)
class Keys:
    """What this host has of a run's keys: both public ones, and the pairs of its own parts."""

    coordinator_public: bytes
    worker_public: bytes
    coordinator: KeyPair | None = None
    worker: KeyPair | None = None


def new_pair() -> KeyPair:
    """A fresh pair, from the system's source of randomness."""
    return KeyPair(*zmq.curve_keypair())


def as_server(socket: zmq.Socket[bytes], pair: KeyPair) -> None:
    """Have a socket let in nobody without keys; who may come in is the gate's to say."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
    socket.setsockopt(zmq.ZAP_DOMAIN, b"asyncdni")


def as_client(socket: zmq.Socket[bytes], pair: KeyPair, server: bytes) -> None:
    """Have a socket talk to the owner of the public key `server` alone, as `pair`."""
    socket.setsockopt(zmq.CURVE_SERVERKEY, server)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)


def coordinator_pair(keys: Keys) -> KeyPair:
    """The pair of a coordinator. Raises `ConfigError` where this host has none."""
    if keys.coordinator is None:
        raise ConfigError(
            "the keys have no coordinator.key: a host with worker.key alone runs none"
        )
    return keys.coordinator


def worker_pair(keys: Keys) -> KeyPair:
    """The pair of all workers. Raises `ConfigError` where this host has none."""
    if keys.worker is None:
        raise ConfigError(
            "the keys have no worker.key: a host with coordinator.key alone runs none"
        )
    return keys.worker


# --- making --------------------------------------------------------------------------------------


def new_keys(folder: Path) -> tuple[Path, Path]:
    """Make the keys of a run; returns the files of the coordinator and of the workers.

    The folder is made with mode 0700, the files with 0600. Raises `ConfigError` where the folder
    holds keys already, is open to others or can't be written.
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
    """The keys in a folder; which parts this host may play follows from the files there.

    Raises `ConfigError` for a folder without keys, one that others can enter or a file that others
    can read, a file that is damaged, of the other part, or of another run than its neighbour.
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
    """The pair and the peer's public key; None where there is no file."""
    try:
        # A pipe in its place must not make us wait.
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
    """Checks a key as text. Never quotes it: it may be a secret in the wrong place."""
    try:
        if not isinstance(text, str) or len(z85.decode(text)) != 32:
            raise ValueError
    except (ValueError, KeyError, struct.error):
        raise ConfigError(
            f"{path}: {name} is no key, expected 40 characters of Z85 (rfc.zeromq.org/spec/32)"
        ) from None
    return text.encode("ascii")


# --- gate ----------------------------------------------------------------------------------------
#
# Who may connect: answers to ZeroMQ's questions about keys (ZAP, rfc.zeromq.org/spec/27).
#
# One gate serves all sockets of a context. ZeroMQ asks it about every handshake, and the handshake
# waits for the answer: without a gate's `answer` nobody comes in. It must be there before the first
# socket of its context is bound.

_ENDPOINT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_NOTED_MAX = 64  # strangers, each noted once
_ANSWERED_MAX = 256  # of one `answer`


class Gate:
    """Lets in the owners of known public keys.

    `known` are their keys (32 bytes each), the caller's to change at any time; a message that comes
    over such a connection carries the key as 64 hexadecimal digits (`sockets.receive_from`).
    Strangers are counted in `refused`, each time they try.
    """

    def __init__(self, context: zmq.Context[Socket], *, final: bool) -> None:
        """`final`: a stranger is refused for good, and told; otherwise it may try again later,
        as one whose key becomes known too late."""
        self.known: set[bytes] = set()
        #: Word is awaited of who is to be known: until then strangers wait at the gate, since one
        #: that is not let in would try again after a whole handshake's time.
        self.waits = False
        self.refused = 0
        self._final = final
        self._strangers: set[bytes] = set()
        self._at_gate: list[Buffer] | None = None  # the one request that has not been answered
        self.socket: Socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ENDPOINT)

    def answer(self) -> list[str]:
        """Answer those who wait; never blocks. Returns a line about each new stranger, and beyond
        some of them one whenever the number of refusals has doubled."""
        noted: list[str] = []
        for _turn in range(_ANSWERED_MAX):  # or a flood would never end
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
#
# Why a coordinator does not let a worker in, as far as ZeroMQ tells: no use to wait then.

#: Handshakes that the other side has broken off without a word: what a server does to those who
#: call it by another's key. One or two may be due to a coordinator that dies.
_BROKEN_OFF_MAX = 5


class Handshake:
    """Watches one socket until its first handshake with `address` has succeeded."""

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
        """Whether there is nothing more to watch. Raises `LaunchError` once it can't succeed."""
        while self.socket.poll(0):
            event = recv_monitor_message(self.socket)
            if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return True
            reason = self._reason(event["event"], event["value"])
            if reason:
                raise LaunchError(f"coordinator {self._address} {reason}")
        return False

    def close(self) -> None:
        """Stop watching."""
        self._watched.disable_monitor()
        self.socket.close(linger=0)

    def _reason(self, kind: int, value: int) -> str:
        """Empty while it may still succeed."""
        if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return "does not know this worker's key: give both the keys of one `asyncdni keys new`"
        if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            if value != zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
                return ""
            if self._keys:
                return "uses no keys: start it with --keys, or this worker without"
            return "lets in workers with keys alone: give this one --keys DIR"
        self._broken_off += 1  # which may be all that is seen of any of the above
        if self._broken_off < _BROKEN_OFF_MAX:
            return ""
        if self._keys:
            return (
                "breaks off every handshake: it has other keys than this worker expects, or uses "
                "no keys; give both the keys of one `asyncdni keys new`"
            )
        return (
            "breaks off every handshake: it may be one that lets in workers with keys alone: give "
            "this one --keys DIR"
        )
