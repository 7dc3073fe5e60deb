"""Which engine has started this process, and which place that gives it among the others.

An engine (Slurm, torchrun, MPI, …) starts the same command once on each machine and describes the
place of each process in environment variables. `ENGINES` lists what is understood; the first entry
whose variables are there counts. Nothing here reads the environment of this process: it is given.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from zlib import crc32

from asyncdni.errors import ConfigError
from asyncdni.experiment.schema import nearest

__all__ = [
    "ALONE",
    "ENGINES",
    "PORT",
    "Engine",
    "Place",
    "expand_hosts",
    "find_place",
    "job_address",
]

Environment = Mapping[str, str]

#: Where the coordinator listens for agents, on machines that one job has for itself.
PORT = 5555
#: Where it listens on machines that several jobs may share: two ports for each job, drawn from here
#: by the job's name, below those that systems hand out by themselves.
_FIRST_PORT, _PORT_PAIRS = 20_000, 5_000

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Place:
    """The place of one process among all those that the engine has started."""

    engine: str
    rank: int
    ranks: int
    coordinator: str | None  # where rank 0 listens, "tcp://HOST:PORT"; None: nobody says
    attempt: int = 0  # how often the engine has started the job before
    hosts: tuple[str, ...] = ()  # of each rank; empty: nobody says

    def words(self) -> str:
        """Say the place, for the user."""
        if self.engine == ALONE:
            return "no engine has started this process: the run takes place on this machine alone"
        again = f", attempt {self.attempt + 1}" if self.attempt else ""
        where = f"; the coordinator is at {self.coordinator}" if self.coordinator else ""
        return f"rank {self.rank} of {self.ranks} ({self.engine}{again}){where}"


@dataclass(frozen=True)
class Engine:
    """An engine that is understood."""

    name: str
    variables: tuple[str, ...]  # all of them are set in each process that the engine starts
    read: Callable[[Environment], Place]

    def is_here(self, environment: Environment) -> bool:
        """Tell whether this engine has started the process of this environment."""
        return all(environment.get(name) for name in self.variables)


#: The name of the place of a process that no engine has started.
ALONE = "alone"


def find_place(
    environment: Environment, *, engine: str | None = None, coordinator: str | None = None
) -> Place:
    """Find the place of the process with this `environment`.

    Args:
        engine: the only one that may have started the process; None: the first of `ENGINES` whose
            variables are set, or nobody.
        coordinator: the coordinator's address, in place of what the engine says.

    Raises `ConfigError` for an engine that is unknown or has not started this process, for
    variables that make no sense, and where nothing tells the coordinator's address.
    """
    if engine is None:
        found = next((one for one in ENGINES if one.is_here(environment)), None)
    else:
        found = _named(engine, environment)
    place = Place(ALONE, 0, 1, None) if found is None else found.read(environment)
    if not 0 <= place.rank < place.ranks:
        raise ConfigError(
            f"{place.engine}: rank {place.rank} of {place.ranks}: expected a rank from 0 to "
            f"{place.ranks - 1}"
        )
    if coordinator is not None:
        return replace(place, coordinator=coordinator)
    if place.coordinator is None and place.ranks > 1:
        raise ConfigError(
            f"{place.engine} does not say on which host rank 0 runs: give all ranks "
            "--coordinator tcp://HOST:PORT, with the name of that host"
        )
    return place


def _named(name: str, environment: Environment) -> Engine:
    if name == "ray":
        raise ConfigError(
            "--engine ray: Ray's agents are started by `asyncdni run FILE.toml --engine ray`, "
            "once, on any node"
        )
    engines = {one.name: one for one in ENGINES}
    if name not in engines:
        close = nearest(name, engines) or ";"
        raise ConfigError(f"--engine {name}: unknown{close} known: {', '.join(engines)}, ray")
    found = engines[name]
    missing = [one for one in found.variables if not environment.get(one)]
    if missing:
        raise ConfigError(
            f"--engine {name}: it has not started this process, which lacks "
            f"{', '.join(missing)} in its environment"
        )
    return found


# --- the engines ---------------------------------------------------------------------------------


def _given(environment: Environment) -> Place:
    return Place(
        "asyncdni",
        _number(environment, "ASYNCDNI_RANK"),
        _number(environment, "ASYNCDNI_WORLD_SIZE"),
        environment.get("ASYNCDNI_COORDINATOR") or None,
    )


def _torchrun(environment: Environment) -> Place:
    """torchrun itself listens at MASTER_PORT, so the run has a port of its own."""
    ranks = _number(environment, "WORLD_SIZE")
    attempt = _number(environment, "TORCHELASTIC_RESTART_COUNT", 0)
    host, port = environment["MASTER_ADDR"], environment["MASTER_PORT"]
    one_host = _number(environment, "LOCAL_WORLD_SIZE", 0) == ranks
    address = job_address(_LOOPBACK if one_host else host, f"{host}:{port}:{attempt}")
    return Place("torchrun", _number(environment, "RANK"), ranks, address, attempt)


def _open_mpi(environment: Environment) -> Place:
    ranks = _number(environment, "OMPI_COMM_WORLD_SIZE")
    one_host = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE", 0) == ranks
    address = job_address(_LOOPBACK, environment.get("PMIX_NAMESPACE", "")) if one_host else None
    return Place("openmpi", _number(environment, "OMPI_COMM_WORLD_RANK"), ranks, address)


def _slurm(environment: Environment) -> Place:
    """The step's own lists, where it has less than the job's machines; rank 0 is on the first."""
    ranks = _number(environment, "SLURM_STEP_NUM_TASKS", _number(environment, "SLURM_NTASKS", 1))
    hosts = expand_hosts(environment.get("SLURM_STEP_NODELIST") or _nodes(environment))
    attempt = _number(environment, "SLURM_RESTART_COUNT", 0)
    job = f"{environment.get('SLURM_JOB_ID')}.{environment['SLURM_STEP_ID']}.{attempt}"
    address = job_address(_LOOPBACK if len(hosts) == 1 else hosts[0], job)
    each = tuple(hosts) if len(hosts) == ranks else ()  # several on one host: in an order unknown
    return Place("slurm", _number(environment, "SLURM_PROCID"), ranks, address, attempt, each)


def _nodes(environment: Environment) -> str:
    return environment["SLURM_JOB_NODELIST"]


def _pmi(environment: Environment) -> Place:
    ranks = _number(environment, "PMI_SIZE")
    one_host = _number(environment, "MPI_LOCALNRANKS", 0) == ranks
    address = f"tcp://{_LOOPBACK}:{PORT}" if one_host else None
    return Place("mpi", _number(environment, "PMI_RANK"), ranks, address)


def _kubernetes(environment: Environment) -> Place:
    """The pods of an Indexed Job are called JOB-INDEX; a headless service gives them addresses."""
    index = _number(environment, "JOB_COMPLETION_INDEX")
    pod, service = environment["HOSTNAME"], environment["ASYNCDNI_SERVICE"]
    job = pod.removesuffix(f"-{index}")
    if job == pod:
        raise ConfigError(
            f"kubernetes: HOSTNAME={pod} does not end in -{index}, the index of the pod: expected "
            "the pod's own host name, as an Indexed Job sets it"
        )
    ranks = _number(environment, "ASYNCDNI_WORLD_SIZE")
    pods = tuple(f"{job}-{rank}" for rank in range(ranks))
    return Place("kubernetes", index, ranks, f"tcp://{job}-0.{service}:{PORT}", hosts=pods)


#: In the order in which they are asked. Open MPI comes before Slurm, inside whose jobs mpirun is
#: often started: then the variables of both are there, and those of Slurm are of mpirun's helpers.
ENGINES = (
    Engine("asyncdni", ("ASYNCDNI_RANK", "ASYNCDNI_WORLD_SIZE"), _given),
    Engine("torchrun", ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"), _torchrun),
    Engine("openmpi", ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), _open_mpi),
    # without SLURM_STEP_ID it is the batch script that runs, and not what srun has started
    Engine("slurm", ("SLURM_PROCID", "SLURM_STEP_ID", "SLURM_JOB_NODELIST"), _slurm),
    Engine("mpi", ("PMI_RANK", "PMI_SIZE"), _pmi),
    Engine(
        "kubernetes",
        ("JOB_COMPLETION_INDEX", "ASYNCDNI_SERVICE", "ASYNCDNI_WORLD_SIZE", "HOSTNAME"),
        _kubernetes,
    ),
)


def job_address(host: str, job: str) -> str:
    """Return an address on `host` that other jobs on the same machines are unlikely to have."""
    port = _FIRST_PORT + 2 * (crc32(job.encode()) % _PORT_PAIRS)
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _number(environment: Environment, name: str, default: int | None = None) -> int:
    text = environment.get(name) or ("" if default is None else str(default))
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{name}={text!r} in the environment: expected a whole number from 0")
    return int(text)


# --- Slurm's lists of hosts ----------------------------------------------------------------------

#: More machines than one range can have.
_HOSTS_MAX = 100_000
_PART = re.compile(r"([^\[\],\s]+)|\[([0-9,-]+)\]")
_ENTRY = rf"(?:{_PART.pattern})+"
_LIST = re.compile(rf"{_ENTRY}(?:,{_ENTRY})*")


def expand_hosts(text: str) -> list[str]:
    """Expand a list of hosts as Slurm writes it: "n[01-03,7],x" is n01, n02, n03, n7, x.

    Raises `ConfigError` for what is no such list.
    """
    if not _LIST.fullmatch(text):
        raise _not_hosts(text)
    hosts: list[str] = []
    for entry in re.finditer(_ENTRY, text):
        parts = _PART.findall(entry[0])
        choices = [[name] if name else _numbers(ranges, text) for name, ranges in parts]
        hosts += ["".join(words) for words in itertools.product(*choices)]
    return hosts


def _numbers(ranges: str, text: str) -> list[str]:
    """Expand "01-03,7"; numbers keep the zeros before them."""
    found: list[str] = []
    for one in ranges.split(","):
        first, dash, last = one.partition("-")
        last = last if dash else first
        if not (first.isdigit() and last.isdigit()) or not 0 <= int(last) - int(first) < _HOSTS_MAX:
            raise _not_hosts(text)
        found += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return found


def _not_hosts(text: str) -> ConfigError:
    return ConfigError(f"{text!r} is no list of hosts: expected one such as n[01-03,7],x")
