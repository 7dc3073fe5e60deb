"""Cores that the workers of a host share: who computes, who waits for a core, who has cold caches.

```
 core 0   a F3 P3 B3 U3 │ c F1 P1 B1 U1 │ a F4 …       a worker keeps its core while it has work,
 core 1   b F2 P2 B2 U2 │ b F3 …                        for one slice where others wait
 waiting  c ───────────►  a ───────────►
```

A worker has one thread, for its ops, its logic and its messages. What is beside the ops (`Burden`)
adds up until the next op, which begins after it, or is worked off at once where there is none: a
busy host has less time for ops, and an idle worker's overhead delays nobody.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from asyncdni.core.events import Action, Compute, Event, Received, Send
from asyncdni.drivers.virtual.clock import Agenda
from asyncdni.drivers.virtual.costs import Hop, Hosts, Pace, Span
from asyncdni.messages import Activation, Gradient, Message, Shared
from asyncdni.schedules.base import Op

__all__ = ["Cores"]

#: Less than this is none: what is left of floating point.
_NOTHING_S = 1e-12
#: What a worker does beside its ops.
_EVENT, _SEND, _RECEIVE = "event", "send", "receive"


class _Core:
    __slots__ = ("busy_s", "free", "waiting")

    def __init__(self) -> None:
        self.free = True
        self.busy_s = 0.0  # in all
        self.waiting: deque[_Thread] = deque()


#: An op, how long it takes, and what to call at its end.
_Task = tuple[Op, Pace, Callable[[], None]]


class _Thread:
    """One worker's."""

    __slots__ = (
        "busy_s",
        "cold",
        "cold_at",
        "core",
        "cores",
        "doing",
        "left",
        "left_s",
        "owed",
        "placed",
        "task",
        "used_s",
    )

    def __init__(self, cores: Sequence[_Core], core: _Core) -> None:
        self.cores = cores  # it may be placed on
        self.core = core  # the last one
        self.placed = False  # on a core, or waiting for one
        self.task: _Task | None = None  # not begun: how long it takes is seen then
        self.owed: list[tuple[str, Span]] = []  # beside it, not begun
        self.doing: Callable[[], None] | None = None  # at the end of the task under way
        self.left_s = 0.0  # of that, and of what is beside it
        self.used_s = 0.0  # of its slice
        self.busy_s = 0.0  # in all
        self.left = (core, 0.0, 0.0)  # a core, when it had been so busy, at that moment
        self.cold = 0.0  # how much there has been to make caches forget, in all
        self.cold_at: dict[str, float] = {}  # when each thing was done last

    @property
    def has_work(self) -> bool:
        return self.task is not None or bool(self.owed) or self.left_s > 0.0


