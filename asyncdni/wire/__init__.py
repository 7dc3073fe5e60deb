"""The wire: `codec` (messages to frames), `zeromq` (frames to peers), `beat` (signs of life),
`curve` (keys).

ZeroMQ is imported in this folder only; `codec` and `address` do without it.
"""

from __future__ import annotations

from asyncdni.wire.coordinator import CoordinatorTransport
from asyncdni.wire.worker import WorkerTransport

__all__ = ["CoordinatorTransport", "WorkerTransport"]
