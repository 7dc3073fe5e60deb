"""What a generator is worth: test error and cosine on MNIST against the lag of true gradients.

    ASYNCDNI_DATA=… python benchmarks/generators/run.py [--epochs 3] [--decay constant]
    python benchmarks/generators/run.py --times

One process and no runtime: 784-256-256-256-10 with batch norm and relu, Adam 1e-3, batches of 256.
Each hidden stage learns at once from its generator. The true gradient of a batch arrives `lag`
batches later at all stages, pushed back through the batch's own forward state and the weights of
that moment, and trains the generators. Prints tables in Markdown. See README.md.
"""

from __future__ import annotations

import argparse
import gzip
import os
import statistics
import sys
import timeit
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from asyncdni.nn import optimizers as rates
from asyncdni.nn.base import Array, Layer, Slot
from asyncdni.nn.generators import GENERATORS, make_generator
from asyncdni.nn.generators.base import Generator
from asyncdni.nn.layers.activations import Relu
from asyncdni.nn.layers.dense import Dense
from asyncdni.nn.layers.normalisation import BatchNorm
from asyncdni.nn.losses import CrossEntropy
from asyncdni.nn.optimizers import Adam, flatten
from asyncdni.nn.streams import layer_streams, stream

WIDTH, CLASSES, BATCH, RATE = 256, 10, 256, 1e-3
HIDDEN = 3
FLOAT = np.dtype(np.float32)
#: Controls without a generator: the true gradient, applied when it arrives.
DELAYED, BACKPROP = "none (delayed)", "none (backprop)"

