"""Start agents on other machines by the OpenSSH client, and end them with the connection.

An agent's standard input is the connection: its first line has the workers' key, and its end is the
agent's end. So nothing stays behind where a connection breaks, and no key lies on a disk but in a
private folder for as long as the agent lives. On standard output an agent says when it begins to
take part in the run, and when it has been dismissed.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TextIO

from asyncdni import logs
from asyncdni.cluster.keeper import Keeper
from asyncdni.drivers.real.coordinator import Stops
from asyncdni.errors import ConfigError, LaunchError, legible

__all__ = ["Connections", "Line", "keys_line", "receive_keys", "say_part", "send_keys"]

#: The file of the keys that agents get.
_KEY_FILE = "worker.key"
_KEYS_CHARACTERS_MAX = 8192
#: How often in a row the connection to one host is made again after it has broken; one that has
#: lasted for so long begins another row.
_AGAIN_MAX, _STEADY_S = 5, 60.0
#: The longest time until it is made again.
_WAIT_MAX_S = 60.0
#: What an agent says once it takes part in the run, and once it does no more.
_PART = {True: "asyncdni node: begins", False: "asyncdni node: is dismissed"}
_LOOK_EVERY_S = 0.02
_LAST_LINES = 3
_LINE_CHARACTERS = 1000
#: How long agents may take to leave at the end of the run: they wait for their workers.
_GRACE_S = 12.0


class Connections(AbstractContextManager["Connections", None]):
    """Connections to the hosts of a run, one for each rank; each carries an agent.

    Args:
        hosts: as ssh takes them, by rank.
        ssh: the command of the client, with options.
        remote: how `asyncdni` is started on the hosts.
        keys: the folder with the workers' key, which is sent to the agents; None: there is none.
        words: further words of the agents' command lines.
        elastic: whether a host may be away for as long as it likes.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        ssh: str,
        remote: str,
        keys: Path | None,
        words: Sequence[str],
        elastic: bool,
    ) -> None:
        self._hosts = list(hosts)
        self._ssh = shlex.split(ssh)
        self._remote = shlex.split(remote)
        self._keys = keys
        self._words = list(words)
        self._elastic = elastic
        self._coordinator = ""
        self._open: dict[int, _Connection] = {}
        self._broken = [0] * len(hosts)  # how often in a row
        self._due_s: dict[int, float] = {}  # when broken ones are to be made again
        #: The ranks whose agents have said that they take part.
        self.came: set[int] = set()
        self._dismissed: set[int] = set()  # those whose agents have said that they do no more

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        for one in self._open.values():
            one.close(0.0 if isinstance(error, LaunchError) else _GRACE_S)

    def start(self, coordinator: str) -> None:
        """Connect to all hosts; their agents go to the address `coordinator`. Raises `LaunchError`
        if the client can't be started."""
        self._coordinator = coordinator
        for rank in range(len(self._hosts)):
            self._connect(rank)

    def hold(self, keeper: Keeper) -> int:
        """Hold the connections until the coordinator that `keeper` keeps has ended; return its exit
        code. Raises what `check` and the keeper raise."""
        stops = Stops()
        with stops.collecting_signals():
            while (code := keeper.watch()) is None:
                self.check(self.came)
                while stops.take():
                    keeper.signal(stops.numbers[-1])
                time.sleep(_LOOK_EVERY_S)
        return code

    def check(self, here: Container[int]) -> None:
        """Make connections again that have broken, those of the ranks `here`, whose agents had
        come. Raises `LaunchError` for one that could not be made, or breaks again and again where
        nobody can take over its workers."""
        now = time.monotonic()
        for rank, one in list(self._open.items()):
            if one.process.poll() is not None:
                self._has_broken(rank, one, now, came=rank in here)
        for rank, due_s in list(self._due_s.items()):
            if now >= due_s:
                del self._due_s[rank]
                self._connect(rank)

    def _has_broken(self, rank: int, one: _Connection, now: float, *, came: bool) -> None:
        """Have a connection made again, unless its agent was dismissed: at once, and if it breaks
        again after 1, 2, 4, … s."""
        said = one.last_words() or f"exit code {one.process.returncode}"
        if rank in self._dismissed:
            return
        host = self._hosts[rank]
        if not came:
            raise LaunchError(f"--hosts: no agent can be started on {host}: {said}")
        lasted_s = now - one.began_s
        self._broken[rank] = times = 1 if lasted_s >= _STEADY_S else self._broken[rank] + 1
        if times > _AGAIN_MAX and not self._elastic:
            raise LaunchError(f"--hosts: the connection to {host} keeps breaking: {said}")
        wait_s = min(2.0 ** min(times - 2, 10), _WAIT_MAX_S) if times > 1 else 0.0
        when = f" in {wait_s:g} s" if wait_s else ""
        logs.own().warning(f"{host}: the agent has ended ({said}); it is started again{when}")
        del self._open[rank]
        one.close(0.0)
        self._due_s[rank] = now + wait_s

    def _connect(self, rank: int) -> None:
        place = {
            "ASYNCDNI_RANK": str(rank),
            "ASYNCDNI_WORLD_SIZE": str(len(self._hosts)),
            "ASYNCDNI_COORDINATOR": self._coordinator,
        }
        variables = [f"{name}={value}" for name, value in place.items()]
        command = ["env", *variables, *self._remote, "node", "--attached", "--quiet", *self._words]
        # The same folder where there is one of that name: paths may be relative to it.
        script = f"cd {shlex.quote(os.getcwd())} 2>/dev/null; exec {shlex.join(command)}"
        host = self._hosts[rank]
        words = [
            *self._ssh,
            "-T",
            "-o",
            "BatchMode=yes",
            "--",
            host,
            f"sh -c {shlex.quote(script)}",
        ]
        said = {_PART[True]: self.came, _PART[False]: self._dismissed}
        self._open[rank] = _Connection(host, words, lambda text: said[text].add(rank))
        send_keys(self._open[rank].process, self._keys)