class Cores:
    """All cores of a run."""

    def __init__(self, agenda: Agenda, hosts: Hosts, workers: Sequence[str]) -> None:
        """`workers`: all of the run, in the network's order."""
        self._agenda = agenda
        self._burden = hosts.burden
        self._slice_s = hosts.slice_us * 1e-6
        self._steals_s = hosts.steals_us * 1e-6
        self._fades_s = hosts.fades_us * 1e-6
        self._forgets_s = hosts.forgets_us * 1e-6
        of_hosts = [[_Core() for _ in range(hosts.cores)] for _ in range(hosts.count)]
        self._workers: dict[str, _Thread] = {}
        for index, name in enumerate(workers):
            cores, pin = of_hosts[index * hosts.count // len(workers)], hosts.pins.get(name)
            core = cores[index % len(cores) if pin is None else pin]
            self._workers[name] = _Thread(cores if pin is None else [core], core)

    def busy_s(self, worker: str) -> float:
        """CPU seconds that its process has had, of ops and all else."""
        return self._workers[worker].busy_s

    def run(self, worker: str, op: Op, pace: Pace, done: Callable[[], None]) -> None:
        """Do an op once there is a core, and what is owed before it; then `done` is called.

        One that was wanted before and has not begun is forgotten: its process has died."""
        thread = self._workers[worker]
        thread.task = op, pace, done
        self._place(thread)

    def _finish(self, op: Op, pace: Pace, done: Callable[[], None], took_s: float) -> None:
        sleep_s = pace.sleep_s(op, took_s)
        if sleep_s > 0.0:
            self._agenda.after(sleep_s, done)
        else:
            done()

    def handled(self, worker: str, event: Event, actions: Sequence[Action]) -> None:
        """A machine has handled an event: what that costs beside the op that may follow from it.

        `run` is called next where there is one. The coordinator costs nothing."""
        thread = self._workers.get(worker)
        if thread is None:
            return
        owed, computes = thread.owed, False
        owed.append((_EVENT, self._burden.event))
        if isinstance(event, Received):
            hop = self._hop(getattr(event.message, "sender", ""), worker, event.message)
            owed.append((_RECEIVE, hop.receive))
        for action in actions:
            if isinstance(action, Send):
                hop = self._hop(worker, str(action.to), action.message)
                owed.append((_SEND, hop.send))
            elif isinstance(action, Compute):
                computes = True
        if not computes:
            self._place(thread)

    def _hop(self, sender: str, to: str, message: Message) -> Hop:
        burden = self._burden
        if isinstance(message, Activation | Gradient | Shared):
            return burden.tensors.get((sender, to), burden.message)
        return burden.message

    def _seconds(self, thread: _Thread, what: str, span: Span) -> float:
        """CPU time of something, the more the longer ago it was done last."""
        warm, cold = span
        since = thread.cold - thread.cold_at.get(what, -math.inf)
        thread.cold_at[what] = thread.cold
        return (cold - (cold - warm) * math.exp(-since)) * 1e-6

    # --- taking turns ----------------------------------------------------------------------------

    def _place(self, thread: _Thread) -> None:
        """Something is to be done: on a core now, or in the queue for one."""
        if thread.placed or not thread.has_work:
            return
        thread.placed = True
        if not thread.core.free:
            thread.core = next((core for core in thread.cores if core.free), thread.core)
        if thread.core.free:
            thread.core.free = False
            self._come(thread)
        else:
            thread.core.waiting.append(thread)

    def _come(self, thread: _Thread) -> None:
        """To a core: others have been on it since this thread was, or it comes from another."""
        core, (last, busy_s, at_s) = thread.core, thread.left
        away_s = self._agenda.now - at_s
        others_s = core.busy_s - busy_s if core is last else away_s
        thread.cold += others_s / self._forgets_s + away_s / self._fades_s
        self._go(thread)

    def _go(self, thread: _Thread) -> None:
        """On a core: begin what comes next, or go on, for as long as the slice lasts."""
        for what, span in thread.owed:
            thread.left_s += self._seconds(thread, what, span)
        thread.owed.clear()
        if thread.task is not None and thread.doing is None:
            (op, pace, done), thread.task = thread.task, None
            took_s = pace.vary(self._seconds(thread, op.letter, pace.span_us(op)))
            thread.left_s += took_s
            thread.doing = partial(self._finish, op, pace, done, took_s)
        piece_s = min(thread.left_s, self._slice_s - thread.used_s)
        self._agenda.after(piece_s, partial(self._pause, thread, piece_s))

    def _pause(self, thread: _Thread, piece_s: float) -> None:
        """What was begun is done, or the slice is over: go on, or leave the core to another."""
        thread.left_s -= piece_s
        thread.used_s += piece_s
        thread.busy_s += piece_s
        if thread.left_s <= _NOTHING_S:
            thread.left_s = 0.0
            doing, thread.doing = thread.doing, None
            if doing is not None:
                doing()
        core, works = thread.core, thread.has_work
        core.busy_s += piece_s
        over = thread.used_s >= self._slice_s - _NOTHING_S
        if works and not (over and core.waiting):
            thread.used_s = 0.0 if over else thread.used_s
            self._go(thread)
            return
        thread.used_s = 0.0
        thread.left = (core, core.busy_s, self._agenda.now)
        thread.placed = works
        if works:
            core.waiting.append(thread)
        if core.waiting:
            self._come(core.waiting.popleft())
        else:
            core.free = True
            if any(other.waiting for other in thread.cores):
                self._agenda.after(self._steals_s, partial(self._steal, core, thread.cores))

    def _steal(self, core: _Core, cores: Sequence[_Core]) -> None:
        """A core that has been idle for a while takes over one that waits for another core."""
        if not core.free:
            return
        for other in sorted(cores, key=lambda one: len(one.waiting), reverse=True):
            for thread in other.waiting:
                if core in thread.cores:
                    other.waiting.remove(thread)
                    thread.core, core.free = core, False
                    self._come(thread)
                    return
