"""One run over several machines, with real processes: by the engines that are installed here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import (
    ENDLESS,
    PATIENCE_S,
    TINY,
    Command,
    Finished,
    Site,
    await_training,
    free_port,
    make_site,
    records,
    until,
    until_recorded,
    weights,
)

ROOT = Path(__file__).parents[1]
ASYNCDNI = (sys.executable, "-m", "asyncdni")

#: Ends a test that would hang; engines start slowly on a busy machine.
_LAUNCHERS_S = 120.0

pytestmark = pytest.mark.long


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        made.write("tiny.toml", TINY.replace('"synthetic"', '"locked"'))
        yield made


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights that `asyncdni train` gives."""
    with make_site(tmp_path_factory.mktemp("train")) as made:
        made.write("tiny.toml", TINY.replace('"synthetic"', '"locked"'))
        assert made.run("train", "tiny.toml", "--out", "run").code == 0
        return weights(made.folder / "run")


def _installed(name: str) -> str:
    """The path of a program; the test is skipped where there is none."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _finished(command: Command) -> Finished:
    finished = command.finished(_LAUNCHERS_S)
    assert finished.code == 0, finished
    return finished


# --- engines -------------------------------------------------------------------------------------


def test_without_an_engine_the_weights_are_those_of_train(
    site: Site, expected: dict[str, bytes]
) -> None:
    """And the same command again has nothing left to do."""
    first = _finished(site.start("run", "tiny.toml", "--out", "run"))
    assert "on this machine alone" in first.err
    assert weights(site.folder / "run") == expected
    again = _finished(site.start("run", "tiny.toml", "--out", "run"))
    assert "is complete, after 2 epochs" in again.out


def test_torchrun_gives_the_weights_of_train(site: Site, expected: dict[str, bytes]) -> None:
    pytest.importorskip("torch")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--no-python"]
    words = ["--nproc-per-node", "2", "--master-port", str(free_port())]
    command = [*launcher, *words, *ASYNCDNI, "run", "tiny.toml", "--out", "run"]
    ran = _finished(site.execute(command, TMPDIR=str(site.folder)))  # torchrun leaves files there
    assert "rank 1 of 2 (torchrun)" in ran.err
    assert weights(site.folder / "run") == expected


def test_open_mpi_gives_the_weights_of_train(site: Site, expected: dict[str, bytes]) -> None:
    """With more ranks than there are workers."""
    mpirun = _installed("mpirun.openmpi")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    words = [mpirun, "--oversubscribe", "-n", "3"]
    ran = _finished(site.execute([*words, *ASYNCDNI, "run", "tiny.toml", "--out", "run"], **root))
    assert "rank 2 of 3 (openmpi)" in ran.err and "nothing to do" in ran.err
    assert weights(site.folder / "run") == expected


# --- deaths, and a stop --------------------------------------------------------------------------


def _rank(site: Site, rank: int, port: int, *words: str) -> Command:
    place = {"ASYNCDNI_RANK": str(rank), "ASYNCDNI_WORLD_SIZE": "2"}
    address = ("--coordinator", f"tcp://127.0.0.1:{port}")
    schedule = ("--schedule", "synthetic", "--set", "checkpoint.snapshot_every=1s")
    command = (*ASYNCDNI, "run", "tiny.toml", "--out", "run", *address, *schedule, *words)
    return site.execute([*_elsewhere(site, "run", rank), *command], **place)


def _elsewhere(site: Site, folder: str, rank: int) -> list[str]:
    """What comes before the command of a rank that is not to see the run's folder, as if it were on
    another machine: nothing for rank 0, and where the system does not allow that."""
    (site.folder / folder).mkdir(exist_ok=True)
    hidden = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {folder} && exec "$@"', "sh"]
    if (
        not rank
        or subprocess.run([*hidden, "true"], cwd=site.folder, capture_output=True).returncode
    ):
        return []
    return hidden


def test_a_worker_and_an_agent_that_die_come_back_and_all_ranks_leave_alike(site: Site) -> None:
    """What the workers of the other machine have printed is in the run's folder, to its end."""
    port, folder = free_port(), site.folder / "run"
    first, agent = (_rank(site, rank, port, *ENDLESS) for rank in (0, 1))
    os.kill(await_training(folder)["top"], signal.SIGKILL)
    until_recorded(folder, "back", 1)
    until(lambda: "worker top has died with signal 9" in agent.warned(), "the agent's news")
    log = folder / "logs" / "top.log"
    until(lambda: log.read_text().count("serves the coordinator") == 2, "the second one's log")
    agent.kill()
    again = _rank(site, 1, port, *ENDLESS)
    until_recorded(folder, "back", 2)
    assert [one["stage"] for one in records(folder, "lost")] == ["top", "top"]
    for command in (first, again):
        command.kill(signal.SIGUSR1)
    ends = [command.finished() for command in (first, again)]
    assert [one.code for one in ends] == [128 + signal.SIGUSR1] * 2
    assert "all is kept in" in ends[0].err and "rank 1 leaves: " in ends[1].err
    said = log.read_text()
    assert said.count("serves the coordinator") == 3 and said.rstrip().endswith("the run is over")


