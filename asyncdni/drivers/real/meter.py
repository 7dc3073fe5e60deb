"""Where a worker's time goes while it trains. Evaluation, saving and start-up are left out."""

from __future__ import annotations

import struct
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from asyncdni.drivers.real.machine import resident_bytes
from asyncdni.messages import DATA, Activation, Message
from asyncdni.report import traces
from asyncdni.schedules.base import Op, OpKind
from asyncdni.stages.base import Agreement
from asyncdni.store.tensors import write_atomically

__all__ = ["EVENTS_MAX", "Meter", "Trace"]

_BACKWARD = OpKind.BACKWARD
#: The letter of every op but a Backward, which has several: looked up faster than computed.
_LETTERS = {kind: kind.value for kind in OpKind}
#: CPU time is measured at one op of a kind in so many: asking the kernel for it, twice an op, took
#: 7 % of the time of small stages. The number is odd, so that no kind of batch is measured alone.
_CPU_EVERY = 7
_GENERATOR = tuple(
    kind.value for kind in (OpKind.PREDICT, OpKind.FIT, OpKind.FIT_INPUT, OpKind.ADOPT)
)


@dataclass(slots=True)
class _Ops:
    """The ops of one letter."""

    count: int = 0
    wall_s: float = 0.0
    measured: int = 0  # of these the CPU time is known
    measured_cpu_s: float = 0.0

    @property
    def cpu_s(self) -> float:
        """CPU time of all ops, taken to be as long as those that were measured."""
        return self.measured_cpu_s * self.count / self.measured if self.measured else 0.0


class Meter:
    """Seconds by purpose, between `resume` and `pause`.

    `counters` gives, for reports:

    wall_s: of this worker's training, up to its last pause or now.
    op_F_count, op_F_wall_s, op_F_cpu_s, …: how often each op was done, by its letter, and how long
    it took; CPU time is that of this thread, and on shared cores less than the wall time. It is
    projected from one op in `_CPU_EVERY`.
    compute_s, generator_s: wall time inside ops of layers (with reading data) and of the generator
    and the input model.
    op_cpu_s: CPU time of this thread inside all ops.
    transport_s: encoding, decoding, sending and receiving. wait_s: nothing to do, nothing here.
    slowed_s: slept after ops, as `[slow]` asks.
    stream_s, stream_samples: summed over the stretches between barriers, the time from the end of
    the first Forward to that of the last, and the samples of all but the first: a rate without the
    filling and draining of the pipe.
    cpu_s: CPU time of the whole process, ZeroMQ's threads included.
    memory_bytes: the resident set now; memory_start_bytes: in the first report of a running
    training, so that what is allocated once has been. Both None where it can't be read.
    agreements: how often a generator's gradient, as it was applied, was compared with the true one
    that came back; the following are means over them, None before the first.
    gradient_cosine: cosine of the angle between both; target_cosine in its place where what comes
    back is itself synthetic, always or at times.
    gradient_error: |synthetic - true| / |true|, norms of the whole batch.
    generator_loss: the generator's mean squared error a sample.
    """

    def __init__(self, *, bootstrapped: bool = False) -> None:
        self._cosine = "target_cosine" if bootstrapped else "gradient_cosine"
        self._ops: dict[str, _Ops] = {}  # by letter
        self._transport_s = 0.0
        self._wait_s = 0.0
        self._slowed_s = 0.0
        self._stream_s = 0.0
        self._stream_samples = 0
        self._forward_s: float | None = None  # when the last Forward of this stretch ended
        self._wall_s = 0.0
        self._cpu_s = 0.0
        self._since: tuple[float, float] | None = None
        self._agreements = 0
        self._agreement_sums = [0.0, 0.0, 0.0]  # cosine, relative error, loss
        self._memory_start: int | None = None

    @property
    def running(self) -> bool:
        return self._since is not None

    def resume(self) -> None:
        """Training goes on."""
        if self._since is None:
            self._since = (time.perf_counter(), time.process_time())

    def pause(self) -> None:
        """A barrier: all is drained."""
        if self._since is not None:
            self._wall_s, self._cpu_s = self._totals()
            self._since = None
            self._forward_s = None

    def wants_cpu(self, op: Op) -> bool:
        """Whether the CPU time of this op is to be measured."""
        return self._of(op).count % _CPU_EVERY == 0

    def op(self, op: Op, wall_s: float, cpu_s: float | None) -> None:
        """One has been done; None: its CPU time was not measured. Called for every op of a run: it
        must cost next to nothing."""
        if self._since is None:
            return
        totals = self._of(op)
        totals.count += 1
        totals.wall_s += wall_s
        if cpu_s is not None:
            totals.measured += 1
            totals.measured_cpu_s += cpu_s

    def _of(self, op: Op) -> _Ops:
        kind = op.kind
        letter = _LETTERS[kind] if kind is not _BACKWARD else op.letter
        totals = self._ops.get(letter)
        if totals is None:
            totals = self._ops[letter] = _Ops()
        return totals

    def waited(self, wall_s: float) -> None:
        """For something to arrive, as there was nothing else to do."""
        if self._since is not None:
            self._wait_s += wall_s

    def moved(self, wall_s: float) -> None:
        """Messages sent or received, or looked for."""
        if self._since is not None:
            self._transport_s += wall_s

    def slowed(self, wall_s: float) -> None:
        """Slept, to be as slow as was asked."""
        if self._since is not None:
            self._slowed_s += wall_s

    def forwarded(self, samples: int, at_s: float) -> None:
        """A Forward of a new batch has ended, at `at_s` of any one clock."""
        if self._since is None:
            return
        if self._forward_s is not None:
            self._stream_s += at_s - self._forward_s
            self._stream_samples += samples
        self._forward_s = at_s

    def agreement(self, found: Agreement | None) -> None:
        """What a Fit has measured, if it has."""
        if found is not None:
            self._agreements += 1
            sums = self._agreement_sums
            sums[0] += found.cosine
            sums[1] += found.relative_error
            sums[2] += found.loss

    def counters(self) -> dict[str, float | int | None]:
        """For reports; see above."""
        wall_s, cpu_s = self._totals()
        generator_s = sum((self._ops[one].wall_s for one in _GENERATOR if one in self._ops), 0.0)
        busy_s = sum((totals.wall_s for totals in self._ops.values()), 0.0)
        return {
            "wall_s": wall_s,
            "busy_fraction": busy_s / wall_s if wall_s > 0 else None,
            "compute_s": busy_s - generator_s,
            "generator_s": generator_s,
            "transport_s": self._transport_s,
            "wait_s": self._wait_s,
            "slowed_s": self._slowed_s,
            "stream_s": self._stream_s,
            "stream_samples": self._stream_samples,
            "op_cpu_s": sum((totals.cpu_s for totals in self._ops.values()), 0.0),
            "cpu_s": cpu_s,
            **self._agreed(),
            **self._memory(wall_s),
            **self._by_op(),
        }

    def _agreed(self) -> dict[str, float | int | None]:
        count, names = self._agreements, (self._cosine, "gradient_error", "generator_loss")
        means = [total / count if count else None for total in self._agreement_sums]
        return {"agreements": count, **dict(zip(names, means, strict=True))}

    def _memory(self, wall_s: float) -> dict[str, float | int | None]:
        now = resident_bytes()
        if self._memory_start is None and wall_s > 0:
            self._memory_start = now
        return {"memory_bytes": now, "memory_start_bytes": self._memory_start}

    def _by_op(self) -> dict[str, float | int | None]:
        found: dict[str, float | int | None] = {}
        for letter, totals in self._ops.items():
            if totals.count:
                found[f"op_{letter}_count"] = totals.count
                found[f"op_{letter}_wall_s"] = totals.wall_s
                found[f"op_{letter}_cpu_s"] = totals.cpu_s
        return found

    def _totals(self) -> tuple[float, float]:
        if self._since is None:
            return self._wall_s, self._cpu_s
        wall_s = self._wall_s + time.perf_counter() - self._since[0]
        return wall_s, self._cpu_s + time.process_time() - self._since[1]


