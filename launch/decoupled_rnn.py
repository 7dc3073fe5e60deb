"""The network of decoupled-rnn.toml in one process, by plain backpropagation through time.

    python launch/decoupled_rnn.py                   hand-written backward
    python launch/decoupled_rnn.py --autograd        automatic differentiation (PyTorch) beside it

Both begin with the recipe's weights and see its batches in its order; each goes down its own
gradient. What is printed of `--autograd` are the largest differences, over all batches and all
weights: of the gradients, and of the weights at the end. `--set` changes the recipe, as in
`asyncdni train`: with --set run.dtype=\\"float64\\" the differences shrink to its rounding.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from asyncdni import config, experiment
from asyncdni.data import describe, open_batches
from asyncdni.errors import AsyncDNIError, ConfigError
from asyncdni.network import make_network
from asyncdni.nn.layers import make_layer
from asyncdni.nn.layers.dense import Dense
from asyncdni.nn.layers.recurrent import Rnn
from asyncdni.nn.losses import make_loss
from asyncdni.nn.streams import layer_streams

__all__ = ["ByAutograd", "ByHand", "Learner", "difference", "main"]

RECIPE = Path(__file__).with_name("decoupled-rnn.toml")
Array = np.ndarray[Any, Any]


class Learner(Protocol):
    """One of the two ways to the same gradients."""

    def gradients(self, x: Array, y: Array) -> dict[str, Array]:
        """Of the mean loss over x (B, T, D) and y (B, 1), by name of the weights."""

    def learn(self, rate: float) -> None:
        """One step of gradient descent on the gradients asked for last."""

    def logits(self, x: Array) -> Array:
        """(B, 1) for x (B, T, D)."""

    def weights(self) -> dict[str, Array]:
        """As they are now."""


class ByHand:
    """The package's own layers and their backward."""

    def __init__(self, chosen: config.Experiment) -> None:
        """Raises `ConfigError` for another network than an rnn and a dense output, and for
        another optimizer than plain gradient descent."""
        if not isinstance(chosen.optimizer, config.Sgd) or chosen.optimizer.momentum:
            raise ConfigError("optimizer: expected the recipe's, sgd without momentum")
        network = make_network(chosen, describe(chosen.data))
        names = [f"{n.name}.{i}" for n in network.nodes for i in range(len(n.layers))]
        layers = [make_layer(spec, where="layer") for n in network.nodes for spec in n.layers]
        if [type(layer) for layer in layers] != [Rnn, Dense]:
            raise ConfigError("expected the recipe's network: an rnn layer and a dense one")
        shape: tuple[int, ...] = network.data_shape
        for name, layer in zip(names, layers, strict=True):
            streams = layer_streams(chosen.run.seed, name)
            shape = layer.build(shape, np.dtype(chosen.run.dtype), streams)
        self.layers = dict(zip(names, layers, strict=True))
        self._loss = make_loss("sigmoid_cross_entropy")
        self._batch = 0

    def gradients(self, x: Array, y: Array) -> dict[str, Array]:
        alone = np.ones(len(x), np.bool_)  # each sample is a whole sequence
        context = {"first": alone, "last": alone}
        slots = [{"batch": self._batch, "context": context} for _ in self.layers]
        self._batch += 1
        h = x
        for layer, slot in zip(self.layers.values(), slots, strict=True):
            layer.fresh = True
            h = layer.forward(h, slot)
        own: dict[str, Any] = {}
        self._loss.forward(h, y, own)
        grad: Array | None = self._loss.backward(own) / len(x)
        for index, (layer, slot) in enumerate(
            zip(reversed(self.layers.values()), reversed(slots), strict=True)
        ):
            assert grad is not None
            grad = layer.backward(grad, slot, learn=True, send=index == 0)
        return self._named("grads")

    def learn(self, rate: float) -> None:
        for layer in self.layers.values():
            for name, weight in layer.params.items():
                weight -= rate * layer.grads[name]

    def logits(self, x: Array) -> Array:
        for layer in self.layers.values():
            x = layer.evaluate(x)
        return x

    def weights(self) -> dict[str, Array]:
        return self._named("params")

    def _named(self, what: str) -> dict[str, Array]:
        return {
            f"{place}.{name}": array
            for place, layer in self.layers.items()
            for name, array in getattr(layer, what).items()
        }


