"""The two ends of the wire over ZeroMQ: `WorkerTransport` and `CoordinatorTransport`.

```
 worker A                       coordinator                      worker B
   DEALER ─────── control ───────► ROUTER ◄─────── control ─────── DEALER
   PUSH ──────────────────────────── data ────────────────────────► PULL
   PULL ◄─────────────────────────── data ───────────────────────── PUSH
```

Control and data ride on separate sockets, so that no order waits behind tensors. Sends never
block. A transport belongs to the thread that made it; `beat.Heart` has a socket of its own. Where
links are to be slow, the data sockets of those belong to a thread that delays what is sent: see
`emulation`.

Where the run has keys, all of it is encrypted, and a socket lets in those alone whose key it knows:
see `curve` and `gate`. Nonsense is dropped wherever it may come from a stranger: see `arrivals`.
"""

from __future__ import annotations

from asyncdni.transports.coordinator import CoordinatorTransport
from asyncdni.transports.worker import WorkerTransport

__all__ = ["CoordinatorTransport", "WorkerTransport"]
