"""The place of a process among those that an engine has started, and what it gets to do there."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from each import each

from asyncdni.cluster.engines import ALONE, Place, expand_hosts, find_place
from asyncdni.cluster.placement import as_asked, balanced
from asyncdni.cluster.ray import connected
from asyncdni.errors import AsyncDNIError, ConfigError

GIVEN = {"ASYNCDNI_RANK": "1", "ASYNCDNI_WORLD_SIZE": "4", "ASYNCDNI_COORDINATOR": "tcp://h:7"}
TORCHRUN = {
    **{"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "1"},
    **{"MASTER_ADDR": "first", "MASTER_PORT": "29500", "TORCHELASTIC_RESTART_COUNT": "1"},
}
OPEN_MPI = {
    **{"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"},
    **{"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "12"},
}
SLURM = {
    **{"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_NODEID": "1", "SLURM_JOB_ID": "77"},
    **{"SLURM_STEP_ID": "0", "SLURM_JOB_NODELIST": "n[01-02]"},
}
PMI = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}
KUBERNETES = {
    **{"JOB_COMPLETION_INDEX": "3", "HOSTNAME": "job-7-3", "ASYNCDNI_SERVICE": "svc"},
    **{"ASYNCDNI_WORLD_SIZE": "4"},
}


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


def host(place: Place) -> str:
    assert place.coordinator is not None
    return place.coordinator.removeprefix("tcp://").rpartition(":")[0]


@each(
    "environment, engine, rank, ranks, at, attempt",
    [
        ({}, ALONE, 0, 1, None, 0),
        (GIVEN, "asyncdni", 1, 4, "h", 0),
        (TORCHRUN, "torchrun", 2, 3, "first", 1),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "3"}, "torchrun", 2, 3, "127.0.0.1", 1),
        (OPEN_MPI, "openmpi", 0, 2, "127.0.0.1", 0),
        (SLURM, "slurm", 1, 2, "n01", 0),
        ({**SLURM, "SLURM_RESTART_COUNT": "2"}, "slurm", 1, 2, "n01", 2),
        ({**SLURM, "SLURM_STEP_NODELIST": "n02"}, "slurm", 1, 2, "127.0.0.1", 0),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "4"}, "slurm", 1, 4, "n01", 0),
        (PMI, "mpi", 1, 2, "127.0.0.1", 0),
        (KUBERNETES, "kubernetes", 3, 4, "job-7-0.svc", 0),
    ],
)
def test_each_engine_gives_a_place(
    environment: dict[str, str], engine: str, rank: int, ranks: int, at: str | None, attempt: int
) -> None:
    place = find_place(environment)
    assert (place.engine, place.rank, place.ranks, place.attempt) == (engine, rank, ranks, attempt)
    assert place.coordinator is None if at is None else host(place) == at
    if engine != ALONE:
        assert find_place(environment, engine=engine) == place


@each(
    "environment, hosts",
    [
        (SLURM, ("n01", "n02")),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "4"}, ()),
        (KUBERNETES, ("job-7-0", "job-7-1", "job-7-2", "job-7-3")),
        (TORCHRUN, ()),
    ],
)
def test_the_host_of_each_rank_is_known_where_each_has_one(
    environment: dict[str, str], hosts: tuple[str, ...]
) -> None:
    assert find_place(environment).hosts == hosts


def test_of_several_engines_the_first_counts_and_mpirun_within_a_job_of_slurm_is_mpirun() -> None:
    together = {**KUBERNETES, **PMI, **SLURM, **OPEN_MPI, **TORCHRUN, **GIVEN}
    assert find_place(together).engine == "asyncdni"
    assert find_place(without(together, "ASYNCDNI_RANK")).engine == "torchrun"
    assert find_place({**SLURM, **OPEN_MPI}).engine == "openmpi"
    assert find_place({**SLURM, **PMI}).engine == "slurm"
    assert find_place(together, engine="mpi").engine == "mpi"


def test_the_batch_script_of_slurm_is_no_rank() -> None:
    assert find_place(without(SLURM, "SLURM_STEP_ID")).engine == ALONE


def test_jobs_on_the_same_machines_have_addresses_of_their_own() -> None:
    """All ranks of a job have the same one; another job, or another attempt, has another."""
    jobs = [
        SLURM,
        {**SLURM, "SLURM_JOB_ID": "78"},
        {**SLURM, "SLURM_RESTART_COUNT": "1"},
        TORCHRUN,
        {**TORCHRUN, "MASTER_PORT": "29501"},
        OPEN_MPI,
        {**OPEN_MPI, "PMIX_NAMESPACE": "13"},
    ]
    ports = {str(find_place(job).coordinator).rpartition(":")[2] for job in jobs}
    assert len(ports) == len(jobs)
    assert all(20_000 <= int(port) < 30_000 and int(port) % 2 == 0 for port in ports)
    assert find_place({**SLURM, "SLURM_PROCID": "0"}).coordinator == find_place(SLURM).coordinator


def test_the_coordinator_that_is_named_goes_before_that_of_the_engine() -> None:
    assert find_place(TORCHRUN, coordinator="tcp://x:1").coordinator == "tcp://x:1"
    wide = {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    assert find_place(wide, coordinator="tcp://x:1").coordinator == "tcp://x:1"
    with pytest.raises(ConfigError, match=r"openmpi does not say on which host.*--coordinator"):
        find_place(wide)


@each(
    "environment, engine, words",
    [
        ({}, "slurm", "--engine slurm: it has not started this process, which lacks SLURM_PROCID"),
        ({}, "slrm", "--engine slrm: unknown, did you mean 'slurm'"),
        ({}, "ray", "Ray's agents are started by `asyncdni run FILE.toml --engine ray`"),
        ({**GIVEN, "ASYNCDNI_RANK": "one"}, None, "ASYNCDNI_RANK='one' in the environment"),
        ({**GIVEN, "ASYNCDNI_RANK": "4"}, None, "rank 4 of 4: expected a rank from 0 to 3"),
        ({**GIVEN, "ASYNCDNI_COORDINATOR": ""}, None, "give all ranks --coordinator"),
        ({**SLURM, "SLURM_JOB_NODELIST": "n[1-"}, None, "'n[1-' is no list of hosts"),
        ({**KUBERNETES, "HOSTNAME": "job"}, None, "HOSTNAME=job does not end in -3"),
    ],
)
def test_what_makes_no_sense_is_refused(
    environment: dict[str, str], engine: str | None, words: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        find_place(environment, engine=engine)
    assert words in str(refused.value)


@each(
    "text, hosts",
    [
        ("n1", ["n1"]),
        ("n[01-03,7],x", ["n01", "n02", "n03", "n7", "x"]),
        ("a-b[9-11]-ib", ["a-b9-ib", "a-b10-ib", "a-b11-ib"]),
        ("r[1-2]n[3,5]", ["r1n3", "r1n5", "r2n3", "r2n5"]),
    ],
)
def test_lists_of_hosts_are_expanded(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


@each("text", ["", "n[", "n]", "n[]", "n[a]", "n[3-1]", "n[1-]", "n[1-999999999]", "[", ","])
def test_other_texts_are_no_lists_of_hosts(text: str) -> None:
    with pytest.raises(ConfigError, match="is no list of hosts"):
        expand_hosts(text)


@each(
    "installed, address, words",
    [
        (False, None, "which is not installed: pip install 'asyncdni[ray]'"),
        (True, "ray://127.0.0.1:9", "expected HOST:PORT of the cluster, on one of whose nodes"),
        (
            True,
            "127.0.0.1:9",
            "nobody answers at 127.0.0.1:9: [Errno 111] Connection refused",
        ),
    ],
)
def test_without_ray_or_its_cluster_one_line_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, installed: bool, address: str | None, words: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray") if installed else None)
    with pytest.raises(AsyncDNIError) as refused, connected(address, quiet=True):
        pass
    assert words in str(refused.value)


# --- what runs where -----------------------------------------------------------------------------


@each(
    "costs, ranks, expected",
    [
        ([1, 1, 1, 1], 2, [0, 0, 1, 1]),
        ([3, 1, 1, 1], 2, [0, 1, 1, 1]),
        ([1, 1, 1, 3], 2, [0, 0, 0, 1]),
        ([1, 1, 1], 2, [0, 0, 1]),
        ([1, 1], 3, [0, 1]),
        ([5], 2, [0]),
        ([2, 9, 2, 2, 2], 3, [0, 1, 2, 2, 2]),
    ],
)
def test_no_rank_has_more_work_than_it_must_have(
    costs: list[float], ranks: int, expected: list[int]
) -> None:
    for slots in (1, 4):
        placed = balanced({str(at): cost for at, cost in enumerate(costs)}, [slots] * ranks)
        assert list(placed.values()) == expected


@each(
    "slots, room, expected",
    [
        ([3, 1], None, [0, 0, 0, 1]),
        ([64, 8], None, [0, 0, 1, 1]),  # more cores than workers are of no use
        ([0, 2], None, [1, 1, 1, 1]),
        ([1, 4, 1, 1, 1], None, [0, 1, 2, 3]),
        ([1, 1, 1, 1, 4], None, [0, 1, 2, 4]),
        ([4, 4], [1.0, 9.0], [0, 1, 1, 1]),
        ([4, 4], [1.0, 1.0], [0, 0, 1, 1]),  # it fits nowhere: whoever starts it says so
    ],
)
def test_machines_get_as_many_workers_as_they_have_cores_and_memory_for(
    slots: list[int], room: list[float] | None, expected: list[int]
) -> None:
    names = "abcd"
    needs = dict.fromkeys(names, 1) if room is not None else None
    placed = balanced(dict.fromkeys(names, 1.0), slots, needs, room)
    assert list(placed.values()) == expected


def test_workers_are_placed_as_asked() -> None:
    assert as_asked(["a", "b", "c"], [2, 0, 1], 3) == {"a": 0, "b": 0, "c": 2}
    for counts in ([2, 1, 1], [3], [4, -1, 0]):
        with pytest.raises(
            ConfigError, match=r"a number for each rank, 3 in all, that sum to 3.*a, b, c"
        ):
            as_asked(["a", "b", "c"], counts, 3)