class ByAutograd:
    """The same formulas in PyTorch, which finds their gradients itself."""

    def __init__(self, weights: dict[str, Array]) -> None:
        """`weights`: of an rnn (weight_ih, weight_hh, bias) and a dense layer (weight, bias)."""
        import torch

        self._torch = torch
        self._weights = {
            name: torch.tensor(array).requires_grad_() for name, array in weights.items()
        }

    def gradients(self, x: Array, y: Array) -> dict[str, Array]:
        losses = self._torch.nn.functional.binary_cross_entropy_with_logits
        loss = losses(self._output(x), self._torch.tensor(y), reduction="sum") / len(x)
        for weight in self._weights.values():
            weight.grad = None
        loss.backward()
        return {name: weight.grad.numpy() for name, weight in self._weights.items()}

    def learn(self, rate: float) -> None:
        with self._torch.no_grad():
            for weight in self._weights.values():
                weight -= rate * weight.grad

    def logits(self, x: Array) -> Array:
        with self._torch.no_grad():
            found: Array = self._output(x).numpy()
        return found

    def weights(self) -> dict[str, Array]:
        return {name: weight.detach().numpy() for name, weight in self._weights.items()}

    def _output(self, x: Array) -> Any:
        w_ih, w_hh, bias, weight, output_bias = self._weights.values()
        xs = self._torch.tensor(x)
        h = xs.new_zeros(len(x), len(w_hh))
        for step in range(x.shape[1]):
            h = self._torch.tanh(xs[:, step] @ w_ih.T + h @ w_hh.T + bias)
        return h @ weight.T + output_bias


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    try:
        chosen = experiment.load(RECIPE, args.set, seed=args.seed)
        hand = ByHand(chosen)
        learners: dict[str, Learner] = {"by hand": hand}
        if args.autograd:
            learners["autograd"] = ByAutograd(hand.weights())
    except AsyncDNIError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except ImportError:
        print("--autograd needs PyTorch: pip install torch", file=sys.stderr)
        return 2
    with threadpool_limits(chosen.run.threads):
        _train(chosen, learners)
    return 0


def _train(chosen: config.Experiment, learners: dict[str, Learner]) -> None:
    data, run = chosen.data, chosen.run
    batches, largest = open_batches(data, run.seed), 0.0
    for epoch in range(run.epochs):
        for index in range(batches.batches_per_epoch(data.batch_size)):
            read = batches.read(epoch, index, data.batch_size, run.seed, run.dtype)
            found = [one.gradients(read["h"], read["y"]) for one in learners.values()]
            largest = max(largest, difference(found[0], found[-1]))
            for one in learners.values():
                one.learn(chosen.optimizer.learning_rate)
    test = batches.read_test(0, batches.meta.test_samples, run.dtype)
    for name, one in learners.items():
        right = ((one.logits(test["h"]) > 0) == (test["y"] > 0.5)).sum()
        print(f"{name}: {right} of {len(test['y'])} test images right")
    if len(learners) > 1:
        weights = [one.weights() for one in learners.values()]
        print(f"largest difference of a gradient: {largest:.2g}")
        print(f"largest difference of a weight at the end: {difference(*weights):.2g}")


def difference(some: dict[str, Array], others: dict[str, Array]) -> float:
    """The largest, of arrays of the same names."""
    return max(float(np.abs(array - others[name]).max()) for name, array in some.items())


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The decoupled RNN's network in one process.")
    parser.add_argument("--autograd", action="store_true", help="PyTorch's gradients beside ours")
    parser.add_argument("--seed", type=int, metavar="N", help="instead of the recipe's")
    parser.add_argument("--set", metavar="SECTION.KEY=VALUE", action="append", default=[])
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