Data = tuple[Array, Array, Array, Array]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--decay", choices=("constant", "cosine"), default="constant")
    parser.add_argument("--lags", type=int, nargs="+", default=[4, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--generators", nargs="+", default=[DELAYED, *GENERATORS])
    parser.add_argument("--times", action="store_true", help="time predict and fit, train nothing")
    args = parser.parse_args()
    with threadpool_limits(1):
        if args.times:
            print_times()
        elif folder := os.environ.get("ASYNCDNI_DATA"):
            print_errors(args, load_mnist(Path(folder)))
        else:
            print("skipped: set ASYNCDNI_DATA to a folder with the four IDX files of MNIST")


# --- tables --------------------------------------------------------------------------------------


def print_errors(args: argparse.Namespace, data: Data) -> None:
    """Test error of each seed, and the mean cosine of the last epoch at each hidden stage."""
    print("| generator | lag | test error % | mean | cosine at stages 1, 2, 3 |")
    print("|---|--:|--:|--:|--:|")
    settings = [(BACKPROP, 0), *((kind, lag) for kind in args.generators for lag in args.lags)]
    for kind, lag in settings:
        runs = [run(kind, lag, seed, args.epochs, args.decay, data) for seed in args.seeds]
        errors = [error for error, _ in runs]
        listed = ", ".join(f"{error:.2f}" for error in errors)
        cosines = ", ".join(f"{c:.2f}" for c in np.mean([c for _, c in runs], axis=0)) or "-"
        mean = statistics.fmean(errors)
        print(f"| {kind} | {lag} | {listed} | {mean:.2f} | {cosines} |", flush=True)


def print_times() -> None:
    """Best microseconds of one call, float32, one thread."""
    print("| width | generator | predict µs | fit µs |\n|--:|---|--:|--:|")
    for width in (256, 1024):
        rng = np.random.default_rng(0)
        h = np.maximum(rng.standard_normal((BATCH, width), FLOAT), 0)
        grad, y = rng.standard_normal((BATCH, width), FLOAT), rng.integers(0, CLASSES, BATCH)
        for kind in GENERATORS:
            generator = built(kind, width, 0, 0)
            slot: Slot = {}
            predict = best_us(lambda g=generator, s=slot, h=h, y=y: g.predict(h, y, s, 1.0))
            fit = best_us(lambda g=generator, s=slot, grad=grad: g.fit(grad, s, 1.0))
            print(f"| {width} | {kind} | {predict:.0f} | {fit:.0f} |")


def best_us(call: object) -> float:
    return min(timeit.repeat(call, number=10, repeat=60)) / 10 * 1e6  # type: ignore[arg-type]


# --- training ------------------------------------------------------------------------------------


class Stage:
    """Layers under one optimizer, with a slot for each batch in flight."""

    def __init__(self, name: str, inputs: int, layers: list[Layer], seed: int) -> None:
        self.layers = layers
        shape: tuple[int, ...] = (inputs,)
        for index, layer in enumerate(layers):
            shape = layer.build(shape, FLOAT, layer_streams(seed, f"{name}.{index}"))
        self.params, self.grads = flatten(layers)
        self.optimizer = Adam()
        self.generator: Generator | None = None
        self.cosines: list[float] = []

    def forward(self, x: Array, slots: list[Slot]) -> Array:
        for layer, slot in zip(self.layers, slots, strict=False):
            x = layer.forward(x, slot)
        return x

    def backward(self, grad: Array, slots: list[Slot], *, learn: bool, send: bool) -> Array | None:
        """As the layers' own; a gradient to learn from is applied at once."""
        for index in reversed(range(len(self.layers))):
            last = index == 0 and not send
            sent = self.layers[index].backward(grad, slots[index], learn=learn, send=not last)
            grad = grad if sent is None else sent
        return grad if send else None

    def update(self, samples: int, scale: float) -> None:
        self.grads *= 1 / samples
        self.optimizer.step(self.params, self.grads, RATE * scale)
        for layer in self.layers:
            layer.fresh = True

    def evaluate(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer.evaluate(x)
        return x


class Network:
    """Hidden stages and a last one with the loss; true gradients come back `lag` batches late."""

    def __init__(self, kind: str, lag: int, seed: int) -> None:
        self.stages: list[Stage] = []
        for index in range(HIDDEN):
            layers: list[Layer] = [Dense(WIDTH), BatchNorm(), Relu()]
            inputs = WIDTH if index else 784
            self.stages.append(Stage(f"stage{index + 1}", inputs, layers, seed))
            if kind in GENERATORS:
                self.stages[-1].generator = built(kind, WIDTH, index, seed)
        self.output = Stage(f"stage{HIDDEN + 1}", WIDTH, [Dense(CLASSES)], seed)
        self.lag = lag
        self.loss = CrossEntropy()
        self.in_flight: deque[list[list[Slot]]] = deque()
        self.free: list[list[list[Slot]]] = []

    def train(self, x: Array, y: Array, scale: float) -> None:
        """One batch: every stage learns, then the gradients that are due arrive.

        Layers share no slots; a stage's last slot is its generator's, and of the output stage the
        loss's."""
        slots = self.free.pop() if self.free else [[{} for _ in range(4)] for _ in range(4)]
        for stage, own in zip(self.stages, slots, strict=False):
            x = stage.forward(x, own)
            if stage.generator is not None:
                predicted = stage.generator.predict(x, y, own[-1], scale)
                own[-1]["applied"] = predicted
                stage.backward(predicted, own, learn=True, send=False)
                stage.update(len(y), scale)
        self.loss.forward(self.output.forward(x, slots[-1]), y, slots[-1][-1])
        self.in_flight.append(slots)
        if self.lag:  # without a lag the gradient is sent before the update, as in backprop
            self.output.backward(
                self.loss.backward(slots[-1][-1]), slots[-1], learn=True, send=False
            )
            self.output.update(len(y), scale)
        if len(self.in_flight) > self.lag:
            self.arrive(scale)

    def arrive(self, scale: float) -> None:
        """The true gradient of the oldest batch goes through all stages."""
        slots = self.in_flight.popleft()
        grad = self.loss.backward(slots[-1][-1])
        sent = self.output.backward(grad, slots[-1], learn=not self.lag, send=True)
        if not self.lag:
            self.output.update(len(grad), scale)
        for index in reversed(range(HIDDEN)):
            assert sent is not None
            stage, own = self.stages[index], slots[index]
            learn, send = stage.generator is None, index > 0
            grad = sent
            if learn or send:
                sent = stage.backward(grad, own, learn=learn, send=send)
            if stage.generator is None:
                stage.update(len(grad), scale)
            else:
                stage.cosines.append(cosine(own[-1]["applied"], grad))
                stage.generator.fit(grad, own[-1], scale)
        self.free.append(slots)

    def test_error(self, x: Array, y: Array) -> float:
        for stage in (*self.stages, self.output):
            x = stage.evaluate(x)
        return 100 * float(np.mean(x.argmax(axis=1) != y))


def run(
    kind: str, lag: int, seed: int, epochs: int, decay: str, data: Data
) -> tuple[float, list[float]]:
    """Test error in percent, and the last epoch's mean cosine at each stage with a generator."""
    x_train, y_train, x_test, y_test = data
    network = Network(kind, lag, seed)
    per_epoch = len(x_train) // BATCH
    update = 0
    for epoch in range(epochs):
        for rows in batches(len(x_train), seed, epoch):
            scale = rates.scale(
                decay, update, updates_per_epoch=per_epoch, total_updates=epochs * per_epoch
            )
            network.train(x_train[rows], y_train[rows], scale)
            update += 1
    measured = [stage.cosines[-per_epoch:] for stage in network.stages if stage.cosines]
    return network.test_error(x_test, y_test), [statistics.fmean(c) for c in measured]


def built(kind: str, width: int, index: int, seed: int) -> Generator:
    generator = make_generator(kind)
    streams = layer_streams(seed, f"stage{index + 1}")
    generator.build(width, CLASSES, "cross_entropy", FLOAT, streams)
    return generator


def cosine(a: Array, b: Array) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.vdot(a, b)) / norms if norms else 0.0


# --- data ----------------------------------------------------------------------------------------


def batches(samples: int, seed: int, epoch: int) -> Iterator[Array]:
    """Rows of each whole batch of an epoch, shuffled."""
    order = stream(seed, "data", "shuffle", epoch).permutation(samples)
    for start in range(0, samples - BATCH + 1, BATCH):
        yield order[start : start + BATCH]


def load_mnist(folder: Path) -> Data:
    """Images (N, 784) in [0, 1] and class ids (N,), training set and test set."""
    arrays = []
    for part in ("train", "t10k"):
        images = read_idx(folder, f"{part}-images-idx3-ubyte", header=16)
        arrays.append(images.reshape(-1, 784).astype(FLOAT) / 255)
        arrays.append(read_idx(folder, f"{part}-labels-idx1-ubyte", header=8).astype(np.int64))
    x_train, y_train, x_test, y_test = arrays
    return x_train, y_train, x_test, y_test


def read_idx(folder: Path, name: str, header: int) -> Array:
    """The bytes of an IDX file behind its header; the file may be gzipped."""
    for path in (folder / name, folder / "mnist" / name):
        if path.exists():
            return np.frombuffer(path.read_bytes(), np.uint8, offset=header)
        zipped = path.with_name(f"{name}.gz")
        if zipped.exists():
            return np.frombuffer(gzip.decompress(zipped.read_bytes()), np.uint8, offset=header)
    sys.exit(f"{name}[.gz] is neither in {folder} nor in {folder / 'mnist'}: set ASYNCDNI_DATA")


if __name__ == "__main__":
    main()
