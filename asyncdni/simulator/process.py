"""What every worker process has: a life, a clock, a heart, and connections to the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from asyncdni.core.liveness import Sight
from asyncdni.messages import Beat, Message
from asyncdni.simulator.world import World

__all__ = ["Office", "Process"]

_BEATS_PER_SILENCE = 3
#: Of its coordinator's silence, in `limits.silence_s` and in seconds, the longer one: then there is
#: nobody left to work for.
_SILENCES, _SILENCE_MIN_S = 10.0, 3.0


class Office(Protocol):
    """The coordinator's process, as a worker's knows it."""

    key: str

    def receive(self, peer: bytes, message: Message) -> None: ...


class Process:
    """One process of the worker `name`. `ended(code)` is called once, when it has ended.

    While it is paused nothing happens in it; what was to happen follows at once afterwards.
    """

    def __init__(
        self, world: World, name: str, number: int, office: Office, ended: Callable[[int], None]
    ) -> None:
        self.world = world
        self.name = name
        self.key = f"{name}#{number}"
        self.peer = self.key.encode()
        self.address = f"virtual://{self.key}"
        self.office = office
        self.clock = world.mischance.clock()
        self.alive = True
        self.slowness = 1.0  # ops take so many times as long
        self.addresses: dict[str, str] = {}  # of neighbours
        self._ended = ended
        self._hear = partial(office.receive, self.peer)
        self._silence_s = world.design.experiment.limits.silence_s
        self._pauses = self._starvations = 0
        self._backlog: list[Callable[[], None]] = []
        self._heard_s = self._looked_s = 0.0

    # --- life ------------------------------------------------------------------------------------

    def exit(self, code: int) -> None:
        if self.alive:
            self.alive = False
            self._backlog.clear()
            self._ended(code)

    def pause(self, for_s: float, *, starved: bool = False) -> None:
        """SIGSTOP, and SIGCONT later; or `starved`: its host has no core to spare for so long."""
        self._pauses += 1
        self._starvations += starved
        self.world.agenda.after(for_s, partial(self._go_on, starved))

    @property
    def sight(self) -> Sight:
        """What its process looks like from outside, where it has not spoken for a while."""
        stopped = self._pauses > self._starvations
        return Sight.STARVED if self._starvations and not stopped else Sight.STILL

    def _go_on(self, starved: bool) -> None:
        self._pauses -= 1
        self._starvations -= starved
        while self._backlog and not self._pauses:
            self._backlog.pop(0)()

    def later(self, delay_s: float, what: Callable[[], None], *, idle: bool = False) -> None:
        """After a while, if it lives then."""
        self.world.agenda.after(delay_s, partial(self.now, what), idle=idle)

    @property
    def is_awake(self) -> bool:
        """What comes now is done at once."""
        return self.alive and not self._pauses and not self._backlog

    def now(self, what: Callable[[], None]) -> None:
        """At once, or as soon as it is paused no more."""
        if self.is_awake:
            what()
        elif self.alive:
            self._backlog.append(what)

    # --- messages --------------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """A message has arrived."""
        if self.is_awake:
            self._receive(message)
        elif self.alive:
            self._backlog.append(partial(self._receive, message))

    def _receive(self, message: Message) -> None:
        if not self.alive:
            return
        if type(message) is Beat:
            self._heard_s = self.world.agenda.now
        else:
            self.take(message)

    def take(self, message: Message) -> None:
        """Do what it says."""
        raise NotImplementedError

    def tell(self, message: Message) -> None:
        """To the coordinator."""
        self.world.to_coordinator(self, self.office.key, message, self._hear)

    # --- the heart -------------------------------------------------------------------------------

    def begin_to_beat(self) -> None:
        self._heard_s = self._looked_s = self.world.agenda.now
        self._beat()

    def _beat(self) -> None:
        now = self.world.agenda.now
        limit_s = max(_SILENCE_MIN_S, _SILENCES * self._silence_s)
        if now - self._looked_s > limit_s / 2:
            self._heard_s = now  # it was paused, so the silence was its own
        self._looked_s = now
        if now - self._heard_s > limit_s:
            self.forsaken()
            return
        self.tell(Beat())
        self.later(self._silence_s / _BEATS_PER_SILENCE, self._beat, idle=True)

    def forsaken(self) -> None:
        """The coordinator is gone."""
        raise NotImplementedError
