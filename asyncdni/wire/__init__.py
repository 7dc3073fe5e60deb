"""Messages between processes, over ZeroMQ.

`codec` turns messages into frames and back, `coordinator` and `worker` hold the sockets, `beat`
sends signs of life, `curve` holds keys. ZeroMQ is imported in this folder only; `codec` and
`address` do without it.
"""

from __future__ import annotations

from asyncdni.wire.coordinator import CoordinatorTransport
from asyncdni.wire.worker import WorkerTransport

__all__ = ["CoordinatorTransport", "WorkerTransport"]
