"""Generators that are modules of PyTorch: a user's own, in ten lines.

```python
class MyGenerator(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, h, y):  # activations (B, …) and targets to gradients of h's shape
        return self.map(h)
```

Such a module is fitted to the gradients that come back. One that has a method `loss(h, y)` instead
is a local head: what it predicts is ∂loss/∂h, and it learns from that loss alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from asyncdni.errors import ConfigError
from asyncdni.imports import Allowed
from asyncdni.nn.base import Array, Slot, Streams
from asyncdni.nn.optimizers import Adam, finite_norm
from asyncdni.nn.torch.layer import aligned, first_line, tensor_of
from asyncdni.nn.torch.model import make_model

__all__ = ["Learned", "ModuleGenerator", "module_generator"]

#: How many samples the module is tried on when it is built.
_TRIED = 2


class Learned:
    """Parameters that are moved to one new vector, and the Adam that trains them.

    `arrays` are the parameters by name, `state` is Adam's; writing into them restores both.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], dtype: np.dtype[Any]) -> None:
        self.parameters = [*parameters.values()]
        self._vector = np.empty(sum(one.numel() for one in self.parameters), dtype)
        self._grads = np.zeros_like(self._vector)
        self.arrays: dict[str, Array] = {}
        start = 0
        for name, parameter in parameters.items():
            stop = start + parameter.numel()
            array = self._vector[start:stop].reshape(tuple(parameter.shape))
            np.copyto(array, parameter.detach().numpy())
            parameter.data = tensor_of(array)
            self.arrays[name] = array
            start = stop
        self._optimizer = Adam()
        self._optimizer.start(self._vector)
        self.state = self._optimizer.state

    def step(self, found: Sequence[torch.Tensor | None], samples: int, rate: float) -> None:
        """Make a step for the parameters' gradients `found`, of the sum over so many samples. None:
        the loss does not depend on that parameter.

        Raises `NumericalError`, before any weight moves, for a gradient that is not finite."""
        if not self.parameters:
            return
        start = 0
        for one, parameter in zip(found, self.parameters, strict=True):
            stop = start + parameter.numel()
            self._grads[start:stop] = 0 if one is None else one.numpy().ravel()
            start = stop
        self._grads /= samples
        finite_norm(self._grads)
        self._optimizer.step(self._vector, self._grads, rate)