class _Connection:
    """One run of the client; `heard` is called with what its agent says of its part in the run."""

    def __init__(self, host: str, words: Sequence[str], heard: Callable[[str], None]) -> None:
        self.began_s = time.monotonic()
        self._heard = heard
        try:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is the coordinator's
            )
        except OSError as error:
            raise LaunchError(
                f"--hosts: can't start {words[0]}: {error.strerror}; install an OpenSSH client, or "
                "name one with --ssh"
            ) from error
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._host = host
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def last_words(self) -> str:
        """Return the last lines of a client that has ended."""
        self._reader.join(1.0)  # it may not have read them yet
        return " | ".join(self._last_lines)

    def close(self, grace_s: float) -> None:
        """End the connection: the agent may take `grace_s` seconds to leave by itself."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_s)
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        self.process.kill()
        self.process.wait()
        self._reader.join(1.0)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                text = line.decode(errors="replace").strip()
                if text in _PART.values():
                    self._heard(text)
                    continue
                level, said = logs.parsed(text, logging.INFO)
                if text := legible(said, _LINE_CHARACTERS):
                    self._last_lines.append(text)
                    logs.own().log(level, f"{self._host}: {text}")


# --- keys and the end, over standard input -------------------------------------------------------


def keys_line(keys: Path | None) -> str:
    """Return the line that brings the workers' key in the folder `keys` to an agent, {} without
    keys, as `receive_keys` reads it.

    Raises `ConfigError` if it can't be read.
    """
    try:
        content = {} if keys is None else {_KEY_FILE: (keys / _KEY_FILE).read_text("ascii")}
    except OSError as error:
        raise ConfigError(f"--keys {keys}: {_KEY_FILE} can't be read: {error.strerror}") from error
    return json.dumps(content)


def send_keys(process: subprocess.Popen[bytes], keys: Path | None) -> None:
    """Send the workers' key in the folder `keys` to an agent, as `keys_line` says.

    Raises `ConfigError` if it can't be read.
    """
    assert process.stdin is not None
    line = keys_line(keys)
    with suppress(OSError):  # it has ended: `Connections.check` tells why
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()


def receive_keys(lines: TextIO, folder: Path) -> bool:
    """Read the first line that an agent gets, and write the key in it, if any, to `folder`, with
    mode 0600. Tell whether there was one. Raises `ConfigError` for any other line."""
    try:
        content = json.loads(lines.readline(_KEYS_CHARACTERS_MAX))
        if content and set(content) != {_KEY_FILE}:
            raise ValueError
        text = content.get(_KEY_FILE, "")
        if content:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(folder / _KEY_FILE, flags, 0o600), "w") as file:
                file.write(text)
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            "--attached: the first line of standard input holds no keys; this flag is for agents "
            "that `asyncdni run --hosts` starts"
        ) from error
    return bool(content)


def say_part(part: bool) -> None:
    """Say, as an agent, whether it takes part in the run from now on."""
    with suppress(OSError):  # the connection may have ended
        print(_PART[part], flush=True)


class Line:
    """Watches a descriptor, such as that of standard input, whose end is that of the connection.

    It reads past Python's buffers: a thread that waits within them would hinder this process from
    ending.
    """

    def __init__(self, descriptor: int) -> None:
        self._ended = threading.Event()
        self._descriptor = descriptor
        threading.Thread(target=self._watch, daemon=True).start()

    def has_ended(self) -> bool:
        """Tell whether the connection is gone."""
        return self._ended.is_set()

    def _watch(self) -> None:
        with suppress(OSError):
            while os.read(self._descriptor, 4096):
                pass
        self._ended.set()
