"""A worker process in virtual time: it joins rounds, computes, sends, beats, leaves, as the real
one does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from asyncdni.backends.base import Array, Stage
from asyncdni.backends.executor import Executor as StageExecutor
from asyncdni.backends.executor import Source
from asyncdni.build import Design, find_exits, find_shares, make_source, make_worker
from asyncdni.conditions import slow_of
from asyncdni.core.events import Stop
from asyncdni.errors import AsyncDNIError, CheckpointError, NumericalError
from asyncdni.messages import (
    PROTOCOL_VERSION,
    Abort,
    Built,
    Connect,
    Failed,
    Hello,
    Leave,
    Message,
    Refused,
    Rejoin,
    Welcome,
)
from asyncdni.plan import Group
from asyncdni.simulator.conditions import Pace
from asyncdni.simulator.keeping import Keeping
from asyncdni.simulator.null import NullExecutor
from asyncdni.simulator.process import Office, Process
from asyncdni.simulator.round import Executor, Round, TimedOp
from asyncdni.simulator.world import World

__all__ = ["Arithmetic", "MakeStage", "WorkerProcess"]

#: Builds the stage of one worker.
MakeStage = Callable[[Design, Group], Stage]

#: How long a worker waits for a coordinator that does not answer: the default of its command line.
_JOIN_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Arithmetic:
    """Whether there is any, and where its results are written."""

    stages: MakeStage | None = None  # None: only order and time are real
    folder: Path | None = None


class WorkerProcess(Process):
    """The rounds of one process."""

    def __init__(
        self,
        world: World,
        group: Group,
        number: int,
        office: Office,
        ended: Callable[[int], None],
        arithmetic: Arithmetic,
        ops: list[TimedOp],
    ) -> None:
        """`number`: which one of this name; `ops`: where its ops are noted."""
        super().__init__(world, group.name, number, office, ended)
        design = world.design
        self._group = group
        self._arithmetic = arithmetic
        self._ops = ops
        names = tuple(node.name for node in group.members)
        slow = slow_of(design.experiment, design.plan, group.name, world.seed)
        self._pace = Pace(world.costs, group.name, names, world.seed, slow)
        stages = arithmetic.stages
        build = partial(stages, design, group) if stages is not None else None
        self._keeping = Keeping(
            self, group, self._pace, build, arithmetic.folder, failed=self._failed
        )
        self._source: Source | None = None
        self._welcome: Welcome | None = None
        self._order: Rejoin | None = None  # the newest
        self._building = False
        self._round: Round | None = None
        self._early: list[Message] = []
        self.worker = make_worker(design, group, self._keeping.counts)

    def start(self) -> None:
        """The process begins."""
        self.later(self._pace.startup_s(), self._hello)

    def weights(self) -> dict[str, dict[str, Array]]:
        """By declared stage; none without arithmetic."""
        return self._keeping.weights()

    @property
    def ids(self) -> set[int] | None:
        """Of the batches that it has learned from; None where files of before do not say."""
        return self._keeping.ids

    # --- joining ---------------------------------------------------------------------------------

    def _hello(self) -> None:
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            stage=self.name,
            address=self.address,
            pid=self._group.index,
            host="simulator",
        )
        self.tell(hello)
        self.later(_JOIN_TIMEOUT_S, self._give_up)

    def _give_up(self) -> None:
        """No coordinator has answered; its loop may have been over already."""
        if self._welcome is None:
            self.exit(1)

    def take(self, message: Message) -> None:
        """A message has arrived, and is not a beat."""
        if self._round is not None:
            self._round.take(message)
        else:
            self._sort(message)

    def _sort(self, message: Message) -> None:
        """What comes between rounds."""
        match message:
            case Welcome(incarnation=incarnation, restore=restore):
                self._welcome = message
                self.begin_to_beat()
                self._follow(Rejoin(incarnation, restore))
            case Rejoin():
                self._follow(message)
            case Connect(incarnation=incarnation):
                if self._order is not None and incarnation == self._order.incarnation:
                    self._connected(message)
            case Refused() | Abort() | Leave():
                self.exit(1)
            case _:
                self._early.append(message)

    def _follow(self, order: Rejoin) -> None:
        if self._order is not None and order.incarnation <= self._order.incarnation:
            return
        self._order = order
        if not self._building:
            self._build()

    def _build(self) -> None:
        """Reading the state takes about as long as writing it."""
        self._building = True
        assert self._order is not None
        self.later(self._pace.save_s(), partial(self._has_built, self._order))

    def _has_built(self, order: Rejoin) -> None:
        self._building = False
        assert self._welcome is not None
        if order is not self._order:
            self._build()  # for the newest, without a word about this one
            return
        try:
            notes = self._keeping.restore(order.restore, self._welcome.cut)
        except AsyncDNIError as error:
            self._failed(error)
            return
        counts, stage = self._keeping.counts, self._keeping.stage
        built = Built(
            incarnation=order.incarnation,
            parameters=stage.parameters() if stage is not None else 0,
            position=counts.position,
            updates=counts.updates,
            read=counts.read,
            notes=notes,
        )
        self.tell(built)

    def _connected(self, connect: Connect) -> None:
        """The round begins."""
        assert self._welcome is not None
        try:
            self._keeping.claim((self._welcome.term, connect.incarnation))
        except CheckpointError as error:
            self._failed(error)
            return
        self.addresses = dict(connect.addresses)
        design, group = self.world.design, self._group
        self.worker = make_worker(design, group, self._keeping.counts)
        self.worker.joined(connect)
        self._round = Round(
            self,
            self.worker,
            self._executor(),
            self._keeping,
            self._pace,
            self._ops,
            stopped=self._stopped,
            failed=self._failed,
        )
        self._round.begin()
        early, self._early = self._early, []
        for message in early:
            self.receive(message)

    def _executor(self) -> Executor:
        stage, design = self._keeping.stage, self.world.design
        if stage is None:
            return NullExecutor(design, self._group)
        if self._source is None:
            self._source = make_source(design, self._group)
        shares = find_shares(design, self._group)
        return StageExecutor(stage, find_exits(design), self._source, shares=shares)

    # --- the end of a round ----------------------------------------------------------------------

    def _stopped(self, stop: Stop, left: list[Message]) -> None:
        self._round = None
        if stop.rejoin is None:
            self.exit(1 if stop.failed else 0)
            return
        self._follow(stop.rejoin)
        for message in left:
            self._sort(message)

    def _failed(self, error: AsyncDNIError) -> None:
        policy = self.world.design.experiment.numbers.policy
        if self._round is not None:
            self._round.let_go()
            if isinstance(error, NumericalError):
                self._round.report()
        self._round = None
        self.tell(Failed(type(error).__name__, str(error), ""))
        if not (isinstance(error, NumericalError) and policy == "roll_back"):
            self.exit(1)  # otherwise there will be another round

    def exit(self, code: int) -> None:
        if self._round is not None:
            self._round.over = True
        super().exit(code)

    def forsaken(self) -> None:
        """Keep what there is, once it is whole, and leave."""
        if self._round is not None and self._round.busy:
            self._round.after_op = self._leave
        else:
            self._leave()

    def _leave(self) -> None:
        if self._round is not None and not self.worker.unapplied:
            self._keeping.last_snapshot()
        self.exit(1)
