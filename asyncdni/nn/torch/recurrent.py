"""Recurrent modules of PyTorch on the meta device, where they are run to learn shapes alone.

There each step of `nn.LSTM`, `nn.GRU` and `nn.RNN` is a dozen operations written in Python, 0.1 to
0.2 ms each: half a second for three LSTMs over 64 steps, each time that a model is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["OneStep"]

_Function = Callable[..., Any]
_RECURRENT: tuple[_Function, ...] = torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu
#: How many arguments these have, with the sequences' first and `batch_first` last; and the place of
#: `has_biases`, where packed sequences, which have no axis of steps, have their weights.
_ARGUMENTS, _BIASES = 9, 3


class OneStep(TorchFunctionMode):
    """Within this context, recurrent modules compute one step of their sequences, and repeat its
    output for all others: what they return has the right shape, not the right numbers."""

    def __torch_function__(
        self,
        func: _Function,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func not in _RECURRENT or len(args) != _ARGUMENTS or not isinstance(args[_BIASES], bool):
            return func(*args, **(kwargs or {}))
        x, *others, batch_first = args
        axis = 1 if batch_first else 0
        y, *states = func(x.narrow(axis, 0, 1), *others, batch_first)
        # In memory one step after the other, as PyTorch's own: a view may be possible or not.
        return y.transpose(0, axis).repeat(x.shape[axis], 1, 1).transpose(0, axis), *states
