"""`asyncdni run`: train on all machines that an engine has started this command on."""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from asyncdni import config, logs
from asyncdni.cli import train
from asyncdni.cli.common import (
    add_conditions,
    add_experiment,
    add_init,
    add_logging,
    add_page,
    add_place,
    add_security,
    chosen_run,
    complete_line,
    condition_flags,
    keys_for,
    new_folder,
    page_for,
    shown_on,
    worker_flags,
)
from asyncdni.cluster.agent import Means, serve
from asyncdni.cluster.engines import ALONE, Place, find_place, job_address
from asyncdni.cluster.keeper import KEPT, Keeper, leave_with_keeper
from asyncdni.cluster.lead import Run, digest, lead
from asyncdni.cluster.ray import STRATEGIES, Actors, Request, connected
from asyncdni.cluster.rendezvous import Meeting, Rendezvous
from asyncdni.cluster.ssh import Connections
from asyncdni.errors import AsyncDNIError, ConfigError, LaunchError
from asyncdni.imports import import_flags
from asyncdni.launch.display import make_display
from asyncdni.launch.local import own_command, start_fork_server
from asyncdni.store.mirror import fetch_run
from asyncdni.store.resume import continued_experiment, is_complete
from asyncdni.store.run import EXPERIMENT, open_run
from asyncdni.wire.address import data_endpoints, parse, private_folder
from asyncdni.wire.curve import Keys, coordinator_pair, load_keys, new_keys

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "train on all machines on which an engine (Slurm, torchrun, MPI, ssh, …) starts this command"
EXAMPLE = """\
  asyncdni run launch/digits.toml
  asyncdni run launch/digits.toml --hosts a,b,c --out /shared/digits
  asyncdni run launch/digits.toml --engine ray --out /shared/digits
  srun asyncdni run launch/digits.toml --out /shared/digits --keys keys"""

_DEFAULTS = {"ssh": "ssh", "remote": "asyncdni", "strategy": STRATEGIES[0]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_experiment(parser)
    parser.add_argument("--schedule", metavar="NAME", help="schedule, in place of the file's")
    parser.add_argument("--seed", type=int, metavar="N", help="seed, in place of the file's")
    add_conditions(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="run folder, at the same path on all machines and best on a disk that they share; if "
        "this very run is there already, it goes on (default: a new one under runs/)",
    )
    add_init(parser)
    add_place(parser)
    parser.add_argument(
        "--place",
        type=_counts,
        metavar="N,N,…",
        help="how many workers each rank gets, in the network's order (default: run.place, or such "
        "that no rank has much more work for its cores than the others)",
    )
    parser.add_argument(
        "--hosts",
        metavar="A,B,…",
        help="start an agent on each of these hosts by ssh, which must need no password; this "
        "machine coordinates. The agents get the keys, by default fresh ones, over the connection "
        "and end with it",
    )
    parser.add_argument(
        "--ssh",
        default=_DEFAULTS["ssh"],
        metavar="COMMAND",
        help="the client for --hosts (default: ssh)",
    )
    parser.add_argument(
        "--remote",
        default=_DEFAULTS["remote"],
        metavar="COMMAND",
        help="how asyncdni is started on --hosts, such as /opt/venv/bin/asyncdni",
    )
    _add_ray(parser)
    add_security(parser)
    parser.add_argument(
        "--trace",
        action="store_true",
        help="write every op, message and wait to DIR/trace.json, as `asyncdni train` does; needs "
        "a folder that all machines share",
    )
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="write event files to DIR/tensorboard (extra: tensorboard)",
    )
    add_page(parser)
    add_logging(parser)
    parser.set_defaults(resume=None)


def _add_ray(parser: argparse.ArgumentParser) -> None:
    """Add what --engine ray takes."""
    parser.add_argument(
        "--address",
        metavar="ADDRESS",
        help="for --engine ray: the cluster, as ray.init takes it (default: RAY_ADDRESS, or the "
        "one that runs on this machine)",
    )
    parser.add_argument(
        "--agents",
        type=_positive,
        metavar="N",
        help="for --engine ray: how many agents, each of which takes one CPU (default: one for "
        "each node)",
    )
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default=_DEFAULTS["strategy"],
        help="for --engine ray: place agents on as many nodes as there are, or on as few (default: "
        f"{_DEFAULTS['strategy']})",
    )