def _coordinator(folder: Path) -> int:
    """The process that has the folder of a run."""
    return int((folder / "lock").read_text().split()[1])


def test_a_copy_of_the_run_has_the_last_lines_of_all_workers(site: Site) -> None:
    """Also of those elsewhere, whose logs come to the run's folder over the wire."""
    pytest.importorskip("fsspec")
    port, copy = free_port(), site.folder / "copy"
    ranks = [_rank(site, rank, port, "--set", f"run.store=file://{copy}") for rank in (0, 1)]
    for command in ranks:
        _finished(command)
    for name in ("hidden", "top"):
        log = (copy / "logs" / f"{name}.log").read_text()
        assert log.rstrip().endswith("the run is over")
        assert log == (site.folder / "run" / "logs" / f"{name}.log").read_text()


@pytest.mark.parametrize("schedule", ["locked", "synthetic"])
def test_a_coordinator_that_is_killed_comes_back_and_its_workers_have_lived_on(
    site: Site, schedule: str
) -> None:
    """Where all go back the weights are those of a run in which nothing died."""
    folder, long = site.folder / "run", ("--schedule", schedule, "--set", "run.epochs=100")
    long += ("--set", "run.evaluate_every=100")
    slow = ("--set", "slow.top.pause=2ms", "--set", "slow.top.chance=1")
    saves = ("--set", "checkpoint.every=10.0", "--set", "recovery.coordinator_s=60")
    agent = site.start("run", "tiny.toml", "--out", "run", *long, *slow, *saves)
    until_recorded(folder, "cut")
    pids = {one["stage"]: one["pid"] for one in records(folder, "joined")}
    os.kill(_coordinator(folder), signal.SIGKILL)
    ended = _finished(agent)
    assert "the coordinator was killed by signal 9; it is started again" in ended.err
    joined = [(one["stage"], one["pid"]) for one in records(folder, "joined")]
    assert sorted(joined) == sorted([*pids.items()] * 2)
    assert all(one.get("again") for one in records(folder, "joined")[2:])
    (again,) = records(folder, "round")
    if schedule == "synthetic":
        assert again["restore"] == "keep" and again["start"] > 0
    else:
        assert site.run("train", "tiny.toml", "--out", "undisturbed", *long).code == 0
        assert weights(folder) == weights(site.folder / "undisturbed")


# --- machines that leave and come back ------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["locked", "synthetic"])
def test_a_machine_that_leaves_and_comes_back_costs_time_alone(site: Site, schedule: str) -> None:
    """Its worker is taken over, and given back later. Under `locked` the weights are those of a run
    of as many steps in which nothing happened; under `synthetic` that machine does not see the
    run's folder, the other one learns on meanwhile, and no worker learns from fewer batches."""
    place = {"ASYNCDNI_WORLD_SIZE": "3", "ASYNCDNI_COORDINATOR": f"tcp://127.0.0.1:{free_port()}"}
    words = ("--place", "0,1,1", "--latency", "10ms", "--set", "elastic.away_s=1", *ENDLESS)
    words += ("--schedule", schedule)

    def start(rank: int) -> Command:
        before = _elsewhere(site, "run", rank) if rank == 2 and schedule == "synthetic" else []
        command = [*before, *ASYNCDNI, "run", "tiny.toml", "--out", "run", *words]
        return site.execute(command, ASYNCDNI_RANK=str(rank), **place)

    folder = site.folder / "run"
    log = folder / "logs" / "top.log"
    ranks = [start(rank) for rank in range(3)]
    until_recorded(folder, "report")
    until(lambda: log.exists() and log.stat().st_size, "the first lines of top")
    ranks[2].kill()
    until_recorded(folder, "back")
    ranks[2] = start(2)
    until_recorded(folder, "back", 2)
    for command in ranks:
        command.kill(signal.SIGUSR1)
    first = ranks[0].finished()
    said = first.out + first.err
    assert "rank 0 takes over top" in said and "top goes back to rank 2" in said
    assert [one["stage"] for one in records(folder, "moved")] == ["top"]
    assert {command.finished().code for command in ranks} == {128 + signal.SIGUSR1}
    steps = json.loads((folder / "final" / "manifest.json").read_text())["batches"]
    if schedule == "synthetic":
        _, again = records(folder, "round")[-2:]
        assert 0 < again["start"] <= steps
        lines = log.read_text()
        assert lines.count("serves the coordinator") == 3
        assert lines.rstrip().endswith("the run is over")
        return
    alike = (*ENDLESS, f"--set=run.max_steps={steps}")
    assert site.run("train", "tiny.toml", "--out", "train", *alike).code == 0
    assert weights(folder) == weights(site.folder / "train")


