"""A worker process once it has been let in: it builds its part, and joins round after round.

```
 build, restore ──► Built ──► Connect ──► Ready ──► Start … ──► Leave, Abort: the end
       ▲                                             │
       └──────────── Rejoin, at any moment ──────────┘
```

The process, its sockets, its data set and its meter stay. Each round has a `Worker` and an `Engine`
of its own, and a stage anew but where what it has learned is to be kept.
"""

from __future__ import annotations

from pathlib import Path

from asyncdni.backends.numpy import NumpyStage
from asyncdni.build import (
    Design,
    find_exits,
    find_shares,
    make_roster,
    make_source,
    make_stage,
    make_worker,
)
from asyncdni.checkpoint import Claim
from asyncdni.conditions import link_delays, slow_of
from asyncdni.core.counts import Counts
from asyncdni.core.events import Stop
from asyncdni.errors import CheckpointError, NumericalError
from asyncdni.given import kept
from asyncdni.messages import COORDINATOR, Accused, Built, Connect, Failed, Rejoin, Welcome
from asyncdni.metrics.traces import trace_path
from asyncdni.plan import snapshot_every_s
from asyncdni.runtime.engine import Engine
from asyncdni.runtime.forsaken import Forsaken
from asyncdni.runtime.inbox import Inbox
from asyncdni.runtime.inspection import Inspection
from asyncdni.runtime.meter import Meter
from asyncdni.runtime.restoring import restored_stage
from asyncdni.runtime.snapshots import Snapshots
from asyncdni.runtime.trace import Trace
from asyncdni.transports.zeromq import WorkerTransport

__all__ = ["Session"]


class Session:
    """The rounds of one worker process."""

    def __init__(
        self,
        transport: WorkerTransport,
        inbox: Inbox,
        forsaken: Forsaken,
        design: Design,
        welcome: Welcome,
    ) -> None:
        """Raises `DataError` where the data that this worker hosts can't be used."""
        self._transport = transport
        self._inbox = inbox
        self._forsaken = forsaken
        self._design = design
        self._welcome = welcome
        self._group = next(g for g in design.plan.groups if g.name == welcome.stage)
        self._stages = [node.name for node in self._group.members]
        self._counts = Counts()
        self._stage: NumpyStage | None = None
        self._meter: Meter | None = None
        self._source = make_source(design, self._group)
        # Where all go back together nobody would ever read one.
        used = make_roster(design).goes_on
        every_s = snapshot_every_s(design.experiment.checkpoint) if used else None
        self._snapshots = Snapshots(welcome.folder, every_s)
        self._trace = None
        if welcome.trace and welcome.folder:
            self._trace = Trace(trace_path(Path(welcome.folder), self._group.name))
        experiment, plan = design.experiment, design.plan
        seed = experiment.run.seed
        self._slow = slow_of(experiment, plan, self._group.name, seed)
        inspection = Inspection(design, self._group, {})
        neighbours = make_roster(design).neighbours[self._group.name]
        transport.expect(
            inspection.message_bytes(experiment.data.batch_size), peers=len(neighbours)
        )
        transport.emulate(link_delays(experiment, plan, self._group.name, seed))

    def run(self) -> Stop:
        """Until the coordinator says Leave or Abort.

        Raises what this worker has failed at, such as `CheckpointError` where the folder of the run
        can't be made on this host, and `Told` once the coordinator is gone.
        """
        order = Rejoin(self._welcome.incarnation, self._welcome.restore)
        while True:
            stop = self._round(order)
            if stop.rejoin is None:
                break
            order = stop.rejoin
        if self._trace is not None:
            self._trace.write()
        return stop

    def _round(self, order: Rejoin) -> Stop:
        """Follow an order to join; `Stop.rejoin` is the next one, whenever it came."""
        stage, notes = self._prepared(order.restore)
        newer = self._inbox.newer(order.incarnation)
        if newer is not None:
            return Stop(rejoin=newer)
        self._transport.await_neighbours()
        self._transport.send(COORDINATOR, self._built(order.incarnation, stage, notes))
        connect = self._inbox.await_connect(order.incarnation)
        if isinstance(connect, Rejoin):
            return Stop(rejoin=connect)
        return self._connected(stage, connect)

    def _prepared(self, restore: str) -> tuple[NumpyStage, list[str]]:
        if restore == "keep" and self._stage is not None:
            self._stage.forget()
            return self._stage, []
        folder = Path(self._welcome.folder)
        self._stage, notes = restored_stage(
            lambda: make_stage(self._design, self._group),
            lambda: make_stage(kept(folder, self._design, self._stages), self._group),
            folder,
            restore,
            self._welcome.cut,
            self._stages,
            self._counts,
        )
        return self._stage, notes

    def _built(self, incarnation: int, stage: NumpyStage, notes: list[str]) -> Built:
        counts = self._counts
        return Built(
            incarnation=incarnation,
            parameters=stage.parameters(),
            position=counts.position,
            updates=counts.updates,
            read=counts.read,
            notes=notes,
        )

    def _connected(self, stage: NumpyStage, connect: Connect) -> Stop:
        # Not before all are built: a run that fails until then takes its folder away again.
        claim = None
        if self._welcome.folder:
            _make_folder(self._welcome.folder)
            order = self._welcome.term, connect.incarnation
            claim = Claim(Path(self._welcome.folder), self._stages, order)
            claim.make()
        self._connect(connect)
        engine = self._engine(stage, connect, claim)
        try:
            stop = engine.run(self._inbox.take_early())
        except NumericalError as error:
            engine.report()
            if self._design.experiment.numbers.policy != "roll_back":
                raise
            failed = Failed(type(error).__name__, str(error), "")
            self._transport.send(COORDINATOR, failed)
            stop = Stop(rejoin=self._inbox.await_order(connect.incarnation))
        self._inbox.put(engine.left)
        return stop

    def _connect(self, connect: Connect) -> None:
        """Who says that it listens where nobody can is at fault for that, and not this worker."""
        host = self._design.plan.groups[self._design.plan.host].name
        for worker, text in self._transport.connect(connect.addresses, host=host).items():
            accused = Accused(worker, connect.incarnations[worker], text)
            self._transport.send(COORDINATOR, accused)

    def _engine(self, stage: NumpyStage, connect: Connect, claim: Claim | None) -> Engine:
        worker = make_worker(self._design, self._group, self._counts)
        worker.joined(connect, senders_known=self._transport.knows_senders)
        if self._meter is None:
            hears_synthetic = getattr(worker.schedule, "hears_synthetic", False)
            self._meter = Meter(bootstrapped=hears_synthetic)
        return Engine(
            worker,
            stage,
            self._transport,
            exits=find_exits(self._design),
            shares=find_shares(self._design, self._group),
            source=self._source,
            folder=self._welcome.folder,
            claim=claim,
            trace=self._trace,
            slow=self._slow,
            meter=self._meter,
            snapshots=self._snapshots,
            forsaken=self._forsaken,
            inspection=Inspection(self._design, self._group, connect.incarnations),
        )


def _make_folder(path: str) -> None:
    """On hosts that do not share the coordinator's."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"can't write {path}: {error.strerror}") from error