def run(args: argparse.Namespace) -> int:
    if args.out == "":
        raise ConfigError("--out '': expected the path of a folder")
    if args.hosts is not None:
        return _over_ssh(args)
    if args.engine == "ray":
        return _over_ray(args)
    for flag in ("address", "agents"):
        if getattr(args, flag) is not None:
            raise ConfigError(f"--{flag} {getattr(args, flag)}: is for --engine ray")
    place = find_place(os.environ, engine=args.engine, coordinator=args.coordinator)
    logs.be("agent", str(place.rank))
    if KEPT not in os.environ:  # otherwise the keeper has said it
        logs.own().info(place.words())
    try:
        chosen = _chosen_at(place, args)
        keys = _keys_at(place, args)
    except AsyncDNIError as error:
        if place.ranks > 1 and place.rank == 0:
            _refuse_all(args, place, error)
        raise
    if place.ranks == 1:
        return _alone(args, chosen)
    means = Means(keys, worker_flags(args), args.allow_import, args.timeout)
    if place.rank:
        serve(place, digest(chosen), replace(means, server=start_fork_server()))
        return 0
    if chosen.recovery.coordinator_s and KEPT not in os.environ:
        return _kept(args, chosen, place, means, "")
    return _first(args, chosen, place)


def _chosen_at(place: Place, args: argparse.Namespace) -> config.Experiment:
    """The experiment that is asked for. Raises `ConfigError` also where an engine has started the
    job again and there is nothing to go on from."""
    chosen = chosen_run(args)
    if place.attempt and not (place.rank or args.out or chosen.run.store):
        raise ConfigError(
            f"attempt {place.attempt + 1} of this job, by {place.engine}: without --out there is "
            "no folder to go on from; give every attempt the same --out DIR"
        )
    return chosen


def _keys_at(place: Place, args: argparse.Namespace) -> Keys | None:
    """The keys of this rank; None for a run on this machine alone, and where there are none. Raises
    `ConfigError` where they can't be used."""
    if place.ranks == 1:
        return None
    assert place.coordinator is not None, "several ranks have an address to meet at"
    keys = keys_for(args, place.coordinator)
    if keys is not None and place.rank == 0:
        coordinator_pair(keys)
    return keys


def _refuse_all(args: argparse.Namespace, place: Place, error: AsyncDNIError) -> None:
    """Have the other ranks know what this one, for which they wait, has failed at before it has
    listened. Where it can't listen either, they wait until their own time is over.

    Without keys that it can use, those with keys find out that it has none, and strangers are told
    nothing more."""
    try:
        keys = _keys_at(place, args)
    except AsyncDNIError:
        keys, error = None, ConfigError("rank 0 has no keys that it can use, and says itself why")
    with suppress(AsyncDNIError):
        meeting = Meeting.at(place.coordinator or "")
        with Rendezvous(meeting, place.ranks, "", keys, **_keeping()) as rendezvous:
            rendezvous.refuse_all(error)


def _alone(args: argparse.Namespace, chosen: config.Experiment) -> int:
    """Train on this machine alone, where workers have no ports."""
    args.ports = None
    kept = os.environ.get(KEPT)
    with nullcontext(Path(kept)) if kept else private_folder() as sockets:
        meeting = Meeting.here(sockets)
        if chosen.recovery.coordinator_s and not kept:
            own = Means(None, (), args.allow_import, args.timeout)
            return _kept(args, chosen, Place(ALONE, 0, 1, meeting.agents), own, str(sockets))
        with Rendezvous(meeting, 1, digest(chosen), None, **_keeping()) as rendezvous:
            return _led(args, chosen, rendezvous)


def _keeping() -> dict[str, Any]:
    """How a rendezvous is to be that of a coordinator with a keeper, if this process is one: rank 0
    has an agent like all others."""
    return {"own_rank": None, "watch": leave_with_keeper} if KEPT in os.environ else {}


