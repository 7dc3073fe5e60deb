"""The LSTM against torch.nn.LSTM."""

from __future__ import annotations

import numpy as np
import pytest
from windows import INPUTS, STREAMS, UNITS, Run, built, numbers

from asyncdni import experiment
from asyncdni.nn.layers.recurrent import Lstm, Rnn
from asyncdni.store.names import named_weights

STEPS, LENGTH = 3, 9


def test_the_state_is_the_output_and_the_cell() -> None:
    layer = built(Lstm(UNITS), STEPS)
    x = numbers(STREAMS, STEPS, INPUTS)
    y, state = layer.continued(x, None)
    assert state.shape == (STREAMS, 2 * UNITS)
    np.testing.assert_array_equal(state[:, :UNITS], y[:, -1])


def test_closed_gates_keep_the_cell() -> None:
    """Forget gates open and input gates shut: the cell stays as it was."""
    layer = built(Lstm(UNITS), STEPS)
    for name in ("weight_ih", "weight_hh"):
        layer.params[name][...] = 0
    layer.params["bias"][...] = np.repeat([-50, 50, 1, 0], UNITS)
    start = numbers(STREAMS, 2 * UNITS)
    _, end = layer.continued(numbers(STREAMS, STEPS, INPUTS), start)
    np.testing.assert_allclose(end[:, UNITS:], start[:, UNITS:], rtol=1e-12)
    np.testing.assert_allclose(end[:, :UNITS], 0.5 * np.tanh(start[:, UNITS:]), rtol=1e-12)


@pytest.mark.parametrize(("kind", "bias"), [("lstm", True), ("rnn", True), ("lstm", False)])
def test_named_weights_load_strictly_into_torch(kind: str, bias: bool) -> None:
    torch = pytest.importorskip("torch")
    layer = built((Lstm if kind == "lstm" else Rnn)(UNITS, bias=bias), STEPS)
    stages = [
        {"name": "low", "layers": [{kind: {"units": UNITS, "bias": bias}}]},
        {"name": "top", "layers": ["tanh", {"dense": 2}], "loss": "mse"},
    ]
    chosen = experiment.parse({"data": {"name": "text", "path": "a.txt"}, "stages": stages})
    weights = {f"low.0.{name}": array for name, array in layer.params.items()}
    weights |= {"top.1.weight": np.ones((2, UNITS)), "top.1.bias": np.zeros(2)}
    named = named_weights(chosen, weights, {})
    own = (torch.nn.LSTM if kind == "lstm" else torch.nn.RNN)(
        INPUTS, UNITS, bias=bias, batch_first=True
    )
    equal = torch.nn.Sequential(own, torch.nn.Tanh(), torch.nn.Linear(UNITS, 2)).double()
    equal.load_state_dict({n: torch.tensor(a) for n, a in named.items()}, strict=True)
    x = numbers(STREAMS, LENGTH, INPUTS)
    expected = own(torch.tensor(x))[0].detach().numpy()
    np.testing.assert_allclose(layer.evaluate(x), expected, rtol=1e-11)


def test_windows_are_those_of_torch_with_a_detached_state() -> None:
    torch = pytest.importorskip("torch")
    layer = built(Lstm(UNITS), STEPS)
    peer = torch.nn.LSTM(INPUTS, UNITS, batch_first=True, dtype=torch.float64)
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
        state = tuple(part.detach() for part in state)
        np.testing.assert_allclose(run.outputs[start // STEPS], y.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(found, x.grad.numpy(), rtol=1e-11, atol=1e-13)
    for ours, theirs in (("weight_ih", peer.weight_ih_l0), ("weight_hh", peer.weight_hh_l0)):
        np.testing.assert_allclose(layer.grads[ours], theirs.grad.numpy(), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(layer.grads["bias"], peer.bias_ih_l0.grad.numpy(), rtol=1e-11)