# --- ssh -----------------------------------------------------------------------------------------


@pytest.fixture
def ssh(site: Site) -> str:
    """The command of a client that reaches a server of this test's own on all of 127.0.0.0/8."""
    server, make_key = _installed("sshd"), _installed("ssh-keygen")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # as its service would
    folder, port = site.folder / "ssh", free_port()
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run([make_key, "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    options = {
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "user.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
    }
    words = [f"-o{name}={value}" for name, value in options.items()]
    running = site.execute([server, "-D", "-e", "-f", "/dev/null", "-p", str(port), *words])

    def listens() -> bool:
        if running.has_ended():
            pytest.skip(f"sshd does not run here: {running.finished().err}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(listens, "sshd")
    client = {
        "Port": port,
        "IdentityFile": folder / "user",
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
    }
    return " ".join([_installed("ssh"), "-F", "none", *(f"-o{k}={v}" for k, v in client.items())])


def test_ssh_gives_the_weights_of_train_though_the_coordinator_is_killed_and_leaves_nothing(
    site: Site, ssh: str, expected: dict[str, bytes]
) -> None:
    marked = [f"{k}={v}" for k, v in site.environment.items() if k.startswith(("ASYNCDNI", "TMP"))]
    remote = " ".join(["env", *marked, *ASYNCDNI])
    hosts = ("--hosts", "127.0.0.1,127.0.0.2,127.0.0.3")
    words = ("--ssh", ssh, "--remote", remote, "--out", "run")
    kept = ("--set", "recovery.coordinator_s=60", "--latency", "100ms")
    keeper = site.start("run", "tiny.toml", *hosts, *words, *kept)
    until_recorded(site.folder / "run", "joined", 2)
    os.kill(_coordinator(site.folder / "run"), signal.SIGKILL)
    ran = _finished(keeper)
    assert "rank 1 on" in ran.err and "it is started again" in ran.err
    assert weights(site.folder / "run") == expected
    absent = site.run("run", "tiny.toml", *hosts, "--ssh", ssh, "--remote", "/none", "--out", "no")
    absent.refused("no agent can be started on 127.0.0.", "/none")
    site.commands[0].kill(signal.SIGTERM)  # the server


# --- Ray -----------------------------------------------------------------------------------------

CLUSTER = """\
import signal
from ray.cluster_utils import Cluster

node = {"num_cpus": 1, "object_store_memory": 80_000_000}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
for _ in range(2):
    cluster.add_node(**node)
print(cluster.address, flush=True)
signal.sigwait({signal.SIGTERM})
cluster.shutdown()
"""


@pytest.fixture
def ray(site: Site) -> Iterator[str]:
    """The address of a Ray cluster of three nodes on this machine."""
    pytest.importorskip("ray")
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # short: for sockets
        own = {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        cluster = site.execute([sys.executable, "-c", CLUSTER], **own)
        yield until(cluster.said, "three nodes of Ray", _LAUNCHERS_S).strip()
        cluster.kill(signal.SIGTERM)
        assert cluster.finished().code == 0, cluster.warned()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_ray_gives_the_weights_of_train_and_starts_a_killed_agent_again(
    site: Site, ray: str, expected: dict[str, bytes]
) -> None:
    words = ("--engine", "ray", "--address", ray, "--coordinator", "tcp://127.0.0.1:0")
    ran = _finished(site.start("run", "tiny.toml", *words, "--out", "run"))
    assert "(Agent" in ran.err and "rank 2 on" in ran.err
    assert weights(site.folder / "run") == expected
    many = site.run("run", "tiny.toml", *words, "--agents", "4", "--out", "no")
    many.refused("--agents 4: each takes one CPU of the Ray cluster, which has 3 on 3 nodes")
    synthetic = ("--schedule", "synthetic", "--set", "checkpoint.snapshot_every=1s", *ENDLESS)
    command = site.start("run", "tiny.toml", *words, *synthetic, "--out", "killed")
    agent = _parent(await_training(site.folder / "killed")["top"])
    os.kill(agent, signal.SIGKILL)
    until_recorded(site.folder / "killed", "back", 1)
    command.interrupt()
    ended = command.finished()
    assert ended.code == 130 and "--engine=ray" in ended.err, ended


# --- Slurm ---------------------------------------------------------------------------------------

SLURM = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmUser=root
StateSaveLocation={folder}
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=4
PartitionName=all Nodes=ALL Default=YES
"""


@pytest.fixture
def slurm() -> Iterator[dict[str, str]]:
    """Variables for the commands of a Slurm of one machine, which is this test's own."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a Slurm of its own")
    munged, controller, daemon = map(_installed, ("munged", "slurmctld", "slurmd"))
    host = socket.gethostname().partition(".")[0]
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "key").write_bytes(os.urandom(64))
        (folder / "key").chmod(0o600)
        ports = [free_port(), free_port()]
        conf = folder / "slurm.conf"
        conf.write_text(SLURM.format(host=host, ports=ports, folder=folder))
        files = {"key-file": "key", "socket": "munge.sock", "pid-file": "munged.pid"}
        files |= {"log-file": "munged.log", "seed-file": "seed"}
        words = [f"--{option}={folder / name}" for option, name in files.items()]
        variables = {"SLURM_CONF": str(conf)}
        every = {**os.environ, **variables}
        started = [
            subprocess.Popen([munged, "--force", "--foreground", *words], env=every),
            subprocess.Popen([controller, "-D"], env=every, stderr=subprocess.DEVNULL),
            subprocess.Popen([daemon, "-D", "-N", host], env=every, stderr=subprocess.DEVNULL),
        ]
        try:
            idle = ["sinfo", "-h", "-o", "%t"]
            until(lambda: _output(idle, every) == "idle", "a Slurm that takes jobs")
            yield variables
        finally:
            for process in started[::-1]:
                process.terminate()
                process.wait(10)


def _output(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip()


def test_a_job_of_slurm_goes_on_after_its_time_and_gives_the_weights_of_train(
    site: Site, slurm: dict[str, str]
) -> None:
    """The signal that comes before the end of its time has it save, leave and be queued again."""
    lengths = ("--set", "run.epochs=40", "--set", "run.evaluate_every=40")
    assert site.run("train", "tiny.toml", "--out", "train", *lengths).code == 0
    slow = ("--latency", "20ms")  # so that the signal comes before the end
    environment = {**site.environment, **slurm, "ASYNCDNI": " ".join(ASYNCDNI)}

    def do(*words: str) -> str:
        return _output([*words], environment)

    size = ("--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", f"--chdir={site.folder}")
    script = str(ROOT / "launch" / "slurm.sbatch")
    job = do("sbatch", "--parsable", *size, script, "tiny.toml", "run", *lengths, *slow)
    folder = site.folder / "run"
    until_recorded(folder, "report")
    do("scancel", "--signal=USR1", job)
    until(lambda: do("squeue", "-h", "-o", "%t", "-j", job) == "PD", "the job in the queue again")
    assert records(folder, "end") == []
    # Slurm waits for two minutes; the node still clears up behind the first start for a moment.
    time.sleep(5.0)

    def ended() -> bool:
        if do("squeue", "-h", "-o", "%t", "-j", job) == "PD":
            do("scontrol", "update", f"jobid={job}", "StartTime=now")
        time.sleep(0.5)  # its scheduler begins anew with each update
        return (folder / "summary.json").exists()

    until(ended, "the end of the run", 4 * PATIENCE_S)
    until(lambda: do("squeue", "-h", "-j", job) == "", "the end of the job")
    assert records(folder, "resumed")
    assert weights(folder) == weights(site.folder / "train")
