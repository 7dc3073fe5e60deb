"""Start agents on the nodes of a Ray cluster, one actor each, and start those again that die.

The process that asks for them is Ray's driver, and coordinates the run. Ray places the actors in
one placement group, passes on what they print, and starts an actor again whose process or node has
died; an agent that has left by itself is started again in the same actor.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from asyncdni import logs
from asyncdni.cluster.agent import Means, serve
from asyncdni.cluster.engines import Place
from asyncdni.cluster.ssh import keys_line, receive_keys
from asyncdni.errors import AsyncDNIError, ConfigError, LaunchError, legible
from asyncdni.imports import Allowed
from asyncdni.launch.local import start_fork_server
from asyncdni.wire.address import private_folder
from asyncdni.wire.curve import load_keys

__all__ = ["STRATEGIES", "Actors", "Request", "connected"]

#: How Ray spreads the agents: over as many nodes as it can, or over as few.
STRATEGIES = ("SPREAD", "PACK")
#: How often the agent of one rank is started again.
_AGAIN_MAX = 5
#: How often the actors are looked at, and how long they may take to leave at the end of the run:
#: they wait for their workers.
_LOOK_EVERY_S, _GRACE_S = 0.25, 12.0
#: How long a cluster may take to answer.
_ANSWER_S = 10.0
_CHARACTERS_MAX = 1000


@contextmanager
def connected(address: str | None, *, quiet: bool) -> Iterator[Any]:
    """Connect to a Ray cluster, and yield the module `ray`.

    `address` is as `ray.init` takes it; None: that of RAY_ADDRESS, as jobs have it, or that of the
    cluster which runs on this machine. Unless `quiet`, what actors print is printed here too.
    Raises `ConfigError` where Ray is not installed, and `LaunchError` where no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--engine ray needs Ray, which is not installed: pip install 'asyncdni[ray]'"
        ) from error
    found = address or os.environ.get("RAY_ADDRESS") or "auto"
    _check_answers(found)
    try:
        ray.init(found, log_to_driver=not quiet, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise LaunchError(
            f"--engine ray: no Ray cluster at {found}: {_one_line(error)}; start one by `ray start "
            "--head`, or name one with --address"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise `LaunchError` unless somebody listens at `address`, if that is HOST:PORT: Ray itself
    would ask for minutes. Raise `ConfigError` for that of a Ray Client, which runs on no node, so
    that Ray does not know by which address agents could reach it."""
    if address.startswith("ray://"):
        raise ConfigError(
            f"--address {address}: expected HOST:PORT of the cluster, on one of whose nodes this "
            "must run; from elsewhere use `ray job submit`"
        )
    host, colon, port = address.rpartition(":")
    if not (colon and port.isascii() and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise LaunchError(
            f"--engine ray: nobody answers at {address}: {error}; name a cluster that runs with "
            "--address"
        ) from error


@dataclass(frozen=True)
class Request:
    """What is asked of Ray, and what all agents get."""

    agents: int | None  # None: one for each node of the cluster
    strategy: str  # one of STRATEGIES
    startup_s: float  # that Ray may take to find room for all agents
    keys: Path | None  # the folder with the workers' key; None: there is none
    flags: Sequence[str]  # of each worker's command line, but for keys
    allow_import: Allowed


class Actors(AbstractContextManager["Actors", None]):
    """The actors of a run, one for each rank; each is an agent.

    Raises `ConfigError` where the cluster has too few CPUs, one for each agent.
    """

    def __init__(self, ray: Any, request: Request) -> None:
        self._ray = ray
        self._request = request
        nodes = [one for one in ray.nodes() if one["Alive"] and one["Resources"].get("CPU")]
        #: How many agents there are.
        self.ranks = request.agents or len(nodes)
        slots = int(ray.cluster_resources().get("CPU", 0))
        if not 0 < self.ranks <= slots:
            raise ConfigError(
                f"--agents {self.ranks}: each takes one CPU of the Ray cluster, which has {slots} "
                f"on {len(nodes)} nodes: expected 1 to {slots}"
            )
        #: The address of this machine by which the cluster's nodes reach it.
        self.own_host: str = _own_node(ray)["NodeManagerAddress"]
        self._coordinator = ""
        self._actors: list[Any] = []
        self._serving: list[Any] = []  # the call of each actor that goes on
        self._made_again = [0] * self.ranks
        self._looked_s = 0.0

    def __exit__(self, *_: object) -> None:
        if self._serving:
            self._ray.wait(self._serving, num_returns=self.ranks, timeout=_GRACE_S)
        for actor in self._actors:
            self._ray.kill(actor)

    def start(self, coordinator: str) -> None:
        """Place the actors; their agents go to the address `coordinator`. Raises `LaunchError` if
        there is no room for all of them in time."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as InGroup

        request, self._coordinator = self._request, coordinator
        group = placement_group([{"CPU": 1}] * self.ranks, strategy=request.strategy)
        if not group.wait(request.startup_s):
            free = self._ray.available_resources().get("CPU", 0)
            raise LaunchError(
                f"--engine ray: no room for {self.ranks} agents within {request.startup_s:g} s "
                f"(limits.startup_s), {free:g} CPUs of the cluster are free: ask for fewer with "
                "--agents, or wait until other jobs have ended"
            )
        again = {"max_restarts": _AGAIN_MAX, "max_task_retries": _AGAIN_MAX}
        made = self._ray.remote(num_cpus=1, **again)(Agent)
        for rank in range(self.ranks):
            bundle = InGroup(placement_group=group, placement_group_bundle_index=rank)
            self._actors.append(made.options(scheduling_strategy=bundle).remote())
            self._serving.append(self._serve(rank))

    def check(self, here: Container[int]) -> None:
        """Start agents again that have left, those of the ranks `here`, who had come. Raises
        `LaunchError` for one that could not come, or leaves or dies again and again."""
        now = time.monotonic()
        if now - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now
        ended, _ = self._ray.wait(self._serving, num_returns=self.ranks, timeout=0)
        for rank in range(self.ranks):
            if self._serving[rank] in ended:
                self._go_on(rank, came=rank in here)

    def _go_on(self, rank: int, *, came: bool) -> None:
        try:
            said = self._ray.get(self._serving[rank])
        except self._ray.exceptions.RayError as error:
            raise LaunchError(
                f"--engine ray: the agent of rank {rank} can't be started, or keeps dying: "
                f"{_one_line(error)}"
            ) from error
        self._made_again[rank] += 1
        if not came or self._made_again[rank] > _AGAIN_MAX:
            raise LaunchError(f"--engine ray: the agent of rank {rank} has left: {said}")
        self._serving[rank] = self._serve(rank)

    def _serve(self, rank: int) -> Any:
        request = self._request
        place = Place("ray", rank, self.ranks, self._coordinator)
        line = keys_line(request.keys)
        words = line, list(request.flags), request.allow_import, os.getcwd()
        return self._actors[rank].serve.remote(place, *words)


class Agent:
    """The agent of one machine, in a process that Ray starts: an actor."""

    def serve(
        self, place: Place, keys: str, flags: list[str], allow_import: Allowed, folder: str
    ) -> str:
        """Be the agent until the run is over; return what it has ended with, empty if well.

        `keys` is the line that `cluster.ssh.keys_line` has made; paths may be relative to `folder`,
        where there is one of that name.
        """
        with suppress(OSError):
            os.chdir(folder)
        try:
            # Ray shows what is printed here where the run was started.
            with logs.printed() as printer, private_folder(sockets=False) as own:
                printer.use(None, json=False, stamped=True, quiet=False)
                logs.be("agent", str(place.rank))
                if receive_keys(StringIO(keys), own):
                    flags = [*flags, "--keys", str(own)]
                loaded = load_keys(own) if "--keys" in flags else None
                serve(place, "", Means(loaded, flags, allow_import, server=start_fork_server()))
        except AsyncDNIError as error:
            return str(error)
        return ""


def _own_node(ray: Any) -> dict[str, Any]:
    """Return what Ray says of the node that this process runs on."""
    own = ray.get_runtime_context().get_node_id()
    return next(one for one in ray.nodes() if one["NodeID"] == own)


def _one_line(error: BaseException) -> str:
    """Return the last line of what Ray says, which names the cause."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return legible(lines[-1].strip(), _CHARACTERS_MAX)