def _kept(
    args: argparse.Namespace, chosen: config.Experiment, place: Place, means: Means, sockets: str
) -> int:
    """Be the agent of rank 0, and keep the coordinator going in a process of its own."""
    recovery = chosen.recovery
    with _opened(args, chosen) as folder:
        command = own_command([*args.words, f"--out={folder}"])
        restarts, patience_s = recovery.restarts, recovery.coordinator_s
        with Keeper(command, sockets, folder, restarts, patience_s) as keeper:
            serve(place, digest(chosen), replace(means, keeper=keeper, server=start_fork_server()))
            return keeper.code()


def _first(args: argparse.Namespace, chosen: config.Experiment, place: Place) -> int:
    """Coordinate the run, and be the agent of rank 0."""
    address = place.coordinator or ""
    keys, meeting = keys_for(args, address), Meeting.at(address)
    known: dict[str, Any] = {"hosts": place.hosts, **_keeping()}
    with Rendezvous(meeting, place.ranks, digest(chosen), keys, **known) as rendezvous:
        return _led(args, chosen, rendezvous)


def _over_ssh(args: argparse.Namespace) -> int:
    """Coordinate the run of agents that are started by ssh."""
    hosts = args.hosts.split(",")
    if not all(hosts) or args.engine is not None:
        wrong = "--engine can't be given too" if all(hosts) else "expected names, such as a,b,c"
        raise ConfigError(f"--hosts {args.hosts}: {wrong}")
    logs.be("coordinator")
    place = Place("ssh", 0, len(hosts), args.coordinator, hosts=tuple(hosts))
    try:
        chosen = chosen_run(args)
    except AsyncDNIError as error:
        if KEPT in os.environ:
            _refuse_all(args, place, error)
        raise
    if KEPT in os.environ:  # the keeper has the connections
        return _first(args, chosen, place)
    with ExitStack() as stack:
        where, flags = _for_agents(args, stack)
        words = [*import_flags(args.allow_import), *flags, *logs.flags()]
        options = {"ssh": args.ssh, "remote": args.remote, "keys": where, "words": words}
        elastic = chosen.elastic is not None
        connections = stack.enter_context(Connections(hosts, elastic=elastic, **options))
        own = _own_address(hosts[0])
        if chosen.recovery.coordinator_s:
            return _kept_over(args, chosen, connections, _lasting(args.coordinator or own))
        return _led_over(args, chosen, connections, own, place)


def _lasting(address: str) -> str:
    """Return an address that each coordinator of one run can listen at, in the place of one with
    port 0: its port is none that the system hands out to others meanwhile."""
    given = parse(address, bind=True)
    job = f"{os.getpid()} {time.time_ns()}"
    return address if given.port else job_address(given.host, job)


def _kept_over(
    args: argparse.Namespace, chosen: config.Experiment, connections: Connections, address: str
) -> int:
    """Keep the connections of a run, and its coordinator, which is a process of its own and listens
    at `address`."""
    recovery = chosen.recovery
    with _opened(args, chosen) as folder:
        words = [*args.words, f"--out={folder}", f"--coordinator={address}"]
        words += [f"--keys={args.keys}"] if args.keys else []
        restarts, patience_s = recovery.restarts, recovery.coordinator_s
        with Keeper(own_command(words), "", folder, restarts, patience_s) as keeper:
            connections.start(address)
            return connections.hold(keeper)


def _over_ray(args: argparse.Namespace) -> int:
    """Coordinate the run of agents that are actors of a Ray cluster."""
    logs.be("coordinator")
    chosen = chosen_run(args)
    with ExitStack() as stack:
        ray = stack.enter_context(connected(args.address, quiet=args.quiet))
        where, flags = _for_agents(args, stack)
        startup_s, allowed = chosen.limits.startup_s, args.allow_import
        request = Request(args.agents, args.strategy, startup_s, where, flags, allowed)
        actors = stack.enter_context(Actors(ray, request))
        own = f"tcp://{actors.own_host}:0"
        place = Place("ray", 0, actors.ranks, args.coordinator)
        return _led_over(args, chosen, actors, own, place)


