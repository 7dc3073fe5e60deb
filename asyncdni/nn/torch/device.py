"""Where modules compute: on the CPU, or each worker on a GPU of its own.

```
 host memory      x   weights, after an update       y, gradients
                  │ pinned  │ pinned                  ▲ pinned
 side stream  ────┴─────────┴──────────────────  ─────┴─────
 main stream            forward(7) ───── backward(7) ─
 GPU memory       x   weights   graph of 7
```

Weights, the optimizer and all that is saved stay in host memory, as on the CPU. What crosses goes
through pinned memory on a stream of its own: weights are on their way as soon as they have moved,
while the worker sends, receives and waits. What a pass returns is awaited, since it is sent on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array

__all__ = ["Staging", "chosen_device", "staging_for"]


def chosen_device(name: str, number: int) -> torch.device:
    """The device that `run.device` names for the worker of this number in the run. Workers take the
    GPUs of their host in turn, and those of one host have consecutive numbers. Raises `ConfigError`
    for "cuda" where PyTorch finds none."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else ": this PyTorch is built without CUDA"
        raise ConfigError(
            f'run.device = "cuda", but PyTorch finds no GPU on this host{built}; take "auto" (the '
            'CPU where there is none) or "cpu"'
        )
    return torch.device("cuda", number % torch.cuda.device_count())


def staging_for(name: str, number: int) -> Staging | None:
    """What copies to the device that `run.device` names for a worker, see `chosen_device`; None for
    the CPU."""
    device = chosen_device(name, number)
    return None if device.type == "cpu" else Staging(device)


class Staging:
    """Copies between host memory and one GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        make: Any = torch.cuda.Stream
        self._stream = make(device)

    def up(self, arrays: Sequence[Array]) -> list[torch.Tensor]:
        """Copies of the arrays on the GPU, in order, which work queued from now on waits for."""
        with torch.cuda.stream(self._stream):
            found = [
                torch.from_numpy(array).pin_memory().to(self.device, non_blocking=True)
                for array in arrays
            ]
        main = torch.cuda.current_stream(self.device)
        main.wait_stream(self._stream)
        for tensor in found:
            tensor.record_stream(main)
        return found

    def overwrite(self, tensors: Sequence[torch.Tensor], arrays: Sequence[Array]) -> None:
        """Put the numbers of the arrays into tensors of the GPU, once work that is queued has used
        them; later work waits for it, this process does not."""
        main = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            for tensor, array in zip(tensors, arrays, strict=True):
                tensor.copy_(torch.from_numpy(array).pin_memory(), non_blocking=True)
        main.wait_stream(self._stream)

    def down(self, tensors: Sequence[torch.Tensor]) -> list[Array]:
        """The tensors as arrays in host memory. All copies are under way together; it returns when
        they are there."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        found = []
        with torch.cuda.stream(self._stream):
            for tensor in tensors:
                host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                found.append(host.copy_(tensor.detach(), non_blocking=True))
        self._stream.synchronize()
        return [np.asarray(one) for one in found]
