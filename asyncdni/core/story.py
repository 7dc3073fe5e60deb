"""What happened to each batch at one worker, for the moment when a message does not fit."""

from __future__ import annotations

from collections import deque

from asyncdni.messages import COORDINATOR, Message
from asyncdni.schedules.base import Op

__all__ = ["Story", "UnexpectedMessage"]

_LENGTH = 4096  # events kept


class UnexpectedMessage(Exception):
    """Raised inside `core` for a message that its sender should not have sent."""

    def __init__(self, why: str = "") -> None:
        super().__init__(why)
        self.why = why


class Story:
    """A ring of what was received and done; text is made only when asked for."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._events: deque[tuple[float, int | None, Op | str, str]] = deque(maxlen=_LENGTH)

    def received(self, now: float, message: Message) -> None:
        """Keep the message's kind and sender, not the message: its tensors would live on."""
        batch = getattr(message, "batch", None)
        sender = getattr(message, "sender", COORDINATOR)
        self._events.append((now, batch, type(message).__name__, sender))

    def did(self, now: float, op: Op) -> None:
        self._events.append((now, op.batch, op, ""))

    def of(self, batch: int) -> str:
        """All that happened to a batch, oldest first."""
        return ", ".join(
            f"{now:.6f} s "
            + (f"did {what}" if isinstance(what, Op) else f"got {what} from {sender}")
            for now, number, what, sender in self._events
            if number == batch
        )

    def unexpected(self, phase: str, message: Message, why: str) -> str:
        """What is wrong with a message that does not fit, and the story of its batch; `why` may be
        empty."""
        sender = getattr(message, "sender", COORDINATOR)
        batch = getattr(message, "batch", None)
        what = type(message).__name__ + ("" if batch is None else f" of batch {batch}")
        text = f"worker {self._worker} ({phase}) can't use the {what} that {sender} sent"
        text += f": {why}" * bool(why)
        if batch is not None:
            text += f"; what happened to that batch here: {self.of(batch)}"
        return text