def _for_agents(args: argparse.Namespace, stack: ExitStack) -> tuple[Path | None, list[str]]:
    """Return the folder of the key that agents get, of fresh keys unless some are given, and the
    other flags of their workers."""
    if not (args.keys or args.insecure):
        folder = stack.enter_context(private_folder(sockets=False))
        new_keys(folder)
        args.keys = str(folder)
    flags = ["--insecure"] if args.insecure else []
    flags += ["--ports", args.ports] if args.ports else []
    return (Path(args.keys) if args.keys else None), flags


def _led_over(
    args: argparse.Namespace,
    chosen: config.Experiment,
    agents: Connections | Actors,
    own: str,
    place: Place,
) -> int:
    """Lead a run from outside the ranks of `place`, whose agents are started here and come to the
    address `own`, unless --coordinator says another one."""
    meeting, keys = Meeting.at(args.coordinator or own), load_keys(args.keys) if args.keys else None
    known: dict[str, Any] = {"own_rank": None, "hosts": place.hosts, "watch": agents.check}
    with Rendezvous(meeting, place.ranks, digest(chosen), keys, **known) as rendezvous:
        agents.start(rendezvous.address)
        return _led(args, chosen, rendezvous)


def _own_address(host: str) -> str:
    """The address of this machine by which `host`, as ssh takes it, can reach it, with any port."""
    name = host.rpartition("@")[2]
    try:
        return data_endpoints(f"tcp://{name}:22")[0].endpoint
    except LaunchError as error:
        raise ConfigError(
            f"--hosts: can't tell by which address {name} reaches this machine; name it with "
            "--coordinator tcp://HOST:PORT"
        ) from error


def _led(args: argparse.Namespace, chosen: config.Experiment, rendezvous: Rendezvous) -> int:
    """Lead the run in its folder, or go on with it; there is nothing to do if it is complete."""
    with _opened(args, chosen) as folder:
        if chosen.run.store and not (folder / EXPERIMENT).is_file():
            fetch_run(chosen.run.store, folder)
        resumed = (folder / EXPERIMENT).is_file()
        here = continued_experiment(folder, chosen) if resumed else chosen
        if resumed and is_complete(folder, here):
            print(complete_line(str(folder), here))
            return 0
        job = Run(
            experiment=here,
            folder=folder,
            resumed=resumed,
            keys=load_keys(args.keys) if args.keys else None,
            flags=worker_flags(args),
            allow_import=args.allow_import,
            counts=args.place,
            trace=args.trace,
            tensorboard=args.tensorboard,
            goes_on=_goes_on(args, folder),
        )
        shared = args.hosts is None and rendezvous.ranks > 1
        with (
            page_for(args) as page,
            make_display(quiet=args.quiet, shared=shared) as display,
            shown_on(page, str(folder), folder) as shown,
        ):
            summary = lead(job, rendezvous, [display, *shown])
            display.finish(summary, folder)
        train.leave(open_run(folder), allow_import=args.allow_import, quiet=args.quiet)
    return 0


@contextmanager
def _opened(args: argparse.Namespace, chosen: config.Experiment) -> Iterator[Path]:
    """The folder of the run; a new one unless one is given."""
    name = f"{Path(args.file).stem}-{chosen.schedule.__struct_config__.tag}"
    with nullcontext(Path(args.out)) if args.out else new_folder(Path("runs"), name) as folder:
        yield folder


def _goes_on(args: argparse.Namespace, folder: Path) -> str:
    """The command that goes on with the run, to be started as this one was."""
    words = ["asyncdni", "run", args.file, "--out", str(folder)]
    words += [f"--set={text}" for text in args.set] + condition_flags(args)
    of_ray = ("engine", "address", "agents", "strategy") if args.engine == "ray" else ()
    for name in ("schedule", "seed", "hosts", "ssh", "remote", *of_ray):
        value = getattr(args, name)
        words += [f"--{name}={value}"] if value not in (None, _DEFAULTS.get(name)) else []
    return shlex.join([*words, *import_flags(args.allow_import)])


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def _counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"expected numbers, such as 2,1,1, got {text!r}")
    return [int(part) for part in parts]
