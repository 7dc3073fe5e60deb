"""An `nn.Module` as a layer: autograd computes its backward, the stage keeps its weights.

The module's parameters are tensors on the memory of the stage's flat vector, so optimizers,
snapshots and shared weights treat them like those of any layer.

```
forward(7)        x ──► module ──► y          slot of 7 keeps the graph from x to y
update            the vector moves in place   autograd takes no notice: it is NumPy's memory
backward(7)       ∂y ──► graph ──► ∂x, ∂w     through the weights of now, or those of the forward
```

A schedule in which gradients come late says which weights the backward goes through: `Versions`
puts the arrays of another version into `params`, and those are copied under the graph while it is
in use.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from asyncdni.errors import ConfigError
from asyncdni.nn.base import Array, Slot, Streams
from asyncdni.nn.torch.compiler import compiled, without_compiler
from asyncdni.nn.torch.device import Staging, staging_for
from asyncdni.nn.torch.recurrent import OneStep

__all__ = [
    *("ModuleLayer", "empty_copy", "first_line", "lengths", "main_output", "matrix_product"),
    "tensor_of",
]

#: The batch sizes at which a module is tried on the meta device: two, so that the axis of samples
#: is told from an axis that happens to be as long.
_TRIED = (2, 3)
_ALIGNED = 64

with warnings.catch_warnings():
    # Arrays of received messages are read-only, and so are the tensors on them: nobody writes to an
    # input. PyTorch warns of that once in a process, here.
    warnings.simplefilter("ignore")
    _read_only = np.zeros(1, np.float32)
    _read_only.setflags(write=False)
    torch.from_numpy(_read_only)


def tensor_of(array: Array) -> torch.Tensor:
    """A tensor on the memory of `array`."""
    return torch.from_numpy(array)


def aligned(array: Array) -> torch.Tensor:
    """A tensor with the numbers of `array` at an address that is a multiple of `_ALIGNED`, as all
    of PyTorch's own are: matrix products have other last bits at others. A received array may have
    to be copied."""
    found = torch.from_numpy(array)
    return found if found.data_ptr() % _ALIGNED == 0 else found.clone()


def matrix_product(a: Array, b: Array, out: Array) -> None:
    """Write the matrix product of two arrays into `out`, computed by PyTorch."""
    torch.mm(tensor_of(a), tensor_of(b), out=tensor_of(out))


def empty_copy(module: nn.Module, device: str) -> nn.Module:
    """A copy of the module on a device, with memory for its weights and buffers but without their
    numbers. Weights that are tied stay so, which `nn.Module.to_empty` does not see to."""
    copies: dict[int, Any] = {}
    for tensor in chain(module.parameters(), module.buffers()):
        empty = torch.empty_like(tensor, device=device, requires_grad=False)
        is_weight = isinstance(tensor, nn.Parameter)
        copies[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
    return copy.deepcopy(module, copies)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, which in PyTorch may be followed by a whole stack."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def lengths(shape: tuple[int, ...], varying: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of a sample at which a module is tried: twice the same, or where batches differ in
    length the second time half as many steps, so that an axis of steps is told from others."""
    return shape, (max(1, shape[0] // 2), *shape[1:]) if varying else shape


def main_output(result: Any) -> Any:
    """The tensor that the loss needs of what a model returns: of a table its "logits", of several
    values the first."""
    if isinstance(result, dict):
        return result["logits"] if "logits" in result else next(iter(result.values()))
    return result[0] if isinstance(result, tuple | list) else result


def _one(result: Any) -> Any:
    """What a module returns; of a table, such as an output object of Hugging Face, its main
    tensor."""
    return main_output(result) if isinstance(result, dict) else result


class ModuleLayer:
    """A layer around a module that maps one floating tensor (B, …) to another one (B, …).

    Parameters that the user has frozen (`requires_grad = False`) are kept with the buffers: they
    are saved and never moved. Inputs are whole numbers where the module takes nothing else, as an
    embedding does; numbers up to 2^24 come through a float32 message unchanged.

    Random numbers, such as those of dropout, come from PyTorch's default generator, which is seeded
    for each batch from the layer's own stream: a batch sees the same ones under every split and
    schedule, and when it is forwarded again.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[str], nn.Module],
        packs: Callable[[], bool] = lambda: False,
        takes_lengths: Callable[[], bool] = lambda: False,
    ) -> None:
        """`make("meta")` makes the module without memory, `make("cpu")` with initial weights;
        `name` is for messages, for `packs` see `nn.base.Layer.output_shape`. `takes_lengths`:
        whether the first axis of an input is the batch's length."""
        self.name = name
        self.packs = packs
        #: Whether the first axis of an output is the batch's length; `output_shape` finds it out.
        self.varying = False
        self._takes_lengths = takes_lengths
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self.fresh = True
        self._make = make
        self._live = self.params  # the arrays on which the module computes
        self._bound = False
        self._checked = False
        self._integers = False
        self._clones_input = False
        self._autocast = False
        self._compiles = False
        self._staging: Staging | None = None  # None: the module computes on the CPU
        self._held: dict[str, Array] | None = None  # the weights that the GPU has

    def compute_with(self, *, autocast: bool, compile: bool, device: str, number: int) -> None:
        """Compute products and convolutions in bfloat16 (`torch.autocast`); compile the module
        (`torch.compile`) at its first forward, which takes seconds to minutes; compute on the
        device that `run.device` names for the worker of this number. Raises `ConfigError` where
        there is no such device."""
        self._autocast, self._compiles = autocast, compile
        self._staging = staging_for(device, number)

    # --- shapes ----------------------------------------------------------------------------------

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one sample of the output, found on the meta device. Raises `ConfigError`
        where the module does not take `shape`, or its output is not one tensor with a row a
        sample."""
        return self._try(self._make("meta"), shape)

    def size(self, shape: tuple[int, ...]) -> int:
        """The number of weights that are learned."""
        return sum(p.numel() for p in self._make("meta").parameters() if p.requires_grad)

    @without_compiler()
    def flops(self, shape: tuple[int, ...], samples: int, *, send: bool) -> tuple[int, int] | None:
        """The floating-point operations of the products in (forward, backward), counted on the meta
        device: see `nn.base.Layer.output_shape`. None where the module can't be run there with so
        many samples."""
        from torch.utils.flop_counter import FlopCounterMode

        module = self._make("meta")
        self._try(module, shape)
        learned = [one for one in module.parameters() if one.requires_grad]
        dtype = torch.int64 if self._integers else torch.float32
        try:
            # The graph is made outside of the counters, whose hooks autograd.grad does not take.
            x = torch.zeros((samples, *shape), dtype=dtype, device="meta")
            x.requires_grad_(send and not self._integers)
            wanted = [*learned, x] if x.requires_grad else learned
            with torch.enable_grad():
                y = _one(module(x.clone() if self._clones_input else x))
            with FlopCounterMode(display=False) as forward, torch.no_grad():
                module(x.clone())
            with FlopCounterMode(display=False) as backward:
                if wanted and y.requires_grad:
                    torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)
        except Exception:  # a module may fail in any way, such as on a single sample
            return None
        return forward.get_total_flops(), backward.get_total_flops()

    @without_compiler()
    def _try(self, module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
        kinds = {False: torch.float32, True: torch.int64}
        failures, shapes = [], lengths(shape, self._takes_lengths())
        for integers, dtype in kinds.items():
            try:
                with OneStep():
                    found = [
                        self._tried(module, (rows, *one), dtype)
                        for rows, one in zip(_TRIED, shapes, strict=True)
                    ]
            except Exception as error:  # a module may fail in any way
                failures.append(first_line(error))
                continue
            self._integers = integers
            return self._row(found, shapes)
        raise ConfigError(f"{self.name} does not take inputs of shape {shape}: {failures[0]}")

    def _tried(self, module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
        x = torch.zeros(shape, dtype=dtype, device="meta")
        if not dtype.is_floating_point:
            return _one(module(x))
        with torch.enable_grad():
            try:
                return _one(module(x.requires_grad_()))
            except RuntimeError as error:
                if "in-place" not in str(error):
                    raise
                self._clones_input = True
                return _one(module(x.clone()))

    def _row(self, found: list[Any], shapes: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
        for y, rows in zip(found, _TRIED, strict=True):
            if not isinstance(y, torch.Tensor):
                raise ConfigError(
                    f"{self.name} returns a {type(y).__name__}, expected one tensor; wrap it in a "
                    "module that returns the tensor which the next stage or the loss needs"
                )
            if y.ndim < 1 or y.shape[0] != rows:
                raise ConfigError(
                    f"{self.name} returns shape {tuple(y.shape)} for {rows} samples, expected one "
                    "row a sample"
                )
            if not y.is_floating_point():
                raise ConfigError(f"{self.name} returns {y.dtype}, expected floating numbers")
        first, second = (tuple(y.shape[1:]) for y in found)
        self.varying = first != second
        if self.varying and (first[0], first[1:]) != (shapes[0][0], second[1:]):
            raise ConfigError(
                f"{self.name} returns shape {first} for a batch of {shapes[0][0]} steps and "
                f"{second} for one of {shapes[1][0]}; where batches differ in length, only the "
                "first axis may be that length: pad all samples to one length in the data set or "
                "its collate_fn"
            )
        return first

    # --- building --------------------------------------------------------------------------------

    def build(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(int(streams("init").integers(2**63)))
            module = self._make("cpu")
        return self._built(module, shape, dtype, streams)

    def build_empty(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        """Build without initial weights, where others are loaded in their place: only memory for
        this module is taken, also where it is a part of a large one."""
        module = empty_copy(self._make("meta"), "cpu")
        return self._built(module, shape, dtype, streams)

    def _built(
        self, module: nn.Module, shape: tuple[int, ...], dtype: np.dtype[Any], streams: Streams
    ) -> tuple[int, ...]:
        result = self._try(self._make("meta"), shape)
        self._dtype = getattr(torch, dtype.name)
        self._module = module.to(self._dtype).train()
        self._forward: Callable[[torch.Tensor], torch.Tensor] = self._module
        self._noise = int(streams("noise").integers(2**62))
        self._frozen: dict[str, nn.Parameter] = {}
        self._learned: dict[str, nn.Parameter] = {}
        for name, parameter in module.named_parameters():
            kind = self._learned if parameter.requires_grad else self._frozen
            kind[name] = parameter
        self.params = self._live = {name: _array(one) for name, one in self._learned.items()}
        self.grads = {name: np.empty_like(array) for name, array in self.params.items()}
        kept = {**self._frozen, **dict(module.named_buffers())}
        for name, tensor in kept.items():
            tensor.data = tensor.data.contiguous()
            self.buffers[name] = _array(tensor)
        self._own_buffers = self.buffers
        return result

    # --- the passes ------------------------------------------------------------------------------

    def forward(self, x: Array, slot: Slot) -> Array:
        self.bind()
        self._seed(slot.get("batch", 0))
        given = self._given(x)
        given = given.long() if self._integers else given.requires_grad_()
        with self._weights_in_use(), torch.enable_grad():
            y = self._call(given.clone() if self._clones_input else given)
        if not self._checked:
            self._check_buffers()
        slot["graph"] = given, y
        if self._staging is None:
            return _array(y)
        buffers = dict(self._module.named_buffers())
        found, *moved = self._staging.down([y, *buffers.values()])
        for name, array in zip(buffers, moved, strict=True):
            np.copyto(self.buffers[name], array)
        return found

    def backward(self, grad_y: Array, slot: Slot, *, learn: bool, send: bool) -> Array | None:
        x, y = slot["graph"]
        learned = list(self._learned.values()) if learn else []
        sends = send and not self._integers
        wanted = [*learned, x] if sends else learned
        found: list[torch.Tensor | None] = [None] * len(wanted)
        if wanted and y.requires_grad:
            with self._weights_in_use():
                found = list(
                    torch.autograd.grad(
                        y, wanted, self._given(grad_y), retain_graph=True, allow_unused=True
                    )
                )
        arrays = self._in_host_memory(found)
        if learn:
            self._accumulate(arrays)
        if not send:
            return None
        grad_x = arrays[-1] if sends else None
        return np.zeros(x.shape, grad_y.dtype) if grad_x is None else grad_x

    def evaluate(self, x: Array) -> Array:
        self.bind()
        given = self._given(x)
        self._module.eval()
        try:
            with self._weights_in_use(), torch.no_grad():
                found = given.long() if self._integers else given
                y = self._call(found.clone() if self._clones_input else found)
                return _array(y) if self._staging is None else self._staging.down([y])[0]
        finally:
            self._module.train()

    def release(self, slot: Slot) -> None:
        """Drop the batch's graph, whose memory is large."""
        slot.pop("graph", None)

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        """The module's output, in the type of the weights."""
        if not self._autocast:
            y: torch.Tensor = _one(self._forward(x))
            return y
        with torch.autocast(x.device.type, torch.bfloat16):
            y = _one(self._forward(x))
            return y.to(self._dtype)

    def _check_buffers(self) -> None:
        """Check after the first forward that it has changed buffers in place, so that they are
        still those that are saved. Raises `ConfigError`."""
        self._checked = True
        for name, buffer in self._module.named_buffers():
            if buffer.numel() and buffer.data_ptr() != self._places[name]:
                raise ConfigError(
                    f"{self.name}: its forward puts another tensor in the place of the buffer "
                    f"{name}, which would not be saved; change it in place, as by {name}.copy_(…)"
                )

    def bind(self) -> None:
        """Put the module's parameters on the stage's vector, once the stage has moved the arrays
        there; their own memory is given back. On a GPU the module has copies instead."""
        if not self._bound:
            self._bound = True
            if self._staging is None:
                for name, parameter in self._learned.items():
                    parameter.data = tensor_of(self._live[name])
            else:
                device, module = self._staging.device, self._module
                for one in chain(module.parameters(), module.buffers()):
                    one.data = one.data.to(device, copy=True)
            self._places = {name: one.data_ptr() for name, one in self._module.named_buffers()}
            if self._compiles:
                self._forward = compiled(self._module)

    @contextmanager
    def _weights_in_use(self) -> Iterator[None]:
        """Within this context, the module has the arrays that are in `params` and `buffers` now."""
        if self._staging is not None:
            self._upload(self._staging)
            yield
            return
        pairs = []
        if self.params is not self._live:
            pairs += [(array, self.params[name]) for name, array in self._live.items()]
        if self.buffers is not self._own_buffers:
            pairs += [(array, self.buffers[name]) for name, array in self._own_buffers.items()]
        before = [array.copy() for array, _ in pairs]
        for array, other in pairs:
            np.copyto(array, other)
        try:
            yield
        finally:
            for (array, _), old in zip(pairs, before, strict=True):
                np.copyto(array, old)

    # --- on a GPU --------------------------------------------------------------------------------

    def weights_moved(self) -> None:
        """Note that arrays of `params` or `buffers` have other numbers now. They begin their way to
        the GPU at once, where there is one."""
        self._held = None
        if self._staging is not None and self._bound:
            self._upload(self._staging)

    def _upload(self, staging: Staging) -> None:
        """Have the weights that are in `params` now on the GPU, and frozen ones and buffers."""
        if self._held is self.params:
            return
        own = {**self._learned, **self._frozen, **dict(self._module.named_buffers())}
        arrays = {**self.buffers, **self.params}
        staging.overwrite([one.data for one in own.values()], [arrays[name] for name in own])
        self._held = self.params

    def _given(self, x: Array) -> torch.Tensor:
        """The array as a tensor where the module computes."""
        return aligned(x) if self._staging is None else self._staging.up([x])[0]

    def _in_host_memory(self, found: list[torch.Tensor | None]) -> list[Array | None]:
        if self._staging is None:
            return [None if one is None else _array(one) for one in found]
        arrays = iter(self._staging.down([one for one in found if one is not None]))
        return [None if one is None else next(arrays) for one in found]

    def _accumulate(self, found: list[Array | None]) -> None:
        for name, grad in zip(self._learned, found, strict=False):
            own = self.grads[name]
            if self.fresh:
                np.copyto(own, 0 if grad is None else grad)
            elif grad is not None:
                own += grad
        self.fresh = False

    def _seed(self, batch: int) -> None:
        seed = (self._noise + batch) % 2**63
        torch.default_generator.manual_seed(seed)
        if self._staging is not None and self._staging.device.type == "cuda":
            torch.cuda.default_generators[self._staging.device.index].manual_seed(seed)


def _array(tensor: torch.Tensor) -> Array:
    """An array on the memory of a tensor, C-contiguous."""
    found: Array = tensor.detach().contiguous().numpy()
    return found