# --- trace ---------------------------------------------------------------------------------------

#: Events kept of one worker: 32 MB, some 100,000 batches.
EVENTS_MAX = 1_000_000

_pack = struct.Struct("<4i2d").pack  # see `traces.RECORD`


class Trace:
    """When each op of a worker ran, and what it waited for, sent and received, for traces and
    timelines. Events are packed at once into bytes.

    Nothing of an op or a message is kept but names and numbers, so that no tensor outlives its
    batch and the garbage collector has nothing to look at. All times are seconds of
    `time.perf_counter`: one clock for all processes of a host, see `report.traces`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._events = bytearray()
        self._numbers: defaultdict[str, int] = defaultdict()
        self._numbers.default_factory = self._numbers.__len__  # the next number
        self._left = EVENTS_MAX
        self._trained = False

    def add(self, op: Op, start_s: float, end_s: float) -> None:
        """An op has been computed."""
        self._trained = True
        self._note(traces.OP, op.letter, "", op.batch, start_s, end_s)

    def waited(self, start_s: float, end_s: float) -> None:
        """There was nothing to do."""
        self._note(traces.WAIT, "", "", traces.NO_BATCH, start_s, end_s)

    def slowed(self, start_s: float, end_s: float) -> None:
        """The worker has slept after an op, as it was asked to be slow."""
        self._note(traces.SLOWED, "", "", traces.NO_BATCH, start_s, end_s)

    def sent(self, to: str, message: Message, start_s: float, end_s: float) -> None:
        """A message has been handed to the transport, for the worker `to` or the coordinator."""
        batch = getattr(message, "batch", traces.NO_BATCH)
        self._note(traces.SENT, _kind(message), to, batch, start_s, end_s)

    def received(self, message: Message, at_s: float) -> None:
        """The transport has handed over a message."""
        batch = getattr(message, "batch", traces.NO_BATCH)
        sender = getattr(message, "sender", "")
        self._note(traces.RECEIVED, _kind(message), sender, batch, at_s, at_s)

    def write(self) -> None:
        """Once, at the end; nothing where no op has run. Raises `CheckpointError`."""
        if self._trained:  # or else the run may have failed, and its folder be gone
            lost = max(0, -self._left)
            write_atomically(self._path, traces.encode(self._events, [*self._numbers], lost))

    def _note(
        self, track: int, name: str, peer: str, batch: int, start_s: float, end_s: float
    ) -> None:
        # All kinds of events end together, so that what is there is the whole of its time.
        self._left -= 1
        if self._left >= 0:
            numbers = self._numbers
            self._events += _pack(track, numbers[name], numbers[peer], batch, start_s, end_s)


def _kind(message: Message) -> str:
    """What the trace calls it; test batches apart, as their numbers come again and again."""
    if type(message) is not Activation:
        return type(message).__name__.lower()
    if message.evaluate:
        return "test batch"
    return traces.DATA if message.sender == DATA else traces.ACTIVATION
