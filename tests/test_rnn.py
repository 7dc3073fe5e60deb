"""The simple recurrent layer against its formula and torch.nn.RNN."""

from __future__ import annotations

import numpy as np
import pytest
from windows import INPUTS, STREAMS, UNITS, Run, built, numbers

from asyncdni.nn.layers.recurrent import Rnn

STEPS, LENGTH = 3, 9


def test_each_step_is_tanh_of_input_and_state() -> None:
    layer = built(Rnn(UNITS), STEPS)
    x, h = numbers(STREAMS, STEPS, INPUTS), numbers(STREAMS, UNITS)
    y, end = layer.continued(x, h)
    for step in range(STEPS):
        inwards = x[:, step] @ layer.params["weight_ih"].T + layer.params["bias"]
        h = np.tanh(inwards + h @ layer.params["weight_hh"].T)
        np.testing.assert_allclose(y[:, step], h, rtol=1e-13)
    np.testing.assert_array_equal(end, y[:, -1])


def test_windows_are_those_of_torch_with_a_detached_state() -> None:
    torch = pytest.importorskip("torch")
    layer = built(Rnn(UNITS), STEPS)
    peer = torch.nn.RNN(INPUTS, UNITS, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        peer.weight_ih_l0[...] = torch.tensor(layer.params["weight_ih"])
        peer.weight_hh_l0[...] = torch.tensor(layer.params["weight_hh"])
        peer.bias_ih_l0[...] = torch.tensor(layer.params["bias"])
        peer.bias_hh_l0[...] = 0
    run = Run(layer, *(numbers(STREAMS, LENGTH, n, key=n) for n in (INPUTS, UNITS)), STEPS)
    found = run.all()
    x = torch.tensor(run.x, requires_grad=True)
    grad_y, state = torch.tensor(run.grad_y), None
    for start in range(0, LENGTH, STEPS):
        y, state = peer(x[:, start : start + STEPS], state)
        y.backward(grad_y[:, start : start + STEPS])
        state = state.detach()
        np.testing.assert_allclose(run.outputs[start // STEPS], y.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(found, x.grad.numpy(), rtol=1e-11, atol=1e-13)
    for ours, theirs in (("weight_ih", peer.weight_ih_l0), ("weight_hh", peer.weight_hh_l0)):
        np.testing.assert_allclose(layer.grads[ours], theirs.grad.numpy(), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(layer.grads["bias"], peer.bias_ih_l0.grad.numpy(), rtol=1e-11)