class ModuleGenerator:
    """The `Generator` that a module is. It takes activations and targets with all their axes: h
    (B, *shape) and y (B,), (B, K), (B, T) or (B, T, K).

    Without a `loss` of its own, the module maps (h, y) to the gradient of the summed loss by h, and
    a fit is a step of Adam on Σ|ĝ - g|² / 2B. With one, `loss(h, y)` is a scalar, the sum over
    samples; `predict` returns its gradient by h and then makes a step of Adam on its mean over the
    batch. Where the data mask steps, `loss` gets the mask (B, T) as a third argument.

    Random numbers of the module are keyed by the run's seed, the stage and the batch. `params` are
    what is learned; `buffers` hold Adam's moments, the module's buffers and its frozen parameters.
    All are on the memory that the module computes on, so writing into them restores it.
    """

    #: The exit hands over samples as they are, not as rows, and the batch's id and context in the
    #: slot.
    whole = True

    def __init__(
        self, name: str, make: Callable[[], nn.Module], *, learning_rate: float, cure: str = ""
    ) -> None:
        """`make` makes the module with initial weights, `learning_rate` is Adam's; `name` and
        `cure`, what to do about one that does not fit, are for messages."""
        self.name = name
        self.learning_rate = learning_rate
        self.params: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self._make = make
        self._cure = f"; {cure}" if cure else ""

    def build(
        self,
        width: int,
        outputs: int,
        loss: str,
        dtype: np.dtype[Any],
        streams: Streams,
        *,
        shape: tuple[int, ...] = (),
        steps: int = 0,
    ) -> None:
        """See `Generator`; h is (B, *shape), and with `steps` each sample has so many targets.

        Raises `ConfigError` for a module that does not take h and y, or returns another shape."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(int(streams("init").integers(2**63)))
            module = self._make()
        self.module = module.to(getattr(torch, dtype.name)).train()
        self._noise = int(streams("noise").integers(2**62))
        self._loss: Callable[..., torch.Tensor] | None = getattr(module, "loss", None)
        rows = (_TRIED, steps) if steps else (_TRIED,)
        classes = loss == "cross_entropy"
        y = np.zeros(rows if classes else (*rows, outputs), np.int64 if classes else dtype)
        self._try(torch.zeros(_TRIED, *shape, dtype=getattr(torch, dtype.name)), tensor_of(y))
        self._learned = Learned(
            {n: p for n, p in module.named_parameters() if p.requires_grad}, dtype
        )
        self.params = self._learned.arrays
        self.buffers = {
            **{f"optimizer.{name}": array for name, array in self._learned.state.items()},
            **{n: p.data.numpy() for n, p in module.named_parameters() if not p.requires_grad},
            **{name: buffer.numpy() for name, buffer in module.named_buffers()},
        }

    @property
    def has_loss(self) -> bool:
        """Whether the module learns from a loss of its own and not from gradients that come
        back."""
        return self._loss is not None

    def predict(self, h: Array, y: Array, slot: Slot, rate_scale: float) -> Array:
        """Return the predicted gradient, of the shape of h (B, *shape). A module with a loss of its
        own makes its step here."""
        self._seed(slot)
        x, targets = aligned(h).detach(), tensor_of(y)
        if self._loss is None:
            slot["given"] = x, targets
            with torch.no_grad():
                return _array(self.module(x, targets))
        mask = slot.get("context", {}).get("mask")
        more = () if mask is None else (tensor_of(mask),)
        with torch.enable_grad():
            loss = self._loss(x.requires_grad_(), targets, *more)
        learning = self._learns(slot)
        parameters = [parameter for one in learning for parameter in one.parameters]
        by_x, *found = torch.autograd.grad(loss, [x, *parameters], allow_unused=True)
        for one in learning:
            own, found = found[: len(one.parameters)], found[len(one.parameters) :]
            one.step(own, len(h), self.learning_rate * rate_scale)
        return np.zeros_like(h) if by_x is None else _array(by_x)

    def _learns(self, slot: Slot) -> Sequence[Learned]:
        """What of a module with a loss of its own makes a step on the slot's batch."""
        return [self._learned]

    def fit(self, grad: Array, slot: Slot, rate_scale: float) -> None:
        """Make one step towards the gradient (B, *shape) that came back; none with a loss of its
        own."""
        if self._loss is not None or not self._learned.parameters:
            return
        self._seed(slot)
        with torch.enable_grad():
            residual = self.module(*slot["given"]) - aligned(grad)
            loss = residual.square().sum() / 2
        found = torch.autograd.grad(loss, self._learned.parameters, allow_unused=True)
        self._learned.step(found, len(grad), self.learning_rate * rate_scale)

    def _seed(self, slot: Slot) -> None:
        torch.default_generator.manual_seed((self._noise + slot.get("batch", 0)) % 2**63)

    def _try(self, h: torch.Tensor, y: torch.Tensor) -> None:
        module: Any = copy.deepcopy(self.module)
        what, expected = ("forward", tuple(h.shape)) if self._loss is None else ("loss", ())
        try:
            found = module(h, y) if self._loss is None else module.loss(h.requires_grad_(), y)
        except Exception as error:  # the user's code may fail in any way
            raise ConfigError(
                f"{self.name}: its {what} fails on activations {tuple(h.shape)} and targets "
                f"{tuple(y.shape)}: {first_line(error)}{self._cure}"
            ) from error
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        if shape != expected:
            raise ConfigError(
                f"{self.name}: its {what} returns {shape} for activations {tuple(h.shape)}, "
                f"expected {'a gradient of that shape' if expected else 'one number, the sum'}"
            )


def module_generator(
    module: str, arguments: Mapping[str, Any], *, learning_rate: float, allow_import: Allowed
) -> ModuleGenerator:
    """The generator that `module` ("package.module:callable") makes, given `arguments`. Raises
    `ConfigError`."""

    def make() -> nn.Module:
        return make_model(module, arguments, "cpu", allow_import=allow_import)

    return ModuleGenerator(f"generator {module}", make, learning_rate=learning_rate)


def _array(tensor: torch.Tensor) -> Array:
    found: Array = tensor.detach().contiguous().numpy()
    return found
